"""Forks with the synchronous SDK: copies of a running sandbox that go ways of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from e2b import AuthenticationException, NotFoundException, Sandbox, SandboxException

from support import routing
from support.counting import Counting
from support.sdk import needs

pytestmark = needs(Sandbox, "fork")

Create = Callable[..., Sandbox]
Fork = Callable[..., list[Sandbox]]
ENVD = 49983


@pytest.fixture
def fork(stack: object) -> Iterator[Fork]:
    """Forks a sandbox; the forks end with the test."""
    made: list[Sandbox] = []

    def make(source: Sandbox, **options: object) -> list[Sandbox]:
        forks = source.fork(**options)
        made.extend(fork for fork in forks if isinstance(fork, Sandbox))
        assert all(isinstance(fork, Sandbox) for fork in forks), forks
        return forks

    yield make
    for sandbox in made:
        sandbox.kill()


def test_each_is_a_sandbox_of_its_own(counting: Counting, fork: Fork) -> None:
    source = counting.sandbox
    source.files.write("/home/user/file", "of the source")
    before, seen = source.get_info(), counting.look()
    forks = fork(source, count=3, timeout=120)
    everyone = [source, *forks]
    assert len({sandbox.sandbox_id for sandbox in everyone}) == 4
    assert len({sandbox._envd_access_token for sandbox in everyone}) == 4
    # The source has not changed, and knows nothing of it.
    assert source.get_info() == before
    counting.went_on(seen)
    for sandbox in everyone:
        assert sandbox.files.read("/home/user/file") == "of the source"
        assert sandbox.commands.run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id
        assert sandbox.files.read("/run/e2b/.E2B_SANDBOX_ID").strip() == sandbox.sandbox_id
        sandbox.files.write("/home/user/file", sandbox.sandbox_id)
    for sandbox in everyone:
        assert sandbox.files.read("/home/user/file") == sandbox.sandbox_id
    for sandbox in forks:
        info = sandbox.get_info()
        assert 115 < (info.end_at - info.started_at).total_seconds() < 125
        assert (info.state, info.template_id) == ("running", before.template_id)
        assert sandbox.is_running()


def test_it_inherits_what_the_source_was_given(create: Create, fork: Fork) -> None:
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    source = create(
        metadata={"kind": "forked"}, envs={"GREETING": "hello"}, lifecycle=lifecycle, timeout=300
    )
    [child] = fork(source, timeout=120)
    info = child.get_info()
    assert info.metadata == {"kind": "forked"}
    assert info.lifecycle == lifecycle
    assert info.name == "base"
    assert child.commands.run("echo $GREETING").stdout == "hello\n"


def test_no_token_opens_another(create: Create, fork: Fork) -> None:
    source = create()
    [child] = fork(source, timeout=120)
    for target, stranger in ((child, source), (source, child)):
        with routing.client(target.sandbox_id, ENVD) as client:
            theirs = {"X-Access-Token": stranger._envd_access_token}
            assert client.get("/envs", headers=theirs).status_code == 401
            own = {"X-Access-Token": target._envd_access_token}
            assert client.get("/envs", headers=own).status_code == 200


def test_what_one_does_the_others_do_not_see(counting: Counting, fork: Fork) -> None:
    source = counting.sandbox
    before = counting.look()
    one, two = fork(source, count=2, timeout=120)
    one.kill()
    assert not one.is_running()
    assert two.commands.run("echo here").stdout == "here\n"
    two.commands.run("sudo rm -rf /home/user/* /usr/lib/python3*")
    counting.went_on(before)
    source.kill()
    assert two.commands.run("echo here").stdout == "here\n"


def test_forks_can_be_forked_and_paused(create: Create, fork: Fork) -> None:
    source = create()
    for depth in range(3):
        source.files.write(f"/home/user/depth-{depth}", "kept")
        [source] = fork(source, timeout=120)
    assert source.pause() is True
    source.connect()
    for depth in range(3):
        assert source.files.read(f"/home/user/depth-{depth}") == "kept"


def test_it_is_said_to_be_none_of_the_snapshots(create: Create, fork: Fork) -> None:
    source = create()
    fork(source, timeout=120)
    assert source.list_snapshots().next_items() == []


def test_a_paused_one_has_no_forks(create: Create) -> None:
    source = create()
    source.pause()
    with pytest.raises(SandboxException, match="paused") as refused:
        source.fork()
    assert refused.value.status_code == 409
    source.connect()
    assert source.commands.run("echo here").stdout == "here\n"


def test_what_is_not_there_has_no_forks(create: Create) -> None:
    source = create()
    source.kill()
    with pytest.raises(NotFoundException):
        source.fork()
    with pytest.raises(NotFoundException):
        Sandbox.fork("i" + "0" * 20)


def test_with_a_wrong_key_there_are_no_forks(create: Create) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.fork(create().sandbox_id, api_key="e2b_" + "0" * 40)


def test_forking_twice_at_once(counting: Counting, fork: Fork) -> None:
    before = counting.look()
    with ThreadPoolExecutor(2) as pool:
        forking = [pool.submit(fork, counting.sandbox, timeout=120) for _ in range(2)]
    errors = [error for error in (x.exception(60) for x in forking) if error]
    assert len(errors) < 2
    assert all("409" in str(error) for error in errors)
    counting.went_on(before)


def test_by_hand(create: Create, api: httpx.Client) -> None:
    source = create()
    path = f"/sandboxes/{source.sandbox_id}/fork"
    # The body may be absent.
    forked = api.post(path)
    assert forked.status_code == 201, forked.text
    [result] = forked.json()
    assert set(result) == {"sandbox"}
    child = result["sandbox"]
    assert set(child) >= {"templateID", "sandboxID", "clientID", "envdVersion", "envdAccessToken"}
    detail = api.get(f"/sandboxes/{child['sandboxID']}").json()
    assert detail["state"] == "running"
    assert api.delete(f"/sandboxes/{child['sandboxID']}").status_code == 204
    for body in ({"count": 0}, {"count": 101}, {"count": -1}, {"count": "2"}, {"timeout": -1}):
        refused = api.post(path, json=body)
        assert (refused.status_code, refused.json()["code"]) == (400, 400), body
    unknown = api.post("/sandboxes/i00000000000000000000/fork", json={})
    assert (unknown.status_code, unknown.json()["code"]) == (404, 404)
    source.pause()
    paused = api.post(path, json={})
    assert (paused.status_code, paused.json()["code"]) == (409, 409)
    assert f"Sandbox '{source.sandbox_id}' is paused" in paused.json()["message"]
