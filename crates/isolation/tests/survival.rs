//! Sandboxes that outlive the driver, and sandboxes that are frozen: real processes in real control
//! groups. Their root is the host's, since neither depends on what a sandbox sees.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::HashSet,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use atoll_core::{InstanceId, error::codes};
use atoll_isolation::{
    Driver, Identity, Running,
    container::{Container, Options},
};
use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;
use tokio::net::unix::pipe::Receiver;

/// Longest that anything here waits for what should come.
const DEADLINE: Duration = Duration::from_secs(60);

/// Joins groups and starts a process that is nobody's child then, as after the end of a daemon.
const START: &str = r#"
for group in "$@"; do echo 0 > "$group" || exit 1; done
sh -c "$SCRIPT" < /dev/null 2> /dev/null & echo $! >&2
"#;

/// Logs a numbered line of two thousand bytes and appends a byte to a file, again and again. Like
/// envd it minds neither a full pipe nor one that nobody reads.
const COUNT: &str = r#"
trap "" PIPE
pad=$(printf %02000d 0)
number=0
while :; do
    number=$((number + 1))
    echo "$number $pad"
    printf . >> "$TICKS"
    sleep 0.01
done
"#;

/// A driver, and a directory for what the processes write.
struct World {
    directory: TempDir,
    instance: InstanceId,
    driver: Container,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let instance = InstanceId::generate().unwrap();
        let driver = start(&directory, &instance, "/nonexistent", 0, &[]).await;
        Self { directory, instance, driver }
    }

    /// Ends the driver and starts it again.
    async fn restart(&mut self, keep: &[&Identity]) {
        self.driver.shutdown().await;
        self.driver = start(&self.directory, &self.instance, "/nonexistent", 0, keep).await;
    }

    fn ticks(&self, name: &str) -> Ticks {
        Ticks(self.directory.path().join(name))
    }

    /// A process that runs `script`, in a group called `name`.
    fn run(&self, name: &str, script: &str) -> Running {
        let cgroup = self.driver.cgroups().create(name).unwrap();
        let (log, end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let started = Command::new("sh")
            .args(["-c", START, "sh"])
            .args(cgroup.join_files())
            .env("SCRIPT", script)
            .env("TICKS", self.ticks(name).0)
            .stdout(end)
            .output()
            .unwrap();
        assert!(started.status.success());
        let pid = String::from_utf8(started.stderr).unwrap().trim().parse().unwrap();
        Running::new(pid, cgroup, log).unwrap()
    }

    fn groups(&self) -> Vec<String> {
        support::groups(&self.driver)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        support::clean(&self.instance);
    }
}

async fn start(
    directory: &TempDir,
    instance: &InstanceId,
    launcher: &str,
    ready: usize,
    keep: &[&Identity],
) -> Container {
    let options = Options {
        instance: instance.clone(),
        launcher: launcher.into(),
        staging: directory.path().join("staging"),
        ready,
        keep: keep.iter().map(|identity| identity.cgroup.clone()).collect(),
        criu: None,
    };
    Container::start(options).await.unwrap()
}

/// How often a process has come by.
struct Ticks(PathBuf);

impl Ticks {
    fn now(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |file| file.len())
    }

    /// Waits for so many more.
    async fn more(&self, count: u64) {
        let enough = self.now() + count;
        until("the process goes on", || self.now() >= enough).await;
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, met).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// As a journal has it.
fn journalled(running: &Running) -> Identity {
    serde_json::from_str(&serde_json::to_string(&running.identity()).unwrap()).unwrap()
}

async fn end(running: Running) {
    running.kill().unwrap();
    running.process.wait().await.unwrap();
    running.cgroup.remove().await.unwrap();
}

#[tokio::test]
async fn the_next_driver_adopts_what_lives_and_ends_the_rest() {
    let mut world = World::new().await;
    let (kept, lost) = (world.run("kept", COUNT), world.run("lost", COUNT));
    let identity = journalled(&kept);
    drop(kept);
    world.restart(&[&identity]).await;

    lost.process.ended().await.unwrap();
    assert_eq!(world.groups(), ["kept"]);
    let adopted = world.driver.adopt(&identity).await.unwrap().unwrap();
    assert_eq!(adopted.process.pid(), identity.pid);
    assert_eq!(journalled(&adopted), identity);
    world.ticks("kept").more(5).await;
    end(adopted).await;
    assert!(world.driver.adopt(&identity).await.unwrap().is_none());
}

#[tokio::test]
async fn one_that_died_meanwhile_is_cleared_away() {
    let mut world = World::new().await;
    let running = world.run("dead", "sleep 1000 & wait");
    let identity = journalled(&running);
    world.restart(&[&identity]).await;
    running.process.kill().unwrap();
    running.process.ended().await.unwrap();

    assert!(world.driver.adopt(&identity).await.unwrap().is_none());
    // The other process of the group is gone with it.
    assert_eq!(world.groups(), [""; 0]);
}

#[tokio::test]
async fn a_process_that_only_has_the_number_is_left_alone() {
    let mut world = World::new().await;
    let running = world.run("old", "exec sleep 1000");
    let identity = journalled(&running);
    running.kill().unwrap();
    until("it is reaped", || !Path::new(&format!("/proc/{}", identity.pid)).exists()).await;
    let mut other = with_number(identity.pid);
    world.restart(&[&identity]).await;

    let adopted = world.driver.adopt(&identity).await.unwrap();
    let lives = other.try_wait().unwrap().is_none();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(adopted.is_none() && lives);
}

/// A process that gets this number.
fn with_number(pid: u32) -> Child {
    for _ in 0..10_000 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        if child.id() == pid {
            return child;
        }
        // Somebody else on this host was faster.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("no process got the number {pid}");
}

#[tokio::test]
async fn each_part_of_an_identity_counts() {
    let world = World::new().await;
    let names = ["time", "boot", "elsewhere"];
    let [time, boot, elsewhere] = names.map(|name| world.run(name, "exec sleep 1000"));
    let _empty = world.driver.cgroups().create("empty").unwrap();
    let wrong = [
        Identity { started: time.identity().started + 1, ..time.identity() },
        Identity { boot: "another".to_owned(), ..boot.identity() },
        Identity { cgroup: "empty".to_owned(), ..elsewhere.identity() },
        Identity { cgroup: "../../elsewhere".to_owned(), ..elsewhere.identity() },
    ];
    for identity in &wrong {
        assert!(world.driver.adopt(identity).await.unwrap().is_none(), "{identity:?}");
    }
    // Where the group was right, it was cleared away.
    assert_eq!(world.groups(), ["elsewhere"]);
    assert!(!elsewhere.process.has_ended().unwrap());
}

#[tokio::test]
async fn a_log_that_nobody_reads_blocks_nobody_and_goes_on_after_adoption() {
    let mut world = World::new().await;
    let ticks = world.ticks("talks");
    let mut running = world.run("talks", COUNT);
    let identity = journalled(&running);
    let log = running.log.take().unwrap();
    assert!(numbers(log, 1).await.starts_with(&[1]));
    // Several times what a pipe holds, with nobody at its other end.
    ticks.more(100).await;

    world.restart(&[&identity]).await;
    let mut adopted = world.driver.adopt(&identity).await.unwrap().unwrap();
    // The same, with somebody there who does not read.
    ticks.more(100).await;
    let begun = ticks.now();
    assert!(numbers(adopted.log.take().unwrap(), begun + 10).await.is_sorted());
}

/// The numbers of the lines that come, until one is at least `last`.
async fn numbers(log: OwnedFd, last: u64) -> Vec<u64> {
    let log = Receiver::from_owned_fd(log).unwrap();
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    let read = async {
        loop {
            log.readable().await.unwrap();
            match log.try_read(&mut buffer) {
                Ok(0) => panic!("the log has ended"),
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let whole = &text[..text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0)];
            let numbers: Vec<u64> = std::str::from_utf8(whole)
                .unwrap()
                .lines()
                .map(|line| line.split_once(' ').unwrap().0.parse().unwrap())
                .collect();
            if numbers.last().is_some_and(|number| *number >= last) {
                return numbers;
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap()
}

#[tokio::test]
async fn one_that_has_closed_its_log_is_adopted_all_the_same() {
    let world = World::new().await;
    let running = world.run("silent", &format!("exec > /dev/null {COUNT}"));
    world.ticks("silent").more(1).await;
    let mut adopted = world.driver.adopt(&running.identity()).await.unwrap().unwrap();
    let log = Receiver::from_owned_fd(adopted.log.take().unwrap()).unwrap();
    log.readable().await.unwrap();
    assert_eq!(log.try_read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn freezing_stops_and_thawing_continues() {
    let mut world = World::new().await;
    let other = world.run("other", COUNT);
    let running = world.run("counter", COUNT);
    let ticks = world.ticks("counter");
    ticks.more(5).await;
    world.driver.freeze(&running).await.unwrap();
    let stopped = ticks.now();
    world.ticks("other").more(50).await;
    assert_eq!(ticks.now(), stopped);

    // The driver's end changes nothing.
    let (identity, other) = (journalled(&running), journalled(&other));
    drop(running);
    world.restart(&[&identity, &other]).await;
    let adopted = world.driver.adopt(&identity).await.unwrap().unwrap();
    world.driver.freeze(&adopted).await.unwrap();
    world.ticks("other").more(50).await;
    assert_eq!(ticks.now(), stopped);

    world.driver.thaw(&adopted).await.unwrap();
    ticks.more(5).await;
    world.driver.thaw(&adopted).await.unwrap();
}

#[tokio::test]
async fn what_is_frozen_can_be_killed_and_removed() {
    let mut world = World::new().await;
    let running = world.run("killed", COUNT);
    world.driver.freeze(&running).await.unwrap();
    end(running).await;
    assert_eq!(world.groups(), [""; 0]);

    let running = world.run("forgotten", COUNT);
    world.driver.freeze(&running).await.unwrap();
    world.restart(&[]).await;
    assert!(running.process.has_ended().unwrap());
    assert_eq!(world.groups(), [""; 0]);
}

#[tokio::test]
async fn one_that_has_ended_can_be_neither_frozen_nor_entered() {
    let world = World::new().await;
    let running = world.run("ended", COUNT);
    running.kill().unwrap();
    running.process.wait().await.unwrap();
    for _ in ["in a group that is there", "in one that is not"] {
        let error = world.driver.freeze(&running).await.unwrap_err();
        assert_eq!(error.code, codes::SANDBOX_GONE);
        let error = world.driver.thaw(&running).await.unwrap_err();
        assert_eq!(error.code, codes::SANDBOX_GONE);
        running.cgroup.remove().await.unwrap();
    }
    let error = world.driver.namespaces(&running).unwrap_err();
    assert_eq!(error.code, codes::SANDBOX_GONE);
}

#[tokio::test]
async fn the_namespaces_are_those_of_the_sandbox() {
    let world = World::new().await;
    let script = format!("exec unshare --user --net sh -c '{COUNT}'");
    let running = world.run("apart", &script);
    world.ticks("apart").more(1).await;
    let namespaces = world.driver.namespaces(&running).unwrap();
    let link = |process: &str, kind: &str| {
        fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap().display().to_string()
    };
    let pid = running.process.pid().to_string();
    for (kind, descriptor) in [("user", &namespaces.user), ("net", &namespaces.net)] {
        let inode = rustix::fs::fstat(descriptor).unwrap().st_ino;
        assert_eq!(link(&pid, kind), format!("{kind}:[{inode}]"));
        assert_ne!(link(&pid, kind), link("self", kind));
    }
}

#[tokio::test]
async fn no_group_is_named_like_one_of_an_earlier_run() {
    let mut world = World::new().await;
    let mut names = HashSet::new();
    for run in 1..=2 {
        world.driver.shutdown().await;
        // Its groups are what counts here, not what runs in them.
        world.driver = start(&world.directory, &world.instance, "/bin/true", 3, &[]).await;
        until("the groups are made", || world.groups().len() == 3).await;
        names.extend(world.groups());
        assert_eq!(names.len(), 3 * run);
    }
}
