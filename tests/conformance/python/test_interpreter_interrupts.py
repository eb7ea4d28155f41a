"""Cells that are given up: by a timeout, by a client that leaves, by asking. And many at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from e2b import TimeoutException
from e2b_code_interpreter import Context, Execution, Sandbox

from support.interpreter import (
    LATCHED,
    http,
    latch,
    out,
    remove,
    still_works,
    stream,
    value,
)
from support.sdk import NEWEST, SDK, newest

#: Cells that do not end by themselves.
ENDLESS = {
    "python, asleep": ("python", "import time; time.sleep(300)"),
    "python, busy": ("python", "while True: pass"),
    "python, in a coroutine": ("python", "import asyncio; await asyncio.sleep(300)"),
    "python, printing": ("python", "while True: print('x' * 1000)"),
    "python, in a program": ("python", "import subprocess; subprocess.run(['sleep', '300'])"),
    "python, in a shell line": ("python", "!sleep 300"),
    "python, a thread waits": (
        "python",
        "import threading, time\nthread = threading.Thread(target=time.sleep, args=(300,),"
        " daemon=True)\nthread.start(); thread.join()",
    ),
    "javascript, asleep": ("javascript", "await new Promise((done) => setTimeout(done, 300_000))"),
    "javascript, busy": ("javascript", "for (;;) {}"),
    "javascript, printing": ("javascript", "for (;;) console.log('x'.repeat(1000))"),
    "typescript, busy": ("typescript", "while (true as boolean) {}"),
    "bash, asleep": ("bash", "sleep 300"),
    "bash, busy": ("bash", "while :; do :; done"),
    "bash, printing": ("bash", "yes"),
    "bash, in a pipe": ("bash", "sleep 300 | cat"),
}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


# Rules: INT-25, TRAP-22
@pytest.mark.parametrize("name", ENDLESS)
def test_after_a_timeout_the_next_cell_runs(interpreter: Sandbox, name: str) -> None:
    if "printing" in name and SDK < NEWEST:
        pytest.skip("the timeout of this release is that of a single read")
    language, code = ENDLESS[name]
    made = interpreter.create_code_context(language=language)
    seed = {"bash": "kept=1"}.get(language, "kept = 1")
    assert interpreter.run_code(seed, context=made).error is None
    with pytest.raises(TimeoutException, match="timeout"):
        interpreter.run_code(code, context=made, timeout=1.5)
    if language == "bash":
        assert out(interpreter.run_code("echo $((1 + 1))", context=made, timeout=60)) == "2\n"
    else:
        still_works(interpreter, context=made)
    remove(interpreter, made)


# Rules: INT-25, INT-23
@pytest.mark.parametrize(
    ("language", "keep", "endless", "ask"),
    [
        ("python", "kept = 42", "import time; time.sleep(300)", "print(kept)"),
        ("python", "kept = 42", "while True: pass", "print(kept)"),
        ("python", "kept = 42", "import asyncio; await asyncio.sleep(300)", "print(kept)"),
        ("bash", "kept=42", "sleep 300", "echo $kept"),
    ],
)
def test_an_interrupted_cell_costs_no_state(
    interpreter: Sandbox, language: str, keep: str, endless: str, ask: str
) -> None:
    made = interpreter.create_code_context(language=language)
    assert interpreter.run_code(keep, context=made).error is None
    with pytest.raises(TimeoutException):
        interpreter.run_code(endless, context=made, timeout=1.5)
    after = interpreter.run_code(ask, context=made, timeout=60)
    assert (out(after), after.logs.stderr) == ("42\n", [])
    remove(interpreter, made)


STUBBORN = """
import time
while True:
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        pass
"""

# It takes no signal either.
DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(300)"


# Rules: INT-25, INT-30
@newest
@pytest.mark.parametrize(
    ("language", "code", "ask"),
    [
        ("python", STUBBORN, "print(1 + 1)"),
        ("python", DEAF, "print(1 + 1)"),
        ("bash", "trap '' INT; while :; do sleep 300; done", "echo $((1 + 1))"),
    ],
)
def test_a_cell_that_will_not_be_interrupted(
    interpreter: Sandbox, language: str, code: str, ask: str
) -> None:
    """It is ended with its kernel after a while, and the next one is told."""
    made = interpreter.create_code_context(language=language)
    with pytest.raises(TimeoutException):
        interpreter.run_code(code, context=made, timeout=1.5)
    after = interpreter.run_code(ask, context=made, timeout=60)
    assert out(after) == "2\n"
    assert "restarted" in "".join(after.logs.stderr)
    # Once is enough.
    assert interpreter.run_code(ask, context=made).logs.stderr == []
    remove(interpreter, made)


# Rules: INT-25
@pytest.mark.parametrize("language", LATCHED)
def test_a_client_that_leaves_amid_the_stream(interpreter: Sandbox, language: str) -> None:
    made = interpreter.create_code_context(language=language)
    with http(interpreter) as client:
        told = stream(client, latch(language, "/nowhere"), context_id=made.id)
        assert next(told)["type"] == "number_of_executions"
        assert next(told)["text"] == "begun\n"
        told.close()
    code = "echo $((1 + 1))" if language == "bash" else "1 + 1"
    after = interpreter.run_code(code, context=made, timeout=60)
    assert (after.text or out(after)).strip() == "2"
    remove(interpreter, made)


# Rules: INT-25, INT-24
def test_a_client_that_leaves_the_queue(
    interpreter: Sandbox, context: Context, pool: ThreadPoolExecutor
) -> None:
    """What nobody waits for any more is not run."""
    with http(interpreter) as client:
        told = stream(client, latch("python", "/tmp/leave-queue"), context_id=context.id)
        assert [next(told)["type"], next(told)["type"]] == ["number_of_executions", "stdout"]
        with pytest.raises(TimeoutException):
            interpreter.run_code("open('/tmp/was-run', 'w')", context=context, timeout=1.5)
        interpreter.files.write("/tmp/leave-queue", "")
        assert list(told)[-1] == {"type": "end_of_execution"}
    still_works(interpreter, context=context)
    assert not interpreter.files.exists("/tmp/was-run")


# Rules: INT-26
@pytest.mark.parametrize("language", LATCHED)
def test_interrupting_by_request(interpreter: Sandbox, language: str) -> None:
    made = interpreter.create_code_context(language=language)
    with http(interpreter) as client, http(interpreter) as other:
        told = stream(client, latch(language, "/nowhere"), context_id=made.id)
        assert [next(told)["type"], next(told)["type"]] == ["number_of_executions", "stdout"]
        answer = other.post(f"/contexts/{made.id}/interrupt")
        assert (answer.status_code, answer.json()) == (200, None)
        rest = [event for event in told if event["type"] != "keepalive"]
        assert [event["type"] for event in rest if event["type"] != "stderr"] == [
            "error",
            "end_of_execution",
        ], rest
        if language == "python":
            assert rest[-2]["name"] == "KeyboardInterrupt"
        # With nothing to interrupt it does nothing.
        assert other.post(f"/contexts/{made.id}/interrupt").status_code == 200
    code = "echo $((1 + 1))" if language == "bash" else "1 + 1"
    after = interpreter.run_code(code, context=made, timeout=60)
    assert (after.text or out(after)).strip() == "2"
    remove(interpreter, made)


# Rules: INT-24
@pytest.mark.parametrize("language", LATCHED)
def test_while_one_context_is_busy_others_answer(
    interpreter: Sandbox, pool: ThreadPoolExecutor, language: str
) -> None:
    path = f"/tmp/others-{language}"
    busy = interpreter.create_code_context(language=language)
    begun = threading.Event()
    running = pool.submit(
        interpreter.run_code,
        latch(language, path),
        context=busy,
        on_stdout=lambda message: begun.set(),
        timeout=60,
    )
    assert begun.wait(60)
    still_works(interpreter)
    still_works(interpreter, language="javascript")
    other = interpreter.create_code_context(language=language)
    touch = {"python": f"open('{path}', 'w')", "bash": f"touch {path}"}
    interpreter.run_code(
        touch.get(language, f"require('fs').writeFileSync('{path}', '')"), context=other
    )
    assert out(running.result(60)) == "begun\n"
    for made in (busy, other):
        remove(interpreter, made)


# Rules: INT-24
def test_one_cell_at_a_time_in_a_context(
    interpreter: Sandbox, context: Context, pool: ThreadPoolExecutor
) -> None:
    interpreter.run_code("running = 0; done = []; import time", context=context)
    code = """
running += 1
assert running == 1
time.sleep(0.02)
print({n})
done.append({n})
running -= 1
done.count({n})
"""

    def run(n: int) -> Execution:
        return interpreter.run_code(code.replace("{n}", str(n)), context=context)

    executions = list(pool.map(run, range(24)))
    for n, execution in enumerate(executions):
        assert (out(execution), execution.text) == (f"{n}\n", "1")
    assert sorted(execution.execution_count or 0 for execution in executions) == list(range(2, 26))
    assert value(interpreter.run_code("sorted(done) == list(range(24))", context=context)) == "True"


# Rules: INT-24
def test_first_come_first_served(interpreter: Sandbox, context: Context) -> None:
    """Cells that wait while one runs; each is sent when the one before it has been accepted."""
    interpreter.run_code("order = []", context=context)
    with http(interpreter) as client, ExitStack() as opened:
        told = stream(client, latch("python", "/tmp/in-order"), context_id=context.id)
        assert [next(told)["type"], next(told)["type"]] == ["number_of_executions", "stdout"]
        for n in range(5):
            body = {"code": f"order.append({n})", "context_id": context.id}
            answer = opened.enter_context(client.stream("POST", "/execute", json=body))
            assert answer.status_code == 200
        interpreter.files.write("/tmp/in-order", "")
        assert list(told)[-1] == {"type": "end_of_execution"}
        assert value(interpreter.run_code("order", context=context)) == "[0, 1, 2, 3, 4]"
