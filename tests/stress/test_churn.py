"""Many sandboxes, made and ended: the host is afterwards as it was before."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox, TimeoutException

from stress.conftest import settled
from support.host import Counts, instance_processes
from support.stack import Stack
from support.wait import equals, wait_for

CYCLES = 500
AT_ONCE = 50

#: How long after the last sandbox the pools may take to be as they were.
SETTLE_SECONDS = 60


@pytest.fixture
def nothing_left(counts: Callable[[], Counts], api: httpx.Client) -> Callable[[], None]:
    """Checks that the host has what it had when the test began."""
    # The pools fill in the background; what counts as "before" is when they are at rest.
    before = settled(counts)

    def check() -> None:
        equals("the API's list", lambda: api.get("/v2/sandboxes").json(), [], seconds=30)
        equals("what the instance has on the host", counts, before, seconds=SETTLE_SECONDS)

    return check


async def cycle(number: int, gate: asyncio.Semaphore) -> None:
    """Creates a sandbox, runs a command in it, ends it."""
    async with gate:
        sandbox = await AsyncSandbox.create(timeout=300)
        try:
            result = await sandbox.commands.run(f"echo {number}; whoami")
            assert result.stdout == f"{number}\nuser\n"
        finally:
            assert await sandbox.kill()


@pytest.mark.timeout(1200)
async def test_create_run_kill(nothing_left: Callable[[], None]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    await asyncio.gather(*(cycle(number, gate) for number in range(CYCLES)))
    nothing_left()


async def test_killed_in_the_middle_of_requests(nothing_left: Callable[[], None]) -> None:
    async def one() -> None:
        sandbox = await AsyncSandbox.create(timeout=300)
        commands = [
            await sandbox.commands.run("sleep 600", background=True, timeout=0) for _ in range(3)
        ]
        download = asyncio.ensure_future(sandbox.commands.run("yes", timeout=0, on_stdout=drop))
        assert await sandbox.kill()
        for waiting in (*(command.wait() for command in commands), download):
            with pytest.raises(TimeoutException):
                await asyncio.wait_for(waiting, 30)

    for _ in range(5):
        await asyncio.gather(*(one() for _ in range(4)))
    nothing_left()


def drop(_: str) -> None:
    """Output nobody wants."""


def test_clients_that_go_away(nothing_left: Callable[[], None]) -> None:
    """A create whose client is gone either leaves nothing or a sandbox that expires."""
    url = httpx.URL(os.environ["E2B_API_URL"])
    body = b'{"templateID": "base", "timeout": 3}'
    request = (
        b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"X-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (os.environ["E2B_API_KEY"].encode(), len(body), body)
    )
    moments = random.Random(1)
    for _ in range(40):
        with socket.create_connection((url.host, url.port), timeout=10) as connection:
            connection.sendall(request)
            connection.settimeout(moments.uniform(0.001, 0.1))
            try:
                connection.recv(1)
            except TimeoutError:
                continue
    nothing_left()


async def test_kills_that_race(nothing_left: Callable[[], None]) -> None:
    async def one() -> None:
        sandbox = await AsyncSandbox.create(timeout=300)
        outcomes = await asyncio.gather(*(sandbox.kill() for _ in range(5)))
        # Whoever asks while it is being killed may be told either; somebody did it.
        assert any(outcomes)
        assert await sandbox.kill() is False

    await asyncio.gather(*(one() for _ in range(20)))
    nothing_left()


def test_a_limit_is_kept_exactly(
    nothing_left: Callable[[], None], create: Callable[..., Sandbox]
) -> None:
    """Many at once, against the tier's limit: as many as it allows, and a clear no for the rest."""
    # Those before are not to keep the last waiting for longer than any may.
    few_at_a_time, at_once = 180, 50

    async def create_all() -> list[httpx.Response]:
        headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
        limits = httpx.Limits(max_connections=at_once)
        gate = asyncio.Semaphore(AT_ONCE // 2)
        async with httpx.AsyncClient(
            base_url=os.environ["E2B_API_URL"], headers=headers, timeout=75, limits=limits
        ) as client:
            body = {"templateID": "base", "timeout": 300}

            async def create_in_turn() -> httpx.Response:
                async with gate:
                    return await client.post("/v2/sandboxes", json=body)

            first = await asyncio.gather(*(create_in_turn() for _ in range(few_at_a_time)))
            last = (client.post("/v2/sandboxes", json=body) for _ in range(at_once))
            return [*first, *await asyncio.gather(*last)]

    answers = asyncio.run(create_all())
    made = [answer.json()["sandboxID"] for answer in answers if answer.status_code == 201]
    try:
        refused = [answer for answer in answers if answer.status_code != 201]
        assert {answer.status_code for answer in refused} == {429}
        assert len(made) == 200
        body = refused[0].json()
        assert body["code"] == 429 and body["error_code"] == "ATL-2009"
        assert "200" in body["message"]
        # The client must not try again by itself: it would be refused again.
        assert refused[0].headers["should-retry"] == "false"
        some = Sandbox.connect(made[-1])
        assert some.commands.run("echo one of many").stdout == "one of many\n"
    finally:
        for sandbox_id in made:
            Sandbox.kill(sandbox_id)
    assert create(timeout=30).kill()
    nothing_left()


def test_processes_of_a_dead_sandbox_are_dead(
    stack: Stack, instance: str, create: Callable[..., Sandbox]
) -> None:
    sandbox = create()
    sandbox.commands.run("setsid sleep 600 & disown; trap '' TERM; exec sleep 600", background=True)

    # Inside; the instance's other processes hold network slots for the next sandbox.
    def inside() -> list[int]:
        return [pid for pid in instance_processes(instance, stack.pid) if in_a_sandbox(pid)]

    wait_for("envd and both sleeps", lambda: len(inside()) >= 3)
    running = inside()
    sandbox.kill()
    # Killed means killed: by the time the answer is there.
    alive = [state for state in map(process_state, running) if state]
    assert alive == []


def in_a_sandbox(pid: int) -> bool:
    """Whether a process is there, and has process ids of its own."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False


def process_state(pid: int) -> str:
    """Name and state of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(" ", 1)[1][:40]
    except OSError:
        return ""
