"""Everything by name and over TLS: no override of any address, only a domain and whom to trust."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import AsyncSandbox, PtySize, Sandbox, TimeoutException
from websockets.sync.client import connect

from support import guest, names, patient
from support.sdk import since
from support.wait import wait_for

Create = Callable[..., Sandbox]

pytestmark = pytest.mark.skipif(
    not names.resolve(), reason="names do not resolve here: as root, the tests bring a resolver"
)

#: Sends an event, waits until it has been told that the event has arrived, and sends the next.
EVENTS = """
import http.server, threading

class Handler(http.server.BaseHTTPRequestHandler):
    seen = threading.Semaphore(0)
    def do_POST(self):
        self.seen.release()
        self.send_response(204)
        self.end_headers()
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"data: {number}\\n\\n".encode())
            self.wfile.flush()
            self.seen.acquire()
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 8700), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def by_name(stack: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK makes all addresses of the domain."""
    monkeypatch.delenv("E2B_API_URL")
    monkeypatch.delenv("E2B_SANDBOX_URL")


@pytest.fixture(scope="module")
def named(stack: object) -> Iterator[Sandbox]:
    """A sandbox that was made through `api.<domain>`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("E2B_API_URL")
        patch.delenv("E2B_SANDBOX_URL")
        sandbox = Sandbox.create(timeout=600)
    assert sandbox.connection_config.api_url == f"https://api.{os.environ['E2B_DOMAIN']}"
    yield sandbox
    sandbox.kill()


def front() -> tuple[str, int]:
    """Domain and port of the front."""
    domain, _, port = os.environ["E2B_DOMAIN"].partition(":")
    return domain, int(port or 443)


def without_tls(host: str) -> str:
    """Where a URL without TLS finds what `https://host` finds: on the same port."""
    return host if ":" in host else f"{host}:443"


# Rules: PROXY-16
def test_the_domain_is_in_every_answer(named: Sandbox) -> None:
    domain = os.environ["E2B_DOMAIN"]
    assert named.get_host(3000) == f"3000-{named.sandbox_id}.{domain}"
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    answer = patient.get(f"https://api.{domain}/sandboxes/{named.sandbox_id}", headers=headers)
    assert answer.json()["domain"] == domain


def test_the_life_of_a_sandbox(create: Create) -> None:
    sandbox = create(metadata={"by": "name"})
    assert sandbox.is_running()
    assert sandbox.get_info().metadata == {"by": "name"}
    assert Sandbox.connect(sandbox.sandbox_id).commands.run("echo again").stdout == "again\n"
    assert sandbox.kill() is True


def test_commands(named: Sandbox) -> None:
    seen: list[str] = []
    done = named.commands.run(
        "echo one; read line; echo $line >&2", background=True, stdin=True, timeout=0
    )
    named.commands.send_stdin(done.pid, "two\n")
    result = done.wait(on_stdout=seen.append, on_stderr=seen.append)
    assert (result.exit_code, seen) == (0, ["one\n", "two\n"])
    much = named.commands.run("head -c 3000000 /dev/zero | tr '\\0' x").stdout
    assert much == "x" * 3_000_000


def test_terminals(named: Sandbox) -> None:
    output = bytearray()
    terminal = named.pty.create(PtySize(rows=24, cols=80), timeout=60)
    named.pty.send_stdin(terminal.pid, b"echo $((6 * 7)); exit\n")
    terminal.wait(on_pty=output.extend)
    assert b"42" in output


def test_files(named: Sandbox) -> None:
    content = os.urandom(5_000_000)
    named.files.write("large.bin", content)
    assert bytes(named.files.read("large.bin", format="bytes")) == content
    assert named.files.make_dir("dir") is True
    watch = named.files.watch_dir("dir")
    named.files.write("dir/ü.txt", "x")
    wait_for("an event", lambda: [event.name for event in watch.get_new_events()])
    watch.stop()


async def test_asynchronously() -> None:
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        assert (await sandbox.commands.run("echo hi")).stdout == "hi\n"
        await sandbox.files.write("a.txt", "hi")
        assert await sandbox.files.read("a.txt") == "hi"
    finally:
        await sandbox.kill()


def test_signed_links_work_as_they_are(named: Sandbox) -> None:
    upload = named.upload_url("signed ü.txt", use_signature_expiration=60)
    assert patient.post(upload, files={"file": ("x", b"linked")}).status_code == 200
    link = named.download_url("signed ü.txt")
    assert link.startswith(f"https://49983-{named.sandbox_id}.{os.environ['E2B_DOMAIN']}/files?")
    assert patient.get(link).text == "linked"
    other = link.replace("signed", "another")
    assert patient.get(other).json()["message"] == "invalid signature"


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_server_in_the_sandbox(named: Sandbox, scheme: str) -> None:
    port = {"https": 8701, "http": 8702}[scheme]
    guest.serve_http(named, "127.0.0.1", port)
    guest.wait_until_listening(named, port)
    host = named.get_host(port) if scheme == "https" else without_tls(named.get_host(port))
    answer = patient.get(f"{scheme}://{host}/")
    assert answer.json() == {"address": "127.0.0.1", "host": host}


def test_server_sent_events(named: Sandbox) -> None:
    named.files.write("/tmp/events.py", EVENTS)
    named.commands.run("exec python3 /tmp/events.py", background=True, timeout=0)
    guest.wait_until_listening(named, 8700)
    url = f"https://{named.get_host(8700)}/"
    with httpx.stream("GET", url, timeout=20) as answer:
        for number, line in enumerate(line for line in answer.iter_lines() if line):
            assert line == f"data: {number}"
            # The next one is sent only when this one has been seen.
            assert patient.post(url).status_code == 204
    assert number == 2


@pytest.mark.parametrize("scheme", ["wss", "ws"])
def test_websockets(named: Sandbox, scheme: str) -> None:
    port = {"wss": 8703, "ws": 8704}[scheme]
    guest.serve_websocket(named, port)
    guest.wait_until_listening(named, port)
    trusted = ssl.create_default_context() if scheme == "wss" else None
    host = named.get_host(port) if scheme == "wss" else without_tls(named.get_host(port))
    with connect(f"{scheme}://{host}/", ssl=trusted, open_timeout=20) as echo:
        for message in ["hello", "ünï 🙂", "x" * 100_000]:
            echo.send(message)
            assert echo.recv(timeout=20) == message


# Rules: PROXY-36, TRAP-2
@since("2.29.1", "an error for a sandbox that ends")
def test_a_killed_sandbox_ends_its_streams_with_the_exception_for_it(create: Create) -> None:
    sandbox = create()
    begun = threading.Event()
    handle = sandbox.commands.run("echo begun; sleep 600", background=True, timeout=0)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            handle.wait(on_stdout=lambda _: begun.set())
        except BaseException as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(20)
    sandbox.kill()
    waiting.join(30)
    assert not waiting.is_alive(), "the command's stream is still open"
    assert isinstance(outcome[0], TimeoutException), repr(outcome)
    with pytest.raises(TimeoutException):
        sandbox.commands.run("true")


def test_a_download_that_is_cut_off_does_not_look_complete(create: Create) -> None:
    sandbox = create()
    sandbox.commands.run("truncate -s 8G large")
    with httpx.stream("GET", sandbox.download_url("large"), timeout=30) as answer:
        parts = answer.iter_raw()
        next(parts)
        sandbox.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in parts:
                pass


def test_nobody_is_trusted_who_was_not_named(named: Sandbox) -> None:
    domain, port = front()
    strangers = ssl.create_default_context(cafile="/etc/ssl/certs/ca-certificates.crt")
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        strangers.wrap_socket(connection, server_hostname=f"api.{domain}")


def test_what_is_trusted_vouches_for_the_domain_only() -> None:
    domain, port = front()
    trusted = ssl.create_default_context()
    # What newer releases of Python ask of certificates by default.
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    for name, good in [(domain, True), (f"api.{domain}", True), ("example.com", False)]:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            if good:
                trusted.wrap_socket(connection, server_hostname=name).close()
                continue
            with pytest.raises(ssl.SSLCertVerificationError):
                trusted.wrap_socket(connection, server_hostname=name)


def test_hosts_that_are_none_of_the_deployment(named: Sandbox) -> None:
    domain, port = front()
    for host in ["localhost", f"www.{domain}", f"3000-{named.sandbox_id}.example.com"]:
        answer = patient.get(f"http://127.0.0.1:{port}/", headers={"Host": host})
        assert (answer.status_code, answer.json()["error_code"]) == (404, "ATL-6002")
    home = patient.get(f"https://{os.environ['E2B_DOMAIN']}/")
    assert home.json()["api"] == f"https://api.{os.environ['E2B_DOMAIN']}"


def test_the_published_key_is_not_for_web_pages() -> None:
    url = f"https://api.{os.environ['E2B_DOMAIN']}/v2/sandboxes"
    headers = {"X-API-Key": os.environ["E2B_API_KEY"]}
    assert patient.get(url, headers=headers).status_code == 200
    for name in ["Origin", "X-Forwarded-For"]:
        answer = patient.get(url, headers={**headers, name: "https://3000-x.sbx.localhost"})
        assert (answer.status_code, answer.json()["error_code"]) == (401, "ATL-2011")


@pytest.mark.parametrize("path", ["/init", "/x/../init", "/%69nit", "/freeze"])
def test_control_routes_are_hidden(named: Sandbox, path: str) -> None:
    host = named.get_host(49983)
    url = httpx.URL(f"https://{host}").copy_with(raw_path=path.encode())
    answer = patient.post(url, json={})
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("This endpoint is reserved")
