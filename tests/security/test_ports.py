"""What listens on the host: each port authenticates, or only this machine can reach it."""

from __future__ import annotations

import subprocess
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from support import paths, patient
from support.stack import PORTS, Stack

RPC = f"http://127.0.0.1:{PORTS['rpc']}"
NODE_PROXY = f"http://127.0.0.1:{PORTS['node-proxy']}"


@pytest.fixture
def token(stack: Stack) -> str:
    """The secret between Atoll's own services."""
    file = paths.DATA_DIR / "node-token"
    assert file.stat().st_mode & 0o077 == 0, "others can read the node token"
    return file.read_text().strip()


def test_every_port_is_on_loopback_by_default(stack: Stack) -> None:
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    local = [line.split()[3] for line in listening.splitlines()]
    ours = [address for address in local if int(address.rsplit(":", 1)[1]) in PORTS.values()]
    assert len(ours) == len(PORTS)
    assert all(address.startswith("127.0.0.1:") for address in ours), ours


@pytest.mark.parametrize("credentials", [None, "", "Bearer", "Bearer wrong", "Basic d3Jvbmc="])
@pytest.mark.parametrize("path", ["/v1/info", "/v1/sandboxes", "/v1/changes", "/nothing"])
def test_node_rpc_wants_its_token(stack: Stack, path: str, credentials: str | None) -> None:
    headers = {} if credentials is None else {"Authorization": credentials}
    answer = patient.get(RPC + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == 2002


def test_node_rpc_tells_what_runs(shared: Sandbox, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    info = patient.get(f"{RPC}/v1/info", headers=headers).json()
    assert info["driver"] == "container"
    running = patient.get(f"{RPC}/v1/sandboxes", headers=headers).json()
    assert shared.sandbox_id in [sandbox["record"]["id"] for sandbox in running]


def test_node_rpc_creates_and_kills(shared: Sandbox, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=RPC, headers=headers, timeout=patient.PATIENCE) as rpc:
        known: dict[str, Any] = next(
            sandbox["record"]
            for sandbox in rpc.get("/v1/sandboxes").json()
            if sandbox["record"]["id"] == shared.sandbox_id
        )
        record = known | {"id": "inoderpctest"}
        created = rpc.post("/v1/sandboxes", json=record)
        assert created.status_code == 200, created.text
        assert created.json()["sandbox"]["envd_version"]
        assert rpc.post("/v1/sandboxes", json=record).status_code == 409
        kill = "/v1/sandboxes/inoderpctest/kill"
        assert rpc.post(kill, json={"reason": "killed"}).json() is True
        assert rpc.post(kill, json={"reason": "killed"}).json() is False


def test_node_proxy_wants_its_token(shared: Sandbox, token: str) -> None:
    routing = {"E2b-Sandbox-Id": shared.sandbox_id, "E2b-Sandbox-Port": "49983"}
    health = f"{NODE_PROXY}/health"
    assert patient.get(health, headers=routing).status_code == 401
    wrong = routing | {"x-atoll-node-token": "wrong"}
    assert patient.get(health, headers=wrong).status_code == 401
    right = routing | {"x-atoll-node-token": token}
    assert patient.get(health, headers=right).status_code == 204
