//! `atoll up`: the whole cloud in one process on one machine.
//!
//! It starts the same services as a cluster does (see [`stack`]), checks that they work by using
//! them as a client would, says how to use them, and stops them in order when asked to.

pub(crate) mod claim;
pub(crate) mod data_dir;
mod directory;
pub(crate) mod environment;
mod farewell;
pub(crate) mod keys;
pub(crate) mod ports;
mod self_check;
mod stack;
mod tls;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use atoll_core::{Error, Result, error::codes};
use atoll_front::Domain;
use atoll_network::Cidr;
use atoll_template::CaBundle;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    client::Client,
    doctor::names,
    template::{self, Shipped},
    terminal,
};
use data_dir::DataDir;
use environment::Environment;
use keys::Keys;
use ports::{Listeners, Ports};
use stack::{Settings, Stack};

/// Stopping takes a moment even with hundreds of sandboxes; longer means something hangs.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Signals this close together count as one.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Of the reason why a template was not built, at most so much is said.
const SHOWN_CHARACTERS: usize = 100;

/// What a deployment is called unless it is told: a name that leads to this machine everywhere. It
/// has two parts, because clients refuse a certificate for `*.localhost`.
pub(crate) const DOMAIN: &str = "sbx.localhost";

/// Options of `atoll up`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where everything is kept.
    #[arg(long, default_value = "/var/lib/atoll", env = "ATOLL_DATA_DIR")]
    data_dir: PathBuf,
    /// Address the API and the client proxy listen on.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    #[command(flatten)]
    ports: Ports,
    /// Certificates that sandboxes trust beyond their distribution's: none, host, or a PEM file.
    #[arg(long, default_value = "none", value_name = "none|host|FILE")]
    ca_bundle: String,
    /// Make keys of this deployment's own instead of the published development keys.
    #[arg(long)]
    fresh_keys: bool,
    /// Addresses for sandboxes' links, such as 10.100.0.0/16 [default: a free block of 10.0.0.0/8].
    #[arg(long)]
    sandbox_network: Option<Cidr>,
    /// Destinations that sandboxes may not reach, beyond private and local ones.
    #[arg(long, value_name = "CIDR")]
    deny_network: Vec<Cidr>,
    /// A registry that images may be taken from although its address is private or it has no TLS
    /// (http://) or no certificate that anybody vouches for (insecure://); may be repeated.
    #[arg(long, value_name = "[http://|insecure://]HOST[:PORT]", value_parser = registry)]
    registry: Vec<String>,
    /// Domain of API and sandboxes; its port is the front's unless given.
    #[arg(long, value_name = "DOMAIN[:PORT]", default_value = DOMAIN)]
    domain: Domain,
    /// Certificate for the domain and all names below it, PEM [default: one of a local authority].
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "domain"])]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Size of a new disk pool, GiB [default: half of what is free].
    #[arg(long, value_name = "GIB")]
    pool_gib: Option<u64>,
    /// Directory that CRIU was unpacked to, which pauses keep memory with [default: the one in PATH].
    // `make up` names one; whoever names another means that.
    #[arg(long, value_name = "DIRECTORY", env = "ATOLL_CRIU", value_parser = absolute)]
    #[arg(overrides_with = "criu")]
    criu: Option<PathBuf>,
    /// Network slots and disks kept ready.
    #[arg(long, default_value_t = 16)]
    ready: usize,
    /// A template that Atoll ships, to be built at the start if it is missing or its recipe has changed;
    /// may be repeated.
    #[arg(long, value_name = "TEMPLATE", env = "ATOLL_WITH", value_delimiter = ',')]
    with: Vec<Shipped>,
    /// Token for admin endpoints, sent as X-Admin-Token.
    #[arg(long, env = "ATOLL_ADMIN_TOKEN", hide_env_values = true)]
    admin_token: Option<String>,
}

/// Programs are run from elsewhere.
fn absolute(path: &str) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

/// A registry as its images name it, with how it is spoken to in front.
fn registry(text: &str) -> std::result::Result<String, String> {
    let schemes = ["http://", "insecure://"];
    let host = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let is_host = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-[]:".contains(c))
    };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if is_host(name) && is_port {
        return Ok(text.to_owned());
    }
    Err("expected HOST[:PORT], with http:// or insecure:// in front if it has no TLS that can be trusted".to_owned())
}

pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    // Registered first: a signal during start-up must clean up too.
    let mut stop = StopSignals::register()?;
    require_root()?;
    raise_file_limit();
    let directory = DataDir::open(&arguments.data_dir)?;
    let keys = Keys::load(&directory, arguments.fresh_keys)?;
    require_usable_keys(&arguments, &keys)?;
    let listeners = Listeners::bind(arguments.listen, &arguments.ports).await?;
    let front_port = listeners.front_port()?;
    let domain = arguments.domain.clone().or_port(front_port);
    let (identity, trust) = tls::prepare(&arguments, &directory, &domain)?;
    let environment = Environment::new(&arguments, &keys, domain, front_port, trust);
    environment.forget(&directory);

    let settings = Settings {
        arguments: &arguments,
        directory: &directory,
        keys: &keys,
        environment: &environment,
    };
    let mut stack = Stack::default();
    let outcome = tokio::select! {
        outcome = async {
            stack.start(&settings, identity, listeners).await?;
            let times = self_check::run(&environment).await?;
            add_templates(&environment, &arguments.with, stack.keeper()).await;
            environment.write(&directory)?;
            let elapsed = started.elapsed();
            let names = names::resolve(environment.domain.name()).await.is_some();
            announce(&directory, &environment, &stack, &times, names, elapsed);
            std::future::pending().await
        } => outcome,
        () = stop.wait() => Ok(ExitCode::SUCCESS),
    };
    environment.forget(&directory);
    if outcome.is_ok() {
        terminal::say(&stack.farewell().await);
    }
    // A second Ctrl-C is for those who cannot wait.
    tokio::select! {
        () = stack.shutdown() => outcome,
        () = tokio::time::sleep(STOP_LIMIT) => Err(unfinished("stopping took too long.")),
        () = stop.wait_again() => Err(unfinished("stopped without cleaning up.")),
    }
}

fn unfinished(what: &str) -> Error {
    Error::new(codes::INTERNAL, what)
        .with_fix("Start again on the same data directory: it removes what was left.")
}

fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        codes::PRIVILEGE_MISSING,
        "Atoll must run as root to make namespaces, mounts and firewall rules.",
    )
    .with_fix("Run it with sudo; what runs inside sandboxes has no privilege on this host."))
}

/// A sandbox takes some ten descriptors, and a connection two; systems start programs with 1024.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// The development keys are published: they are taken from this machine only.
fn require_usable_keys(arguments: &Arguments, keys: &Keys) -> Result<()> {
    let listen = arguments.listen;
    if !keys.are_development() || listen.is_loopback() {
        return Ok(());
    }
    if listen.is_unspecified() {
        terminal::say(
            "The development keys are published, so they are refused from other machines. \
             Start with --fresh-keys to use this deployment from elsewhere.",
        );
        return Ok(());
    }
    let message =
        format!("the development keys work over loopback only, and {listen} is not that.");
    Err(Error::new(codes::BAD_OPTION, message)
        .with_fix("Start with --fresh-keys, or listen on 127.0.0.1 or 0.0.0.0."))
}

fn ca_bundle(choice: &str) -> CaBundle {
    match choice {
        "none" => CaBundle::None,
        "host" => CaBundle::Host,
        file => CaBundle::File(PathBuf::from(file)),
    }
}

/// Builds what is asked for, as `atoll template add` does. What fails keeps nobody from using the rest.
/// `keeper` is the storage if memory is kept.
async fn add_templates(
    environment: &Environment,
    wanted: &[Shipped],
    keeper: Option<atoll_storage::Handle>,
) {
    let client = Client::of(environment);
    for &shipped in wanted {
        let title = format!("Building the template {} (once)", shipped.alias());
        let progress = terminal::Progress::new(title);
        let added = template::ensure_shipped(&client, shipped, keeper.as_ref(), &progress).await;
        progress.finish();
        if let Err(error) = added {
            terminal::fail(&not_built(shipped, &error).to_string());
        }
    }
}

/// Why a template was not built, in one line.
fn not_built(shipped: Shipped, error: &Error) -> Error {
    let line = error.message.lines().next().unwrap_or_default();
    let why = match line.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => format!("{}.", line.trim_end_matches(['.', ':'])),
    };
    Error::new(error.code, format!("the template {} was not built: {why}", shipped.alias()))
        .with_fix(format!("`{}` tries again and shows all.", shipped.command()))
}

fn announce(
    directory: &DataDir,
    environment: &Environment,
    stack: &Stack,
    times: &self_check::Times,
    names: bool,
    elapsed: Duration,
) {
    let domain = &environment.domain;
    let names = if names {
        "resolve on this machine"
    } else {
        "do not resolve in all programs here; `atoll doctor` says how to change that"
    };
    let env_file = display_path(&directory.join(environment::FILE));
    let keys = if environment.development {
        "development keys: published, accepted from this machine only"
    } else {
        "keys of this deployment's own"
    };
    terminal::say(&format!(
        "
Atoll is ready ({:.1} s).

  API            {}
  Sandboxes      {}
  By name        https://api.{domain}, https://<port>-<id>.{domain}
                 (names {names})
  Isolation      {}
  Network        the internet, and nothing else: not this host, not private networks
  Pause          {}
  Keys           {keys}
  Self-check     created in {} ms, first command after {} ms, ended in {} ms

In another shell:

  . {env_file}
  python3 -c 'from e2b import Sandbox; print(Sandbox.create().commands.run(\"uname -a\").stdout)'

Ctrl-C stops Atoll and ends its sandboxes; paused ones stay. If Atoll is killed instead, all live on,
and the next `atoll up` takes them up again.",
        elapsed.as_secs_f64(),
        environment.api_url,
        environment.sandbox_url,
        stack.isolation(),
        stack.memory(),
        times.create.as_millis(),
        times.first_command.as_millis(),
        times.kill.as_millis(),
    ));
}

/// As short as a shell in this directory needs it.
fn display_path(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .map_or_else(|_| path.display().to_string(), |short| format!("./{}", short.display()))
}

/// Ctrl-C, SIGTERM and a terminal that goes away.
struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl StopSignals {
    fn register() -> Result<Self> {
        let on = |kind| {
            signal(kind).map_err(|error| {
                Error::new(codes::INTERNAL, format!("cannot wait for signals: {error}."))
            })
        };
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Waits for one more. What comes right after the first is the same wish: programs in between,
    /// such as timeout(1), pass on a signal that the terminal has sent to all.
    async fn wait_again(&mut self) {
        let first = Instant::now();
        loop {
            self.wait().await;
            if first.elapsed() > SAME_WISH {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_template_was_not_built_is_one_short_line() {
        let said = |message: &str| {
            not_built(Shipped::Httpbin, &Error::new(codes::STEP_FAILED, message)).to_string()
        };
        assert_eq!(
            said("step 2 of 5: RUN make:\nno rule."),
            "ATL-5005: the template httpbin was not built: step 2 of 5: RUN make. \
             `atoll template add httpbin` tries again and shows all."
        );
        assert!(said(&"é".repeat(101)).contains(&format!(": {}… `atoll", "é".repeat(100))));
    }

    #[test]
    fn registries_are_hosts() {
        for text in [
            "registry.internal",
            "10.0.0.1:5000",
            "http://localhost:5000",
            "insecure://[fd00::1]:443",
            "[::1]",
        ] {
            assert_eq!(registry(text).as_deref(), Ok(text));
        }
        for text in ["", "https://a", "a/b", "http://", "a:", "a:0", "a:70000", "user@a", ":5000"] {
            assert!(registry(text).is_err(), "{text}");
        }
    }
}
