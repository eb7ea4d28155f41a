//! From a process's descriptors to whoever listens.
//!
//! Each stream is read in chunks and each chunk goes to every subscriber. A subscriber that is slow
//! holds the process back, through a bounded queue and then its pipe; one that has gone is
//! forgotten; with none, output is read and thrown away, so that a process never blocks because
//! nobody looks. Nothing is kept for those who come later.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::{
    io::unix::AsyncFd,
    select,
    sync::mpsc::{self, Receiver, Sender, error::TrySendError},
    task::coop,
};
use tokio_util::sync::CancellationToken;

/// How many chunks wait for a slow subscriber before it holds the process back.
const QUEUE: usize = 64;

/// The most that a pipe holds when nobody has changed its size.
const PIPE_CAPACITY: usize = 64 << 10;

/// Which of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal.
    Terminal,
}

impl Stream {
    /// The most bytes that one event carries.
    fn chunk_size(self) -> usize {
        match self {
            Self::Stdout | Self::Stderr => 32 << 10,
            Self::Terminal => 16 << 10,
        }
    }
}

/// A piece of output, cut wherever the read ended.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Where it was written.
    pub stream: Stream,
    /// What was written.
    pub data: Bytes,
}

/// The subscribers of one process.
pub struct Fanout {
    /// None after the end.
    subscribers: Mutex<Option<Vec<Sender<Chunk>>>>,
}

impl Default for Fanout {
    /// Open, without subscribers.
    fn default() -> Self {
        Self { subscribers: Mutex::new(Some(Vec::new())) }
    }
}

impl Fanout {
    /// Output from now on. The receiver ends when the process has, at once if it had already.
    pub fn subscribe(&self) -> Receiver<Chunk> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        if let Some(subscribers) = self.subscribers().as_mut() {
            // A process that says nothing must not collect those who came and went.
            subscribers.retain(|sender| !sender.is_closed());
            subscribers.push(sender);
        }
        receiver
    }

    /// Lets every subscriber run out of chunks.
    pub fn close(&self) {
        *self.subscribers() = None;
    }

    /// Hands a chunk to every subscriber, waiting for slow ones until `cut`.
    async fn publish(&self, stream: Stream, data: &[u8], cut: &CancellationToken) {
        // The queue gets a copy of the right size, not the whole read buffer.
        let chunk = Chunk { stream, data: Bytes::copy_from_slice(data) };
        for sender in self.senders() {
            match sender.try_send(chunk.clone()) {
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(chunk)) => select! {
                    _ = sender.send(chunk) => {}
                    () = cut.cancelled() => {}
                },
            }
        }
    }

    /// Those still listening.
    fn senders(&self) -> Vec<Sender<Chunk>> {
        let mut subscribers = self.subscribers();
        let Some(subscribers) = subscribers.as_mut() else { return Vec::new() };
        subscribers.retain(|sender| !sender.is_closed());
        subscribers.clone()
    }

    fn is_watched(&self) -> bool {
        self.subscribers().as_ref().is_some_and(|subscribers| !subscribers.is_empty())
    }

    /// A poisoned list is still a list.
    fn subscribers(&self) -> MutexGuard<'_, Option<Vec<Sender<Chunk>>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forwards a stream until its end or until `cut`, which gives up on whoever still holds it open.
/// Returns how many bytes there were.
pub async fn pump(
    source: Arc<AsyncFd<OwnedFd>>,
    stream: Stream,
    fanout: &Fanout,
    cut: &CancellationToken,
) -> u64 {
    let mut total = 0;
    loop {
        let mut ready = select! {
            biased;
            () = cut.cancelled() => break,
            ready = source.readable() => match ready {
                Ok(ready) => ready,
                Err(_) => return total,
            },
        };
        match read_chunk(&source, stream.chunk_size()) {
            Ok(data) if data.is_empty() => return total,
            Ok(data) => {
                total += data.len() as u64;
                if fanout.is_watched() {
                    fanout.publish(stream, &data, cut).await;
                } else {
                    // Thrown away; but a busy writer must not keep the only thread to itself.
                    coop::consume_budget().await;
                }
            }
            Err(Errno::WOULDBLOCK) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            // A terminal says EIO when its last user has gone.
            Err(_) => return total,
        }
    }
    let mut left = PIPE_CAPACITY;
    while let Ok(data) = read_chunk(&source, stream.chunk_size().min(left))
        && !data.is_empty()
    {
        left -= data.len();
        total += data.len() as u64;
        fanout.publish(stream, &data, cut).await;
    }
    total
}

/// Reads what is there, without waiting. The buffer lives for one read: an idle process has none.
fn read_chunk(source: &AsyncFd<OwnedFd>, size: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; size];
    let length = rustix::io::read(source.get_ref(), &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Registers a descriptor with the event loop.
///
/// # Errors
/// Those of `fcntl` and `epoll_ctl`.
#[allow(unsafe_code)]
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    // SAFETY: an OwnedFd stays open for as long as it lives, and is never swapped for another.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: PROC-31
    #[tokio::test]
    async fn everybody_gets_everything_until_the_end() {
        let fanout = Fanout::default();
        let (mut one, mut two) = (fanout.subscribe(), fanout.subscribe());
        fanout.publish(Stream::Stdout, b"x", &CancellationToken::new()).await;
        fanout.close();
        for receiver in [&mut one, &mut two] {
            assert_eq!(receiver.recv().await.unwrap().data, "x");
            assert!(receiver.recv().await.is_none());
        }
        assert!(fanout.subscribe().recv().await.is_none());
    }

    // Rules: PROC-40
    #[tokio::test]
    async fn a_cut_does_not_wait_for_slow_subscribers() {
        let fanout = Fanout::default();
        let mut slow = fanout.subscribe();
        let cut = CancellationToken::new();
        for _ in 0..QUEUE {
            fanout.publish(Stream::Stdout, b"x", &cut).await;
        }
        cut.cancel();
        fanout.publish(Stream::Stdout, b"lost", &cut).await;
        fanout.close();
        for _ in 0..QUEUE {
            assert_eq!(slow.recv().await.unwrap().data, "x");
        }
        assert!(slow.recv().await.is_none());
    }

    // Rules: PROC-33
    #[test]
    fn those_who_went_are_forgotten() {
        let fanout = Fanout::default();
        for _ in 0..10 {
            drop(fanout.subscribe());
        }
        let _stays = fanout.subscribe();
        assert_eq!(fanout.subscribers().as_ref().map(Vec::len), Some(1));
    }
}
