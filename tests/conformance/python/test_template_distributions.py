"""Bases other than Debian's: each becomes a template that works, or a sentence says what it lacks.

The images are made here of Debian's packages (`support.images`): `busybox-musl` stands in for
Alpine and `rpm-like` for Fedora.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import (
    CommandExitException,
    NotFoundException,
    PtySize,
    Sandbox,
    Template,
    wait_for_file,
)

from support import lifecycle
from support.registry import Registry
from support.sdk import newest
from support.templates import Builds
from support.wait import wait_for

pytestmark = newest

Create = Callable[..., Sandbox]

#: What is said of each in its os-release.
IMAGES = {
    "debian": "ID=debian",
    "busybox-musl": "ID=alpine",
    "rpm-like": "ID=fedora",
}


@pytest.fixture(scope="module", params=list(IMAGES))
def built(
    request: pytest.FixtureRequest, api: httpx.Client, registry: Registry
) -> Iterator[tuple[str, str]]:
    """The image, and the name of a template with two steps and a start command on it."""
    builds = Builds(api)
    template = (
        Template()
        .from_image(registry.push(request.param))
        .run_cmd("id -un > /home/user/built-by")
        .run_cmd("echo root > /by-root && chmod 600 /by-root", user="root")
        .set_start_cmd("touch /tmp/started && exec sleep 100000", wait_for_file("/tmp/started"))
    )
    yield request.param, builds(template).name
    builds.clean()


@pytest.fixture(scope="module")
def image(built: tuple[str, str]) -> str:
    return built[0]


@pytest.fixture(scope="module")
def sandbox(built: tuple[str, str]) -> Iterator[Sandbox]:
    """One for the whole file: these tests do not disturb each other."""
    sandbox = Sandbox.create(template=built[1], timeout=3600)
    yield sandbox
    sandbox.kill()


def test_it_is_what_the_image_was(image: str, sandbox: Sandbox) -> None:
    assert IMAGES[image] in sandbox.files.read("/etc/os-release").splitlines()


# Rules: IMAGE-1
def test_the_user(sandbox: Sandbox) -> None:
    assert (
        sandbox.commands.run("id -un; pwd; echo $HOME").stdout == "user\n/home/user\n/home/user\n"
    )
    assert sandbox.commands.run("id -un", user="root").stdout == "root\n"
    assert sandbox.files.read("/home/user/built-by") == "user\n"
    assert sandbox.commands.run("cat /by-root", user="root").stdout == "root\n"
    with pytest.raises(CommandExitException):
        sandbox.commands.run("cat /by-root")


def test_sudo_where_there_is_one(sandbox: Sandbox) -> None:
    asked = sandbox.commands.run("if command -v sudo; then sudo -n id -un; else echo none; fi")
    assert asked.stdout.split()[-1] in {"root", "none"}


def test_commands(sandbox: Sandbox) -> None:
    run = sandbox.commands.run
    result = run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as failed:
        run("echo so; exit 7")
    assert (failed.value.exit_code, failed.value.stdout) == (7, "so\n")
    assert run("echo $A $B", envs={"A": "1", "B": "two words"}).stdout == "1 two words\n"
    assert run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert run("seq 3 | while read n; do echo $((n * n)); done").stdout == "1\n4\n9\n"
    with pytest.raises(CommandExitException) as missing:
        run("no-such-program")
    assert missing.value.exit_code == 127


def test_commands_in_the_background(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True, timeout=60)
    sandbox.commands.send_stdin(handle.pid, "typed\n")
    stdout = ""
    for out, _, _ in handle:
        stdout += out or ""
        if "typed" in stdout:
            break
    assert handle.pid in {process.pid for process in sandbox.commands.list()}
    assert sandbox.commands.kill(handle.pid) is True
    wait_for("its end", lambda: handle.pid not in {p.pid for p in sandbox.commands.list()})


def test_files(sandbox: Sandbox) -> None:
    files = sandbox.files
    path = "/home/user/files/deep/note.txt"
    files.write(path, "written ünï\n")
    assert files.read(path) == "written ünï\n"
    assert files.read(path, format="bytes") == "written ünï\n".encode()
    assert [entry.name for entry in files.list("/home/user/files")] == ["deep"]
    assert sandbox.commands.run(f"cat {path}; stat -c %U {path}").stdout == "written ünï\nuser\n"
    assert files.exists(path) and not files.exists("/home/user/none")
    files.rename(path, "/home/user/files/moved")
    assert files.make_dir("/home/user/files/made")
    assert {entry.name for entry in files.list("/home/user/files")} == {"deep", "made", "moved"}
    files.remove("/home/user/files")
    with pytest.raises(NotFoundException):
        files.read("/home/user/files/moved")
    with pytest.raises(NotFoundException):
        files.list("/home/user/files")


def test_files_are_watched(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("/home/user/watched")
    handle = sandbox.files.watch_dir("/home/user/watched")
    sandbox.files.write("/home/user/watched/new", "x")
    names: set[str] = set()

    def seen() -> bool:
        names.update(event.name for event in handle.get_new_events())
        return "new" in names

    wait_for("the event", seen)
    handle.stop()


def test_a_terminal(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=30)
    sandbox.pty.send_stdin(terminal.pid, b"echo $((6 * 7))-ans; exit\n")
    shown = b"".join(data for _, _, data in terminal if data)
    assert b"42-ans" in shown


def test_the_start_command_runs(sandbox: Sandbox) -> None:
    assert sandbox.files.exists("/tmp/started")


# Rules: META-1
def test_it_knows_what_it_is(sandbox: Sandbox) -> None:
    said = sandbox.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID; cat /run/e2b/.E2B_SANDBOX")
    assert said.stdout.split() == ["true", sandbox.sandbox_id, "true"]


def test_certificates(sandbox: Sandbox) -> None:
    """Wherever this family looks for them."""
    places = "/etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem"
    found = sandbox.commands.run(f"cat {places} 2>/dev/null | grep -c 'BEGIN CERT' || true")
    assert int(found.stdout) > 50


def test_names_resolve(sandbox: Sandbox) -> None:
    assert "sandbox" in sandbox.commands.run("hostname; cat /etc/hosts").stdout
    assert "nameserver" in sandbox.files.read("/etc/resolv.conf")


def test_it_outlives_a_pause(built: tuple[str, str], create_pausing: Create) -> None:
    sandbox = create_pausing(template=built[1], timeout=120)
    sandbox.files.write("/home/user/kept", "kept")
    lifecycle.pause(sandbox)
    sandbox.connect()
    assert sandbox.files.read("/home/user/kept") == "kept"


def test_an_image_without_a_shell_is_refused(build: Builds, registry: Registry) -> None:
    failed = build.fails(Template().from_image(registry.push("scratch-like")))
    assert failed.step == "base"
    assert "/bin/sh" in failed.message
    # It is said what to do, too.
    assert len(failed.message.split()) > 6
