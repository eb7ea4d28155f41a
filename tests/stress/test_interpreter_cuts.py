"""Executes that are cut off anywhere, kernels that are killed at any moment: the next cell runs.

Every point is drawn from a seed, so that one that fails can be tried again.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from contextlib import suppress

import httpx
import pytest
from e2b_code_interpreter import Context, Sandbox

from support import routing
from support.interpreter import PORT, http, out, still_works

SEED = 6
CUTS = 40
KILLS = 15

#: Cells that print, show, fail and wait: their answers have every kind of event.
CELLS = {
    "python": """
import sys, time
for n in range(20):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    display({"n": n})
    time.sleep(0.005)
sum(range(10))
""",
    "javascript": """
for (let n = 0; n < 20; n++) {
  console.log('out', n)
  console.error('err', n)
  await new Promise((done) => setTimeout(done, 5))
}
process.exitCode
""",
    "bash": 'for n in $(seq 20); do echo "out $n"; echo "err $n" >&2; sleep 0.005; done; false',
}

#: About as long as the answer to one of these cells.
ANSWER = 8_000

#: Prints the kernel's process.
PIDS = {
    "python": "import os; print(os.getpid())",
    "javascript": "console.log(process.pid)",
    "bash": "echo $$",
}


@pytest.fixture(scope="module")
def contexts(interpreter: Sandbox) -> dict[str, Context]:
    """A context of each language, which all cuts hit."""
    return {language: interpreter.create_code_context(language=language) for language in CELLS}


def request(sandbox: Sandbox, context: Context, code: str) -> bytes:
    """An execute as it goes over the wire."""
    body = json.dumps({"code": code, "context_id": context.id}).encode()
    head = [
        "POST /execute HTTP/1.1",
        f"Host: {routing.host(sandbox.sandbox_id, PORT)}",
        f"X-Access-Token: {sandbox._envd_access_token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def next_cell_runs(sandbox: Sandbox, contexts: dict[str, Context]) -> None:
    """Asserts that every context takes the next cell as if nothing had been before."""
    for context in contexts.values():
        still_works(sandbox, context=context)


# Rules: INT-25
@pytest.mark.parametrize("language", CELLS)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_after_any_number_of_bytes(
    interpreter: Sandbox, contexts: dict[str, Context], language: str, reset: bool
) -> None:
    """Of the request and of the answer, by a close and by a reset."""
    draw = random.Random(f"{SEED} {language} {reset}")
    sent = request(interpreter, contexts[language], CELLS[language])
    for _ in range(CUTS):
        cut_request = draw.random() < 0.25
        connection = socket.create_connection(routing.proxy_address(), timeout=30)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with connection:
            if cut_request:
                connection.sendall(sent[: draw.randrange(len(sent))])
                continue
            connection.sendall(sent)
            left = draw.randrange(ANSWER)
            while left > 0 and (read := len(connection.recv(left))):
                left -= read
        if draw.random() < 0.3:
            next_cell_runs(interpreter, contexts)
    next_cell_runs(interpreter, contexts)


# Rules: INT-25
@pytest.mark.parametrize("language", CELLS)
def test_cut_after_any_number_of_events(
    interpreter: Sandbox, contexts: dict[str, Context], language: str
) -> None:
    draw = random.Random(f"{SEED} {language}")
    body = {"code": CELLS[language], "context_id": contexts[language].id}
    for _ in range(CUTS):
        left = draw.randrange(60)
        with http(interpreter) as client, client.stream("POST", "/execute", json=body) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                assert "type" in json.loads(line)
                left -= 1
                if left <= 0:
                    break
    next_cell_runs(interpreter, contexts)


# Rules: INT-30
@pytest.mark.parametrize("language", CELLS)
def test_killed_at_any_moment(
    interpreter: Sandbox, contexts: dict[str, Context], language: str
) -> None:
    """The cell says so, unless it was over already; the next one knows nothing of it."""
    draw = random.Random(f"{SEED} killed {language}")
    context = contexts[language]
    for _ in range(KILLS):
        pid = out(interpreter.run_code(PIDS[language], context=context, timeout=60)).strip()
        wait = draw.random() * 0.5
        killer = threading.Thread(
            target=interpreter.commands.run,
            args=(f"sleep {wait:.3f}; kill -9 {pid}",),
            kwargs={"user": "root"},
        )
        killer.start()
        execution = interpreter.run_code(CELLS[language], context=context, timeout=60)
        killer.join()
        name = execution.error.name if execution.error else None
        # Bash's cell ends with `false`.
        assert name in {"ContextRestarting", "ExitCode" if language == "bash" else None}
        next_cell_runs(interpreter, contexts)


# Rules: INT-25, INT-30
def test_killed_and_cut_by_many_at_once(interpreter: Sandbox, contexts: dict[str, Context]) -> None:
    """Several clients of the same contexts: some leave, some kill, all of them wait for no one."""
    draw = random.Random(SEED)

    def client(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(CUTS // 4):
            language = draw.choice(list(CELLS))
            body = {"code": CELLS[language], "context_id": contexts[language].id}
            left = draw.randrange(60)
            with (
                suppress(httpx.HTTPError),
                http(interpreter) as client,
                client.stream("POST", "/execute", json=body) as answer,
            ):
                for _ in answer.iter_lines():
                    left -= 1
                    if left <= 0:
                        break

    clients = [threading.Thread(target=client, args=(draw.random(),)) for _ in range(6)]
    for each in clients:
        each.start()
    for _ in range(4):
        pattern = draw.choice(["ipykernel", "node", "bash"])
        interpreter.commands.run(
            f"sleep {draw.random():.3f}; pgrep -P $(pgrep -n -x code-interprete) -f {pattern}"
            " | shuf -n 1 --random-source=/dev/zero | xargs -r kill -9 || true",
            user="root",
        )
    for each in clients:
        each.join()
    next_cell_runs(interpreter, contexts)
