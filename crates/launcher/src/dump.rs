//! `dump`: from a [`DumpSpec`] to CRIU, which writes the processes' images; and the hook through
//! which CRIU holds them until the caller has copied their disk.
//!
//! A dump needs more than a restore: suspending a system call filter is for the host's root. So CRIU
//! runs here with four of its capabilities; as the id that owns the sandbox's user namespace, which
//! has all of them inside, and as nobody else's. The processes are stopped all along, and can neither
//! see CRIU nor signal it.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::process::parent_id},
};

use atoll_launcher::checkpoint::{DumpSpec, GO, HELD, HOOK, IMAGES};

use crate::{
    mounts,
    run::{self, ENVIRONMENT},
    sys::{self, CapabilitySets, Failure, Result, Step},
};

/// Set by CRIU for its action scripts: the moment they are run in.
const MOMENT: &str = "CRTOOLS_SCRIPT_ACTION";
/// The images are complete, and the processes still stopped.
const COMPLETE: &str = "post-dump";

/// What CRIU cannot do without, found by leaving out one at a time. Numbers from the kernel's
/// `linux/capability.h`.
const KEPT: [u32; 4] = [
    1,  // DAC_OVERRIDE: read the sandbox's files
    6,  // SETGID: be one of its users for them
    18, // SYS_CHROOT: enter its mount namespace
    21, // SYS_ADMIN: suspend its system call filter
];

/// No specification takes more bytes.
const LONGEST_SPEC: u64 = 1 << 20;

pub(crate) fn dump(staging: &str) -> Result<()> {
    let Some(spec) = read_line()? else { return Ok(()) };
    let spec: DumpSpec = run::parse(&spec)?;
    let user_ns = File::open(&spec.user_ns).step("open the user namespace")?;
    run::lower_protection().step("give up the daemon's protection")?;
    sys::reset_signals();
    // CRIU must live until it has taken its code out of the processes, even if the daemon does not.
    sys::ignore_broken_pipes();
    sys::set_limits().step("set limits")?;
    // Before the mount namespace is another one than that of the file.
    let this = sys::open_tree("/proc/self/exe", false).step("take this program")?;
    let here = mounts::stage(staging)?;
    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let silent = quiet | libc::MOUNT_ATTR_NOEXEC;
    mounts::attach_mapped(here.as_fd(), &spec.images, IMAGES, silent, user_ns.as_fd())?;
    sys::set_mount(this.as_fd(), quiet | libc::MOUNT_ATTR_RDONLY, None).step("protect the hook")?;
    sys::touch(here.as_fd(), HOOK).step("make the hook's mount point")?;
    let hook = sys::c(HOOK).step("name the hook")?;
    sys::attach(this.as_fd(), here.as_fd(), &hook).step("attach the hook")?;
    sys::place(io::stdout().as_fd(), 2).step("report on standard error")?;
    sys::close_on_exec_from(3).step("close descriptors")?;
    become_owner(spec.first_uid)?;
    let error = sys::exec(&spec.exec, &ENVIRONMENT);
    Err(Failure::new("start CRIU", error))
}

/// The specification's line, and not a byte more: the hook reads on.
fn read_line() -> Result<Option<String>> {
    let mut line = Vec::new();
    let mut byte = [0];
    let mut input = File::open("/proc/self/fd/0").step("open standard input")?;
    while line.len() as u64 <= LONGEST_SPEC {
        if input.read(&mut byte).step("read the specification")? == 0 {
            break;
        }
        if byte == *b"\n" {
            let line = String::from_utf8(line);
            return line.map(Some).map_err(|error| Failure::new("read the specification", error));
        }
        line.push(byte[0]);
    }
    if line.is_empty() { Ok(None) } else { Err(Failure::new("read the specification", "no end")) }
}

/// Becomes the id that owns the sandbox's user namespace, with [`KEPT`] on the host and no way to
/// more.
fn become_owner(uid: u32) -> Result<()> {
    let kept = KEPT.iter().fold(0u64, |mask, capability| mask | 1 << capability);
    for capability in 0..64 {
        if kept & 1 << capability != 0 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other.step("drop a capability from the bounding set")?,
        }
    }
    sys::keep_capabilities_for_good().step("keep capabilities")?;
    sys::become_id(uid).step("become the owner")?;
    sys::set_capabilities(CapabilitySets { effective: kept, permitted: kept, inheritable: kept })
        .step("drop capabilities")?;
    KEPT.iter().try_for_each(|&capability| {
        sys::raise_ambient(capability).step("keep a capability over exec")
    })
}

/// Whether CRIU runs this as its action script.
pub(crate) fn is_hook() -> bool {
    std::env::var_os(MOMENT).is_some()
}

/// CRIU goes on when this returns; with success only if the caller says so. CRIU closes what it
/// inherited before it runs its script, but has itself still got the caller's pipes.
pub(crate) fn hook() -> Result<()> {
    if std::env::var_os(MOMENT).is_none_or(|moment| moment != COMPLETE) {
        return Ok(());
    }
    let pipe = |number| format!("/proc/{}/fd/{number}", parent_id());
    File::options()
        .write(true)
        .open(pipe(2))
        .and_then(|mut report| writeln!(report, "{HELD}"))
        .step("say that the processes are held")?;
    let mut answer = String::new();
    let input = File::open(pipe(0)).step("open the caller's pipe")?;
    BufReader::new(input.take(64)).read_line(&mut answer).step("wait for the caller")?;
    if answer.trim_end() == GO { Ok(()) } else { Err(Failure::new("hold", "the caller has gone")) }
}
