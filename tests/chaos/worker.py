"""One of many workers: a sandbox of its own, what it does with it, and what it finds out.

What a worker does follows from the seed and its number, as far as the answers are the same.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from chaos.belief import CLOCK, Belief, Contents, Sandbox
from chaos.client import Access, Answer, Cut, Stuck
from chaos.hand import LONG, WOKEN, Hand, Problem, Snapshot, World, lifetime, seconds_of


class Worker(Hand):
    """Keeps a sandbox busy."""

    def __init__(self, number: int, world: World) -> None:
        super().__init__(number, world)
        self._random = random.Random(f"{world.seed}/{number}")
        self.sandbox: Sandbox | None = None
        #: Others that are to be looked at and killed.
        self._extra: list[Sandbox] = []
        self._snapshots: list[Snapshot] = []
        #: There may be sandboxes of ours that we were not told of.
        self._orphans = False

    async def live(self) -> None:
        """Works until the world stops."""
        while not self._world.stopping:
            await self._client.up()
            dice = [self._random.random() for _ in range(5)]
            await asyncio.sleep(dice.pop() * 0.8)
            await self._guarded(lambda dice=dice: self._turn(dice))

    async def _guarded(self, do: Callable[[], Awaitable[None]]) -> bool:
        """Whether it came to its end. What it found is reported, and the sandbox left behind."""
        try:
            await do()
            return True
        except Cut:
            self._unsure = True
        except (Problem, Stuck) as problem:
            self._report(str(problem))
        except Exception:
            # An answer of another shape, most likely.
            self._report(traceback.format_exc())
        return False

    def _report(self, what: str) -> None:
        suspects = [*self._extra, *([self.sandbox] if self.sandbox else [])]
        history = [f"{s.id}: {line}" for s in suspects for line in s.history]
        self._world.report(self.number, what, history)
        # What can be said of them is said. They are killed as if we had not known of them.
        self.sandbox, self._extra, self._orphans = None, [], True

    async def _turn(self, dice: list[float]) -> None:
        if self._orphans:
            await self._find_orphans()
        for extra in list(self._extra):
            await self._look(extra)
            await self._kill(extra)
            self._extra.remove(extra)
        sandbox = self.sandbox
        if not sandbox:
            await self._create(dice)
            return
        unclear = sandbox.states == {"running"} and len(sandbox.beliefs) > 1
        if self._unsure or unclear or len(sandbox.states) > 1:
            self._unsure = False
            await self._look(sandbox)
            # Its time is up at this very moment, and either may be.
            if self._unsure or len(sandbox.states) > 1:
                return
        if "gone" in sandbox.states:
            self.sandbox = None
        elif "paused" in sandbox.states:
            await self._turn_of_paused(sandbox, dice)
        else:
            await self._turn_of_running(sandbox, dice)

    async def _turn_of_running(self, sandbox: Sandbox, dice: list[float]) -> None:
        first, second, third, fourth = dice
        own = [snapshot for snapshot in self._certain() if snapshot.of == sandbox.id]
        actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (20, lambda: self._write(sandbox)),
            (6, lambda: self._upload(sandbox, int(second * 4), third)),
            (10, lambda: self._look(sandbox)),
            (14, lambda: self._pause(sandbox, memory=second < 0.7)),
            (8, lambda: self._snapshot(sandbox)),
            (8, lambda: self._fork(sandbox, 1 + int(second * 2), adopts=third < 0.3)),
            (6 if own else 0, lambda: self._rewind(sandbox, own[int(second * len(own))])),
            (5, lambda: self._set_timeout(sandbox, second, third)),
            (3, lambda: self._connect(sandbox, LONG)),
            (7, lambda: self._clash(sandbox, second, fourth)),
            (4, lambda: self._end(sandbox)),
        ]
        await pick(first, actions)()

    async def _turn_of_paused(self, sandbox: Sandbox, dice: list[float]) -> None:
        first, second, third, _ = dice
        warm = all(belief.warm for belief in sandbox.beliefs)
        actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (20, lambda: self._resume(sandbox, LONG if second < 0.8 else 15)),
            (12 if sandbox.auto_resume and warm else 0, lambda: self._wake(sandbox)),
            (4, lambda: self._look(sandbox)),
            (3, lambda: self._pause(sandbox, memory=True)),
            (4 if sandbox.is_clear else 0, lambda: self._fork(sandbox, 1, adopts=third < 0.3)),
            (6, lambda: self._resume_at_once(sandbox)),
            (2, lambda: self._end(sandbox)),
        ]
        await pick(first, actions)()

    def _certain(self) -> list[Snapshot]:
        """Snapshots that are certain to be there."""
        return [snapshot for snapshot in self._snapshots if not snapshot.may_be_gone]

    async def _create(self, dice: list[float]) -> None:
        first, second, third, fourth = dice
        snapshots = self._certain()
        snapshot = None
        if snapshots and first < 0.4:
            snapshot = snapshots[int(second * len(snapshots))]
        timeout = lifetime(third, fourth)
        auto_pause, auto_resume = fourth < 0.6, fourth < 0.4
        body = {
            "templateID": snapshot.id if snapshot else "base",
            "timeout": timeout,
            "secure": True,
            "metadata": {"worker": str(self.number)},
            "autoPause": auto_pause,
            "autoResume": {"enabled": auto_resume},
        }
        self._orphans = True
        asked = time.time()
        name = "create from snapshot" if snapshot else "create"
        answer = await self._ask(None, name, self._client.api("POST", "/v2/sandboxes", body))
        if answer.status != 201:
            raise Problem(f"{name} got {answer}")
        self._orphans = False
        belief = snapshot.belief.copy() if snapshot else Belief(Contents(), warm=False)
        made = answer.json()
        self.sandbox = Sandbox(
            id=made["sandboxID"],
            token=made["envdAccessToken"],
            beliefs=[belief],
            states={"running"},
            earliest=asked + timeout,
            latest=time.time() + timeout,
            auto_pause=auto_pause,
            auto_resume=auto_resume,
        )
        self.sandbox.note(f"{name} for {timeout} s, {auto_pause=}, {auto_resume=}: {body}")
        await self._look(self.sandbox)

    async def _resume(self, sandbox: Sandbox, timeout: int) -> None:
        await self._connect(sandbox, timeout)
        await self._look(sandbox)

    async def _wake(self, sandbox: Sandbox) -> None:
        """Resumes it by requests to its port: however many, once."""
        sandbox.states.add("running")
        # What its create asked for may be more.
        sandbox.move_deadline(time.time(), WOKEN, certain=True, extends=False)
        calls = [self._agent("GET", sandbox, "/") for _ in range(3)]
        answers = await self._all(sandbox, "wake", calls, resumes=True)
        for answer in answers:
            if answer.status != 200:
                raise Problem(f"a request to {sandbox.id}, which it was to wake, got {answer}")
        sandbox.states = {"running"}
        await self._look(sandbox)

    async def _resume_at_once(self, sandbox: Sandbox) -> None:
        sandbox.states.add("running")
        sandbox.move_deadline(time.time(), LONG, certain=True, extends=False)
        calls = [self._api("POST", sandbox, "/connect", {"timeout": LONG}) for _ in range(3)]
        answers = await self._all(sandbox, "connect", calls, resumes=True)
        for answer in answers:
            if answer.status not in (200, 201):
                raise Problem(f"connect of {sandbox.id} together with others got {answer}")
        sandbox.states = {"running"}
        await self._look(sandbox)

    async def _snapshot(self, sandbox: Sandbox) -> None:
        belief = self._copy_of(sandbox)
        answers: list[Answer] = []

        async def call() -> Answer:
            answers.append(await self._api("POST", sandbox, "/snapshots", {}))
            return answers[-1]

        if await self._do(sandbox, "snapshot", call()):
            snapshot = Snapshot(answers[-1].json()["snapshotID"], belief, sandbox.id)
            self._snapshots.append(snapshot)
            if len(self._snapshots) > 2:
                await self._delete(self._snapshots[0])

    async def _delete(self, snapshot: Snapshot) -> None:
        path = f"/templates/{quote(snapshot.id, safe='')}"
        # 400: it is in use.
        try:
            answer = await self._ask(None, "delete snapshot", self._client.api("DELETE", path))
        except Cut:
            snapshot.may_be_gone = True
            raise
        if answer.status not in ({204, 400, 404} if snapshot.may_be_gone else {204, 400}):
            raise Problem(f"delete of snapshot {snapshot.id} got {answer}")
        if answer.status != 400:
            self._snapshots.remove(snapshot)

    async def _fork(self, sandbox: Sandbox, count: int, *, adopts: bool) -> None:
        paused = sandbox.states == {"paused"}
        belief = self._copy_of(sandbox)
        timeout, asked = 300, time.time()
        answers: list[Answer] = []
        prefix = "/atoll/sandboxes" if paused else "/sandboxes"

        async def call() -> Answer:
            path = f"{prefix}/{sandbox.id}/fork"
            answers.append(
                await self._client.api("POST", path, {"timeout": timeout, "count": count})
            )
            return answers[-1]

        def doubt() -> None:
            self._orphans = True

        if not await self._do(sandbox, "fork of any" if paused else "fork", call(), doubt):
            return
        results = answers[-1].json()
        failed = [result["error"] for result in results if not result.get("sandbox")]
        self._extra += [
            Sandbox(
                id=result["sandbox"]["sandboxID"],
                token=result["sandbox"]["envdAccessToken"],
                beliefs=[belief.copy()],
                states={"running"},
                earliest=asked + timeout,
                latest=time.time() + timeout,
                auto_pause=sandbox.auto_pause,
                auto_resume=sandbox.auto_resume,
                history=[*sandbox.history, "forked"],
            )
            for result in results
            if result.get("sandbox")
        ]
        if failed or len(results) != count:
            raise Problem(f"of {count} forks of {sandbox.id}, some were {failed}")
        if adopts:
            await self._kill(sandbox)
            self.sandbox = self._extra.pop()
            await self._look(self.sandbox)

    async def _rewind(self, sandbox: Sandbox, snapshot: Snapshot) -> None:
        def doubt() -> None:
            sandbox.beliefs.append(snapshot.belief.copy())
            sandbox.states.add("paused")

        path = f"/atoll/sandboxes/{sandbox.id}/rewind"
        call = self._client.api("POST", path, {"snapshotID": snapshot.id})
        if await self._do(sandbox, "rewind", call, doubt):
            sandbox.beliefs = [snapshot.belief.copy()]
            await self._look(sandbox)

    async def _clash(self, sandbox: Sandbox, which: float, upload: float) -> None:
        """Two things at once."""
        path = "/pause"
        pause = self._api("POST", sandbox, path, {"memory": True})
        if which < 0.3:
            sandbox.states.add("paused")
            other = self._api("POST", sandbox, path, {"memory": True})
            answers = await self._all(sandbox, "pause", [pause, other])
            self._expect(sandbox, answers, 204, {204, 409})
            sandbox.states = {"paused"}
        elif which < 0.6:
            sandbox.states.add("paused")
            asked = time.time()
            connect = self._api("POST", sandbox, "/connect", {"timeout": LONG})
            sandbox.move_deadline(asked, LONG, certain=False, extends=True)
            answers = await self._all(sandbox, "pause", [pause, connect], resumes=True)
            self._expect(sandbox, answers[:1], 204, {204})
            self._expect(sandbox, answers[1:], None, {200, 201})
        elif which < 0.8:
            sandbox.states.add("paused")
            name = f"file-{int(upload * 4)}"
            sandbox.beliefs[0].contents.uploads[name] = None
            path = f"/home/user/uploads/{name}"
            access = Access(sandbox.id, sandbox.token)
            upload_call = self._client.upload(access, path, b"whole or not" * 300_000)
            if sandbox.auto_resume:
                sandbox.earliest = min(sandbox.earliest, time.time() + WOKEN)
            calls = [pause, self._lenient(upload_call)]
            answers = await self._all(sandbox, "pause", calls, resumes=sandbox.auto_resume)
            self._expect(sandbox, answers[:1], 204, {204})
            sandbox.states = {"paused"}
            self._may_wake(sandbox, "upload")
        else:
            sandbox.states.add("paused")
            self._may_be_killed(sandbox)
            kill = self._api("DELETE", sandbox)
            answers = await self._all(sandbox, "kill", [kill, pause])
            self._expect(sandbox, answers[:1], 204, {204})
            self._expect(sandbox, answers[1:], None, {204, 404, 409})
            sandbox.states = {"gone"}

    async def _lenient(self, call: Awaitable[Answer]) -> Answer:
        """A request whose connection a pause may cut."""
        try:
            return await call
        except Cut:
            return Answer(0, "cut")

    def _expect(
        self, sandbox: Sandbox, answers: list[Answer], one: int | None, all_of: set[int]
    ) -> None:
        # Its time may be up in between.
        sandbox.expire()
        expires = time.time() >= sandbox.earliest - CLOCK
        statuses = {answer.status for answer in answers}
        allowed = all_of | ({404, 409} if expires else set())
        if not statuses <= allowed or (one and one not in statuses and not expires):
            texts = ", ".join(map(str, answers))
            raise Problem(f"of several requests about {sandbox.id} some got {texts}")

    async def _end(self, sandbox: Sandbox) -> None:
        await self._kill(sandbox)
        self.sandbox = None

    async def _find_orphans(self) -> None:
        """Kills those of ours that we were never told of: each is there whole, or not at all."""
        known = {s.id for s in (self.sandbox, *self._extra) if s}
        for entry in await self._listed():
            if entry["sandboxID"] in known:
                continue
            orphan = entry["sandboxID"]
            path = f"/sandboxes/{orphan}"
            answer = await self._ask(None, "get", self._client.api("GET", path))
            if answer.status == 200 and answer.json()["state"] == "running":
                access = Access(orphan, answer.json()["envdAccessToken"])
                code = await self._client.run(access, "echo whole > /tmp/whole")
                if code != 0 and time.time() < seconds_of(answer.json()["endAt"]) - CLOCK:
                    what = f"{orphan}, whose creation was in doubt, is there in part: {code}"
                    self._world.report(self.number, what, [])
            answer = await self._ask(None, "kill", self._client.api("DELETE", path))
            if answer.status not in (204, 404):
                self._world.report(self.number, f"kill of {orphan} got {answer}", [])
        self._orphans = False

    async def _listed(self) -> list[dict[str, Any]]:
        answer = await self._client.api("GET", "/v2/sandboxes", metadata=f"worker={self.number}")
        if answer.status != 200:
            raise Problem(f"list got {answer}")
        return answer.json()

    async def audit(self) -> None:
        """Checks that all that was acknowledged holds, and takes it away; Atoll lives on now."""
        for sandbox in [*self._extra, *([self.sandbox] if self.sandbox else [])]:
            await self._guarded(lambda sandbox=sandbox: self._audit_sandbox(sandbox))
        self._extra, self.sandbox = [], None
        for snapshot in list(self._snapshots):
            await self._guarded(lambda snapshot=snapshot: self._audit_snapshot(snapshot))
        if self._orphans:
            await self._guarded(self._find_orphans)

    async def _audit_sandbox(self, sandbox: Sandbox) -> None:
        await self._look(sandbox)
        if sandbox.states == {"paused"}:
            await self._resume(sandbox, LONG)
        await self._kill(sandbox)

    async def _audit_snapshot(self, snapshot: Snapshot) -> None:
        if not snapshot.may_be_gone:
            body = {
                "templateID": snapshot.id,
                "timeout": LONG,
                "secure": True,
                "metadata": {"worker": str(self.number)},
            }
            asked = time.time()
            answer = await self._client.api("POST", "/v2/sandboxes", body)
            if answer.status != 201:
                raise Problem(f"create from snapshot {snapshot.id} got {answer}")
            made = answer.json()
            sandbox = Sandbox(
                id=made["sandboxID"],
                token=made["envdAccessToken"],
                beliefs=[snapshot.belief.copy()],
                states={"running"},
                earliest=asked + LONG,
                latest=time.time() + LONG,
            )
            self.sandbox = sandbox
            await self._look(sandbox)
            await self._end(sandbox)
        await self._delete(snapshot)


def pick(
    die: float, actions: list[tuple[int, Callable[[], Awaitable[None]]]]
) -> Callable[[], Awaitable[None]]:
    """One of the actions, by their weights."""
    left = die * sum(weight for weight, _ in actions)
    for weight, action in actions:
        left -= weight
        if left < 0:
            return action
    return actions[0][1]
