"""Representations of results that IPython does not make by itself."""

from __future__ import annotations

import warnings

from IPython.core.formatters import BaseFormatter
from IPython.utils.dir2 import get_real_method

from . import charts
from .plain import Budget, Refused, plain, text


class Formatter(BaseFormatter):
    """Makes one representation of one type, which is named, and not imported. It does not use the
    registry of its class: pyplot removes from all of them what is there for figures."""

    def __init__(self, format_type: str, names: set, make, **options) -> None:
        super().__init__(**options)
        self.format_type, self._names, self._make = format_type, names, _quietly(make)

    def __call__(self, value):
        kinds = {(kind.__module__, kind.__name__) for kind in type(value).__mro__}
        return self._make(value) if kinds & self._names else None


def register(shell) -> None:
    """Adds them to what the shell makes of every result."""
    formatters = shell.display_formatter.formatters
    # pandas 3 says `pandas`, those before it where the class is written.
    frames = {("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame")}
    figures = {("matplotlib.figure", "Figure")}
    for kind, names, make in (
        ("e2b/data", frames, frame),
        ("e2b/chart", figures, charts.extract),
    ):
        formatters[kind] = Formatter(kind, names, make, parent=shell.display_formatter)
    json = formatters["application/json"]
    for kind in (list, dict):
        json.for_type(kind, _quietly(collection))


def _quietly(function):
    """The function without its warnings; None where it fails. A result is never lost to one of its
    representations."""

    def quiet(value):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(value)
        except Exception:
            return None

    return quiet


def collection(value):
    """A list or dict as JSON. One that knows better has its own way."""
    own = get_real_method(value, "_repr_json_")
    return own() if own is not None else plain(value)


def frame(value) -> dict:
    """A DataFrame's columns by name, as lists; the index is none of them.

    Of a name that several columns have, the second becomes `name.1`. Names in several levels are
    joined by commas.
    """
    rows, columns = value.shape
    # Before anything is taken out of it.
    Budget().spend(rows * columns)
    found: dict = {}
    budget = Budget()
    for position, name in enumerate(value.columns):
        values = value.iloc[:, position].tolist()
        found[_unused(_name(name), found)] = [plain(item, budget, _word) for item in values]
    return found


def _name(name) -> str:
    parts = name if isinstance(name, tuple) else (name,)
    return ", ".join(text(str(part)) for part in parts)


def _unused(name: str, taken: dict) -> str:
    number, unused = 0, name
    while unused in taken:
        number += 1
        unused = f"{name}.{number}"
    return unused


def _word(value) -> str:
    """Anything in a table that JSON has nothing for."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode(errors="backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    iso = getattr(value, "isoformat", None)
    word = iso() if callable(iso) else str(value)
    if not isinstance(word, str):
        raise Refused("no word for it")
    return word
