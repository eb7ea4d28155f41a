"""A plain Jupyter client, to be run inside a sandbox.

It reads the cells of a notebook from standard input, in JSON, starts a kernel of its own by the
kernelspec, and prints what each cell did, in JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from jupyter_client import KernelManager

#: No cell takes as long.
LIMIT = 240


def run(cells: list[str]) -> list[dict[str, Any]]:
    """Runs them one after the other in one kernel, which starts in the working directory."""
    with tempfile.TemporaryDirectory() as sockets:
        manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        # What it does not catch itself is no part of the answer.
        manager.start_kernel(cwd=os.getcwd(), stdout=subprocess.DEVNULL)
        client = manager.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=LIMIT)
            return [cell(client, code) for code in cells]
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def cell(client: Any, code: str) -> dict[str, Any]:
    """Runs one cell and says what it did."""
    did: dict[str, Any] = {"stdout": "", "stderr": "", "results": [], "error": None}

    def told(message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            did[content["name"]] += content["text"]
        elif kind in {"display_data", "execute_result"}:
            is_main = kind == "execute_result"
            did["results"].append({"data": content["data"], "is_main_result": is_main})
        elif kind == "error":
            names = ("ename", "evalue", "traceback")
            did["error"] = {name: content[name] for name in names}

    reply = client.execute_interactive(code, allow_stdin=False, timeout=LIMIT, output_hook=told)
    answer = reply["content"]
    # Some errors are printed by the kernel itself, and only its answer has their names.
    if answer["status"] == "error" and not did["error"]:
        did["error"] = {name: answer[name] for name in ("ename", "evalue", "traceback")}
    did["execution_count"] = answer["execution_count"]
    return did


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
