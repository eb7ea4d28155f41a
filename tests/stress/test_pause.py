"""What a pause keeps, with memory held frozen and with checkpoints, also when Atoll dies meanwhile.

For checkpoints CRIU is fetched as `scripts/criu.sh` does it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import Sandbox, Template

from stress.conftest import instance_of
from support import paths
from support.counting import Counting, Seen, ask, assert_gapless, seen
from support.crashes import abort_after, crash, is_alive
from support.host import first_process, left_behind, memory_of
from support.lifecycle import events, is_paused
from support.stack import Stack
from support.templates import Builds
from support.wait import wait_for

WAKES = {"on_timeout": "pause", "auto_resume": True}
MEGABYTES = 200
CRIU = "ATOLL_CRIU"


def criu_tree() -> str:
    """Where the CRIU of the tests is."""
    script = paths.ROOT / "scripts" / "criu.sh"
    return subprocess.run([script], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module", params=["frozen", "checkpoint"])
def kept(stack: Stack, request: pytest.FixtureRequest) -> Iterator[str]:
    """What a pause keeps; the stack is started again accordingly."""
    before = os.environ.pop(CRIU, None)
    if request.param == "checkpoint":
        os.environ[CRIU] = criu_tree()
    stack.stop()
    stack.start()
    yield request.param
    os.environ.pop(CRIU, None)
    if before:
        os.environ[CRIU] = before
    stack.stop()
    stack.start()


@pytest.fixture
def clean(stack: Stack, kept: str) -> Iterator[None]:
    """Checks that the host has nothing of the stack once it has stopped."""
    instance = instance_of(stack)
    yield
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    assert list((stack.data_dir / "sandboxes").iterdir()) == []
    stack.start()


@pytest.fixture
def counting(kept: str, create: Callable[..., Sandbox]) -> Counting:
    """A sandbox that counts, with a file open and a server on a port; traffic wakes it."""
    return Counting(create(timeout=600, lifecycle=WAKES))


def what_is_kept(api: httpx.Client, sandbox: Sandbox) -> str:
    """What the API says that a paused sandbox goes on from."""
    return api.get(f"/sandboxes/{sandbox.sandbox_id}").json()["kept"]


def counts_on(sandbox: Sandbox, since: Seen) -> None:
    wait_for("it to count on", lambda: seen(ask(sandbox.sandbox_id)).count > since.count)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("crashes", [False, True], ids=["alive", "killed"])
def test_a_plain_request_finds_it_where_it_was(
    stack: Stack, kept: str, counting: Counting, api: httpx.Client, *, crashes: bool
) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    host_pid = first_process(sandbox.sandbox_id)
    # Its deadline, not a call, pauses it.
    sandbox.set_timeout(0)
    wait_for("the sandbox to be paused", lambda: is_paused(sandbox))
    assert what_is_kept(api, sandbox) == kept
    # A checkpoint is all that is left; what is shown as paused may still be on its way there.
    wait_for("its processes", lambda: is_alive(host_pid) is (kept == "frozen"), seconds=60)
    if crashes:
        crash(stack)
        assert is_paused(sandbox)
        assert what_is_kept(api, sandbox) == kept
    answer = counting.ask()
    counting.went_on(before, seen(answer))
    assert sandbox.commands.run("echo again").stdout == "again\n"
    assert not is_paused(sandbox)
    assert sandbox.kill() is True


@pytest.mark.usefixtures("clean")
def test_rounds_with_crashes_between(stack: Stack, counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    for number in range(5):
        sandbox.files.write(f"/home/user/file-{number}", "kept")
        assert sandbox.pause() is True
        crash(stack)
        sandbox.connect()
        crash(stack)
        counting.went_on(before)
        for earlier in range(number + 1):
            assert sandbox.files.read(f"/home/user/file-{earlier}") == "kept"
    assert sandbox.kill() is True


@pytest.mark.usefixtures("clean")
def test_what_stopping_leaves_of_it(
    stack: Stack, kept: str, counting: Counting, api: httpx.Client
) -> None:
    sandbox = counting.sandbox
    sandbox.files.write("/home/user/file", "kept")
    before = counting.look()
    assert sandbox.pause() is True
    stack.stop()
    stack.start()
    assert is_paused(sandbox)
    if kept == "checkpoint":
        assert what_is_kept(api, sandbox) == "checkpoint"
        counting.went_on(before, seen(counting.ask()))
    else:
        # Of frozen processes the disk is left, and whoever asks is told.
        assert what_is_kept(api, sandbox) == "disk"
        wait_for("a word of it", lambda: events(api, sandbox, "sandbox_memory_lost"))
        assert counting.ask().json()["message"] == "The sandbox was not found"
        sandbox.connect()
        assert sandbox.commands.list() == []
        assert_gapless(sandbox)
    assert sandbox.files.read("/home/user/file") == "kept"
    assert sandbox.kill() is True


@pytest.mark.parametrize("kept", ["checkpoint"], indirect=True, scope="module")
@pytest.mark.usefixtures("clean")
def test_a_checkpoint_gives_its_memory_back(stack: Stack, counting: Counting) -> None:
    sandbox, instance = counting.sandbox, instance_of(stack)
    sandbox.files.write(
        "/tmp/hold.py",
        f"import time\nheld = bytearray({MEGABYTES} << 20)\n"
        "held[::4096] = b'x' * len(held[::4096])\n"
        "open('/tmp/held', 'w').close()\ntime.sleep(600)\n",
    )
    holder = sandbox.commands.run("exec python3 /tmp/hold.py", background=True, timeout=0).pid
    wait_for("it to hold", lambda: sandbox.files.exists("/tmp/held"), seconds=30)
    # Control groups add up what they count every two seconds at the latest.
    wait_for("the memory to be held", lambda: memory_of(instance) > MEGABYTES << 20)
    assert sandbox.pause() is True
    wait_for("the memory to be free", lambda: memory_of(instance) < MEGABYTES << 19)
    sandbox.connect()
    wait_for("the memory to be held again", lambda: memory_of(instance) > MEGABYTES << 20)
    assert holder in {process.pid for process in sandbox.commands.list()}
    assert sandbox.kill() is True


#: Traces a process of its own, as a debugger does; CRIU, which has to, then cannot.
TRACER = """
import ctypes, os, time
child = os.fork()
if child == 0:
    time.sleep(600)
assert ctypes.CDLL(None, use_errno=True).ptrace(0x4206, child, 0, 0) == 0, ctypes.get_errno()
open("/tmp/traces", "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize("kept", ["checkpoint"], indirect=True, scope="module")
@pytest.mark.usefixtures("clean")
def test_what_cannot_be_saved_is_held_frozen(counting: Counting, api: httpx.Client) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    sandbox.files.write("/tmp/tracer.py", TRACER)
    tracer = sandbox.commands.run("exec python3 /tmp/tracer.py", background=True, timeout=0)
    wait_for("it to trace", lambda: sandbox.files.exists("/tmp/traces"))
    for _ in range(2):
        assert sandbox.pause() is True
        assert what_is_kept(api, sandbox) == "frozen"
        counting.went_on(before, seen(counting.ask()))
    # Of a snapshot the files are left.
    snapshot = sandbox.create_snapshot().snapshot_id
    made = Sandbox.create(snapshot, timeout=120)
    assert made.commands.list() == []
    assert_gapless(made)
    assert made.kill() is True
    assert Sandbox.delete_snapshot(snapshot) is True
    wait_for("a word of each", lambda: len(events(api, sandbox, "checkpoint_failed")) == 3)
    # Once there is nothing in the way, there are checkpoints.
    tracer.kill()
    assert sandbox.pause() is True
    assert what_is_kept(api, sandbox) == "checkpoint"
    counting.went_on(before, seen(counting.ask()))
    assert sandbox.kill() is True


@pytest.mark.usefixtures("clean")
def test_a_fork_has_the_processes_where_there_are_checkpoints(
    kept: str, counting: Counting, api: httpx.Client
) -> None:
    source = counting.sandbox
    before = counting.look()
    forks = source.fork(count=3, timeout=120)
    for fork in forks:
        assert isinstance(fork, Sandbox), fork
        pids = {process.pid for process in fork.commands.list()}
        if kept == "checkpoint":
            assert pids == {counting.pid}
            now = seen(ask(fork.sandbox_id))
            assert (now.run, now.nameless, now.pid) == (before.run, before.run, before.pid)
            assert now.count >= before.count
            counts_on(fork, now)
        else:
            assert pids == set()
        assert_gapless(fork)
        assert fork.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == fork.sandbox_id
    counting.went_on(before)
    # What was copied is in the log.
    [copied] = wait_for("a word of it", lambda: events(api, source, "sandbox_snapshot"))
    assert ("disk alone" in copied["message"]) is (kept == "frozen")
    for sandbox in (source, *forks):
        assert sandbox.kill() is True


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("crashes", [False, True], ids=["alive", "killed"])
def test_a_snapshot_has_the_processes_where_there_are_checkpoints(
    stack: Stack, kept: str, counting: Counting, *, crashes: bool
) -> None:
    source = counting.sandbox
    before = counting.look()
    snapshot = source.create_snapshot()
    if crashes:
        crash(stack)
        counting.went_on(before)
    assert source.kill() is True
    try:
        for _ in range(2):
            made = Sandbox.create(snapshot.snapshot_id, timeout=120)
            pids = {process.pid for process in made.commands.list()}
            assert pids == ({counting.pid} if kept == "checkpoint" else set())
            if kept == "checkpoint":
                assert seen(ask(made.sandbox_id)).run == before.run
            assert_gapless(made)
            assert made.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == made.sandbox_id
            assert made.kill() is True
    finally:
        assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True


def goes_on(counting: Counting, before: Seen) -> None:
    """Asserts that it is there, whether it is paused or runs."""
    counting.sandbox.connect()
    counting.went_on(before)
    assert counting.sandbox.commands.run("echo again").stdout == "again\n"
    assert counting.sandbox.kill() is True


#: Steps of a pause and of a resume with memory. The self-check has recorded one run and answered
#: twice before the stack is ready.
PAUSE = {
    "frozen": ["record-pausing", "freeze", "record-paused", "answer:3"],
    "checkpoint": ["freeze", "dump", "seal", "record-paused", "end-run:2", "answer:3"],
}
RESUME = {
    "frozen": ["record-resuming", "thaw", "record-running:2", "answer:3"],
    "checkpoint": ["record-resuming", "start-checkpoint", "record-running:2", "drop-saved:2"],
}


def pairs(points: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(kept, point) for kept, steps in points.items() for point in steps]


@pytest.mark.parametrize(("kept", "point"), pairs(PAUSE), indirect=["kept"], scope="module")
@pytest.mark.usefixtures("clean")
def test_a_crash_in_a_pause(stack: Stack, counting: Counting, point: str) -> None:
    before = counting.look()
    abort_after(stack, point, counting.sandbox.pause)
    stack.start()
    goes_on(counting, before)


@pytest.mark.parametrize(("kept", "point"), pairs(RESUME), indirect=["kept"], scope="module")
@pytest.mark.usefixtures("clean")
def test_a_crash_in_a_resume(stack: Stack, counting: Counting, point: str) -> None:
    before = counting.look()
    assert counting.sandbox.pause() is True
    abort_after(stack, point, counting.ask)
    stack.start()
    goes_on(counting, before)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", ["record-snapshotting", "freeze", "copy", "record-running:2"])
def test_a_crash_in_a_snapshot(stack: Stack, counting: Counting, point: str) -> None:
    before = counting.look()
    abort_after(stack, point, counting.sandbox.create_snapshot)
    stack.start()
    # Nobody was told of it: it is whole, or not there.
    for snapshot in counting.sandbox.list_snapshots().next_items():
        made = Sandbox.create(snapshot.snapshot_id, timeout=120)
        assert_gapless(made)
        assert made.kill() is True
        assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
    goes_on(counting, before)


@pytest.fixture
def build(api: httpx.Client) -> Iterator[Builds]:
    """Builds templates that are deleted with the test."""
    builds = Builds(api)
    yield builds
    builds.clean()


def test_a_template_of_which_the_memory_cannot_be_restored_boots(
    stack: Stack, kept: str, build: Builds
) -> None:
    if kept != "checkpoint":
        pytest.skip("templates have no memory")
    template = Template().from_template("base")
    began = "date +%s.%N > /tmp/began; exec sleep infinity"
    name = build(template.set_start_cmd(began, "test -s /tmp/began")).name

    def begun() -> str:
        with Sandbox.create(name, timeout=60) as sandbox:
            sandbox.commands.run("pgrep -x sleep")
            return sandbox.files.read("/tmp/began")

    in_build = begun()
    assert begun() == in_build
    stack.stop()
    with pytest.MonkeyPatch.context() as without:
        without.delenv(CRIU)
        stack.start()
        try:
            assert begun() > in_build
        finally:
            stack.stop()
    stack.start()
    assert begun() == in_build
