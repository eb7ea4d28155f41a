"""Sandboxes live on when `atoll up` is killed, and the next one takes them up again.

Pauses are asked of the node, as the control plane asks it.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from stress.conftest import instance_of
from support.host import first_process, left_behind
from support.stack import PORTS, Stack

Wait = Callable[[], bool]

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done"
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
KILL = ["record-ending:2", "end-run:2", "drop-saved:2", "forget:2", "answer:3"]


def until(condition: Wait, seconds: float = 60) -> None:
    """Waits for something that is to come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; the dead of a daemon that crashed are init's to bury."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def crash(stack: Stack) -> None:
    """SIGKILL, and a new start on the same data directory."""
    stack.kill()
    stack.start()


class Node:
    """The node's own interface."""

    def __init__(self, stack: Stack) -> None:
        token = (stack.data_dir / "node-token").read_text().strip()
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{PORTS['rpc']}/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )

    def call(self, sandbox: Sandbox, what: str, **body: Any) -> httpx.Response:
        return self._client.post(f"/sandboxes/{sandbox.sandbox_id}/{what}", json=body)

    def pause(self, sandbox: Sandbox, *, memory: bool) -> None:
        answer = self.call(sandbox, "pause", memory=memory)
        assert answer.json() is True, answer.text

    def resume(self, sandbox: Sandbox) -> None:
        answer = self.call(sandbox, "resume", end_at="2099-01-01T00:00:00Z")
        assert answer.json() is True, answer.text

    def kill(self, sandbox: Sandbox) -> None:
        assert self.call(sandbox, "kill", reason="killed").json() is True

    def states(self) -> dict[str, Any]:
        listed = self._client.get("/sandboxes").json()
        return {entry["record"]["id"]: entry["state"] for entry in listed}


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
def node(stack: Stack) -> Node:
    return Node(stack)


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
    kept, short, extended = (Sandbox.create(timeout=seconds) for seconds in (600, 8, 8))
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
def test_one_that_may_not_reach_the_internet_still_may_not(stack: Stack, node: Node) -> None:
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


def abort_after(stack: Stack, point: str, do: Callable[[], object]) -> None:
    """Starts a stack that aborts at a point, and does what leads there."""
    stack.kill()
    os.environ["ATOLL_ABORT_AFTER"] = point
    try:
        stack.start()
    finally:
        del os.environ["ATOLL_ABORT_AFTER"]
    with suppress(Exception):
        do()
    until(lambda: not is_alive(stack.pid))
    stack.kill()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", CREATE)
def test_a_crash_in_a_create(stack: Stack, node: Node, point: str) -> None:
    bystander = Busy()
    abort_after(stack, point, lambda: Sandbox.create(timeout=300))
    stack.start()
    bystander.goes_on()
    others = {
        id: state for id, state in node.states().items() if id != bystander.sandbox.sandbox_id
    }
    # It was never answered for: it is there whole, or not at all.
    assert len(others) == (1 if point.startswith(("record-running", "answer")) else 0)
    for id, state in others.items():
        assert state == "running"
        assert Sandbox.connect(id).commands.run("echo whole").stdout == "whole\n"
        assert Sandbox.kill(id)
    bystander.sandbox.kill()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", KILL)
def test_a_crash_in_a_kill(stack: Stack, node: Node, point: str) -> None:
    bystander, victim = Busy(), Busy()
    abort_after(stack, point, victim.sandbox.kill)
    stack.start()
    bystander.goes_on()
    until(lambda: set(node.states()) == {bystander.sandbox.sandbox_id})
    assert not is_alive(victim.host_pid)
    assert not victim.sandbox.is_running()
    bystander.sandbox.kill()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("crashes", [False, True])
def test_a_frozen_sandbox_goes_on(stack: Stack, node: Node, *, crashes: bool) -> None:
    busy = Busy()
    before = busy.counts()
    node.pause(busy.sandbox, memory=True)
    assert not busy.sandbox.is_running()
    assert busy.served() is None
    if crashes:
        crash(stack)
    assert node.states() == {busy.sandbox.sandbox_id: {"paused": "frozen"}}
    assert not busy.sandbox.is_running()
    node.resume(busy.sandbox)
    busy.goes_on()
    assert busy.counts() > before
    node.resume(busy.sandbox)
    node.pause(busy.sandbox, memory=True)
    node.kill(busy.sandbox)
    assert not is_alive(busy.host_pid)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("crashes", [False, True])
def test_a_disk_is_kept(stack: Stack, node: Node, *, crashes: bool) -> None:
    busy = Busy()
    for round in range(3):
        busy.sandbox.files.write(f"/home/user/round-{round}", "kept")
        busy.sandbox.commands.run("sudo rm -rf /etc/skel")
        node.pause(busy.sandbox, memory=False)
        assert not busy.sandbox.is_running()
        assert not is_alive(busy.host_pid)
        if crashes:
            crash(stack)
        assert node.states() == {busy.sandbox.sandbox_id: {"paused": "disk"}}
        node.resume(busy.sandbox)
        assert first_process(busy.sandbox.sandbox_id) != busy.host_pid
        assert busy.sandbox.commands.list() == []
        for earlier in range(round + 1):
            assert busy.sandbox.files.read(f"/home/user/round-{earlier}") == "kept"
        assert not busy.sandbox.files.exists("/etc/skel")
    node.pause(busy.sandbox, memory=False)
    refused = node.call(busy.sandbox, "pause", memory=False)
    assert refused.status_code == 409, refused.text
    node.kill(busy.sandbox)
    assert node.states() == {}


PAUSE = ["record-pausing", "freeze", "seal", "record-paused", "end-run:2", "answer:3"]
RESUME = ["record-resuming", "start-disk", "record-running:2", "answer:3", "drop-saved:2"]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", PAUSE)
def test_a_crash_in_a_pause(stack: Stack, node: Node, point: str) -> None:
    busy = Busy()
    busy.sandbox.files.write("/home/user/file", "kept")
    abort_after(stack, point, lambda: node.pause(busy.sandbox, memory=False))
    stack.start()
    until(
        lambda: set(map(json.dumps, node.states().values())) <= {'"running"', '{"paused": "disk"}'}
    )
    [state] = node.states().values()
    if state == "running":
        assert point in {"record-pausing", "freeze", "seal"}
        until(busy.sandbox.is_running)
        busy.goes_on()
    else:
        node.resume(busy.sandbox)
    assert busy.sandbox.files.read("/home/user/file") == "kept"
    node.kill(busy.sandbox)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", RESUME)
def test_a_crash_in_a_resume(stack: Stack, node: Node, point: str) -> None:
    busy = Busy()
    busy.sandbox.files.write("/home/user/file", "kept")
    node.pause(busy.sandbox, memory=False)
    abort_after(stack, point, lambda: node.resume(busy.sandbox))
    stack.start()
    until(
        lambda: set(map(json.dumps, node.states().values())) <= {'"running"', '{"paused": "disk"}'}
    )
    node.resume(busy.sandbox)
    until(busy.sandbox.is_running)
    assert busy.sandbox.files.read("/home/user/file") == "kept"
    assert busy.sandbox.commands.run("echo again").stdout == "again\n"
    node.kill(busy.sandbox)


FROZEN_PAUSE = ["record-pausing", "freeze", "record-paused", "answer:3"]
FROZEN_RESUME = ["record-resuming", "thaw", "record-running:2", "answer:3"]


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", FROZEN_PAUSE)
def test_a_crash_in_a_pause_with_memory(stack: Stack, node: Node, point: str) -> None:
    busy = Busy()
    before = busy.counts()
    abort_after(stack, point, lambda: node.pause(busy.sandbox, memory=True))
    stack.start()
    # Whether it was paused or not: it has lost nothing.
    node.resume(busy.sandbox)
    until(busy.sandbox.is_running)
    busy.goes_on()
    assert busy.counts() > before
    node.kill(busy.sandbox)


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("point", FROZEN_RESUME)
def test_a_crash_in_a_resume_with_memory(stack: Stack, node: Node, point: str) -> None:
    busy = Busy()
    before = busy.counts()
    node.pause(busy.sandbox, memory=True)
    abort_after(stack, point, lambda: node.resume(busy.sandbox))
    stack.start()
    node.resume(busy.sandbox)
    until(busy.sandbox.is_running)
    busy.goes_on()
    assert busy.counts() > before
    node.kill(busy.sandbox)


def test_stopping_ends_what_runs_and_keeps_what_is_paused(stack: Stack, node: Node) -> None:
    running, disk, frozen = Busy(), Busy(), Busy()
    for paused in (disk, frozen):
        paused.sandbox.files.write("/home/user/file", "kept")
    node.pause(disk.sandbox, memory=False)
    node.pause(frozen.sandbox, memory=True)
    instance = instance_of(stack)
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    stack.start()
    assert not running.sandbox.is_running()
    # Of frozen processes the disk is left.
    for paused in (disk, frozen):
        assert node.states()[paused.sandbox.sandbox_id] == {"paused": "disk"}
        node.resume(paused.sandbox)
        assert paused.sandbox.files.read("/home/user/file") == "kept"
        node.kill(paused.sandbox)
    assert node.states() == {}
