"""Random numbers of a kernel that was copied together with its memory."""

from __future__ import annotations

import os
import sys


def reseed(used: bool) -> None:
    """Makes this process differ from others that were started from the same snapshot.

    If a cell has `used` it, generators that a user can have seeded stay as they are. Those that the
    user makes later seed themselves. The `secrets` module and `os.urandom` ask the operating system
    every time and need nothing. The seed of `hash()` is fixed when a process starts and stays the
    same: an order of sets of strings can repeat from one sandbox to another.
    """
    _renew(sys.modules)
    if not used:
        _seed(sys.modules)


def _renew(modules) -> None:
    """What nobody seeds, and all expect to differ."""
    if "ssl" in modules:
        # OpenSSL has a generator of its own in this process; this is mixed into it.
        modules["ssl"].RAND_add(os.urandom(64), 64.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "uuid" in modules:
        modules["uuid"]._node = modules["uuid"]._last_timestamp = None


def _seed(modules) -> None:
    if "random" in modules:
        modules["random"].seed()
    if "numpy" in modules and "numpy.random" in modules:
        modules["numpy"].random.seed()
    if "torch" in modules:
        modules["torch"].seed()
