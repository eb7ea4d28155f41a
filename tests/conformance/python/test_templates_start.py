"""Start commands: services run when a create is answered, or the build says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2b import (
    Sandbox,
    Template,
    wait_for_file,
    wait_for_port,
    wait_for_process,
    wait_for_timeout,
    wait_for_url,
)

from support import lifecycle, routing
from support.templates import Builds
from support.wait import wait_for

Create = Callable[..., Sandbox]

SERVE = "mkdir -p www && echo served > www/it && cd www && exec python3 -m http.server 8000"


def base() -> Any:
    return Template().from_base_image()


def served(sandbox: Sandbox) -> tuple[int, str]:
    """What its server answers to one request, without another try."""
    with routing.client(sandbox.sandbox_id, 8000) as client:
        answer = client.get("/it")
    return answer.status_code, answer.text


# Rules: IMAGE-14, TRAP-23, IMAGE-11
@pytest.mark.parametrize(
    "ready",
    [
        wait_for_port(8000),
        wait_for_url("http://localhost:8000/it"),
        "curl -sf http://127.0.0.1:8000/it",
    ],
    ids=["port", "url", "command"],
)
def test_the_first_request_is_answered(build: Builds, create: Create, ready: Any) -> None:
    built = build(base().set_start_cmd(SERVE, ready))
    for _ in range(2):
        assert served(create(template=built.name)) == (200, "served\n")


# Rules: IMAGE-14
@pytest.mark.parametrize(
    ("command", "ready"),
    [
        ("sleep 1; touch /tmp/ready; exec sleep 1000", wait_for_file("/tmp/ready")),
        ("sleep 1; exec sleep 1001", wait_for_process("sleep")),
        ("touch /tmp/ready; exec sleep 1002", wait_for_timeout(1500)),
    ],
    ids=["file", "process", "timeout"],
)
def test_other_ways_to_be_ready(build: Builds, create: Create, command: str, ready: Any) -> None:
    sandbox = create(template=build(base().set_start_cmd(command, ready)).name)
    running = sandbox.commands.run("pgrep -f 'sleep 100[012]' | head -1").stdout
    assert running.strip()


# Rules: IMAGE-13
def test_it_runs_as_the_template_says(build: Builds, create: Create) -> None:
    command = 'echo "$(id -un) $PWD $GREETING" > /tmp/said; exec sleep 1000'
    built = build(
        base()
        .set_envs({"GREETING": "hello"})
        .set_user("worker")
        .set_workdir("/srv/work")
        .set_start_cmd(command, wait_for_file("/tmp/said"))
    )
    sandbox = create(template=built.name)
    assert sandbox.files.read("/tmp/said") == "worker /srv/work hello\n"
    owner = sandbox.commands.run("ps -o user= -C sleep | head -1").stdout
    assert owner.strip() == "worker"


def test_what_it_says_is_in_the_log(build: Builds) -> None:
    command = "echo it-starts; echo it-complains >&2; touch /tmp/ready; exec sleep 1000"
    built = build(base().set_start_cmd(command, wait_for_file("/tmp/ready")))
    assert built.said(r"\[stdout\]: it-starts")
    assert built.said(r"\[stderr\]: it-complains")
    assert built.said(r"ready")


def test_a_ready_command_alone(build: Builds, create: Create) -> None:
    built = build(base().set_ready_cmd("touch /home/user/asked"))
    assert create(template=built.name).files.exists("/home/user/asked")


def test_two_sandboxes_have_services_of_their_own(build: Builds, create: Create) -> None:
    built = build(base().set_start_cmd(SERVE, wait_for_port(8000)))
    one, two = create(template=built.name), create(template=built.name)
    one.files.write("/home/user/www/it", "changed")
    assert (served(one), served(two)) == ((200, "changed"), (200, "served\n"))


def test_it_runs_in_templates_that_are_made_from_it(build: Builds, create: Create) -> None:
    """A start command is the template's own: one that is made from it says again what runs."""
    below = build(base().set_start_cmd(SERVE, wait_for_port(8000)))
    again = Template().from_template(below.name).run_cmd("touch above")
    above = build(again.set_start_cmd(SERVE, wait_for_port(8000)))
    sandbox = create(template=above.name)
    assert served(sandbox) == (200, "served\n")
    assert sandbox.files.exists("above")


def test_it_outlives_a_pause(build: Builds, create_pausing: Create, create: Create) -> None:
    built = build(base().set_start_cmd(SERVE, wait_for_port(8000)))
    sandbox = create_pausing(template=built.name, timeout=120)
    lifecycle.pause(sandbox)
    Sandbox.connect(sandbox.sandbox_id)
    wait_for("its server", lambda: served(sandbox) == (200, "served\n"))


def test_one_that_fails_fails_the_build(build: Builds) -> None:
    command = "echo starting-up; echo the-database-is-missing >&2; exit 3"
    failed = build.fails(base().run_cmd("true").set_start_cmd(command, wait_for_port(8000)))
    assert failed.step == "finalize"
    assert "3" in failed.message
    assert "the-database-is-missing" in failed.message


def test_one_that_is_not_there(build: Builds) -> None:
    failed = build.fails(base().set_start_cmd("no-such-server --port 80", wait_for_port(8000)))
    assert failed.step == "finalize"
    assert "127" in failed.message
    assert "no-such-server" in failed.message


def test_one_that_ends_well_before_it_is_ready(build: Builds, create: Create) -> None:
    """As a script does that leaves a server behind."""
    command = "setsid -f sleep 1003; (sleep 2; touch /tmp/ready) & disown; exit 0"
    built = build(base().set_start_cmd(command, wait_for_file("/tmp/ready")))
    assert create(template=built.name).commands.run("pgrep -f 'sleep 1003'").stdout.strip()


def test_a_start_command_is_no_reason_to_do_steps_again(build: Builds) -> None:
    template = base().run_cmd("cat /proc/sys/kernel/random/uuid > id")
    first = build(template)
    second = build(
        base()
        .run_cmd("cat /proc/sys/kernel/random/uuid > id")
        .set_start_cmd(SERVE, wait_for_port(8000)),
        first.name,
    )
    assert second.said(r"^CACHED \[builder \d+/\d+\] RUN cat")
