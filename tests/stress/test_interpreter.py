"""A hundred code interpreters that draw at once."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from e2b_code_interpreter import Sandbox
from PIL import Image

from support import lifecycle
from support.host import memory_of
from support.wait import equals

SANDBOXES = 100
#: Requests that one client has under way.
AT_ONCE = 10
#: What all of them may use together: a machine of a CI service has little more.
MOST_BYTES = 20 << 30

PLOT = """
import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 10, 500)
plt.plot(x, np.sin(x), label="sine")
plt.hist(np.random.default_rng({number}).normal(5, 1, 1000), bins=30, density=True)
plt.title("Number {number}")
plt.legend()
plt.show()
"""


@contextmanager
def memory(instance: str) -> Iterator[Callable[[], int]]:
    """Gives the most memory that the instance's sandboxes have held at a time."""
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.1):
            most = max(most, memory_of(instance))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most
    finally:
        over.set()
        thread.join()


@pytest.mark.timeout(1800)
def test_a_hundred_plots(
    create_interpreter: Callable[..., Sandbox],
    instance: str,
    record_property: Callable[[str, object], None],
) -> None:
    def draw(number: int) -> tuple[str, tuple[int, int]]:
        sandbox = create_interpreter(timeout=1800, request_timeout=600)
        execution = sandbox.run_code(PLOT.format(number=number), timeout=600, request_timeout=600)
        assert execution.error is None, execution.error
        (result,) = execution.results
        picture = Image.open(io.BytesIO(base64.b64decode(result.png)))
        picture.load()
        return sandbox.sandbox_id, picture.size

    with memory(instance) as peak, ThreadPoolExecutor(AT_ONCE) as pool:
        sizes = dict(pool.map(draw, range(SANDBOXES)))
        assert min(sizes.values()) > (300, 200)
        # None of them ended on the way: this many were there at once.
        assert len(sizes) == SANDBOXES
        assert sizes.keys() <= set(lifecycle.listed())
        used = peak()
    print(f"{used / (1 << 30):.1f} GiB at the peak")
    record_property("peak_bytes", used)
    assert 0 < used < MOST_BYTES
    for sandbox_id in sizes:
        Sandbox.kill(sandbox_id)
    equals("sandboxes", lambda: sizes.keys() & lifecycle.listed(), set())
