"""What cells print: told while they run, in order, whole, and whatever is in it."""

from __future__ import annotations

import hashlib
import threading
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from e2b_code_interpreter import Context, OutputMessage, Sandbox

from support.interpreter import (
    LATCHED,
    err,
    events,
    http,
    latch,
    out,
    still_works,
    stream,
    value,
)
from support.sdk import newest
from support.wait import wait_for


class Told:
    """What the callbacks of a call have heard, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.messages: list[OutputMessage] = []
        self.heard = threading.Condition()

    def options(self) -> dict[str, Any]:
        kinds = ["stdout", "stderr", "result", "error"]
        return {f"on_{kind}": self._note(kind) for kind in kinds}

    def _note(self, kind: str) -> Any:
        def note(event: Any) -> None:
            with self.heard:
                if isinstance(event, OutputMessage):
                    assert event.error is (kind == "stderr")
                    self.messages.append(event)
                what = {"result": "text", "error": "name"}.get(kind, "line")
                self.events.append((kind, getattr(event, what)))
                self.heard.notify_all()

        return note


# Rules: INT-17, INT-19
def test_everything_is_told_in_order(interpreter: Sandbox, context: Context) -> None:
    code = """
import sys
sys.stdout.write("one\\n")
sys.stdout.flush()
sys.stderr.write("two\\n")
sys.stderr.flush()
display(3)
sys.stdout.write("four\\n")
sys.stdout.flush()
display("five")
raise ValueError("six")
"""
    told = Told()
    execution = interpreter.run_code(code, context=context, **told.options())
    assert told.events == [
        ("stdout", "one\n"),
        ("stderr", "two\n"),
        ("result", "3"),
        ("stdout", "four\n"),
        ("result", "five"),
        ("error", "ValueError"),
    ]
    assert execution.logs.stdout == ["one\n", "four\n"]
    assert execution.logs.stderr == ["two\n"]


# Rules: INT-17
def test_every_output_has_its_time(interpreter: Sandbox, context: Context) -> None:
    told = Told()
    begun = datetime.now(timezone.utc)
    code = "import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.05)"
    interpreter.run_code(code, context=context, **told.options())
    interpreter.run_code("echo 3; echo 4 >&2", language="bash", **told.options())
    interpreter.run_code("console.log(5)", language="js", **told.options())
    ended = datetime.now(timezone.utc)
    times = [
        datetime.fromisoformat(str(message.timestamp).replace("Z", "+00:00"))
        for message in told.messages
    ]
    assert len(times) >= 6
    assert times == sorted(times)
    leeway = timedelta(seconds=1)
    assert begun - leeway < times[0] and times[-1] < ended + leeway


# Rules: INT-17
@pytest.mark.parametrize(
    ("language", "code", "chunks"),
    [
        # One write: of two, the second may come later.
        ("python", "print('1\\n', end='')", ["1\n"]),
        ("python", "print('a', end='')", ["a"]),
        ("javascript", "console.log('Hello, World!')", ["Hello, World!\n"]),
        ("javascript", "console.log('a'); console.log('b')", ["a\n", "b\n"]),
        ("typescript", "console.log('a' as string, { b: 1 })", ["a { b: 1 }\n"]),
        ("bash", "echo 1", ["1\n"]),
        ("bash", "printf a", ["a"]),
    ],
)
def test_how_output_is_cut(
    interpreter: Sandbox, language: str, code: str, chunks: list[str]
) -> None:
    execution = interpreter.run_code(code, language=language)
    assert execution.logs.stdout == chunks
    assert execution.logs.stderr == []


# Rules: INT-17
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "import sys; print('out'); print('err', file=sys.stderr)"),
        ("python", "!echo out\nimport os; os.write(2, b'err\\n'); None"),
        ("python", "import os; os.system('echo out; echo err >&2'); None"),
        ("python", "import subprocess; subprocess.run('echo out; echo err >&2', shell=True); None"),
        ("javascript", "console.log('out'); console.error('err')"),
        ("javascript", "process.stdout.write('out\\n'); process.stderr.write('err\\n'); undefined"),
        (
            "javascript",
            "require('child_process').spawnSync('sh', ['-c', 'echo out; echo err >&2'],"
            " { stdio: 'inherit' }); undefined",
        ),
        ("typescript", "console.info('out'); console.warn('err')"),
        ("bash", "echo out; echo err >&2"),
    ],
)
def test_both_streams_are_told_apart(interpreter: Sandbox, language: str, code: str) -> None:
    execution = interpreter.run_code(code, language=language)
    assert out(execution).split() == ["out"]
    assert err(execution).split() == ["err"]


# Rules: INT-17
@pytest.mark.parametrize("language", LATCHED)
def test_output_is_there_while_the_cell_runs(interpreter: Sandbox, language: str) -> None:
    """The cell goes on when the test has heard of it."""
    path = f"/tmp/heard-{language}"

    def hear(message: OutputMessage) -> None:
        if message.line == "begun\n":
            interpreter.files.write(path, "")

    code = latch(language, path)
    execution = interpreter.run_code(code, language=language, on_stdout=hear, timeout=60)
    assert out(execution) == "begun\n"


#: Line separators of Unicode, at which some HTTP clients cut lines, and what JSON must escape.
TRICKY = 'a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\x00j\x7fk\rl\tm"n\\o</script>\ufeffp\uffff'
WORLD = "\u017elu\u0165ou\u010dk\u00fd k\u016f\u0148 \u65e5\u672c\u8a9e \U0001f980 e\u0301 \u202e"


# Rules: INT-17
@pytest.mark.parametrize("text", [TRICKY, WORLD, "\x1b[31mred\x1b[0m", "\r\n\r\n", " \n"])
def test_any_text_arrives(interpreter: Sandbox, context: Context, text: str) -> None:
    execution = interpreter.run_code(f"print({text!a}, end='')", context=context)
    assert out(execution) == text
    shown = interpreter.run_code(
        f"display({{'text/markdown': {text!a}}}, raw=True)", context=context
    )
    assert [result.markdown for result in shown.results] == [text]
    failed = interpreter.run_code(f"raise ValueError({text!a})", context=context)
    # Errors have no colours.
    plain = text.replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert failed.error is not None and failed.error.value == plain
    assert out(interpreter.run_code(f"text = {text!r}; len(text)", context=context)) == ""
    assert value(interpreter.run_code(f"text == {text!a}", context=context)) == "True"


# Rules: INT-17
@pytest.mark.parametrize("language", ["javascript", "bash"])
def test_any_text_arrives_from_other_languages(interpreter: Sandbox, language: str) -> None:
    text = (TRICKY + WORLD).replace("\x00", "")
    interpreter.files.write("/tmp/text", text)
    code = {
        "javascript": "process.stdout.write(require('fs').readFileSync('/tmp/text', 'utf8'))",
        "bash": "cat /tmp/text",
    }[language]
    assert out(interpreter.run_code(code, language=language)) == text


# Rules: INT-17
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", r"import os; os.write(1, b'a\xff\xfe\x00b\n'); None"),
        ("python", "import subprocess; subprocess.run(['printf', 'a\\\\377\\\\376b\\\\n']); None"),
        ("javascript", "process.stdout.write(Buffer.from([97, 255, 254, 98, 10])); undefined"),
        ("bash", r"printf 'a\377\376b\n'"),
    ],
)
def test_bytes_that_are_no_text(interpreter: Sandbox, language: str, code: str) -> None:
    printed = out(interpreter.run_code(code, language=language))
    assert printed.startswith("a\ufffd") and printed.endswith("b\n")


# Rules: INT-17
def test_characters_are_not_cut(interpreter: Sandbox) -> None:
    """Programs write bytes; a character may come in two pieces."""
    script = r"printf '\xf0\x9f'; sleep 0.1; printf '\xa6\x80\n'"
    assert out(interpreter.run_code(script, language="bash")) == "\U0001f980\n"
    crabs = "head -c 400000 /dev/zero | sed 's/\\x0/\U0001f980/g'"
    assert out(interpreter.run_code(crabs, language="bash")) == "\U0001f980" * 400_000


# Rules: INT-17
def test_a_surrogate_alone(interpreter: Sandbox, context: Context) -> None:
    """It is in no encoding: whatever becomes of it, the cell ends."""
    interpreter.run_code("print('a\\ud800b')", context=context)
    interpreter.run_code("'a\\ud800b'", context=context)
    assert value(interpreter.run_code("1 + 1", context=context)) == "2"
    interpreter.run_code("console.log('a\\ud800b')", language="js")
    assert value(interpreter.run_code("1 + 1", language="js")) == "2"


LINES = 100_000


# Rules: INT-21
@newest
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", f"for n in range({LINES}): print(n)"),
        ("javascript", f"for (let n = 0; n < {LINES}; n++) console.log(n)"),
        ("bash", f"seq 0 {LINES - 1}"),
    ],
)
def test_a_hundred_thousand_lines(interpreter: Sandbox, language: str, code: str) -> None:
    execution = interpreter.run_code(code, language=language, timeout=120)
    assert out(execution) == "".join(f"{n}\n" for n in range(LINES))


MUCH = 50_000_000


# Rules: INT-21
@newest
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", f"print('x' * {MUCH})"),
        ("python", f"!head -c {MUCH} /dev/zero | tr '\\0' x; echo"),
        ("javascript", f"console.log('x'.repeat({MUCH}))"),
        ("bash", f"head -c {MUCH} /dev/zero | tr '\\0' x; echo"),
    ],
)
def test_fifty_megabytes(interpreter: Sandbox, language: str, code: str) -> None:
    execution = interpreter.run_code(code, language=language, timeout=120)
    printed = out(execution).replace("\r\n", "\n")
    wanted = hashlib.sha256(b"x" * MUCH + b"\n").hexdigest()
    assert hashlib.sha256(printed.encode()).hexdigest() == wanted


# Rules: INT-21
@newest
def test_one_large_result(interpreter: Sandbox, context: Context) -> None:
    execution = interpreter.run_code("'x' * 20_000_000", context=context, timeout=120)
    assert value(execution) == "x" * 20_000_000


# Rules: INT-21
@newest
def test_output_that_nobody_reads_holds_the_cell_back(own_interpreter: Sandbox) -> None:
    """Endless output, a client that does not read: the server's memory stays as it is."""
    sandbox = own_interpreter

    def asked(command: str) -> str:
        return sandbox.commands.run(command).stdout.strip()

    used = "ps -C code-interpreter -o rss= | sort -n | tail -1"
    pid = value(sandbox.run_code("import os; os.getpid()"))
    before = int(asked(used))
    with http(sandbox) as client:
        told = stream(client, "while True: print('x' * 10_000)")
        for _ in range(2):
            next(told)

        def is_held_back() -> bool:
            # Also while there is room it is stopped for moments.
            states = [asked(f"ps -o stat= -p {pid}") for _ in range(10)]
            return all(state.startswith("T") for state in states)

        wait_for("the kernel to be held back", is_held_back, seconds=60)
        assert int(asked(used)) < before + 16 * 1024
        told.close()
    still_works(sandbox)


# Rules: INT-17, INT-15
def test_output_is_told_before_the_end(interpreter: Sandbox, context: Context) -> None:
    """Also what a program of the cell printed just before it ended."""
    for _ in range(5):
        told = events(
            interpreter,
            "import subprocess; subprocess.run('echo last; echo word >&2', shell=True); 1",
            context_id=context.id,
        )
        kinds = [event["type"] for event in told]
        assert sorted(kinds[1:-1]) == ["result", "stderr", "stdout"], told
        assert kinds[-1] == "end_of_execution"
