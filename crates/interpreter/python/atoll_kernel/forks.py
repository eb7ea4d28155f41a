"""Processes that user code forks. One has the kernel's memory but none of its threads, and there is
to be one kernel: it prints to descriptors 1 and 2, and ends where its cell ends."""

from __future__ import annotations

import os


def install(shell, streams) -> None:
    """Prepares what is to be done in every such process; `streams` are stdout and stderr."""
    os.register_at_fork(after_in_child=lambda: _in_child(shell, streams))


def _in_child(shell, streams) -> None:
    writers = [_Writer(number) for number in (1, 2)]
    for stream, writer in zip(streams, writers):
        stream.write = writer.write
        stream.flush = stream.close = writer.flush

    def end(status: int) -> None:
        for writer in writers:
            writer.flush()
        os._exit(status)

    def failed(kind, value, traceback) -> None:
        if issubclass(kind, SystemExit):
            end(value.code if isinstance(value.code, int) else int(value.code is not None))
        writers[1].write("\n".join(traceback) + "\n")
        end(1)

    shell._showtraceback = failed
    shell.events.callbacks["post_execute"].insert(0, lambda: end(0))


class _Writer:
    """A stream on a descriptor, by lines."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._held = ""

    def write(self, string: str) -> int:
        self._held += string
        if "\n" in string:
            lines, end, self._held = self._held.rpartition("\n")
            self._put(lines + end)
        return len(string)

    def flush(self) -> None:
        held, self._held = self._held, ""
        self._put(held)

    def _put(self, string: str) -> None:
        data = string.encode(errors="backslashreplace")
        while data:
            data = data[os.write(self._number, data) :]
