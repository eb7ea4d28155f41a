"""Logs of sandboxes: the API's two routes, and `atoll sandbox logs`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import pytest
from e2b import CommandExitException, Sandbox

from support import paths, patient
from support.sdk import newest
from support.wait import wait_for

pytestmark = newest

Line = dict[str, Any]


def v1(api: httpx.Client, sandbox: str, **query: Any) -> list[Line]:
    """The lines as the CLI takes them apart."""
    answer = api.get(f"/sandboxes/{sandbox}/logs", params=query)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert len(body["logs"]) == len(body["logEntries"])
    return [json.loads(log["line"]) for log in body["logs"]]


def v2(api: httpx.Client, sandbox: str, **query: Any) -> list[Line]:
    answer = api.get(f"/v2/sandboxes/{sandbox}/logs", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["logs"]


def wait_for_line(
    api: httpx.Client, sandbox: Sandbox, event: str, matches: Callable[[Line], bool]
) -> Line:
    """The line of this event that matches, once it is there."""

    def find() -> Line | None:
        lines = v1(api, sandbox.sandbox_id)
        return next((x for x in lines if x.get("event_type") == event and matches(x)), None)

    return wait_for(event, find)


def wait_for_operation(api: httpx.Client, sandbox: Sandbox, word: str) -> tuple[Line, Line]:
    """Start and end of the command that has `word` among its arguments."""
    start = wait_for_line(api, sandbox, "process_start", lambda line: word in line["args"])
    operation = start["operation_id"]
    return start, wait_for_line(
        api, sandbox, "process_end", lambda line: line["operation_id"] == operation
    )


def milliseconds(line: Line) -> int:
    return int(datetime.fromisoformat(line["timestamp"][:23] + "+00:00").timestamp() * 1000)


@pytest.fixture(scope="module")
def logged(api: httpx.Client, shared: Sandbox) -> Sandbox:
    """A sandbox with ten commands in its log."""
    for number in range(10):
        shared.commands.run(f"true word-{number}")
    wait_for_operation(api, shared, "word-9")
    return shared


# Rules: LOG-1, LOG-2
def test_a_command_leaves_its_start_its_end_and_how_much_it_printed(
    api: httpx.Client, shared: Sandbox
) -> None:
    with pytest.raises(CommandExitException):
        shared.commands.run("printf %0100d 7; printf %010d 7 >&2; exit 3", cwd="/tmp")
    start, end = wait_for_operation(api, shared, "exit 3")
    assert (start["level"], start["logger"], start["cmd"]) == ("info", "process", "/bin/bash")
    assert (start["cwd"], start["pid"]) == ("/tmp", end["pid"])
    assert (end["exit_code"], end["error"]) == ("3", "exit status 3")
    assert (end["stdout_bytes"], end["stderr_bytes"]) == ("100", "10")
    assert int(end["duration_ms"]) >= 0
    assert start["timestamp"] <= end["timestamp"]
    assert not any("0000007" in json.dumps(line) for line in v1(api, shared.sandbox_id))


# Rules: LOG-1
def test_signals_terminals_and_failures_are_told(api: httpx.Client, shared: Sandbox) -> None:
    shared.commands.run("sleep 60 # to-be-killed", background=True).kill()
    _, end = wait_for_operation(api, shared, "to-be-killed")
    assert (end["exit_code"], end["error"]) == ("-1", "signal: killed")
    with pytest.raises(Exception, match="does not exist"):
        shared.commands.run("true", cwd="/not/there")
    failed = wait_for_line(api, shared, "process_start_failed", lambda _: True)
    assert failed["level"] == "warn"
    assert "/not/there" in failed["error"]


# Rules: LOG-1
def test_files_are_told(api: httpx.Client, shared: Sandbox) -> None:
    shared.files.write("logged.txt", "content-that-is-private")
    assert shared.files.read("logged.txt") == "content-that-is-private"
    for event in ("file_write", "file_read"):
        line = wait_for_line(api, shared, event, lambda x: x["path"].endswith("/logged.txt"))
        assert (line["logger"], line["user"]) == ("files", "user")
    assert "content-that-is-private" not in json.dumps(v2(api, shared.sandbox_id))


# Rules: LOG-1
def test_what_is_strange_or_long_stays_a_line(api: httpx.Client, shared: Sandbox) -> None:
    strange = 'é"\\\n\t\x01\u2028🦀'
    shared.commands.run(f"true '{strange}' {'x' * 100_000} # strange", timeout=30)
    start = wait_for_line(api, shared, "process_start", lambda line: strange in line["args"])
    assert start["args"].endswith("x…")
    assert len(start["args"]) < 2000


# Rules: LOG-1
def test_both_routes_and_directions_page_through_everything(
    api: httpx.Client, logged: Sandbox
) -> None:
    sandbox = logged.sandbox_id
    everything = v2(api, sandbox, direction="forward")
    times = [line["timestamp"] for line in everything]
    assert times == sorted(times)
    assert v2(api, sandbox) == everything[::-1]
    assert v2(api, sandbox, limit=3) == everything[::-1][:3]
    assert [line["message"] for line in v1(api, sandbox)] == [x["message"] for x in everything]

    seen: list[Line] = []
    cursor = 0
    while page := v2(api, sandbox, direction="forward", limit=7, cursor=cursor):
        seen += [line for line in page if line not in seen]
        following = milliseconds(page[-1])
        # Pages begin with a millisecond: what was seen of it is there again.
        cursor = following if following > cursor else following + 1
    assert seen == everything

    following = milliseconds(everything[5]) + 1
    rest = [line["message"] for line in everything if milliseconds(line) >= following]
    assert [line["message"] for line in v1(api, sandbox, start=following)] == rest
    assert [x["message"] for x in v1(api, sandbox, start=following, limit=2)] == rest[:2]
    before = [line for line in everything if milliseconds(line) < following]
    assert v2(api, sandbox, cursor=following) == before[::-1]


# Rules: LOG-1
def test_lines_are_chosen_by_level_and_text(api: httpx.Client, logged: Sandbox) -> None:
    sandbox = logged.sandbox_id
    with pytest.raises(Exception, match="does not exist"):
        logged.commands.run("true", cwd="/not/there")
    wait_for("a warning", lambda: v2(api, sandbox, level="warn"))
    assert {line["level"] for line in v2(api, sandbox, level="warn")} <= {"warn", "error"}
    assert {line["level"] for line in v2(api, sandbox)} >= {"info", "warn"}
    found = v2(api, sandbox, search="Process with pid")
    assert len(found) >= 20
    assert all("Process with pid" in line["message"] for line in found)
    assert v2(api, sandbox, search="process with PID") == []
    for bad in ({"level": "loud"}, {"direction": "up"}, {"limit": 1001}, {"search": "x" * 257}):
        assert api.get(f"/v2/sandboxes/{sandbox}/logs", params=bad).status_code == 400, bad


# Rules: LOG-1
def test_a_log_tells_of_the_sandboxs_life_and_outlives_it(
    api: httpx.Client, create: Callable[..., Sandbox]
) -> None:
    sandbox = create()
    sandbox.commands.run("true before-the-end")
    wait_for_operation(api, sandbox, "before-the-end")
    start = wait_for_line(api, sandbox, "sandbox_start", lambda _: True)
    info = api.get(f"/sandboxes/{sandbox.sandbox_id}").json()
    assert (start["logger"], start["cpu_count"]) == ("node", str(info["cpuCount"]))
    assert int(start["memory_bytes"]) >> 20 == info["memoryMB"]
    sandbox.kill()
    end = wait_for_line(api, sandbox, "sandbox_end", lambda _: True)
    assert (end["reason"], end["level"]) == ("killed", "info")
    lines = v2(api, sandbox.sandbox_id)
    assert lines[0]["message"] == "Sandbox ended"
    assert any("before-the-end" in line["fields"].get("args", "") for line in lines)


# Rules: LOG-1
def test_memory_that_ran_out_is_told(api: httpx.Client, create: Callable[..., Sandbox]) -> None:
    sandbox = create()
    with pytest.raises(CommandExitException):
        sandbox.commands.run("python3 -c \"b'x' * (3 << 30)\"", timeout=60)
    wait_for("the sample that notices", lambda: v2(api, sandbox.sandbox_id, level="warn"), 30)
    line = wait_for_line(api, sandbox, "oom_kill", lambda _: True)
    assert int(line["processes"]) >= 1
    assert "memory limit" in line["message"]


# Rules: LOG-1
def test_nobody_else_reads_a_log(api: httpx.Client, logged: Sandbox, other_team: str) -> None:
    for path in (f"/sandboxes/{logged.sandbox_id}/logs", f"/v2/sandboxes/{logged.sandbox_id}/logs"):
        assert api.get(path).json()["logs"]
        theirs = api.get(path, headers={"X-API-Key": other_team})
        assert (theirs.status_code, theirs.json()["logs"]) == (200, [])
        assert patient.get(f"{api.base_url}{path}").status_code == 401
    assert v1(api, "iunknown") == []
    assert v2(api, "iunknown") == []
    assert api.get("/sandboxes/no!/logs").status_code == 400


def atoll(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(paths.ATOLL), "sandbox", "logs", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_the_command_line_shows_a_log(api: httpx.Client, logged: Sandbox) -> None:
    everything = v2(api, logged.sandbox_id, direction="forward", level="info")
    lines = atoll(logged.sandbox_id).stdout.split("\n")[:-1]
    assert len(lines) == len(everything)
    assert any("word-3" in line and "process_start" in line for line in lines)
    shown = atoll(logged.sandbox_id, "--json", "--level", "info").stdout.split("\n")[:-1]
    assert [json.loads(line) for line in shown] == everything
    assert atoll(logged.sandbox_id, "--level", "error").stdout == ""
    unknown = atoll("iunknown")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "iunknown" in unknown.stderr


def test_the_command_line_follows_a_log_to_its_end(
    api: httpx.Client, create: Callable[..., Sandbox]
) -> None:
    sandbox = create()
    command = [str(paths.ATOLL), "sandbox", "logs", "--follow", sandbox.sandbox_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout
        lines = iter(follower.stdout.readline, "")
        sandbox.commands.run("true while-followed")
        assert any("while-followed" in line for line in lines)
        sandbox.kill()
        *_, last = lines
        assert "Sandbox ended" in last
        assert follower.wait(30) == 0
