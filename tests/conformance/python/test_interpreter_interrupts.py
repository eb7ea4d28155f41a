"""Cells that are given up: by a timeout, by a client that leaves, by asking. And many at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from e2b import TimeoutException
from e2b_code_interpreter import Context, Execution, Sandbox

from support.interpreter import (
    LATCHED,
    ask,
    begun,
    http,
    latch,
    out,
    remove,
    still_works,
    stream,
    value,
)
from support.sdk import newest
from support.wait import wait_for

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


#: Keep a variable, and show it.
KEEP = {"python": "kept = 42", "bash": "kept=42"}
SHOW = {"python": "print(kept)", "bash": "echo $kept"}

#: One of each language for every SDK: what ends a cell is the server's affair.
SOME = [name if "asleep" in name else pytest.param(name, marks=newest) for name in ENDLESS]


# Rules: INT-25, INT-23, TRAP-22
@pytest.mark.parametrize("name", SOME)
def test_after_a_timeout_the_next_cell_runs(interpreter: Sandbox, name: str) -> None:
    """And it has all variables, where an interrupt is enough to end any cell."""
    language, code = ENDLESS[name]
    made = interpreter.create_code_context(language=language)
    if language in KEEP:
        assert interpreter.run_code(KEEP[language], context=made).error is None
    with pytest.raises(TimeoutException, match="timeout"):
        interpreter.run_code(code, context=made, timeout=1.5)
    still_works(interpreter, context=made)
    if language in KEEP:
        after = interpreter.run_code(SHOW[language], context=made, timeout=60)
        assert (out(after), after.logs.stderr) == ("42\n", [])
    remove(interpreter, made)


#: Cells that no interrupt ends, and that write a file once they are armed.
STUBBORN = {
    "python, which catches it": (
        "python",
        "import time\nwhile True:\n    try:\n        open('ARMED', 'w').close()\n"
        "        time.sleep(300)\n    except KeyboardInterrupt:\n        pass",
    ),
    "python, which ignores it": (
        "python",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "open('ARMED', 'w').close()\ntime.sleep(300)",
    ),
    "python, which is stopped": (
        "python",
        "import subprocess\nsubprocess.run(['sh', '-c', 'kill -STOP $PPID; touch ARMED'])",
    ),
    "bash, which ignores it": (
        "bash",
        "trap '' INT; touch ARMED; while :; do sleep 300; done",
    ),
}


# Rules: INT-25, INT-30
@newest
def test_cells_that_will_not_be_interrupted(interpreter: Sandbox) -> None:
    """They are ended with their kernels after a while, and the next ones are told."""
    contexts = {
        name: interpreter.create_code_context(language=language)
        for name, (language, _) in STUBBORN.items()
    }
    for number, (name, (_, code)) in enumerate(STUBBORN.items()):
        armed = f"/tmp/armed-{number}"
        with http(interpreter) as client:
            told = stream(client, code.replace("ARMED", armed), context_id=contexts[name].id)
            next(told)
            wait_for(f"{name} to be armed", lambda armed=armed: interpreter.files.exists(armed))
            told.close()
    for name, made in contexts.items():
        after = ask(interpreter, context=made)
        assert (after.error, (after.text or out(after)).strip()) == (None, "2"), name
        assert "restarted" in "".join(after.logs.stderr), name
        # Once is enough.
        assert ask(interpreter, context=made).logs.stderr == []
        remove(interpreter, made)


# Rules: INT-25
@pytest.mark.parametrize("language", LATCHED)
def test_a_client_that_leaves_amid_the_stream(interpreter: Sandbox, language: str) -> None:
    made = interpreter.create_code_context(language=language)
    with http(interpreter) as client:
        told = stream(client, latch(language, "/nowhere"), context_id=made.id)
        begun(told)
        told.close()
    still_works(interpreter, context=made)
    remove(interpreter, made)


# Rules: INT-25, INT-24
def test_a_client_that_leaves_the_queue(
    interpreter: Sandbox, context: Context, pool: ThreadPoolExecutor
) -> None:
    """What nobody waits for any more is not run."""
    with http(interpreter) as client:
        told = stream(client, latch("python", "/tmp/leave-queue"), context_id=context.id)
        begun(told)
        with pytest.raises(TimeoutException):
            interpreter.run_code("open('/tmp/was-run', 'w')", context=context, timeout=1.5)
        # That it has left comes by another way than the end of the cell before.
        assert next(told) == {"type": "keepalive"}
        interpreter.files.write("/tmp/leave-queue", "")
        assert list(told)[-1] == {"type": "end_of_execution"}
    still_works(interpreter, context=context)
    assert not interpreter.files.exists("/tmp/was-run")


# Rules: INT-26
@pytest.mark.parametrize("language", LATCHED)
def test_interrupting_by_request(interpreter: Sandbox, language: str) -> None:
    made = interpreter.create_code_context(language=language)
    # Bash takes no notice of an interrupt if the program it waits for ends well at that moment.
    code = "echo begun; sleep 300" if language == "bash" else latch(language, "/nowhere")
    with http(interpreter) as client, http(interpreter) as other:
        told = stream(client, code, context_id=made.id)
        begun(told)
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
    still_works(interpreter, context=made)
    remove(interpreter, made)


# Rules: INT-24
@pytest.mark.parametrize("language", LATCHED)
def test_while_one_context_is_busy_others_answer(
    interpreter: Sandbox, pool: ThreadPoolExecutor, language: str
) -> None:
    path = f"/tmp/others-{language}"
    busy = interpreter.create_code_context(language=language)
    heard = threading.Event()
    running = pool.submit(
        interpreter.run_code,
        latch(language, path),
        context=busy,
        on_stdout=lambda message: heard.set(),
        timeout=60,
    )
    assert heard.wait(60)
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
        begun(told)
        for n in range(5):
            body = {"code": f"order.append({n})", "context_id": context.id}
            answer = opened.enter_context(client.stream("POST", "/execute", json=body))
            assert answer.status_code == 200
        interpreter.files.write("/tmp/in-order", "")
        assert list(told)[-1] == {"type": "end_of_execution"}
        assert value(interpreter.run_code("order", context=context)) == "[0, 1, 2, 3, 4]"
