"""What cells do to their kernel, and what is done to it: the next cell runs."""

from __future__ import annotations

import pytest
from e2b_code_interpreter import Context, Execution, Sandbox

from support import routing
from support.interpreter import err, http, out, remove, still_works, value
from support.sdk import newest
from support.wait import wait_for

pytestmark = newest

#: Cells that end their kernel at once.
DEADLY = {
    "python, killed": ("python", "import os; os.kill(os.getpid(), 9)"),
    "python, aborted": ("python", "import os; os.abort()"),
    "python, ended": ("python", "import os; print('last', flush=True); os._exit(3)"),
    "python, in a thread": (
        "python",
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
        "time.sleep(300)",
    ),
    "python, a wild pointer": ("python", "import ctypes; ctypes.string_at(0)"),
    "javascript, killed": ("javascript", "process.kill(process.pid, 'SIGKILL'); for (;;) {}"),
    "javascript, aborted": ("javascript", "process.abort()"),
    "javascript, ended": ("javascript", "process.reallyExit(3)"),
    "bash, killed": ("bash", "kill -9 $$"),
}

#: Cells that a user ends, as scripts do. Whether this costs the kernel is the language's affair.
LEAVING = {
    "python": ["exit()", "quit()", "import sys; sys.exit(3)", "raise SystemExit"],
    "javascript": ["process.exit()", "process.exit(3)"],
    "bash": ["exit", "exit 3", "exec true"],
}


def restarted(execution: Execution) -> str:
    """Asserts that a cell ended with its kernel; why, as the user is told."""
    assert execution.error is not None, execution
    assert execution.error.name == "ContextRestarting"
    assert execution.error.value.startswith("Context was restarted")
    assert isinstance(execution.error.traceback, str)
    return execution.error.value


# Rules: INT-30
@pytest.mark.parametrize("name", DEADLY)
def test_a_kernel_that_dies_within_a_cell(interpreter: Sandbox, name: str) -> None:
    language, code = DEADLY[name]
    made = interpreter.create_code_context(language=language, cwd="/tmp")
    assert interpreter.run_code("", context=made).error is None
    restarted(interpreter.run_code(code, context=made, timeout=60))
    still_works(interpreter, context=made)
    # It is a new kernel: it counts from the beginning, in the directory of the context.
    where = {"python": "%pwd", "javascript": "process.cwd()", "bash": "pwd"}[language]
    execution = interpreter.run_code(where, context=made)
    assert (execution.text or out(execution)).strip() == "/tmp"
    assert execution.execution_count == 2
    remove(interpreter, made)


# Rules: INT-30
@pytest.mark.parametrize("language", LEAVING)
def test_a_cell_that_leaves(interpreter: Sandbox, language: str) -> None:
    made = interpreter.create_code_context(language=language)
    for code in LEAVING[language]:
        interpreter.run_code(code, context=made, timeout=60)
        still_works(interpreter, context=made)
    # Again and again, without a pause: the next cell never meets a kernel that goes.
    for _ in range(3):
        interpreter.run_code(LEAVING[language][0], context=made, timeout=60)
        still_works(interpreter, context=made)
    remove(interpreter, made)


# Rules: INT-20, INT-30
@pytest.mark.parametrize(
    ("code", "status"),
    [("exit", None), ("exit 3", "3"), ("set -euo pipefail; false | true; echo never", "1")],
)
def test_a_cell_that_ends_bash(interpreter: Sandbox, code: str, status: str | None) -> None:
    """It ends as a script would, and costs the context its variables."""
    made = interpreter.create_code_context(language="bash")
    assert interpreter.run_code("kept=42", context=made).error is None
    execution = interpreter.run_code(f"echo before; {code}", context=made, timeout=60)
    assert (execution.logs.stdout, execution.logs.stderr) == (["before\n"], [])
    if status is None:
        assert execution.error is None
    else:
        assert execution.error is not None
        assert (execution.error.name, execution.error.value) == ("ExitCode", status)
        assert "the cell ended the shell" in execution.error.traceback
    after = interpreter.run_code("echo ${kept-gone}", context=made, timeout=60)
    assert out(after) == "gone\n"
    assert err(after).startswith("Context was restarted")
    remove(interpreter, made)


# Rules: INT-30
def test_what_was_printed_before_is_told(interpreter: Sandbox, context: Context) -> None:
    code = "import os\nfor n in range(1000): print(n, flush=True)\nos.kill(os.getpid(), 9)"
    execution = interpreter.run_code(code, context=context, timeout=60)
    restarted(execution)
    printed = "".join(execution.logs.stdout)
    assert "".join(f"{n}\n" for n in range(1000)).startswith(printed)
    execution = interpreter.run_code("echo before; kill -9 $$", language="bash", timeout=60)
    restarted(execution)
    assert execution.logs.stdout == ["before\n"]


# Rules: INT-30
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "kept = []\nwhile True: kept.append(b'x' * (64 << 20))"),
        ("bash", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done"),
        ("javascript", "const kept = []; for (;;) kept.push(Buffer.alloc(64 << 20, 1))"),
        ("javascript", "const kept = []; for (;;) kept.push(new Array(1e6).fill({}))"),
    ],
)
def test_a_kernel_that_fills_the_memory(own_interpreter: Sandbox, language: str, code: str) -> None:
    """Only it pays for that: other contexts keep what they have."""
    sandbox = own_interpreter
    other = sandbox.create_code_context(language="bash")
    assert sandbox.run_code("kept=42", context=other).error is None
    execution = sandbox.run_code(code, language=language, timeout=200)
    assert execution.error is not None
    if language == "bash":
        # Where it is its own limit that ends it, that is an error of bash's.
        assert execution.error.name in {"ContextRestarting", "ExitCode"}
    else:
        restarted(execution)
    still_works(sandbox)
    still_works(sandbox, language="javascript")
    assert out(sandbox.run_code("echo $kept", context=other)) == "42\n"
    assert sandbox.commands.run("echo well").stdout == "well\n"


# Rules: INT-30
@pytest.mark.parametrize(
    ("language", "pid"),
    [
        ("python", "import os; print(os.getpid())"),
        ("javascript", "console.log(process.pid)"),
        ("bash", "echo $$"),
    ],
)
def test_a_kernel_that_is_killed_between_cells(
    interpreter: Sandbox, language: str, pid: str
) -> None:
    made = interpreter.create_code_context(language=language)
    for _ in range(3):
        found = out(interpreter.run_code(pid, context=made)).strip()
        interpreter.commands.run(f"kill -9 {found}", user="root")
        # Not a moment later: the server may not know yet.
        still_works(interpreter, context=made)
    remove(interpreter, made)


# Rules: INT-30, INT-6
def test_the_default_kernels_are_killed_before_the_first_cell(own_interpreter: Sandbox) -> None:
    own_interpreter.commands.run("pkill -9 -f '[i]pykernel'; pkill -9 node; exit 0", user="root")
    still_works(own_interpreter)
    still_works(own_interpreter, language="javascript")


# Rules: INT-31
def test_the_server_itself_comes_back(own_interpreter: Sandbox) -> None:
    sandbox = own_interpreter
    sandbox.run_code("x = 1")
    for _ in range(2):
        # The newest of its processes is the server; the oldest looks after it.
        found = sandbox.commands.run("pgrep -n -x code-interprete").stdout.strip()
        sandbox.commands.run(f"kill -9 {found}", user="root")

        def is_back(was: str = found) -> bool:
            now = sandbox.commands.run("pgrep -n -x code-interprete").stdout.strip()
            with http(sandbox) as client:
                return now != was and client.get("/health").status_code == 200

        wait_for("the server", is_back, seconds=30)
        still_works(sandbox)
        still_works(sandbox, language="javascript")
    # Nothing of the kernels of before is left.
    pid = value(sandbox.run_code("import os; os.getpid()"))
    kernels = sandbox.commands.run("pgrep -f '[i]pykernel'").stdout.split()
    assert pid in kernels and len(kernels) <= 2


# Rules: INT-30
@pytest.mark.parametrize(
    "code",
    [
        "import os; os.close(1); os.close(2)",
        "import os; os.close(0); os.close(1)",
        "import os; os.closerange(0, 3)",
    ],
)
def test_a_cell_that_closes_descriptors(interpreter: Sandbox, context: Context, code: str) -> None:
    interpreter.run_code(code, context=context, timeout=60)
    still_works(interpreter, context=context)
    assert out(interpreter.run_code("print('heard')", context=context)) == "heard\n"


# Rules: INT-30
@pytest.mark.parametrize("language", ["python", "javascript", "bash"])
def test_a_cell_that_closes_its_output(interpreter: Sandbox, language: str) -> None:
    """Or all that it has."""
    close = {
        "python": ["import sys; sys.stdout.close()", "import os; os.closerange(3, 200)"],
        "javascript": [
            "process.stdout.end(); undefined",
            "for (let n = 0; n < 200; n++) try { require('fs').closeSync(n) } catch {}",
        ],
        "bash": ["exec >&-", "exec 2>&- <&-", 'for n in $(seq 0 200); do eval "exec $n>&-"; done'],
    }
    made = interpreter.create_code_context(language=language)
    for code in close[language]:
        interpreter.run_code(code, context=made, timeout=60)
        said = {"python": "print(7)", "javascript": "console.log(7)", "bash": "echo 7"}[language]
        # It may have ended its kernel with that, but no more than one cell learns of it.
        interpreter.run_code(said, context=made, timeout=60)
        assert out(interpreter.run_code(said, context=made, timeout=60)) == "7\n"
    remove(interpreter, made)


# Rules: INT-30
@pytest.mark.parametrize(
    "code",
    [
        "import os\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)[0] == pid",
        # The child goes on with what its parent does.
        "import os\npid = os.fork()\nTrue",
        "import os\npid = os.fork()\nprint('both', flush=True)\nif pid: os.waitpid(pid, 0)\nTrue",
        "import multiprocessing as m\ncontext = m.get_context('fork')\n"
        "with context.Pool(2) as pool: got = pool.map(abs, [-1, -2])\ngot == [1, 2]",
        "import os, sys\npid = os.fork()\nif pid == 0: sys.exit(0)\nTrue",
    ],
)
def test_a_cell_that_forks(interpreter: Sandbox, context: Context, code: str) -> None:
    assert value(interpreter.run_code(code, context=context, timeout=60)) == "True"
    for n in range(3):
        execution = interpreter.run_code(f"print({n}); {n} + 1", context=context, timeout=60)
        assert (out(execution), execution.text) == (f"{n}\n", f"{n + 1}")


# Rules: INT-32
def test_threads_go_on_between_cells(interpreter: Sandbox, context: Context) -> None:
    code = """
import threading
go, done = threading.Event(), threading.Event()
def late():
    go.wait()
    for n in range(1000):
        print("late", n)
    done.set()
threading.Thread(target=late, daemon=True).start()
"""
    assert interpreter.run_code(code, context=context).error is None
    execution = interpreter.run_code("go.set(); done.wait(30)", context=context)
    assert value(execution) == "True"
    execution = interpreter.run_code("print('now'); 7", context=context)
    assert (execution.text, execution.error) == ("7", None)
    assert "now\n" in "".join(execution.logs.stdout)


# Rules: INT-32
@pytest.mark.parametrize(
    ("language", "port", "code"),
    [
        (
            "python",
            8101,
            "import subprocess, sys\n"
            "server = subprocess.Popen([sys.executable, '-m', 'http.server', '8101'], cwd='/etc')",
        ),
        (
            "javascript",
            8102,
            "const host = require('os').hostname() + '\\n'; require('http')"
            ".createServer((_, answer) => answer.end(host)).listen(8102, '127.0.0.1'); undefined",
        ),
        ("bash", 8103, "cd /etc; python3 -m http.server 8103 > /dev/null 2>&1 &"),
    ],
)
def test_a_server_that_a_cell_leaves(
    interpreter: Sandbox, language: str, port: int, code: str
) -> None:
    made = interpreter.create_code_context(language=language)
    assert interpreter.run_code(code, context=made, timeout=60).error is None
    hostname = interpreter.commands.run("hostname").stdout

    def served() -> bool:
        with routing.client(interpreter.sandbox_id, port) as client:
            answer = client.get("/hostname")
            return answer.status_code == 200 and answer.text == hostname

    wait_for("the server", served, seconds=30)
    still_works(interpreter, context=made)
    assert served()
    remove(interpreter, made)


# Rules: INT-32
def test_output_of_what_a_cell_leaves_running(interpreter: Sandbox) -> None:
    """A cell is over when its own commands are, whoever still has its output open."""
    made = interpreter.create_code_context(language="bash")
    execution = interpreter.run_code("sleep 300 & echo started", context=made, timeout=30)
    assert out(execution) == "started\n"
    still_works(interpreter, context=made)
    code = "import subprocess; left = subprocess.Popen(['sleep', '300']); print('started')"
    assert out(interpreter.run_code(code, timeout=30)) == "started\n"
    still_works(interpreter)
    remove(interpreter, made)
