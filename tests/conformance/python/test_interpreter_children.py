"""Processes that Python cells start: what they print is told in order; none waits for input."""

from __future__ import annotations

import pytest
from e2b_code_interpreter import Context, Sandbox

from support.interpreter import events, out
from support.sdk import newest

pytestmark = newest


# Rules: INT-17
def test_everybodys_output_keeps_its_order(interpreter: Sandbox, context: Context) -> None:
    code = """
import os, subprocess, sys
print("1 print")
os.system("echo 2 system")
print("3 print")
subprocess.run(["echo", "4 run"])
print("5 error", file=sys.stderr)
os.write(1, b"6 write\\n")
!echo 7 shell; echo 8 error >&2
print("9 print")
"""
    told = events(interpreter, code, context_id=context.id)
    printed = [(event["type"], event["text"]) for event in told if event["type"].startswith("std")]
    lines = [(kind, line) for kind, text in printed for line in text.splitlines()]
    streams = {5: "stderr", 8: "stderr"}
    assert [line[0] for _, line in lines] == [str(number) for number in range(1, 10)]
    assert all(kind == streams.get(int(line[0]), "stdout") for kind, line in lines)


# Rules: INT-17
def test_pools_and_forks_print(interpreter: Sandbox, context: Context) -> None:
    code = """
import multiprocessing, os, sys
def work(number):
    print("child", number)
fork = multiprocessing.get_context("fork")
for number in range(3):
    process = fork.Process(target=work, args=(number,))
    process.start()
    process.join()
pid = os.fork()
if pid == 0:
    sys.exit(3)
print("status", os.waitpid(pid, 0)[1] >> 8)
"""
    said = out(interpreter.run_code(code, context=context))
    assert said == "child 0\nchild 1\nchild 2\nstatus 3\n"


# Rules: INT-17
def test_a_forked_process_that_fails_says_so(interpreter: Sandbox, context: Context) -> None:
    code = "import os\nif os.fork() == 0: 1 / 0\nprint(os.wait()[1] >> 8)"
    execution = interpreter.run_code(code, context=context)
    assert out(execution) == "1\n"
    assert "ZeroDivisionError" in "".join(execution.logs.stderr)


# Rules: INT-22, INT-29
def test_shell_lines_have_no_terminal(interpreter: Sandbox, context: Context) -> None:
    code = "!test -t 1 && echo terminal; cat; grep --color=auto root /etc/group | head -1"
    assert out(interpreter.run_code(code, context=context)) == "root:x:0:\n"


# Rules: INT-29
def test_what_a_shell_line_installs_can_be_imported(interpreter: Sandbox, context: Context) -> None:
    code = """
import sys
sys.path.insert(0, "/tmp/installed")
try:
    import brand_new
except ImportError:
    print("not yet")
!mkdir -p /tmp/installed; echo "here = True" > /tmp/installed/brand_new.py
import brand_new
print(brand_new.here)
"""
    assert out(interpreter.run_code(code, context=context)) == "not yet\nTrue\n"


# Rules: INT-22
@pytest.mark.parametrize(
    "code", ["import getpass; getpass.getpass()", "import pdb; pdb.set_trace()"]
)
def test_nobody_is_asked(interpreter: Sandbox, context: Context, code: str) -> None:
    execution = interpreter.run_code(code, context=context, timeout=30)
    assert execution.error and execution.error.name == "StdinNotImplementedError"
    assert out(interpreter.run_code("print('next')", context=context)) == "next\n"
