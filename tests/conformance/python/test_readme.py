"""What README shows of running code is what comes of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from support import paths
from support.sdk import newest

README = paths.ROOT / "README.md"
PICTURE = paths.ROOT / "docs/images/plot.png"

#: What a pixel's channel may differ by: less than can be seen.
TOLERANCE = 8


def block(language: str, containing: str) -> str:
    """The one block of README in that language that has the text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.M | re.S)
    (found,) = [code for code in blocks if containing in code]
    return found


@newest
def test_the_plot_is_what_its_code_draws(
    stack: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ATOLL_WRITE_DOCS=1` makes the picture that README shows."""
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python", "e2b_code_interpreter"), str(README), "exec"), {})
    drawn = tmp_path / "plot.png"
    if os.environ.get("ATOLL_WRITE_DOCS"):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(drawn.read_bytes())
    assert f"({PICTURE.relative_to(paths.ROOT)})" in README.read_text()
    assert PICTURE.stat().st_size < 60_000
    with Image.open(drawn) as ours, Image.open(PICTURE) as shown:
        assert ours.size == shown.size
        difference = ImageChops.difference(ours.convert("RGB"), shown.convert("RGB"))
        assert all(high <= TOLERANCE for _, high in difference.getextrema())
