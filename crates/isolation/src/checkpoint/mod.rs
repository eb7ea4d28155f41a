//! Checkpoints: the processes of a sandbox, with their memory, as files; through CRIU.
//!
//! ```text
//! dump       Target::read, then Checkpoints::dump: the processes are stopped and written
//!            Held: they stay stopped, while the caller copies their disk
//!            Held::release: they go on; or the caller ends them first
//! restore    Checkpoints::restore, with a copy of that disk and another slot, any number of times
//! ```
//!
//! CRIU runs below the launcher, which makes the place for it. What it writes holds memory that guests
//! control, and guests may hope for its mistakes:
//! - a *dump* needs four capabilities of the host's root, and runs as the id that owns the sandbox's
//!   user namespace; nobody but the host's root can write the images, which are mounted for it with
//!   mapped ids;
//! - a *restore* has no capability on the host at all, and sees nothing of its files. It is root of
//!   the sandbox's user namespace, in the sandbox's control group and network.
//!
//! Parts: [`criu`] finds the program and knows its arguments; [`target`] looks at what is to be
//! dumped; [`connections`] closes what cannot be kept; [`images`] prepares images for another slot;
//! `probe` tries all of it at start.

pub mod connections;
pub mod criu;
pub mod images;
pub(crate) mod probe;
pub mod target;

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use atoll_launcher::{
    Job,
    checkpoint::{DumpSpec, GO, HELD, RestoreSpec},
};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use self::{criu::Criu, target::Target};
use crate::{Place, berths::Berth, container::HOSTNAME};

/// CRIU's word on a failure is at the end of what it writes: this much is kept, bytes.
const LONGEST_REPORT: usize = 4096;

/// Why there is no checkpoint, or no sandbox from one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no CRIU that works here.
    #[error("no usable CRIU: {0}")]
    Missing(String),
    /// The processes go on as before.
    #[error("the processes could not be written: {0}")]
    Dump(String),
    /// The checkpoint is as it was; processes may be left in the control group.
    #[error("the processes could not be restored: {0}")]
    Restore(String),
    /// The images are not what CRIU writes.
    #[error(transparent)]
    Images(#[from] images::Error),
}

/// Configuration.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program.
    pub criu: Criu,
    /// The launcher's binary.
    pub launcher: PathBuf,
    /// The directory that launchers mount on, each in a namespace of its own.
    pub staging: PathBuf,
}

/// Writes and restores checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    options: Arc<Options>,
}

/// A checkpoint to restore.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restore<'a> {
    /// The directory that a dump filled. It is not written.
    pub(crate) images: &'a Path,
    /// An empty directory, for this restore alone, that CRIU writes to.
    pub(crate) work: &'a Path,
    /// Another slot's, with the addresses and the default route that the old one had.
    pub(crate) place: Place<'a>,
    /// The layers that the dumped sandbox had, lowest first.
    pub(crate) layers: &'a [PathBuf],
    /// A copy of its disk, from while it was [`Held`].
    pub(crate) disk: &'a Path,
}

/// What a restore gives.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The first process, a child of this one, as CRIU says: which had to do with what guests wrote.
    pub(crate) pid: u32,
    /// The end to read of its log, as in [`crate::Running`].
    pub(crate) log: OwnedFd,
}

impl Checkpoints {
    /// See `probe` for whether it works here.
    pub fn new(options: Options) -> Self {
        Self { options: Arc::new(options) }
    }

    /// Stops the processes of `target` and writes them to `images`, an empty directory that only root
    /// may enter. `freezer` is the directory of their v2 control group, if that is frozen: it is
    /// frozen again once they are let go.
    ///
    /// Takes as long as writing their memory. If this is dropped, or this process is killed, CRIU
    /// brings it to an end and lets them go on.
    ///
    /// # Errors
    /// [`Error::Dump`] and [`Error::Images`]; the processes go on, and `images` is of no use.
    pub async fn dump(
        &self,
        target: &Target,
        images: &Path,
        freezer: Option<&Path>,
    ) -> Result<Held, Error> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let Options { criu, staging, .. } = &*self.options;
        let spec = DumpSpec {
            user_ns: format!("/proc/{}/ns/user", target.pid),
            first_uid: target.first_uid,
            images: text(images),
            exec: criu.dump(target, staging, freezer),
        };
        let mut held = self.start_dump(&spec).await.map_err(dump_failed)?;
        if !held.reached().await {
            let report = held.end().await;
            return Err(dump_failed(report));
        }
        let prepared = images::prepare(images, target.log.as_deref());
        // When that fails, the end of its input tells CRIU to let them go.
        prepared.map(|()| held).map_err(Error::from)
    }

    async fn start_dump(&self, spec: &DumpSpec) -> std::io::Result<Held> {
        let mut request = serde_json::to_vec(spec)?;
        request.push(b'\n');
        // Not killed when dropped: CRIU must take its code out of the processes first.
        let mut child = Command::new(&self.options.launcher)
            .arg("dump")
            .arg(&self.options.staging)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A signal from the terminal is for this process to act on.
            .process_group(0)
            .spawn()?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        };
        // A launcher that has ended early says why.
        let _ = input.write_all(&request).await;
        Ok(Held { child, input, output: BufReader::new(output), report: String::new() })
    }

    /// Makes the processes again, with the launcher of `berth`, in its control group. Run this to its
    /// end.
    ///
    /// # Errors
    /// [`Error::Restore`] and [`Error::Images`]; the caller ends what is in the control group.
    pub(crate) async fn restore(
        &self,
        restore: Restore<'_>,
        berth: &mut Berth,
    ) -> Result<Restored, Error> {
        let old_log = images::log(restore.images)?;
        let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK);
        let (log, log_end) = pipe.map_err(|error| restore_failed(error.into()))?;
        let spec = self.restore_spec(&restore, log_end.as_fd(), old_log.as_deref());
        let report = berth.ask(&Job::Restore(spec)).await.map_err(restore_failed)?;
        drop(log_end);
        let status = berth.launcher.wait().await.map_err(restore_failed)?;
        if !status.success() {
            return Err(Error::Restore(last_of(&report)));
        }
        let pid = fs::read_to_string(restore.work.join(criu::PID_FILE)).map_err(restore_failed)?;
        let pid = pid.trim().parse().map_err(|_| Error::Restore("CRIU wrote no pid".to_owned()))?;
        Ok(Restored { pid, log })
    }

    fn restore_spec(
        &self,
        restore: &Restore<'_>,
        log: BorrowedFd<'_>,
        old_log: Option<&str>,
    ) -> RestoreSpec {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let descriptor = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        let Options { criu, staging, .. } = &*self.options;
        RestoreSpec {
            user_ns: descriptor(restore.place.user_ns.as_raw_fd()),
            net_ns: descriptor(restore.place.net_ns.as_raw_fd()),
            log: descriptor(log.as_raw_fd()),
            first_uid: restore.place.first_uid,
            layers: restore.layers.iter().map(|path| text(path)).collect(),
            disk: text(restore.disk),
            staging: text(staging),
            hostname: HOSTNAME.to_owned(),
            images: text(restore.images),
            work: text(restore.work),
            tree: text(criu.tree()),
            exec: criu.restore(old_log),
        }
    }
}

/// Processes that are written, and stopped until this is [released](Self::release) or dropped.
#[derive(Debug)]
pub struct Held {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    report: String,
}

impl Held {
    /// Whether the dump got that far.
    async fn reached(&mut self) -> bool {
        let mut line = Vec::new();
        loop {
            line.clear();
            match self.output.read_until(b'\n', &mut line).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return false,
            }
            let text = String::from_utf8_lossy(&line);
            if text.trim_end() == HELD {
                return true;
            }
            self.report = last_of(&format!("{}{text}", self.report));
        }
    }

    /// Lets the processes go on; those that were ended meanwhile are gone.
    ///
    /// # Errors
    /// [`Error::Dump`] with CRIU's report, which may also be that they were gone.
    pub async fn release(mut self) -> Result<(), Error> {
        let answer = self.input.write_all(format!("{GO}\n").as_bytes()).await;
        let mut rest = Vec::new();
        let read = self.output.read_to_end(&mut rest).await;
        let status = self.child.wait().await.map_err(dump_failed)?;
        answer.and(read.map(drop)).map_err(dump_failed)?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Dump(last_of(&format!("{}{}", self.report, String::from_utf8_lossy(&rest)))))
    }

    async fn end(self) -> String {
        let Self { mut child, input, output, report } = self;
        drop((input, output));
        // Its report is all there is to say.
        let _ = child.wait().await;
        report
    }
}

fn dump_failed(cause: impl ToString) -> Error {
    Error::Dump(cause.to_string())
}

fn restore_failed(cause: std::io::Error) -> Error {
    Error::Restore(cause.to_string())
}

/// The end of a report, on one line.
fn last_of(report: &str) -> String {
    let start = report.len().saturating_sub(LONGEST_REPORT);
    let start = (start..report.len()).find(|&at| report.is_char_boundary(at)).unwrap_or(0);
    let lines = report[start..].lines().map(str::trim).filter(|line| !line.is_empty());
    let mut last = lines.collect::<Vec<_>>().join("; ");
    if report.ends_with('\n') && !last.is_empty() {
        last.push('\n');
    }
    last
}
