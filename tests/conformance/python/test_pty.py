"""Terminals with the synchronous SDK."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b import CommandExitException, PtySize, Sandbox
from e2b.sandbox_sync.commands.command_handle import CommandHandle
from e2b.sandbox_sync.commands.pty import Pty

from support.sdk import needs
from support.wait import wait_for

#: A typed command is echoed, so the marker is assembled by the shell and not part of what is typed.
END = "printf '%s%s\\n' en d-of-output\n"
MARKER = b"end-of-output"


def read_until(handle: CommandHandle, wanted: bytes) -> bytes:
    """Output of the terminal, up to and with `wanted`."""
    output = b""
    for _, _, chunk in handle:
        output += chunk or b""
        if wanted in output:
            return output
    raise AssertionError(f"the terminal ended without {wanted!r}: {output!r}")


@pytest.fixture
def terminal(shared: Sandbox) -> Iterator[CommandHandle]:
    handle = shared.pty.create(PtySize(rows=24, cols=80), envs={"MARK": "in-the-terminal"})
    yield handle
    shared.pty.kill(handle.pid)


def type_in(sandbox: Sandbox, handle: CommandHandle, text: str) -> None:
    sandbox.pty.send_stdin(handle.pid, text.encode())


# Rules: PROC-6, PROC-23
def test_a_terminal_runs_what_is_typed(shared: Sandbox, terminal: CommandHandle) -> None:
    type_in(shared, terminal, "echo $MARK $TERM; tty; " + END)
    output = read_until(terminal, MARKER)
    assert b"in-the-terminal xterm-256color" in output
    assert b"/dev/pts/" in output


# Rules: PROC-23
def test_its_size_is_what_was_asked_for(shared: Sandbox, terminal: CommandHandle) -> None:
    type_in(shared, terminal, "stty size; " + END)
    assert b"24 80" in read_until(terminal, MARKER)


# Rules: PROC-55
def test_resize(shared: Sandbox, terminal: CommandHandle) -> None:
    shared.pty.resize(terminal.pid, PtySize(rows=50, cols=132))
    type_in(shared, terminal, "stty size; " + END)
    assert b"50 132" in read_until(terminal, MARKER)


# Rules: PROC-23
def test_control_c_interrupts(shared: Sandbox, terminal: CommandHandle) -> None:
    type_in(shared, terminal, "sleep 600\n")
    wait_for(
        "the sleep to run",
        lambda: "sleep" in shared.commands.run("ps -eo comm=").stdout.split(),
    )
    type_in(shared, terminal, "\x03")
    type_in(shared, terminal, END)
    read_until(terminal, MARKER)


# Rules: PROC-36
def test_exit_ends_it(shared: Sandbox, terminal: CommandHandle) -> None:
    type_in(shared, terminal, "exit 3\n")
    with pytest.raises(CommandExitException) as caught:
        terminal.wait()
    assert caught.value.exit_code == 3


# Rules: PROC-37, PROC-65
def test_kill(shared: Sandbox) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80))
    assert shared.pty.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code == -1
    assert shared.pty.kill(handle.pid) is False


# Rules: PROC-43
@needs(Pty, "connect")
def test_reconnect(shared: Sandbox, terminal: CommandHandle) -> None:
    terminal.disconnect()
    again = shared.pty.connect(terminal.pid)
    type_in(shared, again, END)
    read_until(again, MARKER)
