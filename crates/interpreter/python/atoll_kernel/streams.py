"""What is printed: by Python through `sys.stdout` and `sys.stderr`, and by everybody else, child
processes above all, to descriptors 1 and 2.

ipykernel sends what Python prints, and has a thread for each descriptor that reads what others
write there. Both are taken over here, for order: before Python prints, what others have written
until then is read; before something is said on one stream, what was said on the other is sent. And
for memory: whoever prints faster than the client reads comes to wait.
"""

from __future__ import annotations

import _thread
import codecs
import contextlib
import fcntl
import functools
import os
import select
import sys
import threading
import time

from . import forks
from .plain import text

# What is printed is held back so long, to be sent together.
HOLD_SECONDS = 0.05
# The end of a line that is being printed is waited for: so long after its last part, and in all.
LINE_SECONDS, LINES_SECONDS = 0.02, 0.2
# Characters of a message, at most.
MESSAGE = 64 * 1024
# Messages of the kernel's that wait to be read, before whoever prints comes to wait.
QUEUED = 64
# Bytes taken at once from what a child process writes: what a pipe holds; and of both, with room.
PIPE, PIPES = 64 * 1024, 4
# Copies of descriptors are put where no program expects them.
HIGH = 200


class Stream:
    """One of the two: ipykernel's stream, and the descriptor beside it."""

    def __init__(self, number: int, stream) -> None:
        self.number, self.stream = number, stream
        self.held: list[str] = []
        self.size = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        _stop_watching(stream)
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._writer = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, HIGH)
        os.close(writer)
        os.dup2(self._writer, number)
        # The class's own, for the instance's is replaced.
        self._write = functools.partial(type(stream).write, stream)

    def restore(self) -> None:
        """Opens the descriptor anew if a cell has closed it. One that leads elsewhere is left:
        whoever opened a file has it."""
        try:
            os.fstat(self.number)
        except OSError:
            os.dup2(self._writer, self.number)

    def read(self) -> str:
        """What was written to the descriptor since, without waiting."""
        try:
            return self._decoder.decode(os.read(self.reader, PIPE))
        except BlockingIOError:
            return ""

    def hold(self, string: str) -> None:
        self.held.append(string)
        self.size += len(string)

    def send(self) -> None:
        """Gives what is held to the thread that sends, as one message."""
        if self.held:
            string = "".join(self.held)
            self.held, self.size = [], 0
            self._write(string)
            self.stream._flush()


class Capture:
    """Both streams, in one order."""

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams
        self._lock = threading.RLock()
        # When what is held is to be sent, and when its last part came.
        self._due = self._last = 0.0
        self._waker, self._wake = os.pipe()
        for end in (self._waker, self._wake):
            os.set_blocking(end, False)
        # Not as a `Thread`: ipykernel 6 takes what such a one prints for the cell that started it.
        _thread.start_new_thread(self._follow, ())

    def write(self, stream: Stream, string: str) -> int:
        """What Python prints."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string).__name__}")
        for start in range(0, len(string), MESSAGE):
            with self._lock:
                self.drain()
                self._say(stream, text(string[start : start + MESSAGE]))
            self._wait_if_much()
        return len(string)

    def drain(self) -> bool:
        """Says what others have written until now, but a message at most; whether that was all."""
        with self._lock:
            for stream in self._streams:
                while string := stream.read():
                    self._say(stream, string)
                    if stream.size >= MESSAGE:
                        return False
        return True

    def settle(self) -> None:
        """Sends what was said until now; it does not wait for somebody who never ceases to."""
        for _ in range(PIPES):
            done = self.drain()
            self._send()
            if done:
                return

    def flush(self, stream: Stream) -> None:
        """Sends everything, and returns when that is done."""
        self.settle()
        type(stream.stream).flush(stream.stream)

    def restore(self) -> None:
        """Repairs what a cell has closed."""
        for stream in self._streams:
            stream.restore()
            self._route(stream)
        for name, stream in zip(("stdout", "stderr"), self._streams):
            current = getattr(sys, name)
            if current is None or getattr(current, "closed", False):
                setattr(sys, name, stream.stream)

    def _route(self, stream: Stream) -> None:
        """Sends ipykernel's stream our way. `close` closes nothing: later cells need it too."""
        target = stream.stream
        target.write = lambda string: self.write(stream, string)
        target.flush = target.close = lambda: self.flush(stream)
        target.fileno = lambda: stream.number

    def _say(self, stream: Stream, string: str) -> None:
        for other in self._streams:
            if other is not stream:
                other.send()
        self._last = time.monotonic()
        if not stream.held:
            self._due = self._last + HOLD_SECONDS
            # Full means that it is awake.
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"\0")
        stream.hold(string)

    def _send(self) -> None:
        with self._lock:
            for stream in self._streams:
                stream.send()

    def _wait_if_much(self) -> None:
        if all(stream.size < MESSAGE for stream in self._streams):
            return
        self._send()
        # Events are taken in their order: once this one is, all before it have been sent.
        thread = self._streams[0].stream.pub_thread
        if thread is not None and threading.get_ident() != thread.thread.ident:
            sent = threading.Event()
            thread.schedule(sent.set)
            sent.wait()

    def _follow(self) -> None:
        """Says what others write while Python does not print, and sends what has been held long
        enough."""
        poll = select.poll()
        for descriptor in (self._waker, *(stream.reader for stream in self._streams)):
            poll.register(descriptor, select.POLLIN)
        seconds = None
        while True:
            poll.poll(None if seconds is None else max(0, seconds) * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._waker, PIPE)
            self.drain()
            self._wait_if_much()
            with self._lock:
                seconds = self._seconds_left()
                if seconds is not None and seconds <= 0:
                    self._send()
                    seconds = None

    def _seconds_left(self) -> float | None:
        """Until what is held is to be sent; None if nothing is."""
        held = [stream.held[-1] for stream in self._streams if stream.held]
        if not held:
            return None
        now = time.monotonic()
        if now < self._due or held[0].endswith("\n") or now > self._due + LINES_SECONDS:
            return self._due - now
        return self._last + LINE_SECONDS - now


def install(shell) -> Capture | None:
    """Takes over both streams; None where the kernel's are not ipykernel's."""
    pair = (sys.stdout, sys.stderr)
    if not all(hasattr(stream, "pub_thread") and hasattr(stream, "_flush") for stream in pair):
        return None
    _read_nothing()
    _no_loss(pair[0].pub_thread)
    capture = Capture([Stream(number, stream) for number, stream in zip((1, 2), pair)])
    # IPython 9 replaces `write` during every cell, to keep what is printed, and puts back what it
    # found: in the cell that loads this, what was there before ours. Hence `restore` sets it again.
    shell._tee = lambda channel: contextlib.nullcontext()
    _buffer_by_line()
    forks.install(shell, pair)
    for event in ("pre_execute", "post_execute"):
        shell.events.register(event, capture.restore)
    return capture


def _stop_watching(stream) -> None:
    """Ends ipykernel's thread for the descriptor, if it has one."""
    thread = getattr(stream, "watch_fd_thread", None)
    if thread is None or not stream._should_watch:
        return
    stream._should_watch = False
    # It waits in a read: this byte wakes it, and is dropped.
    os.write(stream._original_stdstream_fd, b"\0")
    thread.join()
    os.close(stream._fid)


def _read_nothing() -> None:
    """A program that reads finds the end at once, rather than waiting for nobody."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)


def _no_loss(thread) -> None:
    """Makes the socket wait for a reader that is slow, where it would drop messages, and closes the
    TCP port on which ipykernel lets forked processes print: they use the descriptors."""
    import zmq

    def change() -> None:
        thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
        thread.socket.setsockopt(zmq.SNDHWM, QUEUED)
        thread._pipe_flag = False
        pipe = getattr(thread, "_pipe_in", None)
        if pipe is not None:
            pipe.close()

    thread.schedule(change)


def _buffer_by_line() -> None:
    """What is written past `sys.stdout` is not to wait for the kernel's end."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
