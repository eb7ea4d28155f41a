"""Creating, finding, extending and ending sandboxes with the synchronous SDK."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from e2b import NotFoundException, Sandbox, SandboxException, SandboxQuery, SandboxState

from support.sdk import since
from support.wait import wait_for

Create = Callable[..., Sandbox]


def listed(**query: object) -> list[str]:
    """Ids of all sandboxes that match, over all pages."""
    pages = Sandbox.list(query=SandboxQuery(**query))
    ids: list[str] = []
    while pages.has_next:
        ids += [info.sandbox_id for info in pages.next_items()]
    return ids


def test_a_new_sandbox_runs_and_answers(create: Create) -> None:
    sandbox = create()
    assert sandbox.sandbox_id.startswith("i")
    assert sandbox.is_running()
    assert sandbox.commands.run("echo hello").stdout == "hello\n"


def test_kill_ends_it_once(create: Create) -> None:
    sandbox = create()
    assert sandbox.kill() is True
    assert sandbox.is_running() is False
    assert sandbox.kill() is False
    assert Sandbox.kill(sandbox.sandbox_id) is False
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    with pytest.raises(NotFoundException):
        sandbox.get_info()


@pytest.mark.parametrize("sandbox_id", ["nonexistingsandbox", "non-existing", "i" + "0" * 20])
def test_killing_what_was_never_there_is_false(stack: object, sandbox_id: str) -> None:
    assert Sandbox.kill(sandbox_id) is False


# Rules: SDK-1, TRAP-1
@since("2.25.0", "routing headers after connect")
def test_connect_reaches_the_same_sandbox(create: Create) -> None:
    sandbox = create()
    sandbox.files.write("note.txt", "from the first")
    other = Sandbox.connect(sandbox.sandbox_id)
    assert other.sandbox_id == sandbox.sandbox_id
    assert other.files.read("note.txt") == "from the first"


def test_connect_never_shortens(create: Create) -> None:
    sandbox = create(timeout=300)
    before = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert sandbox.get_info().end_at == before
    Sandbox.connect(sandbox.sandbox_id, timeout=900)
    assert sandbox.get_info().end_at > before + timedelta(seconds=500)


def test_info_says_what_was_asked_for(create: Create) -> None:
    metadata = {"purpose": "info", "ünï": "çødé & = +"}
    sandbox = create(metadata=metadata, timeout=120)
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.metadata == metadata
    assert info.state == SandboxState.RUNNING
    assert info.name == "base"
    assert info.cpu_count >= 1
    assert info.memory_mb >= 128
    length = info.end_at - info.started_at
    assert timedelta(seconds=115) < length < timedelta(seconds=125)
    assert abs(datetime.now(timezone.utc) - info.started_at) < timedelta(seconds=60)


def test_a_sandbox_ends_when_its_time_is_up(create: Create) -> None:
    sandbox = create(timeout=3)
    wait_for("the sandbox to expire", lambda: not sandbox.is_running())
    wait_for("it to leave the list", lambda: sandbox.sandbox_id not in listed())
    # Whoever wants to end it while it is being ended is told that it was.
    sandbox.kill()
    assert sandbox.kill() is False


def test_set_timeout_shortens(create: Create) -> None:
    sandbox = create(timeout=300)
    sandbox.set_timeout(2)
    wait_for("the sandbox to expire", lambda: not sandbox.is_running())


def test_set_timeout_extends(create: Create) -> None:
    sandbox = create(timeout=60)
    sandbox.set_timeout(600)
    info = sandbox.get_info()
    assert info.end_at - datetime.now(timezone.utc) > timedelta(seconds=500)


def test_shortened_then_extended_it_lives_on(create: Create) -> None:
    sandbox = create(timeout=300)
    marker = create(timeout=300)
    sandbox.set_timeout(8)
    sandbox.set_timeout(300)
    marker.set_timeout(9)
    wait_for("the other sandbox to expire", lambda: not marker.is_running())
    assert sandbox.is_running()


def test_set_timeout_of_a_dead_sandbox_is_not_found(create: Create) -> None:
    sandbox = create()
    sandbox.kill()
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(10)


def test_list_filters_by_metadata(create: Create) -> None:
    group = uuid.uuid4().hex
    one = create(metadata={"group": group, "name": "a b&c=d/é"})
    two = create(metadata={"group": group, "name": "two"})
    assert set(listed(metadata={"group": group})) == {one.sandbox_id, two.sandbox_id}
    assert listed(metadata={"group": group, "name": "a b&c=d/é"}) == [one.sandbox_id]
    assert listed(metadata={"group": group, "name": "three"}) == []


def test_list_pages_newest_first(create: Create) -> None:
    group = uuid.uuid4().hex
    made = [create(metadata={"group": group}).sandbox_id for _ in range(3)]
    pages = Sandbox.list(query=SandboxQuery(metadata={"group": group}), limit=1)
    seen: list[str] = []
    while pages.has_next:
        items = pages.next_items()
        assert len(items) == 1
        seen.append(items[0].sandbox_id)
    assert seen == made[::-1]
    with pytest.raises(Exception, match="No more items"):
        pages.next_items()


def test_list_by_state(create: Create) -> None:
    sandbox = create()
    assert sandbox.sandbox_id in listed(state=[SandboxState.RUNNING])
    assert sandbox.sandbox_id not in listed(state=[SandboxState.PAUSED])


# Rules: GATE-3
def test_metrics_appear(create: Create) -> None:
    sandbox = create(timeout=120)
    metrics = wait_for("the first metrics", lambda: sandbox.get_metrics(), seconds=30)
    sample = metrics[0]
    assert sample.cpu_count >= 1
    assert 0 <= sample.cpu_used_pct <= 100
    assert 0 < sample.mem_used <= sample.mem_total
    assert sample.disk_total > 0
    before = datetime.now(timezone.utc) - timedelta(hours=2)
    assert sandbox.get_metrics(start=before, end=before + timedelta(minutes=1)) == []


# Rules: TRAP-24
def test_envs_reach_every_command(create: Create) -> None:
    sandbox = create(envs={"GREETING": "hello", "WITH SPACE?": "no shell sees me"})
    assert sandbox.commands.run("echo $GREETING").stdout == "hello\n"
    assert sandbox.commands.run("echo $GREETING", envs={"GREETING": "bye"}).stdout == "bye\n"


def test_a_sandbox_knows_itself(create: Create) -> None:
    sandbox = create()
    run = sandbox.commands.run
    assert run("echo $E2B_SANDBOX_ID").stdout.strip() == sandbox.sandbox_id
    assert run("echo $E2B_TEMPLATE_ID").stdout.strip() == sandbox.get_info().template_id
    assert run("echo $E2B_SANDBOX").stdout.strip() in {"true", "false"}


# Rules: TRAP-47
def test_an_unknown_template_is_refused(stack: object) -> None:
    with pytest.raises((NotFoundException, SandboxException), match="no-such-template"):
        Sandbox.create("no-such-template")


def test_a_with_block_kills(stack: object) -> None:
    with Sandbox.create() as sandbox:
        assert sandbox.is_running()
    assert not sandbox.is_running()


def test_many_at_once_do_not_mix(create: Create) -> None:
    def work(number: int) -> tuple[str, str]:
        sandbox = create(timeout=120)
        sandbox.files.write("number", str(number))
        return sandbox.sandbox_id, sandbox.commands.run("cat number").stdout

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(work, range(10)))
    assert len({sandbox_id for sandbox_id, _ in results}) == 10
    assert [out for _, out in results] == [str(number) for number in range(10)]
