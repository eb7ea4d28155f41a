"""What an Atoll instance has on the host, counted from outside of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from e2b import Sandbox

from support.names import outside_proc
from support.wait import wait_for

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


@dataclass(frozen=True)
class Counts:
    """Objects of one instance. Equal counts before and after mean that nothing was left."""

    processes: int
    mounts: int
    namespaces: int
    cgroups: int
    links: int
    rules: int
    descriptors: int
    files: int


def count(instance: str, pid: int, data_dir: Path) -> Counts:
    """Counts what the instance whose daemon is `pid` has now."""
    processes = instance_processes(instance, pid)
    mounts = _lines(Path(f"/proc/{pid}/mountinfo"))
    return Counts(
        processes=len(processes),
        mounts=len(mounts),
        namespaces=len(_namespaces(processes, pid, mounts)),
        cgroups=len(instance_cgroups(instance)),
        links=len(instance_links(instance, pid)),
        rules=_rules(instance, pid),
        descriptors=_descriptors(pid),
        files=_files(Path(f"/proc/{pid}/root{data_dir}")),
    )


def left_behind(instance: str, data_dir: Path) -> dict[str, list[str]]:
    """What is still there of an instance that does not run; nothing should be."""
    # Other stacks have directories of which the names go on where this one's ends.
    ours = re.compile(re.escape(str(data_dir)) + r"(?![\w-])")
    mounts = [line for line in _lines(outside_proc() / "mountinfo") if ours.search(line)]
    found = {
        "processes": [str(process) for process in instance_processes(instance, None)],
        "mounts": mounts,
        "cgroups": instance_cgroups(instance),
        "links": instance_links(instance, os.getpid()),
        "tables": _tables(instance, os.getpid()),
    }
    return {kind: things for kind, things in found.items() if things}


def instance_processes(instance: str, pid: int | None) -> list[int]:
    """The daemon's descendants, and whatever else is in a cgroup of the instance."""
    parents: dict[int, int] = {}
    members: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text()
            groups = (entry / "cgroup").read_text()
        except OSError:
            continue
        number = int(entry.name)
        state, parent = stat.rpartition(")")[2].split()[:2]
        parents[number] = int(parent)
        # The dead of a daemon that crashed are init's to bury.
        if f"atoll-{instance}" in groups and state != "Z":
            members.add(number)
    children = {pid} if pid else set()
    while more := {p for p, parent in parents.items() if parent in children} - children:
        children |= more
    return sorted(members | children)


def envd_of(sandbox: Sandbox) -> int:
    """The host's process id of a sandbox's first process."""
    handle = sandbox.commands.run("exec sleep 600", background=True, timeout=0)

    def parent() -> int | None:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
                environment = (status.parent / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            inside = fields["NSpid"].split()[-1] == str(handle.pid)
            if inside and f"E2B_SANDBOX_ID={sandbox.sandbox_id}".encode() in environment:
                return int(fields["PPid"])
        return None

    try:
        # While it becomes `sleep`, it has no environment.
        return wait_for(f"a process of {sandbox.sandbox_id}", parent)
    finally:
        handle.kill()


def open_files(pid: int) -> list[str]:
    """What a process has open, as it sees the names."""
    return _descriptor_links(pid)


def first_process(sandbox_id: str) -> int:
    """The host's id of the process that is 1 in a running sandbox: its envd."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "status").read_text()
            identity = (entry / "root/run/e2b/.E2B_SANDBOX_ID").read_text()
        except OSError:
            continue
        pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
        if identity == sandbox_id and pids[-1] == "1":
            return int(entry.name)
    raise AssertionError(f"no process of {sandbox_id} on this machine")


def instance_cgroups(instance: str) -> list[str]:
    """Directories of the instance in every hierarchy."""
    return [
        directory
        for directory, _, _ in os.walk("/sys/fs/cgroup")
        if f"atoll-{instance}" in directory
    ]


def memory_of(instance: str) -> int:
    """Bytes of memory that an instance's sandboxes hold. What the kernel keeps at hand of files,
    such as a checkpoint's, is not of it: it makes room for whoever needs it."""
    for directory in instance_cgroups(instance):
        file = Path(directory) / "memory.stat"
        if Path(directory).name == f"atoll-{instance}" and file.exists():
            lines = dict(line.split() for line in _lines(file))
            # Of version 1 and of version 2 of control groups, with those below.
            return int(lines.get("total_rss") or lines["anon"])
    raise AssertionError(f"no control group of {instance} counts memory")


def oom_kills(instance: str) -> int:
    """How often the kernel has ended something of the instance for want of memory."""
    directories = [Path(directory) for directory in instance_cgroups(instance)]
    files = [
        directory / name
        for directory in directories
        for name in ("memory.oom_control", "memory.events")
    ]
    lines = [line.split() for file in files if file.exists() for line in _lines(file)]
    return sum(int(count) for name, count in lines if name == "oom_kill")


def instance_links(instance: str, pid: int) -> list[str]:
    """Network links of the instance, in the daemon's network namespace."""
    links = json.loads(_in_net_of(pid, "ip", "-j", "link"))
    return [link["ifname"] for link in links if instance in link["ifname"]]


def _ruleset(pid: int) -> list[dict[str, dict[str, object]]]:
    return json.loads(_in_net_of(pid, "nft", "-j", "list", "ruleset"))["nftables"]


def _tables(instance: str, pid: int) -> list[str]:
    tables = [item["table"] for item in _ruleset(pid) if "table" in item]
    return [str(table["name"]) for table in tables if instance in str(table["name"])]


def _rules(instance: str, pid: int) -> int:
    """Rules, chains, sets and their elements."""
    total = 0
    for item in _ruleset(pid):
        for kind, body in item.items():
            if kind != "metainfo" and instance in json.dumps(body):
                elements = body.get("elem", [])
                total += 1 + (len(elements) if isinstance(elements, list) else 0)
    return total


def _namespaces(processes: list[int], pid: int, mounts: list[str]) -> set[str]:
    """Those of its processes, and those it holds by a descriptor or a mount."""
    found: set[str] = set()
    for process in processes:
        for kind in _NAMESPACES:
            found |= _link(f"/proc/{process}/ns/{kind}")
    for link in _descriptor_links(pid):
        if link.startswith(tuple(f"{kind}:[" for kind in _NAMESPACES)):
            found.add(link)
    found |= {line.split()[3] for line in mounts if " - nsfs " in line}
    return found


def _descriptors(pid: int) -> int:
    """Open descriptors, but for sockets, which come and go with clients, and the database's."""
    return sum("socket:" not in link and ".db" not in link for link in _descriptor_links(pid))


def _descriptor_links(pid: int) -> list[str]:
    links: list[str] = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        links += _link(f"/proc/{pid}/fd/{name}")
    return links


def _files(data_dir: Path) -> int:
    """Everything below the data directory but the database, whose rows may grow."""
    total = 0
    for _, directories, files in os.walk(data_dir):
        total += len(directories)
        total += sum(1 for name in files if ".db" not in name and ".sqlite" not in name)
    return total


def _link(path: str) -> set[str]:
    try:
        return {os.readlink(path)}
    except OSError:
        return set()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _in_net_of(pid: int, *command: str) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", *command],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
