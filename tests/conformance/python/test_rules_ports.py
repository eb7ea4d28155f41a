"""Servers that come and go, and sandboxes that end in the middle of something."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import Sandbox, TimeoutException

from support import guest, routing
from support.sdk import newest, since
from support.wait import wait_for

Create = Callable[..., Sandbox]
ENVD = 49983

#: Sends three events, each once a client has said that it has seen the one before.
EVENTS = """
import http.server, sys, threading

class Handler(http.server.BaseHTTPRequestHandler):
    seen = threading.Semaphore(0)
    def do_GET(self):
        if self.path == "/seen":
            self.seen.release()
            self.send_response(204)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"data: {number}\\n\\n".encode())
            self.wfile.flush()
            self.seen.acquire()
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def serve_events(sandbox: Sandbox, port: int) -> None:
    sandbox.files.write("/tmp/events.py", EVENTS)
    sandbox.commands.run(f"exec python3 /tmp/events.py {port}", background=True, timeout=0)
    guest.wait_until_listening(sandbox, port)


# Rules: PORT-2, PROXY-24, TRAP-19
@newest
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::1"])
def test_a_new_server_is_reached_without_an_error_before(shared: Sandbox, address: str) -> None:
    port = {"0.0.0.0": 8300, "127.0.0.1": 8301, "::1": 8302}[address]
    guest.serve_http(shared, address, port)
    guest.wait_until_listening(shared, port)
    with routing.client(shared.sandbox_id, port) as client:
        answer = client.get("/")
    assert (answer.status_code, answer.json()["address"]) == (200, address)


# Rules: PORT-1, TRAP-19
@newest
def test_localhost_is_reached(shared: Sandbox) -> None:
    guest.serve_http(shared, "localhost", 8303)
    guest.wait_until_listening(shared, 8303)
    with routing.client(shared.sandbox_id, 8303) as client:
        assert client.get("/").status_code == 200


# Rules: PORT-3, PROXY-18
@newest
def test_a_port_closes_with_its_server_and_opens_with_the_next(shared: Sandbox) -> None:
    with routing.client(shared.sandbox_id, 8304) as client:
        for address in ["127.0.0.1", "::1", "0.0.0.0"]:
            assert client.get("/").status_code == 502
            guest.serve_http(shared, address, 8304)
            guest.wait_until_listening(shared, 8304)
            assert client.get("/").json()["address"] == address
            shared.commands.run("pkill -f 'http_server.py .* 830[4]'")
            closed = "while ss -Htln | grep -q ':8304 '; do sleep 0.05; done"
            shared.commands.run(closed, timeout=20)


# Rules: PROXY-30, PROXY-31
@newest
def test_events_arrive_as_they_are_sent(shared: Sandbox) -> None:
    serve_events(shared, 8200)
    with routing.client(shared.sandbox_id, 8200) as client, client.stream("GET", "/") as events:
        assert "content-encoding" not in events.headers
        lines: list[str] = []
        for line in events.iter_lines():
            lines.append(line)
            if line:
                # The next one is not sent before.
                with routing.client(shared.sandbox_id, 8200) as other:
                    assert other.get("/seen").status_code == 204
    assert [line for line in lines if line] == ["data: 0", "data: 1", "data: 2"]


def ended(failed: BaseException) -> bool:
    """Whether an exception says that the sandbox is not there any more."""
    return isinstance(failed, TimeoutException) or "not found" in str(failed)


# Rules: PROXY-37, TRAP-2
@since("2.29.1", "an error for a sandbox that ends")
def test_a_download_from_a_killed_sandbox_fails(create: Create) -> None:
    sandbox = create()
    sandbox.commands.run("truncate -s 2G large")
    chunks = iter(sandbox.files.read("large", format="stream"))
    assert next(chunks)
    sandbox.kill()
    with pytest.raises(Exception) as caught:
        for _ in chunks:
            pass
    assert not isinstance(caught.value, StopIteration)


# Rules: PROXY-37, TRAP-2
@newest
def test_an_upload_to_a_killed_sandbox_fails(create: Create) -> None:
    sandbox = create()
    begun, killed = threading.Event(), threading.Event()

    def content() -> Iterator[bytes]:
        while not killed.is_set():
            yield b"x" * 65536
            begun.set()
        yield b"the rest"

    headers = {
        "Host": routing.host(sandbox.sandbox_id, ENVD),
        "X-Access-Token": str(sandbox._envd_access_token),
        "Content-Type": "application/octet-stream",
    }
    outcome: list[object] = []

    def upload() -> None:
        url = f"{os.environ['E2B_SANDBOX_URL']}/files?path=large&username=user"
        try:
            outcome.append(httpx.post(url, headers=headers, content=content(), timeout=30))
        except httpx.HTTPError as error:
            outcome.append(error)

    uploading = threading.Thread(target=upload)
    uploading.start()
    assert begun.wait(20)
    sandbox.kill()
    killed.set()
    uploading.join(30)
    assert not uploading.is_alive()
    (result,) = outcome
    assert isinstance(result, httpx.HTTPError) or (
        isinstance(result, httpx.Response) and result.status_code == 502
    )


# Rules: PROXY-37, PROXY-17
def test_every_call_on_a_killed_sandbox_fails(create: Create) -> None:
    sandbox = create()
    watch = sandbox.files.watch_dir("/tmp")
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.kill()
    calls: dict[str, Callable[[], object]] = {
        "run": lambda: sandbox.commands.run("true"),
        "list": lambda: sandbox.commands.list(),
        "kill": lambda: sandbox.commands.kill(handle.pid),
        "send_stdin": lambda: sandbox.commands.send_stdin(handle.pid, "x"),
        "connect": lambda: sandbox.commands.connect(handle.pid),
        "read": lambda: sandbox.files.read("/etc/hostname"),
        "write": lambda: sandbox.files.write("a", "x"),
        "list files": lambda: sandbox.files.list("/"),
        "exists": lambda: sandbox.files.exists("/"),
        "watch": lambda: sandbox.files.watch_dir("/tmp"),
        "poll": lambda: watch.get_new_events(),
    }
    for name, call in calls.items():
        with pytest.raises(Exception) as caught:
            call()
        assert ended(caught.value), f"{name}: {caught.value!r}"
    assert sandbox.is_running() is False


# Rules: PROXY-38
@newest
def test_a_client_that_leaves_is_noticed(shared: Sandbox) -> None:
    serve_events(shared, 8201)

    def connections() -> int:
        filtered = "ss -Htn state established '( sport = :8201 )' | wc -l"
        return int(shared.commands.run(filtered).stdout)

    with routing.client(shared.sandbox_id, 8201) as client, client.stream("GET", "/") as events:
        # Kept: the connection is closed when nobody has it any more.
        lines = events.iter_lines()
        assert next(lines) == "data: 0"
        assert connections() == 1
    # The server waits, and would for ever.
    wait_for("the connection to be closed", lambda: connections() == 0)
