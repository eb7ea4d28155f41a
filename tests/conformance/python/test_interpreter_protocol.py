"""The code interpreter without an SDK: what goes over the wire, and who may ask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b_code_interpreter import Context, Sandbox

from support import patient, routing
from support.interpreter import PORT, TEMPLATE, begun, events, http, latch, stream
from support.sdk import newest

Create = Callable[..., Sandbox]

pytestmark = newest


@pytest.fixture
def client(interpreter: Sandbox) -> Iterator[httpx.Client]:
    with http(interpreter) as client:
        yield client


# Rules: INT-3
def test_health(client: httpx.Client) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, "OK")
    assert answer.headers["content-type"].startswith("application/json")


# Rules: INT-15, INT-17, INT-18, INT-19
def test_the_events_of_a_cell(interpreter: Sandbox, context: Context) -> None:
    code = "import sys\nsys.stdout.write('1\\n')\nsys.stdout.flush()\nsys.stderr.write('2\\n')\n"
    code += "sys.stderr.flush()\ndisplay({'text/latex': '$x$', 'x/odd': 'y'}, raw=True)\n'three'"
    told = events(interpreter, code, context_id=context.id)
    for event in told:
        time = event.pop("timestamp", None)
        assert (time is not None) == (event["type"] in {"stdout", "stderr"})
        assert time is None or re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", time)
    assert told == [
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "stdout", "text": "1\n"},
        {"type": "stderr", "text": "2\n"},
        {"type": "result", "latex": "$x$", "is_main_result": False, "extra": {"x/odd": "y"}},
        {"type": "result", "text": "three", "is_main_result": True, "extra": {}},
        {"type": "end_of_execution"},
    ]


# Rules: INT-15
def test_every_line_is_one_compact_object(client: httpx.Client) -> None:
    answer = client.post("/execute", json={"code": "print('\u2028 \x85')\n{'a': [1]}"})
    assert answer.status_code == 200
    assert answer.content.endswith(b"\n")
    lines = answer.content.decode().split("\n")[:-1]
    # As every client sees it, also one that takes Unicode's separators for ends of lines.
    assert lines == answer.content.decode().splitlines()
    for line in lines:
        assert line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")) or (
            "\\u" in line
        )
    assert "null" not in answer.text


# Rules: INT-15
def test_nulls_and_unknown_fields_are_fine(client: httpx.Client) -> None:
    body = {"code": "1 + 1", "context_id": None, "language": None, "env_vars": None, "odd": 1}
    answer = client.post("/execute", json=body)
    assert '"text":"2"' in answer.text
    assert client.post("/contexts", json={"language": None, "cwd": None}).json()["cwd"] == (
        "/home/user"
    )


# Rules: INT-16
def test_silence_is_broken(interpreter: Sandbox, client: httpx.Client, context: Context) -> None:
    told = stream(client, latch("python", "/tmp/silent"), context_id=context.id)
    begun(told)
    # So is that of a cell that waits for its turn.
    with http(interpreter) as other:
        waiting = stream(other, "1", context_id=context.id)
        assert next(waiting) == {"type": "keepalive"}
        assert next(told) == {"type": "keepalive"}
        interpreter.files.write("/tmp/silent", "")
        assert list(told)[-1] == {"type": "end_of_execution"}
        assert [event["type"] for event in waiting if event["type"] != "keepalive"] == [
            "number_of_executions",
            "result",
            "end_of_execution",
        ]


# Rules: INT-11
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"code": 1}',
        b'{"code": null}',
        b'{"code": "1", "env_vars": [1]}',
        b'{"code": "1", "env_vars": {"A": {}}}',
        b'{"code": "1", "context_id": 7}',
        b'{"code": "1", "language": ["python"]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_request(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/execute", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.text


# Rules: INT-11
@pytest.mark.parametrize("body", [b"{", b'{"cwd": 1}', b'{"language": {}}', b"7"])
def test_what_asks_for_no_context(client: httpx.Client, body: bytes) -> None:
    before = client.get("/contexts").json()
    headers = {"Content-Type": "application/json"}
    assert client.post("/contexts", content=body, headers=headers).status_code == 422
    assert client.get("/contexts").json() == before


# Rules: INT-11
def test_other_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/nothing").status_code == 404
    assert client.get("/execute").status_code == 405
    assert client.put("/contexts").status_code == 405
    assert client.post("/health").status_code == 405


# Rules: INT-4
def test_web_pages_may_call(client: httpx.Client) -> None:
    origin = {"Origin": "https://page.example"}
    for answer in [
        client.get("/health", headers=origin),
        client.get("/contexts", headers=origin),
        client.post("/execute", headers=origin, json={"code": "1"}),
        client.post("/execute", headers=origin, content=b"{"),
        client.delete("/contexts/nobody", headers=origin),
    ]:
        assert answer.headers["access-control-allow-origin"] == "*"
    for path, method in [("/execute", "POST"), ("/contexts", "POST"), ("/contexts/x", "DELETE")]:
        asked = {
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "content-type,x-access-token,e2b-sandbox-id",
        }
        answer = client.options(path, headers={**origin, **asked})
        assert answer.status_code in {200, 204}
        assert answer.headers["access-control-allow-origin"] == "*"
        allowed = answer.headers["access-control-allow-methods"]
        assert allowed == "*" or method in allowed
        headers = answer.headers["access-control-allow-headers"].lower()
        assert headers == "*" or "x-access-token" in headers


# Rules: INT-2, TRAP-22
def test_no_code_runs_without_the_token(interpreter: Sandbox, create_interpreter: Create) -> None:
    other = create_interpreter()
    with routing.client(interpreter.sandbox_id, PORT) as client:
        for headers in [
            {},
            {"X-Access-Token": ""},
            {"X-Access-Token": "0" * 64},
            {"X-Access-Token": str(other._envd_access_token)},
        ]:
            code = "open('/tmp/by-a-stranger', 'w')"
            answer = client.post("/execute", json={"code": code}, headers=headers)
            assert answer.status_code == 401
        token = {"X-Access-Token": str(interpreter._envd_access_token)}
        answer = client.post("/execute", json={"code": "1"}, headers=token)
        assert answer.status_code == 200
        assert client.get("/health").status_code == 200
    assert not interpreter.files.exists("/tmp/by-a-stranger")


# Rules: INT-2
def test_where_there_is_no_token_none_is_needed(api: httpx.Client) -> None:
    """Only the older route makes sandboxes without one."""
    body = {"templateID": TEMPLATE, "timeout": 120, "secure": False}
    made = api.post("/sandboxes", json=body)
    assert made.status_code == 201, made.text
    sandbox_id = made.json()["sandboxID"]
    with routing.client(sandbox_id, PORT) as client:
        answer = client.post("/execute", json={"code": "1 + 1"})
        assert (answer.status_code, '"text":"2"' in answer.text) == (200, True)
    assert api.delete(f"/sandboxes/{sandbox_id}").status_code == 204


# Rules: INT-1
def test_it_is_reached_by_name_and_by_headers(interpreter: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": interpreter.sandbox_id, "E2b-Sandbox-Port": str(PORT)}
    host, port = routing.proxy_address()
    for address in [
        {"url": f"http://{host}:{port}/health", "headers": headers},
        {
            "url": f"http://{host}:{port}/health",
            "headers": {"Host": routing.host(interpreter.sandbox_id, PORT)},
        },
    ]:
        assert patient.get(**address).json() == "OK"


# Rules: INT-1
def test_nothing_else_of_it_listens(interpreter: Sandbox) -> None:
    """Every port of a sandbox is public: kernels are spoken to by other ways."""
    interpreter.run_code("1")
    interpreter.run_code("1", language="js")
    interpreter.run_code("true", language="bash")
    listening = interpreter.commands.run("ss -Htln | awk '{print $4}'").stdout.split()
    # The name server is at an address of its own.
    ours = [address for address in listening if not address.startswith("169.254.0.22:")]
    assert {address.rpartition(":")[2] for address in ours} <= {"49999", "49983"}


# Rules: INT-15
def test_a_large_cell(client: httpx.Client) -> None:
    code = "data = '" + "x" * 5_000_000 + "'\nlen(data)"
    answer = client.post("/execute", json={"code": code})
    assert '"text":"5000000"' in answer.text
