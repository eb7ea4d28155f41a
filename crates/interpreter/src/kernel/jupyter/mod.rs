//! Jupyter kernels, over their own protocol: ZeroMQ on sockets in a directory that is the kernel's.
//!
//! - [`spec`]: how a kernel is started. [`connection`]: its sockets. [`message`]: what goes over them.
//!
//! A cell is a request on the shell channel. What it does comes over iopub, which everybody who
//! listens gets, each message with the number of the request it is about; it is over when its reply
//! has come *and* iopub said that the kernel is idle again, for the two channels are not in step.

pub(crate) mod connection;
pub(crate) mod message;
pub(crate) mod spec;

use std::{
    collections::VecDeque,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    process::{ChildStderr, Command},
    time::{sleep, timeout},
};
use zeromq::{SocketRecv, SocketSend, ZmqError, ZmqMessage};

use self::{
    connection::{Channels, Endpoints, broken},
    message::{Message, Raised, Reply, Session, without_colours},
    spec::{InterruptMode, Spec},
};
use super::{
    Died, Event, Failure, Kernel, Launch, MAX_CONTENT, attached::printed, backlog::Backlog,
    process::Process,
};

/// How long a process may take to end after its connections have.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a kernel that is idle again may take to reply, if its cell was interrupted: less than
/// there is between two interrupts.
const REPLY_TIMEOUT: Duration = Duration::from_millis(300);

/// How long to wait for a kernel that starts to be heard on iopub, until it is asked once more. Its
/// answer to the first question may have come before it knew that somebody listens.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// A message of this size, bytes, leaves a socket with memory for another one like it.
const SWELLING: usize = 4 << 20;

/// How much is kept of what a kernel says on its standard error, bytes: for when it does not start.
const DIAGNOSTICS: usize = 4096;

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
    failed: bool,
    /// What is to be told next.
    events: VecDeque<Event>,
    /// What others have printed while none ran that is told, such as threads of earlier ones.
    backlog: Backlog,
}

/// Starts a kernel and waits until it can run cells. `setup` is the first, hidden.
///
/// # Errors
/// When it cannot be started, or ends.
pub(crate) async fn start(
    launch: &Launch,
    spec: &Spec,
    setup: Option<&str>,
) -> Result<Box<dyn Kernel>, Died> {
    let failed = |error: std::io::Error| Died(format!("the kernel cannot be started: {error}"));
    let session = Session::new();
    let endpoints = Endpoints::new(&launch.dir).map_err(failed)?;
    let file = launch.dir.join("connection.json");
    endpoints.write(&file, session.key()).map_err(failed)?;
    let argv = spec.command(&file.to_string_lossy());
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).envs(&spec.env).current_dir(&launch.cwd);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(command)
        .map_err(|error| Died(format!("`{}` cannot be started: {error}", argv[0])))?;
    let diagnostics = process.child().stderr.take().map(Diagnostics::collect);

    let connected = async {
        let mut channels = endpoints.connect().await?;
        greet(&session, &mut channels).await?;
        Ok(channels)
    };
    let outcome = tokio::select! {
        connected = connected => connected,
        how = process.ended() => Err(Died(how)),
    };
    let channels = match (outcome, diagnostics) {
        (Ok(channels), _) => channels,
        (Err(died), Some(diagnostics)) => return Err(diagnostics.explain(died).await),
        (Err(died), None) => return Err(died),
    };
    let interrupt_mode = spec.interrupt_mode;
    let cell = Cell::default();
    let mut kernel =
        Jupyter { process, endpoints, channels, swollen: false, session, interrupt_mode, cell };
    if let Some(code) = setup
        && let Some(failure) = super::run_hidden(&mut kernel, code).await?
    {
        crate::log(&format!("setting a kernel up failed: {}: {}", failure.name, failure.value));
    }
    Ok(Box::new(kernel))
}

/// Asks until the kernel has answered on the shell channel and been heard on iopub.
async fn greet(session: &Session, channels: &mut Channels) -> Result<(), Died> {
    let (mut answered, mut heard) = (false, false);
    while !(answered && heard) {
        let (_, request) = session.request("kernel_info_request", &json!({}));
        channels.shell.send(request).await.map_err(broken)?;
        let asked = sleep(ASK_INTERVAL);
        tokio::pin!(asked);
        while !(answered && heard) {
            tokio::select! {
                reply = channels.shell.recv() => {
                    reply.map_err(broken)?;
                    answered = true;
                }
                message = channels.iopub.recv() => {
                    let message = message.ok().and_then(Message::parse);
                    // Only what answers us shows that we are subscribed; a welcome does not.
                    heard |= message.is_some_and(|message| message.kind == "status");
                }
                // Without an answer it is busy starting: one question is enough.
                () = &mut asked, if answered => break,
            }
        }
    }
    Ok(())
}

impl Jupyter {
    /// Takes another socket for iopub, and the memory of the one before is free. Begins anew if it was
    /// dropped.
    async fn shrink(&mut self) -> Result<(), Died> {
        self.channels.iopub = self.endpoints.subscribe().await?;
        greet(&self.session, &mut self.channels).await?;
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
            if self.swollen && self.cell.is_over() {
                self.shrink().await?;
            }
            if let Some(end) = self.cell.end() {
                return end;
            }
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
                () = sleep(REPLY_TIMEOUT), if self.cell.may_lack_a_reply() => {
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

    fn may_lack_a_reply(&self) -> bool {
        self.idle && self.interrupted && self.reply.is_none()
    }

    /// How it ended, if it has, and all else has been told.
    fn end(&mut self) -> Option<Result<Event, Died>> {
        let reply = self.reply.as_ref().filter(|_| self.is_over())?;
        if reply.ends_kernel() {
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

/// The last of what a kernel says on its standard error, which is read for as long as it lives.
struct Diagnostics {
    text: Arc<Mutex<Vec<u8>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Diagnostics {
    fn collect(mut stderr: ChildStderr) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&text);
        let reader = tokio::spawn(async move {
            let mut buffer = [0; DIAGNOSTICS];
            while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..length]);
                let excess = kept.len().saturating_sub(DIAGNOSTICS);
                kept.drain(..excess);
            }
        });
        Self { text, reader }
    }

    /// Adds what was said to why a kernel did not start.
    async fn explain(self, Died(why): Died) -> Died {
        // What it said last may still be on its way; what it left running may hold the pipe open.
        let _ = timeout(ASK_INTERVAL, self.reader).await;
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        match String::from_utf8_lossy(&text).trim() {
            "" => Died(why),
            said => Died(format!("{why}: {said}")),
        }
    }
}
