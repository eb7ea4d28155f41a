"""A domain of the world's with a certificate of the operator's.

The stack of this run is started again under that name, and afterwards under its own.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stress.test_up import OTHER_PORTS, one_line, refused
from support import names
from support.stack import PORTS, Stack
from support.wait import wait_for

DOMAIN = "atoll.test"


#: A new key of the kind that most certificates have today.
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)


def issue(directory: Path) -> None:
    """A certificate for the domain, `cert.pem` and `key.pem`, by the authority `ca.pem`."""
    if not (directory / "ca.pem").exists():
        named = ("-subj", "/CN=a company's authority", "-days", "30")
        openssl(directory, "req", "-x509", *NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", *named)
    (directory / "names").write_text(f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}")
    openssl(directory, "req", *NEW_KEY, "-keyout", "new.key", "-out", "new.csr", "-subj", "/CN=x")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30")
    of = ("-in", "new.csr", "-extfile", "names", "-out", "new.pem")
    openssl(directory, "x509", "-req", *by, *of)
    (directory / "new.key").rename(directory / "key.pem")
    (directory / "new.pem").rename(directory / "cert.pem")


def options(directory: Path, domain: str = DOMAIN) -> list[str]:
    certificate = ("--tls-cert", str(directory / "cert.pem"))
    return ["--domain", domain, *certificate, "--tls-key", str(directory / "key.pem")]


#: What a user does who knows the domain, and whom to trust. A process of its own: whom to trust is
#: read once in the life of one.
CLIENT = """
import httpx
from e2b import Sandbox

with Sandbox.create(timeout=60) as sandbox:
    print(sandbox.commands.run("echo hi").stdout)
    sandbox.files.write("a.txt", "linked")
    print(httpx.get(sandbox.download_url("a.txt")).text)
    print(sandbox.get_host(80).partition(".")[2])
"""


@pytest.fixture
def renamed(stack: Stack, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The deployment under another name: the directory of its certificate, and its settings."""
    issue(tmp_path)
    stack.stop()
    other = Stack(log_name="stack-domain", options=options(tmp_path))
    try:
        other.start()
        yield tmp_path, other.env
        other.stop()
    finally:
        other.kill()
        stack.start()


@pytest.mark.skipif(not names.resolve(), reason="names do not resolve here")
def test_a_domain_with_a_certificate_of_its_own(renamed: tuple[Path, dict[str, str]]) -> None:
    directory, settings = renamed
    assert settings["E2B_DOMAIN"] == f"{DOMAIN}:{PORTS['front']}"
    assert "SSL_CERT_FILE" not in settings, "a certificate of the world's needs no trust from us"
    environment = {**os.environ, **settings, "SSL_CERT_FILE": str(directory / "ca.pem")}
    for override in ["E2B_API_URL", "E2B_SANDBOX_URL"]:
        del environment[override]
    said = subprocess.run(
        [sys.executable, "-c", CLIENT], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert said.split() == ["hi", "linked", settings["E2B_DOMAIN"]]

    # A renewed certificate is taken up, here one that another authority has issued.
    url = f"https://api.{settings['E2B_DOMAIN']}/health"
    assert trusted(url, directory)
    (directory / "ca.pem").unlink()
    issue(directory)
    wait_for("the new certificate", lambda: trusted(url, directory), 60)


def trusted(url: str, directory: Path) -> bool:
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    try:
        return httpx.get(url, verify=context, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    issue(tmp_path)
    start = ("--data-dir", str(tmp_path / "data"), *OTHER_PORTS, *options(tmp_path))
    (tmp_path / "key.pem").rename(tmp_path / "kept.pem")
    assert "cannot be read" in one_line(refused(*start), "ATL-1010")
    openssl(tmp_path, "genrsa", "-out", "key.pem")
    assert "is not the key of" in one_line(refused(*start), "ATL-1010")
    assert "--domain" in refused("--tls-cert", "x", "--tls-key", "y")
