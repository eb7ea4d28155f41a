"""A small world of network namespaces, so that nothing a test sends can leave the machine.

```text
             node  198.51.100.2  -- link --  internet   198.51.100.10  (HTTP, DNS)
  (the stack runs  192.168.77.2  -- link --  lan        192.168.77.10  (HTTP)
        in here)   169.254.169.1 -- link --  metadata   169.254.169.254 (HTTP)
```

The node's only way out is the first link. Each HTTP server answers with its namespace's name. The
namespaces have this process's id in their names and are removed at the end.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.wait import wait_for

INTERNET = "198.51.100.10"
LAN = "192.168.77.10"
METADATA = "169.254.169.254"
#: What the names below `.test` resolve to; the last is a name for a forbidden address.
NAMES = {"internet.test": INTERNET, "lan.test": LAN, "metadata.test": METADATA}

#: The node's own addresses, apart from those on links to sandboxes.
NODE = ["198.51.100.2", "192.168.77.2", "169.254.169.1"]

_CLONE_NEWNET = 0x40000000
_SERVERS = Path(__file__).with_name("servers.py")


def ip(*arguments: str) -> str:
    """Runs ip(8)."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Topology:
    """The namespaces and what runs in them."""

    def __init__(self) -> None:
        self._prefix = f"atst{os.getpid()}"
        self._scratch = tempfile.TemporaryDirectory(prefix="atoll-topology-")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._made: list[str] = []

    def name(self, host: str) -> str:
        """Name of a host's namespace."""
        return f"{self._prefix}-{host}"

    @property
    def wrap(self) -> list[str]:
        """Put in front of a command, runs it on the node, with the test's name server.

        `ip netns exec` would mount a new /sys, without the cgroups.
        """
        resolv = Path(self._scratch.name) / "resolv.conf"
        resolv.write_text(f"nameserver {INTERNET}\n")
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return [
            *("nsenter", f"--net=/run/netns/{self.name('node')}"),
            *("unshare", "--mount", "--propagation", "slave"),
            *("sh", "-c", script, str(resolv)),
        ]

    def build(self) -> None:
        """Makes the namespaces, links and servers."""
        self._namespace("node")
        self._host("internet", f"{INTERNET}/24", f"{NODE[0]}/24")
        self._host("lan", f"{LAN}/24", f"{NODE[1]}/24")
        self._host("metadata", f"{METADATA}/16", f"{NODE[2]}/16")
        ip("-n", self.name("node"), "route", "add", "default", "via", INTERNET)
        ip("-n", self.name("internet"), "route", "add", "224.0.0.0/4", "dev", "eth0")
        for host in ("internet", "lan", "metadata", "node"):
            self._serve(host)

    def _namespace(self, host: str) -> None:
        ip("netns", "add", self.name(host))
        self._made.append(self.name(host))
        ip("-n", self.name(host), "link", "set", "lo", "up")

    def _host(self, host: str, address: str, node_address: str) -> None:
        self._namespace(host)
        node_link = f"to-{host}"[:15]
        ip(
            *("-n", self.name("node"), "link", "add", node_link, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.name(host)),
        )
        for namespace, link, own in (
            (self.name("node"), node_link, node_address),
            (self.name(host), "eth0", address),
        ):
            ip("-n", namespace, "address", "add", own, "dev", link)
            ip("-n", namespace, "link", "set", link, "up")

    def _serve(self, host: str) -> None:
        names = [f"{name}={address}" for name, address in NAMES.items()]
        with (Path(self._scratch.name) / f"{host}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self.name(host)}"),
                    *(sys.executable, str(_SERVERS), host, *names),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._servers.append(process)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n", f"the servers of {host} did not start"

    def run(self, host: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command on one of the hosts."""
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name(host)}", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @contextmanager
    def entered(self, host: str) -> Iterator[None]:
        """Moves this thread, and those it starts, to a host."""
        libc = ctypes.CDLL(None, use_errno=True)
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name(host)}", os.O_RDONLY)
        try:
            _set_namespace(libc, there)
            yield
        finally:
            _set_namespace(libc, back)
            os.close(there)
            os.close(back)

    def remove(self) -> None:
        """Takes everything away again."""
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.wait(10)
        for name in self._made:
            wait_for(f"{name} to be removable", lambda name=name: _delete_namespace(name))
        self._scratch.cleanup()


def _delete_namespace(name: str) -> bool:
    return subprocess.run(["ip", "netns", "delete", name], check=False).returncode == 0


def _set_namespace(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
