"""Random numbers of a kernel that was copied together with its memory."""

from __future__ import annotations

import os
import sys


def reseed() -> None:
    """Makes this process differ from others that were started from the same snapshot.

    For a kernel that has not run a cell: generators that the user made later seed themselves. The
    `secrets` module and `os.urandom` ask the operating system every time and need nothing. The seed
    of `hash()` is fixed when a process starts and stays the same: an order of sets of strings can
    repeat from one sandbox to another.
    """
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "numpy" in modules and "numpy.random" in modules:
        modules["numpy"].random.seed()
    if "torch" in modules:
        modules["torch"].seed()
    if "ssl" in modules:
        # OpenSSL has a generator of its own in this process; this is mixed into it.
        modules["ssl"].RAND_add(os.urandom(64), 64.0)
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "uuid" in modules:
        modules["uuid"]._node = modules["uuid"]._last_timestamp = None
