"""Pausing, and connecting to what is paused, with the synchronous SDK."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from e2b import NotFoundException, Sandbox, SandboxException, SandboxState

from support.counting import LOG, Counting
from support.lifecycle import HAS_LIFECYCLE, is_paused, listed, pause
from support.sdk import NEWEST, SDK, needs, since
from support.wait import wait_for

Create = Callable[..., Sandbox]

BOOT_ID = "/proc/sys/kernel/random/boot_id"

stable_pause = needs(Sandbox, "pause")
keep_memory = since("2.63.0", "keep_memory")
lifecycle_option = pytest.mark.skipif(
    not HAS_LIFECYCLE and SDK < NEWEST, reason=f"e2b {SDK} has no lifecycle in Sandbox.create"
)


def boot_id(sandbox: Sandbox) -> str:
    return sandbox.commands.run(f"cat {BOOT_ID}").stdout


def assert_paused(sandbox: Sandbox) -> None:
    """Asserts that every view of it says so. (To ask a sandbox that wakes up would wake it.)"""
    assert sandbox.is_running() is False
    assert sandbox.get_info().state == SandboxState.PAUSED
    assert sandbox.sandbox_id in listed()
    assert sandbox.sandbox_id in listed(state=[SandboxState.PAUSED])
    assert sandbox.sandbox_id not in listed(state=[SandboxState.RUNNING])


def assert_runs(sandbox: Sandbox) -> None:
    assert sandbox.is_running() is True
    assert sandbox.get_info().state == SandboxState.RUNNING
    assert sandbox.sandbox_id in listed(state=[SandboxState.RUNNING])
    assert sandbox.sandbox_id not in listed(state=[SandboxState.PAUSED])


def test_a_paused_sandbox_goes_on_when_connected_to(counting: Counting) -> None:
    sandbox = counting.sandbox
    before = counting.look()
    pause(sandbox)
    assert_paused(sandbox)
    assert counting.ask().json()["message"] == "The sandbox was not found"
    sandbox.connect()
    assert_runs(sandbox)
    counting.went_on(before)
    assert sandbox.commands.run("echo again").stdout == "again\n"


@since("2.25.0", "routing headers after connect")
def test_another_client_wakes_it_by_its_id(counting: Counting) -> None:
    before = counting.look()
    pause(counting.sandbox)
    other = Sandbox.connect(counting.sandbox.sandbox_id)
    assert other.sandbox_id == counting.sandbox.sandbox_id
    assert other.files.read(LOG).startswith("1\n")
    counting.went_on(before)


def test_what_it_was_given_is_there_afterwards(create: Create) -> None:
    sandbox = create(timeout=300, metadata={"kind": "paused"}, envs={"GREETING": "hello"})
    shell = sandbox.commands.run(
        "cd /tmp && export X=kept && exec bash", background=True, stdin=True
    )
    before = sandbox.get_info()
    token = sandbox._envd_access_token
    boot = boot_id(sandbox)
    pause(sandbox)
    paused = sandbox.get_info()
    assert (paused.metadata, paused.name) == ({"kind": "paused"}, "base")
    assert paused.template_id == before.template_id
    assert (paused.cpu_count, paused.memory_mb) == (before.cpu_count, before.memory_mb)
    # The start of the last run, and the moment of the pause.
    assert paused.started_at == before.started_at
    assert before.started_at < paused.end_at < before.end_at
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again._envd_access_token == token
    after = sandbox.get_info()
    assert (after.metadata, after.template_id) == (before.metadata, before.template_id)
    assert after.started_at > before.started_at
    assert boot_id(sandbox) == boot
    assert sandbox.commands.run("echo $GREETING").stdout == "hello\n"
    sandbox.commands.send_stdin(shell.pid, "echo $X in $PWD > /tmp/shell\n")
    wait_for("the shell", lambda: sandbox.files.exists("/tmp/shell"))
    wait_for("what it says", lambda: sandbox.files.read("/tmp/shell") == "kept in /tmp\n")


# Rules: CLOCK-3
def test_its_clock_is_right_at_once(create: Create) -> None:
    sandbox = create()
    pause(sandbox)
    asked = time.time()
    sandbox.connect()
    said = float(sandbox.commands.run("date +%s.%N").stdout)
    assert asked - 1 < said < time.time() + 1


@stable_pause
def test_pausing_twice_is_false(create: Create) -> None:
    sandbox = create()
    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert Sandbox.pause(sandbox.sandbox_id) is False
    assert is_paused(sandbox)


@stable_pause
def test_by_its_id_it_is_paused_too(create: Create) -> None:
    sandbox = create()
    assert Sandbox.pause(sandbox.sandbox_id) is True
    assert_paused(sandbox)


def test_the_beta_pauses_too(create: Create) -> None:
    sandbox = create()
    sandbox.beta_pause()
    assert_paused(sandbox)
    Sandbox.beta_pause(sandbox.sandbox_id)
    assert_paused(sandbox)


@pytest.mark.parametrize("was", ["killed", "never"])
def test_what_is_not_there_cannot_be_paused(create: Create, was: str) -> None:
    sandbox_id = "i" + "0" * 20
    if was == "killed":
        sandbox = create()
        sandbox_id = sandbox.sandbox_id
        sandbox.kill()
    with pytest.raises(NotFoundException):
        (getattr(Sandbox, "pause", None) or Sandbox.beta_pause)(sandbox_id)
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox_id)


def test_a_paused_sandbox_can_be_killed(create: Create) -> None:
    sandbox = create()
    pause(sandbox)
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert sandbox.sandbox_id not in listed()
    with pytest.raises(NotFoundException):
        sandbox.get_info()
    with pytest.raises(NotFoundException):
        sandbox.connect()


def test_a_paused_sandbox_has_no_deadline(create: Create) -> None:
    marker = create(timeout=300)
    sandbox = create(timeout=8)
    pause(sandbox)
    ended = sandbox.get_info().end_at
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(1)
    # Its own deadline comes before this one's.
    marker.set_timeout(9)
    wait_for("the other sandbox to expire", lambda: not marker.is_running())
    assert_paused(sandbox)
    assert sandbox.get_info().end_at == ended
    sandbox.connect(timeout=60)
    assert_runs(sandbox)


def test_connect_gives_a_paused_sandbox_a_new_deadline(create: Create) -> None:
    sandbox = create(timeout=3000)
    pause(sandbox)
    sandbox.connect(timeout=100)
    info = sandbox.get_info()
    length = info.end_at - info.started_at
    assert timedelta(seconds=95) < length < timedelta(seconds=105)
    assert abs(datetime.now(timezone.utc) - info.started_at) < timedelta(seconds=60)
    # It runs now: what is shorter changes nothing, to the last digit.
    sandbox.connect(timeout=10)
    assert sandbox.get_info().end_at == info.end_at


def test_it_is_paused_when_its_time_is_up_and_never_out_of_sight(create_pausing: Create) -> None:
    group = uuid.uuid4().hex
    sandbox = create_pausing(timeout=3, metadata={"group": group})
    ends = sandbox.get_info().end_at

    def is_paused_and_seen() -> bool:
        assert listed(metadata={"group": group}) == [sandbox.sandbox_id]
        return is_paused(sandbox)

    wait_for("the sandbox to be paused", is_paused_and_seen)
    assert_paused(sandbox)
    info = sandbox.get_info()
    assert info.end_at >= ends
    sandbox.connect()
    assert_runs(sandbox)


def test_it_is_paused_again_when_its_next_time_is_up(create_pausing: Create) -> None:
    sandbox = create_pausing(timeout=300)
    counting = Counting(sandbox)
    before = counting.look()
    for _ in range(3):
        sandbox.set_timeout(0)
        wait_for("the sandbox to be paused", lambda: is_paused(sandbox))
        sandbox.connect(timeout=300)
        counting.went_on(before)


def test_a_timeout_of_zero_kills_what_is_not_to_be_paused(create: Create) -> None:
    sandbox = create(timeout=300)
    sandbox.set_timeout(0)
    wait_for("the sandbox to end", lambda: sandbox.sandbox_id not in listed())
    assert sandbox.is_running() is False
    with pytest.raises(NotFoundException):
        sandbox.get_info()


def test_shortened_then_extended_it_is_not_paused(create_pausing: Create, create: Create) -> None:
    sandbox, marker = create_pausing(timeout=300), create(timeout=300)
    sandbox.set_timeout(8)
    sandbox.set_timeout(300)
    marker.set_timeout(9)
    wait_for("the other sandbox to expire", lambda: not marker.is_running())
    assert_runs(sandbox)


@lifecycle_option
@pytest.mark.parametrize(
    ("lifecycle", "shown"),
    [
        (None, {"on_timeout": "kill", "auto_resume": False}),
        ({"on_timeout": "kill"}, {"on_timeout": "kill", "auto_resume": False}),
        ({"on_timeout": {"action": "kill"}}, {"on_timeout": "kill", "auto_resume": False}),
        ({"on_timeout": "pause"}, {"on_timeout": "pause", "auto_resume": False}),
        (
            {"on_timeout": "pause", "auto_resume": False},
            {"on_timeout": "pause", "auto_resume": False},
        ),
        (
            {"on_timeout": "pause", "auto_resume": True},
            {"on_timeout": "pause", "auto_resume": True},
        ),
        (
            {"on_timeout": {"action": "pause", "mode": "full"}, "auto_resume": True},
            {"on_timeout": "pause", "auto_resume": True},
        ),
        (
            {"on_timeout": {"action": "pause", "keep_memory": False}},
            {"on_timeout": "pause", "auto_resume": False},
        ),
    ],
)
def test_info_says_what_will_become_of_it(
    create: Create, lifecycle: dict[str, object] | None, shown: dict[str, object]
) -> None:
    sandbox = create(lifecycle=lifecycle)
    assert sandbox.get_info().lifecycle == shown
    # A pause keeps it.
    sandbox.pause()
    assert sandbox.get_info().lifecycle == shown
    sandbox.connect()
    assert sandbox.get_info().lifecycle == shown


def assert_booted_anew(counting: Counting, boot: str) -> None:
    """Asserts that the files are there, and nothing else of what was."""
    sandbox = counting.sandbox
    assert sandbox.files.read("/home/user/file") == "kept"
    assert sandbox.files.read(LOG).startswith("1\n2\n")
    assert sandbox.commands.list() == []
    closed = counting.ask()
    assert closed.json()["message"] == "The sandbox is running but port is not open"
    assert boot_id(sandbox) != boot


@keep_memory
@pytest.mark.parametrize("option", [{"keep_memory": False}, {"mode": "filesystem"}])
def test_without_its_memory_it_boots_anew(counting: Counting, option: dict[str, object]) -> None:
    sandbox = counting.sandbox
    sandbox.files.write("/home/user/file", "kept")
    boot = boot_id(sandbox)
    assert sandbox.pause(**option) is True
    assert_paused(sandbox)
    assert sandbox.pause() is False
    sandbox.connect()
    assert_booted_anew(counting, boot)


@lifecycle_option
def test_without_its_memory_when_its_time_is_up(create: Create) -> None:
    lifecycle = {"on_timeout": {"action": "pause", "mode": "filesystem"}}
    counting = Counting(create(timeout=300, lifecycle=lifecycle))
    sandbox = counting.sandbox
    sandbox.files.write("/home/user/file", "kept")
    boot = boot_id(sandbox)
    sandbox.set_timeout(0)
    wait_for("the sandbox to be paused", lambda: is_paused(sandbox))
    sandbox.connect()
    assert_booted_anew(counting, boot)


def test_every_boot_has_an_id_of_its_own(create: Create) -> None:
    ids = [boot_id(create()) for _ in range(2)]
    assert len({*ids, Path(BOOT_ID).read_text()}) == 3
    assert all(str(uuid.UUID(id.strip())) == id.strip() for id in ids)


@since("2.63.0", "on_resume")
def test_to_leave_memory_out_on_connect_is_refused(counting: Counting) -> None:
    before = counting.look()
    counting.sandbox.pause()
    with pytest.raises(SandboxException, match="memory") as refused:
        counting.sandbox.connect(on_resume="reboot")
    assert refused.value.status_code == 400
    assert is_paused(counting.sandbox)
    counting.sandbox.connect(on_resume="restore")
    counting.went_on(before)


def test_lists_have_running_and_paused_ones_newest_first(create: Create) -> None:
    group = uuid.uuid4().hex
    one, two, three = (create(metadata={"group": group}) for _ in range(3))
    pause(one)
    pause(three)
    everything = {"metadata": {"group": group}}
    assert listed(**everything) == [x.sandbox_id for x in (three, two, one)]
    assert listed(**everything, state=[SandboxState.PAUSED]) == [three.sandbox_id, one.sandbox_id]
    assert listed(**everything, state=[SandboxState.RUNNING]) == [two.sandbox_id]
    # What is resumed is the newest, and there once.
    one.connect()
    assert listed(**everything) == [x.sandbox_id for x in (one, three, two)]
