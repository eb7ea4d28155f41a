//! JavaScript and TypeScript: Node, with a runner of ours (`node/` beside `src/`) that runs cells in
//! its main thread and says in records what they do.

use std::{
    collections::VecDeque,
    fs, io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    process::Stdio,
};

use async_trait::async_trait;
use jiff::Timestamp;
use rustix::{
    io::fcntl_dupfd_cloexec,
    pipe::{PipeFlags, pipe_with},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{net::unix::pipe, process::Command, sync::mpsc};

use super::{
    Died, Event, Failure, Kernel, Launch, Stream,
    attached::{Attached, feed, printed},
    pipes::{Item, Pipes, text_pipe},
    process::Process,
};

/// The runner's files.
const RUNNER: [(&str, &str); 14] = [
    ("children.js", include_str!("../../node/children.js")),
    ("control.js", include_str!("../../node/control.js")),
    ("display.js", include_str!("../../node/display.js")),
    ("failures.js", include_str!("../../node/failures.js")),
    ("modules.js", include_str!("../../node/modules.js")),
    ("output.js", include_str!("../../node/output.js")),
    ("place.js", include_str!("../../node/place.js")),
    ("quiet.js", include_str!("../../node/quiet.js")),
    ("runner.js", include_str!("../../node/runner.js")),
    ("scan.js", include_str!("../../node/scan.js")),
    ("source.js", include_str!("../../node/source.js")),
    ("termination.js", include_str!("../../node/termination.js")),
    ("unreadable.js", include_str!("../../node/unreadable.js")),
    ("random.js", include_str!("../../node/random.js")),
];

/// Under which number the first of its pipes is open in the runner: commands, records and answers.
const FIRST: RawFd = 3;

/// Descriptors above what the runner has are free for use between fork and exec.
const ASIDE: RawFd = 16;

/// What the runner is told.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Order<'a> {
    Cell { number: u64, code: &'a str, typescript: bool, hidden: bool },
    Interrupt { interrupt: bool },
}

/// What the runner says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Record {
    /// It can take cells.
    Ready,
    /// The cell runs: what was said before is not of it.
    Begin,
    /// What comes next was printed after what came before.
    Sync,
    /// Something was printed, to standard error or to standard output.
    Print { error: bool, text: String },
    /// A cell showed something.
    Show { data: Map<String, Value>, main: bool },
    /// The cell failed.
    Fail { name: String, value: String, traceback: String },
    /// The cell is over.
    Done,
}

/// A Node that runs.
#[derive(Debug)]
pub(crate) struct Node {
    attached: Attached,
    orders: mpsc::UnboundedSender<Vec<u8>>,
    typescript: bool,
    /// Cells that were not hidden.
    count: u64,
    hidden: bool,
    running: bool,
    /// Whether the cell that runs has begun to.
    begun: bool,
    /// What is to be told next.
    queue: VecDeque<Event>,
}

impl Node {
    /// Starts one, and waits until it can take cells.
    ///
    /// # Errors
    /// When it cannot be started: with a sentence that says why.
    pub(crate) async fn start(launch: &Launch, typescript: bool) -> Result<Self, Died> {
        Self::start_program("node".as_ref(), launch, typescript).await
    }

    async fn start_program(
        program: &Path,
        launch: &Launch,
        typescript: bool,
    ) -> Result<Self, Died> {
        let (attached, orders) = spawn(program, launch)
            .map_err(|error| Died(format!("node cannot be started: {error}")))?;
        let queue = VecDeque::new();
        let mut node = Self {
            attached,
            orders,
            typescript,
            count: 0,
            hidden: true,
            running: false,
            begun: true,
            queue,
        };
        let mut said = String::new();
        loop {
            match node.attached.next().await {
                Ok(Item::Record(line)) => match serde_json::from_str(&line) {
                    Ok(Record::Print { text, .. }) => said.push_str(&text),
                    _ => break,
                },
                Ok(Item::Printed { text, .. }) => said.push_str(&text),
                Ok(Item::TooLarge(_)) => {}
                Err(Died(how)) => return Err(Died(format!("{how}: {}", said.trim()))),
            }
        }
        node.attached.pause();
        Ok(node)
    }

    fn order(&self, order: &Order<'_>) {
        // Neither can fail: the text is text, and the task that writes ends after this.
        if let Ok(mut line) = serde_json::to_vec(order) {
            line.push(b'\n');
            let _ = self.orders.send(line);
        }
    }

    /// What is to be told of text. That of a hidden cell is not; of others', with the next.
    fn printed(&mut self, item: Item) -> Option<Event> {
        if !self.hidden {
            return printed(item);
        }
        if !self.begun {
            self.attached.keep(item);
        }
        None
    }

    /// What is to be told of something that was said, if anything.
    fn event(&mut self, item: Item) -> Option<Event> {
        let line = match item {
            Item::Record(line) => line,
            Item::TooLarge(size) => return Some(Event::Failed(Failure::too_large(size))),
            text => return self.printed(text),
        };
        // It is JSON, but some of that is too deep to be read.
        let record = serde_json::from_str(&line).unwrap_or_else(|error| {
            let value = format!("what the cell shows cannot be told: {error}");
            Record::Fail { name: "Error".to_owned(), traceback: value.clone(), value }
        });
        match record {
            Record::Ready | Record::Sync => None,
            Record::Begin => {
                self.begun = true;
                None
            }
            Record::Print { error, text } => {
                let stream = if error { Stream::Stderr } else { Stream::Stdout };
                self.printed(Item::Printed { stream, text, at: Timestamp::now() })
            }
            Record::Show { data, main } => {
                (!self.hidden).then_some(Event::Shown { data, is_main: main })
            }
            Record::Fail { name, value, traceback } => {
                Some(Event::Failed(Failure { name, value, traceback }))
            }
            Record::Done => {
                self.running = false;
                let last = self.attached.pause();
                if !self.hidden {
                    self.queue.extend(last.into_iter().filter_map(printed));
                }
                self.queue.push_back(Event::Done);
                None
            }
        }
    }
}

#[async_trait]
impl Kernel for Node {
    async fn begin(&mut self, code: &str, hidden: bool) -> Result<(), Died> {
        self.attached.resume().await;
        if let Some(how) = self.attached.process().has_ended() {
            return Err(Died(how));
        }
        self.hidden = hidden;
        self.running = true;
        self.begun = false;
        if !hidden {
            self.count += 1;
            self.queue.push_back(Event::Started(self.count));
            for item in self.attached.take_backlog() {
                let event = self.event(item);
                self.queue.extend(event);
            }
        }
        let Self { count: number, typescript, .. } = *self;
        self.order(&Order::Cell { number, code, typescript, hidden });
        Ok(())
    }

    async fn next(&mut self) -> Result<Event, Died> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let item = self.attached.next().await?;
            if let Some(event) = self.event(item) {
                return Ok(event);
            }
        }
    }

    async fn interrupt(&mut self) {
        if self.running {
            self.order(&Order::Interrupt { interrupt: true });
        }
    }

    fn process(&self) -> &Process {
        self.attached.process()
    }
}

/// Starts the process with its pipes, and the task that writes its orders.
#[allow(unsafe_code)]
fn spawn(
    program: &Path,
    launch: &Launch,
) -> io::Result<(Attached, mpsc::UnboundedSender<Vec<u8>>)> {
    for (name, text) in RUNNER {
        fs::write(launch.dir.join(name), text)?;
    }
    let (out, its_out) = text_pipe()?;
    let (err, its_err) = text_pipe()?;
    let (its_orders, orders) = pipe_with(PipeFlags::CLOEXEC)?;
    let (records, its_records) = pipe_with(PipeFlags::CLOEXEC)?;
    let (its_answers, answers) = pipe_with(PipeFlags::CLOEXEC)?;
    // Out of the way of the numbers that they are to have.
    let aside = |fd: OwnedFd| fcntl_dupfd_cloexec(&fd, ASIDE);
    let theirs = [aside(its_orders)?, aside(its_records)?, aside(its_answers)?];
    let numbers = theirs.each_ref().map(AsRawFd::as_raw_fd);
    let place = move || {
        for (number, wanted) in numbers.into_iter().zip(FIRST..) {
            // SAFETY: the first is open in the parent until it has forked; of the second nobody in
            // the new process, which is about to become another program, believes to own it.
            if unsafe { libc::dup2(number, wanted) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    let mut command = Command::new(program);
    command.arg(launch.dir.join("runner.js")).current_dir(&launch.cwd);
    command.stdin(Stdio::null()).stdout(Stdio::from(its_out)).stderr(Stdio::from(its_err));
    // SAFETY: only system calls, between fork and exec; nothing is allocated.
    unsafe { command.pre_exec(place) };
    let process = Process::spawn(command)?;
    let pipes = Pipes::new(out, err, records, Some(answers))?;
    let orders = feed(pipe::Sender::from_owned_fd(orders)?);
    Ok((Attached::new(process, pipes), orders))
}

#[cfg(test)]
mod tests;
