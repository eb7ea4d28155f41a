"""Ending a stack as a crash would, at a moment of one's choice."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.stack import Stack
from support.wait import wait_for


def crash(stack: Stack) -> None:
    """SIGKILL, and a new start on the same data directory."""
    stack.kill()
    stack.start()


def abort_after(stack: Stack, point: str, do: Callable[[], object]) -> None:
    """Starts a stack that aborts at a point, does what leads there, and leaves it ended."""
    stack.kill()
    os.environ["ATOLL_ABORT_AFTER"] = point
    try:
        stack.start()
    finally:
        del os.environ["ATOLL_ABORT_AFTER"]
    pid = stack.pid
    with suppress(Exception):
        do()
    wait_for(f"the stack to end after {point}", lambda: not is_alive(pid), seconds=60)
    stack.kill()


def is_alive(pid: int) -> bool:
    """Whether a process runs; the dead of a daemon that crashed are init's to bury."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
