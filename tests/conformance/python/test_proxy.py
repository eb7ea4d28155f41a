"""The client proxy: ports of a sandbox by name, signed links, and what it refuses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import AuthenticationException, Sandbox
from e2b.sandbox.signature import get_signature

from support import guest, patient, routing
from support.sdk import newest
from support.wait import wait_for

Create = Callable[..., Sandbox]
ENVD = 49983


@pytest.fixture(scope="module")
def served(shared: Sandbox) -> Iterator[Sandbox]:
    """A sandbox with a server on each kind of address."""
    for port, address in PORTS.items():
        guest.serve_http(shared, address, port)
        guest.wait_until_listening(shared, port)
    return shared


PORTS = {8000: "0.0.0.0", 8001: "127.0.0.1", 8002: "::1", 8003: "::"}


# Rules: PORT-1, PROXY-10, PROXY-26, TRAP-19, TRAP-20
@pytest.mark.parametrize("port", PORTS)
def test_a_server_is_reached_wherever_it_listens(served: Sandbox, port: int) -> None:
    with routing.client(served.sandbox_id, port) as client:
        answer = client.get("/").json()
    assert answer["address"] == PORTS[port]
    assert answer["host"] == routing.host(served.sandbox_id, port)


# Rules: PORT-4
def test_a_port_below_1024(served: Sandbox) -> None:
    guest.serve_http(served, "0.0.0.0", 80, user="root")
    guest.wait_until_listening(served, 80)
    with routing.client(served.sandbox_id, 80) as client:
        assert client.get("/").status_code == 200


# Rules: PROXY-12, SDK-2, TRAP-21
def test_routing_by_headers(served: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": served.sandbox_id, "E2b-Sandbox-Port": "8001"}
    answer = patient.get(os.environ["E2B_SANDBOX_URL"], headers=headers)
    assert answer.json()["address"] == "127.0.0.1"


# Rules: PROXY-13
def test_the_name_wins_over_headers(served: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": served.sandbox_id, "E2b-Sandbox-Port": "8001"}
    with routing.client(served.sandbox_id, 8000) as client:
        assert client.get("/", headers=headers).json()["address"] == "0.0.0.0"


# Rules: PROXY-11
def test_the_older_name_with_a_client_id(served: Sandbox) -> None:
    host = f"8000-{served.sandbox_id}-6532622b.{routing.DOMAIN}"
    answer = patient.get(os.environ["E2B_SANDBOX_URL"], headers={"Host": host})
    assert answer.status_code == 200


def test_a_server_that_is_just_starting(served: Sandbox) -> None:
    guest.serve_http(served, "127.0.0.1", 8090)
    with routing.client(served.sandbox_id, 8090) as client:
        # The proxy tries again for a while; a loaded machine may need it more than once.
        wait_for("an answer", lambda: client.get("/").status_code == 200)


# Rules: PROXY-29, TRAP-20
def test_websockets(served: Sandbox) -> None:
    guest.serve_websocket(served, 8100)
    guest.wait_until_listening(served, 8100)
    with routing.websocket(served.sandbox_id, 8100) as socket:
        for message in ["hello", "ünï 🙂", "x" * 100_000]:
            socket.send(message)
            assert socket.recv(timeout=20) == message


# Rules: PROXY-18, TRAP-3
def test_a_closed_port_is_502_with_its_number(served: Sandbox) -> None:
    with routing.client(served.sandbox_id, 8888) as client:
        answer = client.get("/")
    assert answer.status_code == 502
    assert answer.json() == {
        "sandboxId": served.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 8888,
        "code": 502,
    }


# Rules: PROXY-17, TRAP-3
@pytest.mark.parametrize("port", [ENVD, 8000])
def test_an_unknown_sandbox_is_502(stack: object, port: int) -> None:
    with routing.client("i0000000000000000000", port) as client:
        answer = client.get("/health")
    assert answer.status_code == 502
    assert answer.json() == {
        "sandboxId": "i0000000000000000000",
        "message": "The sandbox was not found",
        "code": 502,
    }


# Rules: PROXY-17, PROXY-35, TRAP-2
def test_a_killed_sandbox_is_502_at_once(create: Create) -> None:
    sandbox = create()
    sandbox.kill()
    with routing.client(sandbox.sandbox_id, ENVD) as client:
        answer = client.get("/health")
    assert answer.status_code == 502
    assert answer.json()["message"] == "The sandbox was not found"


BROWSER = {"User-Agent": "Mozilla/5.0", "Accept": "text/html", "Sec-Fetch-Mode": "navigate"}


# Rules: PROXY-19
@newest
def test_browsers_get_a_page(served: Sandbox) -> None:
    with routing.client(served.sandbox_id, 8888) as client:
        page = client.get("/", headers=BROWSER)
        script = client.get("/", headers={**BROWSER, "Sec-Fetch-Mode": "cors"})
    assert page.status_code == 502
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.lstrip().startswith("<html") and page.text.rstrip().endswith("</html>")
    assert "no service running on port" in page.text
    assert script.json()["code"] == 502


# Rules: PROXY-1, PROXY-2, TRAP-18
@pytest.mark.parametrize(
    "path", ["/init", "//init", "/x/../init", "/./init", "/%69nit", "/init/", "/INIT/../init"]
)
def test_control_routes_are_hidden(served: Sandbox, path: str) -> None:
    raw = httpx.URL(os.environ["E2B_SANDBOX_URL"]).copy_with(raw_path=path.encode())
    headers = {"Host": routing.host(served.sandbox_id, ENVD)}
    answer = patient.post(raw, headers=headers, json={"accessToken": "mine"})
    assert answer.status_code == 404
    # And the token is what it was.
    assert served.files.exists("/etc/passwd")


# Rules: PROXY-1
@pytest.mark.parametrize(
    "route", ["freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade"]
)
def test_the_other_control_routes(served: Sandbox, route: str) -> None:
    with routing.client(served.sandbox_id, ENVD) as client:
        answer = client.post(f"/{route}")
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("This endpoint is reserved")


# Rules: PROXY-14
def test_one_header_is_not_enough(served: Sandbox) -> None:
    url = os.environ["E2B_SANDBOX_URL"]
    only_id = patient.get(url, headers={"E2b-Sandbox-Id": served.sandbox_id})
    only_port = patient.get(url, headers={"E2b-Sandbox-Port": "8000"})
    assert [only_id.status_code, only_port.status_code] == [400, 400]


# Rules: PROXY-15
@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "8000.sbx.localhost",
        "x-iabc.sbx.localhost",
        "99999-iabc.sbx.localhost",
        "8000-i_b.sbx.localhost",
        "8000-../etc.sbx.localhost",
        "-.sbx.localhost",
        "8000-iABC.sbx.localhost",
    ],
)
def test_a_name_that_means_nothing_is_400(stack: object, host: str) -> None:
    answer = patient.get(os.environ["E2B_SANDBOX_URL"], headers={"Host": host})
    assert answer.status_code == 400


def token(sandbox: Sandbox) -> str:
    """The access token, as `GET /sandboxes/{id}` has it."""
    answer = patient.get(
        f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}",
        headers={"X-API-Key": os.environ["E2B_API_KEY"]},
    )
    return answer.json()["envdAccessToken"]


def signed(sandbox: Sandbox, operation: str, path: str, **options: object) -> dict[str, str]:
    """The query of a link that is signed as the SDK signs."""
    made = get_signature(path, operation, None, token(sandbox), **options)  # type: ignore[arg-type]
    query = {"path": path, "signature": made["signature"]}
    if made["expiration"] is not None:
        query["signature_expiration"] = str(made["expiration"])
    return query


# Rules: SIGN-9, SIGN-12
def test_signed_links_need_no_token(served: Sandbox) -> None:
    served.files.write("signed ü.txt", "for whoever has the link")
    with routing.client(served.sandbox_id, ENVD) as client:
        answer = client.get("/files", params=signed(served, "read", "signed ü.txt"))
        assert (answer.status_code, answer.text) == (200, "for whoever has the link")
        upload = client.post(
            "/files",
            params=signed(served, "write", "uploaded.txt", expiration_in_seconds=60),
            files={"file": ("uploaded.txt", b"by link")},
        )
        assert upload.status_code == 200
    assert served.files.read("uploaded.txt") == "by link"


# Rules: SIGN-13
def test_the_sdks_own_link_leads_there(served: Sandbox) -> None:
    served.files.write("linked.txt", "linked")
    url = httpx.URL(served.download_url("linked.txt", use_signature_expiration=60))
    answer = patient.get(url, headers={"Host": routing.host(served.sandbox_id, ENVD)})
    assert (answer.status_code, answer.text) == (200, "linked")


# Rules: SIGN-4, SIGN-5, SIGN-6, TRAP-6
def test_links_that_are_not_right_are_refused(served: Sandbox) -> None:
    good = signed(served, "read", "/etc/hostname")
    expired = signed(served, "read", "/etc/hostname", expiration_in_seconds=-10)
    bad = [
        ({"path": "/etc/hostname"}, "missing signature query parameter"),
        ({**good, "signature": "v1_AAAA"}, "invalid signature"),
        ({**good, "path": "/etc/shadow"}, "invalid signature"),
        ({**good, "username": "root"}, "invalid signature"),
        ({**good, "signature_expiration": str(int(time.time()) + 600)}, "invalid signature"),
        (signed(served, "write", "/etc/hostname"), "invalid signature"),
        (expired, "signature is already expired"),
    ]
    with routing.client(served.sandbox_id, ENVD) as client:
        for query, message in bad:
            answer = client.get("/files", params=query)
            assert answer.status_code == 401, query
            assert answer.json() == {"code": 401, "message": message}


# Rules: AUTH-1, AUTH-3, AUTH-4, TRAP-4
def test_envd_wants_its_token(served: Sandbox) -> None:
    with routing.client(served.sandbox_id, ENVD) as client:
        assert client.get("/health").status_code == 204
        for headers in [{}, {"X-Access-Token": "wrong"}, {"X-Access-Token": ""}]:
            assert client.get("/envs", headers=headers).status_code == 401
            answer = client.post("/process.Process/List", headers=headers, json={})
            assert answer.status_code == 401
            assert answer.json()["code"] == 401
        right = client.post(
            "/process.Process/List", headers={"X-Access-Token": token(served)}, json={}
        )
        assert right.status_code == 200


# Rules: AUTH-9, RPC-23
def test_the_sdk_reports_a_wrong_token(create: Create) -> None:
    sandbox = create()
    # What a client does that kept an id and lost the token.
    stranger = Sandbox(
        sandbox_id=sandbox.sandbox_id,
        sandbox_domain=None,
        envd_version=sandbox._envd_version,
        envd_access_token="wrong",
        connection_config=type(sandbox.connection_config)(
            extra_sandbox_headers={
                "X-Access-Token": "wrong",
                "E2b-Sandbox-Id": sandbox.sandbox_id,
                "E2b-Sandbox-Port": str(ENVD),
            }
        ),
    )
    with pytest.raises(AuthenticationException):
        stranger.commands.run("true")
    with pytest.raises(AuthenticationException):
        stranger.files.read("/etc/hostname")
