//! Bash: one process that evaluates cell after cell.
//!
//! It is an interactive shell without a terminal: only such a one survives an interrupt, and goes on
//! with its state after errors that end a script (an unset variable under `set -u`, for one). It reads
//! commands from a pipe, one line a cell; cells themselves read from `/dev/null`. What other shells
//! print as a prompt is here a record in a named pipe, with the status of the cell: no descriptor of it
//! is open while a cell runs, so nothing that a cell starts can hold it or write to it by mistake.
//!
//! A cell that ends the shell itself, as `exit` does, ends as a script would: with that exit code.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    process::Stdio,
};

use async_trait::async_trait;
use jiff::Timestamp;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, open},
    io::fcntl_dupfd_cloexec,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
};
use tokio::{process::Command, sync::mpsc};

use self::interrupts::Interrupts;
use super::{
    Died, Event, Failure, Kernel, Launch, Stream,
    attached::{Attached, feed, printed},
    pipes::{Item, Pipes, enlarge},
    process::Process,
};

/// The record that says where the cells after an interrupt begin.
const SYNC: &str = "sync";

/// Where it finds what is to be its standard error.
const STDERR: RawFd = 3;

/// Descriptors above this are free for use between fork and exec.
const ASIDE: RawFd = 16;

/// The record that says that a cell has been read, and runs.
const BEGIN: &str = "begin";

/// What an interactive shell prints when it is told to exit, and, after what the cell has printed, when
/// it is interrupted. Both on standard error, where a script is silent.
const EXIT: &str = "exit\n";
const INTERRUPTED: &str = "\n";

/// A Bash that runs.
#[derive(Debug)]
pub(crate) struct Bash {
    attached: Attached,
    lines: mpsc::UnboundedSender<Vec<u8>>,
    /// The named pipe of its records, quoted for it.
    records: String,
    /// What opens standard output and error again that a cell has closed.
    reopen: String,
    /// Cells that were not hidden.
    count: u64,
    hidden: bool,
    /// Whether a cell runs, and waits for what records.
    running: bool,
    waits: Waits,
    /// Whether the running cell, or the last, was interrupted.
    interrupted: bool,
    /// Those that it was sent.
    interrupts: Interrupts,
    /// With what command the shell was started.
    command: String,
    /// Whether a cell may have said what is to be done when it is interrupted.
    traps: bool,
    /// With what status the running cell has ended, if it has.
    ended: Option<String>,
    /// Whether it traces what it runs (`set -x`).
    traces: bool,
    queue: VecDeque<Event>,
    /// The last on standard error, if it may be the shell's own: what comes next shows it.
    held: Option<(String, Timestamp)>,
    /// See [`terminal`].
    _terminal: Option<OwnedFd>,
}

/// Which record is expected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Waits {
    /// [`SYNC`]; what comes before it are prompts after interrupts that came too late.
    Sync,
    /// The prompt after that.
    Prompt,
    /// [`BEGIN`]. Before that the cell must not be interrupted: of its line, the rest would run.
    Begin,
    /// The end of the cell.
    End,
}

impl Bash {
    /// Starts one, and waits until it can take cells.
    ///
    /// # Errors
    /// When it cannot be started: with a sentence that says why.
    pub(crate) async fn start(launch: &Launch) -> Result<Self, Died> {
        let [records, out, err] = ["records", "out", "err"].map(|name| launch.dir.join(name));
        let (attached, lines, terminal) = spawn(launch, [&records, &out, &err])
            .map_err(|error| Died(format!("bash cannot be started: {error}")))?;
        let [records, out, err] = [records, out, err].map(|path| quoted(&path.to_string_lossy()));
        let mut bash = Self {
            attached,
            lines,
            records,
            reopen: format!("{{ : 3>&1; }} 2>/dev/null || exec >{out}; : 3>&2 || exec 2>{err}"),
            count: 0,
            hidden: true,
            running: false,
            waits: Waits::End,
            interrupted: false,
            interrupts: Interrupts::default(),
            command: String::new(),
            traps: false,
            ended: None,
            traces: false,
            queue: VecDeque::new(),
            held: None,
            _terminal: terminal,
        };
        bash.line(&format!(
            "exec 2>&3 3>&-; {}; set +o history; history -c; unset HISTFILE MAILCHECK",
            bash.prompt(&quoted("\"$?\"")),
        ));
        let mut said = String::new();
        loop {
            match bash.attached.next().await {
                Ok(Item::Record(_)) => break,
                Ok(Item::Printed { text, .. }) => said.push_str(&text),
                Ok(Item::TooLarge(_)) => {}
                Err(Died(how)) => return Err(Died(format!("{how}: {}", said.trim()))),
            }
        }
        bash.attached.pause();
        bash.command = bash.attached.process().command();
        Ok(bash)
    }

    /// Assigns what says, in place of a prompt, that the cell is over, with its status: a word that is
    /// expanded then, or when it is assigned. The prompts that cells set, as virtual environments do, are
    /// taken away then.
    fn prompt(&self, status: &str) -> String {
        let rest = format!(" \"$-\" >{}; PS0= PS1= PS2=; }} 2>/dev/null", self.records);
        format!("PROMPT_COMMAND={}{status}{}", quoted("{ printf '%s %s\\n' "), quoted(&rest))
    }

    fn line(&self, line: &str) {
        // If it has ended, that is seen where it is read from.
        let _ = self.lines.send(format!("{line}\n").into_bytes());
    }

    /// Takes in something that was said, and queues what is to be told of it.
    fn take(&mut self, item: Item) {
        match item {
            Item::Record(record) => self.record(&record),
            // What the shell prints when it is interrupted; here, after the cell that was to be.
            Item::Printed { stream: Stream::Stderr, text, .. }
                if text.trim_end_matches(INTERRUPTED).is_empty()
                    && matches!(self.waits, Waits::Sync | Waits::Prompt) => {}
            // Before a hidden cell has begun: of others.
            text if self.hidden && self.waits != Waits::End => self.attached.keep(text),
            text if !self.hidden => self.tell(text),
            _ => {}
        }
    }

    fn record(&mut self, record: &str) {
        match (self.waits, record.split_once(' ')) {
            (Waits::Sync, _) if record == SYNC => self.waits = Waits::Prompt,
            (Waits::Prompt, Some(_)) => self.waits = Waits::Begin,
            (Waits::Begin, _) if record == BEGIN => {
                self.waits = Waits::End;
                if self.interrupted {
                    self.signal();
                }
            }
            (Waits::End, Some((status, flags))) => {
                self.traces = flags.contains('x') || (self.hidden && self.traces);
                self.ended = Some(status.to_owned());
                self.waits = Waits::Sync;
            }
            _ => {}
        }
    }

    /// Queues text, but for a last line that may be the shell's own.
    fn tell(&mut self, item: Item) {
        let Item::Printed { stream: stream @ Stream::Stderr, mut text, at } = item else {
            self.queue.extend(printed(item));
            return;
        };
        if let Some((held, _)) = self.held.take_if(|(held, _)| held.starts_with(INTERRUPTED)) {
            text.insert_str(0, &held);
        }
        self.tell_held();
        let length = self.told(&text);
        if length < text.len() {
            self.held = Some((text.split_off(length), at));
        }
        if !text.is_empty() {
            self.queue.push_back(Event::Printed { stream, text, at });
        }
    }

    /// How much of text on standard error is not the shell's own, or that may be.
    fn told(&self, text: &str) -> usize {
        let starts_line = |before: &str| before.is_empty() || before.ends_with('\n');
        match text.strip_suffix(EXIT) {
            Some(before) if starts_line(before) => before.len(),
            _ => {
                let first = match text.trim_end_matches(INTERRUPTED).len() {
                    0 => 0,
                    line => text.len().min(line + 1),
                };
                // One for each interrupt.
                first.max(text.len().saturating_sub(self.interrupts.sent()))
            }
        }
    }

    /// Queues what was held: it was the cell's.
    fn tell_held(&mut self) {
        let held = self.held.take();
        let told = held.map(|(text, at)| Event::Printed { stream: Stream::Stderr, text, at });
        self.queue.extend(told);
    }

    /// Interrupts the cell, as a terminal does.
    fn signal(&mut self) {
        self.interrupts.send(self.attached.process(), &self.command);
        if self.traps {
            self.interrupts.stop();
        }
    }

    fn end(&mut self, status: &str) {
        self.running = false;
        self.interrupts.stop();
        self.held.take_if(|(text, _)| text.starts_with(INTERRUPTED));
        self.tell_held();
        let last = self.attached.pause();
        if !self.hidden {
            self.queue.extend(last.into_iter().filter_map(printed));
        }
        if status != "0" {
            let why = match status.parse::<i32>() {
                Ok(130) if self.interrupted => "the cell was interrupted".to_owned(),
                Ok(code @ 129..=192) => {
                    format!("the last command of the cell was ended by signal {}", code - 128)
                }
                _ => "the last command of the cell failed".to_owned(),
            };
            self.fail(status, &why);
        }
        self.queue.push_back(Event::Done);
    }

    fn fail(&mut self, status: &str, why: &str) {
        self.queue.push_back(Event::Failed(Failure {
            name: "ExitCode".to_owned(),
            value: status.to_owned(),
            traceback: format!("{why}: exit code {status}"),
        }));
    }

    /// The process has ended, and all that it said is queued. If it was the cell that ended it, and no
    /// signal, the cell is over, as a script is that exits; that the shell has gone is seen when another
    /// is begun.
    fn leave(&mut self) {
        let begun = self.running && !self.hidden && self.waits == Waits::End;
        match self.attached.process().exit_code().filter(|_| begun) {
            Some(code) => {
                self.running = false;
                self.held = None;
                if code != 0 {
                    let why = "the cell ended the shell, as exit does or a failing command under set -e, \
                        and its variables are gone";
                    self.fail(&code.to_string(), why);
                }
                self.queue.push_back(Event::Done);
            }
            None => self.tell_held(),
        }
    }
}

#[async_trait]
impl Kernel for Bash {
    async fn begin(&mut self, code: &str, hidden: bool) -> Result<(), Died> {
        self.attached.resume().await;
        if let Some(how) = self.attached.process().has_ended() {
            return Err(Died(how));
        }
        self.hidden = hidden;
        if !hidden {
            self.count += 1;
            self.queue.push_back(Event::Started(self.count));
        }
        if code.contains('\0') {
            let value = "the code has a NUL byte, which Bash cannot take".to_owned();
            let traceback = format!("SyntaxError: {value}");
            let failure = Failure { name: "SyntaxError".to_owned(), value, traceback };
            self.queue.extend([Event::Failed(failure), Event::Done]);
            self.attached.pause();
            return Ok(());
        }
        // An empty line first: an interrupt that is still on its way swallows a line, and after an open
        // quote the first word of the next is not read as it should be.
        self.line("\n");
        self.waits = Waits::Begin;
        if std::mem::take(&mut self.interrupted) {
            self.waits = Waits::Sync;
            self.line(&format!("{{ printf '{SYNC}\\n' >{}; }} 2>/dev/null", self.records));
        }
        if !hidden {
            for item in self.attached.take_backlog() {
                self.take(item);
            }
        }
        // Our own commands are not traced, and hidden cells neither.
        let untraced = if self.traces { "{ set +x; } 2>/dev/null; " } else { "" };
        let traced = if self.traces && !hidden { "set -x; " } else { "" };
        self.running = true;
        self.traps |= !hidden && has_word(code, "trap");
        self.interrupts = Interrupts::default();
        let Self { records, reopen, .. } = &*self;
        let cell = quoted(&format!("{traced}{code}"));
        // Cells may set what is run in place of a prompt.
        let (before, after) = (self.prompt(&quoted("\"$?\"")), self.prompt("$?"));
        self.line(&format!(
            "{untraced}{reopen}; {{ {before}; printf '{BEGIN}\\n' >{records}; }} 2>/dev/null; \
             eval {cell} </dev/null; {{ {after}; }} 2>/dev/null"
        ));
        Ok(())
    }

    async fn next(&mut self) -> Result<Event, Died> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            let process = self.attached.process();
            if self.ended.is_some()
                && !self.interrupts.are_missed(process, &self.command)
                && let Some(status) = self.ended.take()
            {
                self.end(&status);
                continue;
            }
            let item = tokio::select! {
                () = self.interrupts.due() => {
                    self.interrupts.repeat(self.attached.process(), &self.command);
                    continue;
                }
                item = self.attached.next() => item,
            };
            match item {
                Ok(item) => self.take(item),
                Err(died) => {
                    self.interrupts.stop();
                    if self.ended.is_some() {
                        continue;
                    }
                    self.leave();
                    if self.queue.is_empty() {
                        return Err(died);
                    }
                }
            }
        }
    }

    async fn interrupt(&mut self) {
        if self.running {
            self.interrupted = true;
            if self.waits == Waits::End {
                self.signal();
            }
        }
    }

    fn process(&self) -> &Process {
        self.attached.process()
    }
}

/// Whether code has a word, wherever that is.
fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && !"_-".contains(c)).any(|part| part == word)
}

/// As one word of a shell, whatever it contains.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Starts the process with its pipes, and the task that writes to it.
#[allow(unsafe_code)]
fn spawn(
    launch: &Launch,
    [records, out, err]: [&Path; 3],
) -> io::Result<(Attached, mpsc::UnboundedSender<Vec<u8>>, Option<OwnedFd>)> {
    let records = named_pipe(records)?;
    let (its_out, its_err) = (out, err);
    let (out, err) = (named_pipe(its_out)?, named_pipe(its_err)?);
    let its = |path| open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let (its_out, its_err) = (its(its_out)?, its(its_err)?);
    let its_err = fcntl_dupfd_cloexec(&its_err, ASIDE)?;
    let number = its_err.as_raw_fd();
    let place = move || {
        // SAFETY: the first is open in the parent until it has forked; of the second nobody in the
        // new process, which is about to become another program, believes to own it.
        if unsafe { libc::dup2(number, STDERR) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    let (terminal, its_terminal) = terminal().ok().unzip();
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "--noediting", "-i", "+m", "+H"]);
    command.current_dir(&launch.cwd).stdin(Stdio::piped()).stdout(Stdio::from(its_out));
    command.stderr(its_terminal.map_or_else(Stdio::null, Stdio::from));
    // SAFETY: only system calls, between fork and exec; nothing is allocated.
    unsafe { command.pre_exec(place) };
    let mut process = Process::spawn(command)?;
    let input = process.child().stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let attached = Attached::new(process, Pipes::new(out, err, records, None)?);
    Ok((attached, feed(input), terminal))
}

/// Our end of a pipe that can be opened by its name. It is open for writing, too: so there is always
/// somebody at either end.
fn named_pipe(path: &Path) -> io::Result<OwnedFd> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let pipe = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    enlarge(&pipe);
    Ok(pipe)
}

/// A terminal that is nobody's. An interactive shell keeps what its standard error was at the start, and
/// resets that whenever a program was ended by a signal; it would complain if it were none.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let its = ioctl_tiocgptpeer(&ours, flags)?;
    Ok((ours, its))
}

mod interrupts;
#[cfg(test)]
mod tests;
