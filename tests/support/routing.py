"""Reaching a sandbox's ports by name, without DNS: the name goes into the Host header."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import httpx
from websockets.sync.client import ClientConnection, connect

DOMAIN = "sbx.localhost"


def proxy_address() -> tuple[str, int]:
    """Host and port of the client proxy."""
    url = urlsplit(os.environ["E2B_SANDBOX_URL"])
    assert url.hostname and url.port
    return url.hostname, url.port


def host(sandbox_id: str, port: int) -> str:
    """The name of a port of a sandbox."""
    return f"{port}-{sandbox_id}.{DOMAIN}"


def client(sandbox_id: str, port: int) -> httpx.Client:
    """An HTTP client whose requests go to that port through the proxy."""
    return httpx.Client(
        base_url=os.environ["E2B_SANDBOX_URL"],
        headers={"Host": host(sandbox_id, port)},
        timeout=30,
    )


def websocket(sandbox_id: str, port: int) -> ClientConnection:
    """A WebSocket to that port through the proxy."""
    connection = socket.create_connection(proxy_address(), timeout=10)
    return connect(f"ws://{host(sandbox_id, port)}/", sock=connection, open_timeout=15)
