"""What a sandbox must be like, as far as can be known from outside.

A belief is one way in which things may be. What was acknowledged leaves one; each answer that was
cut off may add another; a look at the sandbox removes those that do not fit. If none is left,
something that was acknowledged does not hold.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

#: How long after a deadline, or after Atoll came up, a sandbox may still be there. Atoll promises
#: less; this is for a machine that is busy with everything else here.
GRACE = 8.0

#: How far the clock of an answer and ours may be apart: the API rounds.
CLOCK = 1.0


@dataclass
class Contents:
    """What is in a sandbox."""

    #: Numbers that its agent acknowledged, and those that may have reached it.
    acked: set[int] = field(default_factory=set)
    doubted: set[int] = field(default_factory=set)
    #: Digests of files; None for one whose upload was cut off.
    uploads: dict[str, str | None] = field(default_factory=dict)
    #: Which process of the agent it is, and how far it has counted at least.
    nonce: str | None = None
    count: int = 0

    def problems(self, seen: dict[str, Any], *, warm: bool | None) -> list[str]:
        """What is wrong with what its agent says; `warm` is whether its memory must be there."""
        found = []
        log = set(seen["log"])
        if lost := self.acked - log:
            found.append(f"numbers {sorted(lost)} were acknowledged and are lost")
        if strange := log - self.acked - self.doubted:
            found.append(f"numbers {sorted(strange)} are of another time")
        if seen["log"] != sorted(log):
            found.append(f"the log is out of order: {seen['log']}")
        if seen["memory"] != seen["log"]:
            found.append(f"memory {seen['memory']} and file {seen['log']} are of different times")
        for name, digest in self.uploads.items():
            if digest and seen["uploads"].get(name) != digest:
                found.append(f"file {name} is {seen['uploads'].get(name)}, and was {digest}")
        same = seen["nonce"] == self.nonce
        if warm and not same:
            found.append("its processes are others")
        if warm is False and same:
            found.append("its processes are those of before")
        if same and seen["count"] < self.count:
            found.append(f"it counted to {self.count}, and is at {seen['count']}")
        return found

    def saw(self, seen: dict[str, Any]) -> None:
        """Takes note of what its agent says."""
        self.acked = set(seen["log"])
        self.nonce, self.count = seen["nonce"], seen["count"]


@dataclass
class Belief:
    """One way in which a sandbox may be."""

    contents: Contents
    #: Whether the memory is that of before: None if it may be either way.
    warm: bool | None = True

    def copy(self, **changes: Any) -> Belief:
        return replace(self, contents=copy.deepcopy(self.contents), **changes)


@dataclass
class Sandbox:
    """A sandbox, and all that is known of it."""

    id: str
    token: str
    beliefs: list[Belief]
    #: Of running, paused, gone: what it may be.
    states: set[str]
    #: Between when and when its deadline is; of no meaning while it is paused.
    earliest: float
    latest: float
    auto_pause: bool = False
    auto_resume: bool = False
    #: A resume for so many seconds is in doubt. The next start may bring it to its end.
    may_resume_for: int = 0
    #: A pause without its memory is in doubt.
    may_be_cold: bool = False
    history: list[str] = field(default_factory=list)

    @property
    def is_clear(self) -> bool:
        """Whether it is certain what is in it."""
        return len(self.beliefs) == 1

    def note(self, what: str) -> None:
        """Remembers what was done, for a report."""
        self.history.append(f"{datetime.now().strftime('%H:%M:%S.%f')[:-3]} {what}")
        del self.history[:-40]

    def expire(self) -> None:
        """Allows for a deadline that may have passed by now."""
        if "running" in self.states and time.time() >= self.earliest - CLOCK:
            self.states.add("paused" if self.auto_pause else "gone")

    def must_have_expired(self, asked: float, up_since: float) -> bool:
        """Whether its deadline was so long ago, when it was asked for, that it could not run."""
        return asked - GRACE > max(self.latest, up_since)

    def move_deadline(self, asked: float, seconds: int, *, certain: bool, extends: bool) -> None:
        """Takes note of a deadline that was set by a request sent at `asked`."""
        early, late = asked + seconds, time.time() + seconds
        if extends:
            early, late = max(early, self.earliest), max(late, self.latest)
        if certain:
            self.earliest, self.latest = early, late
        else:
            self.earliest, self.latest = min(early, self.earliest), max(late, self.latest)
