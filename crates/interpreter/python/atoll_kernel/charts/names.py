"""Names of series."""

from __future__ import annotations

from ..plain import text


def is_given(label) -> bool:
    """Whether a label is the user's. matplotlib calls what has none `_child0`."""
    return bool(label) and not str(label).startswith("_")


class Names:
    """What the series of some axes are called."""

    def __init__(self, axes) -> None:
        self._by_colour: dict = {}
        legend = axes.get_legend()
        if legend is None:
            return
        handles = getattr(legend, "legend_handles", None) or getattr(legend, "legendHandles", [])
        for handle, label in zip(handles, legend.get_texts()):
            colour = _colour(handle)
            if colour is not None:
                self._by_colour.setdefault(colour, label.get_text())

    def of(self, label, artist, fallback: str) -> str:
        """The series' own label; else that of the legend's entry with its colour, which is how
        seaborn names things; else `fallback`."""
        if is_given(label):
            return text(str(label))
        return text(self._by_colour.get(_colour(artist)) or fallback)

    def of_colour(self, colour) -> str | None:
        """The legend's entry with this colour."""
        return self._by_colour.get(_rounded(colour))

    def __bool__(self) -> bool:
        return bool(self._by_colour)


def _colour(artist):
    """The colour by which somebody recognises an artist; None if it has none, or several."""
    for method in ("get_facecolor", "get_color"):
        get = getattr(artist, method, None)
        if get is not None:
            return _rounded(get())
    return None


def _rounded(colour):
    from matplotlib.colors import to_rgb

    try:
        if getattr(colour, "ndim", 1) == 2:
            if len(colour) != 1:
                return None
            colour = colour[0]
        return tuple(round(part, 3) for part in to_rgb(colour))
    except (TypeError, ValueError):
        return None
