"""Any value as JSON that strict parsers take: no NaN, no numpy, no half of a surrogate pair."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import sys
import uuid

# What is larger is no result to be read by a program: 100 000 numbers are about a megabyte.
VALUES = 500_000
CHARACTERS = 16 * 1024 * 1024
DEPTH = 100
# What has more digits than a double has range is no number in JavaScript.
BITS = 1024


class Refused(Exception):
    """There is no JSON for it, or there is too much of it."""


class Budget:
    """How much may still be written."""

    def __init__(self, values: int = VALUES, characters: int = CHARACTERS) -> None:
        self._values, self._characters = values, characters

    def spend(self, values: int, characters: int = 0) -> None:
        self._values -= values
        self._characters -= characters
        if self._values < 0 or self._characters < 0:
            raise Refused("too large")


def refuse(value):
    """For values that JSON has nothing for: there is no result then."""
    raise Refused(f"no JSON for {type(value).__name__}")


def plain(value, budget: Budget | None = None, other=refuse):
    """The value as None, bool, int, float, str, list and dict; `other` makes a str of any other.

    NaN and the infinities are None, since JSON has neither. Raises [`Refused`] for what has no
    JSON, is too large, or contains itself.
    """
    return _plain(value, budget or Budget(), other, DEPTH)


def text(value: str) -> str:
    """The string, fit for UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="backslashreplace").decode()
    return str(value)


def moment(value) -> str:
    """A date or time in ISO 8601."""
    return value.isoformat()


def _plain(value, budget: Budget, other, depth: int):
    kind = type(value)
    if kind is float:
        budget.spend(1)
        return value if math.isfinite(value) else None
    if kind is str:
        budget.spend(1, len(value))
        return value if value.isascii() else text(value)
    if value is None or kind is bool:
        budget.spend(1)
        return value
    if kind is int:
        budget.spend(1)
        return value if value.bit_length() <= BITS else other(value)
    if isinstance(value, (list, tuple)):
        return _list(value, budget, other, depth)
    if isinstance(value, dict):
        return _dict(value, budget, other, depth)
    return _scalar(value, budget, other, depth)


def _deeper(depth: int) -> int:
    if depth == 0:
        raise Refused("too deep, or it contains itself")
    return depth - 1


def _list(value, budget: Budget, other, depth: int) -> list:
    depth = _deeper(depth)
    budget.spend(1)
    return [_plain(item, budget, other, depth) for item in value]


def _dict(value, budget: Budget, other, depth: int) -> dict:
    depth = _deeper(depth)
    budget.spend(1)
    return {_key(key, budget): _plain(item, budget, other, depth) for key, item in value.items()}


def _key(key, budget: Budget) -> str:
    key = _plain(key, budget, refuse, 1)
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, (int, float)):
        return str(key)
    return refuse(key)


def _scalar(value, budget: Budget, other, depth: int):
    """Everything that is not one of JSON's own types, exactly."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        budget.spend(value.size)
        return _plain(value.tolist(), budget, other, depth)
    if numpy is not None and isinstance(value, numpy.generic):
        return _plain(_numpy(value, numpy), budget, other, _deeper(depth))
    pandas = sys.modules.get("pandas")
    if pandas is not None and (value is pandas.NaT or value is getattr(pandas, "NA", None)):
        return None
    return _plain(_simpler(value, other), budget, other, _deeper(depth))


def _numpy(value, numpy):
    """A numpy number or time as one of Python's."""
    if isinstance(value, (numpy.datetime64, numpy.timedelta64)):
        return None if numpy.isnat(value) else str(value)
    item = value.item()
    # Extended precision has no type of Python's, and gives itself.
    return float(item) if isinstance(item, numpy.floating) else item


def _simpler(value, other):
    """The same as one of JSON's types, or as `other` has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return moment(value)
    if isinstance(value, decimal.Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, uuid.UUID):
        return str(value)
    return other(value)
