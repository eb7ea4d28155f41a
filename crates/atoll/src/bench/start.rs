//! How long envd takes from exec to its first answer, by itself: outside of any sandbox.
//!
//! It runs as root and, until the node has given it a token, serves whoever can connect. So it is
//! started in a network namespace of its own.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use atoll_core::Result;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

use super::{
    failed,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::{helpers, scratch::Scratch};

const ROUNDS: usize = 20;
/// The first loads the program.
const WARM_UP: usize = 1;
/// Between two tries to connect: little, beside what is measured.
const PAUSE: Duration = Duration::from_micros(50);
const LIMIT: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 204";

/// Measures some starts, one after the other.
pub(super) async fn measure(report: &mut Report) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        report.note("No start of envd: that takes root.");
        return Ok(());
    }
    let (sender, receiver) = oneshot::channel();
    // A thread that ends with the measurement, for it never leaves the namespace.
    thread::spawn(move || sender.send(starts()));
    let times = receiver.await.map_err(|error| failed("envd cannot be started", error))?;
    let times = times.map_err(|error| failed("envd cannot be started", error))?;
    report.push(Row::time("envd, exec to health", 1, Statistics::of_durations(&times)));
    Ok(())
}

fn starts() -> io::Result<Vec<Duration>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !up.success() {
        return Err(io::Error::other("a loopback link cannot be set up"));
    }
    let scratch = Scratch::make()?;
    let program = scratch.path().join("envd");
    drop(helpers::write_program(scratch.path(), &program, helpers::ENVD)?);
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + WARM_UP {
        let time = start(&program)?;
        if round >= WARM_UP {
            times.push(time);
        }
    }
    Ok(times)
}

/// Ended when dropped.
struct Envd(Child);

impl Drop for Envd {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, pid = self.0.id(), "an envd is left");
        }
    }
}

fn start(program: &Path) -> io::Result<Duration> {
    // Bound and freed: nobody else is in this namespace to take it.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new(program);
    command.args(["-port", &address.port().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let envd = Envd(command.spawn()?);
    health(address, started + LIMIT)?;
    let time = started.elapsed();
    drop(envd);
    Ok(time)
}

/// Returns when the first answer has come.
fn health(address: SocketAddr, deadline: Instant) -> io::Result<()> {
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
    };
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(REQUEST)?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer)?;
    if answer == ANSWER { Ok(()) } else { Err(io::Error::other("/health is not 204")) }
}
