"""Builds that fail: with the SDK's exception, the step, its command, exit code and last lines."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from e2b import BuildException, Sandbox, Template

from support.registry import Registry
from support.templates import Builds, Failed, Steps, step

Create = Callable[..., Sandbox]


def base() -> Any:
    return Template().from_base_image()


def line_of(failed: Failed) -> str:
    """The line of this file that the exception leads to."""
    frames = traceback.extract_tb(failed.error.__traceback__)
    ours = [frame for frame in frames if frame.filename == __file__]
    return ours[-1].line or ""


def test_a_command_that_fails(build: Builds) -> None:
    failed = build.fails(base().run_cmd("true").run_cmd("echo so-far; echo so-bad >&2; exit 7"))
    assert isinstance(failed.error, BuildException)
    assert failed.step == "2"
    assert "echo so-far; echo so-bad >&2; exit 7" in failed.message
    assert "7" in failed.message.replace("exit 7", "")
    assert "so-bad" in failed.message
    assert failed.built.said(r"\[stderr\]: so-bad")
    assert failed.built.said("^Build failed")


def test_the_reason_has_the_lines_of_its_step(build: Builds) -> None:
    failed = build.fails(base().run_cmd("echo before >&2").run_cmd("echo complaint >&2; exit 1"))
    entries = failed.reason.get("logEntries", [])
    assert all(entry["level"] in {"warn", "error"} for entry in entries)
    assert all(entry.get("step") == "2" for entry in entries)
    assert entries


def test_only_the_last_lines_are_in_the_message(build: Builds) -> None:
    failed = build.fails(base().run_cmd("seq 5000; exit 1"))
    assert re.search(r"^\s*5000$", failed.message, re.MULTILINE)
    assert len(failed.message) < 10_000
    assert failed.built.said(r"\[stdout\]: 1$")


def test_an_exception_leads_to_the_line_that_is_to_blame(build: Builds) -> None:
    template = base()
    template = template.run_cmd("true")
    template = template.set_envs({"A": "b"})
    template = template.run_cmd("exit 3")  # this one
    template = template.run_cmd("true")
    failed = build.fails(template)
    assert failed.step == "3"
    assert line_of(failed) == 'template = template.run_cmd("exit 3")  # this one'


def test_an_exception_leads_to_the_base(build: Builds, registry: Registry) -> None:
    template = Template()
    template = template.from_image(f"{registry.address}/atoll/none:at-all")  # this one
    template = template.run_cmd("true")
    assert line_of(build.fails(template)).endswith("# this one")


def test_an_exception_leads_to_the_start_command(build: Builds) -> None:
    template = base().run_cmd("true")
    template = template.set_start_cmd("exit 1", "false")  # this one
    failed = build.fails(template)
    assert failed.step == "finalize"
    assert line_of(failed).endswith("# this one")


def test_a_directory_that_cannot_be(build: Builds) -> None:
    failed = build.fails(base().run_cmd("true").set_workdir("/etc/passwd/below"))
    assert failed.step == "2"
    assert "/etc/passwd/below" in failed.message


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 100])
def test_a_user_that_cannot_be(steps: Steps, name: str) -> None:
    _, status = steps(step("USER", name))
    assert status["status"] == "error"
    assert status["reason"]["step"] == "1"
    assert "internal" not in status["reason"]["message"].lower()


@pytest.mark.parametrize(
    "one",
    [
        step("RUN"),
        step("ENV", "ONLY"),
        step("ENV", "A=B", "x"),
        step("ENV", "NUL\0", "x"),
        step("WORKDIR"),
        step("USER"),
        step("COPY", "a"),
        step("COPY", "a", "b"),
        step("COPY", "a", "b", filesHash="no-hash"),
        step("RUN", "true", "no-such-user"),
        step("RUN", "echo \0"),
    ],
    ids=str,
)
def test_steps_that_say_nothing(steps: Steps, build: Builds, one: dict[str, Any]) -> None:
    """Refused at once, or by the build with the step and a reason of its own."""
    built = steps.register()
    answer = steps.begin(built, steps=[one])
    if answer.status_code != 202:
        assert answer.status_code == 400, answer.text
        return
    status = build.over(built)
    assert (status["status"], status["reason"]["step"]) == ("error", "1")
    assert "internal" not in status["reason"]["message"].lower()


@pytest.mark.parametrize(
    "body",
    [
        {"steps": "RUN true"},
        {"steps": [{"args": ["true"]}]},
        {"steps": [{"type": "RUN", "args": "true"}]},
        {"force": "yes"},
        {"fromTemplate": 7},
        {"startCmd": ["a"]},
        {"fromImageRegistry": {"type": "carrier-pigeon"}, "fromImage": "x"},
        {"fromImageRegistry": {"type": "registry"}, "fromImage": "x"},
    ],
    ids=str,
)
def test_bodies_that_say_nothing(steps: Steps, body: dict[str, Any]) -> None:
    answer = steps.begin(steps.register(), **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == 400


def test_what_the_sdk_sends_that_is_of_no_use_here(steps: Steps, build: Builds) -> None:
    built = steps.register(minFreeDiskMB=100)
    one = step("RUN", "true", force=False, forceUpload=True, another={"x": 1})
    assert steps.begin(built, steps=[one], readyCmd=None, another=7).status_code == 202
    assert build.over(built)["status"] == "ready"


def test_a_step_sees_no_secrets_of_the_node(build: Builds, create: Create) -> None:
    """A build is a stranger's code: it has the rights of a sandbox and no more."""
    look = [
        "cd /home/user",
        "(cat /proc/1/environ 2>&1 || true) > first",
        "if mount -t tmpfs none /mnt; then touch mounted; fi",
        "ls /dev > devices",
    ]
    sandbox = create(template=build(base().run_cmd(look, user="root")).name)
    plain = create()
    assert sandbox.files.read("/home/user/devices") == plain.commands.run("ls /dev").stdout
    assert not sandbox.files.exists("/home/user/mounted")
    assert "E2B_API_KEY" not in sandbox.files.read("/home/user/first")


def test_sandboxes_of_builds_are_not_to_be_seen(
    api: httpx.Client, build: Builds, create: Create
) -> None:
    mine = create()
    built = build.start(base().run_cmd("echo begun; sleep 3600"))
    build.until(built, "[stdout]: begun")
    listed = api.get("/v2/sandboxes").json()
    assert mine.sandbox_id in {item["sandboxID"] for item in listed}
    assert not [item for item in listed if item["templateID"] == built.template_id]
    build.cancel(built)
    build.over(built)
