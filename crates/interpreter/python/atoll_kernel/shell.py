"""Settings of IPython for a client that is a program, and shell lines without a terminal."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
import warnings

import IPython

from .imports import when_imported

# How long the commands of a shell line that was interrupted have before they are killed.
GRACE_SECONDS = 2.0


# Sockets for as long as the kernel lives: without a reference they would be closed.
_open: list[socket.socket] = []


class Forgetful(dict):
    """Where IPython 9 would keep every picture that was ever shown, for the magic `%notebook`."""

    def __missing__(self, key) -> list:
        return []


def configure(shell) -> None:
    """No colours, nothing cut short, and no pager."""
    shell.run_line_magic("colors", "NoColor" if IPython.version_info[0] < 9 else "nocolor")
    shell.display_formatter.formatters["text/plain"].max_seq_length = 0
    # ipykernel asks programs for colours, as its usual clients are web pages that show them.
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):
        os.environ.pop(name, None)
    os.environ["TERM"] = "dumb"
    if hasattr(shell.history_manager, "outputs"):
        shell.history_manager.outputs = Forgetful()
    _pack_anything(shell.kernel.session)
    _tell_of_groups(shell)
    _wake_for_signals()
    # Without widgets, tqdm draws its bars as text.
    warnings.filterwarnings("ignore", message="IProgress not found")
    when_imported("tqdm.notebook", _draw_bars_as_text)
    shell.set_hook("show_in_pager", _show, 0)


def _wake_for_signals() -> None:
    """Has the kernel's event loop wake up for signals: an interrupt that comes while a cell awaits
    cancels it, but the loop would sleep on until something else happens."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            reader.recv(4096)

    loop.add_reader(reader, drain)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    _open.extend((reader, writer))


def _tell_of_groups(shell) -> None:
    """Of an error that is a group, or came while one was handled, IPython only prints the
    traceback, and tells none."""
    show = shell.showtraceback

    def show_also_groups(exc_tuple=None, *args, **options) -> None:
        error = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
        if not _has_group(error):
            show(exc_tuple, *args, **options)
            return
        # The first frame is IPython's own.
        frames = error.__traceback__ and error.__traceback__.tb_next
        lines = "".join(traceback.format_exception(type(error), error, frames)).splitlines()
        shell._showtraceback(type(error), error, lines)

    shell.showtraceback = show_also_groups


def _has_group(error) -> bool:
    # Python 3.10 has none.
    group = getattr(builtins, "BaseExceptionGroup", ())
    while error is not None and not isinstance(error, group):
        error = error.__context__
    return error is not None


def _draw_bars_as_text(notebook) -> None:
    """Has tqdm's bars for notebooks be those for terminals, unless there are widgets."""
    from tqdm import std

    if notebook.IProgress is None:
        notebook.tqdm = notebook.tqdm_notebook = std.tqdm
        notebook.trange = notebook.tnrange = std.trange


def _pack_anything(session) -> None:
    """Half of a surrogate pair in a result or a message of an error makes no cell fail: it becomes
    a question mark."""
    pack = session.pack

    def pack_or_replace(message) -> bytes:
        try:
            return pack(message)
        except UnicodeEncodeError:
            return json.dumps(message, ensure_ascii=False, default=str).encode(errors="replace")

    session.pack = pack_or_replace


def _show(shell, data, start=0, screen_lines=0) -> None:
    """What would be in a pager (`name?`) is a result."""
    text = data if isinstance(data, dict) else {"text/plain": data}
    shell.display_pub.publish({kind: value for kind, value in text.items() if kind != "text/html"})


def run_commands_through(shell, capture) -> None:
    """Makes shell lines (`!command`, `%pip`) write to descriptors 1 and 2 like any child process,
    instead of a terminal made for them: with stdout and stderr apart, and in order."""
    if capture is None:
        return

    def system(command: str) -> None:
        code = _run(shell.var_expand(command, depth=1))
        capture.settle()
        # The command may have installed something.
        importlib.invalidate_caches()
        shell.user_ns["_exit_code"] = code
        if code != 0 and getattr(shell, "system_raise_on_error", False):
            raise subprocess.CalledProcessError(code, command)

    shell.system = shell.system_piped = system


def _run(command: str) -> int:
    process = subprocess.Popen(command, shell=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise


def _end(process: subprocess.Popen) -> None:
    """Interrupts a command and all that it started, as Ctrl-C does in a terminal."""
    _signal(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _signal(process.pid, signal.SIGKILL)
        process.wait()


def _signal(pid: int, number: int) -> None:
    children = []
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    for child in children:
        _signal(child, number)
