"""Cells of the code interpreter: what one leaves to the next, and what a cell may be written in."""

from __future__ import annotations

import pytest
from e2b_code_interpreter import Context, Sandbox

from support.interpreter import out, value

#: How each language keeps 41 and gives back one more.
STATE = {
    "python": ("x = 41", "x + 1"),
    "javascript": ("const x = 41", "x + 1"),
    "typescript": ("let x: number = 41", "(x as number) + 1"),
    "bash": ("x=41", "echo $((x + 1))"),
}


# Rules: INT-23, INT-18
@pytest.mark.parametrize("language", STATE)
def test_a_cell_finds_what_the_last_one_left(interpreter: Sandbox, language: str) -> None:
    context = interpreter.create_code_context(language=language)
    keep, ask = STATE[language]
    first = interpreter.run_code(keep, context=context)
    assert (first.error, first.execution_count) == (None, 1)
    second = interpreter.run_code(ask, context=context)
    assert second.execution_count == 2
    assert (second.text or out(second)).strip() == "42"


# Rules: INT-23, INT-6
@pytest.mark.parametrize("language", STATE)
def test_a_language_has_a_context_of_its_own(interpreter: Sandbox, language: str) -> None:
    keep, ask = STATE[language]
    assert interpreter.run_code(keep, language=language).error is None
    answer = interpreter.run_code(ask, language=language)
    assert (answer.text or out(answer)).strip() == "42"


# Rules: INT-6
def test_python_is_what_code_is_in_if_nobody_says(interpreter: Sandbox) -> None:
    assert interpreter.run_code("mine = 'python'").error is None
    assert value(interpreter.run_code("mine", language="python")) == "python"
    assert value(interpreter.run_code("mine", language="")) == "python"


# Rules: INT-7, INT-6
@pytest.mark.parametrize(
    ("alias", "language", "keep", "ask"),
    [
        ("js", "javascript", "globalThis.mine = 'js'", "mine"),
        ("ts", "typescript", "globalThis.mine = 'ts'", "mine"),
        ("JavaScript", " JAVASCRIPT ", "globalThis.cased = 'js'", "cased"),
        ("Python", "PYTHON", "cased = 'py'", "cased"),
    ],
)
def test_other_names_of_a_language(
    interpreter: Sandbox, alias: str, language: str, keep: str, ask: str
) -> None:
    assert interpreter.run_code(keep, language=alias).error is None
    assert value(interpreter.run_code(ask, language=language)) is not None


# Rules: INT-6
def test_typescript_and_javascript_are_apart(interpreter: Sandbox) -> None:
    assert interpreter.run_code("globalThis.whose = 'js'", language="js").error is None
    assert value(interpreter.run_code("typeof whose", language="ts")) == "undefined"


# Rules: INT-18
def test_executions_are_counted(interpreter: Sandbox, context: Context) -> None:
    codes = ["1", "nothing_of_this_name", "import os; os.environ['X']", "", "2"]
    counts = [
        interpreter.run_code(code, context=context, envs={"X": "1"}).execution_count
        for code in codes
    ]
    # A cell without code takes no number, as in a notebook.
    assert counts == [1, 2, 3, 4, 4]


# Rules: INT-19
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("'a'", "a"),
        ('"it\'s"', "it's"),
        ("\"'a'\"", "'a'"),
        ("'say \"a\"'", 'say "a"'),
        ("''", ""),
        ("'\\n'", "\\n"),
        ("1 + 1", "2"),
        ("b'a'", "b'a'"),
        ("['a']", "['a']"),
        ("'a' 'b'", "ab"),
        ("x = 'a'; x", "a"),
    ],
)
def test_the_text_of_a_result(interpreter: Sandbox, context: Context, code: str, text: str) -> None:
    """One pair of quotes around it is taken away."""
    execution = interpreter.run_code(code, context=context)
    assert value(execution) == text
    (result,) = execution.results
    assert result.is_main_result


# Rules: INT-19
def test_results_of_other_languages(interpreter: Sandbox) -> None:
    assert value(interpreter.run_code("'a'", language="js")) == "a"
    assert value(interpreter.run_code("[1, 2].map((n) => n * 2)", language="js")) == "[ 2, 4 ]"
    assert value(interpreter.run_code("({ a: { b: 'c' } })", language="js")) == "{ a: { b: 'c' } }"
    assert value(interpreter.run_code("const half = 1; half / 2", language="ts")) == "0.5"
    assert value(interpreter.run_code("let nothing = 1", language="js")) is None
    assert interpreter.run_code("echo no value", language="bash").results == []


# Rules: INT-19
def test_a_cell_without_a_value(interpreter: Sandbox, context: Context) -> None:
    for code in ["None", "x = 1", "1;", "# nothing", "", "def f(): pass"]:
        execution = interpreter.run_code(code, context=context)
        assert (execution.error, execution.text, execution.results) == (None, None, []), code


# Rules: INT-19
def test_several_results(interpreter: Sandbox, context: Context) -> None:
    execution = interpreter.run_code("display(1)\ndisplay('b')\n3", context=context)
    assert [result.text for result in execution.results] == ["1", "b", "3"]
    assert [result.is_main_result for result in execution.results] == [False, False, True]
    assert execution.text == "3"


# Rules: INT-29
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("  x = 20\n  y = 1\n\n  (x + y) * 2", "42"),
        ("\tif True:\n\t\tx = 42\n\tx", "42"),
        ("\n\n  42", "42"),
        ("6 * \\\n7", "42"),
        ("x = '''\n  kept\n'''\nlen(x)", "8"),
    ],
)
def test_indentation(interpreter: Sandbox, context: Context, code: str, text: str) -> None:
    assert value(interpreter.run_code(code, context=context)) == text
    # With variables of the call too.
    assert value(interpreter.run_code(code, context=context, envs={"A": "b"})) == text


# Rules: INT-29
def test_magics(interpreter: Sandbox, context: Context) -> None:
    def run(code: str) -> str:
        return out(interpreter.run_code(code, context=context))

    assert run("%%bash\necho from $((40 + 2))").split() == ["from", "42"]
    assert "Wall time" in run("%%time\nx = 1")
    assert run("%%capture kept\nprint('hidden')") == ""
    assert run("print(kept.stdout)").strip() == "hidden"
    assert run("%cd /tmp\n%pwd\nimport os; print(os.getcwd())").endswith("/tmp\n")
    assert run("%env GREETING=hello\nprint(os.environ['GREETING'])").endswith("hello\n")
    assert run("%%writefile /tmp/written.py\nwritten = 7").startswith("Writing")
    assert run("%run /tmp/written.py\nprint(written)") == "7\n"


# Rules: INT-29
def test_shell_lines(interpreter: Sandbox, context: Context) -> None:
    execution = interpreter.run_code("name = 'x'\n!echo {name} $((40 + 2))", context=context)
    assert out(execution).split() == ["x", "42"]
    execution = interpreter.run_code("lines = !printf 'a\\nb\\n'\nlist(lines)", context=context)
    assert value(execution) == "['a', 'b']"
    execution = interpreter.run_code("!exit 3\n_exit_code", context=context)
    assert value(execution) == "3"


# Rules: INT-29
def test_waiting_at_the_top_level(interpreter: Sandbox, context: Context) -> None:
    code = "import asyncio\nasync def double(n):\n    await asyncio.sleep(0)\n    return n * 2\n"
    assert interpreter.run_code(code, context=context).error is None
    assert value(interpreter.run_code("await double(21)", context=context)) == "42"
    both = "sum(await asyncio.gather(double(1), double(2)))"
    assert value(interpreter.run_code(both, context=context)) == "6"
    promise = "const later = await new Promise((done) => setTimeout(() => done(42), 1)); later"
    for language in ["js", "ts"]:
        assert value(interpreter.run_code(promise, language=language)) == "42"


# Rules: INT-22
def test_nobody_is_there_to_answer(interpreter: Sandbox, context: Context) -> None:
    execution = interpreter.run_code("input('your name? ')", context=context)
    assert execution.error is not None
    assert execution.error.name == "StdinNotImplementedError"
    assert value(interpreter.run_code("1 + 1", context=context)) == "2"
    # A program that a cell starts finds its input at an end.
    assert out(interpreter.run_code("cat; echo over", language="bash")) == "over\n"
    code = "import subprocess\nsubprocess.run(['cat'], capture_output=True, timeout=20).stdout"
    assert value(interpreter.run_code(code, context=context)) == "b''"


# Rules: INT-23
def test_what_a_last_value_is_called(interpreter: Sandbox, context: Context) -> None:
    assert value(interpreter.run_code("40", context=context)) == "40"
    assert value(interpreter.run_code("_ + 2", context=context)) == "42"
    assert value(interpreter.run_code("Out[1], In[1]", context=context)) == "(40, '40')"
