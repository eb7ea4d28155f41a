"""What a command finds around it: the image `base`, and what the sandbox says of itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from e2b import CommandExitException, Sandbox

from support.sdk import newest

pytestmark = newest


def out(sandbox: Sandbox, script: str, **options: object) -> str:
    """What a command prints, without the last newline."""
    return sandbox.commands.run(script, **options).stdout.rstrip("\n")  # type: ignore[call-overload]


# Rules: META-1, BOOT-8, TRAP-43
@pytest.mark.parametrize("user", ["user", "root"])
def test_every_command_knows_its_sandbox(shared: Sandbox, user: str) -> None:
    known = out(shared, "echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID", user=user)
    template = shared.get_info().template_id
    assert known == f"true {shared.sandbox_id} {template}"


# Rules: META-2, BOOT-8
def test_files_say_the_same(shared: Sandbox) -> None:
    assert out(shared, "stat -c '%a %U' /run/e2b") == "755 root"
    expected = {
        ".E2B_SANDBOX": "true",
        ".E2B_SANDBOX_ID": shared.sandbox_id,
        ".E2B_TEMPLATE_ID": shared.get_info().template_id,
    }
    for name, value in expected.items():
        path = f"/run/e2b/{name}"
        assert shared.files.read(path).strip() == value
        assert out(shared, f"stat -c %a {path}") == "444"


# Rules: IMAGE-1
def test_the_user(shared: Sandbox) -> None:
    assert out(shared, "id -u; whoami; pwd; echo $HOME; echo $BASH") == (
        "1000\nuser\n/home/user\n/home/user\n/bin/bash"
    )
    entry = out(shared, "getent passwd user").split(":")
    assert entry[5:] == ["/home/user", "/bin/bash"]


# Rules: IMAGE-2, TRAP-43
def test_sudo_needs_no_password_and_passes_nothing_on(create: Callable[..., Sandbox]) -> None:
    sandbox = create(envs={"API_SECRET": "create"})
    script = "sudo -n id -u; sudo -n env"
    printed = out(sandbox, script, envs={"CALL_SECRET": "call"})
    assert printed.startswith("0\n")
    assert "SECRET" not in printed
    assert out(sandbox, "sudo -n -u user whoami", user="root") == "user"


# Rules: IMAGE-3
def test_nobody_has_a_password(shared: Sandbox) -> None:
    script = "getent shadow root user | cut -d: -f2"
    assert out(shared, script, user="root") == ""


# Rules: IMAGE-7
def test_a_login_shell_is_set_up(shared: Sandbox) -> None:
    # At its beginning, since Debian's own leaves a shell that is not interactive alone.
    shared.commands.run("sed -i '1i FROM_BASHRC=b' ~/.bashrc; echo 'FROM_PROFILE=p' >> ~/.profile")
    assert out(shared, "echo $SHELL $FROM_BASHRC $FROM_PROFILE") == "/bin/bash b p"
    # The prompt is read before ~/.bashrc, which may have its own.
    assert r"PS1='\w \$ '" in shared.files.read("/etc/profile.d/shell.sh")


# Rules: IMAGE-8, TRAP-24
def test_a_login_shell_has_the_path_of_the_system(create: Callable[..., Sandbox]) -> None:
    sandbox = create(envs={"PATH": "/nowhere", "DISPLAY": ":0", "GREETING": "hello"})
    printed = out(sandbox, "echo $PATH; echo $DISPLAY $GREETING; command -v ls git python3")
    path, others, *found = printed.split("\n")
    assert path.split(":")[:2] == ["/usr/local/bin", "/usr/bin"]
    assert others == ":0 hello"
    assert len(found) == 3
    assert out(sandbox, "echo $PATH", envs={"PATH": "/other"}) == path


# Rules: IMAGE-9
def test_everyone_may_install(shared: Sandbox) -> None:
    shared.commands.run("touch /usr/local/bin/tool /usr/local/lib/part /code/work")
    assert out(shared, "stat -c %a /usr/local /code") == "777\n777"


# Rules: IMAGE-10
def test_the_build_is_named(shared: Sandbox) -> None:
    lines = dict(line.split("=", 1) for line in shared.files.read("/.e2b").splitlines())
    assert {"ENV_ID", "TEMPLATE_ID", "BUILD_ID"} <= lines.keys()
    assert all(lines.values())


# Rules: IMAGE-11
def test_ready_checks_work(shared: Sandbox) -> None:
    shared.commands.run("exec python3 -m http.server 8123", background=True, timeout=0)
    shared.commands.run("until ss -Htuln | grep -q ':8123 '; do sleep 0.05; done", timeout=60)
    fetch = "curl -s -o /dev/null -w '%{http_code}' http://localhost:8123/ | grep -q 200"
    assert shared.commands.run(fetch).exit_code == 0
    assert shared.commands.run("pgrep python3 > /dev/null").exit_code == 0
    with pytest.raises(CommandExitException):
        shared.commands.run("pgrep no-such-name > /dev/null")


# Rules: CLOCK-1
def test_the_time_is_right(shared: Sandbox) -> None:
    before = time.time()
    now = float(out(shared, "date +%s.%N"))
    assert before <= now <= time.time()


# Rules: GATE-1, GATE-2, TRAP-25
def test_the_version_is_one_that_sdks_use_everything_of(shared: Sandbox) -> None:
    version = shared.get_info().envd_version
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert tuple(map(int, version.split("."))) >= (0, 6, 13)
    connected = Sandbox.connect(shared.sandbox_id)
    assert str(connected._envd_version) == version
