"""What commands rely on beyond everyday use: limits, races, large output, many at once."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    PtySize,
    Sandbox,
    TimeoutException,
)
from e2b.sandbox_sync.commands.command_handle import CommandHandle

from support.host import first_process
from support.sdk import needs, newest
from support.wait import equals, wait_for

Create = Callable[..., Sandbox]


def failure(call: Callable[[], Any]) -> CommandExitException:
    with pytest.raises(CommandExitException) as caught:
        call()
    return caught.value


def listed(sandbox: Sandbox, pid: int) -> bool:
    return pid in [process.pid for process in sandbox.commands.list()]


def settings(sandbox: Sandbox) -> tuple[str, dict[str, str]]:
    """Where envd is reached, and the headers that the SDK sends it."""
    url = str(sandbox.envd_api_url)
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "Connect-Protocol-Version": "1",
        "Content-Type": "application/connect+json",
        **sandbox.connection_config.sandbox_headers,
    }
    return url, headers


@contextlib.contextmanager
def stream(sandbox: Sandbox, method: str, request: Any, **headers: str) -> Iterator[Iterator[Any]]:
    """A stream of the Process service by hand, message after message, the end frame too."""
    url, own = settings(sandbox)
    message = json.dumps(request).encode()
    with httpx.stream(
        "POST",
        f"{url}/process.Process/{method}",
        content=struct.pack(">BI", 0, len(message)) + message,
        headers={**own, **{name.replace("_", "-"): value for name, value in headers.items()}},
        timeout=60,
    ) as response:
        assert response.status_code == 200, response.read()
        yield messages(response)


def messages(response: httpx.Response) -> Iterator[Any]:
    buffer = bytearray()
    for chunk in response.iter_raw():
        buffer += chunk
        while len(buffer) >= 5 and len(buffer) >= (end := 5 + struct.unpack(">I", buffer[1:5])[0]):
            yield json.loads(buffer[5:end])
            del buffer[:end]


SIGNALS = """
1 hangup, 2 interrupt, 3 quit, 4 illegal instruction, 5 trace/breakpoint trap, 6 aborted,
7 bus error, 8 floating point exception, 9 killed, 10 user defined signal 1,
11 segmentation fault, 12 user defined signal 2, 13 broken pipe, 14 alarm clock, 15 terminated
"""


# Rules: PROC-37, PROC-8, TRAP-9, TRAP-48
def test_every_deadly_signal_has_its_name(shared: Sandbox) -> None:
    for number, name in re.findall(r"(\d+) ([^,\n]+)", SIGNALS):
        # Not bash itself, which ignores some.
        script = f"exec sh -c 'kill -{number} $$'"
        failed = failure(lambda script=script: shared.commands.run(script))
        assert (failed.exit_code, failed.error) == (-1, f"signal: {name}")


# Rules: PROC-36, PROC-8, PROC-12
def test_codes_and_all_that_was_said(shared: Sandbox) -> None:
    for code in (1, 126, 127, 255):
        failed = failure(lambda code=code: shared.commands.run(f"echo o; echo e >&2; exit {code}"))
        assert (failed.exit_code, failed.error) == (code, f"exit status {code}")
        assert (failed.stdout, failed.stderr) == ("o\n", "e\n")
    assert failure(lambda: shared.commands.run("touch plain; ./plain")).exit_code == 126


# Rules: PROC-27
def test_a_nul_is_an_invalid_argument(shared: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException):
        shared.commands.run("echo a\0b")
    with pytest.raises(InvalidArgumentException):
        shared.commands.run("true", envs={"A": "b\0c"})


# Rules: PROC-14, PROC-21, PROC-15, TRAP-40
def test_users_with_groups_and_without_a_home(create: Create) -> None:
    sandbox = create()
    sandbox.commands.run(
        "groupadd -g 4001 one && groupadd -g 4002 two && groupadd -g 4003 three && "
        "useradd -m -u 4000 -G one,three -s /bin/bash alice && useradd -M -d /no/home homeless",
        user="root",
    )
    ran = sandbox.commands.run("id -G; pwd; echo $HOME $USER", user="alice")
    groups, *rest = ran.stdout.splitlines()
    assert groups.split()[1:] == ["4001", "4003"]
    assert rest == ["/home/alice", "/home/alice alice"]
    with pytest.raises(InvalidArgumentException, match="cwd '/no/home' does not exist"):
        sandbox.commands.run("true", user="homeless")
    assert sandbox.commands.run("whoami; pwd", user="homeless", cwd="/").stdout == "homeless\n/\n"
    # By name only.
    with pytest.raises(AuthenticationException):
        sandbox.commands.run("true", user="4000")


# Rules: PROC-16, PROC-18
def test_directories_of_commands(shared: Sandbox) -> None:
    shared.commands.run("mkdir -p /home/user/mine && mkdir -m 700 /closed", user="root")
    for cwd in ("mine", "~/mine", "./mine/../mine"):
        assert shared.commands.run("pwd", cwd=cwd).stdout == "/home/user/mine\n"
    assert shared.commands.run("pwd", cwd="~").stdout == "/home/user\n"
    assert shared.commands.run("pwd", cwd="~", user="root").stdout == "/root\n"
    with pytest.raises(InvalidArgumentException, match="error starting process"):
        shared.commands.run("true", cwd="/closed")
    assert shared.commands.run("pwd", cwd="/closed", user="root").stdout == "/closed\n"


# Rules: PROC-13, PROC-4
def test_variables_and_who_wins(create: Create) -> None:
    sandbox = create(envs={"A": "sandbox", "B": "sandbox", "E2B_SANDBOX_ID": "mine"})
    script = "echo $A $B $E2B_SANDBOX_ID $E2B_SANDBOX; shopt -q login_shell && echo login"
    expected = f"sandbox command {sandbox.sandbox_id} true\nlogin\n"
    assert sandbox.commands.run(script, envs={"B": "command"}).stdout == expected


# Rules: PROC-31, PROC-43, PROC-61
def test_several_followers_and_one_who_is_late(shared: Sandbox) -> None:
    first = shared.commands.run(
        "until [ -e /tmp/all-there ]; do sleep 0.05; done; seq 1000; exit 6", background=True
    )
    others = [shared.commands.connect(first.pid) for _ in range(3)]
    shared.files.write("/tmp/all-there", "")
    expected = "".join(f"{number}\n" for number in range(1, 1001))
    for handle in (first, *others):
        failed = failure(handle.wait)
        assert (failed.exit_code, failed.stdout) == (6, expected)
    late = failure(shared.commands.connect(first.pid).wait)
    assert (late.exit_code, late.stdout) == (6, "")
    assert not listed(shared, first.pid)


# Rules: PROC-44, PROC-45, PROC-5, TRAP-8
def test_the_timeout_of_a_run_ends_the_process(shared: Sandbox) -> None:
    followed = shared.commands.run("sleep 600", background=True, timeout=5)
    with pytest.raises(TimeoutException):
        followed.wait()
    equals("the process is listed", lambda: listed(shared, followed.pid), False)
    left = shared.commands.run("sleep 600", background=True, timeout=5)
    left.disconnect()
    equals("the process is listed", lambda: listed(shared, left.pid), False)
    assert failure(shared.commands.connect(left.pid).wait).error == "signal: killed"


# Rules: PROC-46, STREAM-11, TRAP-8
def test_the_timeout_of_a_connect_ends_the_stream_only(shared: Sandbox) -> None:
    started = shared.commands.run(
        "until [ -e /tmp/go-on ]; do sleep 0.05; done; echo went on", background=True, timeout=0
    )
    with pytest.raises(TimeoutException):
        shared.commands.connect(started.pid, timeout=1).wait()
    assert listed(shared, started.pid)
    shared.files.write("/tmp/go-on", "")
    assert started.wait().stdout == "went on\n"


# Rules: STREAM-7, STREAM-14, TRAP-16, TRAP-20
@newest
def test_keepalives_come_through_the_proxies(shared: Sandbox) -> None:
    process = {"cmd": "sleep", "args": ["600"]}
    with stream(shared, "Start", {"process": process}, Keepalive_Ping_Interval="1") as events:
        assert "start" in next(events)["event"]
        for _ in range(3):
            assert next(events) == {"event": {"keepalive": {}}}


# Rules: PROC-40, PROC-42, TRAP-32
def test_a_kill_amid_output(shared: Sandbox) -> None:
    handle = shared.commands.run("exec yes", background=True, timeout=0)
    assert next(iter(handle))[0]
    assert handle.kill() is True
    failed = failure(handle.wait)
    assert shared.commands.run(f"kill -0 {handle.pid} || echo gone", user="root").stdout == "gone\n"
    assert (failed.exit_code, failed.error) == (-1, "signal: killed")


# Rules: PROC-39, PROC-48
def test_children_outlive_a_kill_and_hold_up_a_normal_end(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 600 & echo $!; wait", background=True, timeout=0)
    child = int(next(iter(handle))[0] or "")
    assert handle.kill() is True
    assert failure(handle.wait).error == "signal: killed"
    assert shared.commands.run(f"kill -0 {child} && kill {child} && echo alive").stdout == "alive\n"
    # Who still holds the output is waited for.
    script = "(until [ -e /tmp/let-go ]; do sleep 0.05; done; echo late) & echo early"
    handle = shared.commands.run(script, background=True, timeout=0)
    assert next(iter(handle))[0] == "early\n"
    shared.files.write("/tmp/let-go", "")
    assert handle.wait().stdout == "early\nlate\n"


# Rules: PROC-29
@needs(CommandHandle, "_flush_decoders")
def test_a_character_may_come_in_two_pieces(shared: Sandbox) -> None:
    handle = shared.commands.run(
        "printf 'x\\303'; until [ -e /tmp/rest ]; do sleep 0.05; done; printf '\\251\\377'",
        background=True,
    )
    assert next(iter(handle))[0] == "x"
    shared.files.write("/tmp/rest", "")
    assert handle.wait().stdout == "xé\ufffd"


def memory(pid: int, field: str) -> int:
    """Bytes, by the name that `/proc/PID/status` has for them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1]) << 10


#: What envd may need at most while output passes through it.
WORKING_MEMORY = 24 << 20


# Rules: PROC-28, PROC-30, PROC-32
@newest
def test_a_gigabyte_of_output_costs_no_memory(create: Create) -> None:
    sandbox = create(timeout=600)
    envd = first_process(sandbox.sandbox_id)
    received = 0
    process = {"cmd": "head", "args": ["-c", "1G", "/dev/zero"]}
    with stream(sandbox, "Start", {"process": process}) as events:
        for event in events:
            if data := event.get("event", {}).get("data", {}).get("stdout"):
                # All zeroes: the first few say so as well as all.
                assert data.startswith("AAA")
                received += len(data) // 4 * 3 - data.count("=", -2)
                last = data
            elif end := event.get("event", {}).get("end"):
                assert end["status"] == "exit status 0"
    assert received == 1 << 30
    assert set(base64.b64decode(last)) == {0}
    assert memory(envd, "VmHWM") < WORKING_MEMORY


# Rules: PROC-34, TRAP-10
@newest
def test_two_gigabytes_that_nobody_reads(create: Create) -> None:
    sandbox = create(timeout=600)
    envd = first_process(sandbox.sandbox_id)
    handle = sandbox.commands.run(
        "head -c 2G /dev/zero; echo over > /tmp/over", background=True, timeout=0
    )
    handle.disconnect()
    wait_for("the end of it", lambda: sandbox.files.exists("/tmp/over"), seconds=60)
    assert memory(envd, "VmHWM") < WORKING_MEMORY
    late = sandbox.commands.connect(handle.pid).wait()
    assert (late.exit_code, late.stdout) == (0, "")


# Rules: PROC-32, PROC-33, TRAP-10
@newest
def test_a_reader_who_does_not_read_holds_the_process_back(create: Create) -> None:
    sandbox = create()
    envd = first_process(sandbox.sandbox_id)
    process = {"cmd": "head", "args": ["-c", "1G", "/dev/zero"]}
    with stream(sandbox, "Start", {"process": process}) as events:
        pid = next(events)["event"]["start"]["pid"]

        def written() -> int:
            io = sandbox.commands.run(f"cat /proc/{pid}/io").stdout
            return int(re.search(r"wchar: (\d+)", io)[1])

        seen = [0]

        def still() -> bool:
            seen.append(written())
            return seen[-1] > 0 and seen[-5:] == [seen[-1]] * 5

        wait_for("the process to be held back", still, seconds=30)
        assert seen[-1] < 512 << 20
        assert memory(envd, "VmHWM") < WORKING_MEMORY
    # Once the reader has gone, it runs on by itself.
    wait_for("the process to end", lambda: not listed(sandbox, pid), seconds=30)


# Rules: PROC-42, TRAP-32
@newest
def test_two_thousand_commands(create: Create) -> None:
    sandbox = create(timeout=600)
    envd = first_process(sandbox.sandbox_id)
    before = len(list(Path(f"/proc/{envd}/fd").iterdir()))
    with ThreadPoolExecutor(20) as pool:
        echoes = pool.map(lambda n: sandbox.commands.run(f"echo {n}").stdout, range(2000))
        assert list(echoes) == [f"{n}\n" for n in range(2000)]
    assert sandbox.commands.list() == []
    zombies = "ps -eo stat= | grep -c '^Z' || true"
    assert sandbox.commands.run(zombies).stdout.strip() == "0"
    # The proxy keeps some connections; processes would be three descriptors each.
    assert len(list(Path(f"/proc/{envd}/fd").iterdir())) < before + 200
    assert memory(envd, "VmRSS") < WORKING_MEMORY


# Rules: PROC-43, PROC-60
@newest
def test_five_hundred_at_once(create: Create) -> None:
    sandbox = create(timeout=600)

    def start(number: int) -> int:
        script = f"until [ -e /tmp/go ]; do sleep 1; done; touch /tmp/done-{number}"
        handle = sandbox.commands.run(script, background=True, timeout=0)
        handle.disconnect()
        return handle.pid

    with ThreadPoolExecutor(20) as pool:
        pids = set(pool.map(start, range(500)))
    assert pids == {process.pid for process in sandbox.commands.list()}
    sandbox.files.write("/tmp/go", "")
    wait_for("all to end", lambda: not sandbox.commands.list(), seconds=60)
    assert sandbox.commands.run("ls /tmp/done-* | wc -l").stdout.strip() == "500"


# Rules: PROC-6, PROC-49, PROC-55
def test_what_a_terminal_is_made_of(shared: Sandbox) -> None:
    handle = shared.pty.create(PtySize(rows=24, cols=80), timeout=0)
    script = "trap 'echo win''ched' WINCH; sleep 600 & echo child-$!-; while :; do sleep 0.1; done"
    shared.files.write("/tmp/trapping", script)
    typed = "echo $- $TERM $LANG $LC_ALL; shopt login_shell; exec sh /tmp/trapping\n"
    shared.pty.send_stdin(handle.pid, typed.encode())
    output = b""
    events = iter(handle)

    def read_until(wanted: str) -> re.Match[bytes]:
        nonlocal output
        while not (found := re.search(wanted.encode(), output)):
            output += next(events)[2] or b""
        return found

    assert b"i" in read_until(r"(\w+) xterm-256color")[1]
    read_until(r"login_shell\s+on")
    child = int(read_until(r"child-(\d+)-")[1])
    shared.pty.resize(handle.pid, PtySize(rows=30, cols=100))
    read_until("winched")
    assert shared.pty.kill(handle.pid) is True
    # Killing the leader hangs up all that it ran.
    gone = f"kill -0 {child} 2>/dev/null || echo gone"
    wait_for("the child to end", lambda: shared.commands.run(gone, user="root").stdout == "gone\n")
