"""Times one cell in the Python kernel of this sandbox, by turns through the code interpreter and
through jupyter_client, which drives the same kernel. Prints JSON; times are in milliseconds.

Arguments: how often. Environment: ATOLL_BENCH_TOKEN, the sandbox's access token.
"""

import http.client
import json
import os
import sys
import time
from pathlib import Path

from jupyter_client import BlockingKernelClient

CELL = "print(1)"
WARM_UP = 20
LIMIT = 60


class Interpreter:
    """The server, over one connection."""

    def __init__(self):
        self._connection = http.client.HTTPConnection("127.0.0.1", 49999, timeout=LIMIT)
        self._headers = {
            "Content-Type": "application/json",
            "X-Access-Token": os.environ["ATOLL_BENCH_TOKEN"],
        }

    def run(self, code):
        """Returns all events."""
        self._connection.request("POST", "/execute", json.dumps({"code": code}), self._headers)
        response = self._connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return body


class Jupyter:
    """The kernel itself."""

    def __init__(self, connection_file):
        self._client = BlockingKernelClient()
        self._client.load_connection_file(str(connection_file))
        self._client.start_channels()
        self._client.wait_for_ready(timeout=LIMIT)

    def as_people_do(self, code):
        """By the method that is made for it."""
        printed = []
        self._client.execute_interactive(
            code, store_history=False, allow_stdin=False, timeout=LIMIT, output_hook=printed.append
        )
        return printed

    def fastest(self, code):
        """By its session and sockets: what it has been told, and what it answered."""
        session, events = self._client.session, self._client.iopub_channel.socket
        shell = self._client.shell_channel.socket
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        request = session.send(shell, "execute_request", content)["header"]["msg_id"]
        told = []
        while not (told and told[-1]["content"].get("execution_state") == "idle"):
            _, message = session.recv(events, mode=0)
            if message["parent_header"].get("msg_id") == request:
                told.append(message)
        answer = None
        while answer != request:
            _, message = session.recv(shell, mode=0)
            answer = message["parent_header"].get("msg_id")
        return told


def timed(run):
    started = time.perf_counter()
    outcome = run(CELL)
    elapsed = (time.perf_counter() - started) * 1000
    assert outcome
    return elapsed


def started_in(process):
    """The sandbox in which a process was started: another one, if its memory was kept."""
    environment = Path(f"/proc/{process}/environ").read_text().split("\0")
    return dict(line.partition("=")[::2] for line in environment)["E2B_SANDBOX_ID"]


def main():
    # Of Jupyter's kernels only Python's runs in a new sandbox.
    (file,) = Path("/run/code-interpreter").rglob("*.json")
    interpreter, jupyter = Interpreter(), Jupyter(file)
    interpreter.run("import os; of_bench = os.getpid()")
    said = jupyter.fastest("print(of_bench)")
    process = "".join(message["content"].get("text", "") for message in said).strip()
    # Or something else would be compared.
    assert process, "the kernel is another"
    kinds = {
        "interpreter": interpreter.run,
        "execute_interactive": jupyter.as_people_do,
        "fastest": jupyter.fastest,
    }
    times = {kind: [] for kind in kinds}
    for _ in range(WARM_UP + int(sys.argv[1])):
        for kind, run in kinds.items():
            times[kind].append(timed(run))
    times = {kind: taken[WARM_UP:] for kind, taken in times.items()}
    print(json.dumps({"started_in": started_in(process), "times": times}))


if __name__ == "__main__":
    main()
