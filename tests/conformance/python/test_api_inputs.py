"""The REST API against requests no SDK sends: each gets a JSON error that says what is wrong."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from support import patient
from support.sdk import newest
from support.wait import wait_for

pytestmark = newest


def check_error(answer: httpx.Response, status: int) -> str:
    """Asserts the shape every error has, and returns its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert body["code"] == status
    assert isinstance(body["message"], str) and body["message"]
    return body["message"]


@pytest.fixture
def post(api: httpx.Client) -> Iterator[Callable[..., httpx.Response]]:
    """Posts to the API, and ends whatever sandboxes that made."""
    made: list[str] = []

    def send(path: str, **request: Any) -> httpx.Response:
        answer = api.post(path, **request)
        if answer.status_code == 201 and "sandboxID" in answer.text:
            made.append(answer.json()["sandboxID"])
        return answer

    yield send
    for sandbox_id in made:
        api.delete(f"/sandboxes/{sandbox_id}")


def test_health_needs_no_key(stack: object) -> None:
    answer = patient.get(f"{os.environ['E2B_API_URL']}/health")
    assert (answer.status_code, answer.text) == (200, "Health check successful")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "authorization header is missing"),
        ({"X-API-Key": ""}, ""),
        ({"X-API-Key": "not-a-key"}, "authorization header is malformed"),
        ({"X-API-Key": "e2b_xyz"}, "Invalid API key"),
        ({"X-API-Key": "e2b_" + "0" * 40}, "Invalid API key"),
        ({"X-API-Key": "e2b_" + "0" * 100_000}, ""),
        ({"X-API-Key": "e2b_' OR 1=1 --"}, ""),
        ({"Authorization": "Bearer e2b_" + "0" * 40}, ""),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, ""),
    ],
)
def test_bad_credentials_are_401(stack: object, headers: dict[str, str], message: str) -> None:
    answer = patient.get(f"{os.environ['E2B_API_URL']}/v2/sandboxes", headers=headers)
    if answer.status_code == 431:
        return  # A header of that size need not be read at all.
    assert message in check_error(answer, 401)


def test_the_key_is_needed_everywhere(stack: object, shared: Sandbox) -> None:
    base = f"/sandboxes/{shared.sandbox_id}"
    calls = [
        ("GET", "/sandboxes"),
        ("GET", "/v2/sandboxes"),
        ("POST", "/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("GET", base),
        ("DELETE", base),
        ("POST", f"{base}/timeout"),
        ("POST", f"{base}/connect"),
        ("POST", f"/v2{base}/connect"),
        ("POST", f"{base}/refreshes"),
        ("POST", f"{base}/pause"),
        ("POST", f"{base}/resume"),
        ("POST", f"{base}/fork"),
        ("POST", f"{base}/snapshots"),
        ("POST", f"/atoll{base}/fork"),
        ("POST", f"/atoll{base}/rewind"),
        ("GET", f"/atoll{base}/lineage"),
        ("GET", "/snapshots"),
        ("DELETE", "/templates/base"),
        ("GET", f"{base}/metrics"),
        ("GET", "/sandboxes/metrics"),
        ("GET", "/templates"),
    ]
    for method, path in calls:
        # A connection each: the server need not read a body before it refuses, and closes then.
        url = os.environ["E2B_API_URL"] + path
        answer = httpx.request(method, url, json={"templateID": "base", "timeout": 1})
        assert answer.status_code == 401, f"{method} {path}: {answer.status_code}"
    assert shared.is_running()


NOT_BODIES = {
    "nothing": b"",
    "not JSON": b"templateID=base",
    "cut off": b'{"templateID": "base"',
    "an array": b"[]",
    "a string": b'"base"',
    "null": b"null",
    "not UTF-8": b'{"templateID": "\xff\xfe"}',
    "deeply nested": b"[" * 100_000,
    "no template": b"{}",
    "a number for a string": b'{"templateID": 1}',
    "a string for a number": b'{"templateID": "base", "timeout": "60"}',
    "a fraction": b'{"templateID": "base", "timeout": 1.5}',
    "metadata that is no map": b'{"templateID": "base", "metadata": ["a"]}',
    "variables that are no text": b'{"templateID": "base", "envVars": {"A": 1}}',
    "null for a map's value": b'{"templateID": "base", "metadata": {"a": null}}',
}


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])
@pytest.mark.parametrize("body", NOT_BODIES.values(), ids=NOT_BODIES.keys())
def test_bad_bodies_are_400(post: Callable[..., httpx.Response], path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    check_error(post(path, content=body, headers=headers), 400)


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])
@pytest.mark.parametrize("timeout", [0, -1, -(2**31), 2**31, 2**63, 10**30, 7 * 24 * 3600])
def test_bad_timeouts_are_400(post: Callable[..., httpx.Response], path: str, timeout: int) -> None:
    body = {"templateID": "base", "timeout": timeout}
    message = check_error(post(path, json=body), 400)
    if timeout == 0:
        assert message == "Timeout must be greater than 0"
    if timeout == 7 * 24 * 3600:
        assert message.startswith("Timeout cannot be greater than")


@pytest.mark.parametrize("timeout", [-1, 2**31, 10**30, "60", None, 1.5])
def test_set_timeout_is_as_strict(api: httpx.Client, shared: Sandbox, timeout: object) -> None:
    path = f"/sandboxes/{shared.sandbox_id}/timeout"
    check_error(api.post(path, json={"timeout": timeout}), 400)
    assert shared.is_running()


def test_set_timeout_to_zero_ends_it(api: httpx.Client, create: Callable[..., Sandbox]) -> None:
    sandbox = create()
    answer = api.post(f"/sandboxes/{sandbox.sandbox_id}/timeout", json={"timeout": 0})
    assert answer.status_code == 204
    wait_for("the sandbox to end", lambda: not sandbox.is_running())


@pytest.mark.parametrize(
    ("template", "status"),
    [
        ("no-such-template", 404),
        ("", 400),
        (" ", 400),
        ("a/b/c", 400),
        ("../../etc/passwd", 400),
        ("base:", 400),
        (":tag", 400),
        ("base;rm", 400),
        ("bäse", 400),
        ("x" * 10_000, None),
        ("'; DROP TABLE templates; --", 400),
        ("base\x00", 400),
    ],
)
def test_templates_that_are_not(
    post: Callable[..., httpx.Response], template: str, status: int | None
) -> None:
    answer = post("/v2/sandboxes", json={"templateID": template})
    message = check_error(answer, status or answer.status_code)
    assert answer.status_code in {400, 404}
    if status == 404:
        assert message == f"template '{template}' not found"


@pytest.mark.parametrize("template", ["base", " Base ", "BASE"])
def test_template_names_have_no_case(post: Callable[..., httpx.Response], template: str) -> None:
    assert post("/v2/sandboxes", json={"templateID": template, "timeout": 30}).status_code == 201


#: Paths as they go over the wire, and what they must answer.
IDS = [
    ("nonexistingsandbox", 404),
    ("non-existing", 404),
    ("i0000000000000000000-6532622b", 404),
    ("a-b-c", 400),
    ("..", None),
    ("%2e%2e", None),
    ("%2e%2e%2f%2e%2e%2fetc", 400),
    ("a%2fb", 400),
    ("A", 400),
    ("i%00", 400),
    ("%C3%BC", 400),
    ("%FF", 400),
    ("i.sbx", 400),
    ("x" * 5000, None),
]


@pytest.mark.parametrize(("sandbox_id", "status"), IDS, ids=[raw[:20] for raw, _ in IDS])
@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("POST", "/timeout")])
def test_ids_that_are_not(
    api: httpx.Client, method: str, tail: str, sandbox_id: str, status: int | None
) -> None:
    url = api.base_url.copy_with(raw_path=f"/sandboxes/{sandbox_id}{tail}".encode())
    answer = api.request(method, url, json={"timeout": 10} if tail else None)
    assert answer.status_code in {400, 404, 405, 414}, answer.text
    check_error(answer, status or answer.status_code)


def test_a_missing_sandbox_is_named(api: httpx.Client) -> None:
    message = check_error(api.get("/sandboxes/inotthere"), 404)
    assert message == "Sandbox \"inotthere\" doesn't exist or you don't have access to it"


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=101",
        "limit=x",
        "limit=99999999999999999999",
        "nextToken=%00",
        "nextToken=AAAA",
        "nextToken=../../x",
        "state=flying",
        "order=up",
        "startedAfter=yesterday",
        "template=a/b/c",
    ],
)
def test_bad_list_queries_are_400(api: httpx.Client, query: str) -> None:
    check_error(api.get(f"/v2/sandboxes?{query}"), 400)


def test_a_template_nobody_has_lists_nothing(api: httpx.Client) -> None:
    answer = api.get("/v2/sandboxes?template=nobody-has-this")
    assert (answer.status_code, answer.json()) == (200, [])


def test_a_body_over_the_limit_is_refused(api: httpx.Client) -> None:
    body = b'{"templateID": "base", "metadata": {"a": "' + b"x" * (17 << 20) + b'"}}'
    try:
        answer = api.post(
            "/v2/sandboxes", content=body, headers={"Content-Type": "application/json"}
        )
    except httpx.WriteError:
        return  # Refused before all of it was sent.
    check_error(answer, 413)


# Rules: TRAP-45
def test_a_body_without_a_length_may_be_sent(post: Callable[..., httpx.Response]) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"templateID": "base", '
        yield b'"timeout": 30}'

    headers = {"Content-Type": "application/json"}
    assert post("/v2/sandboxes", content=chunks(), headers=headers).status_code == 201


def test_unknown_fields_do_no_harm(post: Callable[..., httpx.Response]) -> None:
    body = {"templateID": "base", "timeout": 30, "someday": {"x": [1]}}
    assert post("/v2/sandboxes", json=body).status_code == 201


#: Fields of the protocol that change what a sandbox is; ignoring one would be worse than refusing.
UNSUPPORTED = [
    {"network": {"denyOut": ["8.8.8.8"]}},
    {"network": {"allowPublicTraffic": False}},
    {"network": {"egressProxy": {"address": "192.0.2.1:1080"}}},
    {"volumeMounts": [{"name": "v", "path": "/v"}]},
    {"iam": {"tokens": {"a": {"audience": "x", "tokenType": "JWT-SVID"}}}},
]


# Rules: TRAP-45
@pytest.mark.parametrize("field", UNSUPPORTED, ids=[json.dumps(f)[:40] for f in UNSUPPORTED])
def test_what_cannot_be_honoured_is_refused(
    post: Callable[..., httpx.Response], field: dict[str, Any]
) -> None:
    answer = post("/v2/sandboxes", json={"templateID": "base", "timeout": 30, **field})
    assert answer.status_code in {400, 403}, answer.text
    body = answer.json()
    assert body["code"] == answer.status_code
    assert body["error_code"].startswith("ATL-")


def test_the_default_of_such_a_field_is_accepted(post: Callable[..., httpx.Response]) -> None:
    body = {
        "templateID": "base",
        "timeout": 30,
        "autoPause": False,
        "autoResume": {"enabled": False},
        "network": {},
        "volumeMounts": [],
    }
    assert post("/v2/sandboxes", json=body).status_code == 201


def test_unknown_routes_and_methods(api: httpx.Client) -> None:
    check_error(api.get("/nothing/here"), 404)
    check_error(api.put("/v2/sandboxes", json={}), 405)


# Rules: SDK-4
def test_default_timeouts(post: Callable[..., httpx.Response], api: httpx.Client) -> None:
    for path, seconds in [("/sandboxes", 15), ("/v2/sandboxes", 300)]:
        made = post(path, json={"templateID": "base"}).json()
        info = api.get(f"/sandboxes/{made['sandboxID']}").json()
        start, end = (datetime.fromisoformat(info[key][:19]) for key in ("startedAt", "endAt"))
        assert abs((end - start).total_seconds() - seconds) <= 2


# Rules: TRAP-45
def test_the_same_idempotency_key_gives_the_same_sandbox(
    post: Callable[..., httpx.Response],
) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"templateID": "base", "timeout": 30}
    first = post("/v2/sandboxes", json=body, headers=headers)
    second = post("/v2/sandboxes", json=body, headers=headers)
    assert first.status_code == second.status_code == 201
    assert first.json()["sandboxID"] == second.json()["sandboxID"]


# Rules: GATE-1, SDK-3
def test_a_sandbox_object_has_what_clients_need(post: Callable[..., httpx.Response]) -> None:
    body = post("/v2/sandboxes", json={"templateID": "base", "timeout": 30}).json()
    assert body["clientID"] == "6532622b"
    assert body["envdVersion"].count(".") == 2
    assert body["alias"] == "base"
    assert len(body["templateID"]) == 20
    assert body["envdAccessToken"]


def test_web_pages_cannot_use_the_development_key(api: httpx.Client) -> None:
    answer = api.get("/v2/sandboxes", headers={"Origin": "https://example.com"})
    message = check_error(answer, 401)
    assert "development key" in message or "--fresh-keys" in answer.text


def test_half_a_request_is_not_waited_for_forever(stack: object) -> None:
    url = httpx.URL(os.environ["E2B_API_URL"])
    with socket.create_connection((url.host, url.port), timeout=30) as connection:
        connection.sendall(b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Le")
        # An answer or a plain close; what counts is that it ends.
        connection.recv(1000)
