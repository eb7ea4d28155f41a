//! What a kernel of ours says: text on its standard output and error, and records, lines on a pipe of
//! their own.
//!
//! All that was in the two pipes when a record arrived is told before it. A kernel that waits for the
//! answer to a record can so say exactly what comes before and after what.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use jiff::Timestamp;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::{Errno, ioctl_fionread, read},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use tokio::{io::unix::AsyncFd, task::coop::consume_budget};

use super::{MAX_CONTENT, Stream};

/// How much is read at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// How much a pipe for text is to hold, in bytes.
const PIPE_SIZE: usize = 1024 * 1024;

/// What begins a record that is answered.
const ASKS: &[u8] = b"?";

/// The answer to a record; which byte it is means nothing.
const ANSWER: &[u8] = b"\n";

/// Something that a kernel said.
#[derive(Debug)]
pub(crate) enum Item {
    /// Text.
    Printed { stream: Stream, text: String, at: Timestamp },
    /// A record, without the end of its line, and without what asks for an answer.
    Record(String),
    /// A record with more than [`MAX_CONTENT`], which was not kept, and how much that was, in bytes.
    TooLarge(usize),
}

/// Both ends of a pipe for text: ours and the kernel's.
pub(crate) fn text_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    enlarge(&writer);
    Ok((reader, writer))
}

/// Makes room in a pipe for text, as far as its user may.
pub(crate) fn enlarge(pipe: &OwnedFd) {
    let _ = fcntl_setpipe_size(pipe, PIPE_SIZE);
}

/// Our ends of a kernel's pipes.
#[derive(Debug)]
pub(crate) struct Pipes {
    out: Text,
    err: Text,
    /// Which of the two is read first: the one that was not read last.
    err_first: bool,
    records: Source,
    /// What has arrived of records, where in it the next begins, and up to where no line ends after that.
    buffer: Vec<u8>,
    begin: usize,
    searched: usize,
    /// The record that is too large and still arrives, without what is in the buffer.
    skipped: Option<Skipped>,
    /// Where records are answered that ask for it.
    answers: Option<OwnedFd>,
    due: Option<Due>,
}

/// A record, and how much text in each pipe is to be told before it, in bytes.
#[derive(Debug)]
struct Due {
    record: Item,
    /// Whether it is to be answered then.
    asks: bool,
    out: usize,
    err: usize,
}

/// What is known of a record that is not kept.
#[derive(Debug)]
struct Skipped {
    asks: bool,
    /// In bytes.
    length: usize,
}

impl Pipes {
    /// From the ends to read from, and the one on which records are answered, if they are.
    pub(crate) fn new(
        out: OwnedFd,
        err: OwnedFd,
        records: OwnedFd,
        answers: Option<OwnedFd>,
    ) -> io::Result<Self> {
        Ok(Self {
            out: Text::new(Stream::Stdout, out)?,
            err: Text::new(Stream::Stderr, err)?,
            err_first: false,
            records: Source::new(records)?,
            buffer: Vec::new(),
            begin: 0,
            searched: 0,
            skipped: None,
            answers,
            due: None,
        })
    }

    /// What was said next; `None` once the kernel has closed its end of the records. Can be dropped and
    /// called anew.
    pub(crate) async fn next(&mut self) -> Option<Item> {
        loop {
            // A kernel may write as fast as this reads: others have a turn, too, and timers.
            consume_budget().await;
            if let Some(item) = self.try_next() {
                return Some(item);
            }
            if !self.records.open {
                return None;
            }
            tokio::select! {
                () = self.out.source.readable() => {}
                () = self.err.source.readable() => {}
                () = self.records.readable() => {}
            }
        }
    }

    /// What has been said and not been told.
    pub(crate) fn try_next(&mut self) -> Option<Item> {
        loop {
            if let Some(due) = &mut self.due {
                let (text, left) = match (&mut due.out, &mut due.err) {
                    (0, 0) => break,
                    (0, err) => (&mut self.err, err),
                    (out, _) => (&mut self.out, out),
                };
                let (text, read) = text.read();
                *left = if read == 0 { 0 } else { left.saturating_sub(read) };
                if text.is_some() {
                    return text;
                }
            } else if let Some((record, asks)) = self.record() {
                let (out, err) = (self.out.source.pending(), self.err.source.pending());
                self.due = Some(Due { record, asks, out, err });
            } else {
                return self.text();
            }
        }
        let Due { record, asks, .. } = self.due.take()?;
        if let Some(answers) = &self.answers
            && asks
        {
            // There is room, for there is one at a time. If nobody waits, nobody misses it.
            let _ = rustix::io::write(answers, ANSWER);
        }
        Some(record)
    }

    /// What is left of characters that were not written to their end.
    pub(crate) fn flush(&mut self) -> impl Iterator<Item = Item> {
        [self.out.flush(), self.err.flush()].into_iter().flatten()
    }

    /// Text from either pipe.
    fn text(&mut self) -> Option<Item> {
        for err in [self.err_first, !self.err_first] {
            let text = if err { &mut self.err } else { &mut self.out };
            loop {
                let (item, read) = text.read();
                if item.is_some() {
                    self.err_first = !err;
                    return item;
                }
                if read == 0 {
                    break;
                }
            }
        }
        None
    }

    /// The next record, if all of it has arrived, and whether it asks for an answer.
    fn record(&mut self) -> Option<(Item, bool)> {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let mut line = self.line(self.searched + length);
                if let Some(Skipped { asks, length }) = self.skipped.take() {
                    return Some((Item::TooLarge(length + line.len()), asks));
                }
                let asks = line.starts_with(ASKS);
                line.drain(..if asks { ASKS.len() } else { 0 });
                let record = String::from_utf8(line)
                    .unwrap_or_else(|line| String::from_utf8_lossy(line.as_bytes()).into_owned());
                return Some((Item::Record(record), asks));
            }
            self.buffer.drain(..std::mem::take(&mut self.begin));
            if self.skipped.is_some() || self.buffer.len() > MAX_CONTENT {
                let asks = self.buffer.starts_with(ASKS);
                self.skipped.get_or_insert(Skipped { asks, length: 0 }).length += self.buffer.len();
                self.buffer = Vec::new();
            }
            self.searched = self.buffer.len();
            if self.records.read(&mut self.buffer) == 0 {
                return None;
            }
        }
    }

    /// Takes the record that ends here out of the buffer, without the end of its line.
    fn line(&mut self, end: usize) -> Vec<u8> {
        let begin = std::mem::replace(&mut self.begin, end + 1);
        self.searched = self.begin;
        if end - begin <= CHUNK {
            return self.buffer[begin..end].to_vec();
        }
        // A large one is the first, and is not to be in memory twice.
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.truncate(end);
        (self.begin, self.searched) = (0, 0);
        line
    }
}

/// Text that arrives in pieces.
#[derive(Debug)]
struct Text {
    stream: Stream,
    source: Source,
    /// The beginning of a character whose end has not arrived.
    rest: Vec<u8>,
}

impl Text {
    fn new(stream: Stream, fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { stream, source: Source::new(fd)?, rest: Vec::new() })
    }

    /// Some of it, and how many bytes were read: none if there are none at the moment.
    fn read(&mut self) -> (Option<Item>, usize) {
        let mut bytes = std::mem::take(&mut self.rest);
        let before = bytes.len();
        self.source.read(&mut bytes);
        let read = bytes.len() - before;
        self.rest = bytes.split_off(bytes.len() - unfinished(&bytes));
        (self.item(&bytes), read)
    }

    fn flush(&mut self) -> Option<Item> {
        let rest = std::mem::take(&mut self.rest);
        self.item(&rest)
    }

    fn item(&self, bytes: &[u8]) -> Option<Item> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let at = Timestamp::now();
        (!text.is_empty()).then_some(Item::Printed { stream: self.stream, text, at })
    }
}

/// How many bytes at the end are the beginning of a character, and no more.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.len().min(3);
    let length = |first: u8| match first {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    let begins = (1..=last).find(|back| bytes[bytes.len() - back] & 0xc0 != 0x80);
    begins.filter(|&back| length(bytes[bytes.len() - back]) > back).unwrap_or(0)
}

/// An end to read from.
#[derive(Debug)]
struct Source {
    fd: AsyncFd<OwnedFd>,
    /// Whether anybody can still write at the other end.
    open: bool,
}

impl Source {
    #[allow(unsafe_code)]
    fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        // SAFETY: an owned descriptor stays open for as long as what it was moved into.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd, open: true })
    }

    /// Waits until there may be something.
    async fn readable(&self) {
        if !self.open {
            std::future::pending::<()>().await;
        }
        // It fails only when the runtime ends.
        let Ok(mut guard) = self.fd.readable().await else { return };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::default())) == Ok(0) {
            guard.clear_ready();
        }
    }

    /// Appends what there is, up to a chunk, and says how much that was.
    fn read(&mut self, buffer: &mut Vec<u8>) -> usize {
        let before = buffer.len();
        if !self.open {
            return 0;
        }
        buffer.resize(before + CHUNK, 0);
        let result = loop {
            match read(self.fd.get_ref().as_fd(), &mut buffer[before..]) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        let read = result.unwrap_or(0);
        buffer.truncate(before + read);
        self.open = !matches!(result, Ok(0)) && !result.is_err_and(|error| error != Errno::AGAIN);
        read
    }

    /// How much is there, in bytes.
    fn pending(&self) -> usize {
        ioctl_fionread(self.fd.get_ref()).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, pin::pin};

    use futures::poll;

    use super::*;
    use crate::kernel::soon;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    #[tokio::test]
    async fn text_without_an_end_lets_others_have_a_turn() {
        let endless = File::open("/dev/random").unwrap().into();
        let ((err, _its_err), (records, _its_records)) = (pipe(), pipe());
        let mut pipes = Pipes::new(endless, err, records, None).unwrap();
        let mut reads = pin!(async {
            for _ in 0..1000 {
                assert!(matches!(pipes.next().await, Some(Item::Printed { .. })));
            }
        });
        assert!(poll!(&mut reads).is_pending());
        soon(reads).await;
    }

    #[tokio::test]
    async fn records_of_any_length_arrive_whole() {
        let ((out, _its_out), (err, _its_err), (records, its_records)) = (pipe(), pipe(), pipe());
        let mut pipes = Pipes::new(out, err, records, None).unwrap();
        let lengths = [3, 0, 1, CHUNK - 1, CHUNK, 7, CHUNK + 1, 2, 3 * CHUNK + 5, 0, CHUNK / 2, 9];
        let record = |length: usize| "abcdefg".chars().cycle().take(length).collect::<String>();
        let writer = std::thread::spawn(move || {
            let mut its_records = File::from(its_records);
            for length in lengths {
                its_records.write_all(format!("{}\n", record(length)).as_bytes()).unwrap();
            }
        });
        for length in lengths {
            let item = soon(pipes.next()).await;
            assert!(matches!(item, Some(Item::Record(line)) if line == record(length)), "{length}");
        }
        assert!(soon(pipes.next()).await.is_none());
        writer.join().unwrap();
    }
}
