//! The system calls a sandbox may not make, as a seccomp program.
//!
//! Everything that would fail for lack of a capability is refused here as well: the filter stands
//! in front of the kernel code that would check. Calls newer than this list are answered "not
//! implemented", as an older kernel would, so that a new kernel opens nothing by itself.
//!
//! The program is assembled by hand: each rule is self-contained (test, then return), so there are
//! no long jumps to get wrong, and it is tested by interpreting it.

/// Flags of clone(2) and unshare(2) that make namespaces.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32;
/// Also a namespace, but its bit means something else to clone(2).
const TIME_NAMESPACE: u32 = 0x80;

/// The newest call of Linux 6.18: `file_setattr`.
const NEWEST: u32 = 469;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const NOT_PERMITTED: u32 = libc::EPERM as u32;
const NOT_IMPLEMENTED: u32 = libc::ENOSYS as u32;
const NO_FAMILY: u32 = libc::EAFNOSUPPORT as u32;
const NO_PROTOCOL: u32 = libc::EPROTONOSUPPORT as u32;
const UNIX: u32 = libc::AF_UNIX as u32;

/// Refused whatever the arguments.
const REFUSED: &[libc::c_long] = &[
    // Mounts: nothing in a sandbox may change what it sees of the host.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_fanotify_init,
    // Namespaces of others.
    libc::SYS_setns,
    libc::SYS_kcmp,
    // The kernel and the machine.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    libc::SYS_userfaultfd,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // Where memory lies among the host's processors.
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_set_mempolicy_home_node,
    // Keyrings are not namespaced by user alone.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Answered as if the kernel did not have them: programs then use the older way.
const ABSENT: &[libc::c_long] = &[
    // Its flags are behind a pointer, which a filter cannot read.
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Memory that no limit counts as the sandbox's.
    libc::SYS_memfd_secret,
    // open_tree_attr, newer than the library's list.
    467,
];

/// Personalities that change nothing dangerous: Linux, 2.6 names, no address randomisation, query.
const PERSONALITIES: [u32; 6] = [0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];
/// Any, ICMP (ping sockets), TCP, UDP, ICMPv6, MPTCP (which Go asks for by default).
const INTERNET: &[u32] = &[0, 1, 6, 17, 58, 262];
/// Routing, socket diagnosis, audit, device events.
const NETLINK: &[u32] = &[0, 4, 9, 15];
/// Socket families, UNIX, IPv4, IPv6 and netlink, each with its protocols. Any other makes the
/// kernel load code that few have looked at.
const SOCKETS: &[(u32, &[u32])] = &[(1, &[0, 1]), (2, INTERNET), (10, INTERNET), (16, NETLINK)];
/// Typing into a terminal as its user, console control, line disciplines.
const TERMINAL_REQUESTS: [u32; 3] = [0x5412, 0x541c, 0x5423];

/// One BPF instruction, laid out as the kernel's `sock_filter`.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    operand: u32,
}

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Offset of the call's number in `seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of the architecture.
const ARCH: u32 = 4;

/// Offset of the low half of argument `index` (both architectures are little-endian).
const fn argument(index: u32) -> u32 {
    16 + index * 8
}

struct Assembler(Vec<Instruction>);

impl Assembler {
    fn push(&mut self, code: u16, if_true: u8, if_false: u8, operand: u32) {
        self.0.push(Instruction { code, if_true, if_false, operand });
    }

    fn answer(&mut self, errno: u32) {
        self.push(RETURN, 0, 0, ERRNO | errno);
    }

    fn refuse(&mut self, call: libc::c_long, errno: u32) {
        self.push(JUMP_EQUAL, 0, 1, call as u32);
        self.answer(errno);
    }

    /// For `call`: refused when `offset`'s word has any of `bits`.
    fn refuse_bits(&mut self, call: libc::c_long, offset: u32, bits: u32) {
        self.push(JUMP_EQUAL, 0, 4, call as u32);
        self.push(LOAD, 0, 0, offset);
        self.push(JUMP_ANY_BIT, 0, 1, bits);
        self.answer(NOT_PERMITTED);
        self.push(RETURN, 0, 0, ALLOW);
    }

    /// For `call`: refused when `offset`'s word is one of `values`, or is none of them.
    fn choose(
        &mut self,
        call: libc::c_long,
        offset: u32,
        values: &[u32],
        refuse: bool,
        errno: u32,
    ) {
        // Every list here is a handful of constants.
        let count = values.len() as u8;
        self.push(JUMP_EQUAL, 0, count + 3, call as u32);
        self.push(LOAD, 0, 0, offset);
        for (index, value) in values.iter().enumerate() {
            self.push(JUMP_EQUAL, count - index as u8, 0, *value);
        }
        let (none, some) = if refuse { (ALLOW, ERRNO | errno) } else { (ERRNO | errno, ALLOW) };
        self.push(RETURN, 0, 0, none);
        self.push(RETURN, 0, 0, some);
    }

    /// socket(2): only [`SOCKETS`].
    fn sockets(&mut self) {
        let length: usize = SOCKETS.iter().map(|(_, protocols)| protocols.len() + 4).sum();
        self.push(JUMP_EQUAL, 0, length as u8 + 2, libc::SYS_socket as u32);
        self.push(LOAD, 0, 0, argument(0));
        for (family, protocols) in SOCKETS {
            let count = protocols.len() as u8;
            self.push(JUMP_EQUAL, 0, count + 3, *family);
            self.push(LOAD, 0, 0, argument(2));
            for (index, protocol) in protocols.iter().enumerate() {
                self.push(JUMP_EQUAL, count - index as u8, 0, *protocol);
            }
            self.answer(NO_PROTOCOL);
            self.push(RETURN, 0, 0, ALLOW);
        }
        self.answer(NO_FAMILY);
    }
}

fn assemble() -> Vec<Instruction> {
    let mut program = Assembler(Vec::new());
    program.push(LOAD, 0, 0, ARCH);
    program.push(JUMP_EQUAL, 1, 0, ARCHITECTURE);
    program.push(RETURN, 0, 0, KILL_PROCESS);
    program.push(LOAD, 0, 0, NUMBER);
    // Newer calls, and the x32 table, whose numbers have bit 30 set.
    program.push(JUMP_GREATER, 0, 1, NEWEST);
    program.answer(NOT_IMPLEMENTED);
    for call in REFUSED {
        program.refuse(*call, NOT_PERMITTED);
    }
    for call in ABSENT {
        program.refuse(*call, NOT_IMPLEMENTED);
    }
    program.refuse_bits(libc::SYS_clone, argument(0), NAMESPACES);
    program.refuse_bits(libc::SYS_unshare, argument(0), NAMESPACES | TIME_NAMESPACE);
    program.choose(libc::SYS_personality, argument(0), &PERSONALITIES, false, NOT_PERMITTED);
    program.choose(libc::SYS_ioctl, argument(1), &TERMINAL_REQUESTS, true, NOT_PERMITTED);
    // Huge pages are the host's, and no limit of memory counts them.
    program.refuse_bits(libc::SYS_mmap, argument(3), libc::MAP_HUGETLB as u32);
    program.refuse_bits(libc::SYS_memfd_create, argument(1), libc::MFD_HUGETLB);
    program.choose(libc::SYS_socketpair, argument(0), &[UNIX], false, NO_FAMILY);
    program.sockets();
    program.push(RETURN, 0, 0, ALLOW);
    program.0
}

/// The program as `sock_filter` records in memory order.
pub fn program() -> Vec<u8> {
    assemble()
        .iter()
        .flat_map(|instruction| {
            let [c0, c1] = instruction.code.to_ne_bytes();
            let [k0, k1, k2, k3] = instruction.operand.to_ne_bytes();
            [c0, c1, instruction.if_true, instruction.if_false, k0, k1, k2, k3]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn verdict(arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let program = assemble();
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        arguments.iter().for_each(|argument| data.extend(argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let instruction = program[at];
            let jump = |condition: bool| {
                usize::from(if condition { instruction.if_true } else { instruction.if_false })
            };
            at += 1 + match instruction.code {
                LOAD => {
                    let from = instruction.operand as usize;
                    accumulator = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                    0
                }
                JUMP_EQUAL => jump(accumulator == instruction.operand),
                JUMP_GREATER => jump(accumulator > instruction.operand),
                JUMP_ANY_BIT => jump(accumulator & instruction.operand != 0),
                RETURN => return instruction.operand,
                other => panic!("unknown instruction {other:#x}"),
            };
        }
    }

    fn call(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        verdict(ARCHITECTURE, number as u32, arguments)
    }

    #[test]
    fn ordinary_calls_pass() {
        for number in [libc::SYS_read, libc::SYS_openat, libc::SYS_execve, libc::SYS_ptrace] {
            assert_eq!(call(number, [0; 6]), ALLOW, "call {number}");
        }
    }

    #[test]
    fn listed_calls_do_not() {
        for number in REFUSED {
            assert_eq!(call(*number, [0; 6]), ERRNO | NOT_PERMITTED, "call {number}");
        }
        for number in ABSENT {
            assert_eq!(call(*number, [0; 6]), ERRNO | NOT_IMPLEMENTED, "call {number}");
        }
    }

    #[test]
    fn newer_calls_and_the_x32_table_are_not_implemented() {
        for number in [NEWEST + 1, 0x4000_0000, 0x4000_0000 | 165, u32::MAX] {
            assert_eq!(verdict(ARCHITECTURE, number, [0; 6]), ERRNO | NOT_IMPLEMENTED);
        }
    }

    #[test]
    fn another_architecture_ends_the_process() {
        assert_eq!(verdict(0x4000_0003, 0, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn threads_pass_and_namespaces_do_not() {
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
        assert_eq!(call(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_unshare, [libc::CLONE_FS as u64, 0, 0, 0, 0, 0]), ALLOW);
        for bit in (0..32).map(|bit| 1u64 << bit).filter(|bit| *bit as u32 & NAMESPACES != 0) {
            for number in [libc::SYS_clone, libc::SYS_unshare] {
                assert_eq!(call(number, [thread | bit, 0, 0, 0, 0, 0]), ERRNO | NOT_PERMITTED);
            }
        }
    }

    #[test]
    fn socket_families_and_their_protocols() {
        let socket =
            |family: u64, protocol: u64| call(libc::SYS_socket, [family, 1, protocol, 0, 0, 0]);
        for family in 0..64u64 {
            let known = SOCKETS.iter().find(|(allowed, _)| u64::from(*allowed) == family);
            for protocol in 0..300u64 {
                let expected = match known {
                    None => ERRNO | NO_FAMILY,
                    Some((_, list)) if list.contains(&(protocol as u32)) => ALLOW,
                    Some(_) => ERRNO | NO_PROTOCOL,
                };
                assert_eq!(socket(family, protocol), expected, "{family} {protocol}");
            }
        }
    }

    #[test]
    fn pairs_of_sockets_are_unix_ones() {
        let pair = |family: u64| call(libc::SYS_socketpair, [family, 1, 0, 0, 0, 0]);
        assert_eq!(pair(1), ALLOW);
        for family in [0, 2, 16, 17, 30, 40, 44] {
            assert_eq!(pair(family), ERRNO | NO_FAMILY, "family {family}");
        }
    }

    #[test]
    fn huge_pages_are_the_hosts() {
        let flags = |flags: libc::c_int| [0, 4096, 3, flags as u64, 0, 0];
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        assert_eq!(call(libc::SYS_mmap, flags(private)), ALLOW);
        assert_eq!(call(libc::SYS_mmap, flags(private | libc::MAP_HUGETLB)), ERRNO | NOT_PERMITTED);
        let memfd = |flags: u32| call(libc::SYS_memfd_create, [0, flags.into(), 0, 0, 0, 0]);
        assert_eq!(memfd(libc::MFD_CLOEXEC), ALLOW);
        assert_eq!(memfd(libc::MFD_CLOEXEC | libc::MFD_HUGETLB), ERRNO | NOT_PERMITTED);
    }

    #[test]
    fn terminals_cannot_be_typed_into() {
        let ioctl = |request: u64| call(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        assert_eq!(ioctl(0x5413), ALLOW);
        for request in TERMINAL_REQUESTS {
            assert_eq!(ioctl(request.into()), ERRNO | NOT_PERMITTED);
            // The kernel looks at the low half only, and so must the filter.
            assert_eq!(ioctl(u64::from(request) | 1 << 32), ERRNO | NOT_PERMITTED);
        }
    }

    #[test]
    fn personalities() {
        let personality = |value: u64| call(libc::SYS_personality, [value, 0, 0, 0, 0, 0]);
        assert_eq!(personality(0xffff_ffff), ALLOW);
        assert_eq!(personality(0x0040_0000), ERRNO | NOT_PERMITTED);
    }
}
