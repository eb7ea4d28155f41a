//! Keeps slots ready: an actor that makes them ahead, hands them out and sees them gone.
//!
//! An index (and with it a link name, an address and a range of host ids) is free again only when
//! its old link has left the host. Making fails sometimes: whoever waits gets the error, and the
//! pool waits longer and longer before it tries again on its own.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use atoll_core::{Error, Result, error::codes};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use crate::{links::Links, maker::Maker, names::Names, slot::Slot};

/// Slots made at once. The kernel works on links one at a time: more would only queue there.
const MADE_AT_ONCE: usize = 2;
/// First and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a released slot's link may live on its own before it is deleted: connections that the
/// node still holds keep the namespace alive.
const LINGER: Duration = Duration::from_secs(2);
/// How often to look whether a link is gone. Namespaces take 20 to 60 ms to die.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(crate) enum Event {
    /// Someone wants a slot.
    Take(oneshot::Sender<Result<Offer>>),
    /// An offer that was not accepted.
    Back(Slot),
    /// A slot's parts are dropped.
    Retired(u32),
    /// Make and offer nothing more.
    Stop(oneshot::Sender<()>),
}

/// A slot on its way to a taker. A taker that is gone by then gives it back unused.
pub(crate) struct Offer {
    slot: Option<Slot>,
    pool: mpsc::UnboundedSender<Event>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            // When the pool has stopped the slot is dropped, which tears it down.
            let _ = self.pool.send(Event::Back(slot));
        }
    }
}

/// Takes slots. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    events: mpsc::UnboundedSender<Event>,
    ready: Arc<AtomicUsize>,
}

impl Handle {
    /// A slot of one's own: a ready one at once, else as soon as one is made. Dropping the future
    /// loses no slot.
    ///
    /// # Errors
    /// `CAPACITY` when all slots are in use, `SLOT_FAILED` or `PRIVILEGE_MISSING` when none can be
    /// made, `NODE_UNAVAILABLE` after shutdown.
    pub async fn take(&self) -> Result<Slot> {
        let (reply, offer) = oneshot::channel();
        self.events.send(Event::Take(reply)).map_err(|_| stopped())?;
        let mut offer = offer.await.map_err(|_| stopped())??;
        offer.slot.take().ok_or_else(stopped)
    }

    /// How many slots are ready to be taken now.
    pub fn ready(&self) -> usize {
        self.ready.load(Ordering::Relaxed)
    }

    /// Ends the pool: waiting takers get an error, ready slots are dropped.
    pub(crate) async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.events.send(Event::Stop(reply)).is_ok() {
            // An error means that the pool has ended already.
            let _ = stopped.await;
        }
    }
}

fn stopped() -> Error {
    Error::new(codes::NODE_UNAVAILABLE, "The network service has stopped.")
}

/// The actor's state.
pub(crate) struct Pool {
    maker: Arc<Maker>,
    /// Slots to keep ready.
    size: usize,
    events: mpsc::UnboundedSender<Event>,
    queue: mpsc::UnboundedReceiver<Event>,
    /// Indexes not in use, the longest unused first.
    free: VecDeque<u32>,
    ready: VecDeque<Slot>,
    ready_count: Arc<AtomicUsize>,
    waiting: VecDeque<oneshot::Sender<Result<Offer>>>,
    making: JoinSet<(u32, Result<Slot>)>,
    retiring: JoinSet<u32>,
    /// After a failure: when to try again, and how long that wait is.
    retry: Option<(Instant, Duration)>,
}

impl Pool {
    /// Starts the actor over indexes 0 to `slots` - 1.
    pub(crate) fn start(maker: Maker, slots: u32, size: usize) -> Handle {
        let (events, queue) = mpsc::unbounded_channel();
        let ready_count = Arc::new(AtomicUsize::new(0));
        let pool = Self {
            maker: Arc::new(maker),
            size,
            events: events.clone(),
            queue,
            free: (0..slots).collect(),
            ready: VecDeque::new(),
            ready_count: Arc::clone(&ready_count),
            waiting: VecDeque::new(),
            making: JoinSet::new(),
            retiring: JoinSet::new(),
            retry: None,
        };
        tokio::spawn(pool.run());
        Handle { events, ready: ready_count }
    }

    async fn run(mut self) {
        loop {
            self.refill();
            self.ready_count.store(self.ready.len(), Ordering::Relaxed);
            let retry_at = self.retry.map(|(at, _)| at).filter(|at| *at > Instant::now());
            tokio::select! {
                Some(event) = self.queue.recv() => match event {
                    Event::Take(reply) => self.take(reply),
                    Event::Back(slot) => self.give(slot),
                    Event::Retired(index) => self.retire(index),
                    Event::Stop(done) => {
                        self.stop().await;
                        let _ = done.send(());
                        return;
                    }
                },
                Some(made) = self.making.join_next() => self.made(made),
                Some(gone) = self.retiring.join_next() => match gone {
                    Ok(index) => self.free.push_back(index),
                    Err(error) => tracing::error!(%error, "a slot's index is lost"),
                },
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
            }
        }
    }

    fn take(&mut self, reply: oneshot::Sender<Result<Offer>>) {
        self.waiting.push_back(reply);
        if let Some(slot) = self.ready.pop_front() {
            self.give(slot);
        }
    }

    /// Hands `slot` to who has waited longest, or keeps it ready.
    fn give(&mut self, slot: Slot) {
        let mut offer = Offer { slot: Some(slot), pool: self.events.clone() };
        while let Some(taker) = self.waiting.pop_front() {
            match taker.send(Ok(offer)) {
                Err(Ok(refused)) => offer = refused,
                _ => return,
            }
        }
        self.ready.extend(offer.slot.take());
    }

    /// Starts making what is missing.
    fn refill(&mut self) {
        self.waiting.retain(|taker| !taker.is_closed());
        let wanted = self.size + self.waiting.len();
        while self.ready.len() + self.making.len() < wanted && self.making.len() < MADE_AT_ONCE {
            let backing_off = self.retry.is_some_and(|(at, _)| Instant::now() < at);
            if backing_off && self.making.len() >= self.waiting.len() {
                break;
            }
            let Some(index) = self.free.pop_front() else { break };
            let (maker, events) = (Arc::clone(&self.maker), self.events.clone());
            self.making.spawn(async move {
                (index, maker.make(index).await.map(|parts| Slot::new(parts, events)))
            });
        }
        if self.free.is_empty() && self.making.is_empty() && self.retiring.is_empty() {
            let message = "Every network slot of this node is in use.";
            self.refuse_all(&Error::new(codes::CAPACITY, message));
        }
    }

    fn made(&mut self, made: Result<(u32, Result<Slot>), JoinError>) {
        match made {
            Ok((_, Ok(slot))) => {
                self.retry = None;
                self.give(slot);
            }
            Ok((index, Err(error))) => {
                let wait = self.retry.map_or(RETRY.0, |(_, wait)| (wait * 2).min(RETRY.1));
                self.retry = Some((Instant::now() + wait, wait));
                tracing::warn!(%error, retry_in = ?wait, "cannot make a network slot");
                self.retire(index);
                if let Some(taker) = self.waiting.pop_front() {
                    let _ = taker.send(Err(error));
                }
            }
            Err(error) => tracing::error!(%error, "a slot's index is lost"),
        }
    }

    /// Waits in the background for the index to be free again.
    fn retire(&mut self, index: u32) {
        let (links, name) = (self.maker.host.clone(), self.maker.names.link(index));
        self.retiring.spawn(async move {
            see_gone(&links, &name).await;
            index
        });
    }

    fn refuse_all(&mut self, error: &Error) {
        for taker in self.waiting.drain(..) {
            let _ = taker.send(Err(error.clone()));
        }
    }

    async fn stop(&mut self) {
        self.queue.close();
        while let Ok(event) = self.queue.try_recv() {
            if let Event::Take(reply) = event {
                self.waiting.push_back(reply);
            }
        }
        self.refuse_all(&stopped());
        self.making.shutdown().await;
        self.retiring.shutdown().await;
        self.ready.clear();
        self.ready_count.store(0, Ordering::Relaxed);
    }
}

/// Returns when no link called `name` is left, after deleting one that lingers.
async fn see_gone(links: &Links, name: &str) {
    let mut deadline = Instant::now() + LINGER;
    loop {
        let error = match links.index(name).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => Some(error),
            Ok(link) if Instant::now() >= deadline => links.delete(link).await.err(),
            Ok(_) => None,
        };
        if let Some(error) = error {
            tracing::warn!(%error, link = name, "cannot remove a released slot's link");
            deadline = Instant::now() + LINGER;
            sleep(LINGER).await;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Deletes every link of an instance. Those whose namespaces are dying get a moment to go by
/// themselves, which is cheaper.
pub(crate) async fn remove_links(links: &Links, names: &Names, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let failed = |error| Error::new(codes::SLOT_FAILED, format!("Removing old links: {error}."));
    loop {
        let left = links.with_prefix(&names.link_prefix()).await.map_err(failed)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for (_, link) in left {
                links.delete(link).await.map_err(failed)?;
            }
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
    }
}
