"""Running code in sandboxes of `code-interpreter-v1`: with the SDK, and without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Context, Execution, Result, Sandbox

from support import names, routing
from support.sdk import NEWEST, SDK, needs

#: What the SDKs create when nobody says otherwise.
TEMPLATE = "code-interpreter-v1"

#: Where its server listens.
PORT = 49999

#: How each language says that it has begun, and waits for a file.
LATCHED = {
    # One write, so that it is told in one piece.
    "python": "print('begun\\n', end='', flush=True)\n"
    "import os, time\nwhile not os.path.exists('{path}'): time.sleep(0.01)",
    "javascript": "console.log('begun')\nwhile (!require('fs').existsSync('{path}'))"
    " await new Promise((done) => setTimeout(done, 10))",
    "bash": "echo begun; until [ -e {path} ]; do sleep 0.01; done",
}

#: Later releases can also list, restart and remove contexts.
manages_contexts = needs(Sandbox, "restart_code_context")


def require_names() -> None:
    """Skips where this SDK cannot reach an interpreter: older ones go by the name of its port."""
    if SDK < NEWEST and not names.resolve():
        pytest.skip("names do not resolve here: as root, the tests bring a resolver")


def http(sandbox: Sandbox | AsyncSandbox) -> httpx.Client:
    """A plain client of the interpreter's port, with the sandbox's access token."""
    client = routing.client(sandbox.sandbox_id, PORT)
    if sandbox._envd_access_token:
        client.headers["X-Access-Token"] = sandbox._envd_access_token
    return client


def stream(client: httpx.Client, code: str, **body: Any) -> Iterator[dict[str, Any]]:
    """Events of an execute as they arrive. Closed early, it leaves as a client does."""
    with client.stream("POST", "/execute", json={"code": code, **body}) as answer:
        assert answer.status_code == 200, answer.read()
        rest = b""
        for piece in answer.iter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)
        assert rest == b"", "the last line is not complete"


def events(sandbox: Sandbox | AsyncSandbox, code: str, **body: Any) -> list[dict[str, Any]]:
    """All events of an execute, keepalives excepted."""
    with http(sandbox) as client:
        return [event for event in stream(client, code, **body) if event["type"] != "keepalive"]


def begun(told: Iterator[dict[str, Any]]) -> None:
    """Reads what a cell of `latch` says first: from then on it runs."""
    said = (event for event in told if event["type"] != "keepalive")
    assert next(said)["type"] == "number_of_executions"
    first = next(said)
    assert (first["type"], first["text"]) == ("stdout", "begun\n")


def out(execution: Execution) -> str:
    """What a cell printed, as far as it went well."""
    assert execution.error is None, execution.error
    return "".join(execution.logs.stdout)


def err(execution: Execution) -> str:
    """What a cell that went well printed on standard error."""
    assert execution.error is None, execution.error
    return "".join(execution.logs.stderr)


def value(execution: Execution) -> str | None:
    """The text of a cell's last expression, as far as it went well."""
    assert execution.error is None, execution.error
    return execution.text


def latch(language: str, path: str) -> str:
    """A cell that prints `begun` and ends when that file is there."""
    return LATCHED[language].replace("{path}", path)


def only(execution: Execution) -> Result:
    """The one result of a cell that went well."""
    assert execution.error is None, execution.error
    (result,) = execution.results
    return result


def ask(sandbox: Sandbox, **options: Any) -> Execution:
    """Runs a cell that says 2: as its result, or where a language has none, as its output."""
    context = options.get("context")
    language = context.language if context else options.get("language")
    code = "echo $((1 + 1))" if language == "bash" else "1 + 1"
    return sandbox.run_code(code, timeout=60, **options)


def still_works(sandbox: Sandbox, **options: Any) -> None:
    """Asserts that a cell runs as if nothing had been before."""
    execution = ask(sandbox, **options)
    assert execution.error is None, execution
    assert (execution.text or "".join(execution.logs.stdout)).strip() == "2", execution


def remove(sandbox: Sandbox, context: Context) -> None:
    """Removes a context; older SDKs cannot."""
    with http(sandbox) as client:
        answer = client.delete(f"/contexts/{context.id}")
        assert answer.status_code in {200, 404}, answer.text
