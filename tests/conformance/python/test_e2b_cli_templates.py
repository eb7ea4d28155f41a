"""The official command line, `@e2b/cli`: from a Dockerfile to a shell in a sandbox of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox

from support import e2b_cli, routing
from support.e2b_cli import Terminal, plain
from support.registry import Registry
from support.sdk import newest
from support.stack import Stack
from support.templates import Builds
from support.wait import wait_for

pytestmark = newest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Create = Callable[..., Sandbox]


@pytest.fixture
def command(stack: Stack, tmp_path: Path) -> dict[str, Any]:
    """What to run the CLI with."""
    return e2b_cli.command(tmp_path)


@pytest.fixture
def e2b(command: dict[str, Any], tmp_path: Path) -> Run:
    """Runs `e2b ...` with no input, in a directory of the test's."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command["args"], *arguments],
            env=command["env"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            cwd=tmp_path,
            **options,
        )

    return run


@pytest.fixture
def project(tmp_path: Path, registry: Registry) -> Path:
    """A directory with a Dockerfile that says a bit of everything."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/page.html").write_text("served by a template\n")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {registry.push('busybox-musl')}\n"
        "ENV GREETING=hello\n"
        'RUN echo "$GREETING from $(id -un)" > /said\n'
        "WORKDIR /srv\n"
        "COPY app /srv/www\n"
        "RUN adduser -D -h /home/worker worker 2>/dev/null || true\n"
        "USER worker\n"
        "CMD httpd -f -p 8000 -h /srv/www\n"
    )
    return tmp_path


@pytest.fixture
def made(e2b: Run, project: Path, build: Builds) -> str:
    """The name of a template that the command line has made of the project."""
    name = build.name()
    ready = "wget -q -O /dev/null http://127.0.0.1:8000/page.html"
    created = e2b(
        *("template", "create", name, "--cpu-count", "1", "--memory-mb", "512"),
        *("--ready-cmd", ready),
    )
    said = plain(created.stdout + created.stderr)
    assert created.returncode == 0, said
    assert "RUN echo" in said
    assert name in said
    return name


@pytest.fixture
def terminal(command: dict[str, Any]) -> Iterator[Callable[..., Terminal]]:
    """Runs `e2b ...` in a terminal."""
    opened: list[Terminal] = []

    def run(*arguments: str) -> Terminal:
        opened.append(Terminal([*command["args"], *arguments], command["env"]))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def test_from_a_dockerfile_to_a_shell(
    e2b: Run, made: str, terminal: Callable[..., Terminal], create: Create
) -> None:
    shell = terminal("sandbox", "create", made)
    found = shell.expect(r"\b(i[a-z0-9]{19,})\b")
    shell.expect(r"[$#] ")
    shell.type("echo $((6 * 7))-ans; id -un; pwd; cat /said; cat /srv/www/page.html\n")
    shell.expect(r"42-ans\s+worker\s+/srv\s+hello from root\s+served by a template")
    with routing.client(found[1], 8000) as client:
        assert client.get("/page.html").text == "served by a template\n"
    listed = json.loads(e2b("sandbox", "list", "--format", "json").stdout)
    assert found[1] in {item["sandboxId"] for item in listed}
    shell.type("exit\n")
    assert shell.wait() == 0
    # It ends its sandbox when it leaves.
    wait_for("the sandbox to end", lambda: not _runs(found[1]), seconds=30)


def _runs(sandbox_id: str) -> bool:
    with routing.client(sandbox_id, 8000) as client:
        return client.get("/page.html").status_code == 200


def test_a_sandbox_of_it_is_killed(e2b: Run, made: str) -> None:
    created = e2b("sandbox", "create", made, "--detach", "--timeout", "120")
    assert created.returncode == 0, created.stderr
    found = re.search(r"\bi[a-z0-9]{19,}\b", plain(created.stdout))
    assert found, created.stdout
    ran = e2b("sandbox", "exec", found[0], "--", "id -un")
    assert (ran.stdout, ran.returncode) == ("worker\n", 0), ran.stderr
    assert e2b("sandbox", "kill", found[0]).returncode == 0
    assert not _runs(found[0])


def test_list_publish_and_delete(e2b: Run, api: httpx.Client, made: str) -> None:
    def mine() -> dict[str, Any]:
        listed = e2b("template", "list", "--format", "json")
        assert listed.returncode == 0, listed.stderr
        (found,) = [item for item in json.loads(listed.stdout) if made in item["aliases"]]
        return found

    template = mine()
    assert (template["cpuCount"], template["memoryMB"], template["public"]) == (1, 512, False)
    table = plain(e2b("template", "list").stdout)
    assert made in table
    assert template["templateID"] in table
    published = e2b("template", "publish", template["templateID"], "--yes")
    assert published.returncode == 0, published.stderr
    assert mine()["public"] is True
    assert api.get(f"/templates/aliases/{made}").json()["public"] is True
    unpublished = e2b("template", "unpublish", template["templateID"], "--yes")
    assert unpublished.returncode == 0, unpublished.stderr
    assert mine()["public"] is False
    deleted = e2b("template", "delete", template["templateID"], "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert made not in e2b("template", "list", "--format", "json").stdout
    again = e2b("template", "delete", template["templateID"], "--yes")
    assert template["templateID"] in plain(again.stdout + again.stderr)


def test_a_rebuild_uses_what_is_there(e2b: Run, made: str) -> None:
    ready = "wget -q -O /dev/null http://127.0.0.1:8000/page.html"
    again = e2b("template", "create", made, "--ready-cmd", ready)
    assert again.returncode == 0, again.stderr
    assert "CACHED" in again.stdout


def test_a_build_that_fails(e2b: Run, project: Path, build: Builds) -> None:
    dockerfile = project / "Dockerfile"
    text = dockerfile.read_text().replace("WORKDIR", "RUN echo oh-dear >&2; exit 3\nWORKDIR")
    dockerfile.write_text(text)
    failed = e2b("template", "create", build.name())
    assert failed.returncode != 0
    said = plain(failed.stdout + failed.stderr)
    assert "oh-dear" in said
    assert "exit 3" in said
