"""`atoll template`: from a Dockerfile, or an image in a file, to a sandbox; and what is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from support import images, paths
from support.e2b_cli import Terminal, plain
from support.registry import Registry
from support.sdk import newest
from support.templates import Builds
from support.wait import wait_for

pytestmark = newest

Create = Callable[..., Sandbox]


def atoll(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `atoll template` with no input, unless told otherwise."""
    options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
    command = [str(paths.ATOLL), "template", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, **options)


def succeeds(*arguments: str, **options: Any) -> str:
    ran = atoll(*arguments, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def build_id(text: str) -> str:
    """The one that a build says first."""
    found = re.search(r"Build ([0-9a-f-]{36}) of", text)
    assert found, text
    return found[1]


@pytest.fixture
def project(tmp_path: Path, registry: Registry) -> Path:
    """A directory with a Dockerfile."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/file").write_text("copied\n")
    (tmp_path / "app/left.log").write_text("left out\n")
    (tmp_path / ".dockerignore").write_text("**/*.log\n")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {registry.push('busybox-musl')}\n"
        "ARG WHO=nobody\n"
        'ENV GREETING="hello $WHO"\n'
        'RUN echo "$GREETING" > /said\n'
        "WORKDIR /srv/app\n"
        "COPY app ./\n"
        "USER worker\n"
    )
    return tmp_path


def test_build_and_use(project: Path, build: Builds, create: Create) -> None:
    name = build.name()
    said = succeeds("build", str(project), "--name", name, "--build-arg", "WHO=you")
    assert "RUN echo" in said
    sandbox = create(template=name)
    assert sandbox.commands.run("id -un; pwd; cat /said; ls -A").stdout == (
        "worker\n/srv/app\nhello you\nfile\n"
    )
    again = succeeds("build", str(project), "--name", name, "--build-arg", "WHO=you")
    assert len(re.findall("CACHED", again)) >= 4
    other = succeeds("build", str(project), "--name", name, "--build-arg", "WHO=me")
    assert build_id(other) != build_id(again)
    assert create(template=name).files.read("/said") == "hello me\n"


def test_list_logs_and_delete(project: Path, build: Builds) -> None:
    name = build.name()
    made = build_id(succeeds("build", str(project), "--name", name))
    assert name in succeeds("list")
    (mine,) = [item for item in json.loads(succeeds("list", "--json")) if name in item["aliases"]]
    assert (mine["buildID"], mine["buildStatus"]) == (made, "ready")
    for reference in (made, name):
        assert "RUN echo" in succeeds("logs", reference)
    lines = [json.loads(line) for line in succeeds("logs", made, "--json").splitlines()]
    assert any("RUN echo" in line["message"] for line in lines)
    assert succeeds("delete", name).strip() == name
    assert name not in succeeds("list")
    again = atoll("delete", name)
    assert again.returncode == 1
    assert name in again.stderr


def test_a_build_that_fails_and_a_look_at_why(project: Path, build: Builds) -> None:
    dockerfile = project / "Dockerfile"
    text = dockerfile.read_text().replace("WORKDIR", "RUN echo oh-dear >&2; exit 3\nWORKDIR")
    dockerfile.write_text(text)
    failed = atoll("build", str(project), "--name", build.name())
    assert failed.returncode == 1
    said = plain(failed.stdout + failed.stderr)
    assert "oh-dear" in said
    assert "exit code 3" in said
    made = build_id(said)
    assert made in said.split("exit code 3")[1], "it does not say how to look"
    looked = atoll("shell", made, input="cat /said; id -un; exit 5\n")
    assert "hello nobody" in looked.stdout
    assert looked.returncode == 5


def test_a_shell_in_a_terminal(project: Path, build: Builds) -> None:
    made = build_id(succeeds("build", str(project), "--name", build.name()))
    terminal = Terminal([str(paths.ATOLL), "template", "shell", made], dict(os.environ))
    try:
        terminal.expect(r"[$#] ")
        terminal.type("echo $((6 * 7))-ans; exit\n")
        terminal.expect("42-ans")
        assert terminal.wait() == 0
    finally:
        terminal.close()


def test_interrupting_a_build_cancels_it(project: Path, build: Builds) -> None:
    dockerfile = project / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + "RUN echo it-runs; sleep 3600\n")
    command = [str(paths.ATOLL), "template", "build", str(project), "--name", build.name()]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        said = ""
        for line in running.stdout:
            said += line
            if "it-runs" in line and "stdout" in line:
                break
        running.send_signal(signal.SIGINT)
        running.stdout.read()
        assert running.wait(30) != 0
    made = build_id(said)
    wait_for("the log to say so", lambda: "cancel" in succeeds("logs", made), seconds=30)


def test_an_image_in_a_file(tmp_path: Path, build: Builds, create: Create) -> None:
    layout = images.made("busybox-musl")
    for kind in ("oci-archive", "docker-archive"):
        archive = tmp_path / f"{kind}.tar"
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{layout}:latest"]
        subprocess.run([*copy, f"{kind}:{archive}:atoll/test:1"], check=True, capture_output=True)
        name = build.name()
        succeeds("import", str(archive), "--name", name)
        release = create(template=name).files.read("/etc/os-release")
        assert "busybox-musl" in release


def test_prune(project: Path, build: Builds) -> None:
    name = build.name()
    dockerfile = project / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text() + f"RUN echo {name} > /tmp/mine\n")
    succeeds("build", str(project), "--name", name)
    assert f"echo {name}" not in succeeds("prune")
    succeeds("delete", name)
    assert f"echo {name}" in succeeds("prune")
    assert f"echo {name}" not in succeeds("prune")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "/no/such/directory", "--name", "x"], "/no/such/directory"),
        (["logs", "no-such-template"], "no-such-template"),
        (["shell", "00000000-0000-4000-8000-000000000000"], "00000000"),
        (["delete", "no-such-template"], "no-such-template"),
        (["import", "/no/such/file", "--name", "x"], "/no/such/file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_not_there(stack: object, arguments: list[str], said: str) -> None:
    ran = atoll(*arguments)
    assert ran.returncode not in {0, 101}
    assert said in ran.stderr
