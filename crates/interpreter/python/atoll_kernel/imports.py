"""Something to do once a module has been imported, without importing it."""

from __future__ import annotations

import sys


def when_imported(name: str, action) -> None:
    """Calls `action(module)` as soon as the module is there: now, if it is already."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


class _Watcher:
    """Finds one module as the other finders do, once, and acts when it has been executed."""

    def __init__(self, name: str, action) -> None:
        self._name, self._action = name, action

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def exec_module(module) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                # An import of the user's must not fail for what is only an addition.
                try:
                    self._action(module)
                except Exception:
                    return

        loader.exec_module = exec_module
