"""Notebooks of `gallery`, run through the SDK, do in every cell what they do when a plain Jupyter
client runs them in the same template, without Atoll's server and its Python package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox

from support import interpreter as interpreters
from support import notebooks, paths
from support.sdk import newest

NOTEBOOKS = sorted((Path(__file__).parent / "gallery").glob("*.ipy"))

DRIVER = "/opt/plain_jupyter.py"


@pytest.fixture(scope="module")
def other(stack: object) -> Iterator[Sandbox]:
    """Another sandbox, for the plain client: cells write files."""
    interpreters.require_names()
    sandbox = Sandbox.create(timeout=3600)
    source = paths.ROOT / "tests/support/plain_jupyter.py"
    sandbox.files.write(DRIVER, source.read_text(), user="root")
    yield sandbox
    sandbox.kill()


def by_plain_client(sandbox: Sandbox, cells: list[str]) -> list[dict[str, Any]]:
    sandbox.files.write("/tmp/cells.json", json.dumps(cells), user="root")
    # As the interpreter's own kernels run.
    ran = sandbox.commands.run(
        f"HOME=/root python3 {DRIVER} < /tmp/cells.json", cwd="/home/user", user="root", timeout=600
    )
    return [notebooks.plain(did) for did in json.loads(ran.stdout)]


def by_sdk(sandbox: Sandbox, cells: list[str]) -> list[dict[str, Any]]:
    context = sandbox.create_code_context(cwd="/home/user")
    try:
        return [
            notebooks.told(sandbox.run_code(cell, context=context, timeout=240)) for cell in cells
        ]
    finally:
        interpreters.remove(sandbox, context)


# Rules: INT-18, INT-19, INT-23, INT-29, RES-1, RES-5
@newest
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook(interpreter: Sandbox, other: Sandbox, path: Path) -> None:
    cells = notebooks.cells(path)
    with ThreadPoolExecutor(1) as pool:
        expected = pool.submit(by_plain_client, other, cells)
        did = by_sdk(interpreter, cells)
        for number, (cell, ours, theirs) in enumerate(
            zip(cells, did, expected.result(), strict=True)
        ):
            assert ours == theirs, f"cell {number} of {path.name}:\n{cell}"


def test_the_gallery_is_there() -> None:
    """Of many kinds: or the test above would say little."""
    assert len(NOTEBOOKS) >= 20
    assert sum(len(notebooks.cells(path)) for path in NOTEBOOKS) >= 200
