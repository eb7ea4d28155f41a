"""Contexts of the code interpreter: made, listed, restarted, removed, and what is asked wrongly."""

from __future__ import annotations

import pytest
from e2b import InvalidArgumentException, NotFoundException, SandboxException
from e2b_code_interpreter import Context, Sandbox

from support.interpreter import (
    events,
    http,
    manages_contexts,
    out,
    remove,
    still_works,
    value,
)
from support.sdk import newest

#: What says where a cell works.
WHERE = {
    "python": "import os; print(os.getcwd())",
    "javascript": "console.log(process.cwd())",
    "typescript": "console.log(process.cwd())",
    "bash": "pwd",
}


def identity(context: Context) -> tuple[str, str, str]:
    return context.id, context.language, context.cwd


# Rules: INT-5, INT-14
@pytest.mark.parametrize("language", WHERE)
def test_a_context_begins_where_it_is_told(interpreter: Sandbox, language: str) -> None:
    interpreter.files.make_dir("/tmp/it's here")
    made = interpreter.create_code_context(cwd="/tmp/it's here", language=language)
    assert (made.language, made.cwd) == (language, "/tmp/it's here")
    assert out(interpreter.run_code(WHERE[language], context=made)) == "/tmp/it's here\n"


# Rules: INT-5, INT-14
def test_without_a_word_it_is_python_at_home(interpreter: Sandbox, context: Context) -> None:
    assert (context.language, context.cwd) == ("python", "/home/user")
    assert out(interpreter.run_code(WHERE["python"], context=context)) == "/home/user\n"
    for language, code in WHERE.items():
        assert out(interpreter.run_code(code, language=language)) == "/home/user\n"


# Rules: INT-14
def test_cells_run_as_root_and_have_its_home(interpreter: Sandbox, context: Context) -> None:
    code = "import os; print(os.getuid(), os.path.expanduser('~'))"
    assert out(interpreter.run_code(code, context=context)) == "0 /root\n"
    assert out(interpreter.run_code("id -u; echo ~", language="bash")) == "0\n/root\n"
    code = "console.log(process.getuid(), require('os').homedir())"
    assert out(interpreter.run_code(code, language="js")) == "0 /root\n"
    interpreter.run_code("open('by-a-cell', 'w').write('x')", context=context)
    assert interpreter.files.read("/home/user/by-a-cell") == "x"


# Rules: INT-5
def test_contexts_share_nothing_but_the_sandbox(interpreter: Sandbox, context: Context) -> None:
    other = interpreter.create_code_context()
    assert other.id != context.id
    interpreter.run_code("x = 'of the first'; open('/tmp/shared', 'w').write(x)", context=context)
    execution = interpreter.run_code("x", context=other)
    assert execution.error is not None
    assert execution.error.name == "NameError"
    assert value(interpreter.run_code("open('/tmp/shared').read()", context=other)) == (
        "of the first"
    )
    assert value(interpreter.run_code("x", context=context)) == "of the first"
    remove(interpreter, other)


# Rules: INT-5
@manages_contexts
def test_the_list(own_interpreter: Sandbox) -> None:
    sandbox = own_interpreter
    defaults = sandbox.list_code_contexts()
    assert sorted((each.language, each.cwd) for each in defaults) == [
        ("javascript", "/home/user"),
        ("python", "/home/user"),
    ]
    assert "default" not in {each.id for each in defaults}
    made = [
        sandbox.create_code_context(language=language, cwd="/tmp") for language in ["bash", "ts"]
    ]
    assert [each.language for each in made] == ["bash", "typescript"]
    # Asked for, the default context of a language is made, and is in the list too.
    sandbox.run_code("true", language="bash")
    listed = sandbox.list_code_contexts()
    assert [identity(each) for each in listed[:4]] == [identity(each) for each in defaults + made]
    assert [(each.language, each.cwd) for each in listed[4:]] == [("bash", "/home/user")]
    # The default one of Python is the one that code without a context runs in.
    python = next(each for each in listed if each.language == "python")
    sandbox.run_code("x = 42")
    assert value(sandbox.run_code("x", context=python)) == "42"


# Rules: INT-12
@manages_contexts
@pytest.mark.parametrize("language", ["python", "javascript", "bash"])
def test_a_restart(interpreter: Sandbox, language: str) -> None:
    keep, ask = {
        "python": ("x = 1", "'x' in globals()"),
        "javascript": ("globalThis.x = 1", "'x' in globalThis"),
        "bash": ("x=1", '[ -n "$x" ] && echo true || echo false'),
    }[language]
    made = interpreter.create_code_context(cwd="/tmp", language=language)
    before = interpreter.run_code(keep, context=made)
    assert before.error is None
    interpreter.restart_code_context(made)
    after = interpreter.run_code(ask, context=made)
    assert after.execution_count == 1
    assert (after.text or out(after)).strip().lower() == "false"
    # Of what it was told it has forgotten nothing.
    assert identity(made) in {identity(each) for each in interpreter.list_code_contexts()}
    assert out(interpreter.run_code(WHERE[language], context=made)) == "/tmp\n"
    # By its id it is restarted too.
    interpreter.restart_code_context(made.id)
    assert interpreter.run_code(ask, context=made).execution_count == 1
    interpreter.remove_code_context(made)


# Rules: INT-12
@manages_contexts
def test_a_default_context_is_restarted(own_interpreter: Sandbox) -> None:
    sandbox = own_interpreter
    for language, ask in [("python", "'x' in globals()"), ("javascript", "'x' in globalThis")]:
        (default,) = [each for each in sandbox.list_code_contexts() if each.language == language]
        keep = "x = 1" if language == "python" else "globalThis.x = 1"
        assert sandbox.run_code(keep, language=language).error is None
        sandbox.restart_code_context(default)
        for options in [{}, {"language": language}, {"context": default}]:
            if options or language == "python":
                assert str(value(sandbox.run_code(ask, **options))).lower() == "false"


# Rules: INT-13
@manages_contexts
def test_a_context_is_removed(interpreter: Sandbox) -> None:
    made = interpreter.create_code_context()
    pid = value(interpreter.run_code("import os; os.getpid()", context=made))
    interpreter.remove_code_context(made)
    assert made.id not in {each.id for each in interpreter.list_code_contexts()}
    interpreter.commands.run(f"while test -e /proc/{pid}; do sleep 0.01; done", timeout=20)
    for call in [
        lambda: interpreter.run_code("1", context=made),
        lambda: interpreter.remove_code_context(made),
        lambda: interpreter.restart_code_context(made.id),
    ]:
        with pytest.raises(NotFoundException, match=f"Context {made.id} not found"):
            call()


# Rules: INT-13
@manages_contexts
def test_a_default_context_is_removed_and_made_anew(own_interpreter: Sandbox) -> None:
    sandbox = own_interpreter
    for each in sandbox.list_code_contexts():
        sandbox.remove_code_context(each)
    assert sandbox.list_code_contexts() == []
    still_works(sandbox)
    still_works(sandbox, language="python")
    still_works(sandbox, language="javascript")
    languages = sorted(each.language for each in sandbox.list_code_contexts())
    assert languages == ["javascript", "python"]


# Rules: INT-8
def test_both_a_context_and_a_language(interpreter: Sandbox, context: Context) -> None:
    with pytest.raises(InvalidArgumentException):
        interpreter.run_code("1", context=context, language="python")
    with http(interpreter) as client:
        body = {"code": "1", "context_id": context.id, "language": "python"}
        answer = client.post("/execute", json=body)
        assert answer.status_code == 400
        assert "Only one of context_id or language can be provided" in answer.text


# Rules: INT-9
def test_a_context_that_is_not_there(interpreter: Sandbox) -> None:
    with pytest.raises(NotFoundException, match="Context nobody not found"):
        interpreter.run_code("1", context=Context("nobody", "python", "/"))
    with http(interpreter) as client:
        for method, path in [
            ("DELETE", "/contexts/nobody"),
            ("POST", "/contexts/nobody/restart"),
            ("POST", "/contexts/nobody/interrupt"),
        ]:
            answer = client.request(method, path)
            assert (answer.status_code, "Context nobody not found" in answer.text) == (404, True)


# Rules: INT-10
def test_a_language_that_nobody_speaks(interpreter: Sandbox) -> None:
    with pytest.raises(SandboxException, match=r"(?s)500.*cobol"):
        interpreter.run_code("DISPLAY 1", language="cobol")
    with pytest.raises(SandboxException, match=r"(?s)500.*cobol"):
        interpreter.create_code_context(language="cobol")
    # No name leads out of the directories of kernels.
    for name in ["../../../etc", "a/b", "x" * 5000, "\x00", "-c"]:
        with pytest.raises(SandboxException):
            interpreter.create_code_context(language=name)
    still_works(interpreter)


# Rules: INT-10
@pytest.mark.parametrize("cwd", ["/nowhere/at all", "/etc/hostname"])
def test_a_directory_that_is_none(interpreter: Sandbox, cwd: str) -> None:
    with http(interpreter) as client:
        before = client.get("/contexts").json()
        for language in WHERE:
            with pytest.raises(SandboxException, match=f"(?s)500.*{cwd}"):
                interpreter.create_code_context(cwd=cwd, language=language)
        assert client.get("/contexts").json() == before


# Rules: INT-5, INT-13
@newest
def test_many_contexts_one_after_the_other(interpreter: Sandbox) -> None:
    """Each is a process or two, which end with it."""
    count = "ps -e --no-headers | wc -l"
    before = int(interpreter.commands.run(count).stdout)
    for language in ["bash", "javascript", "bash", "python"] * 3:
        made = interpreter.create_code_context(language=language)
        assert interpreter.run_code("", context=made).error is None
        remove(interpreter, made)
    assert int(interpreter.commands.run(count).stdout) <= before + 1
    assert interpreter.commands.run("ls /run/code-interpreter", user="root").exit_code == 0


# Rules: INT-6
def test_the_default_contexts_run_from_the_beginning(own_interpreter: Sandbox) -> None:
    """What was loaded before the first cell is no cell."""
    first = events(own_interpreter, "1")
    assert first[0] == {"type": "number_of_executions", "execution_count": 1}
    assert own_interpreter.run_code("1", language="js").execution_count == 1
