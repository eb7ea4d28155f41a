"""Runs inside a sandbox, as root: tries one thing that must not work, and says what came of it.

`python3 probes.py NAME` prints a line of JSON: {"allowed": bool, "detail": str}. A probe is allowed
to fail in any way but one: by succeeding. It uses nothing but Python, so that it runs as it is in
any image.
"""

import ctypes
import json
import os
import platform
import resource
import socket
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)

# Numbers of the calls that the C library has no function for: x86_64, aarch64.
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone3": (435, 435),
    "finit_module": (313, 273),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kcmp": (312, 272),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "userfaultfd": (323, 282),
}
COLUMN = {"x86_64": 0, "aarch64": 1}[platform.machine()]

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET, NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x80


class Refused(Exception):
    """The kernel said no, which is what every probe hopes for."""


def call(name, *arguments):
    """A system call by number; raises Refused with the error's name."""
    return checked(libc.syscall(NUMBERS[name][COLUMN], *arguments))


def checked(result):
    if result < 0:
        raise Refused(os.strerror(ctypes.get_errno()))
    return result


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def readable(path):
    """The first bytes of a file that should have none to give."""
    with open(path, "rb") as file:
        content = file.read(64)
    if not content:
        raise Refused("empty")
    return content


# Mounts and file systems


def mount_tmpfs():
    checked(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None))


def mount_proc():
    checked(libc.mount(b"proc", b"/mnt", b"proc", 0, None))


def bind_mount():
    checked(libc.mount(b"/etc", b"/mnt", None, 0x1000, None))


def remount_root():
    checked(libc.mount(None, b"/", None, 0x20 | 0x1, None))


def unmount_proc():
    checked(libc.umount2(b"/proc", 2))


def new_mount_api():
    call("fsopen", b"tmpfs", 0)


def open_tree_clone():
    call("open_tree", -100, b"/", 1)


def pivot_root():
    call("pivot_root", b"/mnt", b"/mnt")


def open_by_handle():
    # A handle of the root directory's inode on the file system that the sandbox's root lies on.
    handle = ctypes.create_string_buffer(136)
    handle_bytes = (ctypes.c_uint * 2).from_buffer(handle)
    handle_bytes[0], handle_bytes[1] = 8, 1
    call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, os.O_RDONLY)


def swap_on():
    call("swapon", b"/etc/passwd", 0)


def quota_control():
    call("quotactl", 0x800001 << 8, b"/dev/loop0", 0, None)


# Devices


def mknod_block():
    os.mknod("/tmp/probe-block", stat.S_IFBLK | 0o600, os.makedev(8, 0))


def mknod_memory():
    os.mknod("/tmp/probe-mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))


def mknod_null():
    os.mknod("/tmp/probe-null", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def other_devices():
    """Any device node, anywhere below /dev, that opens and is not on the list."""
    known = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    found = []
    for directory, _, names in os.walk("/dev"):
        for name in names:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
            if device and name not in known and not directory.startswith("/dev/pts"):
                found.append(path)
    if not found:
        raise Refused("only the known devices are there")
    return ", ".join(found)


# Sockets


def raw_ip():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)


def raw_icmp():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


def packet():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))


def vsock():
    socket.socket(40, socket.SOCK_STREAM)


def alg():
    socket.socket(38, socket.SOCK_SEQPACKET)


def netfilter_netlink():
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)


def add_address():
    link_change("ip address add 192.0.2.99/32 dev eth0")


def set_link_down():
    link_change("ip link set eth0 down")


def add_route():
    link_change("ip route add 192.0.2.0/24 dev eth0")


def link_change(command):
    if os.system(command + " 2>/dev/null") != 0:
        raise Refused("ip says no")


# Namespaces


def unshare_user():
    checked(libc.unshare(NEWUSER))


def unshare_mount():
    checked(libc.unshare(NEWNS))


def unshare_network():
    checked(libc.unshare(NEWNET))


def unshare_pid():
    checked(libc.unshare(NEWPID))


def unshare_cgroup():
    checked(libc.unshare(NEWCGROUP))


def unshare_time():
    checked(libc.unshare(NEWTIME))


def clone3_user():
    arguments = (ctypes.c_ulonglong * 11)()
    arguments[0], arguments[4] = NEWUSER, 17
    child = call("clone3", arguments, ctypes.sizeof(arguments))
    if child == 0:
        os._exit(0)


def setns_of_init():
    checked(libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0))


def setns_of_self():
    checked(libc.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY), 0))


# Other processes, of which the first is envd


def ptrace_init():
    call("ptrace", 16, 1, None, None)


def seize_init():
    call("ptrace", 0x4206, 1, None, None)


def read_init_environment():
    return repr(readable("/proc/1/environ"))


def read_init_memory():
    descriptor = os.open("/proc/1/mem", os.O_RDONLY)
    os.pread(descriptor, 1, 0x400000)


def list_init_maps():
    return repr(readable("/proc/1/maps"))


def list_init_descriptors():
    return " ".join(os.readlink(f"/proc/1/fd/{n}") for n in os.listdir("/proc/1/fd"))


def take_init_descriptor():
    call("pidfd_getfd", os.pidfd_open(1), 0, 0)


def limit_init():
    resource.prlimit(1, resource.RLIMIT_NOFILE, (20000, 20000))


def spawner():
    """The process that forks commands for envd."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as name:
                if name.read().strip() == "envd-spawner":
                    return int(pid)
        except OSError:
            pass
    raise AssertionError("there is no spawner")


def seize_spawner():
    call("ptrace", 0x4206, spawner(), None, None)


def read_spawner_memory():
    os.open(f"/proc/{spawner()}/mem", os.O_RDONLY)


def read_spawner_environment():
    return repr(readable(f"/proc/{spawner()}/environ"))


def list_spawner_descriptors():
    directory = f"/proc/{spawner()}/fd"
    return " ".join(os.readlink(f"{directory}/{n}") for n in os.listdir(directory))


def take_spawner_descriptor():
    call("pidfd_getfd", os.pidfd_open(spawner()), 0, 0)


def limit_spawner():
    resource.prlimit(spawner(), resource.RLIMIT_NOFILE, (20000, 20000))


def process_vm_read():
    call("process_vm_readv", 1, None, 0, None, 0, 0)
    # With nothing to copy the kernel checks nothing; with something it must refuse.
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_void_p * 2)(0x400000, 8)
    call("process_vm_readv", 1, local, 1, remote, 1, 0)


def compare_processes():
    call("kcmp", 1, os.getpid(), 0, 0, 0)


# The kernel and the machine


def reboot():
    call("reboot", 0xFEE1DEAD, 672274793, 0x1234567, None)


def load_module():
    call("init_module", b"", 0, b"")


def load_module_file():
    call("finit_module", os.open("/bin/true", os.O_RDONLY), b"", 0)


def unload_module():
    call("delete_module", b"nothing", 0)


def load_kernel():
    call("kexec_load", 0, 0, None, 0)


def kernel_log():
    call("syslog", 3, ctypes.create_string_buffer(64), 64)


def kernel_log_size():
    call("syslog", 10, None, 0)


def open_kmsg():
    os.open("/dev/kmsg", os.O_RDONLY)


def bpf():
    call("bpf", 0, ctypes.create_string_buffer(128), 128)


def perf():
    attributes = ctypes.create_string_buffer(136)
    (ctypes.c_uint * 2).from_buffer(attributes)[1] = 136
    call("perf_event_open", attributes, 0, -1, -1, 0)


def io_uring():
    call("io_uring_setup", 4, ctypes.create_string_buffer(120))


def userfaultfd():
    call("userfaultfd", 1)


def keyctl():
    call("keyctl", 0, -3, 1)


def add_key():
    call("add_key", b"user", b"probe", b"x", 1, -3)


def request_key():
    call("request_key", b"user", b"probe", None, -3)


def set_clock():
    import time

    time.clock_settime(time.CLOCK_REALTIME, time.time())


def set_hostname_of_the_machine():
    write("/proc/sys/kernel/core_pattern", "|/bin/true")


def sysctl_forward():
    write("/proc/sys/net/ipv4/ip_forward", "1")


def sysctl_randomise():
    write("/proc/sys/kernel/randomize_va_space", "0")


def sysctl_swappiness():
    write("/proc/sys/vm/swappiness", "1")


def drop_caches():
    write("/proc/sys/vm/drop_caches", "1")


def sysrq():
    write("/proc/sysrq-trigger", "h")


def raise_own_priority():
    write("/proc/self/oom_score_adj", "-1000")


def io_ports():
    if not hasattr(libc, "ioperm"):
        raise Refused("this machine has none")
    checked(libc.ioperm(0x80, 1, 1))


def type_into_terminal():
    import fcntl
    import pty

    _, terminal = pty.openpty()
    fcntl.ioctl(terminal, 0x5412, b"x")


# What /proc and /sys would tell


def proc_kcore():
    return repr(readable("/proc/kcore"))


def proc_keys():
    return repr(readable("/proc/keys"))


def proc_timer_list():
    return repr(readable("/proc/timer_list"))


def proc_kmsg():
    return repr(readable("/proc/kmsg"))


def proc_kallsyms():
    with open("/proc/kallsyms") as symbols:
        for line in symbols:
            if int(line.split()[0], 16):
                return line
    raise Refused("addresses are hidden")


def proc_sched_debug():
    return repr(readable("/proc/sched_debug"))


def sys_firmware():
    return " ".join(os.listdir("/sys/firmware") or [][0])


def sys_write():
    for directory, _, names in os.walk("/sys"):
        for name in names:
            path = os.path.join(directory, name)
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError:
                continue
            return path
    raise Refused("nothing below /sys can be written")


def cgroup_write():
    for directory, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            if name in {"memory.max", "memory.limit_in_bytes", "pids.max", "cgroup.procs"}:
                write(os.path.join(directory, name), "max")
                return directory
    raise Refused("no cgroup can be written")


def unmapped_owner():
    write("/tmp/probe-owner", "")
    os.chown("/tmp/probe-owner", 70000, 70000)


PROBES = {
    name: value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", None) == __name__
    and not isinstance(value, type)
    and name not in {"call", "checked", "write", "readable", "link_change", "spawner"}
}


def main():
    try:
        detail = PROBES[sys.argv[1]]()
    except (Refused, OSError, IndexError) as error:
        print(json.dumps({"allowed": False, "detail": str(error)}))
    else:
        print(json.dumps({"allowed": True, "detail": str(detail)}))


if __name__ == "__main__":
    main()
