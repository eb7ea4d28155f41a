"""Counting what the stack has on the host."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from support import names
from support.host import Counts, count
from support.stack import Stack
from support.wait import wait_for

#: Some tests open sandboxes by name.
pytest_configure = names.pytest_configure


def instance_of(stack: Stack) -> str:
    """The instance's id, which its data directory keeps."""
    text = (stack.data_dir / "instance").read_text().strip()
    assert re.fullmatch(r"[0-9a-f]{6}", text), text
    return text


@pytest.fixture
def instance(stack: Stack) -> str:
    return instance_of(stack)


@pytest.fixture
def counts(stack: Stack) -> Callable[[], Counts]:
    """Counts what the stack has on the host now."""
    return lambda: count(instance_of(stack), stack.pid, stack.data_dir)


def settled(counts: Callable[[], Counts]) -> Counts:
    """The counts, once they have stayed the same for a while: pools fill in the background."""
    seen = [counts()]

    def quiet() -> bool:
        seen.append(counts())
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    wait_for("the pools to be at rest", quiet, seconds=120)
    return seen[-1]
