"""Pie charts."""

from __future__ import annotations

from ..plain import text
from .names import Names


def extract(axes, x, y, names: Names, limit):
    """Its wedges, in the order of the values."""
    wedges = [
        patch for patch in axes.patches if type(patch).__name__ == "Wedge" and patch.get_visible()
    ]
    if not wedges:
        return None
    limit.spend(len(wedges))
    return "pie", [_wedge(wedge, names, number) for number, wedge in enumerate(wedges)]


def _wedge(wedge, names: Names, number: int) -> dict:
    return {
        "label": text(names.of(wedge.get_label(), wedge, f"Slice {number}")),
        # matplotlib computes shares in single precision: what follows is noise.
        "angle": round(abs(float(wedge.theta2) - float(wedge.theta1)), 4),
        "radius": round(float(wedge.r), 4),
    }
