//! From an execution to its client: a queue of lines that holds a bounded number of bytes, and becomes
//! the body of the response. When nothing comes for a while the body says that it is alive.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use crate::lines;

/// How long the body is silent at most.
const SILENCE: Duration = Duration::from_secs(5);

/// What the queue holds at most, bytes; or one line that is longer.
const CAPACITY: u32 = 1 << 20;

/// A line, and the place it takes until the connection has taken it.
type Queued = (Bytes, Option<OwnedSemaphorePermit>);

/// Where an execution puts its lines.
#[derive(Debug)]
pub(crate) struct Output {
    queue: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
}

/// A queue, and the body it becomes, which keeps what it `holds` until it ends or the client goes.
pub(crate) fn channel(holds: impl Send + 'static) -> (Output, Body) {
    let (queue, lines) = mpsc::unbounded_channel::<Queued>();
    let output = Output { queue, room: Arc::new(Semaphore::new(CAPACITY as usize)) };
    let body = stream::unfold((lines, holds), async |(mut lines, holds)| {
        let line = match timeout(SILENCE, lines.recv()).await {
            Ok(Some((line, _room))) => line,
            Ok(None) => return None,
            Err(_) => lines::keepalive(),
        };
        Some((Ok::<_, Infallible>(line), (lines, holds)))
    });
    (output, Body::from_stream(body))
}

impl Output {
    /// Puts a line in if there is room for it, and gives it back otherwise.
    pub(crate) fn offer(&self, line: Bytes) -> Result<(), Bytes> {
        match Arc::clone(&self.room).try_acquire_many_owned(size(&line)) {
            Ok(room) => {
                self.put(line, Some(room));
                Ok(())
            }
            Err(_) => Err(line),
        }
    }

    /// Waits until there is room for a line and half of the queue is empty: whoever had to stop is not
    /// to be stopped again at once. Can be dropped.
    pub(crate) async fn room(&self, line: &Bytes) {
        let wanted = size(line).max(CAPACITY / 2);
        // Never closed.
        let _ = self.room.acquire_many(wanted).await;
    }

    /// Puts in a line that may not wait: one of the few that close an execution.
    pub(crate) fn push(&self, line: Bytes) {
        self.put(line, None);
    }

    fn put(&self, line: Bytes, room: Option<OwnedSemaphorePermit>) {
        // Whoever cares whether the client is still there asks.
        let _ = self.queue.send((line, room));
    }

    /// Whether the client has gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Waits until the client has gone.
    pub(crate) async fn closed(&self) {
        self.queue.closed().await;
    }
}

fn size(line: &Bytes) -> u32 {
    u32::try_from(line.len()).unwrap_or(CAPACITY).min(CAPACITY)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_and_lines_come_in_order() {
        let (output, body) = channel(());
        let mut body = body.into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), lines::keepalive());
        output.offer("a".into()).unwrap();
        output.push("b".into());
        drop(output);
        let rest: Vec<_> = body.map(Result::unwrap).collect().await;
        assert_eq!(rest, ["a", "b"]);
    }

    #[tokio::test]
    async fn it_holds_no_more_than_it_may() {
        let (output, body) = channel(());
        let mut body = body.into_data_stream();
        let line = Bytes::from(vec![b'x'; CAPACITY as usize / 2]);
        output.offer(line.clone()).unwrap();
        output.offer(line.clone()).unwrap();
        let line = output.offer(line).unwrap_err();
        let mut room = Box::pin(output.room(&line));
        assert!(futures::poll!(&mut room).is_pending());
        body.next().await.unwrap().unwrap();
        room.await;
        output.offer(line).unwrap();
        // Longer than all of it: alone.
        let long = Bytes::from(vec![b'x'; 2 * CAPACITY as usize]);
        assert!(output.offer(long.clone()).is_err());
        body.next().await.unwrap().unwrap();
        body.next().await.unwrap().unwrap();
        output.offer(long).unwrap();
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_noticed() {
        let (output, body) = channel(());
        assert!(!output.is_closed());
        drop(body);
        output.closed().await;
        assert!(output.is_closed());
    }
}
