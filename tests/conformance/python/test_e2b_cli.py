"""The official command line, `@e2b/cli`, against this stack."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from support import e2b_cli
from support.e2b_cli import plain
from support.sdk import newest
from support.stack import Stack
from support.wait import wait_for

pytestmark = newest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(stack: Stack, tmp_path: Path) -> dict[str, Any]:
    """What to run the CLI with."""
    return e2b_cli.command(tmp_path)


@pytest.fixture
def e2b(command: dict[str, Any]) -> Run:
    """Runs `e2b sandbox ...` with no input, unless told otherwise."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
        return subprocess.run(
            [*command["args"], "sandbox", *arguments],
            env=command["env"],
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )

    return run


def logs(e2b: Run, sandbox: str, *options: str) -> list[dict[str, Any]]:
    ran = e2b("logs", sandbox, "--format", "json", *options)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines() if line]


# Rules: LOG-1
def test_logs_of_commands(e2b: Run, sandbox: Sandbox) -> None:
    sandbox.commands.run("echo hidden$((6 * 111)); true find-me")
    sandbox.files.write("note.txt", "x")

    def complete() -> list[dict[str, Any]] | None:
        lines = logs(e2b, sandbox.sandbox_id)
        events = {line.get("event_type") for line in lines}
        return lines if {"process_start", "process_end", "file_write"} <= events else None

    lines = wait_for("the command's lines", complete, seconds=30)
    assert all(line["level"] in {"info", "warn", "error", "debug"} for line in lines)
    assert any("find-me" in line.get("args", "") for line in lines)
    assert "hidden666" not in json.dumps(lines)

    only = logs(e2b, sandbox.sandbox_id, "--loggers", "process")
    assert {line["logger"] for line in only} == {"process"}
    several = logs(e2b, sandbox.sandbox_id, "--loggers", "process,files")
    assert {line["logger"] for line in several} == {"process", "files"}
    assert logs(e2b, sandbox.sandbox_id, "--level", "error") == []

    pretty = e2b("logs", sandbox.sandbox_id)
    assert pretty.returncode == 0, pretty.stderr
    assert "event_type: 'process_start'" in plain(pretty.stdout)


def test_logs_of_no_sandbox(e2b: Run, stack: Stack) -> None:
    ran = e2b("logs", "-f", "iunknown")
    assert ran.returncode == 0, ran.stderr
    assert "not found" in plain(ran.stdout)


# Rules: LOG-1
def test_logs_are_followed_until_the_sandbox_ends(
    command: dict[str, Any], sandbox: Sandbox
) -> None:
    follow = [*command["args"], "sandbox", "logs", "-f", sandbox.sandbox_id]
    with subprocess.Popen(
        follow, env=command["env"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout
        lines = iter(follower.stdout.readline, "")
        assert any("Sandbox started" in line for line in lines)
        # Said while it is being followed.
        sandbox.commands.run("true while-followed")
        assert any("while-followed" in line for line in lines)
        sandbox.kill()
        assert any("closed" in plain(line) for line in lines)
        assert follower.wait(30) == 0


def test_list_and_info(e2b: Run, create: Callable[..., Sandbox]) -> None:
    sandbox = create(metadata={"made": "for-the-cli"})
    listed = e2b("list", "--format", "json", "--metadata", "made=for-the-cli")
    assert listed.returncode == 0, listed.stderr
    ids = [item["sandboxId"] for item in json.loads(listed.stdout)]
    assert sandbox.sandbox_id in ids
    assert sandbox.sandbox_id in e2b("list").stdout
    info = e2b("info", sandbox.sandbox_id, "--format", "json")
    assert json.loads(info.stdout)["sandboxId"] == sandbox.sandbox_id
    assert sandbox.sandbox_id in e2b("info", sandbox.sandbox_id).stdout


def test_exec_passes_everything_on(e2b: Run, sandbox: Sandbox) -> None:
    ran = e2b("exec", sandbox.sandbox_id, "--", "echo out; echo oops >&2; exit 7")
    assert (ran.stdout, ran.returncode) == ("out\n", 7)
    # The CLI adds a line of its own.
    assert ran.stderr.splitlines()[0] == "oops"
    ran = e2b("exec", sandbox.sandbox_id, "--", "wc", "-c", input="x" * 200_000)
    assert (ran.stdout.strip(), ran.returncode) == ("200000", 0)


def test_metrics(e2b: Run, sandbox: Sandbox) -> None:
    wait_for("a first sample", sandbox.get_metrics, seconds=30)
    ran = e2b("metrics", sandbox.sandbox_id, "--format", "json")
    assert ran.returncode == 0, ran.stderr
    sample = json.loads(ran.stdout.split()[0])
    assert sample["cpuCount"] == 2
    assert 0 < sample["memUsed"] < sample["memTotal"]
    assert 0 < sample["diskUsed"] < sample["diskTotal"]
    pretty = plain(e2b("metrics", sandbox.sandbox_id).stdout)
    assert "CPU" in pretty
    assert "MiB" in pretty


def test_kill(e2b: Run, sandbox: Sandbox) -> None:
    killed = e2b("kill", sandbox.sandbox_id)
    assert killed.returncode == 0, killed.stderr
    assert not sandbox.is_running()
    again = e2b("kill", sandbox.sandbox_id)
    assert f"{sandbox.sandbox_id} wasn't found" in plain(again.stderr)


def test_pause_and_resume(e2b: Run, sandbox: Sandbox) -> None:
    marker = sandbox.commands.run("exec sleep 600", background=True, timeout=0).pid
    paused = e2b("pause", sandbox.sandbox_id)
    assert (paused.returncode, "has been paused" in plain(paused.stdout)) == (0, True), (
        paused.stderr
    )
    assert "already paused" in plain(e2b("pause", sandbox.sandbox_id).stdout)
    # A list has those that run, unless it is told otherwise.
    assert sandbox.sandbox_id not in e2b("list", "--format", "json").stdout
    assert sandbox.sandbox_id in e2b("list", "--format", "json", "--state", "paused").stdout
    resumed = e2b("resume", sandbox.sandbox_id)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed" in plain(resumed.stdout)
    assert marker in {process.pid for process in sandbox.commands.list()}
    assert "wasn't found" in plain(e2b("pause", "i" + "0" * 20).stderr)


def test_exec_wakes_a_paused_sandbox(e2b: Run, sandbox: Sandbox) -> None:
    e2b("pause", sandbox.sandbox_id)
    ran = e2b("exec", sandbox.sandbox_id, "--", "echo awake")
    assert (ran.stdout, ran.returncode) == ("awake\n", 0), ran.stderr


def test_a_detached_one_with_a_lifecycle(e2b: Run) -> None:
    created = e2b(
        *("create", "--detach", "--timeout", "300"),
        *("--lifecycle.ontimeout", "pause", "--lifecycle.autoresume"),
    )
    assert created.returncode == 0, created.stderr
    found = re.search(r"\bi[a-z0-9]{19,}\b", plain(created.stdout))
    assert found, created.stdout
    try:
        info = json.loads(e2b("info", found[0], "--format", "json").stdout)
        assert info["lifecycle"] == {"onTimeout": "pause", "autoResume": True}
    finally:
        assert e2b("kill", found[0]).returncode == 0


def test_snapshots(e2b: Run, sandbox: Sandbox) -> None:
    sandbox.files.write("note.txt", "kept")
    name = f"e2b-cli-{sandbox.sandbox_id[1:13]}"
    created = e2b("snapshot", "create", sandbox.sandbox_id, "--name", name)
    assert created.returncode == 0, created.stderr
    listed = e2b("snapshot", "list", sandbox.sandbox_id, "--format", "json")
    [snapshot] = json.loads(listed.stdout)
    assert snapshot["snapshotId"].endswith(f"/{name}:default")
    assert snapshot["snapshotId"] in plain(created.stdout)
    by_name = e2b("snapshot", "list", "--name", name, "--format", "json")
    assert json.loads(by_name.stdout) == [snapshot]
    deleted = e2b("snapshot", "delete", snapshot["snapshotId"])
    assert deleted.returncode == 0, deleted.stderr
    assert json.loads(e2b("snapshot", "list", sandbox.sandbox_id, "--format", "json").stdout) == []
