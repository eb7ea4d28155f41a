"""Pausing again and again, and in the middle of everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import httpcore
import httpx
import pytest
from e2b import CommandExitException, NotFoundException, Sandbox, TimeoutException

from support.counting import Counting
from support.lifecycle import is_paused, pause
from support.sdk import needs, newest, since
from support.wait import wait_for

Create = Callable[..., Sandbox]

ROUNDS = 20

#: What a call says that was cut off: of older releases, what their HTTP library says.
CUT_OFF = (TimeoutException, httpx.TransportError, httpcore.NetworkError, httpcore.ProtocolError)

#: Larger than all buffers between the SDK and the sandbox's disk.
LARGE = 256 << 20


def assert_kept(sandbox: Sandbox, rounds: int) -> None:
    """Asserts that what was written before each pause is there."""
    lines = sandbox.files.read("/home/user/lines").splitlines()
    assert lines == [f"line {number}" for number in range(rounds)]
    assert {entry.name for entry in sandbox.files.list("/home/user/files")} == {
        str(number) for number in range(rounds)
    }
    for number in range(rounds):
        assert sandbox.files.read(f"/home/user/files/{number}") == f"content {number}"


def write(sandbox: Sandbox, number: int) -> None:
    sandbox.commands.run(f"echo line {number} >> /home/user/lines")
    sandbox.files.write(f"/home/user/files/{number}", f"content {number}")


@newest
def test_twenty_rounds_lose_nothing(counting: Counting) -> None:
    sandbox = counting.sandbox
    first = before = counting.look()
    for number in range(ROUNDS):
        write(sandbox, number)
        pause(sandbox)
        sandbox.connect()
        now = counting.look()
        assert (now.run, now.pid) == (first.run, first.pid)
        assert now.count >= before.count
        before = now
        assert_kept(sandbox, number + 1)
    counting.went_on(first)


@since("2.63.0", "keep_memory")
def test_twenty_rounds_of_the_disk_alone_lose_nothing(create: Create) -> None:
    sandbox = create(timeout=300)
    for number in range(ROUNDS):
        write(sandbox, number)
        assert sandbox.pause(keep_memory=False) is True
        sandbox.connect()
        assert_kept(sandbox, number + 1)


@since("2.63.0", "keep_memory")
def test_rounds_with_and_without_memory_lose_nothing(create: Create) -> None:
    sandbox = create(timeout=300)
    for number in range(6):
        write(sandbox, number)
        marker = sandbox.commands.run("exec sleep 600", background=True, timeout=0).pid
        with_memory = number % 2 == 0
        assert sandbox.pause(keep_memory=with_memory) is True
        sandbox.connect()
        assert (marker in {process.pid for process in sandbox.commands.list()}) is with_memory
        assert_kept(sandbox, number + 1)


def in_background(call: Callable[[], object]) -> tuple[ThreadPoolExecutor, Future[object]]:
    pool = ThreadPoolExecutor(1)
    return pool, pool.submit(call)


def test_pausing_while_a_command_streams(create: Create) -> None:
    sandbox = create(timeout=300)
    seen = threading.Event()
    handle = sandbox.commands.run(
        "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done", background=True, timeout=0
    )
    pool, outcome = in_background(lambda: handle.wait(on_stdout=lambda _: seen.set()))
    assert seen.wait(20)
    pause(sandbox)
    assert isinstance(outcome.exception(30), CUT_OFF)
    pool.shutdown()
    sandbox.connect()
    # The command has gone on, and who connects to it again sees it.
    assert handle.pid in {process.pid for process in sandbox.commands.list()}
    lines: list[str] = []
    again = sandbox.commands.connect(handle.pid, timeout=0)
    pool, outcome = in_background(lambda: again.wait(on_stdout=lines.append))
    wait_for("its output", lambda: lines)
    assert sandbox.commands.kill(handle.pid) is True
    assert isinstance(outcome.exception(30), CommandExitException)
    pool.shutdown()


def test_pausing_while_a_foreground_command_runs(create: Create) -> None:
    sandbox = create(timeout=300)
    command = "sleep 1; echo done > /tmp/done; exec sleep 600"
    pool, outcome = in_background(lambda: sandbox.commands.run(command, timeout=0))
    wait_for("the command", lambda: len(sandbox.commands.list()) == 1)
    pause(sandbox)
    assert isinstance(outcome.exception(30), CUT_OFF)
    pool.shutdown()
    sandbox.connect()
    assert len(sandbox.commands.list()) == 1
    wait_for("it to go on", lambda: sandbox.files.exists("/tmp/done"))


def test_pausing_while_a_file_is_uploaded(create: Create) -> None:
    sandbox = create(timeout=300)
    sandbox.files.write("small", "whole")
    pool, outcome = in_background(lambda: sandbox.files.write("large", bytes(LARGE)))
    wait_for("the upload to begin", lambda: sandbox.files.exists("large"))
    pause(sandbox)
    error = outcome.exception(60)
    pool.shutdown()
    sandbox.connect()
    size = int(sandbox.commands.run("stat -c %s large").stdout)
    # It says that it has failed, or the file is whole.
    assert isinstance(error, CUT_OFF) if error else size == LARGE
    assert sandbox.files.read("small") == "whole"
    sandbox.files.write("large", "again")
    assert sandbox.files.read("large") == "again"


@pytest.mark.parametrize("number", range(3))
def test_files_that_were_acknowledged_are_there(create: Create, number: int) -> None:
    sandbox = create(timeout=300)
    written: list[str] = []
    stop = threading.Event()

    def write_on() -> None:
        while not stop.is_set():
            name = f"/home/user/file-{len(written)}"
            sandbox.files.write(name, name * 100)
            written.append(name)

    pool, outcome = in_background(write_on)
    wait_for("some files", lambda: len(written) > 5)
    pause(sandbox)
    error = outcome.exception(30)
    stop.set()
    pool.shutdown()
    assert isinstance(error, CUT_OFF), repr(error)
    sandbox.connect()
    assert all(sandbox.files.read(name) == name * 100 for name in written)


@needs(Sandbox, "pause")
def test_pausing_twice_at_once_is_pausing_once(counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: sandbox.pause(), range(8)))
    # Who comes while it is being paused joins; who comes after that is told that it is.
    assert True in outcomes
    assert set(outcomes) <= {True, False}
    assert is_paused(sandbox)
    assert sandbox.pause() is False
    sandbox.connect()
    counting.went_on(before)


def test_connecting_many_times_at_once_resumes_once(counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    pause(sandbox)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: sandbox.connect(), range(8)))
    counting.went_on(before)


@newest
def test_connecting_while_it_is_being_paused(counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    with ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            write(sandbox, number)
            pausing = pool.submit(pause, sandbox)
            # Another moment each round.
            time.sleep(number * 0.01)
            connecting = pool.submit(sandbox.connect)
            pausing.result(60)
            connecting.result(60)
            # Connect came before the pause, waited for it, or came after it.
            if is_paused(sandbox):
                sandbox.connect()
            counting.went_on(before)
            assert_kept(sandbox, number + 1)


@newest
@needs(Sandbox, "pause")
def test_pausing_while_it_resumes(counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    with ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            write(sandbox, number)
            assert sandbox.pause() is True
            connecting = pool.submit(sandbox.connect)
            time.sleep(number * 0.005)
            pausing = pool.submit(sandbox.pause)
            connecting.result(60)
            # Either it came before the resume, and it was paused still; or it has paused it again.
            assert pausing.result(60) is is_paused(sandbox)
            sandbox.connect()
            counting.went_on(before)
            assert_kept(sandbox, number + 1)


@needs(Sandbox, "pause")
def test_a_storm_of_pauses_and_connects(counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()

    def some(pauses: bool) -> None:
        for _ in range(10):
            assert sandbox.pause() in {True, False} if pauses else sandbox.connect()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(some, [True, False] * 3))
    sandbox.connect()
    counting.went_on(before)
    assert sandbox.kill() is True


@pytest.mark.parametrize("what", ["pause", "connect"])
def test_killing_in_the_middle_of_it(create: Create, what: str) -> None:
    sandbox = create(timeout=300)
    if what == "connect":
        pause(sandbox)
    call = sandbox.beta_pause if what == "pause" else sandbox.connect
    pool, outcome = in_background(call)
    assert sandbox.kill() is True
    # It was there in time, or it was not.
    error = outcome.exception(60)
    pool.shutdown()
    assert error is None or isinstance(error, NotFoundException) or "409" in str(error), repr(error)
    assert sandbox.is_running() is False
    with pytest.raises(NotFoundException):
        sandbox.connect()
    assert sandbox.kill() is False
