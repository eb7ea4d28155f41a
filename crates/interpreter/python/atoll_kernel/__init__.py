"""What Atoll adds to a Python kernel: rich results, charts, and output that keeps its order.

It is loaded into the kernel's own process before the first cell (`load.py`), works with ipykernel
6 and 7, and imports neither numpy nor pandas, matplotlib or Pillow: what concerns them waits until
the user's code has imported them.

- `results`: representations that IPython does not make by itself
- `plain`: any value as JSON
- `charts`: what a matplotlib figure shows, as data
- `pictures`: figures and images
- `streams`: what is printed, by Python and by everybody else; `forks`, by copies of the kernel
- `shell`: settings of IPython, and shell lines
- `seeds`: what must not repeat when a started kernel is copied
"""

from __future__ import annotations

from .seeds import reseed

__all__ = ["load", "reseed"]


def load(shell) -> None:
    """Sets up the kernel of this process; `shell` is its `InteractiveShell`."""
    from . import pictures, results, streams
    from . import shell as settings

    settings.configure(shell)
    results.register(shell)
    pictures.register(shell)
    capture = streams.install(shell)
    settings.run_commands_through(shell, capture)
