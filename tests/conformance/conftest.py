"""These suites use sandboxes by name as well: see `support.names`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2b import Sandbox

from support import lifecycle, names
from support.counting import Counting

pytest_configure = names.pytest_configure


@pytest.fixture(autouse=True)
def collect_garbage_between_tests() -> Iterator[None]:
    """A stream that a test has dropped is closed by the garbage collector. Where that strikes amid
    another request of the thread, the SDKs' HTTP library waits for itself for ever."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def create_pausing(stack: object) -> Iterator[Callable[..., Sandbox]]:
    """`lifecycle.create_pausing`, for sandboxes that end with the test."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        made.append(lifecycle.create_pausing(**options))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def counting(create: Callable[..., Sandbox]) -> Counting:
    """A sandbox with a counter in it."""
    return Counting(create(timeout=300))


@pytest.fixture
def snap(create: Callable[..., Sandbox]) -> Iterator[Callable[..., str]]:
    """Takes a snapshot that is deleted after the test, sandboxes of it first; gives its id."""
    made: list[str] = []

    def take(sandbox: Sandbox, **options: object) -> str:
        made.append(sandbox.create_snapshot(**options).snapshot_id)
        return made[-1]

    yield take
    for snapshot_id in made:
        for sandbox_id in lifecycle.listed(template=snapshot_id.rpartition(":")[0]):
            Sandbox.kill(sandbox_id)
        Sandbox.delete_snapshot(snapshot_id)
