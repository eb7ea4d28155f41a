"""What a call says whose sandbox is killed while it is under way."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import e2b
import httpcore
import httpx
import pytest
import pytest_asyncio
from e2b import AsyncSandbox, PtySize, Sandbox, TimeoutException

from support.sdk import SDK, Version, since
from support.wait import async_wait_for, wait_for

#: What newer releases raise for a sandbox that is gone; it is a TimeoutException.
GONE: type[Exception] = getattr(e2b, "SandboxNotRunningException", TimeoutException)

#: What the HTTP libraries of the SDKs say when a connection ends too early.
BROKEN = (httpx.TransportError, httpcore.NetworkError, httpcore.ProtocolError)

#: Before 2.29.1 a call that had been answered in part passed that on.
CUT_OFF = (GONE,) if Version("2.29.1") <= SDK else (TimeoutException, *BROKEN)

#: So does every release for a download that the caller takes piece by piece.
streamed_download = since("2.29.1", "downloads that are not read whole first")

#: How soon a call has to notice.
SECONDS = 30

#: Larger than all buffers between the SDK and the sandbox's disk.
LARGE = 256 << 20

#: So large that nobody gets it all before something happens to it. It has no blocks on the disk.
ENDLESS = 8 << 30

Call = Callable[[], Any]
Ready = Callable[[], Any]


def process_runs(sandbox: Sandbox, command: str) -> bool:
    return any(command in process.args for process in sandbox.commands.list())


def foreground(sandbox: Sandbox) -> tuple[Call, Ready]:
    return (
        lambda: sandbox.commands.run("sleep 600", timeout=0),
        lambda: process_runs(sandbox, "sleep 600"),
    )


def background(sandbox: Sandbox) -> tuple[Call, Ready]:
    return sandbox.commands.run("sleep 600", background=True, timeout=0).wait, lambda: True


def amid_output(sandbox: Sandbox) -> tuple[Call, Ready]:
    seen = threading.Event()
    handle = sandbox.commands.run("yes", background=True, timeout=0)
    return lambda: handle.wait(on_stdout=lambda _: seen.set()), seen.is_set


def connected(sandbox: Sandbox) -> tuple[Call, Ready]:
    handle = sandbox.commands.run("sleep 600", background=True, timeout=0)
    handle.disconnect()
    return sandbox.commands.connect(handle.pid, timeout=0).wait, lambda: True


def terminal(sandbox: Sandbox) -> tuple[Call, Ready]:
    return sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0).wait, lambda: True


def download(sandbox: Sandbox) -> tuple[Call, Ready]:
    sandbox.commands.run(f"truncate -s {ENDLESS} large")
    before = own_memory()
    return (
        lambda: sandbox.files.read("large", format="bytes"),
        # The part that has arrived.
        lambda: own_memory() > before + (32 << 20),
    )


def own_memory() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def upload(sandbox: Sandbox) -> tuple[Call, Ready]:
    return (
        lambda: sandbox.files.write("large", bytes(LARGE)),
        lambda: sandbox.files.exists("large"),
    )


def blocked_input(sandbox: Sandbox) -> tuple[Call, Ready]:
    handle = sandbox.commands.run("exec sleep 600", background=True, stdin=True, timeout=0)
    # Nobody reads it: it waits in the sandbox.
    data = "x" * (1 << 20)
    started = threading.Event()

    def send() -> None:
        started.set()
        sandbox.commands.send_stdin(handle.pid, data, request_timeout=0)

    return send, started.is_set


#: Calls that are under way when the sandbox goes.
IN_FLIGHT = [
    foreground,
    background,
    amid_output,
    connected,
    terminal,
    download,
    upload,
    blocked_input,
]


# Rules: PROXY-33, PROXY-35, PROXY-36, PROXY-37, PROXY-40, TRAP-2
@pytest.mark.parametrize("begin", IN_FLIGHT, ids=lambda begin: begin.__name__)
def test_a_call_under_way_is_cut_off(
    create: Callable[..., Sandbox], begin: Callable[[Sandbox], tuple[Call, Ready]]
) -> None:
    sandbox = create()
    call, ready = begin(sandbox)
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(call)
        wait_for("the call to be under way", ready)
        assert not outcome.done()
        assert sandbox.kill() is True
        assert sandbox.is_running() is False
        error = outcome.exception(SECONDS)
    assert isinstance(error, CUT_OFF), repr(error)


# Rules: PROXY-33, PROXY-37, TRAP-2
@streamed_download
def test_a_download_taken_piece_by_piece_never_looks_complete(
    create: Callable[..., Sandbox],
) -> None:
    sandbox = create()
    sandbox.commands.run(f"truncate -s {ENDLESS} large")
    chunks = sandbox.files.read("large", format="stream")
    assert next(chunks)
    sandbox.kill()
    with pytest.raises((GONE, *BROKEN)):
        for _ in chunks:
            pass


def repeated_polls(sandbox: Sandbox) -> Call:
    sandbox.files.make_dir("watched")
    return sandbox.files.watch_dir("watched").get_new_events


def repeated_input(sandbox: Sandbox) -> Call:
    handle = sandbox.commands.run("cat", background=True, stdin=True, timeout=0)
    return lambda: sandbox.commands.send_stdin(handle.pid, "x")


def repeated_runs(sandbox: Sandbox) -> Call:
    return lambda: sandbox.commands.run("true")


#: Calls that are made again and again.
REPEATED: dict[str, Callable[[Sandbox], Call]] = {
    "files.list": lambda sandbox: lambda: sandbox.files.list("/"),
    "files.read": lambda sandbox: lambda: sandbox.files.read("/etc/hostname"),
    "files.write": lambda sandbox: lambda: sandbox.files.write("small", "x"),
    "commands.list": lambda sandbox: sandbox.commands.list,
    "commands.run": repeated_runs,
    "send_stdin": repeated_input,
    "get_new_events": repeated_polls,
}


# Rules: PROXY-35, PROXY-37, PROXY-40, PROXY-17, TRAP-3
@pytest.mark.parametrize("name", REPEATED)
def test_calls_again_and_again_end_with_the_sandbox(
    create: Callable[..., Sandbox], name: str
) -> None:
    sandbox = create()
    call = REPEATED[name](sandbox)
    worked = threading.Event()

    def forever() -> None:
        while True:
            call()
            worked.set()

    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(forever)
        assert worked.wait(SECONDS)
        assert sandbox.kill() is True
        assert sandbox.is_running() is False
        error = outcome.exception(SECONDS)
    # Which of them the end met, or whether it fell between two, is chance.
    assert isinstance(error, CUT_OFF), repr(error)
    with pytest.raises(GONE):
        call()


@pytest_asyncio.fixture
async def sandbox(stack: object) -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create(timeout=300)
    yield made
    await made.kill()


async def async_foreground(sandbox: AsyncSandbox) -> Awaitable[Any]:
    running = asyncio.ensure_future(sandbox.commands.run("sleep 600", timeout=0))

    async def listed() -> bool:
        return any("sleep 600" in process.args for process in await sandbox.commands.list())

    await async_wait_for("the command to run", listed)
    return running


async def async_background(sandbox: AsyncSandbox) -> Awaitable[Any]:
    return (await sandbox.commands.run("sleep 600", background=True, timeout=0)).wait()


async def async_connected(sandbox: AsyncSandbox) -> Awaitable[Any]:
    handle = await sandbox.commands.run("sleep 600", background=True, timeout=0)
    await handle.disconnect()
    return (await sandbox.commands.connect(handle.pid, timeout=0)).wait()


async def async_terminal(sandbox: AsyncSandbox) -> Awaitable[Any]:
    size = PtySize(rows=24, cols=80)
    return (await sandbox.pty.create(size, on_data=lambda _: None, timeout=0)).wait()


async def async_upload(sandbox: AsyncSandbox) -> Awaitable[Any]:
    writing = asyncio.ensure_future(sandbox.files.write("large", bytes(LARGE)))

    async def begun() -> bool:
        return await sandbox.files.exists("large")

    await async_wait_for("the upload to begin", begun)
    return writing


async def async_watch(sandbox: AsyncSandbox) -> Awaitable[Any]:
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def on_exit(error: Exception) -> None:
        ended.set_exception(error)

    await sandbox.files.watch_dir("/tmp", on_event=lambda _: None, on_exit=on_exit, timeout=0)
    return ended


async def async_list(sandbox: AsyncSandbox) -> Awaitable[Any]:
    async def forever() -> None:
        while True:
            await sandbox.files.list("/")

    return forever()


# Rules: PROXY-33, PROXY-35, PROXY-36, PROXY-37, PROXY-40, TRAP-2
@pytest.mark.parametrize(
    "begin",
    [
        async_foreground,
        async_background,
        async_connected,
        async_terminal,
        async_upload,
        async_watch,
        async_list,
    ],
    ids=lambda begin: begin.__name__,
)
async def test_an_asynchronous_call_under_way_is_cut_off(
    sandbox: AsyncSandbox, begin: Callable[[AsyncSandbox], Awaitable[Awaitable[Any]]]
) -> None:
    outcome = asyncio.ensure_future(await begin(sandbox))
    assert await sandbox.kill() is True
    assert await sandbox.is_running() is False
    with pytest.raises(CUT_OFF):
        await asyncio.wait_for(outcome, SECONDS)


# Rules: PROXY-33, PROXY-37, TRAP-2
@streamed_download
async def test_an_asynchronous_download_never_looks_complete(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run(f"truncate -s {ENDLESS} large")
    chunks = (await sandbox.files.read("large", format="stream")).__aiter__()
    assert await chunks.__anext__()
    await sandbox.kill()
    with pytest.raises((GONE, *BROKEN)):
        async for _ in chunks:
            pass


# Rules: PROXY-35, PROXY-40, PROXY-17, TRAP-3
async def test_asynchronous_calls_to_a_killed_sandbox(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run("cat", background=True, stdin=True, timeout=0)
    await sandbox.kill()
    assert await sandbox.is_running() is False
    for call in [
        lambda: sandbox.commands.list(),
        lambda: sandbox.commands.run("true"),
        lambda: sandbox.commands.connect(handle.pid),
        lambda: sandbox.commands.send_stdin(handle.pid, "x"),
        lambda: sandbox.files.list("/"),
        lambda: sandbox.files.read("/etc/hostname"),
        lambda: sandbox.files.write("small", "x"),
        lambda: sandbox.files.watch_dir("/tmp", on_event=lambda _: None),
        lambda: sandbox.pty.create(PtySize(rows=24, cols=80), on_data=lambda _: None),
    ]:
        with pytest.raises(GONE):
            await call()
