//! Keeps a server running: starts it anew when it dies, and ends what a dead one left.
//!
//! One thread and no more than that, for it is to be there whatever happens. Processes whose parents
//! end are given to it (prctl(2), `PR_SET_CHILD_SUBREAPER`), kernels of a server that died among
//! them, and it waits for all.

use std::{
    convert::Infallible,
    env, io,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, geteuid, getpid,
        kill_process_group, set_child_subreaper, wait, waitid,
    },
};

use crate::{home, log};

/// The argument that makes a process the server.
pub(crate) const SERVER: &str = "server";

/// A server that ends before it has lived this long is not started at once.
const SHORT_LIFE: Duration = Duration::from_secs(5);

/// How long is waited then.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs servers, with these options after the argument, for as long as nothing ends it.
///
/// # Errors
/// When the first cannot be started.
pub(crate) fn run(options: &[String], directory: &Path) -> io::Result<Infallible> {
    home::withdraw_ready(directory)?;
    set_child_subreaper(Some(getpid()))?;
    let mut server = start(options)?;
    loop {
        let started = Instant::now();
        let status = watch(server, directory)?;
        // What still runs of its kernels cannot be waited for yet, so that its number is its own.
        for kernel in home::kernel_processes(directory) {
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if waitid(WaitId::Pid(kernel), peek).is_ok() {
                let _ = kill_process_group(kernel, Signal::KILL);
            }
        }
        // A server counts as ready only for as long as it lives; this is for those who look.
        let _ = home::withdraw_ready(directory);
        log(&format!("the server ended ({status:?}) and is started anew"));
        if started.elapsed() < SHORT_LIFE {
            sleep(PAUSE);
        }
        server = start_at_last(options);
    }
}

/// Starts the server as soon as that can be done: memory may be short, or processes.
fn start_at_last(options: &[String]) -> Pid {
    loop {
        match start(options) {
            Ok(server) => return server,
            Err(error) => log(&format!("the server cannot be started: {error}")),
        }
        sleep(PAUSE);
    }
}

fn start(options: &[String]) -> io::Result<Pid> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(SERVER).args(options);
    if geteuid().is_root() {
        command.env("HOME", "/root");
    }
    let child = command.spawn()?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("it has no number"))
}

/// Waits until the server has ended, and meanwhile for everything else that ends.
fn watch(server: Pid, directory: &Path) -> io::Result<WaitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == server => return Ok(status),
            // Of a server that has ended, too. Its number is not given away while its group has it.
            Ok(Some((pid, _))) if home::kernel_processes(directory).contains(&pid) => {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
