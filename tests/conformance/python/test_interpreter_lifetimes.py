"""Code interpreters that are paused, copied and ended: what becomes of their variables."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from e2b import TimeoutException
from e2b_code_interpreter import Sandbox

from support.interpreter import begun, http, latch, out, still_works, stream, value
from support.lifecycle import pause
from support.sdk import needs, since

Create = Callable[..., Sandbox]

#: Keeps 42 in every default context.
KEEP = {"python": "x = 42", "javascript": "globalThis.x = 42; undefined", "bash": "x=42"}
ASK = {"python": "print(x)", "javascript": "console.log(x)", "bash": "echo $x"}


def keep(sandbox: Sandbox) -> None:
    for language, code in KEEP.items():
        assert out(sandbox.run_code(code, language=language)) == ""


#: Without CRIU a copy has the disk alone, and its kernels begin anew.
COPIES_MEMORY = bool(os.environ.get("ATOLL_CRIU"))


def copied(sandbox: Sandbox) -> None:
    """Asserts that a copy has the variables, as far as copies have memory."""
    if COPIES_MEMORY:
        kept(sandbox)
    still_works(sandbox)
    still_works(sandbox, language="javascript")


def kept(sandbox: Sandbox) -> None:
    for language, code in ASK.items():
        assert out(sandbox.run_code(code, language=language, timeout=60)) == "42\n"


# Rules: INT-33
def test_a_pause_keeps_variables(own_interpreter: Sandbox) -> None:
    sandbox = own_interpreter
    keep(sandbox)
    contexts = []
    with http(sandbox) as client:
        contexts = client.get("/contexts").json()
    for _ in range(2):
        pause(sandbox)
        sandbox.connect()
        kept(sandbox)
        with http(sandbox) as client:
            assert client.get("/contexts").json() == contexts
    assert sandbox.run_code("1").execution_count == 4


# Rules: INT-33
@since("2.63.0", "keep_memory")
def test_without_its_memory_it_begins_anew(own_interpreter: Sandbox) -> None:
    sandbox = own_interpreter
    keep(sandbox)
    sandbox.run_code("open('/home/user/kept', 'w').write('on the disk')")
    assert sandbox.pause(keep_memory=False) is True
    sandbox.connect()
    assert value(sandbox.run_code("open('/home/user/kept').read()", timeout=60)) == "on the disk"
    execution = sandbox.run_code("x")
    assert execution.error is not None and execution.error.name == "NameError"


# Rules: INT-33
@needs(Sandbox, "create_snapshot")
def test_a_snapshot_has_the_variables(
    own_interpreter: Sandbox, create_interpreter: Create, snap: Callable[..., str]
) -> None:
    source = own_interpreter
    keep(source)
    snapshot = snap(source)
    source.run_code("x = 'changed since'")
    for _ in range(2):
        made = create_interpreter(template=snapshot)
        copied(made)
        # Of what they change, the others see nothing.
        assert made.run_code("x = 'of the copy'").error is None
    assert value(source.run_code("x")) == "changed since"


# Rules: INT-33
@needs(Sandbox, "fork")
def test_forks_have_the_variables(own_interpreter: Sandbox) -> None:
    source = own_interpreter
    keep(source)
    forks: list[Any] = source.fork(count=2)
    try:
        assert all(isinstance(fork, Sandbox) for fork in forks), forks
        for fork in forks:
            copied(fork)
        kept(source)
        for n, fork in enumerate(forks):
            fork.run_code(f"x = {n}")
        assert [value(each.run_code("x")) for each in [*forks, source]] == ["0", "1", "42"]
    finally:
        for fork in forks:
            fork.kill()


#: One number of every generator that a program may have used before it was copied.
NUMBERS = {
    "python": "import random, uuid, secrets\n"
    "import numpy\n"
    "print(random.random(), numpy.random.rand(), numpy.random.default_rng().random(),"
    " uuid.uuid4(), uuid.uuid1(), secrets.token_hex())",
    "javascript": "const crypto = require('crypto')\n"
    "console.log(Math.random(), crypto.randomUUID(), crypto.randomBytes(8).toString('hex'),"
    " globalThis.crypto.randomUUID())",
    "bash": "echo $RANDOM$RANDOM $SRANDOM $(mktemp -u)",
}


# Rules: INT-34
def test_no_two_sandboxes_share_random_numbers(create_interpreter: Create) -> None:
    drawn: dict[str, list[str]] = {language: [] for language in NUMBERS}
    for _ in range(3):
        sandbox = create_interpreter()
        for language, code in NUMBERS.items():
            drawn[language] += out(sandbox.run_code(code, language=language)).split()
        # In contexts that are made later too.
        made = sandbox.create_code_context()
        drawn["python"] += out(sandbox.run_code(NUMBERS["python"], context=made)).split()
        sandbox.kill()
    for numbers in drawn.values():
        assert len(numbers) == len(set(numbers)), numbers


# Rules: INT-34
def test_a_seed_of_the_users_holds(own_interpreter: Sandbox) -> None:
    """Whatever is done against common numbers, it does not touch what a cell has seeded."""
    code = "import random; random.seed(7); random.random()"
    first = value(own_interpreter.run_code(code))
    second = value(own_interpreter.run_code(code))
    assert first == second == "0.32383276483316237"
    code = "import numpy; numpy.random.seed(7); float(numpy.random.rand())"
    assert value(own_interpreter.run_code(code)) == "0.07630828937395717"
    own_interpreter.run_code("random.seed(7)")
    assert value(own_interpreter.run_code("random.random()")) == first


# Rules: INT-25, TRAP-2
@since("2.30.0", "what a cut connection is called")
def test_a_sandbox_that_is_killed_amid_a_cell(
    own_interpreter: Sandbox, pool: ThreadPoolExecutor
) -> None:
    heard = threading.Event()
    running = pool.submit(
        own_interpreter.run_code,
        latch("python", "/nowhere"),
        on_stdout=lambda message: heard.set(),
        timeout=60,
    )
    assert heard.wait(30)
    assert own_interpreter.kill()
    with pytest.raises(TimeoutException, match="killed while the request was in progress"):
        running.result(30)
    with pytest.raises(TimeoutException):
        own_interpreter.run_code("1")


# Rules: INT-33
def test_a_pause_amid_a_cell(own_interpreter: Sandbox) -> None:
    """Its stream breaks off, never as if it had ended well; afterwards the next cell runs."""
    sandbox = own_interpreter
    assert sandbox.run_code("x = 42").error is None
    with http(sandbox) as client:
        told = stream(client, latch("python", "/nowhere"))
        begun(told)
        pause(sandbox)
        rest = []
        with pytest.raises(Exception):
            rest.extend(told)
        assert "end_of_execution" not in [event["type"] for event in rest]
    sandbox.connect()
    still_works(sandbox)
    assert out(sandbox.run_code("print(x)", timeout=60)) == "42\n"


# Rules: INT-34, INT-33
@needs(Sandbox, "create_snapshot")
def test_the_environment_of_a_copy_is_its_own(
    create_interpreter: Create, snap: Callable[..., str]
) -> None:
    source = create_interpreter(envs={"WHOSE": "the source's"})
    show = "import os; print(os.environ['E2B_SANDBOX_ID'])"
    assert out(source.run_code(show)) == f"{source.sandbox_id}\n"
    made = create_interpreter(template=snap(source), envs={"WHOSE": "the copy's"})
    assert out(made.run_code(show)) == f"{made.sandbox_id}\n"
    assert out(made.run_code("echo $E2B_SANDBOX_ID", language="bash")) == f"{made.sandbox_id}\n"
    assert out(made.run_code("print(os.environ['WHOSE'])")) == "the copy's\n"
    assert out(source.run_code("print(os.environ['WHOSE'])")) == "the source's\n"
