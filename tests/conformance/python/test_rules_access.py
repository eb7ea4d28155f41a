"""Tokens, links and names, for whoever has one sandbox and wants another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest
from e2b import Sandbox
from e2b.sandbox.signature import get_signature

from support import patient, routing

Create = Callable[..., Sandbox]
ENVD = 49983


# Rules: AUTH-7, GATE-1, SDK-3
def test_every_answer_has_the_same_token(api: httpx.Client, create: Create) -> None:
    """Also those of the older routes, which older releases call."""
    sandbox = create()
    path = f"/sandboxes/{sandbox.sandbox_id}"
    answers = [
        api.get(path),
        api.post(f"{path}/connect", json={"timeout": 300}),
        api.post(f"/v2{path}/connect", json={}),
    ]
    tokens = {answer.json()["envdAccessToken"] for answer in answers}
    assert tokens == {sandbox._envd_access_token}
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)
    assert len({answer.json()["envdVersion"] for answer in answers}) == 1
    (listed,) = [
        item for item in api.get("/v2/sandboxes").json() if item["sandboxID"] == sandbox.sandbox_id
    ]
    assert listed["envdVersion"] == answers[0].json()["envdVersion"]


# Rules: AUTH-8, SIGN-5, SIGN-14
def test_one_sandboxs_token_and_links_open_no_other(shared: Sandbox, create: Create) -> None:
    other = create()
    tokens = [sandbox._envd_access_token for sandbox in (shared, other)]
    assert len(set(tokens)) == 2
    link = urlsplit(shared.download_url("/etc/hostname"))
    for sandbox, status in [(shared, 200), (other, 401)]:
        with routing.client(sandbox.sandbox_id, ENVD) as client:
            answer = client.get("/envs", headers={"X-Access-Token": str(tokens[0])})
            assert answer.status_code == status
            assert client.get(f"/files?{link.query}").status_code == status


# Rules: SIGN-15
def test_a_link_is_made_for_the_sandboxs_own_name(
    shared: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = os.environ["E2B_SANDBOX_URL"]
    monkeypatch.delenv("E2B_SANDBOX_URL")
    link = urlsplit(Sandbox.connect(shared.sandbox_id).download_url("/etc/hostname"))
    assert link.netloc.startswith(f"{ENVD}-{shared.sandbox_id}.")
    answer = patient.get(f"{proxy}{link.path}?{link.query}", headers={"Host": link.netloc})
    assert answer.status_code == 200


# Rules: SIGN-12, SIGN-13
@pytest.mark.parametrize(
    "name", ["plain.txt", "sp ace.txt", "a+b.txt", "100%2F.txt", "ünï&=?#.txt", "dir/in it.txt"]
)
@pytest.mark.parametrize("expiration", [None, 600])
def test_links_work_for_any_name(shared: Sandbox, name: str, expiration: int | None) -> None:
    def path(url: str) -> str:
        parts = urlsplit(url)
        return f"{parts.path}?{parts.query}"

    options = {"user": "user", "use_signature_expiration": expiration}
    with routing.client(shared.sandbox_id, ENVD) as client:
        upload = client.post(
            path(shared.upload_url(f"links/{name}", **options)),
            files={"file": ("ignored", name.encode())},
        )
        assert upload.status_code == 200, upload.text
        assert shared.files.read(f"links/{name}") == name
        download = client.get(path(shared.download_url(f"links/{name}", **options)))
        assert (download.status_code, download.text) == (200, name)
        # A link to read is none to write.
        wrong = path(shared.download_url(f"links/{name}", **options))
        assert client.post(wrong, files={"file": ("x", b"x")}).status_code == 401


# Rules: SIGN-9, SIGN-10, SIGN-11
def test_an_upload_link_may_leave_the_path_to_the_form(shared: Sandbox) -> None:
    signature = get_signature("", "write", None, str(shared._envd_access_token))["signature"]
    with routing.client(shared.sandbox_id, ENVD) as client:
        answer = client.post(
            "/files",
            params={"signature": signature},
            files={"file": ("/home/user/by-form", b"content")},
        )
    assert answer.json() == [{"path": "/home/user/by-form", "name": "by-form", "type": "file"}]
    assert shared.files.read("by-form") == "content"


# Rules: PROXY-16, SDK-2
def test_the_name_of_a_port(api: httpx.Client, shared: Sandbox) -> None:
    domain = api.get(f"/sandboxes/{shared.sandbox_id}").json().get("domain") or routing.DOMAIN
    host = shared.get_host(3000)
    assert host == f"3000-{shared.sandbox_id}.{domain}"
    answer = patient.get(os.environ["E2B_SANDBOX_URL"], headers={"Host": host})
    assert answer.json()["port"] == 3000


# Rules: USER-1, USER-3, TRAP-40
def test_a_user_of_the_caller(shared: Sandbox) -> None:
    headers = {"X-Access-Token": str(shared._envd_access_token)}
    with routing.client(shared.sandbox_id, ENVD) as client:
        for name, status in [("user", 200), ("root", 200), ("1000", 401), ("nobody-here", 401)]:
            answer = client.get("/envs", headers=headers, auth=(name, "ignored"))
            assert answer.status_code == status
            if status == 401:
                message = f"invalid username: '{name}'"
                assert answer.json() == {"code": "unauthenticated", "message": message}


# Rules: BOOT-1, AUTH-1, PROXY-10
def test_envd_is_on_its_port(shared: Sandbox) -> None:
    with routing.client(shared.sandbox_id, ENVD) as client:
        answer = client.get("/health")
    assert (answer.status_code, answer.content, answer.http_version) == (204, b"", "HTTP/1.1")
    script = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:49983/health"
    assert shared.commands.run(script).stdout == "204"
