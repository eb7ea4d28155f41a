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

#: Serves bare repositories of a directory by git's own CGI program. Those whose name begins with
#: "private" want the user `ada` with the password `s3cret-Token_1`.
GIT_SERVER = """
import base64, gzip, http.server, os, subprocess, sys

ADA = "Basic " + base64.b64encode(b"ada:s3cret-Token_1").decode()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.startswith("/private") and self.headers["Authorization"] != ADA:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        environment = dict(
            os.environ, GIT_PROJECT_ROOT=sys.argv[1], GIT_HTTP_EXPORT_ALL="1", PATH_INFO=path,
            QUERY_STRING=query, REQUEST_METHOD=self.command, CONTENT_LENGTH=str(len(body)),
            CONTENT_TYPE=self.headers["Content-Type"] or "", REMOTE_USER="ada",
            GIT_PROTOCOL=self.headers["Git-Protocol"] or "",
        )
        answer = subprocess.run(
            ["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE
        ).stdout
        head, _, content = answer.partition(b"\\r\\n\\r\\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\\r\\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    do_POST = do_GET
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
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
    sandbox.commands.run(f"until ss -Htln | grep -q ':{port} '; do sleep 0.05; done", timeout=60)


def serve_git(sandbox: Sandbox, port: int) -> None:
    """Serves `public.git` and `private.git`, each with one commit, on the sandbox's loopback."""
    sandbox.files.write("/tmp/git_server.py", GIT_SERVER)
    sandbox.commands.run(
        """
        set -e
        for name in public private; do
            git init -q --bare -b main /tmp/served/$name.git
            git init -q -b main /tmp/work-$name
            cd /tmp/work-$name
            echo $name > README
            git add README
            git -c user.name=server -c user.email=s@example.test commit -q -m first
            git push -q /tmp/served/$name.git main
        done
        """
    )
    sandbox.commands.run(
        f"exec python3 /tmp/git_server.py /tmp/served {port}", background=True, timeout=0
    )
    wait_until_listening(sandbox, port)
