"""Clients made with other toolkits: the same calls in every protocol, through the client proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2b import Sandbox

pytest.importorskip("connectrpc", reason="the client that comes with newer SDKs")

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.protocol import ProtocolType
from e2b.envd.process import process_pb as pb
from e2b.envd.process.process_connect import ProcessClientSync
from protobuf import Oneof
from pyqwest import HTTPVersion, SyncClient, SyncHTTPTransport

from support.routing import proxy_address
from support.sdk import newest
from support.wait import wait_for

pytestmark = newest

PROTOCOLS = {
    "connect": (ProtocolType.CONNECT, HTTPVersion.HTTP1),
    "connect over HTTP/2": (ProtocolType.CONNECT, HTTPVersion.HTTP2),
    "grpc": (ProtocolType.GRPC, HTTPVersion.HTTP2),
    "grpc-web": (ProtocolType.GRPC_WEB, HTTPVersion.HTTP1),
}

Create = Callable[..., Sandbox]


# Rules: RPC-5, PROXY-40
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_calls_mean_the_same_in_every_protocol(create: Create, protocol: str) -> None:
    sandbox = create(timeout=120)
    kind, version = PROTOCOLS[protocol]
    host, port = proxy_address()
    headers = {
        "e2b-sandbox-id": sandbox.sandbox_id,
        "e2b-sandbox-port": "49983",
        "x-access-token": str(sandbox._envd_access_token),
    }
    http = SyncClient(SyncHTTPTransport(http_version=version))
    with ProcessClientSync(f"http://{host}:{port}", protocol=kind, http_client=http) as client:
        # Unary, and an error with its code.
        assert client.list(pb.ListRequest(), headers=headers).processes == []
        gone = pb.ProcessSelector(selector=Oneof("pid", 4_000_000))
        with pytest.raises(ConnectError) as error:
            client.close_stdin(pb.CloseStdinRequest(process=gone), headers=headers)
        assert error.value.code == Code.NOT_FOUND

        # A stream of events; meanwhile a stream of input.
        config = pb.ProcessConfig(cmd="/bin/sh", args=["-c", "head -c 5; exit 3"])
        start = pb.StartRequest(process=config, stdin=True)
        events = iter(client.start(start, headers=headers))
        pid = event(next(events)).value.pid
        target = pb.ProcessSelector(selector=Oneof("pid", pid))
        client.stream_input(typed(target, [b"\xff\x00", b"abc"]), headers=headers)
        output, end = b"", None
        for message in events:
            match event(message):
                case Oneof(field="data", value=data):
                    output += data.output.value
                case Oneof(field="end", value=end):
                    pass
        assert output == b"\xff\x00abc"
        assert end is not None and (end.exit_code, end.status) == (3, "exit status 3")

        # A deadline ends the stream and the process.
        config = pb.ProcessConfig(cmd="/bin/sleep", args=["1000"])
        start = pb.StartRequest(process=config, stdin=False)
        with pytest.raises(ConnectError) as error:
            list(client.start(start, headers=headers, timeout_ms=1000))
        assert error.value.code == Code.DEADLINE_EXCEEDED
        # The client keeps time, too, and may be a little ahead.
        wait_for("the process to go", lambda: not sandbox.commands.list())


def event(message: Any) -> Any:
    """The alternative that an answer carries."""
    return message.event.event


def typed(target: Any, pieces: list[bytes]) -> Any:
    """The messages of StreamInput."""
    start = pb.StreamInputRequest.StartEvent(process=target)
    yield pb.StreamInputRequest(event=Oneof("start", start))
    for piece in pieces:
        data = pb.StreamInputRequest.DataEvent(input=pb.ProcessInput(input=Oneof("stdin", piece)))
        yield pb.StreamInputRequest(event=Oneof("data", data))
