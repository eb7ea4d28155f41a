"""Kills Atoll again and again under a client that keeps sandboxes busy, and looks what is lost."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

from chaos.client import Client
from chaos.victim import Killer, Victim, abort_points
from chaos.worker import Worker, World
from stress.conftest import instance_of
from support.host import Counts, count, left_behind
from support.stack import Stack


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how often Atoll is killed")
    parser.add_argument("--seed", type=int, help="of all that is random; printed")
    parser.add_argument("--workers", type=int, default=30, help="how many sandboxes are kept busy")
    given = parser.parse_args()
    if given.seed is None:
        given.seed = random.randrange(1_000_000)
    return given


async def at_rest(stack: Stack) -> Counts:
    """What the stack has on the host, once that stays the same."""
    seen = []
    for _ in range(600):
        seen.append(await asyncio.to_thread(counted, stack))
        if len(seen) > 20 and len(set(seen[-20:])) == 1:
            break
        await asyncio.sleep(0.1)
    return seen[-1]


def counted(stack: Stack) -> Counts:
    """What the stack has on the host now; of the mounts that it sees those that are its own."""
    mounts = Path(f"/proc/{stack.pid}/mountinfo").read_text().splitlines()
    own = sum(str(stack.data_dir) in line for line in mounts)
    return replace(count(instance_of(stack), stack.pid, stack.data_dir), mounts=own)


async def become(read: Callable[[], Awaitable[Counts]], wanted: Counts) -> list[str]:
    """Waits until the host is as it was; says what is not."""
    different = {}
    for _ in range(20):
        is_now, was = asdict(await read()), asdict(wanted)
        different = {kind: (was[kind], is_now[kind]) for kind in was if is_now[kind] != was[kind]}
        if not different:
            return []
        print(f"on the host, before and now: {different}", flush=True)
        await asyncio.sleep(1)
    return [f"left on the host, before and now: {different}"]


async def clear(client: Client) -> list[str]:
    """Takes away whatever is there, told of or not; says what there was, and what will not go."""
    there, problems = [], []
    for kind, path, key in (
        ("sandbox", "/v2/sandboxes", "sandboxID"),
        ("snapshot", "/snapshots", "snapshotID"),
    ):
        while listed := (await client.api("GET", path, limit="100")).json():
            # One that is not ours is what a start that was killed looked at itself with.
            ours = [entry for entry in listed if kind != "sandbox" or entry.get("metadata")]
            there += [f"{kind} {entry[key]}" for entry in ours]
            for entry in listed:
                where = "/sandboxes/" if kind == "sandbox" else "/templates/"
                answer = await client.api("DELETE", where + quote(entry[key], safe=""))
                if answer.status != 204:
                    problems.append(f"delete of {kind} {entry[key]} got {answer}")
            if problems:
                break
    return problems or there


async def run(given: argparse.Namespace) -> list[str]:
    """All of it; gives what went wrong."""
    checkpoints = bool(os.environ.get("ATOLL_CRIU"))
    stack = Victim(log_name="stack-chaos")
    stack.log.unlink(missing_ok=True)
    stack.start()
    try:
        client = Client(stack.env["E2B_API_KEY"])
        client.came_up()
        await clear(client)
        before = await at_rest(stack)
        world = World(client, given.seed, checkpoints)
        workers = [Worker(number, world) for number in range(given.workers)]
        points = abort_points(checkpoints=checkpoints)
        killer = Killer(stack, client, given.seed, given.kills, points)
        living = [asyncio.create_task(worker.live()) for worker in workers]
        try:
            # Until there is something to lose.
            await asyncio.sleep(5)
            await killer.run()
        finally:
            world.stopping = True
        await asyncio.gather(*living)
        problems = killer.problems
        await asyncio.gather(*(worker.audit() for worker in workers))
        problems += world.problems
        # Snapshots whose answer was cut off may be there. All else is known, and gone.
        problems += [what for what in await clear(client) if not what.startswith("snapshot ")]
        problems += await become(lambda: at_rest(stack), before)
        if checkpoints and not world.acknowledged["  with memory"]:
            problems.append("no copy of a running sandbox had its memory")
        report(given, killer, world)
        instance = instance_of(stack)
        await asyncio.to_thread(stack.stop)
        if left := left_behind(instance, stack.data_dir):
            problems.append(f"left behind: {left}")
        if left := [path.name for path in (stack.data_dir / "sandboxes").iterdir()]:
            problems.append(f"left in the journal: {left}")
    except BaseException:
        stack.kill()
        raise
    return problems


def report(given: argparse.Namespace, killer: Killer, world: World) -> None:
    """Prints what was done."""
    print(f"\nseed {given.seed}, {given.workers} sandboxes at a time")
    print(f"{sum(killer.tally.values())} kills:")
    for how, times in sorted(killer.tally.items()):
        print(f"  {times:5} {how}")
    if missing := sorted(set(killer.points) - killer.reached):
        print(f"  not reached: {', '.join(missing)}")
    print("operations, and of them those whose answer was cut off:")
    for name, times in sorted(world.acknowledged.items()):
        print(f"  {times + world.doubted[name]:6} {world.doubted[name] or '':>5} {name}")


def main() -> int:
    given = arguments()
    # What it does with its sandboxes is worth reading when something was lost.
    os.environ.setdefault("RUST_LOG", "warn,atoll=info")
    criu = os.environ.get("ATOLL_CRIU")
    again = f"SEED={given.seed} KILLS={given.kills}"
    way = "with CRIU" if criu else "without CRIU"
    print(f"chaos, {way}; again: make chaos {again}", flush=True)
    # The stack is to end with us, however we end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = time.monotonic()
    problems = asyncio.run(run(given))
    for problem in problems:
        print(f"\nPROBLEM: {problem}")
    verdict = f"{len(problems)} problems" if problems else "nothing was lost"
    print(f"\nchaos: {verdict}, seed {given.seed}, {time.monotonic() - started:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
