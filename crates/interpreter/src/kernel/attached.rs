//! A kernel of ours: its process and its pipes.
//!
//! Between cells its pipes are read, too: a server that a cell has started may go on to print, and is
//! not to hang for it. What it prints is told with the next cell, as far as it is kept.

use std::{collections::VecDeque, time::Duration};

use rustix::process::Signal;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Died, Event,
    backlog::{Backlog, size},
    pipes::{Item, Pipes},
    process::Process,
};

/// How much is told of what is in the pipes of a kernel that has ended, in bytes: more than they hold,
/// but processes that it has left can go on to write.
const LAST_WORDS: usize = 4 * 1024 * 1024;

/// How long a kernel may live that does not say anything any more.
const SILENCE: Duration = Duration::from_secs(1);

/// A process with its pipes.
#[derive(Debug)]
pub(crate) struct Attached {
    process: Process,
    reader: Reader,
    /// The last that was said before the end, which is still to be told.
    kept: VecDeque<Item>,
    /// What was said between cells, for the next that is not hidden.
    backlog: Backlog,
    /// How the process ended, once all of what it said is kept.
    died: Option<Died>,
}

/// Who has the pipes.
#[derive(Debug)]
enum Reader {
    /// Whoever runs a cell.
    Cell(Box<Pipes>),
    /// A task, until its guard is dropped.
    Task { guard: Option<DropGuard>, task: JoinHandle<(Box<Pipes>, Backlog)> },
    /// Nobody.
    Lost,
}

impl Attached {
    pub(crate) fn new(process: Process, pipes: Pipes) -> Self {
        let reader = Reader::Cell(Box::new(pipes));
        let (kept, backlog) = Default::default();
        Self { process, reader, kept, backlog, died: None }
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// What was said next. Can be dropped and called anew.
    ///
    /// # Errors
    /// When the process has ended, and all that it said has been told.
    pub(crate) async fn next(&mut self) -> Result<Item, Died> {
        loop {
            if let Some(item) = self.kept.pop_front() {
                return Ok(item);
            }
            if let Some(died) = &self.died {
                return Err(died.clone());
            }
            self.resume().await;
            let Reader::Cell(pipes) = &mut self.reader else {
                self.died = Some(Died("the kernel's output cannot be read".to_owned()));
                continue;
            };
            let how = tokio::select! {
                biased;
                item = pipes.next() => match item {
                    Some(item) => return Ok(item),
                    None => end(&self.process).await,
                },
                how = self.process.ended() => how,
            };
            let mut length = 0;
            while length < LAST_WORDS
                && let Some(item) = pipes.try_next()
            {
                length += size(&item);
                self.kept.push_back(item);
            }
            self.kept.extend(pipes.flush());
            self.died = Some(Died(how));
        }
    }

    /// Takes the pipes back from the task that reads them between cells.
    ///
    /// Can be dropped and called anew.
    pub(crate) async fn resume(&mut self) {
        if let Reader::Task { guard, task } = &mut self.reader {
            guard.take();
            self.reader = match task.await {
                Ok((pipes, backlog)) => {
                    self.backlog.append(backlog);
                    Reader::Cell(pipes)
                }
                Err(_) => Reader::Lost,
            };
        }
    }

    /// Keeps what was said before a hidden cell began, and read after that.
    pub(crate) fn keep(&mut self, item: Item) {
        self.backlog.push(item);
    }

    /// What was said between cells and has not been told, as far as it was kept.
    pub(crate) fn take_backlog(&mut self) -> VecDeque<Item> {
        std::mem::take(&mut self.backlog).into_items()
    }

    /// A cell is over: has the pipes read by a task, and gives the last that the cell has said.
    pub(crate) fn pause(&mut self) -> Vec<Item> {
        match std::mem::replace(&mut self.reader, Reader::Lost) {
            Reader::Cell(mut pipes) => {
                let last = pipes.flush().collect();
                let token = CancellationToken::new();
                let task = tokio::spawn(read_on(pipes, token.clone()));
                self.reader = Reader::Task { guard: Some(token.drop_guard()), task };
                last
            }
            other => {
                self.reader = other;
                Vec::new()
            }
        }
    }
}

/// Waits for a process that has closed its pipes, which it does by ending.
async fn end(process: &Process) -> String {
    if let Ok(how) = timeout(SILENCE, process.ended()).await {
        return how;
    }
    process.signal(Signal::KILL);
    "the kernel was killed, because it had closed its connection to the server".to_owned()
}

/// Reads until it is cancelled.
async fn read_on(mut pipes: Box<Pipes>, token: CancellationToken) -> (Box<Pipes>, Backlog) {
    let mut backlog = Backlog::default();
    loop {
        tokio::select! {
            biased;
            () = token.cancelled() => break,
            item = pipes.next() => match item {
                Some(item) => backlog.push(item),
                None => {
                    token.cancelled().await;
                    break;
                }
            }
        }
    }
    (pipes, backlog)
}

/// Text as an event.
pub(crate) fn printed(item: Item) -> Option<Event> {
    match item {
        Item::Printed { stream, text, at } => Some(Event::Printed { stream, text, at }),
        Item::Record(_) | Item::TooLarge(_) => None,
    }
}

/// Writes what is sent, however long the kernel takes to read it. If that has ended, it is seen where
/// it is read from.
pub(crate) fn feed(
    mut writer: impl AsyncWrite + Send + Unpin + 'static,
) -> mpsc::UnboundedSender<Vec<u8>> {
    let (sender, mut receiver) = mpsc::unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(bytes) = receiver.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    sender
}
