"""Errors of cells, in the words of each language."""

from __future__ import annotations

import pytest
from e2b_code_interpreter import Context, ExecutionError, Sandbox

from support.interpreter import events, value


def failure(sandbox: Sandbox, code: str, **options: object) -> ExecutionError:
    """The error of a cell that fails."""
    heard: list[ExecutionError] = []
    execution = sandbox.run_code(code, on_error=heard.append, **options)
    assert execution.error is not None, execution
    # It is told once.
    assert heard == [execution.error]
    return execution.error


# Rules: INT-20
@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        ("nobody", "NameError", "name 'nobody' is not defined"),
        ("1 / 0", "ZeroDivisionError", "division by zero"),
        ("raise ValueError('first\\nsecond')", "ValueError", "first\nsecond"),
        ("raise ValueError", "ValueError", ""),
        ("{}['it\\'s']", "KeyError", '"it\'s"'),
        ("import nothing_of_this_name", "ModuleNotFoundError", "No module named"),
        ("assert 1 == 2, 'not equal'", "AssertionError", "not equal"),
        ("1 +", "SyntaxError", "invalid syntax"),
        ("if True:\n    x = 1\n  y = 2", "IndentationError", "unindent"),
        ("print('open", "SyntaxError", "unterminated string"),
        ("class Odd(Exception): pass\nraise Odd('very')", "Odd", "very"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("int('\\u0416\\U0001F980')", "ValueError", "'\u0416\U0001f980'"),
        ("await nobody()", "NameError", "name 'nobody' is not defined"),
    ],
)
def test_in_python(interpreter: Sandbox, context: Context, code: str, name: str, text: str) -> None:
    error = failure(interpreter, code, context=context)
    assert error.name == name
    assert text in error.value
    assert name in error.traceback
    assert "\x1b" not in error.traceback
    assert value(interpreter.run_code("1 + 1", context=context)) == "2"


# Rules: INT-20
def test_a_traceback_shows_the_way(interpreter: Sandbox, context: Context) -> None:
    code = "def outer(n):\n    return inner(n)\n\ndef inner(n):\n    return 1 / n\n\nouter(0)\n"
    traceback = failure(interpreter, code, context=context).traceback
    assert "Traceback (most recent call last)" in traceback
    arrows = [line for line in traceback.splitlines() if line.startswith("---->")]
    places = [arrow.split(maxsplit=2)[2] for arrow in arrows]
    assert places == ["outer(0)", "return inner(n)", "return 1 / n"]
    assert traceback.rstrip().endswith("ZeroDivisionError: division by zero")
    chained = "try:\n    1 / 0\nexcept Exception as why:\n    raise ValueError('bad') from why"
    traceback = failure(interpreter, chained, context=context).traceback
    assert "ZeroDivisionError" in traceback
    assert "direct cause" in traceback


# Rules: INT-20
@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        ("raise ExceptionGroup('some', [ValueError('inner')])", "ExceptionGroup", "some"),
        (
            "import asyncio\nasync def fail():\n    raise ValueError('inner')\n"
            "async with asyncio.TaskGroup() as group:\n    group.create_task(fail())",
            "ExceptionGroup",
            "unhandled errors in a TaskGroup",
        ),
        (
            "try:\n    raise ExceptionGroup('some', [ValueError('inner')])\n"
            "except ExceptionGroup:\n    raise KeyError('later')",
            "KeyError",
            "'later'",
        ),
    ],
    ids=["group", "tasks", "later"],
)
def test_groups_of_errors(
    interpreter: Sandbox, context: Context, code: str, name: str, text: str
) -> None:
    execution = interpreter.run_code(code, context=context)
    assert execution.error is not None
    assert execution.logs.stderr == []
    assert (execution.error.name, text in execution.error.value) == (name, True)
    traceback = execution.error.traceback
    assert "ValueError: inner" in traceback and f"{name}: {text}" in traceback
    # The way begins in the cell.
    assert "interactiveshell" not in traceback


# Rules: INT-20
@pytest.mark.parametrize("language", ["javascript", "typescript"])
@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        ("nobody", "ReferenceError", "nobody is not defined"),
        ("throw new TypeError('odd')", "TypeError", "odd"),
        ("class Odd extends Error { name = 'Odd' }\nthrow new Odd('very')", "Odd", "very"),
        ("await Promise.reject(new RangeError('far'))", "RangeError", "far"),
        ("null.x", "TypeError", "Cannot read properties of null"),
        ("let = = 1", "SyntaxError", ""),
        ("require('nothing-of-this-name')", "Error", "nothing-of-this-name"),
        ("JSON.parse('{')", "SyntaxError", "JSON"),
    ],
)
def test_in_javascript(
    interpreter: Sandbox, language: str, code: str, name: str, text: str
) -> None:
    error = failure(interpreter, code, language=language)
    assert error.name == name
    assert text in error.value
    assert text in error.traceback
    assert "\x1b" not in error.traceback
    assert value(interpreter.run_code("1 + 1", language=language)) == "2"


# Rules: INT-20
def test_what_is_thrown_may_be_anything(interpreter: Sandbox) -> None:
    for code, text in [
        ("throw 'a string'", "a string"),
        ("throw 42", "42"),
        ("throw { code: 7 }", "7"),
        ("throw null", "null"),
        ("throw undefined", "undefined"),
    ]:
        error = failure(interpreter, code, language="js")
        assert all(isinstance(part, str) for part in (error.name, error.value, error.traceback))
        assert text in error.value
    assert value(interpreter.run_code("1 + 1", language="js")) == "2"


# Rules: INT-20
def test_an_error_that_comes_later_does_not_end_the_state(interpreter: Sandbox) -> None:
    context = interpreter.create_code_context(language="javascript")
    late = "globalThis.kept = 42; setTimeout(() => { throw new Error('late') }, 10); 1"
    assert value(interpreter.run_code(late, context=context)) == "1"
    rejected = "void Promise.reject(new Error('nobody listens')); 2"
    interpreter.run_code(rejected, context=context)
    wait = "await new Promise((done) => setTimeout(done, 100)); kept"
    interpreter.run_code(wait, context=context)
    assert value(interpreter.run_code("kept", context=context)) == "42"


# Rules: INT-20
@pytest.mark.parametrize(
    ("code", "status"),
    [("false", "1"), ("sh -c 'exit 3'", "3"), ("nothing_of_this_name", "127"), ("(exit 42)", "42")],
)
def test_in_bash(interpreter: Sandbox, code: str, status: str) -> None:
    error = failure(interpreter, code, language="bash")
    assert (error.name, error.value) == ("ExitCode", status)
    assert error.traceback.strip()
    assert interpreter.run_code("true", language="bash").error is None


# Rules: INT-20
def test_what_is_wrong_with_a_script(interpreter: Sandbox) -> None:
    execution = interpreter.run_code("echo before; if then fi", language="bash")
    assert execution.error is not None
    assert "syntax error" in "".join(execution.logs.stderr)
    # Only the last command counts, as in any script.
    execution = interpreter.run_code("false; echo after", language="bash")
    assert (execution.error, execution.logs.stdout) == (None, ["after\n"])
    execution = interpreter.run_code("echo 'open", language="bash")
    assert execution.error is not None
    assert interpreter.run_code("echo closed", language="bash").logs.stdout == ["closed\n"]


# Rules: INT-20, INT-15
def test_an_error_among_the_events(interpreter: Sandbox, context: Context) -> None:
    """What was shown before it is there, and nothing comes after it but the end."""
    # One write, so that it is told in one piece.
    code = "print('1\\n', end='')\ndisplay(2)\nnobody\nprint(3)"
    told = events(interpreter, code, context_id=context.id)
    assert [event["type"] for event in told] == [
        "number_of_executions",
        "stdout",
        "result",
        "error",
        "end_of_execution",
    ]
    error = told[3]
    assert set(error) == {"type", "name", "value", "traceback"}
    assert (error["name"], error["value"]) == ("NameError", "name 'nobody' is not defined")
    assert isinstance(error["traceback"], str)


# Rules: INT-20
def test_a_deep_recursion(interpreter: Sandbox, context: Context) -> None:
    code = "def down():\n    down()\ndown()"
    assert failure(interpreter, code, context=context).name == "RecursionError"
    code = "function down() { down() }; down()"
    assert failure(interpreter, code, language="js").name == "RangeError"
    assert value(interpreter.run_code("1 + 1", context=context)) == "2"
    assert value(interpreter.run_code("1 + 1", language="js")) == "2"
