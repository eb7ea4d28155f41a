"""The servers of one test host: `servers.py HOST NAME=ADDRESS...`; prints "ready" when they listen.

HTTP on ports 80 and 8099 answers with the host's name; DNS on port 53, over UDP and TCP, knows the
names given and nothing else. UDP port 5353 listens to multicast, and HTTP tells what came:
`GET /multicast`.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import struct
import sys
import threading

MULTICAST = "224.0.0.251"
heard: list[str] = []


class Web(http.server.BaseHTTPRequestHandler):
    """Says which host this is."""

    def do_GET(self) -> None:
        text = ",".join(heard) if self.path == "/multicast" else sys.argv[1]
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def answer(query: bytes, names: dict[str, str]) -> bytes:
    """A DNS answer to a query of one question."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    question = query[12 : at + 5]
    kind = struct.unpack(">H", question[-4:-2])[0]
    address = names.get(".".join(labels).lower())
    found = address is not None and kind == 1
    code = 0 if address is not None else 3
    header = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, int(found), 0, 0)
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4)
    return header + question + (record + socket.inet_aton(address) if found and address else b"")


def serve_dns(names: dict[str, str]) -> None:
    """Starts the name server."""

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, connection = self.request
            connection.sendto(answer(query, names), self.client_address)

    class Tcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            size = struct.unpack(">H", self.rfile.read(2))[0]
            reply = answer(self.rfile.read(size), names)
            self.wfile.write(struct.pack(">H", len(reply)) + reply)

    start(socketserver.ThreadingUDPServer(("0.0.0.0", 53), Udp))
    start(socketserver.ThreadingTCPServer(("0.0.0.0", 53), Tcp))


def listen_to_multicast() -> None:
    """Remembers what is sent to the group, from any link there is or will be."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", 5353))
    joined: set[int] = set()

    def join_new_links() -> None:
        for index, _ in socket.if_nameindex():
            if index not in joined:
                joined.add(index)
                member = struct.pack("4s4si", socket.inet_aton(MULTICAST), bytes(4), index)
                with contextlib.suppress(OSError):
                    listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)

    def receive() -> None:
        listener.settimeout(0.1)
        while True:
            join_new_links()
            with contextlib.suppress(TimeoutError):
                heard.append(listener.recv(100).decode(errors="replace"))

    join_new_links()
    threading.Thread(target=receive, daemon=True).start()


def start(server: socketserver.BaseServer) -> None:
    """Serves from a thread of its own."""
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main() -> None:
    names = dict(pair.split("=", 1) for pair in sys.argv[2:])
    for port in (80, 8099):
        start(http.server.ThreadingHTTPServer(("0.0.0.0", port), Web))
    serve_dns(names)
    listen_to_multicast()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
