"""Root in a sandbox tries to be more than that."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from e2b import CommandExitException, Sandbox

_SOURCE = Path(__file__).with_name("probes.py")


def _probe_names() -> list[str]:
    spec = importlib.util.spec_from_file_location("probes", _SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.PROBES)


@pytest.fixture(scope="module")
def probed(shared: Sandbox) -> Sandbox:
    shared.files.write("/tmp/probes.py", _SOURCE.read_text())
    return shared


@pytest.mark.parametrize("probe", _probe_names())
def test_root_may_not(probed: Sandbox, probe: str) -> None:
    out = probed.commands.run(f"python3 /tmp/probes.py {probe}", user="root", timeout=30).stdout
    outcome = json.loads(out)
    assert not outcome["allowed"], f"{probe} succeeded: {outcome['detail']}"


def test_the_sandbox_is_still_there_after_all_that(probed: Sandbox) -> None:
    assert probed.commands.run("echo fine").stdout == "fine\n"


def root(sandbox: Sandbox, command: str) -> str:
    """Output of a command as root in the sandbox."""
    return sandbox.commands.run(command, user="root").stdout


def test_capabilities_are_the_few_that_are_needed(shared: Sandbox) -> None:
    status = dict(
        line.split(":\t", 1) for line in root(shared, "cat /proc/self/status").splitlines()
    )
    names = {
        "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "SYS_BOOT": 22,
        "SYS_TIME": 25, "MKNOD": 27, "NET_ADMIN": 12, "NET_RAW": 13, "SYSLOG": 34, "BPF": 39,
        "PERFMON": 38, "MAC_ADMIN": 33, "SYS_RESOURCE": 24, "SYS_NICE": 23, "LINUX_IMMUTABLE": 9,
    }  # fmt: skip
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        held = [name for name, bit in names.items() if int(status[kind], 16) >> bit & 1]
        assert not held, f"{kind} has {held}"
    assert status["Seccomp"] == "2"


def test_setuid_works_inside(shared: Sandbox) -> None:
    assert shared.commands.run("sudo -n id -u").stdout == "0\n"
    assert shared.commands.run("sudo -n head -c 4 /etc/shadow").stdout == "root"
    with pytest.raises(CommandExitException):
        shared.commands.run("head -c 4 /etc/shadow")


def test_each_sandbox_has_ids_of_its_own(create: Callable[..., Sandbox]) -> None:
    firsts = []
    for sandbox in (create(), create()):
        for kind in ("uid_map", "gid_map"):
            inside, outside, count = map(int, root(sandbox, f"cat /proc/self/{kind}").split())
            assert (inside, count) == (0, 65536)
            assert outside >= 65536
        firsts.append(outside)
    assert abs(firsts[0] - firsts[1]) >= 65536


def test_known_devices_work(shared: Sandbox) -> None:
    script = """
        set -e
        echo x > /dev/null
        head -c 2 /dev/zero | od -An -tx1
        ! echo x 2>/dev/null > /dev/full
        head -c 8 /dev/random | wc -c; head -c 8 /dev/urandom | wc -c
        script -qec 'tty; echo typed > /dev/tty' /dev/null
    """
    out = shared.commands.run(f"bash -c {shlex.quote(script)}").stdout.split()
    assert out[:4] == ["00", "00", "8", "8"]
    assert out[4].startswith("/dev/pts/") and out[5] == "typed"


def test_only_its_own_processes_are_seen(create: Callable[..., Sandbox]) -> None:
    one, two = create(), create()
    one.commands.run("exec -a only-in-the-first sleep 600", background=True, timeout=0)
    assert "only-in-the-first" in root(one, "ps -eo args=")
    seen = root(two, "ps -eo args=")
    assert "only-in-the-first" not in seen
    assert "atoll up" not in seen
    assert len(seen.splitlines()) < 20


def test_sandboxes_have_files_of_their_own(create: Callable[..., Sandbox]) -> None:
    one, two = create(), create()
    one.files.write("/usr/bin/planted", "from the first", user="root")
    one.commands.run("rm -f /etc/motd /etc/debian_version; echo changed > /etc/issue", user="root")
    assert not two.files.exists("/usr/bin/planted")
    assert "changed" not in two.files.read("/etc/issue")
    third = create()
    assert not third.files.exists("/usr/bin/planted")
    assert third.files.exists("/etc/debian_version")


def test_the_control_secret_is_nowhere_to_be_read(shared: Sandbox) -> None:
    # envd gets it on standard input and keeps it in memory: neither may be open to root here.
    with pytest.raises(CommandExitException):
        root(shared, "cat /proc/1/environ /proc/1/maps > /dev/null")
    assert "control" not in root(shared, "tr '\\0' ' ' < /proc/1/cmdline")


# Rules: PROXY-5, TRAP-18
def test_init_without_the_secret_is_refused(shared: Sandbox) -> None:
    script = (
        "curl -s -o /dev/null -w '%{http_code}' -X POST http://127.0.0.1:49983/init"
        " -H 'Content-Type: application/json' -d '{\"accessToken\":\"mine\"}'"
    )
    assert root(shared, script) in {"401", "403", "404"}
    assert shared.files.exists("/etc/passwd")


def test_envd_cannot_be_killed_from_inside(create: Callable[..., Sandbox]) -> None:
    sandbox = create()
    sandbox.commands.run("kill -9 1; kill -TERM 1; kill -STOP 1; true", user="root")
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
