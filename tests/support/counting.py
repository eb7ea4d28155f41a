"""A sandbox that shows what a pause has kept: it counts, in memory and into a file."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from e2b import Sandbox

from support import routing
from support.wait import wait_for

PORT = 8000

#: Where each number is written as it is counted, through one descriptor.
LOG = "/home/user/counted"

#: Counts, and says on a port how far it is. It has an open file, and another that has no name any
#: more. A POST is answered with its own body.
COUNTER = f"""
import http.server, json, os, secrets, tempfile, threading, time

run = secrets.token_hex(8)
log = open("{LOG}", "w", buffering=1)
nameless = tempfile.TemporaryFile()
nameless.write(run.encode())
nameless.flush()
count = 0

def go_on():
    global count
    while True:
        count += 1
        log.write(f"{{count}}\\n")
        time.sleep(0.01)

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        kept = os.pread(nameless.fileno(), 100, 0).decode()
        state = {{"run": run, "nameless": kept, "pid": os.getpid(), "count": count}}
        self.answer(json.dumps(state).encode())
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))
    def log_message(self, *args):
        pass

threading.Thread(target=go_on, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", {PORT}), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Seen:
    """What the counter says of itself."""

    #: Made when it began: another one is another process.
    run: str
    #: The same, read back from the file without a name.
    nameless: str
    pid: int
    count: int


class Counting:
    """A sandbox with the counter in it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        sandbox.files.write("/tmp/counter.py", COUNTER)
        command = "exec python3 /tmp/counter.py"
        self.pid = sandbox.commands.run(command, background=True, timeout=0).pid
        wait_for("the counter", lambda: self.ask().status_code == 200)

    def ask(self, **request: object) -> httpx.Response:
        """A plain HTTP request to its port, as a browser makes one."""
        return ask(self.sandbox.sandbox_id, **request)

    def look(self) -> Seen:
        return seen(self.ask())

    def went_on(self, before: Seen, now: Seen | None = None) -> None:
        """Asserts that it is the process of before, which missed nothing and lost nothing."""
        now = now or self.look()
        assert (now.run, now.nameless, now.pid) == (before.run, before.run, self.pid)
        assert now.count >= before.count
        wait_for("it to count on", lambda: self.look().count > now.count)
        assert_gapless(self.sandbox)


def ask(sandbox_id: str, method: str = "GET", **request: object) -> httpx.Response:
    """A plain HTTP request to the counter's port of a sandbox."""
    with routing.client(sandbox_id, PORT) as client:
        return client.request(method, "/", timeout=60, **request)


def seen(answer: httpx.Response) -> Seen:
    """What the counter has answered."""
    assert answer.status_code == 200, answer.text
    return Seen(**answer.json())


def assert_gapless(sandbox: Sandbox) -> None:
    """Asserts that what was counted is 1, 2, 3 and so on, each once."""
    # What comes behind the last line feed may be half a number.
    numbers = sandbox.files.read(LOG).split("\n")[:-1]
    assert numbers
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
