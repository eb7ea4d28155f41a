//! A node without sandboxes: it keeps the records it is given and goes through their states at once,
//! tells of each change like a real one, and can be made to hold or refuse what it is asked.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use atoll_core::{
    Error, Result, SandboxId,
    error::codes,
    lifecycle::{Kept, State},
};
use atoll_wire::node::{
    BuildSummary, Change, Created, Deadline, EndReason, LogLine, Node, NodeInfo, NodeSandbox,
    OnTimeout, Resume, Resumed, Sample, SandboxRecord, Snapshot, Space,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, Semaphore};

pub(crate) const ENVD_VERSION: &str = "0.6.4";

/// What the node says it takes for a sandbox's files, and for a snapshot's, bytes.
pub(crate) const SANDBOX_BYTES: u64 = 4096;
pub(crate) const SNAPSHOT_BYTES: u64 = 1 << 20;

pub(crate) struct FakeNode {
    sandboxes: Mutex<HashMap<SandboxId, NodeSandbox>>,
    /// Snapshots, with the sandbox that each is of.
    builds: Mutex<BTreeMap<String, SandboxId>>,
    /// When its snapshots were taken; none is now.
    pub(crate) taken_at: Mutex<Option<Timestamp>>,
    changes: Mutex<Vec<Change>>,
    lines: Mutex<Vec<LogLine>>,
    news: Notify,
    revision: AtomicU64,
    /// How long `changes` waits for news.
    patience: Duration,
    /// Creates that may pass.
    pub(crate) gate: Semaphore,
    /// What creates are refused with.
    pub(crate) refusal: Mutex<Option<Error>>,
    /// Creates that pass before they are refused.
    pub(crate) refuse_after: AtomicUsize,
    /// Kills that may pass.
    pub(crate) kill_gate: Semaphore,
    pub(crate) kills_fail: AtomicBool,
    /// Pauses, resumes, snapshots and rewinds that may pass.
    pub(crate) change_gate: Semaphore,
    pub(crate) changes_fail: AtomicBool,
    /// Changes that are before the gate now.
    pub(crate) waiting: AtomicUsize,
    /// How often a sandbox was resumed.
    pub(crate) resumes: AtomicUsize,
    pub(crate) is_down: AtomicBool,
}

impl Default for FakeNode {
    fn default() -> Self {
        let open = || Semaphore::new(Semaphore::MAX_PERMITS);
        Self {
            sandboxes: Mutex::default(),
            builds: Mutex::default(),
            taken_at: Mutex::default(),
            changes: Mutex::default(),
            lines: Mutex::default(),
            news: Notify::new(),
            revision: AtomicU64::new(1),
            patience: Duration::from_secs(20),
            gate: open(),
            refusal: Mutex::new(None),
            refuse_after: AtomicUsize::new(0),
            kill_gate: open(),
            kills_fail: AtomicBool::new(false),
            change_gate: open(),
            changes_fail: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            resumes: AtomicUsize::new(0),
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

    /// A node that holds pauses and the like until `change_gate` is opened.
    pub(crate) fn holding_changes() -> Self {
        Self { change_gate: Semaphore::new(0), ..Self::default() }
    }

    /// A node that says soon that nothing has changed.
    pub(crate) fn impatient() -> Self {
        Self { patience: Duration::from_millis(20), ..Self::default() }
    }

    pub(crate) fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, NodeSandbox>> {
        self.sandboxes.lock().unwrap()
    }

    pub(crate) fn builds(&self) -> MutexGuard<'_, BTreeMap<String, SandboxId>> {
        self.builds.lock().unwrap()
    }

    pub(crate) fn record(&self, id: &str) -> Option<SandboxRecord> {
        Some(self.sandboxes().get(&id.parse().unwrap())?.record.clone())
    }

    pub(crate) fn reasons(&self, id: &str) -> Vec<EndReason> {
        let changes = self.changes.lock().unwrap();
        let reason = |change: &Change| match change {
            Change::Ended { id: ended, reason } if ended.as_str() == id => Some(*reason),
            _ => None,
        };
        changes.iter().filter_map(reason).collect()
    }

    /// Ends a sandbox as its own first process would.
    pub(crate) fn die(&self, id: &str) {
        self.end(&id.parse().unwrap(), EndReason::Died);
    }

    /// Loses a sandbox without a word.
    pub(crate) fn lose(&self, id: &str) {
        self.sandboxes().remove(&id.parse().unwrap());
    }

    /// Lets a sandbox be in a state, and tells of it.
    pub(crate) fn put(&self, id: &str, state: State) {
        self.change(&id.parse().unwrap(), |sandbox| sandbox.state = state);
    }

    /// Lets a sandbox's time be up.
    pub(crate) fn expire(&self, id: &str) {
        let id: SandboxId = id.parse().unwrap();
        match self.record(id.as_str()).unwrap().on_timeout {
            OnTimeout::Kill => drop(self.end(&id, EndReason::Expired)),
            OnTimeout::Pause { memory } => drop(self.pause_now(&id, memory)),
        }
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

    fn tell(&self, change: Change) {
        self.changes.lock().unwrap().push(change);
        self.news.notify_waiters();
    }

    fn end(&self, id: &SandboxId, reason: EndReason) -> bool {
        let was_there = self.sandboxes().remove(id).is_some();
        if was_there {
            self.tell(Change::Ended { id: id.clone(), reason });
        }
        was_there
    }

    fn change(&self, id: &SandboxId, change: impl FnOnce(&mut NodeSandbox)) -> Option<NodeSandbox> {
        let mut sandboxes = self.sandboxes();
        let sandbox = sandboxes.get_mut(id)?;
        change(sandbox);
        sandbox.revision = self.revision.fetch_add(1, Ordering::SeqCst);
        let now = sandbox.clone();
        drop(sandboxes);
        self.tell(Change::Now(now.clone()));
        Some(now)
    }

    /// Passes the gate of changes; the sandbox must run then, or be paused where that will do.
    async fn begin(&self, id: &SandboxId, of_paused: bool) -> Result<Option<NodeSandbox>> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.change_gate.acquire().await.unwrap().forget();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if self.changes_fail.load(Ordering::SeqCst) {
            return Err(Error::new(codes::CHECKPOINT_FAILED, "no memory to dump."));
        }
        let Some(sandbox) = self.sandboxes().get(id).cloned() else { return Ok(None) };
        match sandbox.state {
            State::Running => Ok(Some(sandbox)),
            State::Paused(_) if of_paused => Ok(Some(sandbox)),
            state => Err(refused(state)),
        }
    }

    fn pause_now(&self, id: &SandboxId, memory: bool) -> Option<NodeSandbox> {
        let kept = if memory { Kept::Checkpoint } else { Kept::Disk };
        self.change(id, |sandbox| {
            sandbox.state = State::Paused(kept);
            sandbox.record.end_at = Timestamp::now();
        })
    }
}

fn refused(state: State) -> Error {
    let code = match state {
        State::Paused(_) => codes::SANDBOX_PAUSED,
        State::Ending => codes::SANDBOX_ENDING,
        _ => codes::SANDBOX_BUSY,
    };
    Error::new(code, format!("it is {state:?}."))
}

fn end_at(record: &SandboxRecord, deadline: Deadline) -> Timestamp {
    let after = |from: Timestamp, seconds: u32| from + SignedDuration::from_secs(seconds.into());
    let longest = after(record.started_at, record.longest);
    match deadline {
        Deadline::In(seconds) => after(Timestamp::now(), seconds).min(longest),
        Deadline::AtLeastIn(seconds) => {
            after(Timestamp::now(), seconds).min(longest).max(record.end_at)
        }
    }
}

#[async_trait]
impl Node for FakeNode {
    async fn create(&self, record: SandboxRecord) -> Result<Created> {
        let id = record.id.clone();
        let mut start = Start { node: self, id: &id, done: false };
        let sandbox = NodeSandbox {
            record,
            envd_version: ENVD_VERSION.to_owned(),
            state: State::Starting,
            revision: 0,
        };
        self.sandboxes().insert(id.clone(), sandbox);
        self.gate.acquire().await.unwrap().forget();
        let passes = |left: usize| left.checked_sub(1);
        let refusal = self.refusal.lock().unwrap().clone();
        if let Some(error) = refusal
            && self.refuse_after.fetch_update(Ordering::SeqCst, Ordering::SeqCst, passes).is_err()
        {
            return Err(error);
        }
        start.done = true;
        let sandbox = self.change(&id, |sandbox| {
            sandbox.state = State::Running;
            sandbox.record.started_at = Timestamp::now();
            sandbox.record.end_at = sandbox.record.started_at;
            sandbox.record.end_at = end_at(&sandbox.record, Deadline::In(sandbox.record.timeout));
        });
        Ok(Created { sandbox: sandbox.unwrap(), timings: Default::default() })
    }

    async fn kill(&self, id: &SandboxId, reason: EndReason) -> Result<bool> {
        if self.kills_fail.load(Ordering::SeqCst) {
            return Err(Error::new(codes::INTERNAL, "the cgroup is busy."));
        }
        self.change(id, |sandbox| sandbox.state = State::Ending);
        self.kill_gate.acquire().await.unwrap().forget();
        Ok(self.end(id, reason))
    }

    async fn set_end(&self, id: &SandboxId, deadline: Deadline) -> Result<Option<NodeSandbox>> {
        let Some(sandbox) = self.sandboxes().get(id).cloned() else { return Ok(None) };
        if !matches!(sandbox.state, State::Running | State::Snapshotting) {
            return Err(refused(sandbox.state));
        }
        let end_at = end_at(&sandbox.record, deadline);
        let changed = self.change(id, |sandbox| sandbox.record.end_at = end_at);
        if end_at <= Timestamp::now() {
            self.expire(id.as_str());
        }
        Ok(changed)
    }

    async fn pause(&self, id: &SandboxId, memory: bool) -> Result<Option<NodeSandbox>> {
        let Some(_) = self.begin(id, false).await? else { return Ok(None) };
        Ok(self.pause_now(id, memory))
    }

    async fn resume(&self, id: &SandboxId, resume: Resume) -> Result<Option<Resumed>> {
        let Some(sandbox) = self.begin(id, true).await? else { return Ok(None) };
        let was_paused = sandbox.state != State::Running;
        let sandbox = self.change(id, |sandbox| {
            let record = &mut sandbox.record;
            if was_paused {
                sandbox.state = State::Running;
                record.started_at = Timestamp::now();
                record.end_at = record.started_at;
            }
            record.end_at = end_at(record, Deadline::AtLeastIn(resume.timeout));
            record.on_timeout = resume.on_timeout.unwrap_or(record.on_timeout);
        });
        self.resumes.fetch_add(usize::from(was_paused), Ordering::SeqCst);
        Ok(sandbox.map(|sandbox| Resumed { sandbox, was_paused }))
    }

    async fn snapshot(&self, id: &SandboxId, snapshot: Snapshot) -> Result<Option<Kept>> {
        let Some(_) = self.begin(id, snapshot.of_paused).await? else { return Ok(None) };
        self.builds().insert(snapshot.build, id.clone());
        Ok(Some(Kept::Checkpoint))
    }

    async fn rewind(&self, id: &SandboxId, build: &str) -> Result<Option<NodeSandbox>> {
        let Some(_) = self.begin(id, false).await? else { return Ok(None) };
        assert!(self.builds().contains_key(build), "rewound to what is not there");
        Ok(self.change(id, |sandbox| sandbox.record.build = build.to_owned()))
    }

    async fn delete_build(&self, build: &str) -> Result<bool> {
        Ok(self.builds().remove(build).is_some())
    }

    async fn builds(&self) -> Result<Vec<BuildSummary>> {
        let created_at = self.taken_at.lock().unwrap().unwrap_or_else(Timestamp::now);
        let shown = |build: &String| BuildSummary { build: build.clone(), created_at };
        Ok(self.builds().keys().map(shown).collect())
    }

    async fn space(&self, ids: &[String]) -> Result<Vec<Space>> {
        let bytes = |id: &String| {
            let is_sandbox = self.sandboxes().keys().any(|known| known.as_str() == id);
            let is_build = self.builds().contains_key(id);
            is_sandbox.then_some(SANDBOX_BYTES).or(is_build.then_some(SNAPSHOT_BYTES))
        };
        let space = |id: &String| Some(Space { id: id.clone(), unique_bytes: bytes(id)? });
        Ok(ids.iter().filter_map(space).collect())
    }

    async fn get(&self, id: &SandboxId) -> Result<Option<NodeSandbox>> {
        Ok(self.sandboxes().get(id).cloned())
    }

    async fn list(&self) -> Result<Vec<NodeSandbox>> {
        Ok(self.sandboxes().values().cloned().collect())
    }

    async fn sample(&self, ids: &[SandboxId]) -> Result<Vec<(SandboxId, Sample)>> {
        let sandboxes = self.sandboxes();
        let sample = |id: &SandboxId| {
            let resources = sandboxes.get(id)?.record.resources;
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

    async fn changes(&self, cursor: u64) -> Result<(u64, Vec<Change>)> {
        Ok(self.since(cursor, &self.changes).await)
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
            memory: Kept::Checkpoint,
        })
    }
}
