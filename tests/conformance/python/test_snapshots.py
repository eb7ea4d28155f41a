"""Snapshots with the synchronous SDK: what they are called, and what is in them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from e2b import NotFoundException, Sandbox, SandboxException

from support.counting import Counting
from support.sdk import needs, since

pytestmark = needs(Sandbox, "create_snapshot")

Create = Callable[..., Sandbox]
Snap = Callable[..., str]


def ids(**query: object) -> list[str]:
    """Ids of all snapshots that match, over all pages."""
    pages = Sandbox.list_snapshots(**query)
    found: list[str] = []
    while pages.has_next:
        found += [snapshot.snapshot_id for snapshot in pages.next_items()]
    return found


def new_name() -> str:
    return f"conformance-{uuid.uuid4().hex[:12]}"


def test_a_sandbox_is_made_of_it(create: Create, snap: Snap) -> None:
    source = create()
    source.files.write("/home/user/file", "of the source")
    source.commands.run("sudo rm -rf /etc/skel && sudo sh -c 'echo deep > /var/lib/deep'")
    snapshot_id = snap(source)
    made = create(template=snapshot_id)
    assert made.sandbox_id != source.sandbox_id
    assert made.files.read("/home/user/file") == "of the source"
    assert made.files.read("/var/lib/deep") == "deep\n"
    assert not made.files.exists("/etc/skel")
    assert made.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == made.sandbox_id
    assert made.commands.run("whoami").stdout == source.commands.run("whoami").stdout


def test_the_source_runs_on_as_if_nothing_had_been(counting: Counting, snap: Snap) -> None:
    source = counting.sandbox
    before, seen = source.get_info(), counting.look()
    handle = source.commands.run("cat", background=True, stdin=True, timeout=0)
    for _ in range(3):
        snap(source)
        counting.went_on(seen)
    assert source.get_info() == before
    source.commands.send_stdin(handle.pid, "still here\n")
    assert handle.pid in {process.pid for process in source.commands.list()}


def test_an_unnamed_one_is_called_by_its_id(create: Create, snap: Snap) -> None:
    source = create()
    snapshot = source.create_snapshot()
    assert re.fullmatch(r"[a-z0-9]{20}:default", snapshot.snapshot_id)
    assert snapshot.names == []
    [entry] = source.list_snapshots().next_items()
    assert entry == snapshot
    made = create(template=snapshot.snapshot_id)
    info = made.get_info()
    assert f"{info.template_id}:default" == snapshot.snapshot_id
    made.kill()
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True


def test_a_named_one_is_found_by_its_name(create: Create, snap: Snap) -> None:
    source, name = create(), new_name()
    snapshot_id = snap(source, name=name)
    found = re.fullmatch(rf"([a-z0-9-]+)/{name}:default", snapshot_id)
    assert found, snapshot_id
    slug = found[1]
    [entry] = Sandbox.list_snapshots(name=name).next_items()
    assert entry.snapshot_id == snapshot_id
    assert entry.names and all(f"{slug}/{name}" in given for given in entry.names)
    for wanted in (name, f"{slug}/{name}", f"{name}:default", snapshot_id):
        assert ids(name=wanted) == [snapshot_id], wanted
        assert create(template=wanted, timeout=60).kill() is True
    assert ids(name=new_name()) == []
    assert ids(name=f"{name}:other") == []


def test_tags_keep_versions_apart(create: Create, snap: Snap) -> None:
    source, name = create(), new_name()
    versions = {}
    for tag in ("v1", "v2"):
        source.files.write("/home/user/version", tag)
        versions[tag] = snap(source, name=f"{name}:{tag}")
        assert versions[tag].endswith(f"/{name}:{tag}")
    assert sorted(ids(name=name)) == sorted(versions.values())
    for tag, snapshot_id in versions.items():
        assert ids(name=snapshot_id) == [snapshot_id]
        made = create(template=snapshot_id, timeout=60)
        assert made.files.read("/home/user/version") == tag
        made.kill()


def test_the_same_name_again_means_the_newer_one(create: Create, snap: Snap) -> None:
    source, name = create(), new_name()
    source.files.write("/home/user/version", "first")
    first = snap(source, name=name)
    older = create(template=first)
    source.files.write("/home/user/version", "second")
    assert snap(source, name=name) == first
    newer = create(template=first)
    assert newer.files.read("/home/user/version") == "second"
    # What was made of the first does not change under its feet.
    assert older.files.read("/home/user/version") == "first"
    assert newer.get_info().template_id == older.get_info().template_id


def test_it_is_independent_of_its_source(create: Create, snap: Snap) -> None:
    source = create()
    source.files.write("/home/user/file", "then")
    snapshot_id = snap(source)
    source.files.write("/home/user/file", "now")
    source.files.write("/home/user/later", "")
    one = create(template=snapshot_id)
    source.kill()
    two = create(template=snapshot_id)
    one.files.write("/home/user/file", "changed by one")
    for made, content in ((one, "changed by one"), (two, "then")):
        assert made.files.read("/home/user/file") == content
        assert not made.files.exists("/home/user/later")
    assert ids(sandbox_id=source.sandbox_id) == [snapshot_id]


def test_one_can_be_paused_and_snapshotted_like_any_other(create: Create, snap: Snap) -> None:
    source = create()
    depths = []
    for depth in range(4):
        source.files.write(f"/home/user/depth-{depth}", "kept")
        source = create(template=snap(source))
        depths.append(source.sandbox_id)
    assert source.pause() is True
    source.connect()
    for depth in range(4):
        assert source.files.read(f"/home/user/depth-{depth}") == "kept"


def test_what_a_create_says_holds_not_what_the_source_had(create: Create, snap: Snap) -> None:
    source = create(
        metadata={"whose": "source", "only": "source"},
        envs={"GREETING": "source", "ONLY": "source"},
        lifecycle={"on_timeout": "pause", "auto_resume": True},
        timeout=900,
    )
    snapshot_id = snap(source)
    made = create(template=snapshot_id, metadata={"whose": "made"}, envs={"GREETING": "made"})
    info = made.get_info()
    assert info.metadata == {"whose": "made"}
    assert info.lifecycle == {"on_timeout": "kill", "auto_resume": False}
    assert 295 < (info.end_at - info.started_at).total_seconds() < 305
    assert made.commands.run("echo $GREETING-$ONLY").stdout == "made-\n"
    plain = create(template=snapshot_id)
    assert plain.get_info().metadata == {}
    assert plain.commands.run("echo $GREETING-$ONLY").stdout == "-\n"
    assert plain._envd_access_token not in {source._envd_access_token, made._envd_access_token}


def test_many_are_made_of_it_at_once(create: Create, snap: Snap) -> None:
    source = create()
    source.files.write("/home/user/file", "shared")
    snapshot_id = snap(source)

    def work(number: int) -> str:
        made = create(template=snapshot_id)
        made.files.write("/home/user/own", str(number))
        return made.files.read("/home/user/file") + made.files.read("/home/user/own")

    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(work, range(5))) == [f"shared{number}" for number in range(5)]


def test_what_is_in_use_is_not_deleted(create: Create, snap: Snap) -> None:
    source = create()
    snapshot_id = snap(source)
    made = create(template=snapshot_id)
    for wanted in ("running", "paused"):
        assert made.get_info().state == wanted
        with pytest.raises(SandboxException) as refused:
            Sandbox.delete_snapshot(snapshot_id)
        assert refused.value.status_code == 400
        assert ids(sandbox_id=source.sandbox_id) == [snapshot_id]
        if wanted == "running":
            assert made.pause() is True
    made.connect()
    assert made.commands.run("echo unharmed").stdout == "unharmed\n"
    made.kill()
    assert Sandbox.delete_snapshot(snapshot_id) is True


def test_deleting_deletes_once_and_hurts_nobody(create: Create, snap: Snap) -> None:
    source = create()
    source.files.write("/home/user/file", "kept")
    first, second = snap(source), snap(source)
    assert Sandbox.delete_snapshot(first) is True
    assert Sandbox.delete_snapshot(first) is False
    assert ids(sandbox_id=source.sandbox_id) == [second]
    with pytest.raises((NotFoundException, SandboxException)):
        Sandbox.create(first)
    assert source.files.read("/home/user/file") == "kept"
    made = create(template=second)
    assert made.files.read("/home/user/file") == "kept"
    made.kill()
    assert Sandbox.delete_snapshot(f"{uuid.uuid4().hex[:20]}:default") is False


def test_lists_page_newest_first(create: Create, snap: Snap) -> None:
    source, other = create(), create()
    made = [snap(source) for _ in range(3)]
    snap(other)
    pages = source.list_snapshots(limit=1)
    seen: list[str] = []
    while pages.has_next:
        items = pages.next_items()
        assert len(items) == 1
        seen.append(items[0].snapshot_id)
    assert seen == made[::-1]
    assert ids(limit=2)[: len(made) + 1][1:] == made[::-1]
    # The end is known without an empty page.
    pages = Sandbox.list_snapshots(sandbox_id=source.sandbox_id, limit=3)
    assert [item.snapshot_id for item in pages.next_items()] == made[::-1]
    assert not pages.has_next


def test_a_list_goes_on_where_a_token_says(create: Create, snap: Snap) -> None:
    source = create()
    made = [snap(source) for _ in range(3)]
    first = source.list_snapshots(limit=2)
    assert len(first.next_items()) == 2
    rest = source.list_snapshots(limit=2, next_token=first.next_token)
    assert [item.snapshot_id for item in rest.next_items()] == made[:1]


def test_what_does_not_run_has_none_taken(create: Create) -> None:
    sandbox = create()
    assert sandbox.pause() is True
    with pytest.raises(NotFoundException):
        sandbox.create_snapshot()
    sandbox.kill()
    with pytest.raises(NotFoundException):
        sandbox.create_snapshot()
    assert ids(sandbox_id=sandbox.sandbox_id) == []


@pytest.mark.parametrize("name", ["With Capitals", "a/b/c", "someone-elses/name", "a:", ":a", "ü"])
def test_a_name_that_is_none_is_refused(shared: Sandbox, name: str) -> None:
    with pytest.raises(SandboxException) as refused:
        shared.create_snapshot(name=name)
    assert refused.value.status_code == 400
    assert ids(sandbox_id=shared.sandbox_id) == []


def test_a_pause_is_no_snapshot(create: Create) -> None:
    sandbox = create()
    sandbox.pause()
    assert ids(sandbox_id=sandbox.sandbox_id) == []


@since("2.63.0", "mode")
def test_one_of_the_disk_alone_is_refused(shared: Sandbox) -> None:
    with pytest.raises(SandboxException) as refused:
        shared.create_snapshot(mode="filesystem")
    assert refused.value.status_code == 400
    assert ids(sandbox_id=shared.sandbox_id) == []


def test_pausing_while_it_is_taken(counting: Counting, snap: Snap) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    with ThreadPoolExecutor(2) as pool:
        taking = pool.submit(snap, sandbox)
        assert pool.submit(sandbox.pause).result(60) is True
        # The one that came second has waited, or was told that it came too late.
        error = taking.exception(60)
    assert error is None or isinstance(error, NotFoundException) or "409" in str(error), repr(error)
    sandbox.connect()
    counting.went_on(before)


def test_two_at_once(counting: Counting, snap: Snap) -> None:
    before = counting.look()
    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(snap, counting.sandbox) for _ in range(4)]
    errors = [error for error in (x.exception(60) for x in taken) if error]
    assert len(errors) < 4
    assert all("409" in str(error) for error in errors)
    assert len(ids(sandbox_id=counting.sandbox.sandbox_id)) == 4 - len(errors)
    counting.went_on(before)


def test_by_hand(create: Create, snap: Snap, api: httpx.Client) -> None:
    sandbox = create()
    path = f"/sandboxes/{sandbox.sandbox_id}/snapshots"
    # The body may be absent.
    taken = api.post(path)
    assert taken.status_code == 201, taken.text
    body = taken.json()
    assert set(body) >= {"snapshotID", "names"}
    assert body["names"] == []
    page = api.get("/snapshots", params={"sandboxID": sandbox.sandbox_id, "limit": 1})
    assert (page.status_code, page.json()) == (200, [body])
    assert "x-next-token" not in page.headers
    for query in (
        {"sandboxID": "Not An Id"},
        {"limit": 0},
        {"limit": 101},
        {"nextToken": "nonsense"},
    ):
        refused = api.get("/snapshots", params=query)
        assert (refused.status_code, refused.json()["code"]) == (400, 400), query
    unknown = api.post("/sandboxes/i00000000000000000000/snapshots", json={})
    assert (unknown.status_code, unknown.json()["code"]) == (404, 404)
    encoded = body["snapshotID"].replace(":", "%3A")
    assert api.delete(f"/templates/{encoded}").status_code == 204
    again = api.delete(f"/templates/{encoded}")
    assert (again.status_code, again.json()["code"]) == (404, 404)
