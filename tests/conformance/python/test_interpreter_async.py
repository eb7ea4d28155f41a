"""The code interpreter with the asynchronous SDK."""

from __future__ import annotations

import asyncio

import pytest
from e2b import InvalidArgumentException, NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Context, Execution, OutputMessage, Result

from support.interpreter import LATCHED, latch, manages_contexts, out
from support.sdk import since


async def still_works(sandbox: AsyncSandbox, **options: object) -> None:
    execution = await sandbox.run_code("1 + 1", timeout=60, **options)
    assert (execution.error, execution.text) == (None, "2"), execution


# Rules: INT-23, INT-6, INT-7
@pytest.mark.parametrize(
    ("language", "keep", "ask"),
    [
        ("python", "x = 41", "print(x + 1)"),
        ("js", "globalThis.x = 41; undefined", "console.log(x + 1)"),
        ("typescript", "let y: number = 41", "console.log(y + 1)"),
        ("bash", "x=41", "echo $((x + 1))"),
    ],
)
async def test_state(async_interpreter: AsyncSandbox, language: str, keep: str, ask: str) -> None:
    assert (await async_interpreter.run_code(keep, language=language)).error is None
    assert out(await async_interpreter.run_code(ask, language=language)) == "42\n"


# Rules: INT-17, INT-19, INT-20
async def test_callbacks_in_order(async_interpreter: AsyncSandbox) -> None:
    told: list[object] = []

    def hear(event: OutputMessage | Result | object) -> None:
        for what in ("line", "text", "name"):
            if hasattr(event, what):
                told.append(getattr(event, what))
                return

    # One write for each line, so that it is told in one piece.
    code = """
import sys
print("1\\n", end="", flush=True)
display(2)
print("3\\n", end="", file=sys.stderr, flush=True)
no
"""
    execution = await async_interpreter.run_code(
        code, on_stdout=hear, on_stderr=hear, on_result=hear, on_error=hear
    )
    assert told == ["1\n", "2", "3\n", "NameError"]
    assert execution.logs.stdout == ["1\n"]


# Rules: INT-17
@since("2.30.0", "callbacks that are coroutines")
async def test_callbacks_may_be_coroutines(async_interpreter: AsyncSandbox) -> None:
    told: list[str] = []

    async def hear(message: OutputMessage) -> None:
        await asyncio.sleep(0)
        told.append(message.line)

    code = "for (let n = 0; n < 100; n++) console.log(n)"
    await async_interpreter.run_code(code, language="js", on_stdout=hear)
    assert told == [f"{n}\n" for n in range(100)]


# Rules: INT-28
async def test_variables_of_a_call(async_interpreter: AsyncSandbox) -> None:
    code = "import os; print(os.environ.get('OF_A_CALL'))"
    execution = await async_interpreter.run_code(code, envs={"OF_A_CALL": "it's\n$HOME"})
    assert out(execution) == "it's\n$HOME\n"
    assert out(await async_interpreter.run_code(code)) == "None\n"


# Rules: INT-5, INT-9, INT-12, INT-13
@manages_contexts
async def test_contexts(async_interpreter: AsyncSandbox) -> None:
    sandbox = async_interpreter
    made = await sandbox.create_code_context(cwd="/tmp", language="python")
    assert (made.language, made.cwd) == ("python", "/tmp")
    await sandbox.run_code("x = 1", context=made)
    listed = [each.id for each in await sandbox.list_code_contexts()]
    assert made.id in listed
    await sandbox.restart_code_context(made)
    execution = await sandbox.run_code("x", context=made)
    assert execution.error is not None and execution.error.name == "NameError"
    await sandbox.remove_code_context(made)
    for call in [
        sandbox.run_code("1", context=made),
        sandbox.restart_code_context(made),
        sandbox.remove_code_context(made.id),
    ]:
        with pytest.raises(NotFoundException):
            await call
    with pytest.raises(InvalidArgumentException):
        await sandbox.run_code("1", context=Context("a", "b", "c"), language="python")


# Rules: INT-25
@pytest.mark.parametrize("language", LATCHED)
async def test_a_timeout(async_interpreter: AsyncSandbox, language: str) -> None:
    made = await async_interpreter.create_code_context(language=language)
    code = latch(language, "/nowhere")
    with pytest.raises(TimeoutException):
        await async_interpreter.run_code(code, context=made, timeout=1.5)
    ask = "echo $((1 + 1))" if language == "bash" else "1 + 1"
    execution = await async_interpreter.run_code(ask, context=made, timeout=60)
    assert (execution.text or out(execution)).strip() == "2"


# Rules: INT-25
async def test_a_task_that_is_cancelled(async_interpreter: AsyncSandbox) -> None:
    begun = asyncio.Event()
    running = asyncio.create_task(
        async_interpreter.run_code(
            latch("python", "/nowhere"), on_stdout=lambda message: begun.set()
        )
    )
    await asyncio.wait_for(begun.wait(), 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await still_works(async_interpreter)


# Rules: INT-24
async def test_contexts_side_by_side(async_interpreter: AsyncSandbox) -> None:
    """The first cells wait for a file that the last one makes."""
    sandbox = async_interpreter
    path = "/tmp/side-by-side"
    begun = [asyncio.Event() for _ in LATCHED]
    waiting: list[asyncio.Task[Execution]] = []
    for language, event in zip(LATCHED, begun, strict=True):
        made = await sandbox.create_code_context(language=language)

        def hear(message: OutputMessage, event: asyncio.Event = event) -> None:
            event.set()

        run = sandbox.run_code(latch(language, path), context=made, on_stdout=hear, timeout=120)
        waiting.append(asyncio.create_task(run))
    for event in begun:
        await asyncio.wait_for(event.wait(), 60)
    await sandbox.run_code(f"open('{path}', 'w')")
    for execution in await asyncio.gather(*waiting):
        assert out(execution) == "begun\n"


# Rules: INT-24
async def test_a_queue(async_interpreter: AsyncSandbox) -> None:
    made = await async_interpreter.create_code_context()
    codes = [f"import time; time.sleep(0.01); print({n})" for n in range(20)]
    executions = await asyncio.gather(
        *(async_interpreter.run_code(code, context=made) for code in codes)
    )
    assert [out(execution) for execution in executions] == [f"{n}\n" for n in range(20)]
    assert sorted(each.execution_count or 0 for each in executions) == list(range(1, 21))


# Rules: INT-30
async def test_a_kernel_that_dies(async_interpreter: AsyncSandbox) -> None:
    execution = await async_interpreter.run_code("import os; os.kill(os.getpid(), 9)")
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    await still_works(async_interpreter)
