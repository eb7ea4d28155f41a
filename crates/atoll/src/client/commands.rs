//! Commands in sandboxes: envd, through the client proxy.

use std::collections::BTreeMap;

use atoll_core::{Error, Result, error::codes};
use atoll_wire::{
    guest::ENVD_PORT,
    rest,
    rpc::process::{
        __buffa::{
            oneof::{
                process_event::Event, process_event::data_event::Output, process_input::Input,
                process_selector::Selector, stream_input_request::Event as InputEvent,
            },
            view::StartResponseView,
        },
        CloseStdinRequest, ListRequest, PTY, ProcessClient, ProcessConfig, ProcessInput,
        ProcessSelector, SendInputRequest, SendSignalRequest, Signal, StartRequest, StartResponse,
        StreamInputRequest, UpdateRequest, pty, stream_input_request,
    },
};
use bytes::Bytes;
use connectrpc::{
    ConnectError,
    client::{ClientConfig, HttpClient, ServerStream},
};
use futures::{Stream as Pieces, StreamExt, stream};

use super::Client;

/// A command to run.
#[derive(Clone, Default)]
pub(crate) struct Exec {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: Option<String>,
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) user: Option<String>,
    pub(crate) stdin: bool,
    /// Give it a terminal of this size.
    pub(crate) terminal: Option<WindowSize>,
}

/// Size of a terminal, characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

impl WindowSize {
    fn message(self) -> PTY {
        let size =
            pty::Size { cols: self.columns.into(), rows: self.rows.into(), ..pty::Size::default() };
        PTY { size: size.into(), ..PTY::default() }
    }
}

impl Exec {
    /// `command` as a shell reads it.
    pub(crate) fn shell(command: &str) -> Self {
        Self {
            program: "/bin/bash".to_owned(),
            arguments: ["-l", "-c", command].map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }
}

/// What a command says and how it ends.
#[derive(Debug)]
pub(crate) enum ExecEvent {
    Stdout(Bytes),
    Stderr(Bytes),
    /// Exit code; -1 when a signal ended it, whose name is the text then.
    Ended {
        code: i32,
        error: Option<String>,
    },
}

fn failed(what: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(codes::GUEST_UNREACHABLE, format!("{what}: {cause}."))
        .with_fix("Check that Atoll runs and that the sandbox has not ended.")
}

impl Client {
    /// How many commands run in a sandbox.
    ///
    /// # Errors
    /// `GUEST_UNREACHABLE` when it does not answer.
    pub(crate) async fn count_commands(&self, sandbox: &rest::Sandbox) -> Result<usize> {
        let listed = self.process_client(sandbox)?.list(ListRequest::default()).await;
        let listed = listed.map_err(|error| failed("the commands cannot be listed", error))?;
        Ok(listed.into_owned().processes.len())
    }

    fn process_client(&self, sandbox: &rest::Sandbox) -> Result<ProcessClient<HttpClient>> {
        let uri = self.sandbox_url.parse().map_err(|error| {
            Error::new(codes::BAD_OPTION, format!("{:?} is no URL: {error}.", self.sandbox_url))
        })?;
        let mut config = ClientConfig::new(uri)
            .with_default_header("e2b-sandbox-id", sandbox.sandbox_id.as_str())
            .with_default_header("e2b-sandbox-port", ENVD_PORT.to_string().as_str());
        if let Some(token) = &sandbox.envd_access_token {
            config = config.with_default_header("x-access-token", token.as_str());
        }
        Ok(ProcessClient::new(self.guests.clone(), config))
    }

    /// Starts a command; it has started when this returns.
    pub(crate) async fn exec(&self, sandbox: &rest::Sandbox, exec: Exec) -> Result<Running> {
        let mut client = self.process_client(sandbox)?;
        if let Some(user) = &exec.user {
            let credentials = base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                format!("{user}:"),
            );
            let config = client.config().clone();
            *client.config_mut() = config
                .with_default_header("authorization", format!("Basic {credentials}").as_str());
        }
        let process = ProcessConfig {
            cmd: exec.program,
            args: exec.arguments,
            envs: exec.variables.into_iter().collect(),
            cwd: exec.directory,
            ..ProcessConfig::default()
        };
        let request = StartRequest {
            process: process.into(),
            stdin: Some(exec.stdin),
            pty: exec.terminal.map(WindowSize::message).into(),
            ..StartRequest::default()
        };
        let mut stream = client.start(request).await.map_err(|error| not_started(&error))?;
        match next(&mut stream).await? {
            Some(Event::Start(start)) => Ok(Running { client, stream, pid: start.pid }),
            other => Err(failed("the command did not start", format!("{other:?}"))),
        }
    }

    /// Runs a command to its end and returns its exit code and standard output.
    pub(crate) async fn run(
        &self,
        sandbox: &rest::Sandbox,
        command: &str,
    ) -> Result<(i32, String)> {
        let mut running = self.exec(sandbox, Exec::shell(command)).await?;
        let mut output = Vec::new();
        loop {
            match running.next().await? {
                ExecEvent::Stdout(bytes) => output.extend_from_slice(&bytes),
                ExecEvent::Stderr(_) => {}
                ExecEvent::Ended { code, .. } => {
                    return Ok((code, String::from_utf8_lossy(&output).into_owned()));
                }
            }
        }
    }
}

fn not_started(error: &ConnectError) -> Error {
    failed("the command could not be started", error)
}

type Body = <HttpClient as connectrpc::client::ClientTransport>::ResponseBody;
type Stream = ServerStream<Body, StartResponseView<'static>>;

async fn next(stream: &mut Stream) -> Result<Option<Event>> {
    let message = stream
        .message::<StartResponse>()
        .await
        .map_err(|error| failed("the connection to the command was lost", error))?;
    Ok(message.and_then(|message| message.to_owned_message().event.into_option()?.event))
}

/// A command that runs.
pub(crate) struct Running {
    client: ProcessClient<HttpClient>,
    stream: Stream,
    pid: u32,
}

impl Running {
    /// The next thing it does. Not to be called again after its end.
    ///
    /// # Errors
    /// `GUEST_UNREACHABLE` when the sandbox ends or the connection breaks.
    pub(crate) async fn next(&mut self) -> Result<ExecEvent> {
        loop {
            match next(&mut self.stream).await? {
                Some(Event::Data(data)) => match data.output {
                    Some(Output::Stdout(bytes) | Output::Pty(bytes)) => {
                        return Ok(ExecEvent::Stdout(bytes.into()));
                    }
                    Some(Output::Stderr(bytes)) => return Ok(ExecEvent::Stderr(bytes.into())),
                    None => {}
                },
                Some(Event::End(end)) => {
                    return Ok(ExecEvent::Ended { code: end.exit_code, error: end.error.clone() });
                }
                Some(Event::Start(_) | Event::Keepalive(_)) => {}
                None => return Err(failed("the command ended without saying how", "no end event")),
            }
        }
    }

    /// Input for it, from another task.
    pub(crate) fn input(&self) -> CommandInput {
        CommandInput { client: self.client.clone(), pid: self.pid }
    }
}

/// The way to a command's standard input and signals.
pub(crate) struct CommandInput {
    client: ProcessClient<HttpClient>,
    pid: u32,
}

impl CommandInput {
    fn selector(&self) -> ProcessSelector {
        ProcessSelector { selector: Some(Selector::Pid(self.pid)), ..ProcessSelector::default() }
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When it has ended or closed its input.
    pub(crate) async fn write(&self, bytes: Vec<u8>) -> Result<()> {
        self.send(Input::Stdin(bytes)).await
    }

    /// Types at its terminal.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn type_in(&self, bytes: Vec<u8>) -> Result<()> {
        self.send(Input::Pty(bytes)).await
    }

    /// Gives its terminal another size.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn resize(&self, size: WindowSize) -> Result<()> {
        let request = UpdateRequest {
            process: self.selector().into(),
            pty: size.message().into(),
            ..UpdateRequest::default()
        };
        let sent = self.client.update(request).await;
        sent.map(drop).map_err(|error| failed("the terminal was not resized", error))
    }

    async fn send(&self, input: Input) -> Result<()> {
        let input = ProcessInput { input: Some(input), ..ProcessInput::default() };
        let request = SendInputRequest {
            process: self.selector().into(),
            input: input.into(),
            ..SendInputRequest::default()
        };
        let sent = self.client.send_input(request).await;
        sent.map(drop).map_err(|error| failed("input was not taken", error))
    }

    /// Writes all that `pieces` gives to its standard input, over one request.
    ///
    /// # Errors
    /// When it has ended or closed its input.
    pub(crate) async fn stream(
        &self,
        pieces: impl Pieces<Item = Vec<u8>> + Send + 'static,
    ) -> Result<()> {
        let event = |event| StreamInputRequest { event: Some(event), ..Default::default() };
        let start = stream_input_request::StartEvent {
            process: self.selector().into(),
            ..Default::default()
        };
        let start = event(InputEvent::Start(start.into()));
        let data = pieces.map(move |piece| {
            let input = ProcessInput { input: Some(Input::Stdin(piece)), ..Default::default() };
            let data =
                stream_input_request::DataEvent { input: input.into(), ..Default::default() };
            event(InputEvent::Data(data.into()))
        });
        let sent = self.client.stream_input(stream::once(async { start }).chain(data)).await;
        sent.map(drop).map_err(|error| failed("input was not taken", error))
    }

    /// Closes its standard input.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn close(&self) -> Result<()> {
        let request =
            CloseStdinRequest { process: self.selector().into(), ..CloseStdinRequest::default() };
        let closed = self.client.close_stdin(request).await;
        closed.map(drop).map_err(|error| failed("the input was not closed", error))
    }

    /// Asks it to end, or ends it.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) async fn signal(&self, force: bool) -> Result<()> {
        let signal = if force { Signal::SIGNAL_SIGKILL } else { Signal::SIGNAL_SIGTERM };
        let request = SendSignalRequest {
            process: self.selector().into(),
            signal: signal.into(),
            ..SendSignalRequest::default()
        };
        let sent = self.client.send_signal(request).await;
        sent.map(drop).map_err(|error| failed("the signal was not sent", error))
    }
}
