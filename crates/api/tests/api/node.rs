//! A node without sandboxes: it keeps the records it is given, tells of ends like a real one, and
//! can be made to hold or refuse creates.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{Error, Result, SandboxId, error::codes, lifecycle::State};
use atoll_wire::node::{
    Created, EndReason, Ended, LogLine, Node, NodeInfo, NodeSandbox, Sample, SandboxRecord,
};
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore};

pub(crate) const ENVD_VERSION: &str = "0.6.4";

pub(crate) struct FakeNode {
    sandboxes: Mutex<HashMap<SandboxId, SandboxRecord>>,
    ends: Mutex<Vec<Ended>>,
    lines: Mutex<Vec<LogLine>>,
    news: Notify,
    /// How long `ended` waits for news.
    patience: Duration,
    /// Creates that may pass.
    pub(crate) gate: Semaphore,
    /// What creates are refused with.
    pub(crate) refusal: Mutex<Option<Error>>,
    /// Kills that may pass.
    pub(crate) kill_gate: Semaphore,
    pub(crate) kills_fail: AtomicBool,
    pub(crate) kills_failed: AtomicUsize,
    pub(crate) is_down: AtomicBool,
}

impl Default for FakeNode {
    fn default() -> Self {
        Self {
            sandboxes: Mutex::default(),
            ends: Mutex::default(),
            lines: Mutex::default(),
            news: Notify::new(),
            patience: Duration::from_secs(20),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            refusal: Mutex::new(None),
            kill_gate: Semaphore::new(Semaphore::MAX_PERMITS),
            kills_fail: AtomicBool::new(false),
            kills_failed: AtomicUsize::new(0),
            is_down: AtomicBool::new(false),
        }
    }
}

/// A create under way: what it began is undone if it is dropped.
struct Start<'a> {
    node: &'a FakeNode,
    id: &'a SandboxId,
    done: bool,
}

impl Drop for Start<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.node.sandboxes().remove(self.id);
        }
    }
}

impl FakeNode {
    /// A node that holds creates until `gate` is opened.
    pub(crate) fn holding() -> Self {
        Self { gate: Semaphore::new(0), ..Self::default() }
    }

    /// A node that holds kills until `kill_gate` is opened.
    pub(crate) fn holding_kills() -> Self {
        Self { kill_gate: Semaphore::new(0), ..Self::default() }
    }

    /// A node that says soon that nothing has ended.
    pub(crate) fn impatient() -> Self {
        Self { patience: Duration::from_millis(20), ..Self::default() }
    }

    pub(crate) fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, SandboxRecord>> {
        self.sandboxes.lock().unwrap()
    }

    pub(crate) fn record(&self, id: &str) -> Option<SandboxRecord> {
        self.sandboxes().get(&id.parse().unwrap()).cloned()
    }

    pub(crate) fn reasons(&self, id: &str) -> Vec<EndReason> {
        let ends = self.ends.lock().unwrap();
        ends.iter().filter(|end| end.id.as_str() == id).map(|end| end.reason).collect()
    }

    /// Ends a sandbox as its own first process would.
    pub(crate) fn die(&self, id: &str) {
        self.end(&id.parse().unwrap(), EndReason::Died);
    }

    /// Loses a sandbox without a word.
    pub(crate) fn lose(&self, id: &str) {
        self.sandboxes().remove(&id.parse().unwrap());
    }

    /// Logs a line of a sandbox, as the node itself or its envd would.
    pub(crate) fn log(&self, line: LogLine) {
        let mut lines = self.lines.lock().unwrap();
        let sequence = lines.len() as u64;
        lines.push(LogLine { sequence, ..line });
        drop(lines);
        self.news.notify_waiters();
    }

    /// What there is from `cursor` on, or else after some patience.
    async fn since<T: Clone>(&self, cursor: u64, all: &Mutex<Vec<T>>) -> (u64, Vec<T>) {
        let since = || all.lock().unwrap().get(cursor as usize..).unwrap_or_default().to_vec();
        let news = self.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        let mut found = since();
        if found.is_empty() {
            let _ = tokio::time::timeout(self.patience, news).await;
            found = since();
        }
        (cursor + found.len() as u64, found)
    }

    fn end(&self, id: &SandboxId, reason: EndReason) -> bool {
        let was_there = self.sandboxes().remove(id).is_some();
        if was_there {
            self.ends.lock().unwrap().push(Ended { id: id.clone(), reason });
            self.news.notify_waiters();
        }
        was_there
    }
}

#[async_trait]
impl Node for FakeNode {
    async fn create(&self, record: SandboxRecord) -> Result<Created> {
        let id = record.id.clone();
        let mut start = Start { node: self, id: &id, done: false };
        self.sandboxes().insert(id.clone(), record);
        self.gate.acquire().await.unwrap().forget();
        if let Some(error) = self.refusal.lock().unwrap().clone() {
            return Err(error);
        }
        start.done = true;
        Ok(Created { envd_version: ENVD_VERSION.to_owned(), timings: Default::default() })
    }

    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool> {
        self.kill_gate.acquire().await.unwrap().forget();
        if self.kills_fail.load(Ordering::SeqCst) {
            self.kills_failed.fetch_add(1, Ordering::SeqCst);
            return Err(Error::new(codes::INTERNAL, "the cgroup is busy."));
        }
        Ok(self.end(id, reason))
    }

    async fn set_end(&self, id: &SandboxId, end_at: Timestamp) -> Result<bool> {
        let mut sandboxes = self.sandboxes();
        let Some(record) = sandboxes.get_mut(id) else { return Ok(false) };
        record.end_at = end_at;
        Ok(true)
    }

    async fn pause(&self, id: &SandboxId, _: bool) -> Result<bool> {
        Ok(self.sandboxes().contains_key(id))
    }

    async fn resume(&self, id: &SandboxId, end_at: Timestamp) -> Result<bool> {
        self.set_end(id, end_at).await
    }

    async fn list(&self) -> Result<Vec<NodeSandbox>> {
        let sandbox = |record: &SandboxRecord| NodeSandbox {
            record: record.clone(),
            envd_version: ENVD_VERSION.to_owned(),
            state: State::Running,
        };
        Ok(self.sandboxes().values().map(sandbox).collect())
    }

    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>> {
        let sandboxes = self.sandboxes();
        let sample = |id: &SandboxId| {
            let resources = sandboxes.get(id)?.resources;
            let sample = Sample {
                timestamp: Timestamp::now().as_second(),
                cpu_count: resources.vcpu,
                cpu_used_pct: 12.345,
                mem_used: 1 << 20,
                mem_total: u64::from(resources.memory_mb) << 20,
                mem_cache: 1 << 10,
                disk_used: 1 << 21,
                disk_total: u64::from(resources.disk_mb) << 20,
            };
            Some((id.clone(), sample))
        };
        Ok(ids.iter().filter_map(sample).collect())
    }

    async fn ended(&self, cursor: u64) -> Result<(u64, Vec<Ended>)> {
        Ok(self.since(cursor, &self.ends).await)
    }

    async fn logs(&self, cursor: u64) -> Result<(u64, Vec<LogLine>)> {
        Ok(self.since(cursor, &self.lines).await)
    }

    async fn info(&self) -> Result<NodeInfo> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(Error::new(codes::NODE_UNAVAILABLE, "the node is down."));
        }
        Ok(NodeInfo {
            id: "ab12cd".to_owned(),
            version: "0.1.0".to_owned(),
            running: self.sandboxes().len() as u32,
            driver: "none".to_owned(),
        })
    }
}
