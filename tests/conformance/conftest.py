"""These suites use sandboxes by name as well: see `support.names`."""

from __future__ import annotations

import base64
import gc
import hashlib
import secrets
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from support import lifecycle, names
from support import registry as registries
from support.counting import Counting
from support.registry import Registry
from support.stack import RunningStack, Stack
from support.templates import Builds, Steps

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
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that go on while the test does something else."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


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


@pytest.fixture
def build(api: httpx.Client) -> Iterator[Builds]:
    """Builds templates that are deleted with the test."""
    builds = Builds(api)
    yield builds
    builds.clean()


@pytest.fixture
def steps(api: httpx.Client, build: Builds) -> Steps:
    """Builds templates without an SDK."""
    return Steps(api, build)


@pytest.fixture(scope="session")
def registry(stack: Stack | RunningStack) -> Iterator[Registry]:
    """A registry on loopback that the stack may fetch images from."""
    with _registry(stack, "open") as running:
        yield running


@pytest.fixture(scope="session")
def private_registry(stack: Stack | RunningStack) -> Iterator[Registry]:
    """Another, which wants a password."""
    with _registry(stack, "private") as running:
        yield running


@contextmanager
def _registry(stack: Stack | RunningStack, name: str) -> Iterator[Registry]:
    if isinstance(stack, RunningStack):
        pytest.skip("a stack that runs elsewhere may not fetch from this registry")
    with registries.session(name) as running:
        yield running


@pytest.fixture
def other_team(stack: Stack | RunningStack) -> Iterator[str]:
    """The key of another team, which only its operator can make: in the database."""
    if not isinstance(stack, Stack):
        pytest.skip("the database of a stack that runs elsewhere is out of reach")
    raw = secrets.token_bytes(20)
    hashed = base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    team, slug = str(uuid.uuid4()), f"other-{secrets.token_hex(4)}"
    database = sqlite3.connect(stack.data_dir / "atoll.db", timeout=30)
    with database:
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(
            "INSERT INTO teams (id, name, slug, tier, created_at)"
            " VALUES (?, 'Other', ?, 'development', 0)",
            (team, slug),
        )
        database.execute(
            "INSERT INTO team_api_keys (id, team_id, api_key_hash, prefix, length, mask_prefix,"
            " mask_suffix, name, is_development, created_at, updated_at)"
            " VALUES (?, ?, ?, 'e2b_', 40, 'xx', 'xxxx', 'test', 0, 0, 0)",
            (str(uuid.uuid4()), team, f"$sha256${hashed}"),
        )
    yield f"e2b_{raw.hex()}"
    # A deleted template keeps its row, and that its team.
    with suppress(sqlite3.IntegrityError), database:
        database.execute("DELETE FROM teams WHERE id = ?", (team,))
    database.close()
