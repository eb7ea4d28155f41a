"""Bar charts and histograms."""

from __future__ import annotations

from .axis import number
from .names import Names, is_given
from .points import is_data


def extract(axes, x, y, names: Names, limit):
    """Bars by what drew them, each group in one call; rectangles that nobody grouped are one
    group."""
    groups = [group for group in axes.containers if type(group).__name__ == "BarContainer"]
    found = [_group(group, axes) for group in groups]
    if not any(bars for bars, _, _ in found):
        loose = [patch for patch in axes.patches if _is_bar(patch, axes)]
        found = [(loose, _is_upright(loose), None)]
    found = [(bars, upright, label) for bars, upright, label in found if bars]
    if not found:
        return None
    elements: list[dict] = []
    for count, (bars, upright, label) in enumerate(found):
        limit.spend(len(bars))
        place = _Places(x if upright else y, bars, upright)
        for bar, name in zip(bars, _names(bars, label)):
            group = names.of(name, bar, f"Group {count}")
            height = bar.get_height() if upright else bar.get_width()
            elements.append({"label": place.label(bar), "group": group, "value": number(height)})
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
    return type(patch).__name__ == "Rectangle" and patch in axes.patches and is_data(patch, axes)


def _is_upright(bars: list) -> bool:
    """Bars that begin at different places of the x axis; a single one, and one on top of another,
    stand."""
    return len({bar.get_x() for bar in bars}) > 1 or len({bar.get_y() for bar in bars}) < 2


class _Places:
    """What the bars of a group stand for."""

    def __init__(self, axis, bars: list, upright: bool) -> None:
        self._axis, self._upright = axis, upright
        self._named = {}
        if axis.is_named():
            ticks = axis.ticks()
            self._named = dict(zip(ticks, axis.tick_labels(ticks)))
        self._spans = not self._named and _touch([self._edges(bar) for bar in bars])

    def label(self, bar) -> str:
        """The tick next to it; of a histogram, from where to where it counts; else its middle."""
        start, end = self._edges(bar)
        middle = (start + end) / 2
        if self._named:
            return self._named[min(self._named, key=lambda tick: abs(tick - middle))]
        if self._spans:
            return f"{self._word(start)} to {self._word(end)}"
        return self._word(middle)

    def _edges(self, bar) -> tuple:
        if self._upright:
            return bar.get_x(), bar.get_x() + bar.get_width()
        return bar.get_y(), bar.get_y() + bar.get_height()

    def _word(self, position) -> str:
        value = self._axis.value(position)
        return f"{value:g}" if isinstance(value, float) else str(value)


def _touch(edges: list) -> bool:
    """Whether each bar begins where the one before it ends."""
    pairs = list(zip(edges, edges[1:]))
    return bool(pairs) and all(
        abs(first[1] - second[0]) <= 1e-6 * abs(first[1] - first[0]) for first, second in pairs
    )
