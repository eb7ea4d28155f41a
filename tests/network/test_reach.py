"""What a sandbox reaches: the internet, and nothing else."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2b import CommandExitException, Sandbox

from support import guest, routing
from support.stack import PORTS, Stack
from support.topology import INTERNET, LAN, METADATA, NAMES, NODE, Topology, ip
from support.wait import wait_for

Create = Callable[..., Sandbox]

#: Tries the addresses it is given, for some seconds and all at once; prints those that it could
#: connect to.
CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def connect(target):
    host, port = target
    try:
        socket.create_connection((host, port), timeout=float(sys.argv[2])).close()
    except OSError:
        return None
    return target

with ThreadPoolExecutor(32) as pool:
    print(json.dumps([t for t in pool.map(connect, json.loads(sys.argv[1])) if t]))
"""


def reached(sandbox: Sandbox, targets: list[tuple[str, int]], seconds: int = 3) -> list[Any]:
    """Those targets that root in the sandbox can connect to within some seconds each."""
    sandbox.files.write("/tmp/connect.py", CONNECT)
    program = f"python3 /tmp/connect.py {shlex.quote(json.dumps(targets))} {seconds}"
    run = sandbox.commands.run(program, user="root", timeout=120)
    return json.loads(run.stdout)


def fetch(sandbox: Sandbox, url: str) -> str:
    return sandbox.commands.run(f"curl -s --max-time 30 {url}", timeout=60).stdout


def from_node(topology: Topology, address: str, port: int) -> bool:
    """Whether the node itself can connect: what a sandbox cannot must be there to be missed."""
    script = f"import socket; socket.create_connection(('{address}', {port}), timeout=5)"
    return topology.run("node", "python3", "-c", script).returncode == 0


@pytest.mark.parametrize("url", [f"http://{INTERNET}", "http://internet.test"])
def test_the_internet_is_there(shared: Sandbox, url: str) -> None:
    assert fetch(shared, url) == "internet"


def test_names_resolve(shared: Sandbox) -> None:
    assert shared.commands.run("getent ahostsv4 internet.test").stdout.split()[0] == INTERNET
    with pytest.raises(CommandExitException):
        shared.commands.run("getent hosts no-such-name.test")
    assert shared.commands.run("getent hosts localhost").exit_code == 0


#: A question over TCP, to the name server the sandbox is told to use.
DNS_OVER_TCP = """
import re, socket, struct
server = re.search(r"^nameserver (\\S+)", open("/etc/resolv.conf").read(), re.M)[1]
query = bytes.fromhex("12340100000100000000000008696e7465726e6574047465737400 0001 0001")
with socket.create_connection((server, 53), timeout=5) as connection:
    connection.sendall(struct.pack(">H", len(query)) + query)
    reply = connection.recv(500)
print(socket.inet_ntoa(reply[-4:]))
"""


def test_names_resolve_over_tcp(shared: Sandbox) -> None:
    shared.files.write("/tmp/dns.py", DNS_OVER_TCP)
    assert shared.commands.run("python3 /tmp/dns.py").stdout.strip() == INTERNET


def test_other_networks_are_not(shared: Sandbox, topology: Topology) -> None:
    for address in (LAN, METADATA):
        assert from_node(topology, address, 80)
    private = [
        LAN,
        METADATA,
        "10.0.0.1",
        "172.16.0.1",
        "100.64.0.1",
        "168.63.129.16",
        "192.0.0.192",
    ]
    targets = [(host, port) for host in private for port in (80, 53, 443)]
    assert reached(shared, targets) == []


def test_a_name_does_not_open_a_forbidden_address(shared: Sandbox) -> None:
    targets = [(name, 80) for name in NAMES]
    assert reached(shared, targets, seconds=10) == [["internet.test", 80]]


def node_addresses(topology: Topology) -> list[str]:
    """All IPv4 addresses of the node, those towards sandboxes too."""
    listing = json.loads(ip("-n", topology.name("node"), "-j", "-4", "address"))
    return [address["local"] for link in listing for address in link["addr_info"]]


def test_the_node_is_not(shared: Sandbox, topology: Topology) -> None:
    assert from_node(topology, NODE[0], 8099)
    gateway = shared.commands.run("ip route show default").stdout.split()[2]
    hosts = {*node_addresses(topology), gateway, "169.254.0.22"} - {"127.0.0.1"}
    ports = [80, 53, 8099, *PORTS.values()]
    # Its own loopback has envd, but none of the node's services.
    targets = [(host, port) for host in sorted(hosts) for port in ports if port != 53]
    targets += [("127.0.0.1", port) for port in ports if port != 53]
    assert reached(shared, targets) == []


def test_the_name_server_answers_only_names(shared: Sandbox) -> None:
    server = shared.commands.run("cat /etc/resolv.conf").stdout
    address = re.search(r"nameserver (\S+)", server)
    assert address, server
    targets = [(address[1], port) for port in (22, 80, 443, 8099, *PORTS.values())]
    assert reached(shared, targets) == []


def sandbox_routes(topology: Topology) -> list[str]:
    """The addresses the node has for its sandboxes."""
    routes = json.loads(ip("-n", topology.name("node"), "-j", "-4", "route"))
    known = ("default", "198.51.", "192.168.77.", "169.254.0.0/16")
    return [route["dst"].split("/")[0] for route in routes if not route["dst"].startswith(known)]


def test_other_sandboxes_are_not(create: Create, topology: Topology) -> None:
    one, two = create(), create()
    guest.serve_http(one, "0.0.0.0", 8000)
    guest.wait_until_listening(one, 8000)
    with routing.client(one.sandbox_id, 8000) as client:
        assert client.get("/").status_code == 200
    addresses = sandbox_routes(topology)
    assert addresses, "no route to any sandbox: the test does not know where to look"
    own = two.commands.run("hostname -I").stdout.split()
    targets = [(a, port) for a in addresses for port in (8000, 49983) if a not in own]
    assert reached(two, targets) == []


def test_nothing_comes_in_from_outside(create: Create, topology: Topology) -> None:
    sandbox = create()
    guest.serve_http(sandbox, "0.0.0.0", 8000)
    guest.wait_until_listening(sandbox, 8000)
    for host, node in (("internet", NODE[0]), ("lan", NODE[1])):
        ip("-n", topology.name(host), "route", "replace", "10.0.0.0/8", "via", node)
        targets = [
            (address, port) for address in sandbox_routes(topology) for port in (8000, 49983)
        ]
        answer = topology.run(host, "python3", "-c", CONNECT, json.dumps(targets), "3")
        assert json.loads(answer.stdout) == [], answer.stderr


MULTICAST = """
import socket
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
for group in ("224.0.0.251", "239.255.255.250", "255.255.255.255"):
    try:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        out.sendto(b"%s", (group, 5353))
    except OSError:
        pass
"""


def heard(topology: Topology, host: str) -> str:
    address = {"internet": INTERNET, "node": NODE[0]}[host]
    script = f"import urllib.request as u; print(u.urlopen('http://{address}/multicast').read())"
    return topology.run("node", "python3", "-c", script).stdout


def test_multicast_stays_inside(shared: Sandbox, topology: Topology) -> None:
    shared.files.write("/tmp/multicast.py", MULTICAST % "from-the-sandbox")
    shared.commands.run("python3 /tmp/multicast.py", user="root")
    # The listeners work, and what came later than the sandbox's is there: so would that be.
    topology.run("internet", "python3", "-c", MULTICAST % "from-outside")
    for host in ("node", "internet"):
        wait_for(
            f"{host} to hear anything",
            lambda host=host: "from-outside" in heard(topology, host),
        )
        assert "from-the-sandbox" not in heard(topology, host)


def test_there_is_no_ipv6(shared: Sandbox) -> None:
    addresses = shared.commands.run("cat /proc/net/if_inet6 2>/dev/null || true").stdout
    assert all(line.split()[-1] == "lo" for line in addresses.splitlines()), addresses
    assert shared.commands.run("ip -6 route show default").stdout == ""
    assert reached(shared, [("2001:db8::1", 80), ("fd00:ec2::254", 80), ("ff02::1", 80)]) == []


def test_a_forged_source_goes_nowhere(shared: Sandbox) -> None:
    script = (
        "import socket\n"
        "s = socket.socket(); s.bind(('198.51.100.77', 0)); s.settimeout(3)\n"
        f"s.connect(('{INTERNET}', 80))\n"
    )
    shared.files.write("/tmp/forge.py", script)
    with pytest.raises(CommandExitException):
        shared.commands.run("python3 /tmp/forge.py", user="root")


@pytest.fixture(scope="module")
def cut(stack: Stack) -> Iterator[Sandbox]:
    """A sandbox without internet access."""
    sandbox = Sandbox.create(allow_internet_access=False, timeout=300)
    yield sandbox
    sandbox.kill()


class TestWithoutInternet:
    """`allow_internet_access=False` cuts everything, names too; the SDK still gets in."""

    def test_nothing_is_reached(self, cut: Sandbox) -> None:
        targets = [(host, port) for host in (INTERNET, LAN, METADATA, *NODE) for port in (80, 53)]
        assert reached(cut, targets) == []

    def test_no_name_resolves(self, cut: Sandbox) -> None:
        with pytest.raises(CommandExitException):
            cut.commands.run("timeout 20 getent hosts internet.test", timeout=30)

    def test_datagrams_are_cut_too(self, cut: Sandbox) -> None:
        query = DNS_OVER_TCP.replace("create_connection((server, 53), timeout=5)", "socket(2, 2)")
        query = query.replace(
            'connection.sendall(struct.pack(">H", len(query)) + query)',
            f"connection.settimeout(3); connection.sendto(query, ('{INTERNET}', 53))",
        )
        cut.files.write("/tmp/dns.py", query)
        with pytest.raises(CommandExitException):
            cut.commands.run("python3 /tmp/dns.py")

    def test_the_sdk_gets_in(self, cut: Sandbox) -> None:
        assert cut.commands.run("echo inside").stdout == "inside\n"
        guest.serve_http(cut, "127.0.0.1", 8000)
        guest.wait_until_listening(cut, 8000)
        with routing.client(cut.sandbox_id, 8000) as client:
            assert client.get("/").status_code == 200

    def test_the_api_remembers(self, cut: Sandbox) -> None:
        info = cut.get_info()
        assert getattr(info, "allow_internet_access", False) is False

    def test_its_slot_is_open_again_for_the_next(self, create: Create) -> None:
        Sandbox.create(allow_internet_access=False, timeout=60).kill()
        for _ in range(3):
            assert fetch(create(), f"http://{INTERNET}") == "internet"
