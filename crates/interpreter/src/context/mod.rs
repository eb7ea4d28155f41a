//! Contexts: each has a language, a place to work in, and a kernel that keeps its state.
//!
//! - [`owner`]: the task that has the kernel, and does one thing at a time with it. [`cell`]: one of
//!   these, a cell. [`environment`]: its variables.

mod cell;
mod environment;
mod owner;

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub(crate) use self::environment::is_valid;
use crate::{envd::Variables, home::Home, languages::Language, output::Output};
use owner::Owner;

/// A context, as those see it who have cells for it.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) description: Description,
    jobs: mpsc::UnboundedSender<Job>,
    controls: mpsc::UnboundedSender<Control>,
}

/// What a client is told about a context.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Description {
    pub(crate) id: String,
    /// The normalised name.
    pub(crate) language: String,
    cwd: PathBuf,
}

/// What is to be run.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) code: String,
    /// The sandbox's variables.
    pub(crate) variables: Variables,
    /// Those that this cell alone gets, on top.
    pub(crate) own_variables: Variables,
}

/// A cell in the queue.
#[derive(Debug)]
pub(crate) struct Job {
    /// The client's connection has it, and it goes with that: it may be large, and the wait long.
    pub(crate) cell: Weak<Cell>,
    /// Where it says what it does. When that is closed, the cell is interrupted.
    pub(crate) output: Output,
}

/// Who waits until a kernel is up, or hears why it is not.
type Reply = oneshot::Sender<Result<(), String>>;

/// What goes past the queue.
#[derive(Debug)]
enum Control {
    Interrupt(oneshot::Sender<()>),
    Restart(Reply),
    Delete,
}

/// The context has been deleted.
#[derive(Debug)]
pub(crate) struct Deleted;

impl Context {
    /// Makes one, and starts its kernel. The receiver hears when that is up, or why not.
    pub(crate) fn create(
        home: Arc<Home>,
        language: Language,
        cwd: PathBuf,
    ) -> (Arc<Self>, oneshot::Receiver<Result<(), String>>) {
        let id = Uuid::new_v4().to_string();
        let description = Description { id, language: language.name.clone(), cwd: cwd.clone() };
        let (jobs, job_queue) = mpsc::unbounded_channel();
        let (controls, control_queue) = mpsc::unbounded_channel();
        let (started, start) = oneshot::channel();
        let owner = Owner::new(home, language, cwd);
        tokio::spawn(owner.run(job_queue, control_queue, started));
        (Arc::new(Self { description, jobs, controls }), start)
    }

    /// Queues a cell.
    ///
    /// # Errors
    /// When the context has been deleted meanwhile.
    pub(crate) fn run(&self, job: Job) -> Result<(), Deleted> {
        self.jobs.send(job).map_err(|_| Deleted)
    }

    /// Interrupts the cell that runs, if one does.
    ///
    /// # Errors
    /// When the context has been deleted meanwhile.
    pub(crate) async fn interrupt(&self) -> Result<(), Deleted> {
        let (reply, answer) = oneshot::channel();
        self.controls.send(Control::Interrupt(reply)).map_err(|_| Deleted)?;
        answer.await.map_err(|_| Deleted)
    }

    /// Starts the kernel anew, and waits until it is up; or says why it is not. The cell that runs
    /// ends, and those that wait run in the new kernel.
    ///
    /// # Errors
    /// When the context has been deleted meanwhile.
    pub(crate) async fn restart(&self) -> Result<Result<(), String>, Deleted> {
        let (reply, answer) = oneshot::channel();
        self.controls.send(Control::Restart(reply)).map_err(|_| Deleted)?;
        answer.await.map_err(|_| Deleted)
    }

    /// Ends the kernel, and whatever runs in it.
    pub(crate) fn delete(&self) {
        // Whoever has gone is deleted.
        let _ = self.controls.send(Control::Delete);
    }
}
