"""Notebooks for tests: files of cells, and what a cell did in a form that can be compared, whoever
ran it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2b_code_interpreter import Execution
from PIL import Image

#: What a result is called by media type (in-sandbox contract, B.3); others keep their type.
KEYS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "text/latex": "latex",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "application/json": "json",
    "application/javascript": "javascript",
}

#: Made by the interpreter beside what the kernel shows.
ADDED = ("data", "chart")

#: What differs from one process, or one run, to the next, and nothing else.
VARYING = [
    # Where an object is in memory.
    (re.compile(r"\b0x[0-9a-fA-F]{6,}\b"), "0x..."),
    # The process in the name that a cell has as a file.
    (re.compile(r"/tmp/ipykernel_\d+/"), "/tmp/ipykernel/"),
    # What altair calls the place of a chart.
    (re.compile(r"altair-viz-[0-9a-f]{32}"), "altair-viz"),
    # A plain kernel gives shell lines a terminal; the interpreter's give them pipes.
    (re.compile(r"\r\n"), "\n"),
    # When matplotlib wrote an SVG picture.
    (re.compile(r"<dc:date>[^<]*</dc:date>"), "<dc:date/>"),
]

#: How a terminal is told a colour.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def cells(path: Path) -> list[str]:
    """The cells of a file, which lines `# %%` separate."""
    return [cell.rstrip("\n") for cell in re.split(r"^# %%\n", path.read_text(), flags=re.M)]


def told(execution: Execution) -> dict[str, Any]:
    """What the SDK says of a cell."""
    error = execution.error
    return {
        "stdout": _steady("".join(execution.logs.stdout)),
        "stderr": _steady("".join(execution.logs.stderr)),
        "results": [_result(vars(result)) for result in execution.results],
        "error": error and _error(error.name, error.value, error.traceback),
        "execution_count": execution.execution_count,
    }


def plain(did: Mapping[str, Any]) -> dict[str, Any]:
    """What `support.plain_jupyter` says of a cell, as the contract translates it."""
    error = did["error"]
    return {
        "stdout": _steady(did["stdout"]),
        "stderr": _steady(did["stderr"]),
        "results": [_bundle(result) for result in did["results"]],
        "error": error and _error(error["ename"], error["evalue"], "\n".join(error["traceback"])),
        "execution_count": did["execution_count"],
    }


def _error(name: str, value: str, traceback: str) -> dict[str, str]:
    lines = _COLOUR.sub("", traceback).split("\n")
    # How traceback is set out depends on whether it has colours; what it says does not.
    words = " ".join(" ".join(lines).split()).replace("-", "")
    return {"name": name, "value": _steady(value), "traceback": _steady(words)}


def _bundle(result: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {"is_main_result": result["is_main_result"], "extra": {}}
    for kind, content in result["data"].items():
        if kind in KEYS:
            named[KEYS[kind]] = content
        else:
            named["extra"][kind] = content
    text = named.get("text")
    # The contract: one pair of quotes around the whole is dropped.
    if text and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        named["text"] = text[1:-1]
    return _result(named)


def _result(named: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the interpreter adds: that has tests of its own."""
    shown: dict[str, Any] = {"is_main_result": named["is_main_result"]}
    for key, content in [*named.items(), *(named.get("extra") or {}).items()]:
        if content is None or key in {"is_main_result", "extra", "json", *ADDED}:
            continue
        if key in {"png", "jpeg"}:
            shown[key] = pixels(content)
        else:
            shown[key] = _steady(content) if isinstance(content, str) else content
    return shown


def pixels(encoded: str) -> str:
    """A picture's size and a digest of its pixels."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    return f"{picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}"


def _steady(text: str) -> str:
    for pattern, instead in VARYING:
        text = pattern.sub(instead, text)
    return text
