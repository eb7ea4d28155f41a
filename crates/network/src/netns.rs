//! Doing things inside another network namespace.
//!
//! setns(2) moves one thread, and a socket belongs for ever to the namespace that its creator was
//! in. So one thread does nothing but hop: into a namespace, a short job, back. Async threads never
//! leave the host's namespace.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

struct Job {
    namespace: Arc<OwnedFd>,
    // Gets the outcome of entering the namespace.
    body: Box<dyn FnOnce(io::Result<()>) + Send>,
}

/// A thread that runs jobs in network namespaces, one after the other. It ends with its last clone.
#[derive(Clone)]
pub(crate) struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Worker {
    /// Starts the thread; its home is the calling thread's network namespace.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let home = open_current()?;
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || serve(&queue, &home))?;
        Ok(Self { jobs })
    }

    /// Runs `job` in `namespace`. When this future is dropped the job may still run; its result is
    /// then dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        namespace: &Arc<OwnedFd>,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let body = Box::new(move |entered: io::Result<()>| {
            // The receiver is gone when the caller gave up.
            let _ = done.send(entered.and_then(|()| job()));
        });
        let gone = || io::Error::other("the namespace worker has ended");
        self.jobs.send(Job { namespace: Arc::clone(namespace), body }).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

/// The calling thread's network namespace.
fn open_current() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

fn serve(queue: &mpsc::Receiver<Job>, home: &OwnedFd) {
    while let Ok(Job { namespace, body }) = queue.recv() {
        let entered = enter(&namespace);
        body(entered);
        if let Err(error) = enter(home) {
            // Nothing may run in the wrong namespace: callers get an error from now on.
            tracing::error!(%error, "cannot return to the host's network namespace");
            return;
        }
    }
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(io::Error::from)
}
