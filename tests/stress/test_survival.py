"""Sandboxes live on when `atoll up` is killed, and the next one takes them up again.

What a pause with memory keeps is in `test_pause.py`.
"""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from e2b import Sandbox, SandboxState

from stress.conftest import instance_of
from support.crashes import abort_after, crash, is_alive
from support.host import first_process, left_behind
from support.lifecycle import is_paused, listed
from support.stack import PORTS, Stack

Wait = Callable[[], bool]

#: Counts in a file that always has a number.
COUNTER = (
    "i=0; while :; do i=$((i+1)); echo $i > /tmp/next; mv /tmp/next /tmp/count; sleep 0.02; done"
)
SERVER = (
    "mkdir -p /tmp/www && echo served > /tmp/www/it && "
    "cd /tmp/www && exec python3 -m http.server 8000"
)

ASK_NAME_SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
query = bytes.fromhex("1234010000010000000000000469742d3107696e76616c69640000010001")
s.sendto(query, ("169.254.0.22", 53))
print("answered" if s.recv(512)[:2] == query[:2] else "something else")
"""

#: Steps of a create and of a kill. The self-check has performed each before the stack is ready, so
#: the next time is the second; an answer ends both, so for that it is the third.
CREATE = ["record-starting:2", "start:2", "record-running:2", "answer:3"]
#: Those who are taken up again drop what may be saved of them, and there are two in a kill.
KILL = ["record-ending:2", "end-run:2", "drop-saved:4", "forget:2", "answer:3"]


def until(condition: Wait, seconds: float = 60) -> None:
    """Waits for something that is to come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


class Busy:
    """A sandbox with a process that counts, and a server on a port."""

    def __init__(self, timeout: int = 600) -> None:
        self.sandbox = Sandbox.create(timeout=timeout)
        run = self.sandbox.commands.run
        self.counter = run(COUNTER, background=True, timeout=0).pid
        self.server = run(SERVER, background=True, timeout=0).pid
        until(lambda: self.served() == "served\n" and self.counts() > 0)
        self.host_pid = first_process(self.sandbox.sandbox_id)

    def counts(self) -> int:
        with suppress(Exception):
            return int(self.sandbox.files.read("/tmp/count"))
        return 0

    def served(self) -> str | None:
        url = f"http://127.0.0.1:{PORTS['proxy']}/it"
        headers = {"Host": f"8000-{self.sandbox.sandbox_id}.localhost"}
        with (
            suppress(OSError),
            urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=10
            ) as answer,
        ):
            return answer.read().decode()
        return None

    def goes_on(self) -> None:
        """Asserts that it is the same one, and that all of it works."""
        assert first_process(self.sandbox.sandbox_id) == self.host_pid
        pids = {process.pid for process in self.sandbox.commands.list()}
        assert {self.counter, self.server} <= pids
        before = self.counts()
        until(lambda: self.counts() > before)
        assert self.served() == "served\n"
        assert self.sandbox.commands.run("echo again").stdout == "again\n"
        self.sandbox.files.write("/tmp/written", "kept")
        assert self.sandbox.files.read("/tmp/written") == "kept"


@pytest.fixture
def clean(stack: Stack) -> Iterator[None]:
    """Checks that the host has nothing of the stack once it has stopped."""
    instance = instance_of(stack)
    yield
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    assert list((stack.data_dir / "sandboxes").iterdir()) == []
    stack.start()


@pytest.mark.usefixtures("clean")
def test_a_sandbox_lives_on_when_its_node_is_killed(stack: Stack) -> None:
    busy = Busy()
    ends = busy.sandbox.get_info().end_at
    before = busy.counts()
    for _ in range(2):
        stack.kill()
        assert is_alive(busy.host_pid)
        stack.start()
        busy.goes_on()
        assert busy.counts() > before
    assert busy.sandbox.get_info().end_at == ends
    handle = busy.sandbox.commands.connect(busy.counter)
    assert handle.kill()
    # The name server is the daemon's.
    assert busy.sandbox.commands.run(f"python3 -c '{ASK_NAME_SERVER}'").stdout == "answered\n"
    busy.sandbox.kill()
    assert not busy.sandbox.is_running()
    assert not is_alive(busy.host_pid)


@pytest.mark.usefixtures("clean")
def test_a_deadline_holds_over_a_crash(stack: Stack) -> None:
    kept, short, extended = (Sandbox.create(timeout=seconds) for seconds in (600, 20, 20))
    extended.set_timeout(600)
    crash(stack)
    until(lambda: not short.is_running())
    assert kept.is_running()
    assert extended.is_running()
    extended.set_timeout(0)
    until(lambda: not extended.is_running())
    kept.kill()


@pytest.mark.usefixtures("clean")
def test_a_sandbox_that_dies_while_nobody_watches_is_gone(stack: Stack) -> None:
    busy, other = Busy(), Busy()
    stack.kill()
    os.kill(busy.host_pid, 9)
    until(lambda: not is_alive(busy.host_pid))
    stack.start()
    assert not busy.sandbox.is_running()
    assert not busy.sandbox.kill()
    other.goes_on()
    other.sandbox.kill()


@pytest.mark.usefixtures("clean")
def test_one_that_may_not_reach_the_internet_still_may_not(stack: Stack) -> None:
    sandbox = Sandbox.create(timeout=300, allow_internet_access=False)
    crash(stack)
    links = Path("/sys/class/net")
    assert sandbox.commands.run("echo again").stdout == "again\n"
    groups = [
        (link / "netdev_group").read_text().strip()
        for link in links.iterdir()
        if link.name.startswith(f"a{instance_of(stack)}n")
    ]
    # That of this sandbox alone differs from those kept ready.
    assert sorted(groups.count(group) for group in set(groups))[0] == 1
    sandbox.kill()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", CREATE)
def test_a_crash_in_a_create(stack: Stack, point: str) -> None:
    bystander = Busy()
    abort_after(stack, point, lambda: Sandbox.create(timeout=300))
    stack.start()
    bystander.goes_on()
    others = set(listed()) - {bystander.sandbox.sandbox_id}
    # It was never answered for: it is there whole, or not at all.
    assert len(others) == (1 if point.startswith(("record-running", "answer")) else 0)
    for id in others:
        assert Sandbox.connect(id).commands.run("echo whole").stdout == "whole\n"
        assert Sandbox.kill(id)
    bystander.sandbox.kill()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", KILL)
def test_a_crash_in_a_kill(stack: Stack, point: str) -> None:
    bystander, victim = Busy(), Busy()
    abort_after(stack, point, victim.sandbox.kill)
    stack.start()
    bystander.goes_on()
    until(lambda: listed() == [bystander.sandbox.sandbox_id])
    assert not is_alive(victim.host_pid)
    assert not victim.sandbox.is_running()
    bystander.sandbox.kill()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("crashes", [False, True])
def test_a_disk_is_kept(stack: Stack, *, crashes: bool) -> None:
    busy = Busy()
    sandbox = busy.sandbox
    for round in range(3):
        sandbox.files.write(f"/home/user/round-{round}", "kept")
        sandbox.commands.run("sudo rm -rf /etc/skel")
        assert sandbox.pause(keep_memory=False) is True
        assert not sandbox.is_running()
        assert not is_alive(busy.host_pid)
        if crashes:
            crash(stack)
        assert listed(state=[SandboxState.PAUSED]) == [sandbox.sandbox_id]
        sandbox.connect()
        assert first_process(sandbox.sandbox_id) != busy.host_pid
        assert sandbox.commands.list() == []
        for earlier in range(round + 1):
            assert sandbox.files.read(f"/home/user/round-{earlier}") == "kept"
        assert not sandbox.files.exists("/etc/skel")
    assert sandbox.pause(keep_memory=False) is True
    assert sandbox.pause(keep_memory=False) is False
    assert sandbox.kill() is True
    assert listed() == []


PAUSE = ["record-pausing", "freeze", "seal", "record-paused", "end-run:2", "answer:3"]
RESUME = ["record-resuming", "start-disk", "record-running:2", "answer:3", "drop-saved:2"]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", PAUSE)
def test_a_crash_in_a_pause(stack: Stack, point: str) -> None:
    busy = Busy()
    busy.sandbox.files.write("/home/user/file", "kept")
    abort_after(stack, point, lambda: busy.sandbox.pause(keep_memory=False))
    stack.start()
    if point in {"record-pausing", "freeze", "seal"}:
        # Nobody was told of it, and the processes are there.
        until(busy.sandbox.is_running)
        busy.goes_on()
    else:
        assert is_paused(busy.sandbox)
        busy.sandbox.connect()
    assert busy.sandbox.files.read("/home/user/file") == "kept"
    assert busy.sandbox.kill() is True


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", RESUME)
def test_a_crash_in_a_resume(stack: Stack, point: str) -> None:
    busy = Busy()
    busy.sandbox.files.write("/home/user/file", "kept")
    assert busy.sandbox.pause(keep_memory=False) is True
    abort_after(stack, point, busy.sandbox.connect)
    stack.start()
    busy.sandbox.connect()
    assert busy.sandbox.files.read("/home/user/file") == "kept"
    assert busy.sandbox.commands.run("echo again").stdout == "again\n"
    assert busy.sandbox.kill() is True


def test_stopping_ends_what_runs_and_keeps_what_is_paused(stack: Stack) -> None:
    running, paused = Busy(), Busy()
    paused.sandbox.files.write("/home/user/file", "kept")
    assert paused.sandbox.pause(keep_memory=False) is True
    instance = instance_of(stack)
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    stack.start()
    assert not running.sandbox.is_running()
    assert listed() == [paused.sandbox.sandbox_id]
    paused.sandbox.connect()
    assert paused.sandbox.files.read("/home/user/file") == "kept"
    assert paused.sandbox.kill() is True


@pytest.mark.usefixtures("clean")
def test_deadlines_of_paused_and_resumed_ones_hold_over_a_crash(stack: Stack) -> None:
    pausing = Sandbox.create(timeout=20, lifecycle={"on_timeout": "pause"})
    resumed, paused = Sandbox.create(timeout=600), Sandbox.create(timeout=600)
    for sandbox in (resumed, paused):
        sandbox.set_timeout(20)
        assert sandbox.pause() is True
    resumed.connect(timeout=600)
    ends = resumed.get_info().end_at
    crash(stack)
    # Its time may have come while Atoll was not there.
    until(lambda: is_paused(pausing))
    assert (resumed.is_running(), resumed.get_info().end_at) == (True, ends)
    assert is_paused(paused)
    pausing.connect(timeout=600)
    for sandbox in (pausing, resumed, paused):
        assert sandbox.kill() is True
