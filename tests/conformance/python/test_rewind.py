"""Atoll's own routes: back to a snapshot in place, lineage, and forks of what is paused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from support.counting import Counting, assert_gapless
from support.sdk import needs

pytestmark = needs(Sandbox, "create_snapshot")

Create = Callable[..., Sandbox]
Snap = Callable[..., str]
Rewind = Callable[[Sandbox, str], httpx.Response]


@pytest.fixture
def rewind(api: httpx.Client) -> Rewind:
    def send(sandbox: Sandbox, snapshot_id: str) -> httpx.Response:
        path = f"/atoll/sandboxes/{sandbox.sandbox_id}/rewind"
        return api.post(path, json={"snapshotID": snapshot_id})

    return send


def error(answer: httpx.Response, status: int) -> str:
    """Asserts the shape every error has, and returns its message."""
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == status
    return answer.json()["message"]


def test_it_is_as_it_was_under_the_same_id(create: Create, snap: Snap, rewind: Rewind) -> None:
    sandbox = create(metadata={"kind": "rewound"}, envs={"GREETING": "hello"}, timeout=300)
    sandbox.files.write("/home/user/file", "then")
    sandbox.files.write("/home/user/lost", "then")
    snapshot_id = snap(sandbox)
    before = sandbox.get_info()
    for _ in range(3):
        sandbox.files.write("/home/user/file", "now")
        sandbox.files.remove("/home/user/lost")
        sandbox.files.write("/home/user/new", "now")
        assert rewind(sandbox, snapshot_id).is_success
        assert sandbox.files.read("/home/user/file") == "then"
        assert sandbox.files.read("/home/user/lost") == "then"
        assert not sandbox.files.exists("/home/user/new")
    after = sandbox.get_info()
    assert (after.metadata, after.template_id) == (before.metadata, before.template_id)
    assert (after.state, after.end_at) == ("running", before.end_at)
    assert sandbox.commands.run("echo $GREETING").stdout == "hello\n"
    assert sandbox.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id


def test_its_processes_are_those_of_then_or_none(
    create: Create, snap: Snap, rewind: Rewind, api: httpx.Client
) -> None:
    counting = Counting(create(timeout=300))
    sandbox = counting.sandbox
    snapshot_id = snap(sandbox)
    later = sandbox.commands.run("exec sleep 600", background=True, timeout=0).pid
    seen = counting.look()
    assert rewind(sandbox, snapshot_id).is_success
    pids = {process.pid for process in sandbox.commands.list()}
    assert later not in pids
    [of_snapshot] = lineage(api, sandbox)["snapshots"]
    if of_snapshot["kept"] == "checkpoint":
        assert pids == {counting.pid}
        assert counting.look().run == seen.run
    else:
        assert pids == set()
    assert_gapless(sandbox)


def test_between_two_snapshots(create: Create, snap: Snap, rewind: Rewind) -> None:
    sandbox = create(timeout=300)
    taken = {}
    for version in ("one", "two", "three"):
        sandbox.files.write("/home/user/version", version)
        taken[version] = snap(sandbox)
    for version in ("one", "three", "two", "two"):
        assert rewind(sandbox, taken[version]).is_success
        assert sandbox.files.read("/home/user/version") == version
    # What is paused after it is what it was taken back to.
    sandbox.pause()
    sandbox.connect()
    assert sandbox.files.read("/home/user/version") == "two"


def test_a_snapshot_outlives_what_is_done_with_it(
    create: Create, snap: Snap, rewind: Rewind
) -> None:
    sandbox = create(timeout=300)
    sandbox.files.write("/home/user/file", "then")
    snapshot_id = snap(sandbox)
    assert rewind(sandbox, snapshot_id).is_success
    sandbox.files.write("/home/user/file", "now")
    made = create(template=snapshot_id)
    assert made.files.read("/home/user/file") == "then"
    made.kill()
    # And the sandbox goes on without it.
    Sandbox.delete_snapshot(snapshot_id)
    sandbox.pause()
    sandbox.connect()
    assert sandbox.files.read("/home/user/file") == "now"


def test_what_it_cannot_be_taken_back_to(create: Create, snap: Snap, rewind: Rewind) -> None:
    sandbox, other = create(timeout=300), create(timeout=300)
    sandbox.files.write("/home/user/file", "kept")
    others = snap(other)
    for snapshot_id in (others, "base", "no-such-snapshot:default", "a" * 20 + ":default"):
        refused = rewind(sandbox, snapshot_id)
        assert refused.status_code in {400, 404}, snapshot_id
        assert refused.json()["code"] == refused.status_code
    assert sandbox.files.read("/home/user/file") == "kept"
    own = snap(sandbox)
    sandbox.pause()
    error(rewind(sandbox, own), 409)
    sandbox.kill()
    error(rewind(sandbox, own), 404)


def test_rewinding_twice_at_once(create: Create, snap: Snap, rewind: Rewind) -> None:
    sandbox = create(timeout=300)
    sandbox.files.write("/home/user/file", "then")
    snapshot_id = snap(sandbox)
    sandbox.files.write("/home/user/file", "now")
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: rewind(sandbox, snapshot_id), range(3)))
    statuses = {answer.status_code for answer in answers}
    assert any(answer.is_success for answer in answers), statuses
    assert all(answer.is_success or answer.status_code == 409 for answer in answers), statuses
    assert sandbox.files.read("/home/user/file") == "then"


def lineage(api: httpx.Client, sandbox: Sandbox) -> dict[str, Any]:
    answer = api.get(f"/atoll/sandboxes/{sandbox.sandbox_id}/lineage")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_lineage_of_one_that_has_none(create: Create, api: httpx.Client) -> None:
    sandbox = create()
    found = lineage(api, sandbox)
    assert (found["sandbox"]["kind"], found["sandbox"]["id"]) == ("sandbox", sandbox.sandbox_id)
    assert (found["sandbox"]["state"], found["sandbox"]["gone"]) == ("running", False)
    [template] = found["ancestors"]
    assert (template["kind"], template["name"]) == ("template", "base")
    assert template["id"] == sandbox.get_info().template_id
    assert (found["snapshots"], found["forks"]) == ([], [])


def test_lineage_names_ancestors_snapshots_and_forks(
    create: Create, snap: Snap, api: httpx.Client
) -> None:
    source = create()
    first, second = snap(source), snap(source)
    [child] = source.fork(timeout=120)
    made = create(template=first)
    try:
        found = lineage(api, source)
        assert [entry["id"] for entry in found["snapshots"]] == [second, first]
        assert {entry["kind"] for entry in found["snapshots"]} == {"snapshot"}
        assert [entry["id"] for entry in found["forks"]] == [child.sandbox_id]
        of_child = lineage(api, child)["ancestors"]
        assert of_child[0]["id"] == source.sandbox_id
        assert of_child[-1]["name"] == "base"
        of_made = lineage(api, made)["ancestors"]
        assert [entry["id"] for entry in of_made[:2]] == [first, source.sandbox_id]
        assert of_made[-1]["name"] == "base"
        # What is gone is still known to have been there.
        source.kill()
        parent = lineage(api, child)["ancestors"][0]
        assert (parent["id"], parent["gone"]) == (source.sandbox_id, True)
    finally:
        child.kill()


def test_lineage_says_what_each_has_for_itself(
    create: Create, snap: Snap, api: httpx.Client
) -> None:
    source = create()
    size = 32 << 20
    source.commands.run(f"head -c {size} /dev/urandom > /home/user/large && sync")
    alone = lineage(api, source)["sandbox"]["uniqueBytes"]
    if alone is None:
        pytest.skip("the file system of the data directory does not say")
    assert alone >= size
    snap(source)
    # Now two have it.
    found = lineage(api, source)
    assert found["sandbox"]["uniqueBytes"] < size
    source.commands.run("rm /home/user/large && sync")
    [snapshot] = lineage(api, source)["snapshots"]
    assert snapshot["uniqueBytes"] >= size


def test_lineage_of_nobody(stack: object, api: httpx.Client) -> None:
    error(api.get(f"/atoll/sandboxes/i{'0' * 20}/lineage"), 404)


def test_a_paused_one_is_forked_without_being_woken(create: Create, api: httpx.Client) -> None:
    counting = Counting(create(timeout=300))
    source = counting.sandbox
    source.files.write("/home/user/file", "of the source")
    before = counting.look()
    source.pause()
    paused = source.get_info()
    forked = api.post(f"/atoll/sandboxes/{source.sandbox_id}/fork", json={"count": 2})
    assert forked.status_code == 201, forked.text
    children = [result["sandbox"]["sandboxID"] for result in forked.json()]
    try:
        assert source.get_info() == paused
        for child in children:
            connected = Sandbox.connect(child)
            assert connected.files.read("/home/user/file") == "of the source"
            connected.files.write("/home/user/file", child)
    finally:
        for child in children:
            assert Sandbox.kill(child)
    source.connect()
    assert source.files.read("/home/user/file") == "of the source"
    counting.went_on(before)
