"""Many streams of output at once: every byte arrives, in order, whatever other clients do."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from e2b import AsyncSandbox
from e2b.api import client_async
from e2b.sandbox_async.commands.command_handle import AsyncCommandHandle

from support.stack import Stack

SANDBOXES = 20
COMMANDS = 50

#: What commands print pieces of. Text, for the SDK decodes output.
DATA = base64.b64encode(random.Random(4).randbytes(768 << 10)).decode()
BLOCK = 1024

#: How long anything may take before a test gives up; nothing is measured.
PATIENCE = 240


@pytest.fixture(autouse=True)
def enough_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What E2B_MAX_CONNECTIONS is for, after the import that reads it.

    All sandboxes are at one address here, to which the SDK makes 200 connections: with that many
    commands streaming, the next would wait for the first to end.
    """
    monkeypatch.setattr(client_async, "max_connections", 4 * SANDBOXES * COMMANDS)
    for pools in ("_transports", "_pools", "_httpx_transports"):
        monkeypatch.setattr(client_async, pools, {})


@dataclass
class Stream:
    """What one stream is to carry and has carried."""

    expected: str = ""
    received: list[str] = field(default_factory=list)

    def summary(self) -> tuple[int, str]:
        """Length and hash of what came."""
        return summary("".join(self.received))


def summary(text: str) -> tuple[int, str]:
    return len(text), hashlib.sha256(text.encode()).hexdigest()


class Job:
    """A command that prints bursts on both streams, waits at the gate, and prints more."""

    def __init__(self, number: int) -> None:
        self.out, self.err = Stream(), Stream()
        chance = random.Random(number)
        before = [line for _ in range(2) for line in self._burst(chance)]
        #: What is printed before the gate.
        self.head = (self.out.expected, self.err.expected)
        after = [line for _ in range(3) for line in self._burst(chance)]
        self.command = "; ".join([*before, WAIT, *after])
        self.half_way = asyncio.Event()

    def _burst(self, chance: random.Random) -> list[str]:
        """Commands that print a random piece on each stream."""
        lines = []
        for stream, redirection in ((self.out, ""), (self.err, " >&2")):
            count = chance.randint(1, 16)
            skip = chance.randint(0, len(DATA) // BLOCK - count)
            stream.expected += DATA[skip * BLOCK : (skip + count) * BLOCK]
            piece = f"if=/tmp/data bs={BLOCK} skip={skip} count={count}"
            lines.append(f"dd {piece} status=none{redirection}")
        return lines

    def take_out(self, text: str) -> None:
        self._take(self.out, text)

    def take_err(self, text: str) -> None:
        self._take(self.err, text)

    def _take(self, stream: Stream, text: str) -> None:
        stream.received.append(text)
        lengths = [sum(map(len, each.received)) for each in (self.out, self.err)]
        if lengths[0] >= len(self.head[0]) and lengths[1] >= len(self.head[1]):
            self.half_way.set()

    async def start(self, sandbox: AsyncSandbox) -> AsyncCommandHandle:
        return await sandbox.commands.run(
            self.command,
            background=True,
            timeout=0,
            on_stdout=self.take_out,
            on_stderr=self.take_err,
        )

    def check(self) -> None:
        for stream in (self.out, self.err):
            assert stream.summary() == summary(stream.expected)


#: Commands wait here until the gate's holder has ended: for a lock that it has.
WAIT = "flock -s /tmp/gate true"
HOLD = "exec 9>/tmp/gate; flock 9; echo closed; exec sleep infinity"


async def close_gate(sandbox: AsyncSandbox) -> AsyncCommandHandle:
    """Closes the gate of a sandbox; killing what this returns opens it."""
    closed = asyncio.Event()
    holder = await sandbox.commands.run(
        HOLD, background=True, timeout=0, on_stdout=lambda _: closed.set()
    )
    await closed.wait()
    return holder


@asynccontextmanager
async def sandboxes(count: int) -> AsyncIterator[list[AsyncSandbox]]:
    """Sandboxes with the data in them."""
    made = await asyncio.gather(*(AsyncSandbox.create(timeout=600) for _ in range(count)))
    try:
        await asyncio.gather(*(sandbox.files.write("/tmp/data", DATA) for sandbox in made))
        yield made
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in made))


async def all_of(*awaitables: object) -> list:
    return await asyncio.wait_for(asyncio.gather(*awaitables), PATIENCE)


# Rules: PROC-31
async def test_a_thousand_commands_at_once(stack: Stack) -> None:
    async with sandboxes(SANDBOXES) as made:
        gates = await all_of(*(close_gate(sandbox) for sandbox in made))
        jobs = [Job(number) for number in range(SANDBOXES * COMMANDS)]
        homes = [made[number % SANDBOXES] for number in range(len(jobs))]
        pairs = zip(jobs, homes, strict=True)
        handles = await all_of(*(job.start(home) for job, home in pairs))
        # All of them stream now: each has said something and has more to say.
        await all_of(*(job.half_way.wait() for job in jobs))
        await all_of(*(gate.kill() for gate in gates))
        results = await all_of(*(handle.wait() for handle in handles))
    assert {result.exit_code for result in results} == {0}
    for job, result in zip(jobs, results, strict=True):
        job.check()
        assert (result.stdout, result.stderr) == (job.out.expected, job.err.expected)


# Rules: PROC-31, PROC-33
async def test_half_of_the_clients_leave_and_return(stack: Stack) -> None:
    """Nobody else misses anything, and who returns before more is printed neither."""
    async with sandboxes(4) as made:
        gates = await all_of(*(close_gate(sandbox) for sandbox in made))
        jobs = [Job(number) for number in range(100)]
        homes = [made[number % len(made)] for number in range(len(jobs))]
        pairs = list(zip(jobs, homes, strict=True))
        handles = await all_of(*(job.start(home) for job, home in pairs))
        await all_of(*(job.half_way.wait() for job in jobs))

        async def leave_and_return(number: int) -> None:
            await handles[number].disconnect()
            handles[number] = await homes[number].commands.connect(
                handles[number].pid,
                timeout=0,
                on_stdout=jobs[number].take_out,
                on_stderr=jobs[number].take_err,
            )

        await all_of(*(leave_and_return(number) for number in range(0, len(jobs), 2)))
        await all_of(*(gate.kill() for gate in gates))
        results = await all_of(*(handle.wait() for handle in handles))
    assert {result.exit_code for result in results} == {0}
    for job in jobs:
        job.check()


# Rules: PROC-33, PROC-34
async def test_clients_that_leave_in_the_middle_of_output(stack: Stack) -> None:
    """The command goes on without them; what they missed is the only thing they miss."""
    head, tail = DATA[: 512 * BLOCK], DATA[512 * BLOCK :]
    command = (
        f"dd if=/tmp/data bs={BLOCK} count=512 status=none; {WAIT}; "
        f"dd if=/tmp/data bs={BLOCK} skip=512 status=none"
    )

    async def one(sandbox: AsyncSandbox, enough: int) -> None:
        before, after = Stream(), Stream()
        some = asyncio.Event()

        def take(text: str) -> None:
            before.received.append(text)
            if sum(map(len, before.received)) >= enough:
                some.set()

        handle = await sandbox.commands.run(command, background=True, timeout=0, on_stdout=take)
        await some.wait()
        await handle.disconnect()
        returned = await sandbox.commands.connect(
            handle.pid, timeout=0, on_stdout=after.received.append
        )
        connected.append(1)
        if len(connected) == 40:
            await asyncio.gather(*(gate.kill() for gate in gates))
        result = await returned.wait()
        assert result.exit_code == 0
        assert head.startswith("".join(before.received))
        rest = "".join(after.received)
        assert rest.endswith(tail) and head.endswith(rest.removesuffix(tail))

    connected: list[int] = []
    async with sandboxes(2) as made:
        gates = await all_of(*(close_gate(sandbox) for sandbox in made))
        chance = random.Random(5)
        await all_of(*(one(made[n % 2], chance.randint(1, len(head) // 2)) for n in range(40)))


# Rules: PROC-32
async def test_a_slow_reader_holds_its_own_command_only(stack: Stack) -> None:
    """A client that does not read keeps its command from printing on, and nobody else's."""
    # Much more than the buffers of the sockets on the way take while nobody reads.
    copies = 48
    slow_command = f"for _ in $(seq {copies}); do cat /tmp/data; done"
    async with sandboxes(4) as made:
        read_on = asyncio.Event()
        slow = [Stream() for _ in made]
        begun = [asyncio.Event() for _ in slow]

        async def start(number: int) -> AsyncCommandHandle:
            async def take(text: str) -> None:
                slow[number].received.append(text)
                begun[number].set()
                await read_on.wait()

            home = made[number % len(made)]
            return await home.commands.run(slow_command, background=True, timeout=0, on_stdout=take)

        held = await all_of(*(start(number) for number in range(len(slow))))
        await all_of(*(event.wait() for event in begun))
        jobs = [Job(number) for number in range(10 * len(made))]
        pairs = [(job, made[number % len(made)]) for number, job in enumerate(jobs)]
        fast = await all_of(*(job.start(home) for job, home in pairs))
        await all_of(*(handle.wait() for handle in fast))
        for job in jobs:
            job.check()
        # More than all buffers on the way hold is still to come, so they cannot have ended.
        running = await all_of(*(sandbox.commands.list() for sandbox in made))
        pids = [{process.pid for process in each} for each in running]
        for number, handle in enumerate(held):
            assert handle.pid in pids[number % len(made)]
        read_on.set()
        await all_of(*(handle.wait() for handle in held))
    wanted = summary(DATA * copies)
    assert [stream.summary() for stream in slow] == [wanted] * len(slow)
