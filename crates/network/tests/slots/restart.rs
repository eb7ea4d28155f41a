//! The daemon is killed, sandboxes live on, and the next run takes them up.

use std::{
    collections::{HashMap, HashSet},
    env,
    fs::File,
    io::BufRead,
    os::fd::OwnedFd,
    process::{ExitCode, Stdio},
    thread,
    time::Duration,
};

use atoll_core::{Result, error::codes};
use atoll_network::{Handle, Options, Service, Slot};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
};

use crate::world::{
    DEADLINE, Inside, Running, SERVER, World, command, eventually, forwards, ip, links, options,
    probe, serve_udp,
};

/// What a sandbox sees of the firewall.
const REFUSED: &str = "HostUnreachable";
/// Name of the instance's table.
const TABLE: &str = "inet atoll_a00001";

/// The process to be killed: a service that takes a slot for every line `take`, says where it is,
/// and cuts it off for `cut INDEX`.
pub(crate) fn daemon() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (lines, orders) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let read = std::io::stdin().lock().lines().map_while(|line| line.ok());
        read.for_each(|line| lines.send(line).unwrap());
    });
    runtime.block_on(serve(orders));
    ExitCode::SUCCESS
}

async fn serve(mut orders: mpsc::UnboundedReceiver<String>) {
    let service = Service::start(options("a00001")).await.unwrap();
    println!("ready");
    let mut slots: HashMap<u32, Slot> = HashMap::new();
    while let Some(order) = orders.recv().await {
        if let Some(index) = order.strip_prefix("cut ") {
            slots[&index.parse().unwrap()].set_internet(false).await.unwrap();
            println!("done");
        } else {
            let slot = service.handle().take().await.unwrap();
            let [user, net] = slot.namespaces();
            println!("{} {user} {net}", slot.index());
            slots.insert(slot.index(), slot);
        }
    }
}

struct Daemon(Running);

/// A slot with a process in it, a server on port 8080, which is all that holds the namespaces once
/// the daemon is gone.
struct Sandbox {
    index: u32,
    process: Running,
}

impl Daemon {
    async fn start() -> Self {
        let child = tokio::process::Command::new(env::current_exe().unwrap())
            .arg("daemon")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self(Running::of(child.unwrap()).await.0)
    }

    async fn sandbox(&mut self) -> Sandbox {
        let line = self.0.say("take").await;
        let [index, user, net] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let place = [user.to_owned(), net.to_owned()];
        let (process, _) = Running::start(&place, &["listen", "127.0.0.1:8080"]).await;
        Sandbox { index: index.parse().unwrap(), process }
    }

    /// Ends it by SIGKILL.
    async fn kill(self) {
        self.0.end().await;
    }
}

impl Sandbox {
    fn open(&self) -> [OwnedFd; 2] {
        self.process.namespaces().map(|path| File::open(path).unwrap().into())
    }

    async fn adopt(&self, handle: &Handle, internet: bool) -> Result<Slot> {
        let [user, net] = self.open();
        handle.adopt(self.index, user, net, internet).await
    }

    async fn probe(&self, arguments: &[&str]) -> String {
        probe(&self.process, arguments).await
    }
}

/// A world in which a killed daemon has left a sandbox.
async fn after_kill() -> (World, Sandbox) {
    let world = World::new();
    world.internet.run(crate::dns::serve);
    let mut daemon = Daemon::start().await;
    let sandbox = daemon.sandbox().await;
    daemon.kill().await;
    (world, sandbox)
}

async fn start_keeping(sandboxes: &[&Sandbox]) -> Service {
    let keep = sandboxes.iter().map(|sandbox| sandbox.index).collect();
    Service::start(Options { keep, ..options("a00001") }).await.unwrap()
}

fn has_table() -> bool {
    command("nft", "list tables").contains(TABLE)
}

/// Whether the sandbox's own server answers over the slot.
async fn assert_connects(slot: &Slot) {
    let stream = slot.connect(8080).await.unwrap();
    let line = BufReader::new(stream).lines().next_line().await.unwrap().unwrap();
    assert_eq!(line, "127.0.0.1:8080");
}

pub(crate) async fn a_sandbox_outlives_the_daemon() {
    let world = World::new();
    world.internet.run(crate::dns::serve);
    let mut daemon = Daemon::start().await;
    let (unkept, sandbox) = (daemon.sandbox().await, daemon.sandbox().await);
    let (mut talk, _) = Running::start(&sandbox.process, &["talk", SERVER]).await;
    assert_eq!(talk.say("with the first daemon").await, "ok");
    assert!(sandbox.probe(&["dns", "udp", "example.org."]).await.starts_with("NoError"));

    daemon.kill().await;
    assert_eq!(talk.say("without a daemon").await, "ok");
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
    assert_eq!(sandbox.probe(&["tcp", "192.168.50.1:80"]).await, REFUSED);

    let service = start_keeping(&[&sandbox]).await;
    assert_eq!(links("aa00001n"), [format!("aa00001n{}", sandbox.index)]);
    assert_ne!(unkept.probe(&["tcp", SERVER]).await, "203.0.113.2");
    assert_eq!(talk.say("before it is adopted").await, "ok");
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");

    let handle = service.handle();
    let slot = sandbox.adopt(&handle, true).await.unwrap();
    assert_eq!(slot.index(), sandbox.index);
    assert_eq!(slot.first_uid(), 1_000_000_000 + sandbox.index * 65_536);
    assert_eq!(talk.say("after that").await, "ok");
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
    assert_eq!(sandbox.probe(&["tcp", "192.168.50.1:80"]).await, REFUSED);
    for transport in ["udp", "tcp"] {
        let answer = sandbox.probe(&["dns", transport, "example.org."]).await;
        assert_eq!(answer, "NoError 192.0.2.7");
    }
    assert_connects(&slot).await;

    // Of eight slots seven are left, and none is this one.
    let mut others = HashSet::new();
    let mut taken = Vec::new();
    for _ in 0..7 {
        let other = handle.take().await.unwrap();
        others.insert(other.index());
        taken.push(other);
    }
    assert_eq!(others.len(), 7);
    assert!(!others.contains(&sandbox.index));
    assert_eq!(handle.take().await.unwrap_err().code, codes::CAPACITY);
    assert_eq!(probe(&taken[0], &["tcp", SERVER]).await, "203.0.113.2");

    slot.set_internet(false).await.unwrap();
    assert_eq!(talk.say("after it was cut").await, "cut");
    service.shutdown().await.unwrap();
    assert!(!forwards("up0") && !has_table());
}

pub(crate) async fn offline_stays_offline() {
    let world = World::new();
    world.internet.run(crate::dns::serve);
    let mut daemon = Daemon::start().await;
    let sandbox = daemon.sandbox().await;
    assert_eq!(daemon.0.say(&format!("cut {}", sandbox.index)).await, "done");
    daemon.kill().await;
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, REFUSED, "without a daemon");
    let service = start_keeping(&[&sandbox]).await;
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, REFUSED, "before it is adopted");
    let slot = sandbox.adopt(&service.handle(), false).await.unwrap();
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, REFUSED, "after that");
    assert_eq!(sandbox.probe(&["dns", "udp", "example.org."]).await, "Refused");
    assert_connects(&slot).await;

    slot.set_internet(true).await.unwrap();
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
    assert!(sandbox.probe(&["dns", "udp", "example.org."]).await.starts_with("NoError"));
    slot.leave();

    // What the caller says counts, not what the link says.
    let slot = sandbox.adopt(&service.handle(), false).await.unwrap();
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, REFUSED);
    drop((sandbox, slot));
    service.shutdown().await.unwrap();
}

pub(crate) async fn the_firewall_has_no_gap() {
    let world = World::new();
    let denied = "198.51.100.66:9000";
    let received = world.internet.run(move || serve_udp(denied));
    let mut daemon = Daemon::start().await;
    let sandbox = daemon.sandbox().await;
    let (flood, _) = Running::start(&sandbox.process, &["flood", denied]).await;
    daemon.kill().await;
    for _ in 0..20 {
        drop(start_keeping(&[&sandbox]).await);
    }
    let service = start_keeping(&[&sandbox]).await;
    let slot = sandbox.adopt(&service.handle(), true).await.unwrap();
    slot.leave();
    service.shutdown().await.unwrap();
    assert!(received.try_recv().is_err(), "a datagram came through");

    // Nothing but the table has stopped them.
    command("nft", &format!("delete table {TABLE}"));
    received.recv_timeout(DEADLINE).unwrap();
    flood.end().await;
}

pub(crate) async fn another_network_is_for_new_slots_only() {
    let (_world, sandbox) = after_kill().await;
    let network = Some("192.0.2.0/24".parse().unwrap());
    let keep = [sandbox.index].into();
    let service = Service::start(Options { network, keep, ..options("a00001") }).await.unwrap();
    let fresh = service.handle().take().await.unwrap();
    assert_ne!(fresh.index(), sandbox.index);
    let (server, _) = Running::start(&fresh, &["listen", "0.0.0.0:80"]).await;
    let slot = sandbox.adopt(&service.handle(), true).await.unwrap();
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
    assert_eq!(probe(&fresh, &["tcp", SERVER]).await, "203.0.113.2");
    let address = format!("192.0.2.{}:80", fresh.index() + 1);
    assert_eq!(sandbox.probe(&["tcp", &address]).await, REFUSED);
    server.end().await;

    // The index may be used again, and is in the new network then.
    sandbox.process.end().await;
    let own = format!("192.0.2.{} ", slot.index() + 1);
    assert!(!ip("route show").contains(&own));
    slot.release().await;
    let mut taken = Vec::new();
    for _ in 0..7 {
        taken.push(service.handle().take().await.unwrap());
    }
    assert!(ip("route show").contains(&own));
    service.shutdown().await.unwrap();
}

pub(crate) async fn an_adopted_slot_is_released_like_any_other() {
    let (_world, sandbox) = after_kill().await;
    let keep = [sandbox.index].into();
    let service = Service::start(Options { slots: 1, keep, ..options("a00001") }).await.unwrap();
    let handle = service.handle();
    assert_eq!(handle.take().await.unwrap_err().code, codes::CAPACITY, "before it is adopted");
    let slot = sandbox.adopt(&handle, true).await.unwrap();
    assert_eq!(handle.take().await.unwrap_err().code, codes::CAPACITY, "after that");
    let index = slot.index();
    sandbox.process.end().await;
    slot.release().await;
    let fresh = handle.take().await.unwrap();
    assert_eq!(fresh.index(), index);
    assert_eq!(probe(&fresh, &["tcp", SERVER]).await, "203.0.113.2");
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_kept_slot_whose_sandbox_has_ended_is_discarded() {
    let (_world, sandbox) = after_kill().await;
    let keep = [sandbox.index].into();
    let service = Service::start(Options { slots: 1, keep, ..options("a00001") }).await.unwrap();
    let handle = service.handle();
    let namespaces = sandbox.open();
    let link = format!("aa00001n{}", sandbox.index);
    sandbox.process.end().await;
    // Still the old one: we hold it.
    assert_eq!(links("aa00001n"), [link]);
    handle.discard(0);
    let fresh = handle.take().await.unwrap();
    assert_eq!(probe(&fresh, &["tcp", SERVER]).await, "203.0.113.2");
    // Not one that lives on any more.
    handle.discard(0);
    let [user, net] = namespaces;
    let error = handle.adopt(0, user, net, true).await.unwrap_err();
    assert_eq!(error.code, codes::SLOT_FAILED);
    assert_eq!(probe(&fresh, &["tcp", SERVER]).await, "203.0.113.2");
    service.shutdown().await.unwrap();
}

pub(crate) async fn shutdown_leaves_what_lives_on() {
    let world = World::new();
    world.internet.run(crate::dns::serve);
    let mut daemon = Daemon::start().await;
    let (left, unadopted) = (daemon.sandbox().await, daemon.sandbox().await);
    daemon.kill().await;
    let (mut talk, _) = Running::start(&left.process, &["talk", SERVER]).await;

    for _ in 0..2 {
        let service = start_keeping(&[&left, &unadopted]).await;
        let slot = left.adopt(&service.handle(), true).await.unwrap();
        assert!(left.probe(&["dns", "udp", "example.org."]).await.starts_with("NoError"));
        let used = service.handle().take().await.unwrap();
        slot.leave();
        service.shutdown().await.unwrap();
        drop(used);
        assert_eq!(links("aa00001n").len(), 2, "only those that live on");
        assert!(has_table() && forwards("up0"));
        assert_eq!(talk.say("still there").await, "ok");
        for sandbox in [&left, &unadopted] {
            assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
            assert_eq!(sandbox.probe(&["tcp", "192.168.50.1:80"]).await, REFUSED);
        }
    }

    let service = start_keeping(&[&left, &unadopted]).await;
    let mut slots = Vec::new();
    for sandbox in [&left, &unadopted] {
        slots.push(sandbox.adopt(&service.handle(), true).await.unwrap());
    }
    drop(slots);
    service.shutdown().await.unwrap();
    assert_eq!(links("aa00001n"), [""; 0]);
    assert!(!has_table() && !forwards("up0"));
}

pub(crate) async fn only_its_own_namespaces_make_a_slot() {
    let _world = World::new();
    let mut daemon = Daemon::start().await;
    let (sandbox, other) = (daemon.sandbox().await, daemon.sandbox().await);
    daemon.kill().await;
    let service = start_keeping(&[&sandbox, &other]).await;
    let handle = service.handle();
    let host = || File::open("/proc/thread-self/ns/net").unwrap().into();
    let file = || tempfile::tempfile().unwrap().into();
    let [_, others] = other.open();
    for wrong in [others, host(), file()] {
        let [user, _] = sandbox.open();
        let error = handle.adopt(sandbox.index, user, wrong, true).await.unwrap_err();
        assert_eq!(error.code, codes::SLOT_FAILED, "{error}");
    }
    let slot = sandbox.adopt(&handle, true).await.unwrap();
    assert_connects(&slot).await;
    let twice = sandbox.adopt(&handle, true).await.unwrap_err();
    assert_eq!(twice.code, codes::SLOT_FAILED);
    let [user, net] = sandbox.open();
    let never_kept = handle.adopt(7, user, net, true).await.unwrap_err();
    assert_eq!(never_kept.code, codes::SLOT_FAILED);
    drop((sandbox, other, slot));
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_sandbox_may_have_taken_the_name_servers_port() {
    let (_world, sandbox) = after_kill().await;
    let (server, _) = Running::start(&sandbox.process, &["listen", "169.254.0.22:53"]).await;
    let service = start_keeping(&[&sandbox]).await;
    let slot = sandbox.adopt(&service.handle(), true).await.unwrap();
    assert_connects(&slot).await;
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
    assert_eq!(sandbox.probe(&["tcp", "169.254.0.22:53"]).await, "169.254.0.22:53");
    server.end().await;
    drop((sandbox, slot));
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_cancelled_adoption_loses_no_slot() {
    let (_world, sandbox) = after_kill().await;
    let service = start_keeping(&[&sandbox]).await;
    for patience in [0, 100, 300, 1000, 3000, 10_000] {
        let patience = Duration::from_micros(patience);
        // Given up at some point of the way.
        if let Ok(slot) =
            tokio::time::timeout(patience, sandbox.adopt(&service.handle(), true)).await
        {
            slot.unwrap().leave();
        }
        // An adoption that is given up goes to its end before it counts as left.
        let give_up = tokio::time::Instant::now() + DEADLINE;
        let slot = loop {
            match sandbox.adopt(&service.handle(), true).await {
                Ok(slot) => break slot,
                Err(error) => assert!(tokio::time::Instant::now() < give_up, "{error}"),
            }
        };
        assert!(sandbox.probe(&["dns", "udp", "example.org."]).await.starts_with("NoError"));
        slot.leave();
    }
    // Shut down in the middle of one: the slot lives on all the same.
    let [user, net] = sandbox.open();
    let (handle, index) = (service.handle(), sandbox.index);
    let adopting = tokio::spawn(async move { handle.adopt(index, user, net, true).await });
    tokio::task::yield_now().await;
    adopting.abort();
    service.shutdown().await.unwrap();
    eventually("the adoption has ended", || adopting.is_finished()).await;
    assert_eq!(sandbox.probe(&["tcp", SERVER]).await, "203.0.113.2");
}
