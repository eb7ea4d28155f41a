"""What a matplotlib figure shows, as data: the `chart` of a result.

Nothing here draws or changes the figure. It is read after its picture has been made, so that limits
and ticks are what the picture has.

- `axis`: labels, units, scales, ticks, and positions as the values they stand for
- `names`: names of series, also those that only a legend has
- `points`: lines and scatter plots; `bars`; `boxes`; `pies`
"""

from __future__ import annotations

from ..plain import text
from . import bars, boxes, pies, points
from .axis import Axis, unit
from .names import Names

# Points, bars and ticks of a figure. One with more has no chart: it would be megabytes.
LIMIT = 100_000
# What is asked whether it recognises the axes, in this order.
KINDS = (pies, boxes, bars, points)
# Where axes can have a title.
PLACES = ("center", "left", "right")


def extract(figure) -> dict | None:
    """The chart of a figure: `{}` if it is blank or cannot be read, None if it has too many
    points."""
    try:
        return _figure(figure, Limit())
    except TooMany:
        return None
    except Exception:
        return {}


class TooMany(Exception):
    """The figure has more than [`LIMIT`]."""


class Limit:
    """How many points a figure may still have."""

    def __init__(self) -> None:
        self._left = LIMIT

    def spend(self, points: int) -> None:
        self._left -= points
        if self._left < 0:
            raise TooMany


def _figure(figure, limit: Limit) -> dict:
    shown = [axes for axes in figure.axes if axes.get_visible() and not _is_colorbar(axes)]
    charts = [_axes(axes, limit) for axes in shown if not _is_blank(axes)]
    title = figure._suptitle.get_text() if getattr(figure, "_suptitle", None) else ""
    if not charts:
        return {}
    if len(charts) == 1:
        charts[0]["title"] = charts[0]["title"] or _text(title)
        return charts[0]
    return {"type": "superchart", "title": _text(title), "elements": charts}


def _axes(axes, limit: Limit) -> dict:
    chart = {"type": "unknown", "title": _title(axes), "elements": []}
    # Polar and three-dimensional axes, maps.
    if axes.name != "rectilinear":
        return chart
    x, y = Axis(axes.xaxis), Axis(axes.yaxis)
    for kind in KINDS:
        found = kind.extract(axes, x, y, Names(axes), limit)
        if found is not None:
            chart["type"], chart["elements"] = found
            break
    if chart["type"] not in ("pie", "unknown"):
        for letter, axis in (("x", x), ("y", y)):
            chart[f"{letter}_label"] = _text(axis.label)
            chart[f"{letter}_unit"] = unit(axis.label)
    if chart["type"] in ("line", "scatter"):
        for letter, axis in (("x", x), ("y", y)):
            ticks = axis.ticks()
            limit.spend(len(ticks))
            chart[f"{letter}_ticks"] = axis.values(ticks)
            chart[f"{letter}_tick_labels"] = [text(label) for label in axis.tick_labels(ticks)]
            chart[f"{letter}_scale"] = axis.scale()
    return chart


def _title(axes) -> str | None:
    return _text(next(filter(None, (axes.get_title(place) for place in PLACES)), ""))


def _text(value: str) -> str | None:
    return text(value) if value else None


def _is_colorbar(axes) -> bool:
    return axes.get_label() == "<colorbar>" or getattr(axes, "_colorbar", None) is not None


def _is_blank(axes) -> bool:
    """Whether nothing was drawn there."""
    shown = [axes.lines, axes.patches, axes.collections, axes.images, axes.texts, axes.tables]
    return not any(artist.get_visible() for artists in shown for artist in artists)
