//! The start of a Jupyter kernel: its process, and the first words with it.

use std::{
    fs, io,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    process::{ChildStderr, Command},
    time::{sleep, timeout},
};
use zeromq::{SocketRecv, SocketSend};

use super::{
    Cell, Jupyter,
    connection::{Channels, Endpoints, broken},
    message::{Message, Session},
    spec::Spec,
};
use crate::{
    kernel::{Died, Kernel, Launch, process::Process, run_hidden},
    patience::running_timeout,
};

/// How long a kernel may take to make sockets in a directory, until it is taken for one that knows only
/// ports: less than half of what it may take to start. Python with a cold disk takes some seconds.
const SOCKETS_TIMEOUT: Duration = Duration::from_secs(25);

/// How long to wait for a kernel that starts to be heard on iopub, until it is asked once more. Its
/// answer to the first question may have come before it knew that somebody listens.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// How much is kept of what a kernel says on its standard error, bytes: for when it does not start.
const DIAGNOSTICS: usize = 4096;

/// Why a kernel did not start.
enum Refusal {
    /// It made no sockets where it was to make them.
    WithoutSockets(Died),
    /// Anything else.
    Other(Died),
}

impl From<Refusal> for Died {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::WithoutSockets(why) | Refusal::Other(why) => why,
        }
    }
}

/// Starts a kernel and waits until it can run cells. `setup` is the first, hidden. One that makes no
/// sockets in a directory is given ports.
///
/// # Errors
/// When it cannot be started, or ends.
pub(crate) async fn start(
    launch: &Launch,
    spec: &Spec,
    setup: Option<&str>,
) -> Result<Box<dyn Kernel>, Died> {
    let ipc = || Endpoints::ipc(&launch.dir);
    let first = if spec.knows_only_ports() { Endpoints::tcp() } else { ipc() };
    let mut kernel = match attempt(launch, spec, first).await {
        Err(Refusal::WithoutSockets(_)) => attempt(launch, spec, Endpoints::tcp()).await?,
        attempted => attempted?,
    };
    if let Some(code) = setup
        && let Some(failure) = run_hidden(&mut kernel, code).await?
    {
        crate::log(&format!("setting a kernel up failed: {}: {}", failure.name, failure.value));
    }
    Ok(Box::new(kernel))
}

/// Starts a kernel that is to have these sockets, and waits until it has answered.
async fn attempt(
    launch: &Launch,
    spec: &Spec,
    endpoints: io::Result<Endpoints>,
) -> Result<Jupyter, Refusal> {
    let failed = |error: io::Error| {
        Refusal::Other(Died(format!("the kernel cannot be given sockets: {error}")))
    };
    let endpoints = endpoints.map_err(failed)?;
    let session = Session::new();
    let file = launch.dir.join("connection.json");
    // That of an attempt before.
    let _ = fs::remove_file(&file);
    endpoints.write(&file, session.key()).map_err(failed)?;
    let argv = spec.command(&file.to_string_lossy());
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).envs(&spec.env).current_dir(&launch.cwd);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(command).map_err(|error| {
        Refusal::Other(Died(format!("`{}` cannot be started: {error}", argv[0])))
    })?;
    let diagnostics = process.child().stderr.take().map(Diagnostics::collect);
    let mut made = false;
    let outcome = tokio::select! {
        met = meet(&endpoints, &session, &mut made) => met,
        how = process.ended() => Err(Died(how)),
    };
    let channels = match (outcome, diagnostics) {
        (Ok(channels), _) => channels,
        (Err(mut died), diagnostics) => {
            if let Some(diagnostics) = diagnostics {
                died = diagnostics.explain(died).await;
            }
            return Err(if made { Refusal::Other(died) } else { Refusal::WithoutSockets(died) });
        }
    };
    let interrupt_mode = spec.interrupt_mode;
    let cell = Cell::default();
    Ok(Jupyter { process, endpoints, channels, swollen: false, session, interrupt_mode, cell })
}

/// Waits for a kernel's sockets, notes that they are `made`, and gets to know it.
async fn meet(endpoints: &Endpoints, session: &Session, made: &mut bool) -> Result<Channels, Died> {
    let late = || Died(format!("it made no sockets in {} s", SOCKETS_TIMEOUT.as_secs()));
    running_timeout(SOCKETS_TIMEOUT, endpoints.made()).await.ok_or_else(late)?;
    *made = true;
    let mut channels = endpoints.connect().await?;
    greet(session, &mut channels).await?;
    Ok(channels)
}

/// Asks until the kernel has answered on the shell channel and been heard on iopub.
pub(super) async fn greet(session: &Session, channels: &mut Channels) -> Result<(), Died> {
    let (mut answered, mut heard) = (false, false);
    while !(answered && heard) {
        let (_, request) = session.request("kernel_info_request", &json!({}));
        channels.shell.send(request).await.map_err(broken)?;
        let asked = sleep(ASK_INTERVAL);
        tokio::pin!(asked);
        while !(answered && heard) {
            tokio::select! {
                reply = channels.shell.recv() => {
                    reply.map_err(broken)?;
                    answered = true;
                }
                message = channels.iopub.recv() => {
                    let message = message.ok().and_then(Message::parse);
                    // Only what answers us shows that we are subscribed; a welcome does not.
                    heard |= message.is_some_and(|message| message.kind == "status");
                }
                // Without an answer it is busy starting: one question is enough.
                () = &mut asked, if answered => break,
            }
        }
    }
    Ok(())
}

/// The last of what a kernel says on its standard error, which is read for as long as it lives.
struct Diagnostics {
    text: Arc<Mutex<Vec<u8>>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Diagnostics {
    fn collect(mut stderr: ChildStderr) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&text);
        let reader = tokio::spawn(async move {
            let mut buffer = [0; DIAGNOSTICS];
            while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..length]);
                let excess = kept.len().saturating_sub(DIAGNOSTICS);
                kept.drain(..excess);
            }
        });
        Self { text, reader }
    }

    /// Adds what was said to why a kernel did not start.
    async fn explain(self, Died(why): Died) -> Died {
        // What it said last may still be on its way; what it left running may hold the pipe open.
        let _ = timeout(ASK_INTERVAL, self.reader).await;
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        match String::from_utf8_lossy(&text).trim() {
            "" => Died(why),
            said => Died(format!("{why}: {said}")),
        }
    }
}
