"""Running commands with the synchronous SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from e2b import (
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
    TimeoutException,
)
from e2b.sandbox_sync.commands.command import Commands

from support.sdk import needs, since
from support.wait import wait_for


# Rules: PROC-30
def test_output_and_status(shared: Sandbox) -> None:
    result = shared.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)


# Rules: PROC-8, PROC-36
def test_a_failing_command_raises_with_all_it_said(shared: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        shared.commands.run("echo out; echo err >&2; exit 7")
    failed = caught.value
    assert (failed.exit_code, failed.stdout, failed.stderr) == (7, "out\n", "err\n")


# Rules: PROC-11
def test_a_missing_program_is_127(shared: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        shared.commands.run("no-such-program-here")
    assert caught.value.exit_code == 127


# Rules: PROC-27
def test_quotes_and_unicode_pass_unchanged(shared: Sandbox) -> None:
    text = """'single' "double" $dollar `tick` \\ back 你好 🙂"""
    result = shared.commands.run('printf %s "$TEXT"', envs={"TEXT": text})
    assert result.stdout == text


# Rules: PROC-30
def test_large_output_arrives_whole(shared: Sandbox) -> None:
    result = shared.commands.run("seq 1 300000")
    assert result.stdout == "".join(f"{number}\n" for number in range(1, 300001))


# Rules: STREAM-14, TRAP-5
def test_output_is_streamed_as_it_comes(shared: Sandbox) -> None:
    first = threading.Event()

    def run() -> None:
        # It ends only once the first line has reached this side, and made the file.
        shared.commands.run(
            "echo first; until [ -e /tmp/seen ]; do sleep 0.05; done; echo second",
            on_stdout=lambda _: first.set(),
        )

    thread = threading.Thread(target=run)
    thread.start()
    assert first.wait(20), "no output while the command runs"
    shared.files.write("/tmp/seen", "")
    thread.join(20)
    assert not thread.is_alive()


# Rules: IMAGE-1, PROC-15, PROC-13
def test_the_default_user_and_directory(shared: Sandbox) -> None:
    assert shared.commands.run("whoami; pwd").stdout == "user\n/home/user\n"
    assert shared.commands.run("echo $HOME $USER $LOGNAME").stdout == "/home/user user user\n"


# Rules: USER-1, PROC-14
def test_root_on_request(shared: Sandbox) -> None:
    assert shared.commands.run("whoami; id -u", user="root").stdout == "root\n0\n"


# Rules: PROC-21
def test_an_unknown_user_is_refused(shared: Sandbox) -> None:
    with pytest.raises(Exception, match="nobody-like-that"):
        shared.commands.run("true", user="nobody-like-that")


# Rules: PROC-16
def test_cwd(shared: Sandbox) -> None:
    assert shared.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    shared.files.make_dir("below/home")
    assert shared.commands.run("pwd", cwd="below/home").stdout == "/home/user/below/home\n"


# Rules: RPC-23, PROC-17
def test_a_missing_cwd_is_an_invalid_argument(shared: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="/not/there"):
        shared.commands.run("true", cwd="/not/there")


# Rules: TRAP-24, PROC-4
def test_a_login_shell_with_a_usable_path(shared: Sandbox) -> None:
    assert shared.commands.run("shopt -q login_shell && command -v ls python3 curl git").stdout


# Rules: PROC-44
def test_timeout_ends_the_command(shared: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        shared.commands.run("exec -a timed-out-sleep sleep 600", timeout=1)
    wait_for("the process to be gone", lambda: not running(shared, "timed-out-sleep"))


def running(sandbox: Sandbox, name: str) -> bool:
    """Whether a process with that name runs in the sandbox."""
    # The brackets keep pgrep's own shell from matching.
    pattern = f"[{name[0]}]{name[1:]}"
    return bool(sandbox.commands.run(f"pgrep -f '{pattern}' || true", user="root").stdout.strip())


# Rules: PROC-5
def test_background_commands_can_be_waited_for(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 0.2; echo done", background=True)
    assert handle.pid > 1
    result = handle.wait()
    assert (result.stdout, result.exit_code) == ("done\n", 0)


# Rules: PROC-60, PROC-37, PROC-65
def test_list_shows_what_runs_and_kill_ends_it(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 600", background=True, envs={"MARK": "listed"})
    mine = [process for process in shared.commands.list() if process.pid == handle.pid]
    assert len(mine) == 1
    assert mine[0].cmd == "/bin/bash"
    assert mine[0].args == ["-l", "-c", "sleep 600"]
    assert mine[0].envs == {"MARK": "listed"}
    assert shared.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.exit_code == -1
    assert caught.value.error == "signal: killed"
    assert shared.commands.kill(handle.pid) is False
    assert handle.pid not in [process.pid for process in shared.commands.list()]


# Rules: PROC-43
def test_a_command_outlives_its_connection(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 600", background=True, timeout=0)
    handle.disconnect()
    assert handle.pid in [process.pid for process in shared.commands.list()]
    again = shared.commands.connect(handle.pid)
    assert again.pid == handle.pid
    assert again.kill() is True
    with pytest.raises(CommandExitException):
        again.wait()


# Rules: PROC-31, PROC-34
def test_connect_sees_later_output(shared: Sandbox) -> None:
    script = "until [ -e /tmp/connected ]; do sleep 0.05; done; echo late"
    handle = shared.commands.run(script, background=True)
    handle.disconnect()
    again = shared.commands.connect(handle.pid)
    shared.files.write("/tmp/connected", "")
    assert again.wait().stdout == "late\n"


# Rules: RPC-23, PROC-62
def test_connecting_to_nothing_is_not_found(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.commands.connect(999_999)


# Rules: PROC-24, PROC-50
def test_stdin(shared: Sandbox) -> None:
    handle = shared.commands.run("head -n 2", background=True, stdin=True)
    shared.commands.send_stdin(handle.pid, "one\n")
    shared.commands.send_stdin(handle.pid, "zwei ü\n")
    assert handle.wait().stdout == "one\nzwei ü\n"


# Rules: GATE-3, TRAP-11, PROC-25
def test_without_stdin_a_reader_ends_at_once(shared: Sandbox) -> None:
    assert shared.commands.run("cat", timeout=20).stdout == ""


# Rules: PROC-53
def test_stdin_of_a_dead_process_is_not_found(shared: Sandbox) -> None:
    handle = shared.commands.run("true", background=True, stdin=True)
    handle.wait()
    with pytest.raises((NotFoundException, SandboxException)):
        shared.commands.send_stdin(handle.pid, "too late")


# Rules: GATE-3, TRAP-25, PROC-24, PROC-54
@needs(Commands, "close_stdin")
def test_closing_stdin_ends_a_reader(shared: Sandbox) -> None:
    handle = shared.commands.run("cat", background=True, stdin=True)
    shared.commands.send_stdin(handle.pid, "all there is")
    shared.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "all there is"


# Rules: PROC-56, TRAP-26
@needs(Commands, "stream_input")
def test_streamed_stdin_keeps_its_order(shared: Sandbox) -> None:
    lines = [f"line {number}\n" for number in range(500)]
    handle = shared.commands.run("head -n 500", background=True, stdin=True)
    shared.commands.stream_input(handle.pid, iter(lines))
    assert handle.wait().stdout == "".join(lines)


# Rules: PROXY-36, TRAP-2
@since("2.29.1", "an error for a sandbox that ends")
def test_a_killed_sandbox_ends_its_commands_with_a_timeout_error(
    create: Callable[..., Sandbox],
) -> None:
    sandbox = create(timeout=120)
    handle = sandbox.commands.run("sleep 600", background=True, timeout=0)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            handle.wait()
        except BaseException as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    sandbox.kill()
    waiting.join(30)
    assert not waiting.is_alive(), "the command's stream is still open"
    assert isinstance(outcome[0], TimeoutException), repr(outcome)


# Rules: PROXY-17, PROXY-36
def test_a_command_in_a_dead_sandbox_is_a_timeout_error(create: Callable[..., Sandbox]) -> None:
    sandbox = create()
    sandbox.kill()
    with pytest.raises(TimeoutException):
        sandbox.commands.run("true")


# Rules: PROC-42
def test_orphans_are_reaped(shared: Sandbox) -> None:
    shared.commands.run("for i in $(seq 20); do (sleep 0.01 &) ; done")
    zombies = "ps -eo stat= | grep -c '^Z' || true"
    wait_for("no zombies", lambda: shared.commands.run(zombies).stdout.strip() == "0")


def test_commands_run_at_the_same_time(shared: Sandbox) -> None:
    # Each waits for the other: run one after the other, neither would end.
    script = "touch /tmp/{0}; until [ -e /tmp/{1} ]; do sleep 0.02; done"
    one = shared.commands.run(script.format("meet-a", "meet-b"), background=True)
    two = shared.commands.run(script.format("meet-b", "meet-a"), background=True)
    assert (one.wait().exit_code, two.wait().exit_code) == (0, 0)


USUAL = """
python3 --version; python --version; pip --version; node --version; npm --version; npx --version
git --version; curl --version; jq --version; gcc --version; socat -V; ss --version; less --version
sudo -n true; ping -c1 -W2 127.0.0.1
"""


# Rules: IMAGE-4, IMAGE-5
@pytest.mark.parametrize("command", USUAL.replace("\n", ";").strip(";").split(";"))
def test_base_has_the_usual_tools(shared: Sandbox, command: str) -> None:
    ran = shared.commands.run(command)
    assert ran.exit_code == 0
    assert ran.stderr == ""
