"""Environment variables of cells: those of the sandbox, and those of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from e2b_code_interpreter import Sandbox

from support.interpreter import http, out, require_names
from support.sdk import newest

Create = Callable[..., Sandbox]

#: Print a variable, or `none`; what it is called comes in its place.
SHOW = {
    "python": "import os; print(os.environ.get('NAME', 'none'), end='')",
    "javascript": "process.stdout.write(process.env.NAME ?? 'none')",
    "typescript": "process.stdout.write((process.env.NAME as string) ?? 'none')",
    "bash": 'printf %s "${NAME-none}"',
}

#: The same, as a program sees it that a cell starts.
CHILD = {
    "python": "import subprocess\nsubprocess.run(['sh', '-c', 'printf %s \"${NAME-none}\"']); None",
    "javascript": "require('child_process').execFileSync("
    "'sh', ['-c', 'printf %s \"${NAME-none}\"'], { stdio: 'inherit' }); undefined",
    "bash": "sh -c 'printf %s \"${NAME-none}\"'",
}

#: Values that would end a string, be a command, or be cut, were they pasted into code.
VALUES = [
    "plain",
    "",
    "two words",
    'it\'s "quoted"',
    "line\nbreak\n",
    "$HOME `id` $(id) ${x}",
    "back\\slash \\n \\",
    "'''\"\"\"",
    "\u017elu\u0165 \U0001f980 \u2028",
    "{x} %s %(x)s #{x} */ // #",
    "x" * 20_000,
]


def show(language: str, name: str, code: dict[str, str] = SHOW) -> str:
    return code[language].replace("NAME", name)


#: What a sandbox is made with.
ENVS = {"GREETING": "of the sandbox", "ODD": VALUES[3]}


@pytest.fixture(scope="module")
def greeting(stack: object) -> Iterator[Sandbox]:
    """A sandbox with variables of its own."""
    require_names()
    sandbox = Sandbox.create(timeout=3600, envs=ENVS)
    yield sandbox
    sandbox.kill()


# Rules: INT-27
@pytest.mark.parametrize("language", SHOW)
def test_the_sandboxs_variables(create_interpreter: Create, language: str) -> None:
    sandbox = create_interpreter(envs=ENVS)
    first = sandbox.run_code(show(language, "GREETING"), language=language)
    assert (out(first), first.execution_count) == ("of the sandbox", 1)
    assert out(sandbox.run_code(show(language, "ODD"), language=language)) == VALUES[3]
    made = sandbox.create_code_context(language=language)
    assert out(sandbox.run_code(show(language, "GREETING"), context=made)) == "of the sandbox"
    who = sandbox.run_code(show(language, "E2B_SANDBOX_ID"), language=language)
    assert out(who) == sandbox.sandbox_id


# Rules: INT-27
@pytest.mark.parametrize("language", CHILD)
def test_what_a_cell_starts_has_them_too(greeting: Sandbox, language: str) -> None:
    code = show(language, "GREETING", CHILD)
    assert out(greeting.run_code(code, language=language)) == "of the sandbox"
    execution = greeting.run_code(code, language=language, envs={"GREETING": "of the call"})
    assert out(execution) == "of the call"


# Rules: INT-28
@pytest.mark.parametrize("language", SHOW)
def test_a_calls_variables_hold_for_it_alone(greeting: Sandbox, language: str) -> None:
    envs = {"GREETING": "of the call", "NEW": "new"}
    for name, during, after in [
        ("GREETING", "of the call", "of the sandbox"),
        ("NEW", "new", "none"),
        ("ODD", VALUES[3], VALUES[3]),
    ]:
        code = show(language, name)
        assert out(greeting.run_code(code, language=language, envs=envs)) == during
        assert out(greeting.run_code(code, language=language)) == after


# Rules: INT-28
@pytest.mark.parametrize(
    "code",
    [
        "import os; os.environ['GREETING'] = 'of a cell'",
        "process.env.GREETING = 'of a cell'",
        "export GREETING='of a cell'",
    ],
    ids=["python", "javascript", "bash"],
)
def test_a_call_can_say_what_the_sandbox_says(
    request: pytest.FixtureRequest, greeting: Sandbox, code: str
) -> None:
    """Also if a cell has changed that."""
    language = request.node.callspec.id
    assert greeting.run_code(code, language=language).error is None
    show_it = show(language, "GREETING")
    assert out(greeting.run_code(show_it, language=language)) == "of a cell"
    said = greeting.run_code(show_it, language=language, envs={"GREETING": "of the sandbox"})
    assert out(said) == "of the sandbox"


# Rules: INT-28
@pytest.mark.parametrize("language", ["python", "javascript", "bash"])
def test_values_are_values(greeting: Sandbox, language: str) -> None:
    for value in VALUES:
        execution = greeting.run_code(
            show(language, "VALUE"), language=language, envs={"VALUE": value}
        )
        assert out(execution) == value
    assert out(greeting.run_code(show(language, "VALUE"), language=language)) == "none"


# Rules: INT-28
@pytest.mark.parametrize(
    ("language", "fail"),
    [
        ("python", "raise ValueError"),
        ("python", "1 +"),
        ("javascript", "throw new Error()"),
        ("javascript", "let = ="),
        ("bash", "false"),
        ("bash", "if then"),
    ],
)
def test_they_go_when_a_cell_fails(greeting: Sandbox, language: str, fail: str) -> None:
    envs = {"GREETING": "of the call", "NEW": "new"}
    assert greeting.run_code(fail, language=language, envs=envs).error is not None
    assert out(greeting.run_code(show(language, "GREETING"), language=language)) == (
        "of the sandbox"
    )
    assert out(greeting.run_code(show(language, "NEW"), language=language)) == "none"


# Rules: INT-28
@pytest.mark.parametrize(
    ("language", "change", "back"),
    [
        ("python", "os.environ['KEPT'] = 'by a cell'", "del os.environ['KEPT']"),
        ("javascript", "process.env.KEPT = 'by a cell'; undefined", "delete process.env.KEPT"),
        ("bash", "export KEPT='by a cell'", "unset KEPT"),
    ],
)
def test_what_a_cell_sets_stays(greeting: Sandbox, language: str, change: str, back: str) -> None:
    if language == "python":
        greeting.run_code("import os")
    assert greeting.run_code(change, language=language).error is None
    assert out(greeting.run_code(show(language, "KEPT"), language=language)) == "by a cell"
    execution = greeting.run_code(show(language, "KEPT"), language=language, envs={"OTHER": "x"})
    assert out(execution) == "by a cell"
    greeting.run_code(back, language=language)
    assert out(greeting.run_code(show(language, "KEPT"), language=language)) == "none"


# Rules: INT-29, INT-27
@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ('%%bash\nprintf %s "$GREETING $NEW"', "hello it's"),
        ("%%time\nimport os; print(os.environ['GREETING'], os.environ['NEW'])", "hello it's\n"),
        ('!printf %s "$GREETING $NEW"', "hello it's"),
        ("    import os\n    print(os.environ['NEW'])", "it's\n"),
        ("from __future__ import annotations\nimport os; print(os.environ['NEW'])", "it's\n"),
    ],
)
def test_magics_in_the_first_cell(create_interpreter: Create, code: str, wanted: str) -> None:
    """Nothing is put in front of the code, so that it may begin as it likes."""
    sandbox = create_interpreter(envs={"GREETING": "hello"})
    context = sandbox.create_code_context()
    for options in [{}, {"context": context}]:
        execution = sandbox.run_code(code, envs={"NEW": "it's"}, **options)
        assert wanted in out(execution)
        assert execution.execution_count == 1


# Rules: INT-28
@newest
def test_names_that_no_shell_takes(greeting: Sandbox) -> None:
    """A name that a language cannot have does no harm there."""
    odd = {"WITH-DASH": "a", "with.dot": "b", "x; touch /tmp/harm": "c", "$(touch /tmp/harm)": "d"}
    for language in SHOW:
        execution = greeting.run_code(show(language, "OK"), language=language, envs={"OK": "ok"})
        assert out(execution) == "ok"
        greeting.run_code(show(language, "OK"), language=language, envs=odd)
        assert out(greeting.run_code(show(language, "GREETING"), language=language)) == (
            "of the sandbox"
        )
    assert not greeting.files.exists("/tmp/harm")
    code = "import os; print(os.environ['WITH-DASH'], os.environ['with.dot'])"
    assert out(greeting.run_code(code, envs=odd)) == "a b\n"


# Rules: INT-28
def test_after_a_restart_the_sandboxs_are_there_again(greeting: Sandbox) -> None:
    made = greeting.create_code_context()
    code = show("python", "GREETING")
    change = "import os; os.environ['GREETING'] = 'changed'"
    assert greeting.run_code(change, context=made).error is None
    assert out(greeting.run_code(code, context=made)) == "changed"
    with http(greeting) as client:
        assert client.post(f"/contexts/{made.id}/restart").status_code == 200
    assert out(greeting.run_code(code, context=made)) == "of the sandbox"
