"""Files that are too large: for a disk, or for memory."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator

import pytest
from e2b import NotEnoughSpaceException, Sandbox

from support import host, routing
from support.sdk import newest
from support.wait import wait_for

MIB = 1 << 20

#: What an upload may add to the memory of a process it passes, whatever its size.
GROWTH = 64 * MIB


# Rules: PUT-19, TRAP-44
def test_a_full_disk(create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=300)
    fill = """
        n=0
        while fallocate -l 512M fill-$n 2>/dev/null; do n=$((n+1)); [ $n -lt 200 ] || exit 1; done
        while fallocate -l 8M fill-small-$n 2>/dev/null; do n=$((n+1)); done
    """
    sandbox.commands.run(fill, timeout=240)
    content = os.urandom(24 * MIB)
    with pytest.raises(NotEnoughSpaceException, match=r"attempted to write \d+ bytes"):
        sandbox.files.write("too-much", content)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    sandbox.commands.run("rm -f fill-* too-much")

    def fits() -> bool:
        try:
            sandbox.files.write("fits", content)
        except NotEnoughSpaceException:
            return False
        return True

    wait_for("the freed space", fits, seconds=60)
    assert sandbox.files.get_info("fits").size == len(content)


class Peak:
    """The most memory that a process of the host has held since this was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        with open(f"/proc/{pid}/clear_refs", "w") as refs:
            refs.write("5")
        self._before = self._field("VmRSS")

    def _field(self, name: str) -> int:
        with open(f"/proc/{self._pid}/status") as status:
            line = next(line for line in status if line.startswith(name))
        return int(line.split()[1]) * 1024

    def growth(self) -> int:
        return self._field("VmHWM") - self._before


def pattern(size: int) -> Iterator[bytes]:
    """A content that repeats only after 64 MiB and a bit, in pieces of odd sizes."""
    block = os.urandom(MIB + 77)
    while size > 0:
        piece = block[:size]
        yield piece
        size -= len(piece)


# Rules: PUT-25, GET-19
@newest
def test_over_two_gigabytes_at_constant_memory(create: Callable[..., Sandbox]) -> None:
    sandbox = create(timeout=1200)
    envd = Peak(host.envd_of(sandbox))
    # More than 32 bits with a sign can count.
    size = (2 << 30) + 64 * MIB
    sent = hashlib.blake2b()

    def sending() -> Iterator[bytes]:
        for piece in pattern(size):
            sent.update(piece)
            yield piece

    sandbox.files.write("huge", sending())
    assert sandbox.files.get_info("huge").size == size
    received = hashlib.blake2b()
    for piece in sandbox.files.read("huge", format="stream"):
        received.update(piece)
    assert received.digest() == sent.digest()
    assert envd.growth() < GROWTH
    sandbox.files.remove("huge")


# Rules: PUT-25
@newest
def test_a_bomb_does_not_fill_memory(shared: Sandbox) -> None:
    peak = Peak(host.envd_of(shared))
    packed = gzip.compress(bytes(512 * MIB), compresslevel=6)
    headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
    headers["X-Access-Token"] = shared._envd_access_token or ""
    with routing.client(shared.sandbox_id, 49983) as client:
        answer = client.post("/files?path=bomb", content=packed, headers=headers, timeout=120)
    assert answer.status_code == 200
    assert shared.files.get_info("bomb").size == 512 * MIB
    assert peak.growth() < GROWTH
    shared.files.remove("bomb")
