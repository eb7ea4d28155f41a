//! Fork and exec, by hand.
//!
//! The standard library reports a failed exec to the parent and then waits for the child itself;
//! envd needs neither. Its contract is a shell's: a command that cannot be executed is a process
//! that prints why and exits with 127 or 126, while a failure *before* exec (no such user, no
//! access to the directory) is an error of the request. And only the reaper may wait.
//!
//! Everything the child needs is allocated before the fork. Between fork and exec it makes plain
//! system calls only, so it does not matter what other threads held when it was forked.
//!
//! Who forks is usually the [`spawner`](super::spawner).

use std::{
    ffi::{CStr, CString, c_char},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::PathBuf,
    ptr,
};

use rustix::{
    io::Errno,
    process::{Pid, Rlimit},
};
use serde::{Deserialize, Serialize};

/// What raises a command's chance to be chosen by the kernel when memory runs out, so that envd
/// itself survives.
const OOM_SCORE_ADJ: &[u8] = b"100";

/// The middle of the class that shares a disk fairly: `ionice -c 2 -n 4`.
const IO_PRIORITY: libc::c_int = 2 << 13 | 4;

/// Where a command is looked for when its environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs scripts that do not name their interpreter.
const SHELL: &CStr = c"/bin/sh";
/// Where the script stands in the shell's arguments.
const SCRIPT: usize = 1;

/// The exit codes of a shell for a command that is not there, or is not executable.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// A process to be.
#[derive(Debug, Serialize, Deserialize)]
pub struct Command {
    /// Program, by path or by name; names are looked up in the `PATH` of `env`.
    pub program: String,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// The whole environment, as pairs.
    pub env: Vec<(String, String)>,
    /// Working directory; entered with the rights of the user.
    pub cwd: PathBuf,
    /// User, group and supplementary groups to take; none leaves them as they are.
    pub credentials: Option<Credentials>,
    /// Limit of open files to restore, where envd raised its own.
    pub open_files: Option<OpenFiles>,
}

/// Soft and hard limit of open files, as the kernel has them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OpenFiles(u64, u64);

impl From<Rlimit> for OpenFiles {
    fn from(limit: Rlimit) -> Self {
        let raw = |value: Option<u64>| value.unwrap_or(libc::RLIM_INFINITY);
        Self(raw(limit.current), raw(limit.maximum))
    }
}

/// The descriptors of a process to be.
#[derive(Debug)]
pub struct Descriptors {
    /// Where the child reports a failure before exec: the end to write of a close-on-exec pipe.
    /// What it wrote, if anything, is for [`SetupError::from_report`].
    pub report: OwnedFd,
    /// What becomes descriptors 0, 1 and 2.
    pub stdio: Stdio,
}

/// Who a process runs as.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The child's ends of its standard streams.
#[derive(Debug)]
pub enum Stdio {
    /// Standard input, output and error.
    Pipes([OwnedFd; 3]),
    /// The user side of a terminal, which becomes all three and the controlling terminal.
    Terminal(OwnedFd),
}

/// What the child was doing when it could not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupError {
    /// The step, in words.
    pub step: &'static str,
    /// Why it failed.
    pub errno: Errno,
}

/// The steps of a child before exec; their numbers cross the report pipe.
const STEPS: [&str; 4] = ["terminal", "stdio", "credentials", "chdir"];
const TERMINAL: u8 = 0;
const STDIO: u8 = 1;
const CREDENTIALS: u8 = 2;
const CHDIR: u8 = 3;

impl SetupError {
    /// Reads what a child reported. An empty report means that it went on to exec.
    pub fn from_report(report: &[u8]) -> Option<Self> {
        let (&step, errno) = report.split_first()?;
        let errno = Errno::from_raw_os_error(i32::from_ne_bytes(errno.try_into().ok()?));
        Some(Self { step: STEPS.get(usize::from(step)).copied().unwrap_or("start"), errno })
    }
}

/// A `Command` in the form the child uses it.
struct Plan {
    /// The files to try, in order.
    attempts: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    /// For a script without an interpreter line: `/bin/sh`, the script, the arguments.
    shell_argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: CString,
    credentials: Option<Credentials>,
    stdio: [RawFd; 3],
    terminal: bool,
    /// Process group to be in, unless 0; the spawner has one of its own.
    group: libc::pid_t,
    open_files: Option<libc::rlimit>,
    not_found: Vec<u8>,
    not_executable: Vec<u8>,
    cannot_execute: Vec<u8>,
    report: RawFd,
    /// Keeps what the pointers in this struct point to.
    _strings: Vec<CString>,
}

/// Forks, and executes the command in the child.
///
/// The child must be reaped by the caller.
///
/// # Errors
/// `InvalidInput` for a NUL byte in an argument, variable or path; else those of `fork`.
#[allow(unsafe_code)]
pub fn spawn(command: &Command, descriptors: &Descriptors) -> io::Result<Pid> {
    let plan = Plan::new(command, descriptors, own_group())?;
    // SAFETY: see `start`.
    start(plan, || unsafe { libc::fork() }.into())
}

/// As [`spawn`], but the child is one of the caller's parent, which must reap it, and is in `group`.
///
/// # Errors
/// As for [`spawn`].
#[allow(unsafe_code)]
pub fn spawn_sibling(
    command: &Command,
    descriptors: &Descriptors,
    group: libc::pid_t,
) -> io::Result<Pid> {
    /// The exit signal is the caller's own.
    const FLAGS: libc::c_int = libc::CLONE_PARENT;
    let plan = Plan::new(command, descriptors, group)?;
    // SAFETY: without CLONE_VM this is fork(2); see `start`.
    start(plan, || unsafe { libc::syscall(libc::SYS_clone, FLAGS, 0, 0, 0, 0) })
}

/// Forks by `fork`. The child runs [`run_child`] only, which makes async-signal-safe calls until it
/// executes or exits: it never returns into code that allocates or takes locks.
fn start(plan: Plan, fork: impl FnOnce() -> libc::c_long) -> io::Result<Pid> {
    match libc::pid_t::try_from(fork()) {
        Ok(0) => run_child(plan),
        Ok(pid) if pid > 0 => Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::Other.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process group of this process; 0 when it is one of another pid namespace.
#[allow(unsafe_code)]
pub fn own_group() -> libc::pid_t {
    // SAFETY: no pointers; it cannot fail.
    unsafe { libc::getpgrp() }
}

impl Command {
    /// Whether it can be executed at all.
    ///
    /// # Errors
    /// `InvalidInput` for a NUL byte in an argument, variable or path.
    pub fn check(&self) -> io::Result<()> {
        let variables = self.env.iter().flat_map(|(name, value)| [name, value]);
        let mut texts = self.args.iter().chain([&self.program]).chain(variables);
        let cwd = self.cwd.as_os_str().as_encoded_bytes();
        if texts.any(|text| text.contains('\0')) || cwd.contains(&0) {
            let message = "nul byte found in a command, variable or path";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(())
    }
}

impl Plan {
    fn new(command: &Command, descriptors: &Descriptors, group: libc::pid_t) -> io::Result<Self> {
        let mut strings = Vec::new();
        let mut keep = |text: Vec<u8>| -> io::Result<*const c_char> {
            let text = CString::new(text)?;
            // The heap block stays where it is when the CString moves into the list.
            let pointer = text.as_ptr();
            strings.push(text);
            Ok(pointer)
        };
        let name = keep(command.program.as_str().into())?;
        let args = command
            .args
            .iter()
            .map(|arg| keep(arg.as_str().into()))
            .collect::<io::Result<Vec<_>>>()?;
        let mut env = Vec::with_capacity(command.env.len() + 1);
        for (variable, value) in &command.env {
            env.push(keep(format!("{variable}={value}").into())?);
        }
        env.push(ptr::null());

        let attempts = candidates(command).into_iter().map(&mut keep);
        let attempts = attempts.collect::<io::Result<Vec<_>>>()?;
        let argv = [&[name], args.as_slice(), &[ptr::null()]].concat();
        let shell_argv = [&[SHELL.as_ptr(), name], args.as_slice(), &[ptr::null()]].concat();
        let (stdio, terminal) = match &descriptors.stdio {
            Stdio::Pipes(pipes) => (pipes.each_ref().map(AsRawFd::as_raw_fd), false),
            Stdio::Terminal(user_side) => ([user_side.as_raw_fd(); 3], true),
        };
        let message = |why: &str| format!("{}: {why}\n", command.program).into_bytes();
        Ok(Self {
            attempts,
            argv,
            shell_argv,
            env,
            cwd: CString::new(command.cwd.as_os_str().as_encoded_bytes())?,
            credentials: command.credentials.clone(),
            stdio,
            terminal,
            group,
            open_files: command
                .open_files
                .map(|OpenFiles(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
            not_found: message("not found"),
            not_executable: message("Permission denied"),
            cannot_execute: message("cannot execute"),
            report: descriptors.report.as_raw_fd(),
            _strings: strings,
        })
    }
}

/// The files a command may mean: itself when it is a path, else one in each directory of `PATH`.
fn candidates(command: &Command) -> Vec<Vec<u8>> {
    if command.program.is_empty() || command.program.contains('/') {
        return vec![command.program.as_str().into()];
    }
    let path = command.env.iter().rev().find(|(name, _)| name == "PATH");
    let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| format!("{directory}/{}", command.program).into())
        .collect()
}

/// The child, from fork to exec.
#[allow(unsafe_code)]
fn run_child(mut plan: Plan) -> ! {
    // SAFETY: every pointer handed to the system calls below comes from `plan`, which outlives
    // them, and none of them allocates or locks. The credential calls are raw because glibc's own
    // would try to change the threads that exist only in the parent.
    unsafe {
        reset_signals();
        become_ordinary();
        if let Err(step) = set_up(&plan) {
            report(plan.report, step);
            libc::_exit(NOT_FOUND);
        }
        execute(&mut plan)
    }
}

/// Default dispositions and an empty mask: envd ignores SIGPIPE, commands must not.
///
/// By raw system call, since glibc keeps two signals to itself and would leave them ignored.
#[allow(unsafe_code)]
unsafe fn reset_signals() {
    /// The kernel's `struct sigaction`: handler, flags, restorer, mask; all zero is the default.
    const DEFAULT: [u64; 4] = [0; 4];
    const LAST_SIGNAL: i32 = 64;
    const SET_SIZE: usize = size_of::<u64>();
    let none = 0_u64;
    let previous = ptr::null_mut::<u8>();
    // SAFETY: as in `run_child`; the kernel reads 32 and 8 bytes, which is what they are given.
    unsafe {
        for signal in 1..=LAST_SIGNAL {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), previous, SET_SIZE);
        }
        let none = &raw const none;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, none, previous, SET_SIZE);
    }
}

/// Takes part in the competition for memory, processors and disks as everybody does. Best effort,
/// while the child may still write its own `/proc` files.
#[allow(unsafe_code)]
unsafe fn become_ordinary() {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: as in `run_child`.
    unsafe {
        let file =
            libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, OOM_SCORE_ADJ.as_ptr().cast(), OOM_SCORE_ADJ.len());
            libc::close(file);
        }
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IO_PRIORITY);
    }
}

/// Everything that can fail before exec; the error is the step, with its reason in `errno`.
#[allow(unsafe_code)]
unsafe fn set_up(plan: &Plan) -> Result<(), u8> {
    let check = |result: i64, step: u8| if result < 0 { Err(step) } else { Ok(()) };
    // SAFETY: as in `run_child`.
    unsafe {
        if plan.group > 0 {
            libc::setpgid(0, plan.group);
        }
        if plan.terminal {
            check(libc::setsid().into(), TERMINAL)?;
            check(libc::ioctl(plan.stdio[0], libc::TIOCSCTTY, 0).into(), TERMINAL)?;
        }
        for (target, source) in (0..).zip(plan.stdio) {
            check(libc::dup2(source, target).into(), STDIO)?;
        }
        if let Some(limit) = &plan.open_files {
            libc::setrlimit(libc::RLIMIT_NOFILE, limit);
        }
        if let Some(Credentials { uid, gid, groups }) = &plan.credentials {
            let count = groups.len();
            check(libc::syscall(libc::SYS_setgroups, count, groups.as_ptr()), CREDENTIALS)?;
            check(libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid), CREDENTIALS)?;
            check(libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid), CREDENTIALS)?;
        }
        check(libc::chdir(plan.cwd.as_ptr()).into(), CHDIR)
    }
}

/// Tells the parent which step failed, and why.
#[allow(unsafe_code)]
unsafe fn report(pipe: RawFd, step: u8) {
    let [a, b, c, d] = errno().to_ne_bytes();
    let message = [step, a, b, c, d];
    // SAFETY: as in `run_child`; the buffer lives on this frame.
    unsafe { libc::write(pipe, message.as_ptr().cast(), message.len()) };
}

/// Tries each candidate in turn, as a shell's `exec` does.
#[allow(unsafe_code)]
unsafe fn execute(plan: &mut Plan) -> ! {
    let mut denied = false;
    // SAFETY: as in `run_child`; the argument and environment lists end with a null pointer.
    unsafe {
        for &path in &plan.attempts {
            libc::execve(path, plan.argv.as_ptr(), plan.env.as_ptr());
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => denied = true,
                libc::ENOEXEC => {
                    plan.shell_argv[SCRIPT] = path;
                    libc::execve(SHELL.as_ptr(), plan.shell_argv.as_ptr(), plan.env.as_ptr());
                    fail(&plan.cannot_execute, NOT_EXECUTABLE);
                }
                _ => fail(&plan.cannot_execute, NOT_EXECUTABLE),
            }
        }
        if denied {
            fail(&plan.not_executable, NOT_EXECUTABLE);
        }
        fail(&plan.not_found, NOT_FOUND)
    }
}

/// Prints a message where the command's errors go, and exits.
#[allow(unsafe_code)]
unsafe fn fail(message: &[u8], code: i32) -> ! {
    // SAFETY: as in `run_child`.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        libc::_exit(code)
    }
}

#[allow(unsafe_code)]
fn errno() -> i32 {
    // SAFETY: glibc's errno is a thread-local that always exists.
    unsafe { *libc::__errno_location() }
}
