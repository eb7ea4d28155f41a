//! Slots come, are used and go.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use atoll_core::error::codes;
use atoll_network::{Options, Service, Slot};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::world::{
    Running, SERVER, World, command, eventually, forwards, ip, links, options, probe, start,
};

/// The first line that a server in the sandbox sends over [`Slot::connect`].
async fn greeting(slot: &Slot, port: u16) -> String {
    let stream = slot.connect(port).await.unwrap();
    BufReader::new(stream).lines().next_line().await.unwrap().unwrap()
}

pub(crate) async fn connect_finds_a_server_wherever_it_listens() {
    let (_world, service, slot) = start().await;
    let refused = slot.connect(8080).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for address in ["127.0.0.1:8080", "[::1]:8080", "169.254.0.21:8080", "0.0.0.0:80"] {
        let (server, listening) = Running::start(&slot, &["listen", address]).await;
        assert_eq!(listening, "listening", "{address}");
        let port = address.rsplit(':').next().unwrap();
        let expected = address.replace("0.0.0.0", "127.0.0.1");
        assert_eq!(greeting(&slot, port.parse().unwrap()).await, expected);
        server.end().await;
    }
    service.shutdown().await.unwrap();
}

pub(crate) async fn root_in_a_sandbox_is_root_of_its_network_only() {
    let (_world, service, slot) = start().await;
    let map = probe(&slot, &["read", "/proc/self/uid_map"]).await;
    let map: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(map, ["0", &*slot.first_uid().to_string(), "65536"]);
    assert_eq!(slot.first_uid(), 1_000_000_000 + slot.index() * 65_536);
    let denied = probe(&slot, &["write", "/proc/sys/kernel/hostname", "x"]).await;
    assert_eq!(denied, "PermissionDenied");
    assert_eq!(probe(&slot, &["read", "/proc/sys/net/ipv4/ip_forward"]).await, "0");
    service.shutdown().await.unwrap();
}

/// What this instance has on the host, beside its slots' descriptors.
fn host_state() -> (Vec<String>, String, String, String) {
    let rules = command("nft", "list ruleset");
    (links("aa00001n"), ip("route show"), ip("neigh show nud permanent"), rules)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(crate) async fn slots_come_and_go_without_a_trace() {
    let _world = World::new();
    let outside = host_state();
    let service = Service::start(options("a00001")).await.unwrap();
    let handle = service.handle();
    let idle = host_state();
    let mut open = 0;
    for round in 0..50 {
        let slot = handle.take().await.unwrap();
        assert!(links("aa00001n").contains(&format!("aa00001n{}", slot.index())));
        if round % 2 == 0 {
            slot.release().await
        } else {
            drop(slot)
        }
        if round == 0 {
            eventually("the first slot is gone", || host_state() == idle).await;
            open = descriptors();
        }
    }
    eventually("all slots are gone", || host_state() == idle).await;
    eventually("no descriptor is left over", || descriptors() <= open).await;
    service.shutdown().await.unwrap();
    assert_eq!(host_state(), outside);
}

pub(crate) async fn a_held_connection_does_not_hold_the_slot() {
    let _world = World::new();
    let service = Service::start(Options { slots: 1, ..options("a00001") }).await.unwrap();
    let slot = service.handle().take().await.unwrap();
    let (server, _) = Running::start(&slot, &["listen", "127.0.0.1:80"]).await;
    let _held = slot.connect(80).await.unwrap();
    server.end().await;
    slot.release().await;
    // The only index there is comes back although the namespace lives on.
    let slot = service.handle().take().await.unwrap();
    assert_eq!(slot.index(), 0);
    assert_eq!(probe(&slot, &["tcp", SERVER]).await, "203.0.113.2");
    service.shutdown().await.unwrap();
}

pub(crate) async fn the_next_run_cleans_up_after_a_crash() {
    let (_world, service, slot) = start().await;
    // The daemon's side goes without a word; the sandbox, here our slot, lives on.
    drop(service);
    let old = format!("aa00001n{}", slot.index());
    assert_eq!(links("aa00001n"), [old]);
    let service = Service::start(options("a00001")).await.unwrap();
    assert_eq!(links("aa00001n"), [""; 0]);
    let fresh = service.handle().take().await.unwrap();
    assert_eq!(probe(&fresh, &["tcp", SERVER]).await, "203.0.113.2");
    assert_ne!(probe(&slot, &["tcp", SERVER]).await, "203.0.113.2");
    service.shutdown().await.unwrap();
    assert!(!forwards("up0"), "what the crashed run switched is switched back");
}

pub(crate) async fn shutdown_removes_what_is_in_use_and_nothing_of_others() {
    let _world = World::new();
    ip("link add aa00002n0 type veth peer name other");
    command("nft", "add table inet atoll_a00002");
    let before = (ip("-br link"), command("nft", "list ruleset"));
    let service = Service::start(Options { pool: 2, ..options("a00001") }).await.unwrap();
    let handle = service.handle();
    eventually("the pool is full", || handle.ready() == 2).await;
    let held = handle.take().await.unwrap();
    service.shutdown().await.unwrap();
    assert_eq!((ip("-br link"), command("nft", "list ruleset")), before);
    assert!(!forwards("up0"));
    assert_eq!(handle.take().await.unwrap_err().code, codes::NODE_UNAVAILABLE);
    assert_eq!(handle.ready(), 0);
    drop(held);
}

pub(crate) async fn a_cancelled_take_loses_no_slot() {
    let _world = World::new();
    let service = Service::start(Options { slots: 1, ..options("a00001") }).await.unwrap();
    let handle = service.handle();
    for patience in [0, 1, 3, 10, 30, 100, 300] {
        let patience = Duration::from_millis(patience);
        // Given up at some point of the way; one that came through is used up.
        let _ = tokio::time::timeout(patience, handle.take()).await;
        let slot = handle.take().await.unwrap();
        assert_eq!(slot.index(), 0);
    }
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_full_node_says_so_and_recovers() {
    let _world = World::new();
    let service = Service::start(Options { slots: 2, ..options("a00001") }).await.unwrap();
    let handle = service.handle();
    let (first, _second) = (handle.take().await.unwrap(), handle.take().await.unwrap());
    assert_eq!(handle.take().await.unwrap_err().code, codes::CAPACITY);
    let index = first.index();
    first.release().await;
    // Waits for the released one to be gone instead of failing.
    assert_eq!(handle.take().await.unwrap().index(), index);
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_failing_launcher_is_reported_and_not_hammered() {
    let _world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let (launcher, log) = (directory.path().join("launcher"), directory.path().join("log"));
    let script = format!("#!/bin/sh\necho x >>{}\necho error no luck\nexit 1\n", log.display());
    fs::write(&launcher, script).unwrap();
    fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options { launcher, pool: 4, ..options("a00001") };
    let service = Service::start(options).await.unwrap();
    for _ in 0..3 {
        let error = service.handle().take().await.unwrap_err();
        assert_eq!(error.code, codes::SLOT_FAILED);
        assert!(error.message.contains("no luck"), "{error}");
    }
    let attempts = fs::read_to_string(log).unwrap().lines().count();
    assert!(attempts <= 8, "{attempts} attempts for three callers");
    service.shutdown().await.unwrap();
}

pub(crate) async fn bad_options_are_refused() {
    let _world = World::new();
    let start = async |options: Options| Service::start(options).await.err().unwrap().code;
    assert_eq!(start(Options { slots: 0, ..options("a00001") }).await, codes::BAD_OPTION);
    assert_eq!(start(Options { first_uid: 0, ..options("a00001") }).await, codes::BAD_OPTION);
    let high = Options { first_uid: u32::MAX - 65_536, slots: 2, ..options("a00001") };
    assert_eq!(start(high).await, codes::BAD_OPTION);
    let keep = [8].into();
    assert_eq!(start(Options { keep, ..options("a00001") }).await, codes::BAD_OPTION);
    assert_eq!(start(options("short")).await, codes::BAD_OPTION);
    let network = Some("192.168.0.0/16".parse().unwrap());
    assert_eq!(start(Options { network, ..options("a00001") }).await, codes::NO_ADDRESSES);
    assert!(!command("nft", "list tables").contains("atoll"), "nothing was set up");
}
