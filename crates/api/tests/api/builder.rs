//! A builder that builds nothing: it keeps what it is asked, tells what a test has it tell, and keeps
//! the archives that are uploaded.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Error, Result, error::codes};
use atoll_wire::{
    build::{BuildEvent, BuildFailure, BuildLine, BuildSpec, Builder, Pruned},
    log::LogLevel,
};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct FakeBuilder {
    /// What it was asked to build, by the build's id.
    pub(crate) specs: Mutex<BTreeMap<String, BuildSpec>>,
    /// Builds that it says are under way.
    pub(crate) running: Mutex<Vec<String>>,
    /// What it was asked to cancel, and why.
    pub(crate) cancelled: Mutex<Vec<(String, String)>>,
    /// Archives by team and hash.
    pub(crate) archives: Mutex<BTreeMap<(String, String), Vec<u8>>>,
    /// Held, it begins builds when it is let go.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// Whether it begins no build.
    pub(crate) is_down: AtomicBool,
    events: Mutex<Vec<(String, BuildEvent)>>,
    news: Notify,
}

impl FakeBuilder {
    /// Lets something happen to a build.
    pub(crate) fn tell(&self, build: &str, event: BuildEvent) {
        if !matches!(event, BuildEvent::Line(_)) {
            self.running.lock().unwrap().retain(|running| running != build);
        }
        self.events.lock().unwrap().push((build.to_owned(), event));
        self.news.notify_waiters();
    }

    pub(crate) fn say(&self, build: &str, level: LogLevel, step: &str, message: &str) {
        let line = BuildLine {
            timestamp: Timestamp::now(),
            level,
            step: Some(step.to_owned()),
            message: message.to_owned(),
        };
        self.tell(build, BuildEvent::Line(line));
    }

    pub(crate) fn finish(&self, build: &str) {
        self.tell(build, BuildEvent::Ready { envd_version: "0.6.4".to_owned() });
    }

    pub(crate) fn fail(&self, build: &str, step: &str, message: &str, parent: Option<&str>) {
        let failure = BuildFailure {
            step: Some(step.to_owned()),
            code: codes::STEP_FAILED.to_string(),
            message: message.to_owned(),
            parent: parent.map(str::to_owned),
        };
        self.tell(build, BuildEvent::Failed(failure));
    }

    pub(crate) fn spec(&self, build: &str) -> BuildSpec {
        self.specs.lock().unwrap()[build].clone()
    }

    pub(crate) fn cancelled(&self) -> Vec<(String, String)> {
        self.cancelled.lock().unwrap().clone()
    }
}

#[async_trait]
impl Builder for FakeBuilder {
    async fn start(&self, spec: BuildSpec) -> Result<()> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::new(codes::NODE_UNAVAILABLE, "nothing builds."));
        }
        let _open = self.gate.lock().await;
        self.running.lock().unwrap().push(spec.id.clone());
        self.specs.lock().unwrap().insert(spec.id.clone(), spec);
        Ok(())
    }

    async fn cancel(&self, build: &str, reason: &str) -> Result<bool> {
        self.cancelled.lock().unwrap().push((build.to_owned(), reason.to_owned()));
        if !self.running.lock().unwrap().iter().any(|running| running == build) {
            return Ok(false);
        }
        let failure = BuildFailure {
            step: Some("1".to_owned()),
            code: codes::BUILD_CANCELLED.to_string(),
            message: reason.to_owned(),
            parent: Some("what-it-had".to_owned()),
        };
        self.tell(build, BuildEvent::Failed(failure));
        Ok(true)
    }

    async fn running(&self) -> Result<Vec<String>> {
        Ok(self.running.lock().unwrap().clone())
    }

    async fn events(&self, cursor: u64) -> Result<(u64, Vec<(String, BuildEvent)>)> {
        let since = || {
            let events = self.events.lock().unwrap();
            events.get(cursor as usize..).unwrap_or_default().to_vec()
        };
        let news = self.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        let mut found = since();
        if found.is_empty() {
            let _ = tokio::time::timeout(Duration::from_secs(20), news).await;
            found = since();
        }
        Ok((cursor + found.len() as u64, found))
    }

    async fn has_files(&self, team: &str, hash: &str) -> Result<bool> {
        let key = (team.to_owned(), hash.to_owned());
        Ok(self.archives.lock().unwrap().contains_key(&key))
    }

    async fn put_files(
        &self,
        team: &str,
        hash: &str,
        mut archive: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        while let Some(piece) = archive.next().await {
            let piece = piece.map_err(|error| {
                Error::new(codes::INVALID_REQUEST, format!("the stream failed: {error}."))
            })?;
            bytes.extend_from_slice(&piece);
        }
        self.archives.lock().unwrap().insert((team.to_owned(), hash.to_owned()), bytes);
        Ok(())
    }

    async fn prune(&self, team: &str) -> Result<Pruned> {
        let mut archives = self.archives.lock().unwrap();
        let before = archives.len();
        archives.retain(|(owner, _), _| owner != team);
        Ok(Pruned {
            steps: BTreeMap::from([("step".to_owned(), 7)]),
            archives: (before - archives.len()) as u64,
            archive_bytes: 3,
        })
    }
}
