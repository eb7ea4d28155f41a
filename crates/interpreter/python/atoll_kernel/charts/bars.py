"""Bar charts and histograms."""

from __future__ import annotations

import math

from .axis import number
from .names import Names, is_given
from .points import has_series, is_data

# What positions are off by, as parts of a bar, because they were computed.
NOISE = 1e-6


def extract(axes, x, y, names: Names, limit):
    """Bars by what drew them, each group in one call; rectangles that nobody grouped are one
    group, unless they only mark a part of another plot."""
    groups = [group for group in axes.containers if type(group).__name__ == "BarContainer"]
    found = [_group(group, axes) for group in groups]
    if not any(bars for bars, _, _ in found) and not has_series(axes):
        loose = [patch for patch in axes.patches if _is_bar(patch, axes)]
        found = [(loose, _is_upright(loose), None)]
    found = [(bars, upright, label) for bars, upright, label in found if bars]
    if not found:
        return None
    limit.spend(sum(len(bars) for bars, _, _ in found))
    labels: dict = {}
    for upright, axis in ((True, x), (False, y)):
        labels.update(_labels(axis, [bars for bars, way, _ in found if way == upright], upright))
    elements: list[dict] = []
    for count, (bars, upright, label) in enumerate(found):
        for bar, name in zip(bars, _names(bars, label)):
            group = names.of(name, bar, f"Group {count}")
            height = bar.get_height() if upright else bar.get_width()
            elements.append({"label": labels[bar], "group": group, "value": number(height)})
    return "bar", elements


def _names(bars: list, label) -> list[str]:
    """What each bar of a group is called: as all of them are, or as it is itself. Of a histogram's
    bars only the first has the name."""
    if is_given(label):
        return [label] * len(bars)
    found = [""]
    for bar in bars:
        found.append(bar.get_label() if is_given(bar.get_label()) else found[-1])
    return found[1:]


def _group(container, axes):
    bars = [patch for patch in container.patches if _is_bar(patch, axes)]
    direction = getattr(container, "orientation", None)
    return bars, direction != "horizontal", container.get_label()


def _is_bar(patch, axes) -> bool:
    # One that was removed stays in its group.
    return type(patch).__name__ == "Rectangle" and patch.axes is axes and is_data(patch, axes)


def _is_upright(bars: list) -> bool:
    """Bars that begin at different places of the x axis; a single one, and one on top of another,
    stand."""
    return len({bar.get_x() for bar in bars}) > 1 or len({bar.get_y() for bar in bars}) < 2


def _labels(axis, groups: list[list], upright: bool) -> dict:
    """What each bar stands for: the tick next to it; of a histogram, from where to where it counts;
    else its middle. Bars of several groups side by side stand for the same."""
    named = {}
    if axis.is_named():
        ticks = axis.ticks()
        named = dict(zip(ticks, axis.tick_labels(ticks)))
    edges = [[_edges(bar, upright) for bar in bars] for bars in groups]
    if not named and not all(map(_are_numbered, edges)):
        edges = _together(edges)
    found: dict = {}
    for bars, places in zip(groups, edges):
        is_histogram = not _are_numbered(places) and _touch(places)
        for bar, (start, end) in zip(bars, places):
            middle, noise = (start + end) / 2, NOISE * (end - start)
            if named:
                found[bar] = named[min(named, key=lambda tick: abs(tick - middle))]
            elif is_histogram:
                found[bar] = f"{_word(axis, start, noise)} to {_word(axis, end, noise)}"
            else:
                found[bar] = _word(axis, middle, noise)
    return found


def _edges(bar, upright: bool) -> tuple:
    if upright:
        return tuple(sorted((bar.get_x(), bar.get_x() + bar.get_width())))
    return tuple(sorted((bar.get_y(), bar.get_y() + bar.get_height())))


def _word(axis, position, noise: float) -> str:
    value = axis.value(round(position) if _is_whole(position, noise) else position)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_whole(position, noise: float) -> bool:
    return math.isfinite(position) and abs(position - round(position)) <= noise


def _are_numbered(edges: list) -> bool:
    """Whether bars were put at whole numbers, which they stand for even where they touch."""
    return all(
        end - start <= 1 + NOISE and _is_whole((start + end) / 2, NOISE * (end - start))
        for start, end in edges
    )


def _together(groups: list[list]) -> list[list]:
    """The edges of all that stands side by side, instead of each bar's own: where the first bars of
    all groups are nearer to each other than to the second ones, and so on."""
    if len(groups) < 2 or len(groups[0]) < 2 or len({len(edges) for edges in groups}) > 1:
        return groups
    rows = [sorted(row) for row in zip(*groups)]
    whole = [(row[0][0], max(end for _, end in row)) for row in rows]
    inner = max(_widest_gap(row) for row in rows)
    outer = min(after[0] - before[1] for before, after in _pairs(sorted(whole)))
    noise = NOISE * (whole[0][1] - whole[0][0])
    is_nearer = inner < outer - noise or (inner <= noise and outer <= noise)
    return [whole] * len(groups) if is_nearer and outer >= -noise else groups


def _widest_gap(edges: list):
    return max(after[0] - before[1] for before, after in _pairs(edges))


def _pairs(edges: list) -> list:
    return list(zip(edges, edges[1:]))


def _touch(edges: list) -> bool:
    """Whether each bar begins where the one before it ends."""
    pairs = _pairs(edges)
    return bool(pairs) and all(
        abs(before[1] - after[0]) <= NOISE * abs(before[1] - before[0]) for before, after in pairs
    )
