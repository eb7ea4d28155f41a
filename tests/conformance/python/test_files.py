"""Files with the synchronous SDK."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

import pytest
from e2b import FilesystemEventType, FileType, InvalidArgumentException, NotFoundException, Sandbox

from support.sdk import since
from support.wait import wait_for


def names(sandbox: Sandbox, path: str, depth: int = 1) -> list[str]:
    return [entry.path for entry in sandbox.files.list(path, depth=depth)]


# Rules: GET-18, PUT-24
def test_write_and_read_text(shared: Sandbox) -> None:
    info = shared.files.write("text.txt", "grüße\n")
    assert (info.name, info.path) == ("text.txt", "/home/user/text.txt")
    assert shared.files.read("text.txt") == "grüße\n"
    assert shared.files.read("/home/user/text.txt") == "grüße\n"


# Rules: GET-18, PUT-24
def test_every_byte_survives(shared: Sandbox) -> None:
    content = bytes(range(256)) * 100
    shared.files.write("bytes.bin", content)
    assert bytes(shared.files.read("bytes.bin", format="bytes")) == content


# Rules: GET-18, PUT-24, GATE-3, TRAP-25
def test_streams_both_ways(shared: Sandbox) -> None:
    content = os.urandom(3_000_000)
    shared.files.write("stream.bin", io.BytesIO(content))
    assert b"".join(shared.files.read("stream.bin", format="stream")) == content


def test_fifty_megabytes(shared: Sandbox) -> None:
    content = os.urandom(1_000_000) * 50
    shared.files.write("large.bin", content)
    assert shared.files.get_info("large.bin").size == len(content)
    assert bytes(shared.files.read("large.bin", format="bytes")) == content
    shared.files.remove("large.bin")


# Rules: GET-15
def test_empty_files(shared: Sandbox) -> None:
    shared.files.write("empty", "")
    assert shared.files.read("empty") == ""
    assert bytes(shared.files.read("empty", format="bytes")) == b""
    assert shared.files.get_info("empty").size == 0


# Rules: PUT-27
@pytest.mark.parametrize(
    "name",
    ["ünïcödé 你好 🙂.txt", "with space & = ? # %20.txt", "quote'\"d.txt", "-dash", "a\\b"],
)
def test_unusual_names(shared: Sandbox, name: str) -> None:
    path = f"/home/user/names/{name}"
    shared.files.write(path, name)
    assert shared.files.read(path) == name
    assert path in names(shared, "names")
    assert shared.files.exists(path)
    shared.files.remove(path)
    assert not shared.files.exists(path)


# Rules: PUT-17
def test_overwriting_truncates_and_keeps_the_file(shared: Sandbox) -> None:
    shared.files.write("again.txt", "a long first version")
    shared.commands.run("chmod 600 again.txt; stat -c %i again.txt > inode")
    shared.files.write("again.txt", "short")
    assert shared.files.read("again.txt") == "short"
    assert shared.commands.run("stat -c %a again.txt").stdout == "600\n"
    assert shared.commands.run("stat -c %i again.txt").stdout == shared.files.read("inode")


# Rules: PUT-14, PUT-16, PATH-4, TRAP-7
def test_new_files_belong_to_the_user(shared: Sandbox) -> None:
    shared.files.write("made/on/the/way/file", "x")
    info = shared.files.get_info("made/on/the/way/file")
    assert (info.owner, info.group, info.mode) == ("user", "user", 0o644)
    assert info.permissions == "-rw-r--r--"
    parent = shared.files.get_info("made/on")
    assert (parent.owner, parent.mode, parent.type) == ("user", 0o755, FileType.DIR)


# Rules: PATH-6, PATH-7
def test_another_users_home(shared: Sandbox) -> None:
    shared.files.write("roots.txt", "x", user="root")
    info = shared.files.get_info("/root/roots.txt")
    assert (info.owner, info.path) == ("root", "/root/roots.txt")
    assert shared.files.read("roots.txt", user="root") == "x"


# Rules: PUT-3, PUT-9, PUT-24, TRAP-15
def test_several_at_once(shared: Sandbox) -> None:
    written = shared.files.write_files(
        [
            {"path": "several/one.txt", "data": "one"},
            {"path": "several/deeper/two.bin", "data": b"\x00two"},
            {"path": "/tmp/several-three.txt", "data": io.BytesIO(b"three")},
        ]
    )
    assert [info.path for info in written] == [
        "/home/user/several/one.txt",
        "/home/user/several/deeper/two.bin",
        "/tmp/several-three.txt",
    ]
    assert shared.files.read("several/one.txt") == "one"
    assert bytes(shared.files.read("several/deeper/two.bin", format="bytes")) == b"\x00two"
    assert shared.files.read("/tmp/several-three.txt") == "three"
    assert shared.files.write_files([]) == []


# Rules: GET-4, GET-5, PUT-15, ERR-2
def test_what_cannot_be_read(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException, match="/home/user/not-there"):
        shared.files.read("not-there")
    with pytest.raises(InvalidArgumentException, match="directory"):
        shared.files.read("/home")
    with pytest.raises(InvalidArgumentException, match="directory"):
        shared.files.write("/home", "x")


# Rules: LIST-1, LIST-3, LIST-5
def test_list_depth(shared: Sandbox) -> None:
    shared.files.write("tree/b/c/d.txt", "x")
    shared.files.write("tree/a.txt", "x")
    top = "/home/user/tree"
    assert names(shared, "tree") == [f"{top}/a.txt", f"{top}/b"]
    assert names(shared, "tree", 2) == [f"{top}/a.txt", f"{top}/b", f"{top}/b/c"]
    assert names(shared, "tree", 3)[-1] == f"{top}/b/c/d.txt"
    kinds = [entry.type for entry in shared.files.list("tree")]
    assert kinds == [FileType.FILE, FileType.DIR]


# Rules: LIST-7, LIST-8
def test_what_cannot_be_listed(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.files.list("/not/there")
    shared.files.write("plain", "x")
    with pytest.raises(InvalidArgumentException):
        shared.files.list("plain")


# Rules: STAT-11
def test_exists(shared: Sandbox) -> None:
    assert shared.files.exists("/etc/passwd")
    assert shared.files.exists("/etc")
    assert not shared.files.exists("/etc/no-such-thing")


# Rules: STAT-2, STAT-11
def test_info_of_a_missing_file(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.files.get_info("/etc/no-such-thing")


# Rules: GET-16, STAT-6, STAT-11
def test_symlinks(shared: Sandbox) -> None:
    shared.files.write("links/target", "content")
    shared.commands.run("ln -s target to-file; ln -s . to-dir; ln -s gone broken", cwd="links")
    assert shared.files.read("links/to-file") == "content"
    info = shared.files.get_info("links/to-file")
    assert info.symlink_target == "/home/user/links/target"
    assert shared.files.exists("links/broken")
    listed = names(shared, "links")
    assert "/home/user/links/to-file" in listed


# Rules: DIR-1, DIR-3, RPC-23, TRAP-12
def test_make_dir_says_whether_it_did(shared: Sandbox) -> None:
    assert shared.files.make_dir("dirs/deep/er") is True
    assert shared.files.make_dir("dirs/deep/er") is False
    assert shared.files.get_info("dirs/deep").owner == "user"


# Rules: DIR-4, DIR-5, DIR-7, DIR-8
def test_rename(shared: Sandbox) -> None:
    shared.files.write("old-name", "content")
    info = shared.files.rename("old-name", "new/place")
    assert info.path == "/home/user/new/place"
    assert not shared.files.exists("old-name")
    shared.files.write("other", "over it")
    shared.files.rename("other", "new/place")
    assert shared.files.read("new/place") == "over it"
    with pytest.raises(NotFoundException):
        shared.files.rename("never-was", "x")


def test_rename_of_a_template_directory(shared: Sandbox) -> None:
    shared.files.rename("/opt", "/opt-renamed", user="root")
    assert shared.files.exists("/opt-renamed")
    shared.files.rename("/opt-renamed", "/opt", user="root")


# Rules: DIR-9
def test_remove(shared: Sandbox) -> None:
    shared.files.write("rm/a/b", "x")
    shared.files.remove("rm")
    assert not shared.files.exists("rm")
    shared.files.remove("rm")


# Rules: PUT-10, PUT-12, STAT-9, GATE-3, TRAP-25, TRAP-30
@since("2.29.1", "file metadata")
def test_metadata(shared: Sandbox) -> None:
    shared.files.write("tagged", "x", metadata={"Kind": "test", "other": "a b"})
    assert shared.files.get_info("tagged").metadata == {"kind": "test", "other": "a b"}
    shared.files.write("tagged", "y", metadata={"kind": "again"})
    assert shared.files.get_info("tagged").metadata == {"kind": "again"}
    shared.files.write("tagged", "z")
    assert shared.files.get_info("tagged").metadata is None


# Rules: WATCH-6, WATCH-9, WATCH-16, TRAP-38
def test_watching_a_directory(shared: Sandbox) -> None:
    shared.files.make_dir("watched")
    watch = shared.files.watch_dir("watched")
    shared.files.write("watched/new.txt", "x")
    kinds = [(event.name, event.type) for event in watch.get_new_events()]
    assert kinds == [
        ("new.txt", FilesystemEventType.CREATE),
        ("new.txt", FilesystemEventType.CHMOD),
        ("new.txt", FilesystemEventType.WRITE),
    ]
    assert watch.get_new_events() == []
    shared.files.rename("watched/new.txt", "watched/moved.txt")
    shared.files.remove("watched/moved.txt")
    kinds = [(event.name, event.type) for event in watch.get_new_events()]
    assert ("new.txt", FilesystemEventType.RENAME) in kinds
    assert ("moved.txt", FilesystemEventType.CREATE) in kinds
    assert kinds[-1] == ("moved.txt", FilesystemEventType.REMOVE)
    watch.stop()


# Rules: WATCH-8, WATCH-10, GATE-3
def test_watching_below(shared: Sandbox) -> None:
    shared.files.make_dir("watched-deep/sub")
    watch = shared.files.watch_dir("watched-deep", recursive=True)
    shared.files.write("watched-deep/sub/file", "x")
    seen = [event.name for event in watch.get_new_events()]
    assert set(seen) == {"sub/file"}
    watch.stop()


# Rules: WATCH-10
def test_a_directory_made_later_is_watched_too(shared: Sandbox) -> None:
    shared.files.make_dir("watched-later")
    watch = shared.files.watch_dir("watched-later", recursive=True)
    shared.files.make_dir("watched-later/fresh")
    watch.get_new_events()
    seen: list[str] = []

    def touched() -> bool:
        shared.files.write("watched-later/fresh/file", "x")
        seen.extend(event.name for event in watch.get_new_events())
        return "fresh/file" in seen

    wait_for("events from the new directory", touched)
    watch.stop()


# Rules: WATCH-1, WATCH-2
def test_watching_what_is_not_a_directory(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.files.watch_dir("/not/there")
    with pytest.raises(InvalidArgumentException):
        shared.files.watch_dir("/etc/passwd")


# Rules: WATCH-11, GATE-3, TRAP-25
@since("2.29.1", "include_entry")
def test_watching_with_entries(shared: Sandbox) -> None:
    shared.files.make_dir("watched-entries")
    watch = shared.files.watch_dir("watched-entries", include_entry=True)
    shared.files.write("watched-entries/file", "four")
    events = watch.get_new_events()
    assert events[-1].entry is not None
    assert events[-1].entry.size == 4
    watch.stop()


def test_files_of_a_dead_sandbox(create: Callable[..., Sandbox]) -> None:
    sandbox = create()
    sandbox.kill()
    with pytest.raises(Exception, match=r"not found|timeout|not running|killed"):
        sandbox.files.read("/etc/passwd")
