//! The system calls this program makes, each wrapped so that a failure names its step.
//!
//! All `unsafe` of the launcher is here. The wrappers take references and owned descriptors, so
//! callers cannot hand the kernel a dangling pointer or a closed descriptor.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// A step that failed and why.
#[derive(Debug)]
pub(crate) struct Failure {
    step: String,
    cause: String,
}

impl Failure {
    pub(crate) fn new(step: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self { step: step.into(), cause: cause.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.cause.replace('\n', " "))
    }
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Names the step of an I/O result.
pub(crate) trait Step<T> {
    fn step(self, step: &str) -> Result<T>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &str) -> Result<T> {
        self.map_err(|error| Failure::new(step, error))
    }
}

fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

pub(crate) fn c(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn owned(value: libc::c_long) -> io::Result<OwnedFd> {
    let fd =
        RawFd::try_from(check(value)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel just returned this descriptor and nothing else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A namespace to join or leave for.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; this program has one thread.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

pub(crate) fn setns(ns: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is borrowed for the call.
    check(unsafe { libc::setns(ns.as_raw_fd(), kind) }.into()).map(drop)
}

/// Opens a directory for use as a base of relative paths, refusing symbolic links.
pub(crate) fn open_dir(base: Option<BorrowedFd<'_>>, path: &str) -> io::Result<OwnedFd> {
    let path = c(path)?;
    let base = base.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `path` is a C string that outlives the call.
    owned(unsafe { libc::openat(base, path.as_ptr(), flags) }.into())
}

pub(crate) fn mkdir(base: BorrowedFd<'_>, path: &str, mode: libc::mode_t) -> io::Result<()> {
    let path = c(path)?;
    // SAFETY: `path` is a C string that outlives the call.
    match check(unsafe { libc::mkdirat(base.as_raw_fd(), path.as_ptr(), mode) }.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// A character device that everybody may use.
pub(crate) fn character_device(path: &str, major: u32, minor: u32) -> io::Result<()> {
    const MODE: libc::mode_t = 0o666;
    let path = c(path)?;
    let device = libc::makedev(major, minor);
    // SAFETY: `path` is a C string that outlives the calls.
    unsafe {
        check(libc::mknod(path.as_ptr(), libc::S_IFCHR | MODE, device).into())?;
        // The umask does not matter then.
        check(libc::chmod(path.as_ptr(), MODE).into()).map(drop)
    }
}

pub(crate) fn symlink(target: &str, base: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let (target, path) = (c(target)?, c(path)?);
    // SAFETY: both are C strings that outlive the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), base.as_raw_fd(), path.as_ptr()) }.into())
        .map(drop)
}

/// Creates an empty regular file, to be mounted over.
pub(crate) fn touch(base: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let path = c(path)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `path` is a C string that outlives the call.
    owned(unsafe { libc::openat(base.as_raw_fd(), path.as_ptr(), flags, 0o644) }.into()).map(drop)
}

pub(crate) fn chdir(path: &str) -> io::Result<()> {
    std::env::set_current_dir(path)
}

/// Classic mount(2), for what the newer calls do not do better.
pub(crate) fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    options: &str,
) -> io::Result<()> {
    let (source, target, kind, options) = (c(source)?, c(target)?, c(kind)?, c(options)?);
    // SAFETY: all are C strings that outlive the call; the kernel reads options as text.
    check(
        unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                flags,
                options.as_ptr().cast(),
            )
        }
        .into(),
    )
    .map(drop)
}

/// A detached copy of the mount at `path`.
pub(crate) fn open_tree(path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let path = c(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is a C string that outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// A detached, new file system.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_SET_STRING: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    let kind = c(kind)?;
    // SAFETY: `kind` is a C string that outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    for (key, value) in options {
        let (key, value) = (c(key)?, c(value)?);
        // SAFETY: both are C strings that outlive the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        })?;
    }
    let none = ptr::null::<libc::c_void>();
    // SAFETY: this command takes no pointers.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0)
    })?;
    // SAFETY: no pointers.
    owned(unsafe {
        libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes)
    })
}

/// Sets attributes of a mount and of those below; with `user_ns`, maps ids through that namespace.
pub(crate) fn set_mount(
    mount: BorrowedFd<'_>,
    attributes: u64,
    user_ns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    // SAFETY: `mount_attr` is plain integers, for which zero is valid.
    let mut request: libc::mount_attr = unsafe { std::mem::zeroed() };
    request.attr_set = attributes;
    if let Some(ns) = user_ns {
        request.attr_set |= libc::MOUNT_ATTR_IDMAP;
        request.userns_fd = u64::from(ns.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `request` is a live struct of the size given; the path is a C string.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Attaches a detached mount at `path` below `base`. Symbolic links are not followed: the kernel
/// does so only on request.
pub(crate) fn attach(mount: BorrowedFd<'_>, base: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
    // SAFETY: both paths are C strings that outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            base.as_raw_fd(),
            path.as_ptr(),
            if path.is_empty() {
                MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
            } else {
                MOVE_MOUNT_F_EMPTY_PATH
            },
        )
    })
    .map(drop)
}

/// Lets go of what is mounted at `path`; what was made of it keeps it.
pub(crate) fn detach(path: &str) -> io::Result<()> {
    let path = c(path)?;
    // SAFETY: `path` is a C string that outlives the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) }.into())
        .map(drop)
}

/// Makes the current directory the root and detaches everything else.
pub(crate) fn pivot_here() -> io::Result<()> {
    let here = c".";
    // SAFETY: C strings that outlive the calls.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()))?;
        check(libc::umount2(here.as_ptr(), libc::MNT_DETACH).into())?;
    }
    chdir("/")
}

/// Becomes root of the present user namespace.
pub(crate) fn become_id(uid: libc::uid_t) -> io::Result<()> {
    // SAFETY: an empty group list needs no pointer; the others take none.
    unsafe {
        check(libc::setgroups(0, ptr::null()).into())?;
        check(libc::setresgid(uid, uid, uid).into())?;
        check(libc::setresuid(uid, uid, uid).into()).map(drop)
    }
}

/// Keeps permitted capabilities over the next change of ids.
pub(crate) fn keep_capabilities() -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1)
}

/// As [`keep_capabilities`], and over every later change of ids, none of which adds any either.
pub(crate) fn keep_capabilities_for_good() -> io::Result<()> {
    const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
    const KEEP_CAPS: libc::c_ulong = 1 << 4;
    prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP | KEEP_CAPS)
}

/// Lets the next program have a capability that is permitted and inheritable.
pub(crate) fn raise_ambient(capability: u32) -> io::Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
    // SAFETY: no pointers.
    check(
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(capability), 0, 0) }
            .into(),
    )
    .map(drop)
}

/// Ids that new files of an overlay's internals get; see `mounts::overlay`.
pub(crate) fn set_filesystem_ids(id: u32) {
    // SAFETY: no pointers. These calls return the previous id and never fail visibly.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
}

pub(crate) fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options used here take integers.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into()).map(drop)
}

/// The name that `ps` shows: this program is run through a descriptor, whose number it would be.
pub(crate) fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: the kernel reads at most 16 bytes of a C string.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }.into()).map(drop)
}

/// The three capability sets, as 64-bit masks.
#[derive(Clone, Copy)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

pub(crate) fn capabilities() -> io::Result<CapabilitySets> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: version 3 writes two records of three words, which `data` is.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |field: usize| u64::from(data[0][field]) | u64::from(data[1][field]) << 32;
    Ok(CapabilitySets { effective: join(0), permitted: join(1), inheritable: join(2) })
}

pub(crate) fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    // Each 64-bit mask travels as its low and its high word.
    let split = |low: bool| {
        [sets.effective, sets.permitted, sets.inheritable]
            .map(|mask| (if low { mask & u64::from(u32::MAX) } else { mask >> 32 }) as u32)
    };
    let data = [split(true), split(false)];
    // SAFETY: version 3 reads two records of three words, which `data` is.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// Installs a seccomp program given as its raw bytes.
pub(crate) fn install_seccomp(program: &[u8]) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_ulong = 1;
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|record| libc::sock_filter {
            code: u16::from_ne_bytes([record[0], record[1]]),
            jt: record[2],
            jf: record[3],
            k: u32::from_ne_bytes([record[4], record[5], record[6], record[7]]),
        })
        .collect();
    let length = libc::c_ushort::try_from(filters.len())
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: filters.as_ptr().cast_mut() };
    // SAFETY: the kernel copies `len` records during the call; `filters` lives through it.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}

/// A TCP socket that listens on every address of the present network namespace.
pub(crate) fn listen(port: u16) -> io::Result<OwnedFd> {
    const BACKLOG: libc::c_int = 1024;
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = owned(unsafe { libc::socket(libc::AF_INET, kind, 0) }.into())?;
    let yes: libc::c_int = 1;
    let size = |bytes: usize| bytes as libc::socklen_t;
    // SAFETY: `sockaddr_in` is plain integers, for which zero (any address) is valid.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as libc::sa_family_t;
    address.sin_port = port.to_be();
    // SAFETY: each pointer is to a live value of the size given.
    unsafe {
        check(
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_REUSEADDR,
                (&raw const yes).cast(),
                size(size_of::<libc::c_int>()),
            )
            .into(),
        )?;
        check(
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size(size_of::<libc::sockaddr_in>()),
            )
            .into(),
        )?;
        check(libc::listen(socket.as_raw_fd(), BACKLOG).into())?;
    }
    Ok(socket)
}

/// Anonymous memory with `content`, positioned at its start.
pub(crate) fn memory_file(content: &str) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let fd = owned(unsafe { libc::memfd_create(c"boot".as_ptr(), libc::MFD_CLOEXEC) }.into())?;
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, content.as_bytes())?;
    io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// Puts `from` at descriptor number `to`, to be inherited.
pub(crate) fn place(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: no pointers. The caller knows that nothing owns `to`.
    check(unsafe { libc::dup2(from.as_raw_fd(), to) }.into()).map(drop)
}

/// A copy of `from` at a number of at least `least`, closed by exec.
pub(crate) fn raise(from: BorrowedFd<'_>, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::fcntl(from.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) }.into())
}

/// Marks every descriptor from `first` on to be closed by exec.
pub(crate) fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: no pointers; descriptors stay open until exec.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Where [`clone`] returned.
pub(crate) enum Side {
    Parent { child: libc::pid_t },
    Child,
}

#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Forks into new namespaces. The child is a sibling of this process: its parent is the daemon.
pub(crate) fn clone(namespaces: libc::c_int) -> io::Result<Side> {
    let arguments = CloneArguments {
        // The exit signal stays zero: with CLONE_PARENT the kernel takes ours.
        flags: u64::from((namespaces | libc::CLONE_PARENT).unsigned_abs()),
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM this is fork(2): the child has its own copy of everything, and this
    // program has one thread, so no lock can be held across it.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>())
    })?;
    Ok(if pid == 0 { Side::Child } else { Side::Parent { child: pid as libc::pid_t } })
}

/// Gives signals their default handling: the daemon's ignored ones would be inherited.
pub(crate) fn reset_signals() {
    // SAFETY: SIG_DFL needs no handler; failures are for signals that cannot be changed. The mask
    // is a local.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Makes writing to a pipe that nobody reads, or past the largest size of a file, an error, for this
/// program and the next.
pub(crate) fn survive_writing() {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: SIG_IGN needs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Puts this process before all others of its control group. Best effort.
pub(crate) fn raise_priority() {
    const HIGHEST: libc::c_int = -20;
    // SAFETY: no pointers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, HIGHEST) };
}

pub(crate) fn new_session() {
    // SAFETY: no pointers; fails only for a process that leads one already.
    unsafe { libc::setsid() };
}

pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Raises the soft limit of open files to the hard one, and turns core dumps off. The limit of 1,
/// not 0, does so for handlers as well that the kernel pipes dumps to: those run on the host.
pub(crate) fn set_limits() -> io::Result<()> {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let none = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: both are live structs of the type the calls take.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files).into())?;
        files.rlim_cur = files.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files).into())?;
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none).into())?;
        libc::umask(0o022);
    }
    Ok(())
}

/// Becomes another program. Returns only on failure.
pub(crate) fn exec(arguments: &[String], environment: &[&CStr]) -> io::Error {
    let arguments: io::Result<Vec<CString>> = arguments.iter().map(|text| c(text)).collect();
    let arguments = match arguments {
        Ok(arguments) if !arguments.is_empty() => arguments,
        Ok(_) => return io::Error::from_raw_os_error(libc::EINVAL),
        Err(error) => return error,
    };
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
    argv.push(ptr::null());
    let mut envp: Vec<*const libc::c_char> = environment.iter().map(|text| text.as_ptr()).collect();
    envp.push(ptr::null());
    // SAFETY: both arrays end in null and point to C strings that live until exec replaces us.
    unsafe { libc::execve(argv[0], argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}
