"""Builds that mean no good: each ends with its reason, and leaves nothing half-built.

What a registry may do wrong is in `test_templates_images.py`.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import BuildException, Sandbox, Template

from support import patient
from support.layers import Layers
from support.sdk import newest
from support.stack import RunningStack, Stack
from support.templates import Builds, Built, Steps, step
from support.wait import equals

pytestmark = newest

Create = Callable[..., Sandbox]


def base() -> Any:
    return Template().from_base_image()


@pytest.fixture(autouse=True)
def nothing_is_left(stack: Stack | RunningStack, build: Builds, create: Create) -> Iterator[None]:
    """After each: no half-built layer, and a build that works."""
    yield
    if isinstance(stack, Stack):
        equals("unfinished layers", Layers(stack.data_dir).unfinished, [], seconds=60)
    built = build(base().run_cmd("echo works > /home/user/after"), skip_cache=True)
    assert create(template=built.name).files.read("after") == "works\n"


# Rules: IMAGE-15
def test_a_step_that_hangs_is_cancelled(build: Builds, api: httpx.Client) -> None:
    built = build.start(base().run_cmd("echo it-hangs; sleep infinity"))
    build.until(built, "[stdout]: it-hangs")
    build.cancel(built)
    status = build.over(built, seconds=30)
    assert (status["status"], status["reason"]["step"]) == ("error", "1")
    assert "cancel" in status["reason"]["message"]
    # It is over, and stays so.
    again = api.delete(f"/atoll/templates/builds/{built.build_id}")
    assert again.status_code in {204, 404, 409}
    assert build.status(built)["reason"] == status["reason"]
    assert (
        api.delete(f"/atoll/templates/builds/{'0' * 8}-0000-4000-8000-{'0' * 12}").status_code
        == 404
    )
    assert api.delete("/atoll/templates/builds/no-uuid").status_code == 400


def test_one_that_waits_is_cancelled(steps: Steps, build: Builds) -> None:
    built = steps.register()
    build.cancel(built)
    assert build.over(built, seconds=30)["status"] == "error"
    assert steps.begin(built, steps=[]).status_code == 400


def test_deleting_its_template_ends_a_build(build: Builds, api: httpx.Client) -> None:
    built = build.start(base().run_cmd("echo it-hangs; sleep infinity"))
    build.until(built, "[stdout]: it-hangs")
    assert build.delete(built.name).status_code == 204
    path = f"/templates/{built.template_id}/builds/{built.build_id}/status"

    def over() -> bool:
        answer = api.get(path)
        return answer.status_code != 200 or answer.json()["status"] == "error"

    equals("the build", over, True, seconds=30)


def test_nobody_else_cancels_it(build: Builds, api: httpx.Client, other_team: str) -> None:
    built = build.start(base().run_cmd("echo it-hangs; sleep infinity"))
    build.until(built, "[stdout]: it-hangs")
    path = f"/atoll/templates/builds/{built.build_id}"
    theirs = api.delete(path, headers={"X-API-Key": other_team})
    assert theirs.status_code in {403, 404}
    assert build.status(built)["status"] == "building"
    build.cancel(built)
    build.over(built)


def test_one_that_fills_the_disk(build: Builds) -> None:
    fill = (
        "fallocate -l 1T big 2>/dev/null || true; for i in $(seq 64); do fallocate -l 1G f$i; done"
    )
    failed = build.fails(base().run_cmd(f"set -e; {fill}"))
    assert failed.step == "1"
    assert "space" in failed.message.lower() or "quota" in failed.message.lower()


def test_one_that_forks_without_end(build: Builds) -> None:
    bomb = "echo it-forks; f() { f | f & }; f; sleep infinity"
    built = build.start(base().run_cmd(bomb))
    build.until(built, "[stdout]: it-forks")
    build.cancel(built)
    assert build.over(built, seconds=60)["status"] == "error"


def test_one_that_takes_all_memory(build: Builds) -> None:
    grow = "python3 -c \"x = bytearray(); [x.extend(b'x' * (64 << 20)) for _ in range(100000)]\""
    failed = build.fails(base().run_cmd(grow), memory_mb=256)
    assert failed.step == "1"
    assert "killed" in failed.message or "memory" in failed.message.lower()


@pytest.mark.parametrize("command", ["kill -9 $$", "kill -9 $PPID $$"], ids=["shell", "parent"])
def test_one_that_kills_its_own_shell(build: Builds, command: str) -> None:
    failed = build.fails(base().run_cmd(command))
    assert failed.step == "1"
    assert "137" in failed.message or "kill" in failed.message


def test_one_that_prints_without_end(build: Builds) -> None:
    built = build.start(base().run_cmd("echo it-prints; yes 'the same line again and again'"))
    build.until(built, "the same line")
    build.cancel(built)
    assert build.over(built, seconds=60)["status"] == "error"


def test_one_that_prints_what_is_no_text(build: Builds) -> None:
    built = build(base().run_cmd("head -c 100000 /dev/urandom; printf '\\0\\033[31mred\\n'"))
    assert built.said("^Build finished")


def test_one_that_leaves_processes_behind(build: Builds, create: Create) -> None:
    left = "(setsid -f sleep 4321; while :; do date > ticks; done) > /dev/null 2>&1 & echo left"
    built = build(base().run_cmd(left).run_cmd("pgrep -x sleep > found || true"))
    sandbox = create(template=built.name)
    assert sandbox.files.read("/home/user/found") == ""


def put(api: httpx.Client, built: Built, content: bytes | Iterator[bytes]) -> tuple[str, Any]:
    """Uploads this as files; the hash they were promised under, and the answer."""
    promised = os.urandom(32).hex()
    url = api.get(f"/templates/{built.template_id}/files/{promised}").json()["url"]
    return promised, patient.put(url, content=content)


def tar(*members: tuple[str, bytes, str]) -> bytes:
    """An archive of (name, kind, target or content)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as out:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(text)
                out.addfile(info, io.BytesIO(text.encode()))
            else:
                info.linkname = text
                out.addfile(info)
    return archive.getvalue()


def copied(
    api: httpx.Client, steps: Steps, build: Builds, content: bytes, source: str = "dir"
) -> tuple[Built, dict[str, Any] | None]:
    """Uploads and copies; the status that the build ends with, none if the upload was refused."""
    built = steps.register()
    promised, answer = put(api, built, content)
    if answer.status_code >= 300:
        assert answer.status_code < 500, answer.text
        # It was not kept.
        link = api.get(f"/templates/{built.template_id}/files/{promised}")
        assert link.json()["present"] is False
        return built, None
    copy = step("COPY", source, "/home/user/copied", filesHash=promised)
    assert steps.begin(built, steps=[copy]).status_code == 202
    return built, build.over(built)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is no archive",
        os.urandom(100_000),
        b"\x1f\x8b" + b"\0" * 100,
        tar(("dir/file", tarfile.REGTYPE, "x" * 100_000))[:60],
    ],
    ids=["empty", "text", "noise", "gzip of nothing", "cut off"],
)
def test_an_upload_that_is_no_archive(
    api: httpx.Client, steps: Steps, build: Builds, content: bytes
) -> None:
    _, status = copied(api, steps, build, content)
    if status:
        assert (status["status"], status["reason"]["step"]) == ("error", "1")
        assert "internal" not in status["reason"]["message"].lower()


@pytest.mark.parametrize(
    "members",
    [
        [("../../../tmp/atoll-escaped", tarfile.REGTYPE, "x")],
        [("/tmp/atoll-escaped", tarfile.REGTYPE, "x")],
        [("dir/out", tarfile.SYMTYPE, "/tmp"), ("dir/out/atoll-escaped", tarfile.REGTYPE, "x")],
        [("dir/stolen", tarfile.LNKTYPE, "../../../../etc/shadow")],
        [("dir/stolen", tarfile.LNKTYPE, "/etc/shadow")],
        [("dir/disk", tarfile.BLKTYPE, "")],
    ],
    ids=["parent", "absolute", "through a link", "hard link", "absolute hard link", "device"],
)
def test_an_upload_that_leads_out(
    api: httpx.Client, steps: Steps, build: Builds, create: Create, members: list[Any]
) -> None:
    """Refused, or harmless: what is certain is that nothing but the destination was written."""
    kept = ("dir/kept", tarfile.REGTYPE, "kept")
    built, status = copied(api, steps, build, tar(kept, *members))
    assert not Path("/tmp/atoll-escaped").exists()
    if status and status["status"] == "ready":
        sandbox = create(template=built.name)
        run = sandbox.commands.run
        assert run("ls /tmp/atoll-escaped 2>/dev/null || echo none").stdout == "none\n"
        assert (
            run("sudo grep -l '^root:' copied/stolen 2>/dev/null || echo none").stdout == "none\n"
        )
        assert run("test -b copied/disk || echo none").stdout == "none\n"
    elif status:
        assert status["reason"]["step"] == "1"


def test_an_upload_that_breaks_off(api: httpx.Client, steps: Steps) -> None:
    built = steps.register()
    promised = os.urandom(32).hex()
    path = f"/templates/{built.template_id}/files/{promised}"
    url = api.get(path).json()["url"]

    def half() -> Iterator[bytes]:
        yield tar(("dir/file", tarfile.REGTYPE, "x"))
        raise ConnectionAbortedError("the client goes away")

    with pytest.raises((ConnectionAbortedError, httpx.HTTPError)):
        httpx.put(url, content=half(), timeout=30)
    assert api.get(path).json()["present"] is False


def test_one_name_built_twice_at_once(build: Builds, create: Create) -> None:
    name = build.name()

    def attempt(number: int) -> str:
        try:
            build(base().run_cmd(f"sleep 1; echo {number} > /home/user/version"), name)
        except BuildException as error:
            return str(error)
        return str(number)

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(attempt, range(4)))
    # One went to its end at least, and each other says that it had to give way.
    done = {text for text in ended if text in {"0", "1", "2", "3"}}
    assert done
    gave_way = ("superseded", "build is not in waiting state")
    assert all(any(words in text for words in gave_way) for text in ended if text not in done)
    assert create(template=name).files.read("version").strip() in done


def test_many_builds_at_once(build: Builds, create: Create) -> None:
    with ThreadPoolExecutor(6) as pool:
        built = list(pool.map(lambda i: build(base().run_cmd(f"echo {i} > mine")), range(6)))
    for number, each in enumerate(built):
        assert create(template=each.name).files.read("mine") == f"{number}\n"


def test_a_limit_of_builds(api: httpx.Client, steps: Steps, build: Builds) -> None:
    """The team's: what is registered and waits counts."""
    registered: list[Built] = []
    try:
        for _ in range(200):
            answer = api.post("/v3/templates", json={"name": build.name()})
            if answer.status_code == 429:
                break
            assert answer.status_code == 202, answer.text
            made = answer.json()
            registered.append(Built(made["templateID"], made["buildID"], ""))
        assert answer.status_code == 429
        assert answer.json()["code"] == 429
        assert len(registered) >= 2
        # The same template again takes the place of its own.
        again = api.post("/v3/templates", json={"name": build._names[0]})
        assert again.status_code == 202, again.text
    finally:
        for each in registered:
            build.delete(each.template_id)


def test_much_in_one_request(steps: Steps, build: Builds) -> None:
    built = steps.register()
    many = [step("ENV", f"V{i}", "x") for i in range(300)]
    assert steps.begin(built, steps=many).status_code == 202
    assert build.over(built)["status"] == "ready"
    large = steps.begin(steps.register(), steps=[step("RUN", "#" * (64 << 20))])
    assert large.status_code in {400, 413}
