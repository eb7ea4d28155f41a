"""Requests to Atoll, and which of their answers were cut off."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from dataclasses import dataclass
from typing import Any

import httpx

from support.stack import PORTS

#: No operation takes longer than this while Atoll is up; whatever does is stuck.
STUCK_SECONDS = 90

AGENT_PORT = 8000
ENVD_PORT = 49983


class Cut(Exception):
    """The answer to a request was cut off: what it asked for is in doubt if it was sent."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("sent" if sent else "not sent")
        self.sent = sent


class Stuck(Exception):
    """There was no answer, although Atoll was up."""


@dataclass
class Answer:
    """A complete answer."""

    status: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    def __str__(self) -> str:
        return f"{self.status} {self.text[:200]}".strip()


@dataclass
class Access:
    """What it takes to reach a sandbox."""

    id: str
    token: str


class Client:
    """Speaks to an Atoll that comes and goes."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._http: httpx.AsyncClient | None = None
        self._up = asyncio.Event()
        #: How often it came up, and since when it is.
        self.generation = 0
        self.up_since = 0.0

    def came_up(self) -> None:
        # No connection of before is of use.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(STUCK_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=False,
        )
        self.generation += 1
        self.up_since = time.time()
        self._up.set()

    def went_down(self) -> None:
        self._up.clear()

    async def up(self) -> None:
        """Waits until Atoll is there."""
        await self._up.wait()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    async def api(self, method: str, path: str, body: Any = None, **query: str) -> Answer:
        """A request to the REST API."""
        return await self._call(
            method,
            f"http://127.0.0.1:{PORTS['api']}{path}",
            headers={"X-API-Key": self._key},
            params=query,
            json=body,
        )

    async def agent(self, access: Access, method: str, path: str) -> Answer:
        """A request to what runs in a sandbox."""
        return await self._inside(access, AGENT_PORT, method, path)

    async def upload(self, access: Access, path: str, content: bytes) -> Answer:
        """Writes a file in a sandbox, through its envd."""
        return await self._inside(
            access,
            ENVD_PORT,
            "POST",
            "/files",
            params={"path": path, "username": "user"},
            headers={"Content-Type": "application/octet-stream"},
            content=content,
        )

    async def run(self, access: Access, command: str) -> int | Answer:
        """Runs a command in a sandbox; gives its exit code, or what it was refused with."""
        request = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-c", command]}}).encode()
        answer = await self._inside(
            access,
            ENVD_PORT,
            "POST",
            "/process.Process/Start",
            headers={
                "Content-Type": "application/connect+json",
                "Connect-Protocol-Version": "1",
                "Authorization": "Basic " + base64.b64encode(b"user:").decode(),
            },
            content=struct.pack(">BI", 0, len(request)) + request,
        )
        if answer.status != 200:
            return answer
        for message in _frames(answer.text.encode("latin-1")):
            if end := message.get("event", {}).get("end"):
                return end.get("exitCode", 0)
        return answer

    async def _inside(
        self,
        access: Access,
        port: int,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        routing = {"E2b-Sandbox-Id": access.id, "E2b-Sandbox-Port": str(port)}
        if port == ENVD_PORT:
            routing["X-Access-Token"] = access.token
        url = f"http://127.0.0.1:{PORTS['proxy']}{path}"
        return await self._call(method, url, headers=routing | (headers or {}), **options)

    async def _call(self, method: str, url: str, **options: Any) -> Answer:
        if not self._http:
            raise Cut(sent=False)
        generation = self.generation
        try:
            answer = await self._http.request(method, url, **options)
        except httpx.ConnectError:
            raise Cut(sent=False) from None
        except httpx.TimeoutException as error:
            if self.is_up and self.generation == generation:
                raise Stuck(f"{method} {url}: no answer in {STUCK_SECONDS} s") from error
            raise Cut(sent=True) from None
        except httpx.TransportError:
            raise Cut(sent=True) from None
        return Answer(answer.status_code, answer.content.decode("latin-1"))


def _frames(body: bytes) -> list[dict[str, Any]]:
    """The messages of a Connect stream."""
    messages = []
    while len(body) >= 5:
        length = struct.unpack(">I", body[1:5])[0]
        messages.append(json.loads(body[5 : 5 + length]))
        body = body[5 + length :]
    return messages
