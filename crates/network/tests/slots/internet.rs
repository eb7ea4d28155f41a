//! What passes between a sandbox and the rest of the world.

use std::net::{TcpStream, UdpSocket};

use atoll_network::{Service, Slot};

use crate::world::{
    DEADLINE, Place, Running, SERVER, World, command, eventually, forwards, ip, links, options,
    probe, serve_udp, start,
};

/// How a refusal by the firewall looks from inside.
const REFUSED: &str = "HostUnreachable";

pub(crate) async fn a_sandbox_reaches_the_internet_and_nothing_else() {
    let (_world, service, slot) = start().await;
    let other = service.handle().take().await.unwrap();
    let (neighbour, _) = Running::start(&other, &["listen", "0.0.0.0:80"]).await;

    // The host's own address is all that the internet sees.
    assert_eq!(probe(&slot, &["tcp", SERVER]).await, "203.0.113.2");

    let forbidden = [
        "192.168.50.1:80",    // a private network
        "169.254.169.254:80", // cloud metadata
        "192.0.0.9:80",       // protocol assignments
        "198.18.0.1:80",      // benchmarks
        "198.51.100.66:80",   // denied by the options
        "203.0.113.2:80",     // the host, by its address on the uplink
        "192.168.50.2:80",    // the host, by a private address
    ];
    for address in forbidden {
        TcpStream::connect(address).expect("the host itself reaches it");
        assert_eq!(probe(&slot, &["tcp", address]).await, REFUSED, "{address}");
    }
    let neighbour_address = format!("10.99.0.{}:80", other.index() + 1);
    assert_eq!(probe(&slot, &["tcp", &neighbour_address]).await, REFUSED);
    neighbour.end().await;
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_flushed_firewall_comes_back() {
    let (_world, service, slot) = start().await;
    // What a reload of the host's own firewall begins with.
    command("nft", "flush ruleset");
    let is_back = || command("nft", "list tables").contains("inet atoll_a00001");
    assert!(!is_back());
    eventually("the table is back", is_back).await;
    assert_eq!(probe(&slot, &["tcp", "192.168.50.1:80"]).await, REFUSED);
    assert_eq!(probe(&slot, &["tcp", SERVER]).await, "203.0.113.2");
    service.shutdown().await.unwrap();
    assert!(!is_back());
}

pub(crate) async fn a_sandbox_cannot_fill_the_connection_table() {
    let (world, service, slot) = start().await;
    world.internet.run(crate::dns::serve);
    let other = service.handle().take().await.unwrap();
    let (server, _) = Running::start(&slot, &["listen", "127.0.0.1:8080"]).await;
    slot.connect(8080).await.unwrap();
    assert_eq!(probe(&slot, &["tcp", "127.0.0.1:8080"]).await, "127.0.0.1:8080");
    assert!(probe(&slot, &["dns", "udp", "example.org."]).await.starts_with("NoError"));
    let count = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
    assert_eq!(Place::of_slot(&slot).run(count).trim(), "0", "loopback is not tracked");

    assert_eq!(probe(&slot, &["scan", "198.51.100.1"]).await, "4096 PermissionDenied");
    assert_eq!(probe(&slot, &["tcp", SERVER]).await, "ConnectionRefused");
    slot.connect(8080).await.expect("loopback has no limit");
    assert!(probe(&slot, &["dns", "udp", "example.org."]).await.starts_with("NoError"));
    assert_eq!(probe(&other, &["tcp", SERVER]).await, "203.0.113.2", "another slot");
    server.end().await;
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_silent_connection_is_forgotten_in_hours() {
    let (_world, service, slot) = start().await;
    let (mut talk, _) = Running::start(&slot, &["talk", SERVER]).await;
    assert_eq!(talk.say("one").await, "ok");
    let flows = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    let flow = flows.lines().find(|flow| flow.contains("ESTABLISHED")).expect(&flows);
    // ipv4 2 tcp 6 SECONDS ESTABLISHED ...
    let seconds: u32 = flow.split_whitespace().nth(4).unwrap().parse().unwrap();
    assert!(seconds <= 7200, "{flow}");
    service.shutdown().await.unwrap();
}

pub(crate) async fn udp_and_ping_pass() {
    let (world, service, slot) = start().await;
    let _received = world.internet.run(|| serve_udp("198.51.100.1:9000"));
    assert_eq!(probe(&slot, &["udp", "198.51.100.1:9000", "hello"]).await, "hello");
    assert_eq!(probe(&slot, &["ping", "198.51.100.1"]).await, "pong");
    assert_ne!(probe(&slot, &["ping", "192.168.50.1"]).await, "pong");
    service.shutdown().await.unwrap();
}

pub(crate) async fn offline_cuts_what_is_open_and_what_is_new() {
    let (world, service, slot) = start().await;
    world.internet.run(crate::dns::serve);
    let other = service.handle().take().await.unwrap();
    let (mut talk, _) = Running::start(&slot, &["talk", SERVER]).await;
    assert_eq!(talk.say("one").await, "ok");

    slot.set_internet(false).await.unwrap();
    assert_eq!(talk.say("two").await, "cut");
    assert_eq!(probe(&slot, &["tcp", SERVER]).await, REFUSED);
    assert_eq!(probe(&slot, &["dns", "udp", "example.org."]).await, "Refused");
    assert_eq!(probe(&slot, &["dns", "tcp", "example.org."]).await, "Refused");
    assert_eq!(probe(&other, &["tcp", SERVER]).await, "203.0.113.2", "another slot");

    slot.set_internet(true).await.unwrap();
    assert_eq!(probe(&slot, &["tcp", SERVER]).await, "203.0.113.2");
    assert!(probe(&slot, &["dns", "udp", "example.org."]).await.starts_with("NoError"));
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_forged_source_never_leaves() {
    let (world, service, slot) = start().await;
    let other = service.handle().take().await.unwrap();
    let received = world.internet.run(|| serve_udp("198.51.100.1:9000"));
    let own = format!("10.99.0.{}", slot.index() + 1);
    let others = format!("10.99.0.{}", other.index() + 1);
    for source in [&*others, "203.0.113.2", "203.0.113.7", "192.168.50.1", "169.254.0.21"] {
        assert_eq!(probe(&slot, &["forge", source, "198.51.100.1:9000", source]).await, "sent");
    }
    // Sent last, over the same way: when it has arrived, the others never will.
    assert_eq!(probe(&slot, &["forge", &own, "198.51.100.1:9000", "honest"]).await, "sent");
    let (source, text) = received.recv_timeout(DEADLINE).unwrap();
    assert_eq!((source.ip().to_string().as_str(), text.as_str()), ("203.0.113.2", "honest"));
    service.shutdown().await.unwrap();
}

pub(crate) async fn there_is_no_ipv6_but_loopback() {
    let (_world, service, slot) = start().await;
    let addresses = probe(&slot, &["read", "/proc/thread-self/net/if_inet6"]).await;
    let links: Vec<&str> =
        addresses.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(links, ["lo"], "{addresses}");
    let outcome = probe(&slot, &["tcp", "[2001:db8::1]:80"]).await;
    assert!(["NetworkUnreachable", "AddrNotAvailable"].contains(&&*outcome), "{outcome}");
    let host_end = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", host_link(&slot));
    assert_eq!(std::fs::read_to_string(host_end).unwrap().trim(), "1");
    service.shutdown().await.unwrap();
}

fn host_link(slot: &Slot) -> String {
    let name = format!("aa00001n{}", slot.index());
    assert!(links("aa00001n").contains(&name));
    name
}

pub(crate) async fn nothing_comes_in_from_outside() {
    let (world, service, slot) = start().await;
    let (server, _) = Running::start(&slot, &["listen", "0.0.0.0:8080"]).await;
    slot.connect(8080).await.expect("the server is there");
    // As if the sandbox had the privilege to take its outer address: only the host is in the way.
    let outer = format!("10.99.0.{}", slot.index() + 1);
    let (take_it, address) = (format!("addr add {outer}/32 dev lo"), format!("{outer}:8080"));
    Place::of_slot(&slot).run(move || ip(&take_it));
    let address = address.parse().unwrap();
    let connect = move || {
        let patience = std::time::Duration::from_secs(1);
        TcpStream::connect_timeout(&address, patience).map(drop).map_err(|error| error.kind())
    };
    let timed_out = Err(std::io::ErrorKind::TimedOut);
    assert_eq!(world.internet.run(connect), timed_out, "from the internet");
    assert_eq!(tokio::task::spawn_blocking(connect).await.unwrap(), timed_out, "from the host");
    server.end().await;
    service.shutdown().await.unwrap();
}

pub(crate) async fn the_host_does_not_become_a_router() {
    let world = World::new();
    let received = world.lan.run(|| serve_udp("192.168.50.1:9000"));
    let send = |text: &'static str| {
        world.internet.run(move || {
            let socket = UdpSocket::bind("203.0.113.1:0").unwrap();
            socket.send_to(text.as_bytes(), "192.168.50.1:9000").unwrap();
        });
    };
    assert!(!forwards("up0"));
    let service = Service::start(options("a00001")).await.unwrap();
    assert!(forwards("up0") && !forwards("lan0"));
    send("guarded");
    // Without the table the way is open: the datagram above was stopped by nothing else.
    command("nft", "delete table inet atoll_a00001");
    send("unguarded");
    assert_eq!(received.recv_timeout(DEADLINE).unwrap().1, "unguarded");

    let service = {
        drop(service);
        Service::start(options("a00001")).await.unwrap()
    };
    service.shutdown().await.unwrap();
}

pub(crate) async fn two_instances_share_a_host_and_not_their_sandboxes() {
    let _world = World::new();
    let first = Service::start(options("a00001")).await.unwrap();
    // Beside the blocked ranges, so that only the rule about sandboxes can stop it.
    let network = Some("192.0.2.0/24".parse().unwrap());
    let second = Service::start(atoll_network::Options {
        network,
        first_uid: 2_000_000_000,
        ..options("a00002")
    });
    let second = second.await.unwrap();
    let (a, b) = (first.handle().take().await.unwrap(), second.handle().take().await.unwrap());
    let (server, _) = Running::start(&b, &["listen", "0.0.0.0:80"]).await;
    let address = format!("192.0.2.{}:80", b.index() + 1);
    assert_eq!(probe(&a, &["tcp", &address]).await, REFUSED);
    assert_eq!(probe(&a, &["tcp", SERVER]).await, "203.0.113.2");
    assert_eq!(probe(&b, &["tcp", SERVER]).await, "203.0.113.2");
    server.end().await;

    // The one that switched forwarding on leaves first: the other still needs it.
    first.shutdown().await.unwrap();
    assert_eq!(links("aa00001n"), [""; 0]);
    assert_eq!(probe(&b, &["tcp", SERVER]).await, "203.0.113.2");
    second.shutdown().await.unwrap();
    assert!(!forwards("up0"), "the last one switches back");
    eventually("all routes are gone", || !ip("route show").contains("192.0.2.")).await;
}
