//! A small world around the host: an internet, a private network, a metadata server.
//!
//! ```text
//!  internet 203.0.113.1, 198.51.100.1, .53, .66, 169.254.169.254 (metadata), 192.0.0.9, 198.18.0.1
//!      │ up0 203.0.113.2
//!    host (the test's own namespace) ── lan0 192.168.50.2 ── lan 192.168.50.1
//! ```

use std::{
    collections::HashSet,
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use atoll_network::{Options, Service, Slot};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

/// A server on the internet.
pub(crate) const SERVER: &str = "198.51.100.1:80";
/// Where slots' outer addresses are taken from: slot 0 is 10.99.0.1.
pub(crate) const NETWORK: &str = "10.99.0.0/24";
/// Longest that anything here waits for what should come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A network namespace other than the host's.
pub(crate) struct Place {
    ns: Arc<OwnedFd>,
}

impl Place {
    fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self { ns: Arc::new(made.join().unwrap().into()) }
    }

    /// The inside of a slot, with the host's own power over it.
    pub(crate) fn of_slot(slot: &Slot) -> Self {
        Self { ns: Arc::new(slot.net_ns().try_clone_to_owned().unwrap()) }
    }

    fn path(&self) -> String {
        fd_path(self.ns.as_fd())
    }

    /// Runs `job` here, on a thread of its own; threads it starts stay here.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let ns = Arc::clone(&self.ns);
        let job = move || {
            setns(&*ns, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        };
        thread::spawn(job).join().unwrap()
    }
}

/// A path to a descriptor that other processes can open.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

/// Everything outside of the host.
pub(crate) struct World {
    pub(crate) internet: Place,
    pub(crate) lan: Place,
}

impl World {
    /// Builds it around the namespace the process is in, which is new.
    pub(crate) fn new() -> Self {
        let (internet, lan) = (Place::new(), Place::new());
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        ip("link set lo up");
        for (link, place) in [("up0", &internet), ("lan0", &lan)] {
            ip(&format!("link add {link} type veth peer name eth0 netns {}", place.path()));
            ip(&format!("link set {link} up"));
        }
        ip("addr add 203.0.113.2/24 dev up0");
        ip("addr add 192.168.50.2/24 dev lan0");
        internet.run(|| {
            ip("link set lo up");
            ip("link set eth0 up");
            ip("addr add 203.0.113.1/24 dev eth0");
            let blocked = ["169.254.169.254", "192.0.0.9", "198.18.0.1"];
            let open = ["198.51.100.1", "198.51.100.53", "198.51.100.66"];
            for address in open.iter().chain(&blocked) {
                ip(&format!("addr add {address}/32 dev lo"));
            }
            // A hostile neighbour: it knows the way to everything behind the host.
            for network in ["10.0.0.0/8", "192.168.50.0/24"] {
                ip(&format!("route add {network} via 203.0.113.2"));
            }
            for address in [SERVER, "198.51.100.66:80"] {
                serve_tcp(address);
            }
            for address in blocked {
                serve_tcp(&format!("{address}:80"));
            }
        });
        lan.run(|| {
            ip("link set eth0 up");
            ip("addr add 192.168.50.1/24 dev eth0");
            serve_tcp("192.168.50.1:80");
        });
        ip("route add default via 203.0.113.1");
        serve_tcp("0.0.0.0:80");
        Self { internet, lan }
    }
}

/// Runs `ip` where the calling thread is.
pub(crate) fn ip(arguments: &str) -> String {
    command("ip", arguments)
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn command(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Starts a server that says who the client is, then sends every line back.
pub(crate) fn serve_tcp(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || -> std::io::Result<()> {
                let mut stream = stream?;
                writeln!(stream, "{}", stream.peer_addr()?.ip())?;
                for line in BufReader::new(stream.try_clone()?).lines() {
                    writeln!(stream, "{}", line?)?;
                }
                Ok(())
            });
        }
    });
}

/// Starts a server that reports every datagram with its source and sends it back.
pub(crate) fn serve_udp(address: &str) -> mpsc::Receiver<(SocketAddr, String)> {
    let socket = UdpSocket::bind(address).unwrap();
    let (datagrams, received) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, source)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], source);
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if datagrams.send((source, text)).is_err() {
                return;
            }
        }
    });
    received
}

/// Options of an instance in this world: nothing kept ready, so that tests know what there is.
pub(crate) fn options(instance: &str) -> Options {
    Options {
        instance: instance.parse().unwrap(),
        launcher: env::var_os(crate::LAUNCHER).unwrap().into(),
        first_uid: 1_000_000_000,
        slots: 8,
        pool: 0,
        network: Some(NETWORK.parse().unwrap()),
        dns: vec!["198.51.100.53:53".parse().unwrap()],
        deny: vec!["198.51.100.66".parse().unwrap()],
        keep: HashSet::new(),
    }
}

/// A world, an instance in it and one of its slots.
pub(crate) async fn start() -> (World, Service, Slot) {
    let world = World::new();
    let service = Service::start(options("a00001")).await.unwrap();
    let slot = service.handle().take().await.unwrap();
    (world, service, slot)
}

/// What a probe can be in.
pub(crate) trait Inside {
    /// Paths to its user namespace and its network namespace.
    fn namespaces(&self) -> [String; 2];
}

impl Inside for Slot {
    fn namespaces(&self) -> [String; 2] {
        [fd_path(self.user_ns()), fd_path(self.net_ns())]
    }
}

/// Where another probe is.
impl Inside for Running {
    fn namespaces(&self) -> [String; 2] {
        let process = self.child.id().unwrap();
        ["user", "net"].map(|kind| format!("/proc/{process}/ns/{kind}"))
    }
}

impl Inside for [String; 2] {
    fn namespaces(&self) -> [String; 2] {
        self.clone()
    }
}

fn probe_command(place: &impl Inside, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env::current_exe().unwrap());
    command
        .arg("probe")
        .args(place.namespaces())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a probe in a slot, as its root, and returns what it prints.
pub(crate) async fn probe(place: &impl Inside, arguments: &[&str]) -> String {
    let output = probe_command(place, arguments).spawn().unwrap().wait_with_output();
    let output = tokio::time::timeout(DEADLINE * 2, output).await.unwrap().unwrap();
    assert!(output.status.success(), "the probe {arguments:?} broke");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A probe that goes on, one line in, one line out.
pub(crate) struct Running {
    child: tokio::process::Child,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Running {
    /// Starts it and returns its first line.
    pub(crate) async fn start(place: &impl Inside, arguments: &[&str]) -> (Self, String) {
        Self::of(probe_command(place, arguments).spawn().unwrap()).await
    }

    /// Talks to a process whose streams are pipes, once it has said its first line.
    pub(crate) async fn of(mut child: tokio::process::Child) -> (Self, String) {
        let lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut running = Self { child, lines };
        let first = running.line().await;
        (running, first)
    }

    /// Says something and returns the answer.
    pub(crate) async fn say(&mut self, text: &str) -> String {
        let line = format!("{text}\n");
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).await.unwrap();
        self.line().await
    }

    /// Ends it, and waits until nothing of it is left in the slot.
    pub(crate) async fn end(mut self) {
        self.child.kill().await.unwrap();
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await.unwrap();
        line.unwrap().expect("the probe ended")
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < give_up, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Names of the host's links that start with `prefix`.
pub(crate) fn links(prefix: &str) -> Vec<String> {
    let listing = ip("-o -br link");
    let names = listing.lines().filter_map(|line| line.split(['@', ' ']).next());
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Whether the link forwards.
pub(crate) fn forwards(link: &str) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    fs::read_to_string(path).unwrap().trim() == "1"
}
