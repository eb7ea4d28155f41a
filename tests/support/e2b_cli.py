"""Running the official command line, `@e2b/cli`."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time
from pathlib import Path
from select import select
from typing import Any

from support import paths

CLI = paths.ROOT / "tests/conformance/js/node_modules/@e2b/cli/dist/index.js"
NODE = paths.TARGET / "test-env/node-bin/node"


def command(home: Path) -> dict[str, Any]:
    """What to run it with: the deployment's settings, and nobody's home."""
    keep = {name: value for name, value in os.environ.items() if name.startswith("E2B_")}
    return {
        "args": [str(NODE), str(CLI)],
        "env": keep | {"HOME": str(home), "PATH": os.environ["PATH"], "NO_COLOR": "1"},
    }


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


class Terminal:
    """A command in a terminal, typed into and read from."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            arguments,
            env=env | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def expect(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Waits until this is shown."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, plain(self.shown))):
            left = deadline - time.monotonic()
            assert left > 0 and self._read(left), f"no {pattern!r} in {plain(self.shown)!r}"
        return found

    def wait(self, seconds: float = 60) -> int:
        """Waits for the end of the command; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(max(deadline - time.monotonic(), 1))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def _read(self, seconds: float) -> bool:
        """Reads what there is within that time; false at the end."""
        if seconds <= 0 or not select([self._ours], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)
