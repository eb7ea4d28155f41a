//! What runs cells: a process that keeps its state from one cell to the next.
//!
//! - [`process`]: the process itself, started and ended with all that it started; [`stat`], what the
//!   system says of it.
//! - [`jupyter`]: kernels that speak Jupyter's protocol.
//! - [`node`], [`bash`]: our own, over [`pipes`] that are [`attached`] to a process.
//! - [`backlog`]: what any of them prints between cells.

mod attached;
mod backlog;
pub(crate) mod bash;
pub(crate) mod jupyter;
mod node;
mod pipes;
pub(crate) mod process;
mod stat;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::{bash::Bash, node::Node, process::Process};
use crate::{
    languages::{Dialect, Language, Runtime},
    patience::running_timeout,
};

/// How long a kernel may take to start, until its first cell can run: Python with a cold disk takes
/// some seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a hidden cell may take: it sets variables, or loads a package from a cold disk.
pub(crate) const HIDDEN_TIMEOUT: Duration = Duration::from_secs(60);

/// The most that a cell may show at once, bytes. It is held two or three times over.
const MAX_CONTENT: usize = 128 << 20;

/// How a kernel is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Where its cells begin to work.
    pub(crate) cwd: PathBuf,
    /// A directory of this kernel's own, which is there and empty: for sockets and files.
    pub(crate) dir: PathBuf,
}

/// What a cell does, in the order in which it does it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// It runs, as the kernel's so-manieth cell; first of all. Hidden cells do not count.
    Started(u64),
    /// It printed.
    Printed { stream: Stream, text: String, at: Timestamp },
    /// It showed something, in some representations by media type; `is_main` if that is the value of
    /// its last expression.
    Shown { data: Map<String, Value>, is_main: bool },
    /// It failed. A cell that has failed is still to be followed to its end.
    Failed(Failure),
    /// It is over, and all it did has been told: the kernel can take the next.
    Done,
}

/// Where a cell printed to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a cell failed, in the words of its language.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub(crate) struct Failure {
    pub(crate) name: String,
    pub(crate) value: String,
    /// Lines as a terminal would show them, without colours.
    pub(crate) traceback: String,
}

impl Failure {
    /// Something that was shown was larger than [`MAX_CONTENT`], by its size in bytes.
    fn too_large(size: usize) -> Self {
        let value = format!("{size} bytes were dropped: the most at once is {MAX_CONTENT}");
        Self { name: "OutputTooLarge".to_owned(), value, traceback: String::new() }
    }
}

/// The kernel cannot run cells any more: it ended, or does not keep to its protocol.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Died(
    /// How, as a sentence without a full stop, such as `the kernel ended with exit code 3`.
    pub(crate) String,
);

/// A kernel that runs. It runs one cell at a time; dropped, it ends with its process group, which is
/// all that its cells started, but what has made itself a session or a group of its own.
#[async_trait]
pub(crate) trait Kernel: Send + Sync {
    /// Begins a cell; the one before it is done. `hidden` ones do not count, are not remembered, and
    /// what they print and show need not be told, only failures and the end.
    ///
    /// # Errors
    /// When the kernel has died.
    async fn begin(&mut self, code: &str, hidden: bool) -> Result<(), Died>;

    /// What the cell that was begun does next. Can be dropped and called anew: nothing is lost. Not
    /// to be called after [`Event::Done`]. While nobody calls it, the kernel comes to wait, and the
    /// memory that is taken does not grow. First, after [`Event::Started`], comes what was kept by
    /// [`Kernel::idle`].
    ///
    /// # Errors
    /// When the kernel has died.
    async fn next(&mut self) -> Result<Event, Died>;

    /// To be called whenever no cell runs, until one is begun: reads what is said meanwhile, so that
    /// nothing that a cell has left running waits for it, and keeps some for the next cell that is not
    /// hidden. Returns when the process has ended, with how. Can be dropped and called anew.
    async fn idle(&mut self) -> String {
        self.process().ended().await
    }

    /// Asks the kernel to interrupt its cell, as Ctrl-C would; does not wait until it has. Nothing
    /// happens if none runs.
    async fn interrupt(&mut self);

    /// The process that runs the cells.
    fn process(&self) -> &Process;
}

/// Runs a hidden cell to its end, and says how it failed if it did.
///
/// # Errors
/// When the kernel has died, or takes longer than such a cell may.
pub(crate) async fn run_hidden(
    kernel: &mut dyn Kernel,
    code: &str,
) -> Result<Option<Failure>, Died> {
    let run = async {
        kernel.begin(code, true).await?;
        let mut failure = None;
        follow_hidden(kernel, &mut failure).await?;
        Ok(failure)
    };
    running_timeout(HIDDEN_TIMEOUT, run).await.unwrap_or_else(|| Err(late()))
}

/// Follows a hidden cell that was begun to its end, and notes how it failed if it did. Can be dropped
/// and called anew.
///
/// # Errors
/// When the kernel has died.
pub(crate) async fn follow_hidden(
    kernel: &mut dyn Kernel,
    failure: &mut Option<Failure>,
) -> Result<(), Died> {
    loop {
        match kernel.next().await? {
            Event::Failed(failed) => *failure = failure.take().or(Some(failed)),
            Event::Done => return Ok(()),
            Event::Started(_) | Event::Printed { .. } | Event::Shown { .. } => {}
        }
    }
}

/// Why a kernel counts as dead of which a hidden cell takes longer than [`HIDDEN_TIMEOUT`].
pub(crate) fn late() -> Died {
    Died(format!("the kernel took longer than {} s to set itself up", HIDDEN_TIMEOUT.as_secs()))
}

/// Starts what runs the cells of a language, and waits until it can.
///
/// # Errors
/// When it cannot be started, or takes too long: with a sentence that says why.
pub(crate) async fn start(
    language: &Language,
    launch: &Launch,
    python_setup: &str,
) -> Result<Box<dyn Kernel>, Died> {
    let start = async {
        let kernel: Box<dyn Kernel> = match &language.runtime {
            Runtime::JavaScript => Box::new(Node::start(launch, false).await?),
            Runtime::TypeScript => Box::new(Node::start(launch, true).await?),
            Runtime::Bash => Box::new(Bash::start(launch).await?),
            Runtime::Jupyter(spec) => {
                let setup = (language.dialect() == Dialect::Python).then_some(python_setup);
                jupyter::start(launch, spec, setup).await?
            }
        };
        Ok(kernel)
    };
    let late = || Died(format!("it took longer than {} s", START_TIMEOUT.as_secs()));
    running_timeout(START_TIMEOUT, start).await.unwrap_or_else(|| Err(late()))
}

/// Fails instead of hanging: nothing in the tests of kernels takes this long unless it is broken.
#[cfg(test)]
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    running_timeout(Duration::from_secs(120), future).await.expect("this is late")
}

/// Waits until a condition holds.
#[cfg(test)]
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd, pin::pin};

    use rustix::io::fcntl_dupfd_cloexec;
    use tokio::time;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_come_up_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let ours = fcntl_dupfd_cloexec(File::open(directory.path()).unwrap(), 100).unwrap();
        // Its directory is there for us alone: Bash runs, but cannot say so.
        let dir = format!("/proc/self/fd/{}", ours.as_raw_fd()).into();
        let launch = Launch { cwd: "/".into(), dir };
        let language = Language { name: "bash".to_owned(), runtime: Runtime::Bash };
        let Err(Died(why)) = start(&language, &launch, "").await else { panic!("it came up") };
        assert_eq!(why, "it took longer than 60 s");
    }

    #[tokio::test]
    async fn one_that_starts_when_the_sandbox_is_paused_has_its_time_after_that() {
        let directory = tempfile::tempdir().unwrap();
        let launch = Launch { cwd: "/".into(), dir: directory.path().into() };
        let language = Language { name: "bash".to_owned(), runtime: Runtime::Bash };
        let mut starting = pin!(start(&language, &launch, ""));
        assert!(futures::poll!(&mut starting).is_pending());
        time::pause();
        time::advance(2 * START_TIMEOUT).await;
        time::resume();
        assert!(starting.await.is_ok());
    }
}
