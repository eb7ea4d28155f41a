//! `run`: from a [`RunSpec`] to a running first process; or a dump (`dump.rs`) or a restore
//! (`restore.rs`).
//!
//! ```text
//! host's root      join cgroups, mount the root file system      mounts.rs
//! slot's root      open the listener, fork into new namespaces
//! first process    enter the root                                root.rs
//!                  seccomp, capabilities, exec envd              capabilities.rs
//! ```

use std::{
    fs::File,
    io::{self, BufRead, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    process,
};

use atoll_launcher::{Job, LISTENER_FD, RunSpec};

use crate::{
    capabilities, dump, mounts, restore, root,
    sys::{self, Failure, Result, Side, Step},
};

pub(crate) const ENVIRONMENT: [&std::ffi::CStr; 1] =
    [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];

pub(crate) fn run(cgroups: &[String]) -> Result<()> {
    join(cgroups)?;
    match read_job()? {
        None => Ok(()),
        Some(Job::Run(spec)) => start(&spec),
        Some(Job::Dump(spec)) => dump::dump(&spec),
        Some(Job::Restore(spec)) => restore::restore(&spec),
    }
}

fn start(spec: &RunSpec) -> Result<()> {
    let program = decode_hex(&spec.seccomp)?;
    let user_ns = File::open(&spec.user_ns).step("open the user namespace")?;
    let net_ns = File::open(&spec.net_ns).step("open the network namespace")?;
    let log = open_log(&spec.log)?;
    lower_protection().step("give up the daemon's protection")?;
    // envd keeps this; what it starts for users does not. Some hosts do not let anybody have it.
    sys::raise_priority();
    sys::reset_signals();
    sys::set_limits().step("set limits")?;
    let parts = mounts::Parts {
        first_uid: spec.first_uid,
        layers: &spec.layers,
        disk: &spec.disk,
        staging: &spec.staging,
        boot_id: &spec.boot_id,
    };
    mounts::build(&parts, user_ns.as_fd())?;

    join_slot(user_ns.as_fd(), net_ns.as_fd())?;
    let listener = sys::listen(spec.listen).step("listen for envd")?;

    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    match sys::clone(namespaces).step("create the sandbox's namespaces")? {
        Side::Parent { child } => writeln!(io::stdout(), "pid {child}").step("report the pid"),
        Side::Child => {
            let failure = match become_first(spec, &program, &listener, &log) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            let _ = writeln!(io::stderr(), "error {failure}");
            process::exit(1);
        }
    }
}

/// Moves this process into `cgroups`, given as their lists of processes.
fn join(cgroups: &[String]) -> Result<()> {
    for cgroup in cgroups {
        // Zero means the writer; the first process inherits its place.
        File::options()
            .write(true)
            .open(cgroup)
            .and_then(|mut file| file.write_all(b"0"))
            .step(&format!("join {cgroup}"))?;
    }
    Ok(())
}

/// Makes this process root of the slot's namespaces, and nobody on the host.
pub(crate) fn join_slot(user_ns: BorrowedFd<'_>, net_ns: BorrowedFd<'_>) -> Result<()> {
    sys::setns(net_ns, libc::CLONE_NEWNET).step("join the network namespace")?;
    sys::setns(user_ns, libc::CLONE_NEWUSER).step("join the user namespace")?;
    sys::become_id(0).step("become the sandbox's root")?;
    // A sandbox in a sandbox is refused: nested user namespaces open much kernel code to anyone.
    std::fs::write("/proc/sys/user/max_user_namespaces", "0").step("deny nested user namespaces")
}

/// The first process, from its first instruction to exec. Its reports go to standard error, which
/// is by then the launcher's standard output.
fn become_first(
    spec: &RunSpec,
    program: &[u8],
    listener: &OwnedFd,
    log: &File,
) -> Result<std::convert::Infallible> {
    // Reports must outlive the change of root and end with exec.
    let report = sys::raise(io::stdout().as_fd(), 64).step("keep the report pipe")?;
    sys::place(report.as_fd(), 2).step("report on standard error")?;
    sys::new_session();
    sys::set_hostname(&spec.hostname).step("set the host name")?;
    root::enter(spec.shm_bytes)?;

    let stdin = sys::memory_file(&spec.stdin).step("prepare standard input")?;
    let null = File::options().read(true).write(true).open("/dev/null").step("open /dev/null")?;
    let listener = sys::raise(listener.as_fd(), 64).step("keep the listener")?;
    sys::place(stdin.as_fd(), 0).step("place standard input")?;
    sys::place(log.as_fd(), 1).step("place the log on standard output")?;
    // Descriptor 3 has been the slot's user namespace, or inherited, all along: what was opened
    // since is higher, and nothing that is still needed is overwritten.
    sys::place(listener.as_fd(), LISTENER_FD).step("place the listener")?;
    sys::close_on_exec_from(LISTENER_FD.unsigned_abs() + 1).step("close descriptors")?;

    sys::install_seccomp(program).step("install the system call filter")?;
    capabilities::drop_all_but_kept()?;
    sys::place(null.as_fd(), 2).step("place standard error")?;
    let error = sys::exec(&spec.exec, &ENVIRONMENT);
    // The report pipe is still open at its raised number.
    let _ = sys::place(report.as_fd(), 2);
    Err(Failure::new(format!("start {}", spec.exec.join(" ")), error))
}

/// Opened anew: whoever writes here never waits for a daemon that does not read, while other
/// holders of the pipe may.
pub(crate) fn open_log(path: &str) -> Result<File> {
    File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).step("open the log")
}

/// The daemon may be protected from being killed when memory runs out; sandboxes are not.
pub(crate) fn lower_protection() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    if std::fs::read_to_string(FILE)?.starts_with('-') { std::fs::write(FILE, "0") } else { Ok(()) }
}

/// What to do; none when the daemon has no use for this launcher and closes its input.
fn read_job() -> Result<Option<Job>> {
    let mut text = String::new();
    io::stdin().lock().read_line(&mut text).step("read the specification")?;
    if text.is_empty() {
        return Ok(None);
    }
    let job = serde_json::from_str(&text);
    job.map(Some).map_err(|error| Failure::new("parse the specification", error))
}

fn decode_hex(text: &str) -> Result<Vec<u8>> {
    let bad = || Failure::new("decode the system call filter", "not hexadecimal");
    if text.is_empty() || !text.len().is_multiple_of(16) || !text.is_ascii() {
        return Err(bad());
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad()))
        .collect()
}
