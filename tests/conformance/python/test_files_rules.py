"""Files, rule by rule: what `test_files.py` leaves out."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote, urlsplit

import httpx
import pytest
import pytest_asyncio
from e2b import (
    AsyncSandbox,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
)
from e2b.sandbox_sync.filesystem.filesystem import Filesystem

from support import host, routing
from support.sdk import takes
from support.wait import wait_for

MIB = 1 << 20

streams_uploads = takes(Filesystem.write, "use_octet_stream")


@pytest_asyncio.fixture
async def asynchronous(stack: object) -> AsyncIterator[AsyncSandbox]:
    """A sandbox by the other SDK."""
    sandbox = await AsyncSandbox.create(timeout=300)
    yield sandbox
    await sandbox.kill()


@pytest.fixture
def envd(shared: Sandbox) -> Iterator[httpx.Client]:
    """Plain HTTP to the shared sandbox's envd, through the proxy, with its token."""
    with routing.client(shared.sandbox_id, 49983) as client:
        client.headers["X-Access-Token"] = token(shared)
        yield client


def token(sandbox: Sandbox) -> str:
    value = sandbox._envd_access_token
    assert value
    return value


NAMES = [
    "two\nlines",
    "return\rcarriage",
    "-rf",
    "%2F",
    "%22%0A",
    "a+b",
    "semi;colon&amp;",
    '"quoted"',
    "'single'",
    "$(id) `id`",
    "\u202eright to left",
    "e\u0301 is not é",
    " blanks ",
    "…",
    "n" * 255,
]


# Rules: PUT-27, GET-18, STAT-11, LIST-5, DIR-8
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_survive_every_call(shared: Sandbox, name: str) -> None:
    path = f"/home/user/strange/{name}"
    assert shared.files.write(path, "content").path == path
    assert shared.files.read(path) == "content"
    assert shared.files.get_info(path).name == name
    assert path in [entry.path for entry in shared.files.list("strange")]
    moved = "/home/user/strange/moved"
    shared.files.rename(path, moved)
    assert not shared.files.exists(path)
    assert shared.files.rename(moved, path).name == name
    shared.files.remove(path)
    assert shared.files.list("strange") == []


# Rules: PUT-27
async def test_names_survive_the_asynchronous_sdk(asynchronous: AsyncSandbox) -> None:
    async def round_trip(number: int, name: str) -> None:
        path = f"/tmp/async-{number}/{name}"
        await asynchronous.files.write(path, name)
        assert await asynchronous.files.read(path) == name
        assert (await asynchronous.files.get_info(path)).name == name

    await asyncio.gather(*(round_trip(*pair) for pair in enumerate(NAMES)))


# Rules: PUT-4, TRAP-15
def test_file_names_of_a_form_are_paths_and_not_decoded(envd: httpx.Client) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="forms/d/a%22b%2Fc"\r\n\r\n'
        b"content\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = envd.post("/files", content=body, headers=headers)
    path = "/home/user/forms/d/a%22b%2Fc"
    assert answer.json() == [{"path": path, "name": "a%22b%2Fc", "type": "file"}]
    assert envd.get("/files", params={"path": path}).text == "content"


# Rules: PUT-8, PUT-24, TRAP-15
def test_hundreds_of_files_at_once(shared: Sandbox) -> None:
    files = [{"path": f"/tmp/many/{n % 10}/{n}.txt", "data": f"content {n}"} for n in range(500)]
    written = shared.files.write_files(files)
    assert [info.path for info in written] == [file["path"] for file in files]
    assert len(shared.files.list("/tmp/many", depth=2)) == 510
    assert shared.files.read("/tmp/many/7/497.txt") == "content 497"


# Rules: PUT-24
async def test_many_uploads_side_by_side(asynchronous: AsyncSandbox) -> None:
    contents = {f"/tmp/beside/{n}": os.urandom(100_000 + n) for n in range(30)}
    await asyncio.gather(*(asynchronous.files.write(p, c) for p, c in contents.items()))
    read = await asyncio.gather(*(asynchronous.files.read(p, format="bytes") for p in contents))
    assert [bytes(content) for content in read] == list(contents.values())


# Rules: PUT-2, PUT-24
@takes(Filesystem.write, "gzip")
def test_gzip_both_ways(shared: Sandbox) -> None:
    for content in (b"", b"x", bytes(range(256)) * 40_000, os.urandom(MIB)):
        shared.files.write("packed", content, gzip=True)
        assert shared.files.get_info("packed").size == len(content)
        assert bytes(shared.files.read("packed", format="bytes", gzip=True)) == content
        assert b"".join(shared.files.read("packed", format="stream", gzip=True)) == content


# Rules: PUT-24
@streams_uploads
@pytest.mark.parametrize("raw", [True, False])
def test_raw_and_as_a_form(shared: Sandbox, raw: bool) -> None:
    for data, content in (
        ("grüße", b"gr\xc3\xbc\xc3\x9fe"),
        (b"\x00\xff", b"\x00\xff"),
        (io.BytesIO(b"stream"), b"stream"),
        (io.StringIO("text stream"), b"text stream"),
    ):
        info = shared.files.write("either-way", data, use_octet_stream=raw)
        assert info.path == "/home/user/either-way"
        assert bytes(shared.files.read("either-way", format="bytes")) == content


# Rules: PUT-2, PUT-7, PUT-15, PUT-26
def test_uploads_that_make_no_sense(envd: httpx.Client) -> None:
    raw = {"Content-Type": "application/octet-stream"}
    for params, headers, status, message in (
        ({"path": "x"}, raw | {"Content-Encoding": "br"}, 400, "Content-Encoding"),
        ({"path": "x"}, {"Content-Type": "text/plain"}, 400, "unsupported content type"),
        ({}, raw, 400, "path query parameter is required for raw body upload"),
        ({"path": "/tmp"}, raw, 400, "path is a directory: /tmp"),
        ({"path": "~root/x"}, raw, 400, "cannot expand user-specific home dir"),
        ({"path": "x", "username": "nobody-here"}, raw, 401, "error looking up user"),
    ):
        answer = envd.post("/files", params=params, headers=headers, content=b"x")
        assert answer.status_code == status, answer.text
        assert answer.json()["code"] == status
        assert message in answer.json()["message"]


# Rules: GET-8, GET-11, GET-12, GET-13, GET-14
def test_ranges_and_conditions_through_the_proxy(shared: Sandbox, envd: httpx.Client) -> None:
    shared.files.write("ranged.txt", "0123456789")

    def get(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return envd.get("/files", params={"path": "ranged.txt"}, headers=named)

    whole = get(Accept_Encoding="identity")
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert whole.headers["Content-Length"] == "10"
    one = get(Range="bytes=2-4")
    assert (one.status_code, one.text) == (206, "234")
    assert one.headers["Content-Range"] == "bytes 2-4/10"
    assert "Content-Encoding" not in one.headers
    several = get(Range="bytes=0-1,-2")
    assert several.status_code == 206
    kind, boundary = several.headers["Content-Type"].split("; boundary=")
    assert kind == "multipart/byteranges"
    parts = several.text.split(f"--{boundary}")
    assert [part.split("\r\n\r\n")[1].strip() for part in parts[1:-1]] == ["01", "89"]
    beyond = get(Range="bytes=10-")
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */10")
    modified = whole.headers["Last-Modified"]
    assert get(If_Modified_Since=modified).status_code == 304
    long_ago = "Sun, 06 Nov 1994 08:49:37 GMT"
    plain = {"Accept_Encoding": "identity"}
    assert get(If_Unmodified_Since=long_ago, **plain).status_code == 412
    assert get(Range="bytes=8-", If_Range=modified).text == "89"
    assert get(Range="bytes=8-", If_Range=long_ago).text == "0123456789"


# Rules: GET-6, GET-7, GET-9, GET-15, TRAP-14
def test_encodings_through_the_proxy(shared: Sandbox, envd: httpx.Client) -> None:
    content = "compress me " * 1000
    shared.files.write("pack me.txt", content)

    def get(path: str, accepted: str) -> httpx.Response:
        return envd.get("/files", params={"path": path}, headers={"Accept-Encoding": accepted})

    for accepted, packed in (
        ("gzip, deflate", True),
        ("gzip;q=0.2, identity;q=0.9", False),
        ("br", False),
        ("identity", False),
    ):
        answer = get("pack me.txt", accepted)
        assert answer.text == content
        assert answer.headers.get("Content-Encoding") == ("gzip" if packed else None), accepted
        assert ("Content-Length" in answer.headers) != packed
        assert answer.headers["Vary"] == "Accept-Encoding"
        assert answer.headers["Content-Disposition"] == 'inline; filename="pack me.txt"'
    assert get("pack me.txt", "identity;q=0, gzip;q=0").status_code == 406
    shared.files.write("empty", b"")
    assert get("empty", "gzip, deflate").headers["Content-Length"] == "0"


# Rules: GET-17
def test_files_of_the_kernel(shared: Sandbox) -> None:
    assert shared.files.read("/proc/version") == shared.commands.run("cat /proc/version").stdout
    assert shared.files.read("/proc/1/comm") == "envd\n"


# Rules: PATH-7, GET-16
def test_files_that_the_user_may_not_touch(shared: Sandbox) -> None:
    shared.commands.run("mkdir -m 700 /closed; echo secret > /closed/file", user="root")
    assert shared.files.read("/closed/file") == "secret\n"
    shared.files.write("/closed/mine", "x")
    assert shared.files.get_info("/closed/mine").owner == "user"
    assert shared.files.get_info("/closed").owner == "root"


# Rules: STAT-5, STAT-6, STAT-7, STAT-8, STAT-11, TRAP-28
def test_what_is_listed_and_what_only_exists(shared: Sandbox) -> None:
    shared.commands.run(
        "mkdir odd; cd odd; echo x > file; ln -s file link; ln -s . dir; ln -s nowhere broken; "
        "ln -s cycle cycle; mkfifo fifo; chmod 600 file"
    )
    listed = {entry.name: entry.type for entry in shared.files.list("odd")}
    # Older SDKs do not tell links from what they lead to.
    link = FileType.SYMLINK if hasattr(FileType, "SYMLINK") else None
    assert listed == {
        "dir": link or FileType.DIR,
        "file": FileType.FILE,
        "link": link or FileType.FILE,
    }
    for name in ("broken", "cycle", "fifo"):
        assert shared.files.exists(f"odd/{name}"), name
    info = shared.files.get_info("odd/link")
    assert (info.mode, info.size, info.permissions) == (0o600, 4, "Lrwxrwxrwx")
    assert info.symlink_target == "/home/user/odd/file"
    broken = shared.files.get_info("odd/broken")
    assert (broken.mode, broken.symlink_target) == (0, "/home/user/odd/broken")


# Rules: PUT-10, PUT-11, PUT-12, TRAP-30
@takes(Filesystem.write, "metadata")
def test_the_limits_of_metadata(shared: Sandbox) -> None:
    longest = "k" * 246
    shared.files.write("limits", "x", metadata={longest: "v" * (4096 - 9 - 246)})
    assert list(shared.files.get_info("limits").metadata or {}) == [longest]
    for metadata in (
        {"k" * 247: "v"},
        {"k": "v" * (4096 - 9)},
        {"a": "v" * 2048, "b": "v" * 2048},
        {"k": "grüße"},
        {"k": "two\nlines"},
    ):
        with pytest.raises((InvalidArgumentException, UnicodeEncodeError, httpx.HTTPError)):
            shared.files.write("limits", "y", metadata=metadata)
    assert shared.files.read("limits") == "x"


# Rules: PUT-9, PUT-10, STAT-9
@takes(Filesystem.write, "metadata")
def test_metadata_of_many_files(shared: Sandbox) -> None:
    files = [{"path": f"tags/{n}", "data": "x"} for n in range(3)]
    written = shared.files.write_files(files, metadata={"Batch": "7"})
    assert [info.metadata for info in written] == [{"batch": "7"}] * 3
    assert [entry.metadata for entry in shared.files.list("tags")] == [{"batch": "7"}] * 3
    shared.commands.run("cd tags; mv 0 moved; ln -s 1 link; cp 2 copy")
    tagged = {entry.name: entry.metadata for entry in shared.files.list("tags")}
    assert tagged["moved"] == tagged["link"] == {"batch": "7"}
    assert tagged["copy"] is None


# Rules: COMPOSE-1, COMPOSE-3, COMPOSE-5
def test_parts_become_one_file(shared: Sandbox, envd: httpx.Client) -> None:
    parts = [os.urandom(MIB), b"", os.urandom(70_001)]
    for number, part in enumerate(parts):
        shared.files.write(f"part-{number}", part)
    sources = [f"part-{n}" for n in range(3)]
    request = {"source_paths": sources, "destination": "composed/whole"}
    with routing.client(shared.sandbox_id, 49983) as stranger:
        assert stranger.post("/files/compose", json=request).status_code == 401
    answer = envd.post("/files/compose", json=request)
    assert answer.json()["path"] == "/home/user/composed/whole"
    assert bytes(shared.files.read("composed/whole", format="bytes")) == b"".join(parts)
    assert not shared.files.exists("part-0")
    again = envd.post("/files/compose", json=request)
    assert again.status_code == 404
    assert again.json()["message"].startswith("source file not found: ")


# Rules: LIST-10, TRAP-29
def test_a_list_of_many_thousands(shared: Sandbox) -> None:
    shared.commands.run("mkdir /tmp/long && cd /tmp/long && seq -w 20000 | xargs touch")
    names = [entry.name for entry in shared.files.list("/tmp/long")]
    assert names == [f"{n:05}" for n in range(1, 20001)]


# Rules: DIR-2, DIR-5, DIR-6, DIR-9, DIR-10
def test_what_is_in_the_way(shared: Sandbox) -> None:
    shared.commands.run(
        "mkdir -p way/full/sub way/dir/sub way/empty; cd way; touch file; ln -s full to"
    )
    with pytest.raises(InvalidArgumentException):
        shared.files.make_dir("way/file")
    for destination in ("way/full", "way/file", "/dev/shm/elsewhere"):
        with pytest.raises(Exception, match="error renaming"):
            shared.files.rename("way/dir", destination)
    shared.files.rename("way/dir", "way/empty")
    assert shared.files.exists("way/empty/sub")
    shared.files.remove("/home/user/way/to/")
    assert shared.files.exists("way/full/sub")
    assert not shared.files.exists("way/to")


def signed(sandbox: Sandbox, url: str, content: bytes | None = None) -> httpx.Response:
    """Follows a signed link, without a token, by the sandbox's name."""
    parts = urlsplit(url)
    with routing.client(sandbox.sandbox_id, 49983) as client:
        target = f"{parts.path}?{parts.query}"
        if content is None:
            return client.get(target)
        return client.post(target, files={"file": ("ignored.txt", content)})


# Rules: GET-1, GET-18, PUT-4, TRAP-6
def test_signed_links(shared: Sandbox) -> None:
    for path in ("signed a&b ü+%.txt", "/tmp/signed", "~/signed"):
        assert signed(shared, shared.upload_url(path), b"by link").status_code == 200
        assert shared.files.read(path) == "by link"
        assert signed(shared, shared.download_url(path)).text == "by link"
        ending = shared.download_url(path, use_signature_expiration=60)
        assert signed(shared, ending).text == "by link"
    as_root = shared.upload_url("signed-root", user="root", use_signature_expiration=60)
    assert signed(shared, as_root, b"root's").status_code == 200
    assert shared.files.get_info("/root/signed-root").owner == "root"


# Rules: GET-1, TRAP-6
def test_links_that_allow_nothing(shared: Sandbox) -> None:
    shared.files.write("signed", "x")
    good = shared.download_url("signed", use_signature_expiration=60)
    expired = shared.download_url("signed", use_signature_expiration=-60)
    for url, message in (
        (expired, "signature is already expired"),
        (shared.upload_url("signed"), "invalid signature"),
        (good.replace("path=signed", "path=%2Fetc%2Fpasswd"), "invalid signature"),
        (good.replace("expiration=1", "expiration=2"), "invalid signature"),
        (good.split("&signature_expiration")[0], "invalid signature"),
        (good + "&username=root", "invalid signature"),
        (good.split("&signature=")[0], "missing signature query parameter"),
    ):
        answer = signed(shared, url)
        assert answer.json() == {"code": 401, "message": message}, url
    answer = signed(shared, shared.download_url("signed"), b"overwritten")
    assert answer.status_code == 401
    assert shared.files.read("signed") == "x"


def is_open(sandbox: Sandbox, name: str) -> bool:
    """Whether envd has a file of that name open."""
    opened = host.open_files(host.envd_of(sandbox))
    return any(path.endswith(f"/{name}") for path in opened)


def upload_head(sandbox: Sandbox, path: str, length: int) -> socket.socket:
    """A connection on which an upload has begun."""
    connection = socket.create_connection(routing.proxy_address(), timeout=20)
    connection.sendall(
        f"POST /files?path={quote(path)} HTTP/1.1\r\n"
        f"Host: {routing.host(sandbox.sandbox_id, 49983)}\r\n"
        f"X-Access-Token: {token(sandbox)}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Content-Length: {length}\r\n\r\n".encode()
    )
    return connection


# Rules: PUT-21, PUT-23, TRAP-44
def test_a_client_that_goes_away_half_way(shared: Sandbox) -> None:
    shared.files.write("half", "an older content that goes at once")
    with upload_head(shared, "half", 10 * MIB) as connection:
        connection.sendall(b"x" * (5 * MIB))
        wait_for("some of it", lambda: shared.files.get_info("half").size >= MIB)
        assert is_open(shared, "half")
        # Slow is not gone: what comes late is taken.
        time.sleep(1)
        connection.sendall(b"x" * MIB)
        wait_for("more of it", lambda: shared.files.get_info("half").size > 5 * MIB)
    size = shared.files.get_info("half").size
    assert size <= 6 * MIB
    wait_for("envd to close the file", lambda: not is_open(shared, "half"))
    assert set(shared.files.read("half")) == {"x"}
    shared.files.write("half", "whole")
    assert shared.files.read("half") == "whole"


# Rules: GET-20
def test_a_reader_that_goes_away_half_way(shared: Sandbox) -> None:
    shared.commands.run("truncate -s 1G sparse")
    for _ in range(5):
        with routing.client(shared.sandbox_id, 49983) as client:
            headers = {"X-Access-Token": token(shared), "Accept-Encoding": "identity"}
            with client.stream("GET", "/files?path=sparse", headers=headers) as answer:
                content = answer.iter_bytes()
                assert next(content)
                assert is_open(shared, "sparse")
    wait_for("envd to close the file", lambda: not is_open(shared, "sparse"))
    shared.files.remove("sparse")


# Rules: STAT-11, LIST-7, GET-4, DIR-7, TRAP-12
async def test_what_is_missing_by_the_asynchronous_sdk(asynchronous: AsyncSandbox) -> None:
    files = asynchronous.files
    assert not await files.exists("missing")
    for call in (files.read, files.get_info, files.list):
        with pytest.raises(NotFoundException):
            await call("missing")
    with pytest.raises(NotFoundException):
        await files.rename("missing", "elsewhere")
    await files.remove("missing")
    assert await files.make_dir("made") is True
    assert await files.make_dir("made") is False
