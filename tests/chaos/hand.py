"""What can be done to a sandbox, and what each answer, or a missing one, lets one believe."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chaos.belief import CLOCK, Belief, Sandbox
from chaos.client import Access, Answer, Client, Cut, Stuck

AGENT = Path(__file__).with_name("agent.py").read_bytes()
START_AGENT = "mkdir -p ~/uploads; setsid python3 ~/agent.py >/dev/null 2>&1 </dev/null &"

#: Lifetimes in seconds: one to pass while the sandbox is in use, and one that hardly will.
SHORT, LONG = (5, 20), 1800
#: The shortest that traffic gives a sandbox which it wakes.
WOKEN = 300

#: What each operation may be answered in each state. One that is being taken apart is gone.
ANSWERS: dict[str, dict[str, set[int]]] = {
    # One that is being paused is paused for whoever looks. To pause it is to share the outcome, and
    # it cannot be forked.
    "pause": {"running": {204}, "paused": {204, 409}, "gone": {404, 409}},
    "connect": {"running": {200}, "paused": {201}, "gone": {404, 409}},
    "timeout": {"running": {204}, "paused": {404, 409}, "gone": {404, 409}},
    "snapshot": {"running": {201}, "paused": {404, 409}, "gone": {404, 409}},
    "fork": {"running": {201}, "paused": {409}, "gone": {404, 409}},
    "fork of any": {"running": {201}, "paused": {201, 409}, "gone": {404, 409}},
    "rewind": {"running": {200, 201, 204}, "paused": {409}, "gone": {404, 409}},
    "kill": {"running": {204}, "paused": {204}, "gone": {404}},
    "get": {"running": {200}, "paused": {200}, "gone": {404}},
    "write": {"running": {200}, "paused": {502}, "gone": {502}},
    "upload": {"running": {200, 204}, "paused": {502}, "gone": {502}},
    "look": {"running": {200}, "paused": {502}, "gone": {502}},
}


#: What wakes a paused sandbox that is to be woken.
TRAFFIC = {"write", "upload", "look"}


class Problem(Exception):
    """Something that was promised does not hold."""


@dataclass
class Snapshot:
    """A snapshot, and what must be in it."""

    id: str
    belief: Belief
    #: The sandbox that it was taken of.
    of: str
    #: A delete was in doubt.
    may_be_gone: bool = False


@dataclass
class World:
    """What the workers share."""

    client: Client
    seed: int
    #: Whether copies of what runs have its memory, too.
    checkpoints: bool
    acknowledged: Counter[str] = field(default_factory=Counter)
    doubted: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    stopping: bool = False

    def report(self, worker: int, what: str, history: list[str]) -> None:
        lines = [f"{time.strftime('%H:%M:%S')} worker {worker}: {what}", *history]
        self.problems.append("\n    ".join(lines))
        print(f"PROBLEM {lines[0]}", flush=True)


class Hand:
    """Does things to sandboxes, and looks at them."""

    def __init__(self, number: int, world: World) -> None:
        self.number = number
        self._world = world
        self._client = world.client
        self._written = 0
        #: Something was cut off: look before going on.
        self._unsure = False

    async def _ask(
        self,
        sandbox: Sandbox | None,
        name: str,
        call: Awaitable[Answer],
        doubt: Callable[[], None] = lambda: None,
    ) -> Answer:
        """Asks; `doubt` is what is to be believed if the answer is cut off."""
        asked = time.time()
        try:
            answer = await call
        except Cut as cut:
            if sandbox:
                sandbox.note(f"{name}: {cut}, no answer")
                self._may_wake(sandbox, name)
            if cut.sent:
                self._world.doubted[name] += 1
                doubt()
            raise
        except Stuck:
            doubt()
            raise
        self._world.acknowledged[name] += 1
        if sandbox:
            text = answer.text[:120] if answer.status >= 300 else ""
            sandbox.note(f"{name}: {answer.status} after {time.time() - asked:.2f} s {text}")
        return answer

    async def _do(
        self,
        sandbox: Sandbox,
        name: str,
        call: Awaitable[Answer],
        doubt: Callable[[], None] = lambda: None,
    ) -> bool:
        """Asks for one of `ANSWERS`; whether it was done, after the states it may have been in."""
        before = sandbox.states
        sandbox.expire()
        answer = await self._ask(sandbox, name, call, doubt)
        self._may_wake(sandbox, name)
        may = {state for state in sandbox.states if answer.status in ANSWERS[name][state]}
        if not may:
            raise Problem(f"{name} of {sandbox.id}, {'/'.join(sorted(before))}, got {answer}")
        sandbox.states = may
        return answer.status < 300

    def _may_wake(self, sandbox: Sandbox, name: str) -> None:
        """Allows for traffic having resumed it, as it does if it was to be woken."""
        sandbox.expire()
        if name in TRAFFIC and sandbox.auto_resume and "paused" in sandbox.states:
            sandbox.states.add("running")
            sandbox.may_resume_for = LONG

    async def _look(self, sandbox: Sandbox) -> None:
        """Finds out how it is."""
        asked = time.time()
        sandbox.expire()
        answer = await self._ask(sandbox, "get", self._api("GET", sandbox))
        sandbox.expire()
        if answer.status not in (200, 404):
            raise Problem(f"get of {sandbox.id} got {answer}")
        found = answer.json() if answer.status == 200 else {"state": "gone"}
        state = found["state"]
        if state not in sandbox.states:
            raise Problem(f"{sandbox.id} is {state}, and must be {'/'.join(sandbox.states)}")
        if sandbox.may_resume_for:
            sandbox.latest = max(sandbox.latest, time.time() + sandbox.may_resume_for)
            sandbox.may_resume_for = 0
        if state == "running":
            self._check_deadline(sandbox, found["endAt"], asked)
        if state == "paused" and sandbox.may_be_cold:
            for belief in sandbox.beliefs:
                belief.warm = None if sandbox.auto_pause else False
        sandbox.may_be_cold = False
        sandbox.states = {state}
        if state == "running":
            await self._look_inside(sandbox)

    def _check_deadline(self, sandbox: Sandbox, text: str, asked: float) -> None:
        end = seconds_of(text)
        if not sandbox.earliest - CLOCK <= end <= sandbox.latest + CLOCK:
            early, late = (moment - end for moment in (sandbox.earliest, sandbox.latest))
            raise Problem(f"{sandbox.id} ends {text}: too soon by {early:.1f}, late by {-late:.1f}")
        # This, too, was acknowledged.
        sandbox.earliest = max(sandbox.earliest, end - CLOCK)
        sandbox.latest = min(sandbox.latest, end + CLOCK)
        if sandbox.must_have_expired(asked, self._client.up_since):
            raise Problem(f"{sandbox.id} runs, and its deadline {text} has long passed")

    async def _look_inside(self, sandbox: Sandbox) -> None:
        """Compares what is in it with what is believed."""
        answer = await self._ask(sandbox, "look", self._agent("GET", sandbox, "/"))
        self._may_wake(sandbox, "look")
        if answer.status == 502 and "port is not open" in answer.text:
            sandbox.beliefs = [belief for belief in sandbox.beliefs if not belief.warm]
            if not sandbox.beliefs:
                raise Problem(f"the processes of {sandbox.id} are gone")
            answer = await self._start_agent(sandbox)
        if answer.status != 200:
            sandbox.expire()
            # Its time was up between the two.
            if answer.status == 502 and sandbox.states != {"running"}:
                self._unsure = True
                return
            raise Problem(f"look at {sandbox.id} got {answer}")
        seen = answer.json()
        if seen["id"] != sandbox.id:
            raise Problem(f"{sandbox.id} takes itself for {seen['id']}")
        problems = [belief.contents.problems(seen, warm=belief.warm) for belief in sandbox.beliefs]
        fitting = [b for b, found in zip(sandbox.beliefs, problems, strict=True) if not found]
        if not fitting:
            raise Problem(f"in {sandbox.id}: " + ", or ".join("; ".join(p) for p in problems))
        if fitting[0].warm is None:
            same = fitting[0].contents.nonce == seen["nonce"]
            self._world.acknowledged["  with memory" if same else "  of the disk alone"] += 1
        fitting[0].contents.saw(seen)
        fitting[0].warm = True
        sandbox.beliefs = fitting[:1]

    async def _start_agent(self, sandbox: Sandbox) -> Answer:
        """Starts the agent in a sandbox that has booted anew; gives what it says."""
        access = Access(sandbox.id, sandbox.token)
        path = "/home/user/agent.py"
        answer = await self._ask(sandbox, "agent", self._client.upload(access, path, AGENT))
        if answer.status < 300:
            code = await self._client.run(access, START_AGENT)
            if isinstance(code, Answer):
                answer = code
            elif code:
                raise Problem(f"the agent of {sandbox.id} did not start: {code}")
        deadline = time.time() + 30
        while answer.status < 300:
            found = await self._agent("GET", sandbox, "/")
            if "port is not open" not in found.text or time.time() > deadline:
                return found
            await asyncio.sleep(0.1)
        return answer

    async def _write(self, sandbox: Sandbox) -> None:
        self._written += 1
        number = self._written
        contents = sandbox.beliefs[0].contents
        call = self._agent("POST", sandbox, f"/{number}")
        if await self._do(sandbox, "write", call, lambda: contents.doubted.add(number)):
            contents.acked.add(number)

    async def _upload(self, sandbox: Sandbox, slot: int, size: float) -> None:
        self._written += 1
        name = f"file-{slot}"
        content = f"{self._written}\n".encode() * int(1 + size * 20_000)
        contents = sandbox.beliefs[0].contents
        contents.uploads[name] = None
        access = Access(sandbox.id, sandbox.token)
        call = self._client.upload(access, f"/home/user/uploads/{name}", content)
        if await self._do(sandbox, "upload", call):
            contents.uploads[name] = hashlib.sha256(content).hexdigest()

    async def _pause(self, sandbox: Sandbox, *, memory: bool) -> None:
        def doubt() -> None:
            if "running" in sandbox.states:
                sandbox.states.add("paused")
                sandbox.may_be_cold |= not memory

        sandbox.note(f"pause {memory=}")
        was_paused = sandbox.states == {"paused"}
        call = self._api("POST", sandbox, "/pause", {"memory": memory})
        if await self._do(sandbox, "pause", call, doubt) and not was_paused:
            # Its time may have been up at the same moment, and then it has its memory.
            both = sandbox.auto_pause and time.time() >= sandbox.earliest - CLOCK
            sandbox.states = {"paused"}
            if not memory:
                for belief in sandbox.beliefs:
                    belief.warm = None if both else False

    async def _connect(self, sandbox: Sandbox, timeout: int) -> None:
        asked = time.time()
        was = set(sandbox.states)

        def doubt() -> None:
            sandbox.states.add("running")
            sandbox.may_resume_for = timeout
            self._extend(sandbox, was, asked, timeout, certain=False)

        call = self._api("POST", sandbox, "/connect", {"timeout": timeout})
        if await self._do(sandbox, "connect", call, doubt):
            was = set(sandbox.states)
            sandbox.states = {"running"}
            self._extend(sandbox, was, asked, timeout, certain=True)

    def _extend(
        self, sandbox: Sandbox, was: set[str], asked: float, timeout: int, *, certain: bool
    ) -> None:
        # One that was paused has a new deadline; that of one that ran only moves away.
        if was == {"paused"}:
            sandbox.move_deadline(asked, timeout, certain=True, extends=False)
        else:
            sure = certain and was == {"running"}
            sandbox.move_deadline(asked, timeout, certain=sure, extends=True)

    async def _set_timeout(self, sandbox: Sandbox, second: float, third: float) -> None:
        timeout, asked = lifetime(second, third), time.time()

        def doubt() -> None:
            sandbox.move_deadline(asked, timeout, certain=False, extends=False)

        sandbox.note(f"timeout {timeout}")
        call = self._api("POST", sandbox, "/timeout", {"timeout": timeout})
        if await self._do(sandbox, "timeout", call, doubt):
            sandbox.move_deadline(asked, timeout, certain=True, extends=False)

    async def _kill(self, sandbox: Sandbox) -> None:
        def doubt() -> None:
            self._may_be_killed(sandbox)

        await self._do(sandbox, "kill", self._api("DELETE", sandbox), doubt)
        sandbox.states = {"gone"}
        answer = await self._ask(sandbox, "get", self._api("GET", sandbox))
        if answer.status != 404:
            raise Problem(f"{sandbox.id} was killed, and is there: {answer}")

    def _may_be_killed(self, sandbox: Sandbox) -> None:
        sandbox.states.add("gone")
        # Its processes go before anything else does, and of one that is paused the disk is kept.
        for belief in sandbox.beliefs:
            belief.warm = None if belief.warm else belief.warm

    def _copy_of(self, sandbox: Sandbox) -> Belief:
        """What must be in a copy of it that is made now."""
        belief = sandbox.beliefs[0]
        # If a dump fails, a copy is of the disk alone; without CRIU it always is.
        has_memory = self._world.checkpoints and belief.warm is not False
        return belief.copy(warm=None if has_memory else False)

    async def _all(
        self,
        sandbox: Sandbox,
        name: str,
        calls: list[Awaitable[Answer]],
        *,
        resumes: bool = False,
    ) -> list[Answer]:
        """Asks for several things at once, and waits for all, whatever becomes of them.

        `resumes` says that they may begin a run, whose deadline is counted from any moment until
        the last answer, or the lack of one.
        """
        asked = [self._ask(sandbox, name, call) for call in calls]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if resumes:
            sandbox.latest = max(sandbox.latest, time.time() + LONG)
        for answer in answers:
            if isinstance(answer, BaseException):
                sandbox.may_resume_for = LONG if resumes else 0
                raise answer
        return [answer for answer in answers if isinstance(answer, Answer)]

    def _api(
        self, method: str, sandbox: Sandbox, path: str = "", body: Any = None
    ) -> Awaitable[Answer]:
        return self._client.api(method, f"/sandboxes/{sandbox.id}{path}", body)

    def _agent(self, method: str, sandbox: Sandbox, path: str) -> Awaitable[Answer]:
        return self._client.agent(Access(sandbox.id, sandbox.token), method, path)


def seconds_of(timestamp: str) -> float:
    """Seconds since 1970 of a time as the API writes it."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def lifetime(which: float, length: float) -> int:
    """Seconds that a sandbox is to live: few, now and then."""
    return int(SHORT[0] + length * (SHORT[1] - SHORT[0])) if which < 0.2 else LONG
