"""Traffic wakes a paused sandbox that was made so, and no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import httpx
import pytest
from e2b import Sandbox

from support import guest, patient, routing
from support.counting import PORT, Counting, ask, seen
from support.lifecycle import HAS_LIFECYCLE, events, is_paused
from support.sdk import NEWEST, SDK
from support.wait import wait_for

pytestmark = pytest.mark.skipif(
    not HAS_LIFECYCLE and SDK < NEWEST, reason=f"e2b {SDK} has no lifecycle in Sandbox.create"
)

Create = Callable[..., Sandbox]
ENVD = 49983
WAKES = {"on_timeout": "pause", "auto_resume": True}
SHORTEST = timedelta(seconds=300)


@pytest.fixture
def waking(create: Create) -> Counting:
    """A sandbox that traffic wakes, with a counter in it."""
    return Counting(create(timeout=60, lifecycle=WAKES))


def assert_not_found(answer: httpx.Response, sandbox: Sandbox) -> None:
    assert answer.status_code == 502
    assert answer.json() == {
        "sandboxId": sandbox.sandbox_id,
        "message": "The sandbox was not found",
        "code": 502,
    }


# Rules: PROXY-22
def test_a_plain_request_wakes_it_and_is_answered(waking: Counting) -> None:
    sandbox = waking.sandbox
    before = waking.look()
    sandbox.set_timeout(0)
    wait_for("the sandbox to be paused", lambda: is_paused(sandbox))
    answer = waking.ask()
    waking.went_on(before, seen(answer))
    info = sandbox.get_info()
    assert info.state == "running"
    # However short its lifetime was.
    assert info.end_at - info.started_at >= SHORTEST - timedelta(seconds=1)
    assert info.end_at - datetime.now(timezone.utc) > SHORTEST - timedelta(seconds=60)
    assert info.lifecycle == WAKES


def test_its_own_lifetime_counts_where_it_is_longer(create: Create) -> None:
    waking = Counting(create(timeout=900, lifecycle=WAKES))
    waking.sandbox.pause()
    waking.look()
    info = waking.sandbox.get_info()
    length = info.end_at - info.started_at
    assert timedelta(seconds=890) < length < timedelta(seconds=910)


def test_it_wakes_again_and_again(waking: Counting) -> None:
    before = waking.look()
    for _ in range(5):
        waking.sandbox.pause()
        waking.went_on(before, seen(waking.ask()))


# Rules: PROXY-22
def test_many_requests_wake_it_once_and_all_are_answered(
    waking: Counting, api: httpx.Client
) -> None:
    sandbox = waking.sandbox
    before = waking.look()
    sandbox.pause()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: waking.ask(), range(20)))
    for answer in answers:
        assert seen(answer).run == before.run
    waking.went_on(before)
    # The log has things in their order: what came before this pause is there when it is.
    sandbox.pause()
    wait_for("the log", lambda: len(events(api, sandbox, "sandbox_pause")) == 2)
    assert len(events(api, sandbox, "sandbox_resume")) == 1


def test_a_request_that_comes_while_it_is_being_paused(waking: Counting) -> None:
    before = waking.look()
    with ThreadPoolExecutor(5) as pool:
        for _ in range(5):
            pausing = pool.submit(waking.sandbox.pause)
            answers = [pool.submit(waking.ask) for _ in range(4)]
            assert pausing.result(60) is True
            for answer in answers:
                # One that was with the server when the pause began is cut off with it.
                with suppress(httpx.RemoteProtocolError):
                    assert answer.result(60).status_code in {200, 502}
            assert seen(waking.ask()).run == before.run
    waking.went_on(before)


def test_the_body_that_wakes_it_arrives(waking: Counting) -> None:
    waking.sandbox.pause()
    body = bytes(range(256)) * (1 << 12)
    answer = waking.ask(method="POST", content=body)
    assert (answer.status_code, answer.content) == (200, body)


def test_a_websocket_wakes_it(create: Create) -> None:
    sandbox = create(timeout=60, lifecycle=WAKES)
    guest.serve_websocket(sandbox, 8100)
    guest.wait_until_listening(sandbox, 8100)
    sandbox.pause()
    with routing.websocket(sandbox.sandbox_id, 8100) as socket:
        socket.send("awake")
        assert socket.recv(timeout=20) == "awake"


def test_routing_headers_wake_it(waking: Counting) -> None:
    before = waking.look()
    waking.sandbox.pause()
    headers = {"E2b-Sandbox-Id": waking.sandbox.sandbox_id, "E2b-Sandbox-Port": str(PORT)}
    answer = patient.get(os.environ["E2B_SANDBOX_URL"], headers=headers)
    assert seen(answer).run == before.run


def test_the_sdk_wakes_it_with_whatever_it_does(waking: Counting) -> None:
    sandbox = waking.sandbox
    before = waking.look()
    sandbox.pause()
    assert sandbox.commands.run("echo awake").stdout == "awake\n"
    sandbox.pause()
    sandbox.files.write("file", "awake")
    sandbox.pause()
    assert sandbox.files.read("file") == "awake"
    waking.went_on(before)


def test_a_closed_port_wakes_it_and_is_said_to_be_closed(waking: Counting) -> None:
    waking.sandbox.pause()
    with routing.client(waking.sandbox.sandbox_id, 8888) as client:
        answer = client.get("/", timeout=60)
    assert answer.status_code == 502
    assert answer.json()["message"] == "The sandbox is running but port is not open"
    assert not is_paused(waking.sandbox)


@pytest.mark.parametrize("headers", [{}, {"X-Access-Token": "wrong"}], ids=["none", "wrong"])
def test_who_has_no_token_of_envd_cannot_wake_it(waking: Counting, headers: dict[str, str]) -> None:
    waking.sandbox.pause()
    for path in ("/health", "/files?path=/etc/hostname"):
        with routing.client(waking.sandbox.sandbox_id, ENVD) as client:
            answer = client.get(path, headers=headers)
        assert answer.status_code == 403
        assert answer.json() == {
            "sandboxId": waking.sandbox.sandbox_id,
            "message": "This sandbox can't be resumed with the credentials provided."
            " Check your access token and try again.",
            "code": 403,
        }
    assert is_paused(waking.sandbox)


def test_the_control_planes_routes_wake_nobody(waking: Counting) -> None:
    sandbox = waking.sandbox
    sandbox.pause()
    with routing.client(sandbox.sandbox_id, ENVD) as client:
        answer = client.post("/init", headers={"X-Access-Token": sandbox._envd_access_token})
    assert answer.status_code == 404
    assert is_paused(sandbox)


@pytest.mark.parametrize(
    "lifecycle", [{"on_timeout": "pause"}, {"on_timeout": "pause", "auto_resume": False}, None]
)
def test_one_that_was_not_made_so_sleeps_on(
    create: Create, lifecycle: dict[str, object] | None
) -> None:
    counting = Counting(create(timeout=300, lifecycle=lifecycle))
    sandbox = counting.sandbox
    sandbox.pause()
    assert_not_found(counting.ask(), sandbox)
    with routing.client(sandbox.sandbox_id, ENVD) as client:
        token = {"X-Access-Token": sandbox._envd_access_token}
        assert_not_found(client.get("/health", headers=token), sandbox)
    assert is_paused(sandbox)


def test_one_without_memory_sleeps_on(waking: Counting) -> None:
    waking.sandbox.pause(keep_memory=False)
    assert_not_found(waking.ask(), waking.sandbox)
    assert is_paused(waking.sandbox)


def test_a_killed_one_is_not_found(waking: Counting) -> None:
    waking.sandbox.pause()
    assert waking.sandbox.kill() is True
    assert_not_found(ask(waking.sandbox.sandbox_id), waking.sandbox)
