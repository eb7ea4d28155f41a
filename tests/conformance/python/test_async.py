"""The asynchronous SDK: what differs from the synchronous one is how events arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2b import (
    AsyncSandbox,
    CommandExitException,
    FilesystemEvent,
    FilesystemEventType,
    PtySize,
    TimeoutException,
)

from support.sdk import since
from support.wait import async_wait_for


@pytest_asyncio.fixture
async def sandbox(stack: object) -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create(timeout=300)
    yield made
    await made.kill()


# Rules: HEALTH-2, PROXY-35
async def test_life_and_death(stack: object) -> None:
    sandbox = await AsyncSandbox.create(metadata={"kind": "async"}, timeout=60)
    assert await sandbox.is_running()
    assert (await sandbox.get_info()).metadata == {"kind": "async"}
    await sandbox.set_timeout(600)
    assert (await sandbox.commands.run("echo hi")).stdout == "hi\n"
    assert await sandbox.kill()
    assert not await sandbox.is_running()
    assert not await AsyncSandbox.kill(sandbox.sandbox_id)


@since("2.25.0", "routing headers after connect")
async def test_connect(sandbox: AsyncSandbox) -> None:
    again = await AsyncSandbox.connect(sandbox.sandbox_id)
    assert (await again.commands.run("echo hi")).stdout == "hi\n"


# Rules: PROC-30, PROC-36, PROC-44
async def test_commands(sandbox: AsyncSandbox) -> None:
    result = await sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    with pytest.raises(CommandExitException):
        await sandbox.commands.run("exit 3")
    with pytest.raises(TimeoutException):
        await sandbox.commands.run("sleep 600", timeout=1)


# Rules: PROC-24, PROC-50, STREAM-14
async def test_callbacks_and_stdin(sandbox: AsyncSandbox) -> None:
    lines: list[str] = []
    handle = await sandbox.commands.run(
        "while read -r line; do echo got $line; [ $line != stop ] || break; done",
        background=True,
        stdin=True,
        on_stdout=lines.append,
    )
    await sandbox.commands.send_stdin(handle.pid, "one\n")

    async def echoed() -> bool:
        return "got one\n" in "".join(lines)

    await async_wait_for("the first line to come back", echoed)
    await sandbox.commands.send_stdin(handle.pid, "stop\n")
    assert (await handle.wait()).stdout == "got one\ngot stop\n"


async def test_commands_side_by_side(sandbox: AsyncSandbox) -> None:
    results = await asyncio.gather(*(sandbox.commands.run(f"echo {n}") for n in range(25)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(25)]


async def test_files(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("dir/file.txt", "content")
    assert await sandbox.files.read("dir/file.txt") == "content"
    chunks = [chunk async for chunk in await sandbox.files.read("dir/file.txt", format="stream")]
    assert b"".join(chunks) == b"content"
    assert [entry.name for entry in await sandbox.files.list("dir")] == ["file.txt"]
    await sandbox.files.remove("dir")
    assert not await sandbox.files.exists("dir")


# Rules: WATCH-5, WATCH-16, WATCH-21
async def test_watching(sandbox: AsyncSandbox) -> None:
    events: list[FilesystemEvent] = []
    await sandbox.files.make_dir("watched")
    watch = await sandbox.files.watch_dir("watched", on_event=events.append, recursive=True)
    await sandbox.files.write("watched/file", "x")

    async def complete() -> bool:
        return len(events) >= 3

    await async_wait_for("three events", complete)
    assert [(event.name, event.type) for event in events] == [
        ("file", FilesystemEventType.CREATE),
        ("file", FilesystemEventType.CHMOD),
        ("file", FilesystemEventType.WRITE),
    ]
    await watch.stop()


# Rules: PROC-23
async def test_terminal(sandbox: AsyncSandbox) -> None:
    output = bytearray()
    handle = await sandbox.pty.create(PtySize(rows=30, cols=90), on_data=output.extend)
    await sandbox.pty.send_stdin(handle.pid, b"stty size; exit\n")
    assert (await handle.wait()).exit_code == 0
    assert b"30 90" in output


# Rules: PROXY-36
@since("2.29.1", "an error for a sandbox that ends")
async def test_a_killed_sandbox_ends_its_commands_with_a_timeout_error(stack: object) -> None:
    sandbox = await AsyncSandbox.create(timeout=120)
    handle = await sandbox.commands.run("sleep 600", background=True, timeout=0)
    await sandbox.kill()
    with pytest.raises(TimeoutException):
        await asyncio.wait_for(handle.wait(), 30)


async def test_many_sandboxes(stack: object) -> None:
    async def work(number: int) -> str:
        sandbox = await AsyncSandbox.create(timeout=120)
        try:
            return (await sandbox.commands.run(f"echo {number}")).stdout
        finally:
            await sandbox.kill()

    assert await asyncio.gather(*(work(n) for n in range(20))) == [f"{n}\n" for n in range(20)]
