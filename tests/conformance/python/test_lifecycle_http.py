"""The lifecycle routes by hand: statuses, bodies, and what no SDK of today sends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import httpx
import pytest

from support.sdk import newest

pytestmark = newest

Post = Callable[..., httpx.Response]
NOBODY = "i" + "0" * 20


def when(text: str) -> datetime:
    """A time of the API, whose fractions may be longer than Python takes."""
    whole, _, rest = text.partition(".")
    digits = rest.rstrip("Z")[:6] or "0"
    return datetime.fromisoformat(whole.rstrip("Z")).replace(
        microsecond=int(digits.ljust(6, "0")), tzinfo=timezone.utc
    )


@pytest.fixture
def create(api: httpx.Client) -> Iterator[Callable[..., str]]:
    """Creates a sandbox from a body; gives its id."""
    made: list[str] = []

    def send(path: str = "/v2/sandboxes", **body: Any) -> str:
        answer = api.post(path, json={"templateID": "base", "timeout": 300, **body})
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["sandboxID"])
        return made[-1]

    yield send
    for sandbox_id in made:
        api.delete(f"/sandboxes/{sandbox_id}")


@pytest.fixture
def to(api: httpx.Client) -> Post:
    """Posts to a sandbox; without a body unless there are fields for one."""

    def send(sandbox_id: str, what: str, prefix: str = "", **body: Any) -> httpx.Response:
        options = {"json": body} if body else {}
        return api.post(f"{prefix}/sandboxes/{sandbox_id}/{what}", **options)

    return send


def error(answer: httpx.Response, status: int) -> str:
    """Asserts the shape every error has, and returns its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == status
    return body["message"]


def detail(api: httpx.Client, sandbox_id: str) -> dict[str, Any]:
    answer = api.get(f"/sandboxes/{sandbox_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_pause(api: httpx.Client, create: Callable[..., str], to: Post) -> None:
    sandbox_id = create()
    paused = to(sandbox_id, "pause")
    assert (paused.status_code, paused.content) == (204, b"")
    assert detail(api, sandbox_id)["state"] == "paused"
    again = error(to(sandbox_id, "pause", memory=True), 409)
    assert again == f"Error pausing sandbox - sandbox '{sandbox_id}' is already paused"
    error(to(NOBODY, "pause"), 404)
    error(to(sandbox_id, "pause", memory="yes"), 400)


# A paused sandbox has neither a deadline to move nor a network to change.
def test_what_a_paused_one_does_not_have(create: Callable[..., str], to: Post) -> None:
    sandbox_id = create()
    to(sandbox_id, "pause")
    error(to(sandbox_id, "timeout", timeout=60), 404)
    error(to(sandbox_id, "refreshes", duration=60), 404)
    error(to(sandbox_id, "snapshots"), 404)
    assert to(sandbox_id, "connect", timeout=60).status_code == 201


@pytest.mark.parametrize("prefix", ["", "/v2"])
def test_connect(api: httpx.Client, create: Callable[..., str], to: Post, prefix: str) -> None:
    sandbox_id = create(timeout=100)
    before = detail(api, sandbox_id)
    running = to(sandbox_id, "connect", prefix, timeout=10)
    assert running.status_code == 200
    assert detail(api, sandbox_id)["endAt"] == before["endAt"]
    to(sandbox_id, "pause")
    resumed = to(sandbox_id, "connect", prefix, timeout=200)
    assert resumed.status_code == 201
    assert resumed.json() == running.json()
    assert resumed.json()["sandboxID"] == sandbox_id
    assert resumed.json()["envdAccessToken"] == before["envdAccessToken"]
    after = detail(api, sandbox_id)
    length = when(after["endAt"]) - when(after["startedAt"])
    assert timedelta(seconds=195) < length < timedelta(seconds=205)
    error(to(sandbox_id, "connect", prefix, timeout=-1), 400)
    error(to(NOBODY, "connect", prefix, timeout=10), 404)


def test_connect_without_a_timeout(api: httpx.Client, create: Callable[..., str], to: Post) -> None:
    sandbox_id = create()
    to(sandbox_id, "pause")
    error(api.post(f"/sandboxes/{sandbox_id}/connect", json={}), 400)
    assert detail(api, sandbox_id)["state"] == "paused"
    assert api.post(f"/v2/sandboxes/{sandbox_id}/connect", json={}).status_code == 201
    after = detail(api, sandbox_id)
    length = when(after["endAt"]) - when(after["startedAt"])
    assert timedelta(seconds=295) < length < timedelta(seconds=305)


@pytest.mark.parametrize("what", ["connect", "resume"])
def test_the_longest_life_holds_for_a_resume(
    api: httpx.Client, create: Callable[..., str], to: Post, what: str
) -> None:
    sandbox_id = create()
    to(sandbox_id, "pause")
    message = error(to(sandbox_id, what, timeout=10_000_000), 400)
    assert message.startswith("Timeout cannot be greater than")
    assert detail(api, sandbox_id)["state"] == "paused"


def test_memory_cannot_be_left_out_on_connect(
    api: httpx.Client, create: Callable[..., str], to: Post
) -> None:
    sandbox_id = create()
    to(sandbox_id, "pause")
    refused = to(sandbox_id, "connect", "/v2", memory=False)
    error(refused, 400)
    assert refused.json()["error_code"] == "sandbox_memory_override_disabled"
    assert detail(api, sandbox_id)["state"] == "paused"


def test_resume(api: httpx.Client, create: Callable[..., str], to: Post) -> None:
    sandbox_id = create()
    assert "already running" in error(to(sandbox_id, "resume", timeout=60), 409)
    to(sandbox_id, "pause")
    resumed = to(sandbox_id, "resume", timeout=100)
    assert resumed.status_code == 201
    assert resumed.json()["sandboxID"] == sandbox_id
    after = detail(api, sandbox_id)
    assert (after["state"], after["lifecycle"]["onTimeout"]) == ("running", "kill")
    length = when(after["endAt"]) - when(after["startedAt"])
    assert timedelta(seconds=95) < length < timedelta(seconds=105)
    to(sandbox_id, "pause")
    assert to(sandbox_id, "resume").status_code == 201
    error(to(NOBODY, "resume"), 404)


def test_resume_may_say_what_becomes_of_it(
    api: httpx.Client, create: Callable[..., str], to: Post
) -> None:
    sandbox_id = create()
    to(sandbox_id, "pause")
    assert to(sandbox_id, "resume", timeout=60, autoPause=True).status_code == 201
    assert detail(api, sandbox_id)["lifecycle"]["onTimeout"] == "pause"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"autoPauseMemory": False}, "autoPauseMemory"),
        ({"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}, ""),
    ],
)
def test_what_cannot_go_together_is_refused(
    api: httpx.Client, body: dict[str, Any], word: str
) -> None:
    refused = api.post("/v2/sandboxes", json={"templateID": "base", **body})
    assert word in error(refused, 400)


def test_what_was_asked_for_is_shown(api: httpx.Client, create: Callable[..., str]) -> None:
    shown = {
        create(): {"onTimeout": "kill", "autoResume": False},
        create(autoPause=True): {"onTimeout": "pause", "autoResume": False},
        create(path="/sandboxes", autoPause=True, autoResume={"enabled": True}): {
            "onTimeout": "pause",
            "autoResume": True,
        },
    }
    for sandbox_id, lifecycle in shown.items():
        assert detail(api, sandbox_id)["lifecycle"] == lifecycle


def test_the_old_list_has_those_that_run(
    api: httpx.Client, create: Callable[..., str], to: Post
) -> None:
    name = uuid4().hex
    group = {"metadata": f"group={name}"}
    running, paused = (create(metadata={"group": name}) for _ in range(2))
    to(paused, "pause")
    old = api.get("/sandboxes", params=group)
    assert [entry["sandboxID"] for entry in old.json()] == [running]
    new = api.get("/v2/sandboxes", params=group)
    assert [entry["sandboxID"] for entry in new.json()] == [paused, running]
    assert [entry["state"] for entry in new.json()] == ["paused", "running"]
    assert new.headers["x-total-running"] == "1"
    only_paused = api.get("/v2/sandboxes", params={**group, "state": "paused"})
    assert [entry["sandboxID"] for entry in only_paused.json()] == [paused]
    assert "x-total-running" not in only_paused.headers


def test_pages_go_on_across_states(api: httpx.Client, create: Callable[..., str], to: Post) -> None:
    name = uuid4().hex
    made = [create(metadata={"group": name}) for _ in range(4)]
    for sandbox_id in made[::2]:
        to(sandbox_id, "pause")
    query = {"metadata": f"group={name}", "limit": 1}
    seen: list[str] = []
    while True:
        page = api.get("/v2/sandboxes", params=query)
        seen += [entry["sandboxID"] for entry in page.json()]
        if "x-next-token" not in page.headers:
            break
        query["nextToken"] = page.headers["x-next-token"]
    assert seen == made[::-1]


def test_a_create_that_is_repeated_finds_the_paused_one(
    api: httpx.Client, create: Callable[..., str], to: Post
) -> None:
    key = {"Idempotency-Key": f"paused-{datetime.now().timestamp():.0f}"}
    body = {"templateID": "base", "timeout": 300}
    first = api.post("/v2/sandboxes", json=body, headers=key)
    assert first.status_code == 201, first.text
    sandbox_id = first.json()["sandboxID"]
    try:
        to(sandbox_id, "pause")
        again = api.post("/v2/sandboxes", json=body, headers=key)
        assert json.loads(again.text)["sandboxID"] == sandbox_id
    finally:
        api.delete(f"/sandboxes/{sandbox_id}")


def test_the_older_form_of_an_id(api: httpx.Client, create: Callable[..., str], to: Post) -> None:
    sandbox_id = f"{create()}-6532622b"
    assert to(sandbox_id, "pause").status_code == 204
    assert to(sandbox_id, "connect", timeout=60).status_code == 201
    assert api.delete(f"/sandboxes/{sandbox_id}").status_code == 204
