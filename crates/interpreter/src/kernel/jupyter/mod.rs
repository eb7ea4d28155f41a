//! Jupyter kernels, over their own protocol: ZeroMQ on sockets in a directory that is the kernel's, or on
//! ports for those that know nothing else.
//!
//! - [`spec`]: what a kernel's command is. [`start`]: its start. [`connection`]: its sockets.
//!   [`message`]: what goes over them.
//!
//! A cell is a request on the shell channel. What it does comes over iopub, which everybody who
//! listens gets, each message with the number of the request it is about; it is over when its reply
//! has come *and* iopub said that the kernel is idle again, for the two channels are not in step.

pub(crate) mod connection;
pub(crate) mod message;
pub(crate) mod spec;
mod start;

use std::{collections::VecDeque, time::Duration};

use async_trait::async_trait;
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};
use zeromq::{SocketRecv, SocketSend, ZmqError, ZmqMessage};

pub(crate) use self::start::start;
use self::{
    connection::{Channels, Endpoints, broken},
    message::{Message, Raised, Reply, Session, without_colours},
    spec::InterruptMode,
    start::greet,
};
use super::{
    Died, Event, Failure, Kernel, MAX_CONTENT, attached::printed, backlog::Backlog,
    process::Process,
};

/// How long a process may take to end after its connections have.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a kernel that is idle again may take to reply, if its cell was interrupted: less than
/// there is between two interrupts.
const REPLY_TIMEOUT: Duration = Duration::from_millis(300);

/// A message of this size, bytes, leaves a socket with memory for another one like it.
const SWELLING: usize = 4 << 20;

/// A Jupyter kernel that runs.
struct Jupyter {
    // Before the sockets: they end quietly when the process has gone.
    process: Process,
    endpoints: Endpoints,
    channels: Channels,
    /// Whether iopub holds much memory.
    swollen: bool,
    session: Session,
    interrupt_mode: InterruptMode,
    cell: Cell,
}

/// What is known of the cell that runs.
#[derive(Default)]
struct Cell {
    /// The number of its request.
    id: String,
    hidden: bool,
    /// Whether the kernel has said that it runs.
    started: bool,
    reply: Option<Reply>,
    idle: bool,
    /// Whether it was interrupted. That can hit a kernel which has run the cell and is about to reply:
    /// ipykernel then is idle and never does.
    interrupted: bool,
    /// Since when a reply may be lacking.
    unanswered: Option<Instant>,
    failed: bool,
    /// What is to be told next.
    events: VecDeque<Event>,
    /// What others have printed while none ran that is told, such as threads of earlier ones.
    backlog: Backlog,
}

impl Jupyter {
    /// Takes another socket for iopub, and the memory of the one before is free. Begins anew if it was
    /// dropped.
    async fn shrink(&mut self) -> Result<(), Died> {
        let Self { process, endpoints, channels, session, .. } = self;
        let renewed = async {
            channels.iopub = endpoints.subscribe().await?;
            greet(session, channels).await
        };
        tokio::select! {
            renewed = renewed => renewed?,
            // Connecting waits for whoever is to listen there.
            how = process.ended() => return Err(Died(how)),
        }
        self.swollen = false;
        Ok(())
    }

    /// The connection broke: most likely because the process has just ended, and then that is why.
    async fn lost(&self, error: ZmqError) -> Died {
        match timeout(END_TIMEOUT, self.process.ended()).await {
            Ok(how) => Died(how),
            Err(_) => broken(error),
        }
    }
}

#[async_trait]
impl Kernel for Jupyter {
    async fn begin(&mut self, code: &str, hidden: bool) -> Result<(), Died> {
        // Nothing waits behind a cell: there is nothing to be called off when one fails, and a kernel
        // that does would call off one that comes quickly after.
        let content = json!({
            "code": code, "silent": hidden, "store_history": !hidden, "user_expressions": {},
            "allow_stdin": false, "stop_on_error": false,
        });
        let (id, request) = self.session.request("execute_request", &content);
        let backlog = std::mem::take(&mut self.cell.backlog);
        self.cell = Cell { id, hidden, backlog, ..Cell::default() };
        match self.channels.shell.send(request).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.lost(error).await),
        }
    }

    async fn next(&mut self) -> Result<Event, Died> {
        loop {
            if let Some(event) = self.cell.events.pop_front() {
                return Ok(event);
            }
            if self.swollen && self.cell.is_over() && !self.cell.ends_kernel() {
                self.shrink().await?;
            }
            if let Some(end) = self.cell.end() {
                return end;
            }
            let unanswered = self.cell.unanswered();
            // Receiving loses nothing when it is dropped: a message is taken whole or not at all.
            tokio::select! {
                biased;
                frames = self.channels.iopub.recv() => match frames {
                    Ok(frames) => self.swollen |= self.cell.heard(frames) > SWELLING,
                    Err(error) => return Err(self.lost(error).await),
                },
                frames = self.channels.shell.recv() => match frames {
                    Ok(frames) => self.cell.replied(frames),
                    Err(error) => return Err(self.lost(error).await),
                },
                _ = self.channels.control.recv() => {}
                how = self.process.ended() => return Err(Died(how)),
                () = since(unanswered, REPLY_TIMEOUT) => {
                    self.cell.reply = Some(Reply::unreadable());
                }
            }
        }
    }

    async fn idle(&mut self) -> String {
        loop {
            tokio::select! {
                biased;
                how = self.process.ended() => return how,
                frames = self.channels.iopub.recv() => match frames {
                    Ok(frames) => self.swollen |= self.cell.overheard(frames) > SWELLING,
                    Err(error) => return self.lost(error).await.0,
                },
            }
        }
    }

    async fn interrupt(&mut self) {
        self.cell.interrupted = true;
        match self.interrupt_mode {
            InterruptMode::Signal => self.process.signal_group(Signal::INT),
            InterruptMode::Message => {
                let (_, request) = self.session.request("interrupt_request", &json!({}));
                // If the kernel has gone, `next` says so.
                let _ = self.channels.control.send(request).await;
            }
        }
    }

    fn process(&self) -> &Process {
        &self.process
    }
}

impl Cell {
    /// Takes a message from iopub, and says how large it was, bytes.
    fn heard(&mut self, frames: ZmqMessage) -> usize {
        let Some(message) = Message::parse(frames) else { return 0 };
        let size = message.size();
        if message.parent != self.id {
            self.aside(&message);
            return size;
        }
        if size > MAX_CONTENT {
            self.fail(Failure::too_large(size));
        } else if let Err(error) = self.understand(&message) {
            let value = format!("the kernel sent a {} that cannot be read: {error}", message.kind);
            let name = "InvalidMessage".to_owned();
            self.fail(Failure { name, value, traceback: String::new() });
        }
        size
    }

    /// Takes a message from iopub while no cell runs, and says how large it was, bytes.
    fn overheard(&mut self, frames: ZmqMessage) -> usize {
        let Some(message) = Message::parse(frames) else { return 0 };
        self.aside(&message);
        message.size()
    }

    /// Takes a message about no cell that runs, from what earlier ones have left running. What that
    /// prints is told with the cell that does run, or the next; what it shows belonged to its own.
    fn aside(&mut self, message: &Message) {
        if message.kind != "stream" || message.size() > MAX_CONTENT {
            return;
        }
        // Nobody waits for it: what cannot be read is nothing.
        let Ok(item) = message.content().map(message::Printed::item) else { return };
        if self.started && !self.is_over() {
            self.events.extend(printed(item));
        } else {
            self.backlog.push(item);
        }
    }

    fn understand(&mut self, message: &Message) -> serde_json::Result<()> {
        fn read<T: DeserializeOwned>(message: &Message) -> serde_json::Result<T> {
            message.content()
        }
        match message.kind.as_str() {
            "status" => {
                self.idle |= read::<message::Status>(message)?.execution_state == "idle";
            }
            "error" => self.raised(read(message)?),
            _ if self.hidden => {}
            "execute_input" => {
                let input: message::Input = read(message)?;
                self.started = true;
                self.events.push_back(Event::Started(input.execution_count));
                let backlog = std::mem::take(&mut self.backlog);
                self.events.extend(backlog.into_items().into_iter().filter_map(printed));
            }
            "stream" => {
                self.events.extend(printed(read::<message::Printed>(message)?.item()));
            }
            kind @ ("display_data" | "execute_result") => {
                let message::Shown { data } = read(message)?;
                let is_main = kind == "execute_result";
                self.events.push_back(Event::Shown { data, is_main });
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a message from the shell channel.
    fn replied(&mut self, frames: ZmqMessage) {
        let message = Message::parse(frames).filter(|message| message.parent == self.id);
        if let Some(message) = message {
            self.reply = Some(message.content().unwrap_or_else(|_| Reply::unreadable()));
        }
    }

    fn is_over(&self) -> bool {
        self.idle && self.reply.is_some()
    }

    fn ends_kernel(&self) -> bool {
        self.reply.as_ref().is_some_and(Reply::ends_kernel)
    }

    /// Since when it has been idle and interrupted, without a reply.
    fn unanswered(&mut self) -> Option<Instant> {
        let may_lack_a_reply = self.idle && self.interrupted && self.reply.is_none();
        may_lack_a_reply.then(|| *self.unanswered.get_or_insert_with(Instant::now))
    }

    /// How it ended, if it has, and all else has been told.
    fn end(&mut self) -> Option<Result<Event, Died>> {
        let reply = self.reply.as_ref().filter(|_| self.is_over())?;
        if self.ends_kernel() {
            return Some(Err(Died("the cell ended the kernel, as exit() does".to_owned())));
        }
        // Some kernels say only here what failed.
        if !self.failed && reply.status != "ok" {
            let raised = match reply.status.as_str() {
                "error" => reply.raised.clone(),
                _ => Raised::aborted(),
            };
            self.raised(raised);
            return self.events.pop_front().map(Ok);
        }
        Some(Ok(Event::Done))
    }

    fn raised(&mut self, raised: Raised) {
        let traceback = without_colours(&raised.traceback.join("\n"));
        self.fail(Failure {
            name: raised.ename,
            value: without_colours(&raised.evalue),
            traceback,
        });
    }

    fn fail(&mut self, failure: Failure) {
        self.failed = true;
        self.events.push_back(Event::Failed(failure));
    }
}

/// Waits until so much time has passed since then; forever if that has not been.
async fn since(then: Option<Instant>, time: Duration) {
    match then {
        Some(then) => sleep_until(then + time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
