//! One cell, from the queue to its last line.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rustix::process::Signal;
use tokio::{
    sync::oneshot,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    Cell, Job,
    owner::{Controls, Next, Owner, Running, Stop, heed, restarted},
};
use crate::{
    envd::Variables,
    kernel::{Event, Failure, Stream},
    lines::{self, Lines},
    log,
    output::Output,
};

/// How often a cell is interrupted whose client has gone.
const INTERRUPT_INTERVAL: Duration = Duration::from_secs(1);

/// How many times. One that still has not ended an interval later is given up.
const INTERRUPTS: u32 = 10;

/// How often the connection gets a chance to take lines before the kernel is stopped: it runs on the
/// same thread.
const CHANCES: usize = 8;

/// The name of the error of a cell whose kernel is not there any more.
const RESTARTING: &str = "ContextRestarting";

/// The name of the error of a cell for which no kernel could be started. The next tries anew.
const NOT_STARTED: &str = "KernelNotStarted";

/// The name of the error of a cell whose context is not there any more, and its value.
const UNEXPECTED_END: &str = "UnexpectedEndOfExecution";
const DELETED: &str = "Connection to the execution was closed before the execution was finished: its \
    context was deleted";

/// What the execution after one says whose kernel had to be killed.
const ABANDONED: &str = "Context was restarted: the client of an earlier execution went away, and its \
    code did not end when it was interrupted. Its variables are gone.";

/// The variable with the sandbox's id.
const SANDBOX_ID: &str = "E2B_SANDBOX_ID";

/// How a cell ended that nothing stopped.
enum End {
    /// By itself.
    Done,
    /// Never: its client went, and it did not mind being interrupted.
    Abandoned,
}

impl Owner {
    /// Runs a cell. One whose client has gone while it waited is not.
    pub(super) async fn cell(&mut self, job: Job, controls: &mut Controls) -> Next {
        let Job { cell, output } = job;
        let Some(cell) = cell.upgrade() else { return Next::GoOn };
        let end = self.execute(&cell, &output, controls).await;
        match end {
            Ok(End::Done) => {
                output.push(lines::end_of_execution());
                drop(output);
                // The variables that only this cell had are taken back.
                match self.give(&cell.variables, &Variables::new(), controls).await {
                    Ok(()) => Next::GoOn,
                    Err(stop) => self.stopped(stop, controls).await,
                }
            }
            Ok(End::Abandoned) => {
                log("a cell without a client ignored interrupts: its kernel is restarted");
                let next = self.replace(controls).await;
                self.notice = Some(ABANDONED.to_owned());
                next
            }
            Err(stop) => {
                let unheard = output.is_closed();
                close_stopped(&output, &stop);
                drop(output);
                match stop {
                    Stop::Died(why) => {
                        log(&format!("a kernel died in a cell: {why}"));
                        let next = self.replace(controls).await;
                        self.notice = unheard.then(|| restarted(&why));
                        next
                    }
                    stop => self.stopped(stop, controls).await,
                }
            }
        }
    }

    /// Starts another kernel. That it cannot be is said by the next cell.
    async fn replace(&mut self, controls: &mut Controls) -> Next {
        self.restart(oneshot::channel().0, controls).await
    }

    /// Runs a cell to its end, whatever that is, and tells all but that.
    async fn execute(
        &mut self,
        cell: &Cell,
        output: &Output,
        controls: &mut Controls,
    ) -> Result<End, Stop> {
        match self.prepare(cell, controls).await {
            // None of the cell has run: it can in another kernel.
            Err(Stop::Died(how)) => {
                self.lost(&how);
                self.prepare(cell, controls).await?;
            }
            prepared => prepared?,
        }
        let Some(running) = self.running.as_mut() else {
            return Err(Stop::NotStarted("there is no kernel".to_owned()));
        };
        if output.is_closed() {
            return Ok(End::Done);
        }
        running.use_it();
        running.kernel.begin(&cell.code, false).await?;
        let mut telling = Telling::new(output, &mut self.notice);
        let mut leaving: Option<Leaving> = None;
        loop {
            tokio::select! {
                biased;
                control = controls.recv() => {
                    let reply = heed(control)?;
                    running.kernel.interrupt().await;
                    let _ = reply.send(());
                }
                () = output.closed(), if leaving.is_none() => {
                    telling.forget(running);
                    leaving = Some(Leaving::begin());
                }
                goes_on = Leaving::tick(&mut leaving) => {
                    if !goes_on {
                        return Ok(End::Abandoned);
                    }
                    running.kernel.interrupt().await;
                }
                () = telling.room(), if telling.waits() => telling.go_on(running).await,
                event = running.kernel.next(), if !telling.waits() => match event? {
                    Event::Done => return Ok(End::Done),
                    event if leaving.is_none() => telling.tell(event, running).await,
                    _ => {}
                },
            }
        }
    }

    /// Sees to it that there is a kernel, of this sandbox, with the variables that a cell is to have.
    async fn prepare(&mut self, cell: &Cell, controls: &mut Controls) -> Result<(), Stop> {
        self.start(controls).await?;
        self.renew(cell.variables.get(SANDBOX_ID), controls).await?;
        self.give(&cell.variables, &cell.own_variables, controls).await
    }

    /// Gives the kernel the sandbox's variables, and a cell's own.
    async fn give(
        &mut self,
        sandboxes: &Variables,
        own: &Variables,
        controls: &mut Controls,
    ) -> Result<(), Stop> {
        match self.running.as_mut() {
            Some(running) => running.give(sandboxes, own, controls).await,
            None => Ok(()),
        }
    }
}

/// Says how a cell ended that did not end by itself, and that it did.
pub(super) fn close_stopped(output: &Output, stop: &Stop) {
    let (name, value) = match stop {
        Stop::Died(why) => (RESTARTING, format!("Context was restarted: {why}")),
        Stop::NotStarted(why) => (NOT_STARTED, format!("The kernel did not start: {why}")),
        Stop::Restart(_) => (RESTARTING, "Context was restarted as asked".to_owned()),
        Stop::Delete => (UNEXPECTED_END, DELETED.to_owned()),
    };
    let failure = Failure { name: name.to_owned(), traceback: value.clone(), value };
    output.push(lines::error(&failure));
    output.push(lines::end_of_execution());
}

/// A cell whose client has gone. It is given as many interrupts, not as much time: of that, none may be
/// left when the sandbox was paused meanwhile.
struct Leaving {
    interrupts_left: u32,
    ticks: Interval,
}

impl Leaving {
    fn begin() -> Self {
        let mut ticks = interval(INTERRUPT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interrupts_left: INTERRUPTS, ticks }
    }

    /// Waits until the cell is to be interrupted, or else given up, which is false; forever if it is not
    /// leaving.
    async fn tick(leaving: &mut Option<Self>) -> bool {
        let Some(leaving) = leaving else { return std::future::pending().await };
        leaving.ticks.tick().await;
        let left = leaving.interrupts_left.checked_sub(1);
        leaving.interrupts_left = left.unwrap_or(0);
        left.is_some()
    }
}

/// Tells a client what a cell does. While the client does not listen, the kernel stands still.
struct Telling<'a> {
    output: &'a Output,
    /// To be said once the cell has begun, by this one or the next whose client hears it.
    notice: &'a mut Option<String>,
    /// The rest of the event that is being told.
    lines: Lines,
    /// The line there was no room for.
    waiting: Option<Bytes>,
    stopped: bool,
    failed: bool,
}

impl<'a> Telling<'a> {
    fn new(output: &'a Output, notice: &'a mut Option<String>) -> Self {
        let lines = Lines::default();
        Self { output, notice, lines, waiting: None, stopped: false, failed: false }
    }

    /// Tells an event, or as much of it as there is room for. Only the first failure is told.
    async fn tell(&mut self, event: Event, running: &Running) {
        let started = matches!(event, Event::Started(_));
        if matches!(event, Event::Failed(_)) && std::mem::replace(&mut self.failed, true) {
            return;
        }
        self.lines = Lines::new(event);
        self.go_on(running).await;
        if started
            && !self.output.is_closed()
            && let Some(notice) = self.notice.take()
        {
            self.output.push(lines::printed(Stream::Stderr, &(notice + "\n"), Timestamp::now()));
        }
    }

    /// Whether there are lines that had no room.
    fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Waits until there is room for them. Can be dropped.
    async fn room(&self) {
        if let Some(line) = &self.waiting {
            self.output.room(line).await;
        }
    }

    /// Goes on telling, and stops the kernel when there is no room, for as long as there is none.
    async fn go_on(&mut self, running: &Running) {
        let mut chances = CHANCES;
        while let Some(line) = self.waiting.take().or_else(|| self.lines.next()) {
            let Err(line) = self.output.offer(line) else { continue };
            self.waiting = Some(line);
            if chances == 0 {
                if !std::mem::replace(&mut self.stopped, true) {
                    running.kernel.process().signal(Signal::STOP);
                }
                return;
            }
            chances -= 1;
            tokio::task::yield_now().await;
        }
        self.let_go(running);
    }

    /// Nobody listens any more.
    fn forget(&mut self, running: &Running) {
        self.lines = Lines::default();
        self.waiting = None;
        self.let_go(running);
    }

    fn let_go(&mut self, running: &Running) {
        if std::mem::take(&mut self.stopped) {
            running.kernel.process().signal(Signal::CONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_takes_no_interrupts_from_a_cell_without_a_client() {
        let mut leaving = Some(Leaving::begin());
        let mut interrupts = 0;
        while Leaving::tick(&mut leaving).await {
            interrupts += 1;
            if interrupts == 2 {
                advance(Duration::from_secs(3600)).await;
            }
        }
        assert_eq!(interrupts, INTERRUPTS);
    }
}
