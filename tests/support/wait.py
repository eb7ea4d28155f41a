"""Waiting for a condition, with a deadline instead of a guess."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_PAUSE = 0.05


def wait_for(what: str, check: Callable[[], T], seconds: float = 60) -> T:
    """Calls `check` until it returns something true, and returns that.

    `what` completes the sentence "timed out waiting for ...".
    """
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {seconds} s waiting for {what}")
        time.sleep(_PAUSE)


async def async_wait_for(what: str, check: Callable[[], Awaitable[T]], seconds: float = 60) -> T:
    """`wait_for` for a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        value = await check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {seconds} s waiting for {what}")
        await asyncio.sleep(_PAUSE)


def equals(what: str, read: Callable[[], T], wanted: T, seconds: float = 60) -> None:
    """Waits until `read` returns `wanted`; the failure shows what it returned last."""
    deadline = time.monotonic() + seconds
    while (value := read()) != wanted:
        assert time.monotonic() < deadline, f"{what}: {value!r} is not {wanted!r}"
        time.sleep(_PAUSE)
