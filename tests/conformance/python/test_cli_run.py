"""`atoll run`: a file of code in a sandbox of its own."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest
from e2b_code_interpreter import Sandbox
from PIL import Image

from support import lifecycle, paths
from support.interpreter import TEMPLATE
from support.sdk import newest
from support.wait import equals, wait_for

pytestmark = newest

PLOT = """
import matplotlib.pyplot as plt
print("drawing")
plt.plot([1, 2, 3])
plt.show()
plt.bar([1, 2], [3, 4])
plt.show()
"two pictures"
"""


@pytest.fixture(autouse=True)
def no_sandbox_is_left(stack: object) -> Iterator[None]:
    """Whatever came of a run, its sandbox is gone."""
    before = set(lifecycle.listed())
    yield
    equals("new sandboxes", lambda: set(lifecycle.listed()) - before, set())


def atoll_run(
    directory: Path, *arguments: str, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(paths.ATOLL), "run", *arguments],
        cwd=directory,
        input=input,
        capture_output=True,
        text=True,
        timeout=120,
    )


def started(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(paths.ATOLL), "run", *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(ran: subprocess.Popen[str]) -> str:
    assert ran.stdout
    return ran.stdout.readline()


def test_pictures_are_saved_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/plot.py").write_text(PLOT)
    ran = atoll_run(tmp_path, "src/plot.py")
    assert (ran.returncode, ran.stdout) == (0, "drawing\ntwo pictures\n"), ran.stderr
    assert ran.stderr == "Saved src/plot-1.png.\nSaved src/plot-2.png.\n"
    assert sorted(os.listdir(tmp_path / "src")) == ["plot-1.png", "plot-2.png", "plot.py"]
    with Image.open(tmp_path / "src/plot-1.png") as picture:
        assert picture.format == "PNG" and picture.width > 300


def test_a_later_run_replaces_pictures_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from IPython.display import Image, SVG, display\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>'))\n"
        "display({'image/jpeg': '/9j/', 'application/pdf': 'JVBERg=='}, raw=True)\n"
    )
    (tmp_path / "a-1.svg").write_text("of an earlier run")
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a-2.pdf").symlink_to(tmp_path / "precious")
    ran = atoll_run(tmp_path, "a.py")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "a-1.svg").read_text().startswith("<svg")
    assert (tmp_path / "a-2.jpeg").read_bytes() == b"\xff\xd8\xff"
    assert (tmp_path / "a-2.pdf").read_bytes() == b"%PDF"
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_picture_that_cannot_be_saved_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("display({'image/jpeg': '/9j/'}, raw=True)\nprint('goes on')\n")
    (tmp_path / "a-1.jpeg").mkdir()
    ran = atoll_run(tmp_path, "a.py")
    assert (ran.returncode, ran.stdout) == (1, "goes on\n")
    assert "ATL-1011" in ran.stderr and "a-1.jpeg cannot be saved" in ran.stderr


def test_standard_input(tmp_path: Path) -> None:
    code = (
        "from PIL import Image\nimport sys\nprint('out')\nprint('err', file=sys.stderr)\n"
        "display(Image.new('RGB', (3, 2), 'red'))\n6 * 7"
    )
    ran = atoll_run(tmp_path, "-", input=code)
    assert (ran.returncode, ran.stdout) == (0, "out\n42\n"), ran.stderr
    assert sorted(ran.stderr.splitlines()) == ["Saved result-1.png.", "err"]
    with Image.open(io.BytesIO((tmp_path / "result-1.png").read_bytes())) as picture:
        assert picture.size == (3, 2)


@pytest.mark.parametrize(
    ("name", "code", "printed"),
    [
        ("a.py", "import sys\nprint('x')\nsys.version_info[0]", "x\n3\n"),
        ("a.js", "console.log('x'); [1, 2].length", "x\n2\n"),
        ("a.mjs", "import os from 'node:os'; os.EOL.length", "1\n"),
        ("a.ts", "const x: number = 2; console.log(x as number)", "2\n"),
        ("a.sh", "echo ${BASH_VERSION:+bash}; cd /tmp; pwd", "bash\n/tmp\n"),
    ],
)
def test_the_name_says_the_language(tmp_path: Path, name: str, code: str, printed: str) -> None:
    (tmp_path / name).write_text(code)
    ran = atoll_run(tmp_path, name)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, printed, "")


def test_the_language_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo $((6 * 7))")
    assert atoll_run(tmp_path, "--lang", "bash", "script").stdout == "42\n"
    unknown = atoll_run(tmp_path, "script")
    assert (unknown.returncode, "--lang" in unknown.stderr) == (1, True), unknown.stderr
    refused = atoll_run(tmp_path, "--lang", "cobol", "script")
    assert (refused.returncode, "cobol" in refused.stderr) == (1, True), refused.stderr


def test_variables(tmp_path: Path) -> None:
    code = "import os, subprocess\nprint(os.environ['A'])\n!echo $B"
    ran = atoll_run(tmp_path, "--env", 'A=it\'s "quoted"', "-e", "B=b=c", "-", input=code)
    assert ran.stdout.split("\n") == ['it\'s "quoted"', "b=c", ""], ran.stderr


def test_code_that_fails(tmp_path: Path) -> None:
    ran = atoll_run(tmp_path, "-", input="print('before')\n{}['absent']\n")
    assert (ran.returncode, ran.stdout) == (1, "before\n")
    assert "Traceback" in ran.stderr and ran.stderr.endswith("KeyError: 'absent'\n")
    assert "\x1b" not in ran.stderr


def test_output_comes_as_it_is_printed_and_a_reader_may_leave(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import time\nprint('begun', flush=True)\n"
        "while True:\n    print('more', flush=True)\n    time.sleep(0.1)\n"
    )
    with started(tmp_path, "a.py") as ran:
        assert line(ran) == "begun\n"
        assert ran.stdout
        ran.stdout.close()
        assert ran.wait(timeout=30) == 1


#: Writes to the clipboard of whoever looks on, in two pieces, and in red.
HOSTILE = r"""
import sys, time
for stream in (sys.stdout, sys.stderr):
    for piece in ("\x1b[31mred\x1b]52;c;", "Y3VybA==\x07\x1b[2J\x9b2J\u4e2d\rdone\n"):
        print(piece, end="", file=stream, flush=True)
        time.sleep(0.2)
display({"text/plain": "shown \x1b]0;owned\x07\x1b[1mbold"}, raw=True)
raise ValueError("\x1b]0;owned\x07\x1b[1mnot bold")
"""


def test_what_is_printed_steers_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(HOSTILE)
    ours, theirs = os.openpty()
    ran = subprocess.Popen(
        [str(paths.ATOLL), "run", "a.py"], cwd=tmp_path, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = _all(ours).decode().replace("\r\n", "\n")
    assert ran.wait(timeout=30) == 1
    assert seen.count("\x1b[31mred2J\u4e2d\rdone\n") == 2, seen
    assert "shown \x1b[1mbold\n" in seen
    assert "ValueError: ]0;ownednot bold\n" in seen
    # Colours that were left on are taken back.
    assert seen.endswith("\x1b[0m")
    assert not any(hostile in seen for hostile in ("\x1b]", "\x1b[2J", "\x9b", "\x07")), seen


def _all(terminal: int) -> bytes:
    """What a program writes to a terminal until it closes it."""
    seen = b""
    with os.fdopen(terminal, "rb", buffering=0) as stream, suppress(OSError):
        # The end of a terminal is an error.
        while piece := stream.read(4096):
            seen += piece
    return seen


def test_what_is_printed_into_files_is_as_it_was(tmp_path: Path) -> None:
    ran = atoll_run(tmp_path, "-", input=HOSTILE)
    # A return is read as an end of a line here.
    printed = "\x1b[31mred\x1b]52;c;Y3VybA==\x07\x1b[2J\x9b2J\u4e2d\ndone\n"
    assert ran.stdout == printed + "shown \x1b]0;owned\x07\x1b[1mbold\n"
    assert printed in ran.stderr
    # What is told of the error is for people in any case; the server has taken out the escapes.
    assert ran.stderr.endswith("ValueError: ]0;ownednot bold\n")


def test_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    with started(tmp_path, "a.py") as ran:
        assert line(ran) == "begun\n"
        ran.send_signal(signal.SIGINT)
        assert ran.wait(timeout=30) == 130


def test_ctrl_c_while_nobody_reads_the_output(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("while True:\n    print('x' * 10_000, flush=True)\n")
    with started(tmp_path, "a.py") as ran:
        seen = [0] * 20

        def is_full() -> bool:
            """It has stayed the same for a second."""
            seen.append(_unread(ran.stdout))
            return seen[-1] > 0 and len(set(seen[-20:])) == 1

        wait_for("a full pipe", is_full)
        ran.send_signal(signal.SIGINT)
        assert ran.wait(timeout=30) == 130


def _unread(stream: IO[str] | None) -> int:
    assert stream
    count = fcntl.ioctl(stream.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(count, "little")


def test_ctrl_c_before_there_is_a_sandbox(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import time\ntime.sleep(600)\n")
    with started(tmp_path, "a.py") as ran:
        status = Path(f"/proc/{ran.pid}/status")
        # It has asked for one, or will: from then on Ctrl-C is its own affair (SIGINT is bit 2).
        wait_for("a handler of Ctrl-C", lambda: int(_field(status, "SigCgt"), 16) & 2)
        ran.send_signal(signal.SIGINT)
        assert ran.wait(timeout=60) == 130


def _field(status: Path, name: str) -> str:
    return dict(line.split(":\t", 1) for line in status.read_text().splitlines())[name]


def test_too_long(tmp_path: Path) -> None:
    # The time runs from before there is a kernel: Bash's is there at once, wherever this runs.
    options = ("--lang", "bash", "--timeout", "15")
    ran = atoll_run(tmp_path, *options, "-", input="echo begun; sleep 600")
    assert (ran.returncode, ran.stdout) == (1, "begun\n")
    assert "ATL-3012" in ran.stderr and "15 s" in ran.stderr


def test_the_sandbox_ends(tmp_path: Path) -> None:
    before = set(lifecycle.listed())
    (tmp_path / "a.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    with started(tmp_path, "a.py") as ran:
        assert line(ran) == "begun\n"
        (mine,) = set(lifecycle.listed()) - before
        Sandbox.kill(mine)
        _, errors = ran.communicate(timeout=30)
        assert (ran.returncode, "ATL-" in errors) == (1, True), errors


def test_a_template_without_an_interpreter(tmp_path: Path) -> None:
    ran = atoll_run(tmp_path, "--template", "base", "-", input="1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "ATL-3011" in ran.stderr and TEMPLATE in ran.stderr


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    ran = atoll_run(tmp_path, "--template", "absent", "-", input="1")
    assert (ran.returncode, ran.stdout, "absent" in ran.stderr) == (1, "", True), ran.stderr


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"\xff\xfe")
    for name in ("a.py", "absent.py"):
        ran = atoll_run(tmp_path, name)
        assert (ran.returncode, name in ran.stderr) == (1, True), ran.stderr
