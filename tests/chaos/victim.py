"""`atoll up`, and when it is killed."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections import deque
from dataclasses import dataclass, field

from chaos.client import Client
from support import paths
from support.stack import Stack

#: How long Atoll is given to come to a point at which it is to abort; after that it is killed.
ABORT_SECONDS = 20

#: Steps that a start performs for each sandbox that it takes up again.
OF_A_START = {"freeze", "thaw", "drop-saved"}

#: Steps that belong to checkpoints.
OF_CHECKPOINTS = {"dump", "start-checkpoint"}


def abort_points(*, checkpoints: bool) -> list[str]:
    """The names of all steps, from where Atoll has them."""
    source = (paths.ROOT / "crates/core/src/lifecycle.rs").read_text()
    names = re.findall(r'^ +Self::\w+(?:\(.*\))? => "([a-z-]+)",$', source, flags=re.MULTILINE)
    assert len(names) > 15, names
    return [name for name in names if checkpoints or name not in OF_CHECKPOINTS]


class Victim(Stack):
    """A stack that may die while it starts."""

    failure = ""

    async def begin(self, kill_after: float | None = None) -> bool:
        """Starts it, and kills it if it is not ready after a while; whether it became ready."""
        self.failure = ""
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        if kill_after is not None:
            await asyncio.wait({starting}, timeout=kill_after)
            if not starting.done() and self._process:
                self._process.kill()
        try:
            await starting
        except AssertionError as failure:
            # "`atoll up` ended with -9", and then the end of its log.
            self.failure = str(failure)
            return False
        return True

    def failed_by(self, sent: signal.Signals) -> bool:
        """Whether it did not become ready because of this signal."""
        return f"ended with -{int(sent)}\n" in self.failure

    @property
    def code(self) -> int | None:
        """What it ended with, if it has ended."""
        return self._process.poll() if self._process else None

    async def ended(self, seconds: float) -> int | None:
        """Waits that long for it to end by itself."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.code is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        return self.code


@dataclass
class Killer:
    """Kills a stack so and so often, and starts it again each time."""

    stack: Victim
    client: Client
    seed: int
    kills: int
    points: list[str]
    #: How it was killed, and how often.
    tally: dict[str, int] = field(default_factory=dict)
    #: Abort points that were reached.
    reached: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Kills it that often, and so at each abort point if that is often enough; leaves it up."""
        dice = random.Random(f"{self.seed}/kills")
        # Not all of them fit into a short run; which ones do is up to the seed.
        points = deque(dice.sample(self.points, len(self.points)))
        is_long = self.kills >= 4 * len(points)
        done = 0
        while done < self.kills or (points and is_long and done < 2 * self.kills):
            how, delay, which = dice.random(), dice.random(), dice.random()
            if points and done % 2:
                point = points.popleft()
                if not await self._abort(point, which):
                    points.append(point)
            elif how < 0.2 and not self.client.is_up:
                await self._kill_starting(delay * 1.5)
            else:
                await self._kill(delay * 4)
            done += 1
        if is_long and points:
            self.problems.append(f"abort points that were not reached: {sorted(points)}")
        await self._start()

    async def _start(self) -> None:
        if self.client.is_up:
            return
        for _ in range(3):
            if await self.stack.begin():
                self.client.came_up()
                return
            self._did_not_start()
            await asyncio.sleep(1)
        raise RuntimeError("Atoll does not start any more")

    def _did_not_start(self) -> None:
        self.problems.append(f"Atoll did not start:\n{self.stack.failure}")
        print(f"PROBLEM {self.problems[-1]}", flush=True)

    async def _kill(self, delay: float) -> None:
        """SIGKILL at a random moment."""
        await self._start()
        await self._await_end(delay)
        self._end("SIGKILL")

    async def _kill_starting(self, delay: float) -> None:
        """SIGKILL while it takes up its sandboxes, or just after."""
        if await self.stack.begin(kill_after=delay):
            self.client.came_up()
        elif not self.stack.failed_by(signal.SIGKILL):
            self._did_not_start()
        self._end("SIGKILL in a start")

    async def _abort(self, point: str, which: float) -> bool:
        """An abort after a step; whether it came to that."""
        # Each start makes and ends a sandbox to see whether it works.
        count = 1 + int(which * 60) if point in OF_A_START else 2 + int(which * 12)
        os.environ["ATOLL_ABORT_AFTER"] = f"{point}:{count}"
        try:
            ready = await self.stack.begin()
        finally:
            del os.environ["ATOLL_ABORT_AFTER"]
        if ready:
            self.client.came_up()
            reached = await self._await_end(ABORT_SECONDS, -signal.SIGABRT)
        else:
            reached = self.stack.failed_by(signal.SIGABRT)
            if not reached:
                self._did_not_start()
        if reached:
            self.reached.add(point)
        self._end(f"abort after {point}" if reached else "SIGKILL")
        return reached

    async def _await_end(self, seconds: float, expected: int | None = None) -> bool:
        """Waits that long for it to end as expected, and not otherwise; whether it did."""
        code = await self.stack.ended(seconds)
        if code is not None and code != expected:
            self.problems.append(f"Atoll ended by itself, with {code}:\n{self.stack.tail()}")
        return code is not None and code == expected

    def _end(self, how: str) -> None:
        self.client.went_down()
        self.stack.kill()
        self.tally[how] = self.tally.get(how, 0) + 1
        print(f"{sum(self.tally.values())}: {how}", flush=True)
