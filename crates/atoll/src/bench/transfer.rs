//! A large file, sent into a sandbox and fetched from it, beside what else moves as many bytes here.
//!
//! Every way is taken once in every round, one after the other, so that what disturbs one disturbs
//! all. All servers are talked to by the same client. They are not equals in one thing: what nginx
//! serves stays in this machine's page cache, while a sandbox's cache ends at its memory limit, beyond
//! which its files come from the disk.

use std::{
    fs::File,
    io::{Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_wire::{guest::ENVD_PORT, rest};
use bytes::Bytes;
use futures::{TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{
    Bench, edge, failed,
    nginx::Nginx,
    report::{Report, Row},
    statistics::Statistics,
};
use crate::scratch::Scratch;

/// Bytes sent at a time.
const BLOCK: usize = 256 << 10;
const MIB: u64 = 1 << 20;
/// Where the file is in the sandbox.
const FILE: &str = "/home/user/atoll-bench";
const CAT: &str = "cat through a pipe";
/// Neither a server that hangs nor a slow disk holds the run for longer, each way.
const LIMIT: Duration = Duration::from_secs(300);

/// What is moved, and how often.
pub(super) struct Options {
    pub(super) bytes: u64,
    pub(super) rounds: usize,
    /// A node's proxy and its token.
    pub(super) node: Option<(SocketAddr, String)>,
}

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// A request that moves the file.
struct Route {
    name: String,
    direction: Direction,
    method: Method,
    url: String,
    headers: HeaderMap,
    /// MiB/s, one for every round.
    rates: Vec<f64>,
    /// Whether it is what others are compared with.
    peer: bool,
}

impl Bench {
    /// Moves the file by every way there is.
    pub(super) async fn measure_transfers(
        &self,
        options: &Options,
        report: &mut Report,
    ) -> Result<()> {
        let scratch =
            Scratch::make().map_err(|error| failed("no directory for temporary files", error))?;
        let source = scratch.path().join("source");
        let block = write_source(&source, options.bytes)
            .map_err(|error| failed("the file to move cannot be written", error))?;
        let nginx = Nginx::start(scratch.path(), scratch.path())
            .await
            .map_err(|error| failed("nginx does not start", error))?;
        if nginx.is_none() {
            report.note("No nginx to compare with: it is not installed (scripts/deps.sh --bench).");
        }
        let edge = match &options.node {
            Some((address, token)) => Some(edge::start(*address, token.clone()).await?),
            None => {
                report.note("No files through a node proxy: none is given (--node-proxy).");
                None
            }
        };
        let edge_url = edge.as_ref().map(|edge| format!("http://{}", edge.handle().address()));
        let work = Work { bytes: options.bytes, block, source, client: http_client()? };
        let moved = self
            .with_sandbox(async |sandbox| {
                let mut routes = nginx.as_ref().map(nginx_routes).unwrap_or_default();
                routes.extend(sandbox_routes("client proxy", self.client.sandbox_url(), sandbox)?);
                if let Some(url) = &edge_url {
                    routes.extend(sandbox_routes("client and node proxy", url, sandbox)?);
                }
                let mut pipes = Vec::new();
                for _ in 0..options.rounds {
                    pipes.push(work.cat().await?);
                    for route in &mut routes {
                        let rate = work.go(route).await?;
                        route.rates.push(rate);
                    }
                    // So that every upload writes a new file.
                    self.client.run(sandbox, &format!("rm -f {FILE}")).await?;
                    remove_upload(scratch.path())?;
                }
                Ok((pipes, routes))
            })
            .await;
        if let Some(edge) = edge {
            edge.shutdown().await;
        }
        if let Some(nginx) = nginx {
            nginx.stop().await.map_err(|error| failed("nginx cannot be ended", error))?;
        }
        let (pipes, routes) = moved?;
        push(report, &pipes, &routes);
        Ok(())
    }
}

fn push(report: &mut Report, pipes: &[f64], routes: &[Route]) {
    let cat = Statistics::of(pipes);
    report.push(Row::rate(CAT, cat));
    for route in routes {
        let own = Statistics::of(&route.rates);
        let row = Row::rate(&route.name, own);
        if route.peer {
            report.push(row);
            continue;
        }
        let same = |other: &&Route| other.peer && other.direction == route.direction;
        let peers = routes.iter().find(same).map(|peer| Statistics::of(&peer.rates));
        let ratios = [Some(("cat", cat)), peers.map(|peer| ("nginx", peer))];
        report.push(row.beside(ratios.into_iter().flatten()));
    }
}

/// A client that waits for nothing and asks for nothing to be compressed.
fn http_client() -> Result<reqwest::Client> {
    let identity = HeaderValue::from_static("identity");
    reqwest::Client::builder()
        .no_proxy()
        .http1_only()
        .timeout(LIMIT)
        .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, identity)]))
        .build()
        .map_err(|error| failed("no HTTP client", error))
}

/// Fills the file with a block of random bytes, over and over, and returns that block.
fn write_source(path: &Path, bytes: u64) -> std::io::Result<Bytes> {
    let mut block = vec![0; BLOCK];
    getrandom::fill(&mut block).map_err(std::io::Error::other)?;
    let mut file = File::create_new(path)?;
    for _ in 0..bytes / BLOCK as u64 {
        file.write_all(&block)?;
    }
    Ok(block.into())
}

fn remove_upload(directory: &Path) -> Result<()> {
    match std::fs::remove_file(directory.join("upload")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("an upload cannot be removed", error))
        }
        _ => Ok(()),
    }
}

fn nginx_routes(nginx: &Nginx) -> Vec<Route> {
    let route = |direction, method, name: &str, file| Route {
        name: name.to_owned(),
        direction,
        method,
        url: format!("{}/{file}", nginx.url),
        headers: HeaderMap::new(),
        rates: Vec::new(),
        peer: true,
    };
    vec![
        route(Direction::Up, Method::PUT, "upload to nginx", "upload"),
        route(Direction::Down, Method::GET, "download from nginx", "source"),
    ]
}

/// First the upload, then the download of what was uploaded.
fn sandbox_routes(through: &str, url: &str, sandbox: &rest::Sandbox) -> Result<Vec<Route>> {
    let mut headers = HeaderMap::new();
    let port = ENVD_PORT.to_string();
    let token = sandbox.envd_access_token.as_deref().unwrap_or_default();
    for (name, value) in [
        ("e2b-sandbox-id", sandbox.sandbox_id.as_str()),
        ("e2b-sandbox-port", &port),
        ("x-access-token", token),
        ("content-type", "application/octet-stream"),
    ] {
        let value = HeaderValue::from_str(value)
            .map_err(|error| failed("the API's answer cannot be used", error))?;
        headers.insert(HeaderName::from_static(name), value);
    }
    let route = |direction, method, name| Route {
        name: format!("{name}, {through}"),
        direction,
        method,
        url: format!("{url}/files?path={FILE}"),
        headers: headers.clone(),
        rates: Vec::new(),
        peer: false,
    };
    Ok(vec![
        route(Direction::Up, Method::POST, "upload"),
        route(Direction::Down, Method::GET, "download"),
    ])
}

/// What moves the file.
struct Work {
    bytes: u64,
    /// What it consists of.
    block: Bytes,
    /// Where it is on this machine.
    source: PathBuf,
    client: reqwest::Client,
}

impl Work {
    fn rate(&self, started: Instant) -> f64 {
        self.bytes as f64 / MIB as f64 / started.elapsed().as_secs_f64()
    }

    /// Fails unless all bytes arrived.
    fn check(&self, name: &str, received: u64) -> Result<()> {
        if received == self.bytes {
            return Ok(());
        }
        let message = format!("{name}: {received} bytes arrived of {}.", self.bytes);
        Err(Error::new(codes::INTERNAL, message))
    }

    /// Moves the file by `route`, MiB/s.
    async fn go(&self, route: &Route) -> Result<f64> {
        let wrong = |error: reqwest::Error| failed(&route.name, error.without_url());
        let started = Instant::now();
        let mut request = self.client.request(route.method.clone(), &route.url);
        request = request.headers(route.headers.clone());
        if route.direction == Direction::Up {
            let blocks = usize::try_from(self.bytes / self.block.len() as u64);
            let blocks = blocks.map_err(|error| failed(&route.name, error))?;
            let blocks = stream::iter(std::iter::repeat_n(self.block.clone(), blocks));
            let blocks = futures::StreamExt::map(blocks, Ok::<_, std::io::Error>);
            let body = reqwest::Body::wrap_stream(blocks);
            request = request.header(header::CONTENT_LENGTH, self.bytes).body(body);
        }
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let answer = response.map_err(wrong)?.bytes_stream();
        let count = answer.try_fold(0, async |sum, piece| Ok(sum + piece.len() as u64));
        let received = count.await.map_err(wrong)?;
        let rate = self.rate(started);
        if route.direction == Direction::Down {
            self.check(&route.name, received)?;
        }
        Ok(rate)
    }

    /// Has `cat` write the file into a pipe, and reads it from there, MiB/s.
    async fn cat(&self) -> Result<f64> {
        let source = self.source.clone();
        let started = Instant::now();
        let received = tokio::task::spawn_blocking(move || read_from_cat(&source)).await;
        let received = received.map_err(std::io::Error::other).flatten();
        let received = received.map_err(|error| failed(CAT, error))?;
        let rate = self.rate(started);
        self.check(CAT, received)?;
        Ok(rate)
    }
}

fn read_from_cat(source: &Path) -> std::io::Result<u64> {
    let mut cat = Command::new("cat").arg(source).stdout(Stdio::piped()).spawn()?;
    let mut received = 0;
    if let Some(mut pipe) = cat.stdout.take() {
        let mut buffer = vec![0; BLOCK];
        loop {
            match pipe.read(&mut buffer)? {
                0 => break,
                count => received += count as u64,
            }
        }
    }
    cat.wait()?;
    Ok(received)
}
