"""Real registries (Debian's `docker-registry`) on loopback, one open and one with a password.

Their ports are those of the test stack, which is started with `--registry` for each; they are
filled, with skopeo, by the tests that use an image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from support import images, paths
from support.wait import wait_for

#: Beside those of the stack.
PORTS = {name: port + 200 * paths.STACK for name, port in {"open": 25000, "private": 25001}.items()}

#: Who may use the private one, and its line for that: bcrypt, as the program wants it.
USER, PASSWORD = "reader", "open sesame"
_HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"

#: Where `scripts/deps.sh --tests` unpacks it: its package would start a server.
_UNPACKED = paths.TARGET / "test-tools/usr/bin/docker-registry"


class Registry:
    """One registry: it can be filled, stopped and started again."""

    def __init__(self, name: str, directory: Path) -> None:
        self.address = f"127.0.0.1:{PORTS[name]}"
        self.directory = directory
        self._private = name == "private"
        self._pushed: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def blobs(self) -> Path:
        """Where it keeps them, by algorithm, two digits, and digest: `…/data`."""
        return self.directory / "data/docker/registry/v2/blobs/sha256"

    def start(self) -> None:
        """Starts it and returns when it answers."""
        program = shutil.which("docker-registry") or str(_UNPACKED)
        config = self.directory / "config.yml"
        config.write_text(self._config())
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )
        wait_for(f"the registry at {self.address}", self._answers, seconds=30)

    def stop(self) -> None:
        """Ends it; what it holds stays."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def push(self, name: str) -> str:
        """Copies one of `images.RECIPES` to it, and gives its reference."""
        return self.push_layout(images.made(name), name)

    def push_layout(self, layout: Path, name: str) -> str:
        """Copies a layout's image to it, and gives its reference."""
        reference = f"{self.address}/atoll/{name}:test"
        if name not in self._pushed:
            credentials = ["--dest-creds", f"{USER}:{PASSWORD}"] if self._private else []
            ran = subprocess.run(
                [
                    *("skopeo", "--insecure-policy", "copy", "--quiet", "--all"),
                    *("--preserve-digests", "--dest-tls-verify=false", *credentials),
                    *(f"oci:{layout}:latest", f"docker://{reference}"),
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            assert ran.returncode == 0, ran.stderr
            self._pushed.add(name)
        return reference

    def blob(self, digest: str) -> Path:
        """The file it keeps a blob in."""
        digits = digest.removeprefix("sha256:")
        return self.blobs / digits[:2] / digits / "data"

    def _answers(self) -> bool:
        assert self._process
        log = (self.directory / "log").read_text(errors="replace")
        assert self._process.poll() is None, f"docker-registry ended:\n{log[-2000:]}"
        try:
            status = httpx.get(f"http://{self.address}/v2/", timeout=2).status_code
        except httpx.HTTPError:
            return False
        return status == (401 if self._private else 200)

    def _config(self) -> str:
        lines = [
            "version: 0.1",
            "log: {level: warn, accesslog: {disabled: true}}",
            f"storage: {{filesystem: {{rootdirectory: {self.directory}/data}}}}",
            f"http: {{addr: '{self.address}'}}",
        ]
        if self._private:
            users = self.directory / "htpasswd"
            users.write_text(_HTPASSWD)
            lines.append(f"auth: {{htpasswd: {{realm: atoll, path: {users}}}}}")
        return "\n".join(lines) + "\n"


@contextmanager
def session(name: str = "open") -> Iterator[Registry]:
    """A registry that is empty at first and leaves nothing."""
    with tempfile.TemporaryDirectory(prefix="atoll-registry-") as directory:
        registry = Registry(name, Path(directory))
        registry.start()
        try:
            yield registry
        finally:
            registry.stop()
