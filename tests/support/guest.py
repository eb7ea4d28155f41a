"""Small servers to run inside a sandbox, with nothing but its own Python."""

from __future__ import annotations

from e2b import Sandbox

#: Answers GET with its own listening address and the Host header it was sent.
HTTP_SERVER = """
import http.server, json, socket, sys

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"address": sys.argv[1], "host": self.headers["Host"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""

#: Echoes each text message of one WebSocket after another; masks and lengths as RFC 6455 has them.
WEBSOCKET_ECHO = """
import base64, hashlib, socketserver, struct, sys

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        headers = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        digest = hashlib.sha1(
            headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        ).digest()
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\\r\\n"
            b"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\\r\\n\\r\\n"
        )
        while head := self.rfile.read(2):
            length = head[1] & 127
            if length == 126:
                length, = struct.unpack(">H", self.rfile.read(2))
            elif length == 127:
                length, = struct.unpack(">Q", self.rfile.read(8))
            mask = self.rfile.read(4)
            body = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            size = (bytes([length]) if length < 126 else
                    b"\\x7e" + struct.pack(">H", length) if length < 65536 else
                    b"\\x7f" + struct.pack(">Q", length))
            self.wfile.write(head[:1] + size + body)
            if head[0] & 15 == 8:
                return

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True

Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""


def serve_http(sandbox: Sandbox, address: str, port: int, user: str = "user") -> None:
    """Starts an HTTP server in the sandbox. A request made at once may come before it listens."""
    sandbox.files.write("/tmp/http_server.py", HTTP_SERVER)
    sandbox.commands.run(
        f"exec python3 /tmp/http_server.py {address} {port}", background=True, timeout=0, user=user
    )


def serve_websocket(sandbox: Sandbox, port: int) -> None:
    """Starts a WebSocket echo on the sandbox's loopback."""
    sandbox.files.write("/tmp/websocket_echo.py", WEBSOCKET_ECHO)
    sandbox.commands.run(f"exec python3 /tmp/websocket_echo.py {port}", background=True, timeout=0)


def wait_until_listening(sandbox: Sandbox, port: int) -> None:
    """Returns when something in the sandbox listens on the port."""
    sandbox.commands.run(f"until ss -Htln | grep -q ':{port} '; do sleep 0.05; done", timeout=20)
