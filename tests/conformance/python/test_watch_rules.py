"""Watching directories, rule by rule: by polling (the synchronous SDK) and by streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from e2b import (
    AsyncSandbox,
    FilesystemEvent,
    FilesystemEventType,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    TimeoutException,
)
from e2b.sandbox_sync.filesystem.filesystem import Filesystem

from support import host
from support.sdk import since, takes
from support.wait import async_wait_for

CREATE, WRITE, REMOVE, RENAME, CHMOD = (
    FilesystemEventType.CREATE,
    FilesystemEventType.WRITE,
    FilesystemEventType.REMOVE,
    FilesystemEventType.RENAME,
    FilesystemEventType.CHMOD,
)

Brief = list[tuple[FilesystemEventType, str]]


def brief(events: list[FilesystemEvent]) -> Brief:
    return [(event.type, event.name) for event in events]


def once(events: Brief) -> Brief:
    """Without what is there twice in a row: truncation and write are two events or one."""
    return [event for n, event in enumerate(events) if n == 0 or events[n - 1] != event]


@pytest_asyncio.fixture
async def sandbox(stack: object) -> AsyncIterator[AsyncSandbox]:
    made = await AsyncSandbox.create(timeout=300)
    yield made
    await made.kill()


# Rules: WATCH-13, WATCH-16, TRAP-38
@pytest.mark.parametrize("recursive", [False, True])
def test_each_poll_gives_exactly_what_was_done(shared: Sandbox, recursive: bool) -> None:
    top = f"exact-{recursive}"
    shared.files.make_dir(top)
    watch = shared.files.watch_dir(top, recursive=recursive)
    assert watch.get_new_events() == []
    for name in ("a", "b"):
        shared.files.write(f"{top}/{name}", "content")
        created = [(CREATE, name), (CHMOD, name), (WRITE, name)]
        assert brief(watch.get_new_events()) == created
        shared.files.write(f"{top}/{name}", "other content")
        assert once(brief(watch.get_new_events())) == [(CHMOD, name), (WRITE, name)]
        assert watch.get_new_events() == []
    shared.files.write(f"{top}/empty", "")
    assert brief(watch.get_new_events()) == [(CREATE, "empty"), (CHMOD, "empty")]
    shared.files.write_files([{"path": f"{top}/{n}", "data": "x"} for n in range(5)])
    expected = [(kind, str(n)) for n in range(5) for kind in (CREATE, CHMOD, WRITE)]
    assert brief(watch.get_new_events()) == expected
    watch.stop()


# Rules: WATCH-6, WATCH-7, WATCH-9, WATCH-13
def test_commands_are_seen_in_their_order(shared: Sandbox) -> None:
    shared.files.write("order/old", "x")
    watch = shared.files.watch_dir("order")
    shared.commands.run("cat old; ls -la; head -c 1 old", cwd="order")
    assert watch.get_new_events() == []
    shared.commands.run(
        "chmod 600 old; mv old new; echo more >> new; mkdir dir; rmdir dir; rm new; ln -s x link",
        cwd="order",
    )
    assert brief(watch.get_new_events()) == [
        (CHMOD, "old"),
        (RENAME, "old"),
        (CREATE, "new"),
        (WRITE, "new"),
        (CREATE, "dir"),
        (REMOVE, "dir"),
        (REMOVE, "new"),
        (CREATE, "link"),
    ]
    watch.stop()


# Rules: WATCH-8, WATCH-9, WATCH-10, TRAP-37
def test_a_recursive_watch_follows_the_tree(shared: Sandbox) -> None:
    shared.commands.run("mkdir -p tree/sub elsewhere/in/deep; echo x > elsewhere/in/deep/file")
    watch = shared.files.watch_dir("tree", recursive=True)
    shared.commands.run("mv sub moved; echo x > moved/file", cwd="tree")
    assert brief(watch.get_new_events()) == [
        (RENAME, "sub"),
        (CREATE, "moved"),
        (CREATE, "moved/file"),
        (WRITE, "moved/file"),
    ]
    shared.commands.run("mv ../elsewhere/in .", cwd="tree")
    assert brief(watch.get_new_events()) == [(CREATE, "in")]
    shared.commands.run("echo y >> in/deep/file; mv moved ..; touch ../moved/unseen", cwd="tree")
    assert brief(watch.get_new_events()) == [(WRITE, "in/deep/file"), (RENAME, "moved")]
    shared.files.write("tree/a/b/c/d", "x")
    seen = brief(watch.get_new_events())
    for name in ("a", "a/b", "a/b/c", "a/b/c/d"):
        assert seen.count((CREATE, name)) == 1, seen
    assert seen[0] == (CREATE, "a") and (WRITE, "a/b/c/d") in seen
    shared.files.remove("tree/a")
    gone = [(REMOVE, name) for name in ("a/b/c/d", "a/b/c", "a/b", "a")]
    assert brief(watch.get_new_events()) == gone
    watch.stop()


# Rules: WATCH-8, WATCH-18, TRAP-37
def test_the_end_of_the_watched_directory(shared: Sandbox) -> None:
    shared.files.make_dir("ending")
    watch = shared.files.watch_dir("ending")
    shared.files.remove("ending")
    assert brief(watch.get_new_events()) == [(REMOVE, ".")]
    assert watch.get_new_events() == []
    watch.stop()


# Rules: WATCH-11
@takes(Filesystem.watch_dir, "include_entry")
def test_entries_by_polling(shared: Sandbox) -> None:
    shared.files.make_dir("entries")
    watch = shared.files.watch_dir("entries", include_entry=True)
    shared.files.write("entries/kept", "four")
    events = watch.get_new_events()
    assert brief(events) == [(CREATE, "kept"), (CHMOD, "kept"), (WRITE, "kept")]
    # Each as it was when envd looked, which is soon and not at once.
    assert all(event.entry and event.entry.path.endswith("/entries/kept") for event in events)
    last = events[-1].entry
    assert last and (last.size, last.owner) == (4, "user")
    shared.files.rename("entries/kept", "entries/moved")
    shared.files.remove("entries/moved")
    events = watch.get_new_events()
    assert brief(events) == [(RENAME, "kept"), (CREATE, "moved"), (REMOVE, "moved")]
    assert events[0].entry is events[2].entry is None
    watch.stop()


# Rules: WATCH-14
def test_a_stopped_watch_is_gone(shared: Sandbox) -> None:
    shared.files.make_dir("stopped")
    watch = shared.files.watch_dir("stopped")
    watch.stop()
    with pytest.raises(Exception, match=r"not found|stopped"):
        watch.get_new_events()


# Rules: WATCH-20, TRAP-37
def test_forgotten_watches_do_not_pile_up(create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=120)
    watches = []

    def forget() -> None:
        while len(watches) < 500:
            watches.append(sandbox.files.watch_dir("/tmp"))

    with pytest.raises(Exception, match="too many watchers"):
        forget()
    watches.pop().stop()
    sandbox.files.watch_dir("/tmp")


# Rules: WATCH-12, WATCH-15, TRAP-39
def test_a_watch_that_lost_events_says_so(shared: Sandbox) -> None:
    shared.files.make_dir("flood")
    watch = shared.files.watch_dir("flood")
    # More than is kept for a client that does not poll.
    script = """
import os
for n in range(40_000):
    os.close(os.open(str(n % 7), os.O_CREAT))
    os.remove(str(n % 7))
"""
    shared.commands.run(f"python3 -c '{script}'", cwd="flood", timeout=60)
    for _ in range(2):
        with pytest.raises(Exception, match="watcher error: event queue overflow"):
            watch.get_new_events()
    watch.stop()


# Rules: WATCH-3, WATCH-4
@takes(Filesystem.watch_dir, "allow_network_mounts")
def test_network_mounts_may_be_asked_for(shared: Sandbox) -> None:
    watch = shared.files.watch_dir("/tmp", allow_network_mounts=True)
    shared.files.write("/tmp/local-file", "x")
    assert (CREATE, "local-file") in brief(watch.get_new_events())
    watch.stop()


# Rules: WATCH-5, WATCH-6, WATCH-21
async def test_a_stream_calls_back_in_order(sandbox: AsyncSandbox) -> None:
    events: list[FilesystemEvent] = []
    ends: list[Exception | None] = []
    await sandbox.files.make_dir("streamed")
    watch = await sandbox.files.watch_dir(
        "streamed", on_event=events.append, on_exit=ends.append, recursive=True, timeout=0
    )
    await sandbox.commands.run("mkdir sub", cwd="streamed")

    async def has_begun() -> bool:
        return bool(events)

    # By then it is watched, too.
    await async_wait_for("the directory", has_begun)
    script = "for i in $(seq 300); do echo $i > sub/$i; mv sub/$i $i; rm $i; done"
    await sandbox.commands.run(script, cwd="streamed")

    async def complete() -> bool:
        return (events[-1].type, events[-1].name) == (REMOVE, "300")

    await async_wait_for("the last event", complete)
    seen = once(brief(events))
    assert seen[0] == (CREATE, "sub")
    for number in range(1, 301):
        about = [event for event in seen if event[1] in (f"sub/{number}", str(number))]
        assert about == [
            (CREATE, f"sub/{number}"),
            (WRITE, f"sub/{number}"),
            (RENAME, f"sub/{number}"),
            (CREATE, str(number)),
            (REMOVE, str(number)),
        ]
    await watch.stop()
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
    before = len(events)
    await sandbox.files.write("streamed/after", "x")
    assert len(events) == before


# Rules: WATCH-11
@takes(Filesystem.watch_dir, "include_entry")
async def test_entries_by_stream(sandbox: AsyncSandbox) -> None:
    events: list[FilesystemEvent] = []
    await sandbox.files.make_dir("entries")
    watch = await sandbox.files.watch_dir("entries", on_event=events.append, include_entry=True)
    await sandbox.files.write("entries/file", "four")

    async def complete() -> bool:
        return len(events) >= 3

    await async_wait_for("three events", complete)
    assert all(event.entry and event.entry.path.endswith("/entries/file") for event in events)
    assert events[-1].entry and events[-1].entry.size == 4
    await sandbox.files.remove("entries/file")

    async def removed() -> bool:
        return events[-1].type == REMOVE

    await async_wait_for("the removal", removed)
    assert events[-1].entry is None
    await watch.stop()


# Rules: WATCH-17, WATCH-21
async def test_a_stream_ends_in_time(sandbox: AsyncSandbox) -> None:
    ends: list[Exception | None] = []
    await sandbox.files.watch_dir("/tmp", on_event=print, on_exit=ends.append, timeout=5)

    async def ended() -> bool:
        return bool(ends)

    await async_wait_for("the end", ended)
    assert len(ends) == 1
    assert isinstance(ends[0], TimeoutException)


# Rules: WATCH-1, WATCH-2
async def test_streams_of_what_cannot_be_watched(sandbox: AsyncSandbox) -> None:
    with pytest.raises(NotFoundException, match="not found"):
        await sandbox.files.watch_dir("/not/there", on_event=print)
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        await sandbox.files.watch_dir("/etc/passwd", on_event=print)


# Rules: WATCH-17
@since("2.25.0", "routing headers after connect")
async def test_streams_go_with_their_clients(shared: Sandbox) -> None:
    envd = host.envd_of(shared)

    def instances() -> int:
        return sum("inotify" in name for name in host.open_files(envd))

    before = instances()
    sandbox = await AsyncSandbox.connect(shared.sandbox_id)
    watches = [await sandbox.files.watch_dir("/tmp", on_event=print) for _ in range(20)]
    assert instances() == before + 20
    for watch in watches:
        with contextlib.suppress(asyncio.CancelledError):
            await watch.stop()

    async def gone() -> bool:
        return instances() == before

    await async_wait_for("the watches to go", gone)
