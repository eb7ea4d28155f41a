//! Keeps slots ready: an actor that makes them ahead, hands them out and sees them gone.
//!
//! Some indexes belong to sandboxes that no [`Slot`] stands for: those of an earlier run that live on,
//! until they are adopted, and those that were left. They are nobody's to hand out or to remove.
//!
//! An index (and with it a link name, an address and a range of host ids) is free again only when
//! its old link has left the host. Making fails sometimes: whoever waits gets the error, and the
//! pool waits longer and longer before it tries again on its own.

use std::{
    collections::{HashSet, VecDeque},
    os::fd::OwnedFd,
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

use crate::{launcher::Namespaces, links::Links, maker::Maker, names::Names, slot::Slot};

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
    /// A slot's parts are dropped, but its sandbox lives.
    Left(u32),
    /// Someone knows the sandbox of a slot that lives on.
    Adopt(Adoption, oneshot::Sender<Result<Slot>>),
    /// The sandbox of a slot that lived on has ended.
    Discard(u32),
    /// Make and offer nothing more, and say which slots live on.
    Stop(oneshot::Sender<HashSet<u32>>),
}

/// A slot to be taken up again.
pub(crate) struct Adoption {
    index: u32,
    namespaces: Namespaces,
    internet: bool,
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

    /// Takes up a slot of [`crate::Options::keep`] or one that was left: it is then as if it had
    /// just been made, with the way out open or cut as `internet` says. The namespaces are those of
    /// a process of its sandbox, which may run or be frozen. What passed before passes all the while.
    ///
    /// When this fails or is dropped the slot goes on without us, and can be tried again.
    ///
    /// # Errors
    /// `SLOT_FAILED` when no such slot lives on, when its link does not lead into `net_ns`, or when
    /// the kernel refuses; `NODE_UNAVAILABLE` after shutdown.
    pub async fn adopt(
        &self,
        index: u32,
        user_ns: OwnedFd,
        net_ns: OwnedFd,
        internet: bool,
    ) -> Result<Slot> {
        let namespaces = Namespaces { user: user_ns, net: net_ns };
        let (reply, slot) = oneshot::channel();
        let event = Event::Adopt(Adoption { index, namespaces, internet }, reply);
        self.events.send(event).map_err(|_| stopped())?;
        slot.await.map_err(|_| stopped())?
    }

    /// Gives up a slot that lives on and was not adopted: it is torn down in the background. All
    /// processes in it must have ended. Any other index is ignored.
    pub fn discard(&self, index: u32) {
        // A pool that has stopped discards nothing: the next run removes what it does not keep.
        let _ = self.events.send(Event::Discard(index));
    }

    /// How many slots are ready to be taken now.
    pub fn ready(&self) -> usize {
        self.ready.load(Ordering::Relaxed)
    }

    /// Ends the pool: waiting takers get an error, ready slots are dropped. Returns the indexes of
    /// slots that live on.
    ///
    /// # Errors
    /// When the pool has ended already, so that nobody knows those.
    pub(crate) async fn stop(&self) -> Result<HashSet<u32>> {
        let (reply, left) = oneshot::channel();
        self.events.send(Event::Stop(reply)).map_err(|_| stopped())?;
        left.await.map_err(|_| stopped())
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
    /// Slots that live on without a [`Slot`].
    left: HashSet<u32>,
    adopting: JoinSet<()>,
    retiring: JoinSet<u32>,
    /// After a failure: when to try again, and how long that wait is.
    retry: Option<(Instant, Duration)>,
}

impl Pool {
    /// Starts the actor over indexes 0 to `slots` - 1, of which those in `left` live on.
    pub(crate) fn start(maker: Maker, slots: u32, size: usize, left: HashSet<u32>) -> Handle {
        let (events, queue) = mpsc::unbounded_channel();
        let ready_count = Arc::new(AtomicUsize::new(0));
        let pool = Self {
            maker: Arc::new(maker),
            size,
            events: events.clone(),
            queue,
            free: (0..slots).filter(|index| !left.contains(index)).collect(),
            ready: VecDeque::new(),
            ready_count: Arc::clone(&ready_count),
            waiting: VecDeque::new(),
            making: JoinSet::new(),
            left,
            adopting: JoinSet::new(),
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
                    Event::Left(index) => drop(self.left.insert(index)),
                    Event::Adopt(adoption, reply) => self.adopt(adoption, reply),
                    Event::Discard(index) => self.discard(index),
                    Event::Stop(done) => {
                        self.stop().await;
                        let _ = done.send(self.left);
                        return;
                    }
                },
                Some(adopted) = self.adopting.join_next() => if let Err(error) = adopted {
                    tracing::error!(%error, "a slot that lives on is lost");
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

    /// Takes a slot up in the background.
    fn adopt(&mut self, adoption: Adoption, reply: oneshot::Sender<Result<Slot>>) {
        let Adoption { index, namespaces, internet } = adoption;
        if !self.left.remove(&index) {
            let message = format!("Network slot {index} is not one that lives on.");
            let _ = reply.send(Err(Error::new(codes::SLOT_FAILED, message)));
            return;
        }
        let (maker, events) = (Arc::clone(&self.maker), self.events.clone());
        self.adopting.spawn(async move {
            let adopted = match maker.adopt(index, namespaces, internet).await {
                Ok(parts) => Ok(Slot::new(parts, events)),
                Err(error) => {
                    // Before the answer, so that whoever gets it can try again or discard.
                    let _ = events.send(Event::Left(index));
                    Err(error)
                }
            };
            if let Err(Ok(unwanted)) = reply.send(adopted) {
                unwanted.leave();
            }
        });
    }

    fn discard(&mut self, index: u32) {
        if self.left.remove(&index) {
            self.retire(index);
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
        // To their end, which is near: given up half-way, nobody would know that the slot lives.
        while self.adopting.join_next().await.is_some() {}
        self.queue.close();
        while let Ok(event) = self.queue.try_recv() {
            match event {
                Event::Take(reply) => self.waiting.push_back(reply),
                Event::Left(index) => drop(self.left.insert(index)),
                // The askers' channels close.
                _ => {}
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

/// Deletes every link of an instance but those of the slots in `keep`. Those whose namespaces are
/// dying get a moment to go by themselves, which is cheaper. Returns what is kept: slots and the
/// indexes of their links.
pub(crate) async fn remove_links(
    links: &Links,
    names: &Names,
    keep: &HashSet<u32>,
    patience: Duration,
) -> Result<Vec<(u32, u32)>> {
    let deadline = Instant::now() + patience;
    let failed = |error| Error::new(codes::SLOT_FAILED, format!("Removing old links: {error}."));
    loop {
        let (mut kept, mut others) = (Vec::new(), Vec::new());
        for (name, link) in links.with_prefix(&names.link_prefix()).await.map_err(failed)? {
            match names.slot_of(&name).filter(|slot| keep.contains(slot)) {
                Some(slot) => kept.push((slot, link)),
                None => others.push(link),
            }
        }
        if others.is_empty() {
            return Ok(kept);
        }
        if Instant::now() >= deadline {
            for link in others {
                links.delete(link).await.map_err(failed)?;
            }
            return Ok(kept);
        }
        sleep(LOOK_AGAIN).await;
    }
}
