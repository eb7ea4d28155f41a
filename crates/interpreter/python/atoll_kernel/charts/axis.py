"""One axis: what it says of itself, and its positions as the values they stand for."""

from __future__ import annotations

import datetime
import math
import re
import sys

from ..plain import plain, text

UNIT = re.compile(r"\s\((.*?)\)|\[(.*?)\]")
SCALES = ("linear", "log", "symlog", "logit", "function", "functionlog", "asinh")


def unit(label: str) -> str | None:
    """The unit in a label: what stands in brackets, as in `Speed (km/h)` or `Speed [km/h]`."""
    found = UNIT.search(label)
    return None if found is None else found[1] or found[2] or None


class Axis:
    """The x or y axis of a rectilinear plot."""

    def __init__(self, axis) -> None:
        self._axis = axis
        self.label = axis.get_label_text()
        get = getattr(axis, "get_converter", None)
        converter = get() if get is not None else axis.converter
        # Also pandas' own converters of dates; times of day and periods are not dates.
        kind = type(converter).__name__
        self._is_dated = kind in (
            "DateConverter",
            "ConciseDateConverter",
            "_SwitchableDateConverter",
            "DatetimeConverter",
        )
        # pandas plots regular times as numbers of days, months or whatever they are apart, but
        # lengths of time as they are.
        is_length = type(axis.get_major_formatter()).__name__ == "TimeSeries_TimedeltaFormatter"
        self._freq = None if is_length else getattr(axis, "freq", None)
        units = axis.units if kind == "StrCategoryConverter" else None
        mapping = getattr(units, "_mapping", {})
        self._categories = {position: name for name, position in mapping.items()}

    def scale(self) -> str:
        """What it is called in a chart."""
        if self._is_dated or self._freq is not None:
            return "datetime"
        if self._categories:
            return "categorical"
        scale = self._axis.get_scale()
        return scale if scale in SCALES else "unknown"

    def ticks(self) -> list:
        """Where its ticks are, also those just outside of the picture."""
        return list(self._axis.get_majorticklocs())

    def tick_labels(self, ticks: list) -> list[str]:
        """What is written at them."""
        return list(self._axis.get_major_formatter().format_ticks(ticks))

    def is_named(self) -> bool:
        """Whether its ticks were put at certain places, as categories are."""
        kind = type(self._axis.get_major_locator()).__name__
        return kind in ("FixedLocator", "StrCategoryLocator")

    def values(self, positions) -> list:
        """[`value`] of each."""
        is_plain = not self._is_dated and not self._categories and self._freq is None
        if is_plain and getattr(getattr(positions, "dtype", None), "kind", None) in ("f", "i", "u"):
            return [value if math.isfinite(value) else None for value in positions.tolist()]
        return [self.value(position) for position in positions]

    def value(self, position):
        """The number, the moment (ISO 8601) or the category at a position; None for NaN."""
        if self._is_dated and not _is_moment(position):
            return self._moment(position)
        if self._freq is not None and hasattr(position, "__int__"):
            position = sys.modules["pandas"].Period(ordinal=round(position), freq=self._freq)
        if self._categories and not isinstance(position, str):
            return self._category(position)
        if isinstance(position, datetime.date) and not isinstance(position, datetime.datetime):
            position = datetime.datetime(position.year, position.month, position.day)
        if hasattr(position, "to_timestamp"):
            position = position.to_timestamp()
        return text(position) if isinstance(position, str) else number(position)

    def _moment(self, position) -> str | None:
        from matplotlib.dates import num2date

        position = number(position)
        if position is None:
            return None
        # matplotlib counts in UTC and shows it without saying so, unless it was given a zone.
        zone = self._axis.units if isinstance(self._axis.units, datetime.tzinfo) else None
        moment = num2date(position, zone)
        return (moment if zone else moment.replace(tzinfo=None)).isoformat()

    def _category(self, position):
        place = number(position)
        return place if place is None else text(self._categories.get(place, f"{place:g}"))


def _is_moment(value) -> bool:
    return isinstance(value, datetime.date) or type(value).__name__ == "datetime64"


def number(value):
    """A number as Python's own, None if it is none; a moment in ISO 8601."""
    if type(value).__name__ == "MaskedConstant":
        return None
    if type(value).__name__ == "datetime64":
        # Nanoseconds have no type of Python's.
        value = value.astype("datetime64[us]").item()
    return plain(value, other=str)
