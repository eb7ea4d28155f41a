"""A resolver of the tests' own: names below `sbx.localhost` lead to this machine.

Programs other than browsers do not resolve such names everywhere, and no test may change the host.
So `python -m support.names COMMAND...` runs a command in a mount namespace of its own, where
/etc/resolv.conf and /etc/nsswitch.conf are others, next to a name server on loopback. The server
knows the names of `LOCAL` and passes on all other questions to the host's name servers.

What the command starts can leave that namespace again: `outside()` gives the words for it. The
stack under test runs outside, as a user's does.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import socketserver
import struct
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from support import paths

#: The domains whose names lead to loopback; the second is for a certificate that a test brings.
LOCAL = ("sbx.localhost", "atoll.test")

#: Where the server listens: an address of loopback for each test stack, on the port of DNS.
ADDRESS = f"127.0.0.{54 + paths.STACK}"

#: Process that is outside of the namespace, and whether names resolve.
_OUTSIDE = "ATOLL_TEST_OUTSIDE"

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2
_A, _AAAA = 1, 28


def available() -> bool:
    """Whether this process is in such a namespace."""
    return _OUTSIDE in os.environ


def outside() -> list[str]:
    """Put in front of a command, runs it in the mount namespace that the host's programs have."""
    return ["nsenter", f"--mount=/proc/{os.environ[_OUTSIDE]}/ns/mnt"] if available() else []


def outside_proc() -> Path:
    """Directory in /proc of a process that sees the host's mounts."""
    return Path(f"/proc/{os.environ.get(_OUTSIDE, 'self')}")


def resolve() -> bool:
    """Whether the names below each of `LOCAL` lead to loopback here."""
    try:
        found = [socket.getaddrinfo(f"x.{domain}", 443)[0][4][0] for domain in LOCAL]
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def reexec(*command: str) -> None:
    """Becomes `command` in such a namespace, unless this process is in one or may not make one."""
    if available() or os.geteuid() != 0:
        return
    tests = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    os.execv(sys.executable, [sys.executable, "-m", "support.names", sys.executable, *command])


def pytest_configure(config: pytest.Config) -> None:
    """For the conftest of a suite that needs names: pytest starts again, in such a namespace."""
    if available() or os.geteuid() != 0:
        return
    # It has redirected our output already.
    config.pluginmanager.getplugin("capturemanager").stop_global_capturing()
    reexec("-m", "pytest", *map(str, config.invocation_params.args))


class _Question:
    """A query of one question."""

    def __init__(self, query: bytes) -> None:
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
            at += 1 + length
        self.query = query
        self.text = query[12 : at + 5]
        self.name = ".".join(labels)
        self.kind = struct.unpack(">H", self.text[-4:-2])[0]

    def is_local(self) -> bool:
        return any(self.name == domain or self.name.endswith(f".{domain}") for domain in LOCAL)

    def answer(self) -> bytes:
        """Loopback, as an IPv4 address: the stack listens there and nowhere else."""
        found = self.kind == _A
        header = self.query[:2] + struct.pack(">HHHHH", 0x8580, 1, int(found), 0, 0)
        record = b"\xc0\x0c" + struct.pack(">HHIH", _A, 1, 5, 4) + socket.inet_aton("127.0.0.1")
        return header + self.text + (record if found else b"")

    def failure(self) -> bytes:
        return self.query[:2] + struct.pack(">HHHHH", 0x8582, 1, 0, 0, 0) + self.text


def _nameservers() -> list[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("nameserver ")]


class _Udp(socketserver.BaseRequestHandler):
    upstream: tuple[str, ...] = ()

    def handle(self) -> None:
        query, server = self.request
        with contextlib.suppress(OSError, IndexError, struct.error):
            question = _Question(query)
            reply = question.answer() if question.is_local() else self.forward(question)
            server.sendto(reply, self.client_address)

    def forward(self, question: _Question) -> bytes:
        for address in self.upstream:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as there:
                there.settimeout(3)
                there.connect((address, 53))
                there.send(question.query)
                return there.recv(65535)
        return question.failure()


def _bind() -> socketserver.ThreadingUDPServer:
    """The name server. Answers fit into a datagram, so it needs no TCP."""
    _Udp.upstream = tuple(_nameservers())
    server = socketserver.ThreadingUDPServer((ADDRESS, 53), _Udp)
    server.daemon_threads = True
    return server


def _enter(scratch: Path) -> None:
    """Moves this process into a mount namespace with other settings for names."""
    settings = {
        "resolv.conf": f"nameserver {ADDRESS}\n",
        # Only `files` and `dns`: a host with nss-myhostname would answer before the server does.
        "nsswitch.conf": _nsswitch(),
    }
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what)

    check(libc.unshare(_CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount --make-rslave /")
    for name, text in settings.items():
        source, target = scratch / name, Path("/etc") / name
        source.write_text(text)
        if target.exists():
            arguments = (str(source).encode(), str(target).encode())
            check(libc.mount(*arguments, None, _MS_BIND, None), f"mount --bind {target}")
    # A pool that is mounted now would stay mounted with this namespace, whoever unmounts it.
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        where = fields.split()[4]
        if source.startswith("btrfs /dev/loop") and where.endswith("/pool"):
            check(libc.umount2(where.encode(), _MNT_DETACH), f"umount {where}")


def _nsswitch() -> str:
    lines = Path("/etc/nsswitch.conf").read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if not line.startswith("hosts:")) + (
        "hosts: files dns\n"
    )


def main() -> int:
    """Runs the command given; its status is ours."""
    with tempfile.TemporaryDirectory(prefix="atoll-names-") as scratch:
        Path(scratch).chmod(0o755)
        os.environ[_OUTSIDE] = str(os.getpid())
        server = _bind()
        child = os.fork()
        if child == 0:
            try:
                _enter(Path(scratch))
                os.execvp(sys.argv[1], sys.argv[1:])
            finally:
                os._exit(127)
        # Ctrl-C goes to the command as well, and it is the command that decides what that means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
