//! What happens once, before envd serves: the inherited socket, the configuration on standard
//! input, and making the process hard to look into.

use std::{
    fs,
    io::{self, Read},
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
};

use atoll_wire::guest::BootConfig;
use rustix::{
    fs::{FileType, Mode},
    process::{
        DumpableBehavior, Gid, Resource, Rlimit, getegid, geteuid, getgid, getrlimit,
        set_dumpable_behavior, setrlimit,
    },
    thread::set_thread_res_gid,
};

/// The descriptor on which the launcher passes envd's listening socket.
const LISTENER: i32 = 3;

/// No configuration is larger; a stream without end must not fill the memory.
const MAX_CONFIG: u64 = 64 << 10;

/// Envd's saved group id: nobody's, and not the one it runs with.
const SAVED_GID: u32 = 65_534;

/// Takes the listening socket that the launcher passed, if there is one.
#[allow(unsafe_code)]
pub(crate) fn inherited_listener() -> Option<TcpListener> {
    // SAFETY: borrowed for one call, which fails cleanly if the descriptor is not open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(LISTENER) };
    if !matches!(rustix::net::sockopt::socket_acceptconn(descriptor), Ok(true)) {
        return None;
    }
    // SAFETY: it is open, and nothing in this process has opened or taken a descriptor yet.
    Some(TcpListener::from(unsafe { OwnedFd::from_raw_fd(LISTENER) }))
}

/// Binds envd's port on every address.
pub(crate) fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {port}: {error}")))
}

/// Keeps secrets from the sandbox's other processes: no core, no tracing without privilege, no
/// descriptor that survives exec. Files are created 0644 and directories 0755.
pub(crate) fn harden() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    keep_limits();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    close_on_exec()
}

/// Keeps the sandbox's root from setting envd's limits, that of open files say: the kernel lets a
/// process do so whose ids are the other's real, effective and saved ones, and nobody has ids that
/// are the same as two different ones. Best effort; to be called while there is one thread.
fn keep_limits() {
    if geteuid().is_root() {
        let _ = set_thread_res_gid(getgid(), getegid(), Gid::from_raw(SAVED_GID));
    }
}

/// Marks every descriptor from 3 up.
#[allow(unsafe_code)]
fn close_on_exec() -> io::Result<()> {
    const FROM: libc::c_uint = 3;
    // SAFETY: changes flags only; no descriptor is closed now.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, FROM, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads the configuration from standard input, when that is something that ends.
///
/// Nothing there means defaults; anything else must be right, for a secret that is not understood
/// would leave the control routes open.
pub(crate) fn read_config() -> io::Result<BootConfig> {
    let stat = rustix::fs::fstat(io::stdin().as_fd())?;
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::RegularFile) {
        return Ok(BootConfig::default());
    }
    let mut text = Vec::new();
    io::stdin().lock().take(MAX_CONFIG).read_to_end(&mut text)?;
    if text.trim_ascii().is_empty() {
        return Ok(BootConfig::default());
    }
    serde_json::from_slice(&text).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("configuration on stdin: {error}"))
    })
}

/// Lets envd hold many pipes; returns the limit as it was, for commands.
pub(crate) fn raise_open_files() -> Option<Rlimit> {
    let given = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: given.maximum, maximum: given.maximum };
    setrlimit(Resource::Nofile, raised).is_ok().then_some(given)
}

/// Takes the pipe for envd's log, which the launcher passes to process 1 as standard output, and
/// which nothing that envd starts may have.
///
/// Writing to it never blocks. It fails while the node does not read (`EAGAIN`) and when nobody
/// holds the other end (`EPIPE`, without a signal): a record is dropped then.
pub(crate) fn log_pipe() -> Option<OwnedFd> {
    let stat = rustix::fs::fstat(io::stdout().as_fd()).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return None;
    }
    // Descriptor 1 itself is replaced by `detach_stdio`.
    io::stdout().as_fd().try_clone_to_owned().ok()
}

/// Lets go of the launcher's streams. Best effort: a sandbox may have no `/dev/null`.
pub(crate) fn detach_stdio() {
    let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}
