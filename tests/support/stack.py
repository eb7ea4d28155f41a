"""A real stack: `atoll up`, as a user starts it.

`python -m support.stack COMMAND...` runs a command against one, which is how the JavaScript tests
get theirs. A stack that runs already is used if ATOLL_TEST_URL names its API; the environment must
then hold what its `env` file says.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from support import names, paths, registry

#: The ports of the test stack, beside a user's own; tests use those 100 above too.
PORTS = {
    name: port + 200 * paths.STACK
    for name, port in {
        "api": 23000,
        "front": 23443,
        "proxy": 23002,
        "proxy-health": 23003,
        "rpc": 25008,
        "node-proxy": 25007,
    }.items()
}

#: The first start makes the templates, with packages from a mirror.
START_SECONDS = 1800

#: What the stack of a session is started with; only the first start has to build it.
TEMPLATES = ("--with", "code-interpreter")
STOP_SECONDS = 90


class Stack:
    """One `atoll up`: it can be started, stopped, killed and started again."""

    def __init__(
        self,
        data_dir: Path = paths.DATA_DIR,
        wrap: Sequence[str] = (),
        log_name: str = "stack",
        options: Sequence[str] = (),
    ) -> None:
        """`wrap` is put in front of the command, to run it elsewhere (a network namespace)."""
        self.data_dir = data_dir
        self.log = paths.LOGS / f"{log_name}.log"
        self._wrap = [*names.outside(), *wrap]
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self.env: dict[str, str] = {}

    @property
    def pid(self) -> int:
        """Process id of `atoll up`."""
        assert self._process, "the stack is not running"
        return self._process.pid

    @property
    def command(self) -> list[str]:
        ports = [arg for name, port in PORTS.items() for arg in (f"--{name}-port", str(port))]
        registries = [
            arg
            for port in registry.PORTS.values()
            for arg in ("--registry", f"http://127.0.0.1:{port}")
        ]
        return [
            *self._wrap,
            # A run that is killed, as by a test's timeout, leaves nothing for the next one to meet.
            *("setpriv", "--pdeathsig", "TERM"),
            *(str(paths.ATOLL), "up", "--data-dir", str(self.data_dir), "--ca-bundle", "host"),
            *ports,
            *registries,
            *self._options,
        ]

    def start(self) -> None:
        """Starts it and returns when it serves."""
        if os.geteuid() != 0:
            raise PermissionError("system tests make sandboxes and need root: use sudo")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # One that a crash left would look like readiness.
        (self.data_dir / "env").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            log.write(f"\n=== {shlex.join(self.command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        self.env = read_env(self.data_dir / "env")

    def _wait_until_ready(self) -> None:
        assert self._process
        deadline = time.monotonic() + START_SECONDS
        # It writes its env file last, once a sandbox of its own has worked.
        while not (self.data_dir / "env").exists() or not _healthy(PORTS["api"]):
            code = self._process.poll()
            assert code is None, f"`atoll up` ended with {code}\n{self.tail()}"
            assert time.monotonic() < deadline, f"`atoll up` is not ready\n{self.tail()}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it as Ctrl-C does, and checks that it ends by itself and without an error."""
        if not self._process:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"`atoll up` still ran {STOP_SECONDS} s after SIGTERM\n{self.tail()}"
            ) from None
        self._process = None
        assert code == 0, f"`atoll up` ended with {code} after SIGTERM\n{self.tail()}"

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(["--- end of " + str(self.log), *text[-lines:]])


class RunningStack:
    """A stack that somebody else runs; only its settings are known."""

    def __init__(self) -> None:
        self.env = {name: value for name, value in os.environ.items() if name.startswith("E2B_")}
        self.env["E2B_API_URL"] = os.environ["ATOLL_TEST_URL"]

    def tail(self, lines: int = 0) -> str:
        """Its log is elsewhere."""
        return ""


def read_env(path: Path) -> dict[str, str]:
    """What a shell has in its environment after `source path`."""
    out = subprocess.run(
        ["env", "-i", "bash", "-c", f"source {shlex.quote(str(path))} && env -0"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pairs = (line.split("=", 1) for line in out.split("\0") if "=" in line)
    return {name: value for name, value in pairs if name not in {"_", "PWD", "SHLVL", "OLDPWD"}}


def _healthy(api_port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{api_port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def exported(env: Mapping[str, str]) -> Iterator[None]:
    """Puts the settings into this process's environment, as `source` would."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def session(log_name: str = "stack") -> Iterator[Stack | RunningStack]:
    """The stack that tests run against, with its settings exported."""
    if "ATOLL_TEST_URL" in os.environ:
        running = RunningStack()
        with exported(running.env):
            yield running
        return
    stack = Stack(log_name=log_name, options=TEMPLATES)
    stack.start()
    try:
        with exported(stack.env):
            yield stack
    except BaseException:
        stack.kill()
        raise
    stack.stop()


def main() -> int:
    """Runs the command given against a stack; its status is ours."""
    names.reexec("-m", "support.stack", *sys.argv[1:])
    with registry.session() as images, session("stack-js") as stack:
        os.environ["ATOLL_TEST_IMAGE"] = images.push("busybox-musl")
        code = subprocess.run(sys.argv[1:], check=False).returncode
        if code:
            print(stack.tail(), file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
