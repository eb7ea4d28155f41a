"""Forks of a sandbox whose kernels have run cells: what they draw anew, and what stays."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox

from support.interpreter import out
from support.sdk import needs

#: Without CRIU forks have the disk alone, and their kernels begin anew.
COPIES_MEMORY = "ATOLL_CRIU" in os.environ

pytestmark = needs(Sandbox, "fork")

#: What no two sandboxes are to draw alike.
APART = {
    "python": "import secrets, ssl, tempfile, uuid\n"
    "print(ssl.RAND_bytes(8).hex(), uuid.uuid1(), uuid.uuid4(),"
    " secrets.token_hex(), tempfile.mktemp())",
    "javascript": "const crypto = require('crypto')\n"
    "const later = (draw) => new Promise((done) => draw((_, drawn) => done(drawn)))\n"
    "const { randomUUIDv7 = crypto.randomUUID } = crypto\n"
    "console.log([crypto.randomUUID(), globalThis.crypto.randomUUID(),"
    " (await import('node:crypto')).randomUUID(), randomUUIDv7().slice(19),"
    " crypto.randomBytes(8).toString('hex'), crypto.prng(8).toString('hex'),"
    " crypto.randomInt(2 ** 47), crypto.randomFillSync(new Uint32Array(2)).join(),"
    " globalThis.crypto.getRandomValues(new Uint32Array(2)).join(),"
    " (await later((done) => crypto.randomBytes(8, done))).toString('hex'),"
    " await later((done) => crypto.randomInt(2 ** 47, done)),"
    " (await later((done) => crypto.randomFill(new Uint32Array(2), done))).join()].join(' '))",
    "bash": "echo $SRANDOM $(mktemp -u) $(cat /proc/sys/kernel/random/uuid)",
}

#: What a cell can have seeded.
SEEDED = "import random, numpy\nprint(random.random(), numpy.random.rand())"


@pytest.fixture
def source(own_interpreter: Sandbox) -> Sandbox:
    """One of which every generator has been used."""
    for language, code in APART.items():
        out(own_interpreter.run_code(code, language=language))
    out(own_interpreter.run_code("import random, numpy\nrandom.seed(7)\nnumpy.random.seed(7)"))
    return own_interpreter


@pytest.fixture
def forks(source: Sandbox) -> Iterator[list[Any]]:
    forks: list[Any] = source.fork(count=2)
    try:
        yield forks
    finally:
        for fork in forks:
            fork.kill()


# Rules: INT-34
def test_forks_of_used_kernels(source: Sandbox, forks: list[Any]) -> None:
    sandboxes = [*forks, source]
    for language, code in APART.items():
        drawn = [out(each.run_code(code, language=language)).split() for each in sandboxes]
        numbers = [number for each in drawn for number in each]
        assert len(numbers) == len(set(numbers)), drawn
        if language == "javascript":
            uuids = [uuid.UUID(number) for each in drawn for number in each[:3]]
            assert {each.version for each in uuids} == {4}
    if COPIES_MEMORY:
        assert len({out(each.run_code(SEEDED)) for each in sandboxes}) == 1
    # A fork of a fork differs again.
    (fork,) = forks[0].fork(count=1)
    with fork:
        code = APART["python"]
        drawn = [out(each.run_code(code)).split() for each in (forks[0], fork)]
        assert not set(drawn[0]) & set(drawn[1]), drawn


# Rules: INT-37
def test_kernels_that_were_used_end_last(source: Sandbox, forks: list[Any]) -> None:
    """When memory runs out, those go first that nobody with a token has used."""
    score = "/proc/self/oom_score_adj"
    ask = {
        "python": f"print(open('{score}').read())",
        "javascript": f"console.log(require('fs').readFileSync('{score}', 'utf8'))",
        "bash": f"cat {score}",
    }
    for sandbox in (source, forks[0]):
        unused = sandbox.create_code_context(language="bash")
        scores = sandbox.commands.run("cat /proc/[0-9]*/oom_score_adj || true", user="root").stdout
        assert max(map(int, scores.split())) == 900
        for language, code in ask.items():
            assert out(sandbox.run_code(code, language=language)).strip() == "500"
        assert out(sandbox.run_code(ask["bash"], context=unused)) == "500\n"
