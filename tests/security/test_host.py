"""The host's files, processes and sockets, looked for from inside."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2b import Sandbox, SandboxException

from support import paths
from support.wait import wait_for

Create = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def secret() -> str:
    """Something that is nowhere in the world but where a test puts it."""
    return secrets.token_hex(16)


@pytest.fixture(scope="module")
def planted(stack: object, secret: str) -> Iterator[list[Path]]:
    """Files on the host, readable for all, in places a sandbox might get at."""
    places = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), paths.DATA_DIR]
    files = [place / f"atoll-host-{secret}" for place in places if place.is_dir()]
    for file in files:
        file.write_text(secret)
        file.chmod(0o644)
    yield files
    for file in files:
        file.unlink()


#: Ways to spell "the root directory, but the host's".
DETOURS = [
    "",
    "/proc/1/root",
    "/proc/self/root",
    "/proc/1/cwd",
    "/proc/self/cwd/../../../..",
    "/proc/thread-self/root",
    "/..",
    "/home/user/../../../../../../..",
    "/tmp/../proc/1/root/proc/1/root",
]


def test_host_files_are_not_found_by_commands(
    shared: Sandbox, planted: list[Path], secret: str
) -> None:
    looked = " ".join(f"'{detour}{file}'" for detour in DETOURS for file in planted)
    out = shared.commands.run(f"cat {looked} 2>&1 || true", user="root").stdout
    assert secret not in out.replace(f"atoll-host-{secret}", "")
    found = "find / -xdev -name 'atoll-host-*' -not -path '/proc/*' 2>/dev/null || true"
    assert shared.commands.run(found, user="root").stdout == ""


@pytest.mark.parametrize("detour", DETOURS)
def test_host_files_are_not_found_by_the_files_api(
    shared: Sandbox, planted: list[Path], detour: str
) -> None:
    for file in planted:
        with pytest.raises(SandboxException):
            shared.files.read(f"{detour}{file}")
        assert not shared.files.exists(f"{detour}{file}")


@pytest.mark.parametrize("target", [*DETOURS[1:], "/proc/1/fd/0", "/proc/1/fd/3", "/proc/1/exe"])
def test_links_do_not_lead_the_files_api_astray(
    shared: Sandbox, planted: list[Path], secret: str, target: str
) -> None:
    name = f"link-{secrets.token_hex(4)}"
    shared.commands.run(f"ln -s '{target}' {name}", user="root", cwd="/home/user")
    for file in planted:
        path = f"/home/user/{name}{file}"
        assert not shared.files.exists(path)
        with pytest.raises(SandboxException):
            shared.files.read(path)


def test_writing_through_links_stays_inside(shared: Sandbox, secret: str) -> None:
    target = Path(f"/tmp/atoll-written-{secret}")
    shared.commands.run("ln -sfn /proc/1/root out", cwd="/home/user")
    try:
        shared.files.write(f"out{target}", "escaped?", user="root")
    except Exception:
        # Refusing is as good as writing inside.
        assert not target.exists()
    assert not target.exists()


def test_host_processes_are_not_seen(shared: Sandbox, secret: str) -> None:
    host_process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", secret], stdin=subprocess.PIPE
    )
    try:
        seen = shared.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", user="root").stdout
        assert secret not in seen
    finally:
        host_process.communicate()


def test_a_sandboxs_processes_are_nobody_on_the_host(shared: Sandbox, secret: str) -> None:
    shared.commands.run(f"exec -a {secret} sleep 600", background=True, timeout=0, user="root")

    def on_host() -> list[Path]:
        return [entry for entry in Path("/proc").glob("[0-9]*") if secret in cmdline(entry)]

    process = wait_for("the process to be seen on the host", on_host)[0]
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert all(int(uid) >= 65536 for uid in status["Uid"].split())
    assert all(int(gid) >= 65536 for gid in status["Gid"].split())
    assert all(int(group) >= 65536 for group in status["Groups"].split())
    for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        assert os.readlink(process / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}")


def cmdline(process: Path) -> str:
    """Arguments of a process that may just be ending."""
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def test_host_sockets_are_not_reached(shared: Sandbox, secret: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0atoll-{secret}")
        listener.listen()
        script = (
            f"import socket\nsocket.socket(socket.AF_UNIX).connect(chr(0) + 'atoll-{secret}')\n"
        )
        shared.files.write("/tmp/connect.py", script)
        result = shared.commands.run("python3 /tmp/connect.py 2>&1 || true", user="root")
        assert "ConnectionRefusedError" in result.stdout


def test_shared_memory_and_queues_are_apart(shared: Sandbox) -> None:
    assert shared.commands.run("ls -A /dev/shm", user="root").stdout == ""
    assert "0x" not in shared.commands.run("ipcs -m; ipcs -q; ipcs -s", user="root").stdout


def test_mounts_tell_nothing_of_the_host(shared: Sandbox) -> None:
    table = shared.commands.run("cat /proc/self/mountinfo", user="root").stdout
    assert str(paths.DATA_DIR) not in table
    assert str(paths.ROOT) not in table
