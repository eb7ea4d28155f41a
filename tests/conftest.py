"""What every system test can ask for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import e2b_code_interpreter as code_interpreter
import httpx
import pytest
import pytest_asyncio
from e2b import Sandbox

from support import interpreter as interpreters
from support import stack as stacks
from support.stack import RunningStack, Stack


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers that something failed, so that the stack's log is worth showing."""
    if report.failed:
        _session_failed.append(report.nodeid)


_session_failed: list[str] = []
_stack: list[Stack | RunningStack] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the end of the stack's log below failures."""
    if _session_failed and _stack:
        terminalreporter.section("stack")
        terminalreporter.write_line(_stack[0].tail())


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack | RunningStack]:
    """The one stack of this run; its settings are in the environment, where the SDK looks."""
    with stacks.session() as running:
        _stack.append(running)
        yield running


@pytest.fixture
def create(stack: Stack) -> Iterator[Callable[..., Sandbox]]:
    """`Sandbox.create`, for sandboxes that end with the test."""
    made: list[Sandbox] = []

    def make(**options: Any) -> Sandbox:
        made.append(Sandbox.create(**options))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def sandbox(create: Callable[..., Sandbox]) -> Sandbox:
    """A sandbox of this test's own."""
    return create(timeout=300)


@pytest.fixture(scope="module")
def shared(stack: Stack) -> Iterator[Sandbox]:
    """A sandbox that the tests of one file share; they must not disturb each other."""
    sandbox = Sandbox.create(timeout=3600)
    yield sandbox
    sandbox.kill()


@pytest.fixture(scope="session")
def api(stack: Stack) -> Iterator[httpx.Client]:
    """A plain HTTP client with the deployment's key, for what no SDK sends."""
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    with httpx.Client(base_url=os.environ["E2B_API_URL"], headers=headers, timeout=75) as client:
        yield client


@pytest.fixture
def create_interpreter(stack: Stack) -> Iterator[Callable[..., code_interpreter.Sandbox]]:
    """`Sandbox.create` of the code interpreter's SDK, for sandboxes that end with the test."""
    interpreters.require_names()
    made: list[code_interpreter.Sandbox] = []

    def make(**options: Any) -> code_interpreter.Sandbox:
        made.append(code_interpreter.Sandbox.create(**{"timeout": 300, **options}))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def own_interpreter(
    create_interpreter: Callable[..., code_interpreter.Sandbox],
) -> code_interpreter.Sandbox:
    """A code interpreter of this test's own."""
    return create_interpreter()


@pytest.fixture(scope="module")
def interpreter(stack: Stack) -> Iterator[code_interpreter.Sandbox]:
    """A code interpreter that the tests of one file share; they must not disturb each other."""
    interpreters.require_names()
    sandbox = code_interpreter.Sandbox.create(timeout=3600)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def context(interpreter: code_interpreter.Sandbox) -> Iterator[code_interpreter.Context]:
    """A Python context of this test's own in the code interpreter that its file shares."""
    made = interpreter.create_code_context()
    yield made
    interpreters.remove(interpreter, made)


@pytest_asyncio.fixture(scope="module")
async def async_interpreter(stack: Stack) -> AsyncIterator[code_interpreter.AsyncSandbox]:
    """`interpreter` of the asynchronous SDK."""
    interpreters.require_names()
    sandbox = await code_interpreter.AsyncSandbox.create(timeout=3600)
    yield sandbox
    await sandbox.kill()
