"""Which SDK the tests run with, and what it has."""

import inspect
from collections.abc import Callable
from importlib.metadata import version

import pytest
from packaging.version import Version

SDK = Version(version("e2b"))

#: From here on nothing may be skipped for being absent: a method that a newer release dropped or
#: renamed fails its tests instead of hiding them.
NEWEST = Version("2.63.0")

#: What is not about an SDK needs no second run.
newest = pytest.mark.skipif(SDK < NEWEST, reason="run with the newest SDK only")


def needs(owner: type, name: str) -> pytest.MarkDecorator:
    """Skips a test with an SDK that is older than the method it is about."""
    absent = not hasattr(owner, name) and SDK < NEWEST
    return pytest.mark.skipif(absent, reason=f"e2b {SDK} has no {owner.__name__}.{name}")


def since(release: str, what: str) -> pytest.MarkDecorator:
    """Skips a test with an SDK from before `release`, where `what` does not exist."""
    return pytest.mark.skipif(Version(release) > SDK, reason=f"new in e2b {release}: {what}")


def takes(function: Callable[..., object], option: str) -> pytest.MarkDecorator:
    """Skips a test with an SDK whose `function` is older than one of its options."""
    absent = option not in inspect.signature(function).parameters and SDK < NEWEST
    name = getattr(function, "__qualname__", function)
    return pytest.mark.skipif(absent, reason=f"e2b {SDK} has no {option} in {name}")
