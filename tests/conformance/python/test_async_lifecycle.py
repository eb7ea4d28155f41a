"""Pause, connect, snapshots and forks with the asynchronous SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2b import AsyncSandbox, NotFoundException, SandboxState, TimeoutException

from support.lifecycle import async_create_pausing, async_pause
from support.sdk import NEWEST, SDK, needs
from support.wait import async_wait_for


@pytest_asyncio.fixture
async def sandbox(stack: object) -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create(timeout=300)
    yield made
    await made.kill()


async def count_up(sandbox: AsyncSandbox) -> int:
    """Starts a process that counts in memory, and gives its id."""
    command = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done"
    pid = (await sandbox.commands.run(command, background=True, timeout=0)).pid
    await async_wait_for("it to count", lambda: sandbox.files.exists("/tmp/count"))
    return pid


async def assert_counts_on(sandbox: AsyncSandbox, pid: int) -> None:
    assert pid in {process.pid for process in await sandbox.commands.list()}

    async def count() -> int:
        # Between the truncation of the file and the write it is empty.
        return int(await sandbox.files.read("/tmp/count") or 0)

    before = await count()

    async def is_higher() -> bool:
        return await count() > before

    await async_wait_for("it to count", is_higher)


async def test_pause_and_connect(sandbox: AsyncSandbox) -> None:
    pid = await count_up(sandbox)
    for _ in range(3):
        await assert_counts_on(sandbox, pid)
        await async_pause(sandbox)
        assert await sandbox.is_running() is False
        assert (await sandbox.get_info()).state == SandboxState.PAUSED
        await sandbox.connect()
        assert await sandbox.is_running() is True
    await assert_counts_on(sandbox, pid)


@needs(AsyncSandbox, "pause")
async def test_pausing_is_true_once(sandbox: AsyncSandbox) -> None:
    outcomes = await asyncio.gather(*(sandbox.pause() for _ in range(8)))
    assert True in outcomes
    assert await sandbox.pause() is False
    assert await AsyncSandbox.pause(sandbox.sandbox_id) is False
    again = await AsyncSandbox.connect(sandbox.sandbox_id)
    assert (await again.commands.run("echo again")).stdout == "again\n"
    await again.kill()
    with pytest.raises(NotFoundException):
        await again.pause()


async def test_at_its_timeout(stack: object) -> None:
    sandbox = await async_create_pausing(timeout=300)
    try:
        await sandbox.set_timeout(0)

        async def is_paused() -> bool:
            return (await sandbox.get_info()).state == SandboxState.PAUSED

        await async_wait_for("the sandbox to be paused", is_paused)
        await sandbox.connect()
        assert (await sandbox.commands.run("echo again")).stdout == "again\n"
    finally:
        assert await sandbox.kill()


async def test_a_stream_is_cut_off_by_a_pause(sandbox: AsyncSandbox) -> None:
    lines: list[str] = []
    handle = await sandbox.commands.run(
        "while sleep 0.01; do echo x; done", background=True, timeout=0, on_stdout=lines.append
    )

    async def has_begun() -> bool:
        return bool(lines)

    await async_wait_for("its output", has_begun)
    await async_pause(sandbox)
    # Older releases pass on what their HTTP library says.
    with pytest.raises(TimeoutException if SDK >= NEWEST else Exception):
        await asyncio.wait_for(handle.wait(), 30)
    await sandbox.connect()
    assert handle.pid in {process.pid for process in await sandbox.commands.list()}


@pytest.mark.skipif(
    not hasattr(AsyncSandbox, "create_snapshot") and SDK < NEWEST, reason="no snapshots"
)
async def test_snapshots(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("file", "then")
    snapshot = await sandbox.create_snapshot()
    await sandbox.files.write("file", "now")
    pages = sandbox.list_snapshots()
    assert await pages.next_items() == [snapshot]
    assert not pages.has_next
    made = await asyncio.gather(*(AsyncSandbox.create(snapshot.snapshot_id) for _ in range(3)))
    for one in made:
        assert await one.files.read("file") == "then"
    await asyncio.gather(*(one.kill() for one in made))
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id) is True
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id) is False
    assert await sandbox.list_snapshots().next_items() == []


@pytest.mark.skipif(not hasattr(AsyncSandbox, "fork") and SDK < NEWEST, reason="no fork")
async def test_fork(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("file", "shared")
    forks = await sandbox.fork(count=3, timeout=60)
    for fork in forks:
        assert isinstance(fork, AsyncSandbox), fork
        assert await fork.files.read("file") == "shared"
        await fork.files.write("file", fork.sandbox_id)
    assert [await fork.files.read("file") for fork in forks] == [x.sandbox_id for x in forks]
    assert await sandbox.files.read("file") == "shared"
    assert all(await asyncio.gather(*(fork.kill() for fork in forks)))
