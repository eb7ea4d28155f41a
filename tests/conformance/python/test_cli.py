"""The command line, as somebody without an SDK uses it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import paths
from support.sdk import newest
from support.stack import PORTS, Stack

pytestmark = newest


def atoll(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `atoll` with no input, unless told otherwise."""
    options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
    options.setdefault("timeout", 60)
    command = [str(paths.ATOLL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture
def sandbox(stack: Stack) -> Iterator[str]:
    """A sandbox made by the command line."""
    created = atoll("sandbox", "create", "--metadata", "made=by-cli", "--env", "GREETING=hello")
    assert created.returncode == 0, created.stderr
    name = created.stdout.strip()
    yield name
    atoll("sandbox", "kill", name)


def test_a_sandbox_from_create_to_kill(sandbox: str) -> None:
    listed = json.loads(atoll("sandbox", "list", "--json").stdout)
    (mine,) = [item for item in listed if item["sandboxID"] == sandbox]
    assert mine["metadata"] == {"made": "by-cli"}
    assert sandbox in atoll("sandbox", "list").stdout
    assert json.loads(atoll("sandbox", "info", sandbox, "--json").stdout)["sandboxID"] == sandbox
    assert atoll("sandbox", "kill", sandbox).returncode == 0
    again = atoll("sandbox", "kill", sandbox)
    assert again.returncode == 1
    assert sandbox in again.stderr


def test_exec_keeps_streams_and_exit_code_apart(sandbox: str) -> None:
    ran = atoll("sandbox", "exec", sandbox, "echo $GREETING; echo oops >&2; exit 7")
    assert (ran.stdout, ran.stderr, ran.returncode) == ("hello\n", "oops\n", 7)


def test_exec_passes_input_on(sandbox: str) -> None:
    text = "line\n" * 50_000
    ran = atoll("sandbox", "exec", sandbox, "wc -l", input=text)
    assert (ran.stdout.strip(), ran.returncode) == ("50000", 0)


def test_exec_takes_arguments_as_they_are(sandbox: str) -> None:
    ran = atoll("sandbox", "exec", sandbox, "--", "printf", "%s|", "a b", "$HOME", "-n")
    assert ran.stdout == "a b|$HOME|-n|"


def test_exec_runs_as_whom_and_where_it_is_told(sandbox: str) -> None:
    ran = atoll(
        "sandbox", "exec", "-u", "root", "-w", "/tmp", "-e", "A=b", sandbox, "id -un; pwd; echo $A"
    )
    assert ran.stdout.split() == ["root", "/tmp", "b"]


def test_exec_reports_a_signal_as_a_shell_does(sandbox: str) -> None:
    assert atoll("sandbox", "exec", sandbox, "kill -9 $$").returncode == 128 + 9


def test_exec_ends_with_its_command_though_its_input_goes_on(sandbox: str) -> None:
    command = [str(paths.ATOLL), "sandbox", "exec", sandbox, "echo done"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout
        assert ran.stdout.read() == "done\n"
        # The pipe to its input is still open here.
        assert ran.wait(timeout=30) == 0


def test_without_a_key_it_says_what_to_do(stack: Stack) -> None:
    ran = atoll("sandbox", "list", env={"PATH": "/usr/bin:/bin"})
    assert ran.returncode == 1
    assert "ATL-2002" in ran.stderr
    assert "env" in ran.stderr


def test_without_a_server_it_says_what_to_do(stack: Stack) -> None:
    nobody = {"PATH": "/usr/bin", "E2B_API_KEY": "e2b_00", "E2B_API_URL": "http://127.0.0.1:1"}
    ran = atoll("sandbox", "list", env=nobody)
    assert ran.returncode == 1
    assert "atoll up" in ran.stderr


def test_a_reader_that_leaves_is_no_crash(stack: Stack) -> None:
    ran = subprocess.run(
        f"{paths.ATOLL} explain ATL-1001 | true", shell=True, capture_output=True, text=True
    )
    assert "panicked" not in ran.stderr


def doctor(data_dir: Path) -> dict[str, dict[str, str]]:
    ports = [part for name, port in PORTS.items() for part in (f"--{name}-port", str(port))]
    ran = atoll("doctor", "--json", "--data-dir", str(data_dir), *ports)
    report = json.loads(ran.stdout)
    assert report["ready"] is True, ran.stdout
    assert ran.returncode == 0
    return {finding["name"]: finding for finding in report["findings"]}


def test_doctor_tries_what_it_reports(stack: Stack, tmp_path: Path) -> None:
    findings = doctor(paths.DATA_DIR)
    assert findings["container driver"]["verdict"] == "ok"
    assert "the Atoll that runs here" in findings["ports"]["fact"]
    # To another Atoll they are taken.
    assert doctor(tmp_path)["ports"]["verdict"] == "warning"


#: All that takes seconds: to fork a hundred times, and to pack an image of 500 MiB, takes minutes.
PARTS = "lives,commands,pauses,idle,start,transfer,peers"


def test_bench_reports_figures(stack: Stack) -> None:
    options = ("--only", PARTS, "--creates", "5", "--file-mib", "64")
    ran = atoll("bench", "--json", *options, timeout=240)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout)["rows"]
    names = {row["name"] for row in rows}
    assert {"create", "create to first command", "kill", "command round trip"} <= names
    assert {"pause, idle", "resume, idle", "resume by a request, idle", "fork, idle"} <= names
    assert all(0 < row["min"] <= row["p50"] <= row["p99"] <= row["max"] for row in rows)


def test_bench_compares_cells(stack: Stack) -> None:
    ran = atoll("bench", "--only", "interpreter", "--json", "--creates", "5", timeout=240)
    assert ran.returncode == 0, ran.stderr
    rows = {row["name"]: row for row in json.loads(ran.stdout)["rows"]}
    created = rows["interpreter, create to print"]
    assert created["count"] == 5 and created["kept"] in {"disk", "checkpoint"}
    peers = {"jupyter_client", "its sockets alone"}
    cell = rows["cell, from inside"]
    assert set(cell["ratios"]) == set(cell["differences"]) == peers
    assert {f"cell, by {peer}" for peer in peers} <= set(rows)


def words(*arguments: str) -> str:
    """What a command of `atoll sandbox` that succeeds prints."""
    ran = atoll("sandbox", *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def state(sandbox: str) -> str:
    return json.loads(words("info", sandbox, "--json"))["state"]


def test_pause_and_resume(sandbox: str) -> None:
    words("exec", sandbox, "echo kept > /home/user/file")
    assert sandbox in words("pause", sandbox)
    assert state(sandbox) == "paused"
    assert "paused" in words("info", sandbox)
    again = atoll("sandbox", "pause", sandbox)
    assert (again.returncode, "already paused" in again.stderr) == (1, True), again.stderr
    assert sandbox in words("resume", sandbox)
    assert state(sandbox) == "running"
    words("pause", sandbox, "--files-only")
    assert json.loads(words("info", sandbox, "--json"))["kept"] == "disk"
    # To run something in it is to resume it.
    assert words("exec", sandbox, "cat /home/user/file") == "kept"


def test_what_becomes_of_it_can_be_said_at_create(stack: Stack) -> None:
    sandbox = words("create", "--on-timeout", "pause", "--auto-resume")
    try:
        lifecycle = json.loads(words("info", sandbox, "--json"))["lifecycle"]
        assert lifecycle == {"onTimeout": "pause", "autoResume": True}
    finally:
        words("kill", sandbox)


def test_forks(sandbox: str) -> None:
    words("exec", sandbox, "echo shared > /home/user/file")
    words("pause", sandbox)
    forks = words("fork", sandbox, "-n", "2").split()
    try:
        assert len({sandbox, *forks}) == 3
        assert [words("exec", fork, "cat /home/user/file") for fork in forks] == ["shared"] * 2
        assert state(sandbox) == "paused"
    finally:
        words("kill", *forks)


def test_snapshots_rewind_and_lineage(sandbox: str) -> None:
    words("exec", sandbox, "echo then > /home/user/file")
    snapshot = words("snapshot", "create", sandbox)
    assert snapshot.endswith(":default")
    assert snapshot in words("snapshot", "list", "--sandbox", sandbox)
    words("exec", sandbox, "echo now > /home/user/file")
    made = words("create", snapshot)
    try:
        assert words("exec", made, "cat /home/user/file") == "then"
        assert snapshot in words("lineage", made)
    finally:
        words("kill", made)
    words("rewind", sandbox, snapshot)
    assert words("exec", sandbox, "cat /home/user/file") == "then"
    lineage = json.loads(words("lineage", sandbox, "--json"))
    assert [entry["id"] for entry in lineage["snapshots"]] == [snapshot]
    words("snapshot", "delete", snapshot)
    gone = atoll("sandbox", "snapshot", "delete", snapshot)
    assert gone.returncode == 1
    assert snapshot.partition(":")[0] in gone.stderr
