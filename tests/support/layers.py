"""The layers and builds that a stack has on disk, seen from outside of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kept:
    """What a stack keeps of templates."""

    layers: frozenset[str]
    builds: frozenset[str]
    size: int


class Layers:
    """Those of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._layers, self._builds = data_dir / "layers", data_dir / "builds"

    def unfinished(self) -> list[str]:
        """What is being made, or was left half-made."""
        layers = [
            layer.name
            for layer in self._layers.iterdir()
            if layer.is_dir() and not (layer / "layer.json").exists()
        ]
        return sorted(layers + [build.name for build in self._builds.glob("*.tmp")])

    def unused(self) -> list[str]:
        """Layers that no build names: that of envd, and what nothing would ever delete."""
        named = "".join(build.read_text() for build in self._builds.glob("*.json"))
        return sorted(layer for layer in self._names() if json.dumps(layer) not in named)

    def kept(self) -> Kept:
        """All there is, and how many bytes the trees of layers have."""
        layers = frozenset(self._names())
        builds = frozenset(build.stem for build in self._builds.glob("*.json"))
        size = 0
        for layer in layers:
            for directory, _, files in os.walk(self._layers / layer / "fs"):
                size += sum(os.lstat(os.path.join(directory, name)).st_size for name in files)
        return Kept(layers, builds, size)

    def _names(self) -> list[str]:
        return [layer.name for layer in self._layers.iterdir() if layer.is_dir()]
