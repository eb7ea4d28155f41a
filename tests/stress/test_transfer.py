"""A gigabyte in and out: every byte arrives, and no process grows by much."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from e2b import Sandbox

from support import paths
from support.host import instance_processes
from support.routing import host, proxy_address
from support.stack import PORTS, Stack

MIB = 1 << 20
SIZE = 1024 * MIB

#: How much more a process may have in memory at any time than when the transfer began.
GROWTH = 64 * MIB

ENVD_PORT = 49983
FILE = "/home/user/large"


def content() -> Iterator[bytes]:
    """Pseudo-random, and no two blocks alike: one that is lost, doubled or late is noticed."""
    block = random.Random(3).randbytes(MIB)
    for number in range(SIZE // MIB):
        yield number.to_bytes(8, "big") + block[8:]


@pytest.fixture(scope="module")
def digest() -> str:
    """SHA-256 of the content."""
    sha = hashlib.sha256()
    for block in content():
        sha.update(block)
    return sha.hexdigest()


@pytest.fixture
def no_growth(stack: Stack, instance: str) -> Callable[[], None]:
    """Checks that no process of the instance, the sandboxes' included, grew by much in the test."""
    before = {}
    for pid in instance_processes(instance, stack.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            # From now on the peak is that of the test.
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            before[pid] = memory(pid, "VmRSS")

    def check() -> None:
        grown = {}
        for pid, then in before.items():
            with suppress(FileNotFoundError, ProcessLookupError):
                grown[pid] = memory(pid, "VmHWM") - then
        assert stack.pid in grown
        too_much = {name_of(pid): growth // MIB for pid, growth in grown.items() if growth > GROWTH}
        assert too_much == {}, "MiB"

    return check


def name_of(pid: int) -> str:
    return f"{Path(f'/proc/{pid}/comm').read_text().strip()} {pid}"


def memory(pid: int, field: str) -> int:
    """A field of a process's status, bytes; 0 for one that has no memory any more."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def files_of(
    sandbox: Sandbox, address: tuple[str, int], headers: dict[str, str]
) -> Iterator[Callable[..., http.client.HTTPResponse]]:
    """Requests for the sandbox's file route, over one connection to that address."""
    connection = http.client.HTTPConnection(*address, timeout=120, blocksize=MIB)
    target = f"/files?path={FILE}&username=user"
    token = sandbox.connection_config.sandbox_headers["X-Access-Token"]
    always = {
        "Host": host(sandbox.sandbox_id, ENVD_PORT),
        "X-Access-Token": token,
        "Accept-Encoding": "identity",
        **headers,
    }

    def request(method: str, body: Iterator[bytes] | None = None) -> http.client.HTTPResponse:
        extra = {"Content-Length": str(SIZE), "Content-Type": "application/octet-stream"}
        connection.request(method, target, body, always | (extra if body else {}))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response

    try:
        yield request
    finally:
        connection.close()


@pytest.fixture(params=["client proxy", "node proxy"])
def way(request: pytest.FixtureRequest, stack: Stack) -> tuple[tuple[str, int], dict[str, str]]:
    """Where requests go, and what they must carry."""
    if request.param == "client proxy":
        return proxy_address(), {}
    token = (stack.data_dir / "node-token").read_text().strip()
    return ("127.0.0.1", PORTS["node-proxy"]), {"X-Atoll-Node-Token": token}


# Rules: GET-19, PUT-25
def test_a_gigabyte_through_one_proxy(
    sandbox: Sandbox,
    way: tuple[tuple[str, int], dict[str, str]],
    no_growth: Callable[[], None],
    digest: str,
) -> None:
    with files_of(sandbox, *way) as request:
        request("POST", content()).read()
        assert sandbox.commands.run(f"sha256sum < {FILE}", timeout=240).stdout.split()[0] == digest
        response = request("GET")
        assert response.headers["Content-Encoding"] is None
        received, length = hashlib.sha256(), 0
        while piece := response.read(MIB):
            received.update(piece)
            length += len(piece)
    assert (length, received.hexdigest()) == (SIZE, digest)
    no_growth()


# Rules: GET-19, PUT-25
def test_a_gigabyte_through_both_proxies(stack: Stack, no_growth: Callable[[], None]) -> None:
    """`atoll bench` has a client proxy of its own, which sends everything to the node proxy."""
    small, _ = bench(stack, 1)
    large, rows = bench(stack, SIZE // MIB)
    # It fails unless the length is right.
    assert {"upload, client and node proxy", "download, client and node proxy"} <= rows
    assert large - small < GROWTH
    no_growth()


def bench(stack: Stack, mib: int) -> tuple[int, set[str]]:
    """Moves a file of this size; its own peak of memory, bytes, and what it measured."""
    command = [
        *(str(paths.ATOLL), "bench", "--json", "--only", "transfer"),
        *("--rounds", "1", "--file-mib", str(mib)),
        *("--node-proxy", f"127.0.0.1:{PORTS['node-proxy']}"),
        *("--node-token-file", str(stack.data_dir / "node-token")),
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(paths.TARGET)}
    )
    assert process.stdout
    with process.stdout as output:
        text = output.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024, {row["name"] for row in json.loads(text)["rows"]}
