"""Box plots. matplotlib leaves no trace of one but its parts: they are put together again."""

from __future__ import annotations

from ..plain import text
from .names import Names
from .points import is_data

# A box with or without notches, as a closed line.
CORNERS = (5, 11)


def extract(axes, x, y, names: Names, limit):
    """Boxes with their whiskers, if there is a box plot among the axes."""
    lines = [line for line in axes.lines if is_data(line, axes)]
    boxes = [box for box in [*lines, *axes.patches] if _is_box(box, axes)]
    if not boxes:
        return None
    limit.spend(sum(len(line.get_xdata(orig=False)) for line in lines))
    for upright in (True, False):
        found = [_box(box, lines, upright) for box in boxes]
        if all(found):
            axis = x if upright else y
            return "box_and_whisker", [_element(box, axis) for box in sorted(found, key=_middle)]
    return None


def _is_box(artist, axes) -> bool:
    """Whether it can be the box: closed, with corners like one."""
    kind = type(artist).__name__
    if kind == "PathPatch":
        vertices = artist.get_path().vertices
        return is_data(artist, axes) and len(vertices) - 1 in (*CORNERS, CORNERS[0] - 1)
    if kind != "Line2D" or len(artist.get_xdata(orig=False)) not in CORNERS:
        return False
    xs, ys = artist.get_xdata(orig=False), artist.get_ydata(orig=False)
    return xs[0] == xs[-1] and ys[0] == ys[-1] and len(set(xs)) > 1


def _columns(artist, upright: bool):
    """Positions along the categories, and along the values."""
    if type(artist).__name__ == "PathPatch":
        vertices = artist.get_path().vertices
        columns = vertices[:, 0], vertices[:, 1]
    else:
        columns = artist.get_xdata(orig=False), artist.get_ydata(orig=False)
    return columns if upright else columns[::-1]


def _middle(box: dict) -> float:
    return box["place"]


def _box(box, lines: list, upright: bool) -> dict | None:
    """What belongs to a box, if boxes stand (or lie) and it is one: two whiskers begin at its
    ends."""
    across, along = _columns(box, upright)
    left, right = min(across), max(across)
    # It begins with the lower edge and comes to the upper one half-way; notches can go beyond both.
    low, high = sorted((along[0], along[len(along) // 2]))
    place = (left + right) / 2
    near = 1e-6 * max(right - left, 1e-12)
    whiskers: list = []
    medians: list = []
    for number, line in enumerate(lines):
        columns = _columns(line, upright)
        if len(columns[0]) != 2:
            continue
        (first, second), (start, end) = columns
        if abs(first - second) <= near:
            if abs(first - place) <= near and (start in (low, high)):
                whiskers.append((start, end))
        elif start == end and low <= start <= high:
            width = abs(second - first)
            if abs((first + second) / 2 - place) <= near and width <= right - left + near:
                medians.append((line.get_zorder(), round(width, 9), -number))
    if len(whiskers) < 2 or not medians:
        return None
    # Caps of whiskers without length lie below it, and a line for the mean is drawn later.
    number = -max(medians)[-1]
    median = _columns(lines[number], upright)[1][0]
    # The lower whisker is drawn before the upper one.
    ends = [end for _, end in whiskers[:2]]
    least, most = min(*ends, low), max(*ends, high)
    beyond = _fliers(lines[number], lines[number + 1 :], place, near, upright)
    return {
        "place": float(place),
        "values": (least, low, median, high, most),
        "outliers": [value for value in beyond if not least <= value <= most],
    }


def _fliers(median, after: list, place, near, upright: bool) -> list:
    """The points drawn next after the median. Only the mean comes between them, which lies above
    them as the median does: what is drawn later was put there by somebody else."""
    for line in after:
        if line.get_zorder() < median.get_zorder():
            across, along = _columns(line, upright)
            is_marked = line.get_linestyle() in ("None", "none", " ", "")
            if is_marked and all(abs(position - place) <= near for position in across):
                return [float(value) for value in along]
            return []
    return []


def _element(box: dict, axis) -> dict:
    names = ("min", "first_quartile", "median", "third_quartile", "max")
    label = axis.value(box["place"])
    if axis.is_named():
        ticks = axis.ticks()
        nearest = min(range(len(ticks)), key=lambda at: abs(ticks[at] - box["place"]))
        label = axis.tick_labels(ticks)[nearest]
    values = {name: float(value) for name, value in zip(names, box["values"])}
    return {"label": text(str(label)), **values, "outliers": box["outliers"]}
