"""The stack of these tests runs in a world of its own: see `support.topology`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.stack import Stack, exported
from support.topology import Topology


@pytest.fixture(scope="session")
def topology() -> Iterator[Topology]:
    """The namespaces; this process is on the node while the tests run."""
    if os.geteuid() != 0:
        raise PermissionError("system tests make network namespaces and need root: use sudo")
    made = Topology()
    try:
        made.build()
        with made.entered("node"):
            yield made
    finally:
        made.remove()


@pytest.fixture(scope="session")
def stack(topology: Topology) -> Iterator[Stack]:
    """A stack on the node. The data directory, and so the base template, is the usual one."""
    stack = Stack(wrap=topology.wrap, log_name="stack-network")
    stack.start()
    try:
        with exported(stack.env):
            yield stack
    except BaseException:
        stack.kill()
        raise
    stack.stop()
