"""`atoll up` itself: how it refuses to start, how it stops, and what a crash leaves.

These tests end the stack of this run and start it again, so they come last.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from e2b import Sandbox

from stress.conftest import instance_of
from support import paths
from support.host import left_behind
from support.stack import PORTS, Stack
from support.wait import wait_for


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty data directory that anybody may read."""
    with tempfile.TemporaryDirectory(prefix="atoll-up-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def refused(*arguments: str, uid: int = 0) -> str:
    """Runs `atoll up` with arguments it must refuse; returns what it says."""
    done = subprocess.run(
        [str(paths.ATOLL), "up", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        user=uid,
        group=uid,
        extra_groups=[] if uid else None,
    )
    assert done.returncode not in {0, 101}, done.stdout + done.stderr
    assert "panicked" not in done.stderr
    return done.stderr


def one_line(message: str, code: str) -> str:
    """Asserts that this is one line with that code, and returns it."""
    lines = [line for line in message.splitlines() if line.strip()]
    assert len(lines) == 1, message
    assert code in lines[0]
    return lines[0]


OTHER_PORTS = [
    argument for name, port in PORTS.items() for argument in (f"--{name}-port", str(port + 100))
]


def test_a_second_one_on_the_same_data(stack: Stack) -> None:
    said = refused("--data-dir", str(stack.data_dir), *OTHER_PORTS)
    one_line(said, "ATL-1002")
    with Sandbox.create(timeout=30) as sandbox:
        assert sandbox.is_running()


def test_a_pool_that_is_none(directory: Path) -> None:
    (directory / "pool.img").write_bytes(b"no file system " * 1_000_000)
    one_line(refused("--data-dir", str(directory), *OTHER_PORTS), "ATL-5001")


@pytest.mark.parametrize("which", PORTS)
def test_a_port_that_is_taken(directory: Path, which: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = list(OTHER_PORTS)
        arguments[arguments.index(f"--{which}-port") + 1] = str(port)
        said = refused("--data-dir", str(directory), *arguments)
    assert str(port) in one_line(said, "ATL-1001")


def test_not_root(directory: Path) -> None:
    # The checkout may lie where only root looks.
    program = directory / "atoll"
    shutil.copy(paths.ATOLL, program)
    program.chmod(0o755)
    done = subprocess.run(
        [str(program), "up", "--data-dir", str(directory / "data"), *OTHER_PORTS],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        user=65534,
        group=65534,
        extra_groups=[],
    )
    assert done.returncode != 0
    assert "root" in one_line(done.stderr, "ATL-1003")


def test_a_data_directory_that_is_a_file(directory: Path) -> None:
    (directory / "file").write_text("")
    one_line(refused("--data-dir", str(directory / "file"), *OTHER_PORTS), "ATL-1006")


def test_a_data_directory_that_others_can_write(directory: Path) -> None:
    directory.chmod(0o777)
    one_line(refused("--data-dir", str(directory), *OTHER_PORTS), "ATL-1006")


def test_every_code_is_explained() -> None:
    for page in sorted((paths.ROOT / "docs" / "errors").glob("ATL-*.md")):
        done = subprocess.run(
            [str(paths.ATOLL), "explain", page.stem], capture_output=True, text=True, check=True
        )
        assert page.stem in done.stdout
    assert subprocess.run([str(paths.ATOLL), "explain", "ATL-0000"], check=False).returncode != 0


def test_the_doctor_finds_this_host_well(stack: Stack) -> None:
    done = subprocess.run(
        [str(paths.ATOLL), "doctor"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_sigterm_leaves_nothing(stack: Stack) -> None:
    sandboxes = [Sandbox.create(timeout=300) for _ in range(3)]
    for sandbox in sandboxes:
        sandbox.commands.run("sleep 600", background=True, timeout=0)
    instance = instance_of(stack)
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    stack.start()
    assert not any(sandbox.is_running() for sandbox in sandboxes)
    with Sandbox.create(timeout=30) as sandbox:
        assert sandbox.commands.run("echo again").stdout == "again\n"


def test_a_crash_is_cleaned_up_after(stack: Stack) -> None:
    sandboxes = [Sandbox.create(timeout=300) for _ in range(3)]
    for sandbox in sandboxes:
        sandbox.commands.run("sleep 600", background=True, timeout=0)
    instance = instance_of(stack)
    stack.kill()
    assert left_behind(instance, stack.data_dir), "a crash that leaves nothing tests nothing"
    stack.start()
    assert instance_of(stack) == instance
    with Sandbox.create(timeout=30) as sandbox:
        assert sandbox.commands.run("echo again").stdout == "again\n"
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    stack.start()


def test_a_crash_while_sandboxes_are_being_made(stack: Stack) -> None:
    body = '{"templateID": "base", "timeout": 300}'
    clients = [
        subprocess.Popen(
            [
                *("curl", "-s", "-o", "/dev/null", "-X", "POST", "-d", body),
                *("-H", f"X-API-Key: {os.environ['E2B_API_KEY']}"),
                *("-H", "Content-Type: application/json"),
                f"{os.environ['E2B_API_URL']}/v2/sandboxes",
            ]
        )
        for _ in range(10)
    ]
    clients[0].wait(60)
    instance = instance_of(stack)
    stack.kill()
    for client in clients:
        client.wait(60)
    stack.start()
    with Sandbox.create(timeout=30) as sandbox:
        assert sandbox.commands.run("echo again").stdout == "again\n"
    stack.stop()
    assert left_behind(instance, stack.data_dir) == {}
    stack.start()


@contextmanager
def bringing(stack: Stack, log_name: str) -> Iterator[str]:
    """Starts the stack of this run with a template, and afterwards as it was; what it said."""
    stack.stop()
    given = Stack(log_name=log_name, options=("--with", "httpbin"))
    given.log.unlink(missing_ok=True)
    try:
        given.start()
        # It answers a moment before it says so.
        wait_for("its word", lambda: "Atoll is ready" in given.log.read_text(), seconds=60)
        yield given.log.read_text()
        given.stop()
    finally:
        given.kill()
        stack.start()


@pytest.fixture
def no_template(stack: Stack, api: httpx.Client) -> Iterator[None]:
    """Neither before nor after the test there is a template `httpbin`."""
    assert api.delete("/templates/httpbin").status_code in {204, 404}
    yield
    assert api.delete("/templates/httpbin").status_code in {204, 404}


def test_a_template_that_it_is_started_with(stack: Stack, no_template: None) -> None:
    # The next start has nothing to do.
    for times in ("first", "second"):
        with bringing(stack, f"stack-with-{times}") as said:
            ready = said.index("Atoll is ready")
            assert said[:ready].count("Building the template httpbin (once)") == (times == "first")
            with Sandbox.create("httpbin", timeout=30) as sandbox:
                sandbox.commands.run("curl -fsS localhost:8080/uuid")


def test_a_template_that_cannot_be_built_is_in_nobodys_way(stack: Stack, no_template: None) -> None:
    # No template can have the name of a snapshot.
    with Sandbox.create(timeout=60) as sandbox:
        sandbox.create_snapshot("httpbin")
    with bringing(stack, "stack-with-failing") as said:
        (warning,) = [line for line in said.splitlines() if "httpbin was not built" in line]
        assert warning.endswith(" `atoll template add httpbin` tries again and shows all.")
        assert re.match("atoll: ATL-[0-9]{4}: ", warning), warning
        assert said.index(warning) < said.index("Atoll is ready")
        with Sandbox.create(timeout=30) as sandbox:
            assert sandbox.is_running()


@pytest.mark.skipif("ATOLL_CRIU" not in os.environ, reason="memory is not kept here")
def test_a_template_without_memory_is_built_again_once_it_can_have_it(
    stack: Stack, no_template: None, api: httpx.Client
) -> None:
    def has_memory() -> list[bool]:
        """Of the template's builds, newest first, whether sandboxes go on from its memory."""
        template = api.get("/templates/httpbin").json()
        path = f"/templates/{template['templateID']}/builds"
        builds = [build["buildID"] for build in template["builds"]]
        logs = [api.get(f"{path}/{build}/status").json()["logEntries"] for build in builds]
        return [any("go on from the memory" in line["message"] for line in log) for log in logs]

    with pytest.MonkeyPatch.context() as without:
        without.delenv("ATOLL_CRIU")
        with bringing(stack, "stack-with-cold") as said:
            assert "memory can be kept now" not in said
            assert has_memory() == [False]
    # The start after that has nothing to do.
    for times in ("first", "second"):
        with bringing(stack, f"stack-with-warm-{times}") as said:
            assert said.count("again: memory can be kept now") == (times == "first")
            assert has_memory() == [True, False]
            with Sandbox.create("httpbin", timeout=30) as sandbox:
                sandbox.commands.run("curl -fsS localhost:8080/uuid")
