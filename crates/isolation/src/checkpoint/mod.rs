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
//!   user namespace, in a control group of its own, with none of the host's files at hand; nobody but
//!   the host's root can write the images, which are mounted for it with mapped ids;
//! - a *restore* has no capability on the host at all, and sees nothing of its files. It is root of
//!   the sandbox's user namespace, in the sandbox's control group and network.
//!
//! Parts: [`criu`] finds the program and knows its arguments; [`target`] looks at what is to be
//! dumped; `held` sees to what dumps; [`connections`] closes what cannot be kept; [`images`] prepares images for another slot;
//! `probe` tries all of it at start.

pub mod connections;
pub mod criu;
mod held;
pub mod images;
pub(crate) mod probe;
pub mod target;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use atoll_launcher::{
    Job,
    checkpoint::{DumpSpec, RestoreSpec},
};
use rustix::pipe::{PipeFlags, pipe_with};

pub(crate) use self::held::Held;
use self::{criu::Criu, target::Target};
use crate::{Place, berths::Berth, cgroup::Cgroup, container::HOSTNAME};

/// Longest that a dump may take until the processes are written: several times what the memory of a
/// large sandbox takes.
const PATIENCE: Duration = Duration::from_secs(120);

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

    /// Stops the processes of `target`, which are in `cgroup`, and writes them to `images`, an empty
    /// directory that only root may enter; with the launcher of `berth`, in its control group. If they
    /// are frozen, they are again once they are let go.
    ///
    /// Takes as long as writing their memory. If this is dropped, or this process is killed, CRIU
    /// lets them go on.
    ///
    /// # Errors
    /// [`Error::Dump`] and [`Error::Images`]; the processes go on, and `images` is of no use.
    pub(crate) async fn dump(
        &self,
        target: Target,
        cgroup: &Cgroup,
        images: &Path,
        berth: Berth,
    ) -> Result<Held, Error> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let Options { criu, staging } = &*self.options;
        let freezer = cgroup.unified_freezer();
        let word = getrandom::u64().map_err(dump_failed)?;
        let word = format!("held {word:016x}");
        let spec = DumpSpec {
            user_ns: format!("/proc/{}/ns/user", target.pid),
            first_uid: target.first_uid,
            staging: text(staging),
            images: text(images),
            tree: text(criu.tree()),
            freezer: freezer.map(text),
            held: word.clone(),
            exec: criu.dump(&target, freezer.is_some()),
        };
        let mut held = Held::begin(berth, &Job::Dump(spec), cgroup.clone()).await?;
        match tokio::time::timeout(PATIENCE, held.reached(&word)).await {
            Ok(true) => {}
            Ok(false) => return Err(dump_failed(held.give_up().await)),
            Err(_) => {
                let report = held.give_up().await;
                return Err(dump_failed(format!("it takes too long: {report}")));
            }
        }
        let directory = images.to_path_buf();
        let prepared = tokio::task::spawn_blocking(move || {
            images::prepare(&directory, target.log.as_deref(), &target.boot_id)
        });
        if let Err(error) = prepared.await.map_err(dump_failed)? {
            held.give_up().await;
            return Err(error.into());
        }
        Ok(held)
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
        let boot_id = images::boot_id(restore.images)?;
        let spec = self.restore_spec(&restore, log_end.as_fd(), old_log.as_deref(), boot_id);
        berth.ask(&Job::Restore(spec)).await.map_err(restore_failed)?;
        drop(log_end);
        let status = berth.launcher.wait().await.map_err(restore_failed)?;
        if !status.success() {
            return Err(Error::Restore(berth.report.in_one_line()));
        }
        let pid = String::from_utf8(images::read(&restore.work.join(criu::PID_FILE))?);
        let pid = pid.ok().and_then(|pid| pid.trim().parse().ok());
        let pid = pid.ok_or_else(|| Error::Restore("CRIU wrote no pid".to_owned()))?;
        Ok(Restored { pid, log })
    }

    fn restore_spec(
        &self,
        restore: &Restore<'_>,
        log: BorrowedFd<'_>,
        old_log: Option<&str>,
        boot_id: String,
    ) -> RestoreSpec {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let descriptor = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        let Options { criu, staging } = &*self.options;
        RestoreSpec {
            user_ns: descriptor(restore.place.user_ns.as_raw_fd()),
            net_ns: descriptor(restore.place.net_ns.as_raw_fd()),
            log: descriptor(log.as_raw_fd()),
            first_uid: restore.place.first_uid,
            layers: restore.layers.iter().map(|path| text(path)).collect(),
            disk: text(restore.disk),
            staging: text(staging),
            hostname: HOSTNAME.to_owned(),
            boot_id,
            images: text(restore.images),
            work: text(restore.work),
            tree: text(criu.tree()),
            exec: criu.restore(old_log),
        }
    }
}

fn dump_failed(cause: impl ToString) -> Error {
    Error::Dump(cause.to_string())
}

fn restore_failed(cause: std::io::Error) -> Error {
    Error::Restore(cause.to_string())
}
