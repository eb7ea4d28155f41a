//! How long a client may take over the head of a request.
//!
//! hyper has one timeout for that and for the time before, in which a client that keeps its
//! connection open asks for nothing. The one is to be short and the other long, so hyper gets a
//! timer from here. hyper starts it when it begins to wait for a head, drops it when the head is
//! complete, and looks at it after each read: when something has been received since the start,
//! the head has begun, and the short time runs.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt;
use tokio::time::Sleep;

/// How long the rest of a head may take once its first byte has come. Also what a handshake before
/// the first head may take.
pub const HEAD: Duration = Duration::from_secs(10);

/// The length of HTTP/2's preface, bytes. No request that names a sandbox is shorter.
const PREFACE: usize = 24;

/// What has been received over one connection, bytes.
#[derive(Clone, Default)]
pub(crate) struct Received(Arc<AtomicUsize>);

impl Received {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends when the client is too slow to say which HTTP it speaks, for which hyper would wait
    /// for ever; otherwise never.
    pub(crate) async fn stalled(&self) {
        tokio::time::sleep(HEAD).await;
        if self.get() >= PREFACE {
            std::future::pending::<()>().await;
        }
    }
}

/// The timer for the heads of one HTTP/1.1 connection.
pub(crate) struct HeadTimer {
    received: Received,
    /// Whether a head was waited for. The first has begun before, or there would be no telling
    /// that this is HTTP/1.1.
    later: AtomicBool,
}

impl HeadTimer {
    pub(crate) fn new(received: Received) -> Self {
        Self { received, later: AtomicBool::new(false) }
    }
}

impl rt::Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        let later = self.later.swap(true, Ordering::Relaxed);
        Box::pin(Patience {
            before: if later { self.received.get() } else { 0 },
            received: self.received.clone(),
            begun: false,
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
        })
    }
}

/// The wait for one head: long, then short.
struct Patience {
    received: Received,
    /// What had been received when it began.
    before: usize,
    begun: bool,
    sleep: Pin<Box<Sleep>>,
}

impl rt::Sleep for Patience {}

impl Future for Patience {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.begun && self.received.get() != self.before {
            self.begun = true;
            self.sleep.as_mut().reset(tokio::time::Instant::now() + HEAD);
        }
        self.sleep.as_mut().poll(cx)
    }
}
