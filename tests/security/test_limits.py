"""A sandbox that takes all it can get harms only itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2b import CommandExitException, NotEnoughSpaceException, Sandbox, SandboxException

from support import host, paths
from support.wait import wait_for

Create = Callable[..., Sandbox]

#: Forks children that wait, until it may not; then says how many it got, and waits for a line.
FORKS = """
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
static pid_t children[50000];
int main(void) {
    int count = 0;
    pid_t child;
    while (count < 50000 && (child = fork()) >= 0) {
        if (child == 0) pause();
        children[count++] = child;
    }
    printf("%d %d\\n", count, count < 50000 ? errno : 0);
    fflush(stdout);
    getchar();
    while (count > 0) kill(children[--count], SIGKILL);
}
"""

#: Takes memory and touches it, until it is ended.
MEMORY = """
taken = []
while True:
    taken.append(bytearray(b"x") * (16 << 20))
    print(len(taken) * 16, flush=True)
"""


#: Fills memory once, and forks for as long as it can; every child fills some more.
FORKS_AND_MEMORY = """
import os
hoard = bytearray(b"x") * (128 << 20)
while True:
    try:
        os.fork()
    except OSError:
        pass
    hoard += bytearray(b"x") * (1 << 20)
"""


# Rules: PROC-20
@pytest.mark.parametrize("user", ["user", "root"])
def test_processes_are_bounded(create: Create, user: str) -> None:
    sandbox, neighbour = create(), create()
    sandbox.files.write("/tmp/forks.c", FORKS)
    # Small, so that memory does not run out first.
    sandbox.commands.run("cc -static -o /tmp/forks /tmp/forks.c")
    output: list[str] = []
    handle = sandbox.commands.run(
        "exec /tmp/forks", user=user, background=True, stdin=True, timeout=120
    )
    for out, _, _ in handle:
        output.append(out or "")
        if "\n" in output[-1]:
            break
    count, errno = map(int, "".join(output).split())
    assert errno == 11, f"fork was not refused with EAGAIN but {errno} after {count}"
    assert 100 < count < 40_000
    # There is no process left to be had here, which is nothing to its neighbour, nor to envd.
    assert neighbour.commands.run("echo alive").stdout == "alive\n"
    with ThreadPoolExecutor(10) as pool:
        contents = list(pool.map(lambda _: sandbox.files.read("/etc/hostname"), range(50)))
    assert len(set(contents)) == 1
    with pytest.raises(SandboxException):
        sandbox.commands.run("true", timeout=30)
    sandbox.commands.send_stdin(handle.pid, "\n")
    wait_for("a process to be had again", lambda: runs_something(sandbox), seconds=30)


def runs_something(sandbox: Sandbox) -> bool:
    try:
        return sandbox.commands.run("echo alive", timeout=30).stdout == "alive\n"
    except SandboxException:
        return False


def test_a_fork_bomb_can_be_ended(create: Create) -> None:
    sandbox, neighbour = create(), create()
    sandbox.commands.run("bomb() { bomb | bomb & }; bomb", background=True, timeout=0)
    for number in range(5):
        assert neighbour.commands.run(f"echo {number}").stdout == f"{number}\n"
    assert sandbox.kill() is True
    assert not sandbox.is_running()
    assert neighbour.is_running()


#: Opens connections to envd, as many as it accepts, each with a part of a request.
CONNECTIONS = """
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = []
for _ in range(10000):
    try:
        connection = socket.create_connection(("127.0.0.1", 49983), timeout=1)
    except OSError:
        break
    connection.setblocking(False)
    try:
        connection.send(b"GET /health HTTP/1.1\\r\\nhost: x\\r\\nx: " + b"x" * LENGTH)
    except OSError:
        pass
    held.append(connection)
print(len(held), flush=True)
time.sleep(5)
"""


@pytest.mark.parametrize("length", [32_000, 380_000])
def test_connections_from_inside_do_not_end_envd(create: Create, length: int) -> None:
    sandbox = create()
    sandbox.files.write("/tmp/connections.py", CONNECTIONS.replace("LENGTH", str(length)))
    outcome = sandbox.commands.run("python3 /tmp/connections.py", timeout=60)
    assert int(outcome.stdout) > 1000
    assert sandbox.commands.run("echo alive", timeout=30).stdout == "alive\n"


# Rules: BOOT-4, TRAP-41, PROC-26
def test_memory_is_bounded_and_envd_survives(create: Create) -> None:
    sandbox = create()
    limit = sandbox.get_info().memory_mb
    sandbox.files.write("/tmp/memory.py", MEMORY)
    handle = sandbox.commands.run("exec python3 /tmp/memory.py", background=True, timeout=120)
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    taken = int(caught.value.stdout.split()[-1])
    # What is kept for envd is out of reach.
    assert limit / 2 < taken < limit * 7 / 8
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    assert sandbox.is_running()


# Rules: TRAP-41, PROC-26
def test_a_memory_hog_dies_alone(create: Create) -> None:
    sandbox = create()
    sandbox.files.write("/tmp/memory.py", MEMORY)
    modest = sandbox.commands.run("read line; echo $line", background=True, stdin=True, timeout=120)
    hog = sandbox.commands.run("exec python3 /tmp/memory.py", background=True, timeout=120)
    with pytest.raises(CommandExitException) as caught:
        hog.wait()
    assert caught.value.error == "signal: killed"
    sandbox.commands.send_stdin(modest.pid, "still here\n")
    assert modest.wait().stdout == "still here\n"


# Rules: BOOT-4, TRAP-41, PROC-26
@pytest.mark.parametrize("user", ["user", "root"])
def test_envd_answers_while_users_take_everything(create: Create, user: str) -> None:
    sandbox = create()
    sandbox.files.write("/tmp/bomb.py", FORKS_AND_MEMORY)
    instance = (paths.DATA_DIR / "instance").read_text().strip()
    before = host.oom_kills(instance)
    sandbox.commands.run("exec python3 /tmp/bomb.py 2>/dev/null", user=user, background=True)
    wait_for("memory to run out", lambda: host.oom_kills(instance) > before, seconds=60)
    for number in range(5):
        sandbox.files.write("/tmp/note", f"{number}")
        assert sandbox.files.read("/tmp/note") == f"{number}"
        sandbox.commands.list()
    assert sandbox.is_running()
    assert sandbox.kill() is True


# Rules: PROC-10
def test_commands_do_not_have_envds_priority(create: Create) -> None:
    script = "ps -o ni= -p 1; nice; ionice -p $$; cat /proc/$$/oom_score_adj"
    first, own, disk, oom = create().commands.run(script, user="root").stdout.splitlines()
    assert (first.strip(), own, disk, oom) == ("-20", "0", "best-effort: prio 4", "100")


def test_commands_survive_the_process_that_forks_them(create: Create) -> None:
    sandbox = create()
    before = sandbox.commands.run("read line; echo $line", background=True, stdin=True, timeout=60)
    spawner = "ps -eo pid,comm | awk '$2 == \"envd-spawner\" { print $1 }'"
    pid = sandbox.commands.run(spawner).stdout.strip()
    assert pid.isdigit(), f"no spawner: {pid!r}"
    # Not by a user, nor by a signal that root sends to everybody in passing.
    with pytest.raises(CommandExitException):
        sandbox.commands.run(f"kill -9 {pid}")
    sandbox.commands.run(f"kill -TERM {pid}; kill -STOP {pid}", user="root")
    assert sandbox.commands.run(spawner).stdout.strip() == pid
    # What envd was given in secret is not to be found in it.
    for secret in ["mem", "environ", "maps"]:
        with pytest.raises(CommandExitException):
            sandbox.commands.run(f"head -c 1 /proc/{pid}/{secret}", user="root")
    sandbox.commands.run(f"kill -9 {pid}", user="root")
    for number in range(5):
        assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"
    sandbox.commands.send_stdin(before.pid, "still here\n")
    assert before.wait().stdout == "still here\n"


# Rules: PROC-26
def test_a_fork_of_a_memory_hog_does_not_escape(create: Create) -> None:
    sandbox = create()
    sandbox.files.write("/tmp/memory.py", MEMORY)
    everybody = " & ".join(["python3 /tmp/memory.py >/dev/null"] * 4) + " & wait"
    sandbox.commands.run(everybody, user="root", timeout=120)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def host_free() -> int:
    return shutil.disk_usage(paths.DATA_DIR).free


def test_the_disk_is_bounded(create: Create) -> None:
    sandbox, neighbour = create(), create()
    # Reserving counts against the limit without the host having to write it.
    script = """
        n=0
        while fallocate -l 256M fill-$n 2>err; do n=$((n+1)); [ $n -lt 400 ] || break; done
        echo $n; cat err
        while fallocate -l 4M fill-rest-$n 2>/dev/null; do n=$((n+1)); done
    """
    out = sandbox.commands.run(script, timeout=240).stdout
    count, message = out.split("\n", 1)
    assert int(count) < 400, "a sandbox could reserve 100 GB"
    assert "No space left" in message or "quota exceeded" in message.lower(), message
    with pytest.raises(CommandExitException):
        sandbox.commands.run("head -c 64M /dev/urandom > one-more")
    with pytest.raises(NotEnoughSpaceException):
        sandbox.files.write("too-much", os.urandom(24 << 20))
    assert neighbour.commands.run("head -c 64M /dev/zero > mine && stat -c %s mine").stdout
    # What is removed can be used again.
    sandbox.commands.run("rm -f fill-* one-more too-much")

    def writable() -> bool:
        try:
            sandbox.files.write("again", b"x" * (1 << 20))
        except NotEnoughSpaceException:
            return False
        return True

    wait_for("the freed space", writable, seconds=180)


def test_a_killed_sandboxs_disk_is_freed(create: Create) -> None:
    before = host_free()
    sandbox = create()
    sandbox.commands.run("head -c 600M /dev/urandom > big", timeout=120)
    sandbox.kill()
    os.sync()
    wait_for("the host's space to come back", lambda: before - host_free() < 300 << 20, seconds=180)


# Rules: TRAP-39
def test_descriptors_and_watches_are_not_shared(create: Create) -> None:
    script = """
import ctypes, os
libc = ctypes.CDLL(None)
count = 0
while count < 5000 and libc.inotify_init() >= 0:
    count += 1
print(count)
"""
    hog, neighbour = create(), create()
    hog.files.write("/tmp/inotify.py", script)
    hog.commands.run("python3 /tmp/inotify.py; sleep 0")
    handle = hog.commands.run("python3 -i /tmp/inotify.py", background=True, stdin=True, timeout=0)
    neighbour.files.make_dir("watched")
    watch = neighbour.files.watch_dir("watched")
    neighbour.files.write("watched/x", "")
    assert watch.get_new_events()
    watch.stop()
    handle.kill()
