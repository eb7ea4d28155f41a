//! Commands in sandboxes, for the node's own purposes: what builds a template, and what a template's
//! sandboxes start with. They go to envd the way that clients' commands do.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::Arc,
    task::{Context, Poll},
};

use atoll_core::{Error, Result, error::codes};
use atoll_proxy::Target;
use atoll_wire::{
    guest::ENVD_PORT,
    rpc::process::{
        __buffa::{
            oneof::{
                process_event::Event, process_event::data_event::Output as Data,
                process_input::Input, process_selector::Selector,
                stream_input_request::Event as InputEvent,
            },
            view::StartResponseView,
        },
        CloseStdinRequest, ProcessClient, ProcessConfig, ProcessInput, ProcessSelector,
        StartRequest, StartResponse, StreamInputRequest, stream_input_request,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use connectrpc::client::{ClientBody, ClientConfig, ServerStream, ServiceTransport};
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream};
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Connects to envd.
type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// A sandbox in which commands are to run.
#[derive(Clone)]
pub struct Guest {
    dial: Dial,
    token: Option<String>,
}

/// A command to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The program.
    pub program: String,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// Whose it is; by default the sandbox's default user.
    pub user: Option<String>,
    /// Where it begins; by default the sandbox's default, or the user's home.
    pub directory: Option<String>,
    /// Variables beside those of the sandbox.
    pub env_vars: BTreeMap<String, String>,
}

impl Command {
    /// `line`, as the shell of a login reads it (control-plane contract, section 10.5).
    pub fn shell(line: &str) -> Self {
        let args = ["-l", "-c", line].map(str::to_owned).to_vec();
        Self { program: "/bin/bash".to_owned(), args, ..Self::default() }
    }
}

/// What a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// On standard output.
    Out,
    /// On standard error.
    Err,
}

/// How a command has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; below zero if a signal ended it.
    pub code: i32,
    /// What ended it, if that was no exit of its own.
    pub error: Option<String>,
}

impl Guest {
    /// One that runs, and whose envd asks for `token`.
    pub fn new(target: Arc<dyn Target>, token: Option<String>) -> Self {
        let dial = move || {
            let target = Arc::clone(&target);
            async move { target.dial(ENVD_PORT).await }.boxed()
        };
        Self { dial: Arc::new(dial), token }
    }

    /// One that is being started.
    pub(crate) fn starting(slot: Arc<atoll_network::Slot>, token: Option<String>) -> Self {
        let dial = move || {
            let slot = Arc::clone(&slot);
            async move { slot.connect(ENVD_PORT).await }.boxed()
        };
        Self { dial: Arc::new(dial), token }
    }

    /// Starts a command; it has started when this returns, and goes on when what is returned is
    /// dropped.
    ///
    /// # Errors
    /// `GUEST_UNREACHABLE`, also when there is no such program, user or directory: the message says.
    pub async fn start(&self, command: Command, has_input: bool) -> Result<Running> {
        let uri = Uri::from_static("http://localhost");
        let mut config = ClientConfig::new(uri);
        if let Some(token) = &self.token {
            config = config.with_default_header("x-access-token", token.as_str());
        }
        if let Some(user) = &command.user {
            let credentials = format!("Basic {}", STANDARD.encode(format!("{user}:")));
            config = config.with_default_header("authorization", credentials.as_str());
        }
        let client = ProcessClient::new(ServiceTransport::new(self.clone()), config);
        let process = ProcessConfig {
            cmd: command.program,
            args: command.args,
            envs: command.env_vars.into_iter().collect(),
            cwd: command.directory,
            ..ProcessConfig::default()
        };
        let request = StartRequest {
            process: process.into(),
            stdin: Some(has_input),
            ..StartRequest::default()
        };
        let mut stream = client.start(request).await.map_err(unreachable)?;
        match next(&mut stream).await? {
            Some(Event::Start(start)) => Ok(Running { client, stream, pid: start.pid }),
            _ => Err(unreachable("the command did not start")),
        }
    }

    /// Runs a command to its end, with all that `input` gives on its standard input, if there is one.
    /// `output` is told what it prints. If the future is dropped, the command goes on.
    ///
    /// # Errors
    /// As for [`start`](Self::start); when the sandbox ends; and that of `input`.
    pub async fn run(
        &self,
        command: Command,
        input: Option<impl Stream<Item = io::Result<Bytes>> + Send + 'static>,
        mut output: impl FnMut(Output, &[u8]) + Send,
    ) -> Result<Exit> {
        let mut running = self.start(command, input.is_some()).await?;
        let (client, pid) = (running.client.clone(), running.pid);
        let feeding = async move {
            match input {
                Some(input) => feed(&client, pid, input).await,
                None => Ok(()),
            }
        };
        let reading = async {
            loop {
                match running.next().await? {
                    Happened::Printed(stream, bytes) => output(stream, &bytes),
                    Happened::Ended(exit) => return Ok(exit),
                }
            }
        };
        let (fed, exit) = tokio::join!(feeding, reading);
        let exit = exit?;
        // A command that ends early does not take the rest of its input.
        if exit.code == 0 {
            fed?;
        }
        Ok(exit)
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Guest")
    }
}

fn unreachable(cause: impl fmt::Display) -> Error {
    Error::new(codes::GUEST_UNREACHABLE, format!("a command in the sandbox: {cause}."))
}

type Client = ProcessClient<ServiceTransport<Guest>>;
type Responses = ServerStream<Incoming, StartResponseView<'static>>;

async fn next(stream: &mut Responses) -> Result<Option<Event>> {
    let message = stream.message::<StartResponse>().await.map_err(unreachable)?;
    Ok(message.and_then(|message| message.to_owned_message().event.into_option()?.event))
}

/// Writes `input` to the standard input of a command, and closes it.
async fn feed(
    client: &Client,
    pid: u32,
    input: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<()> {
    let selector =
        || ProcessSelector { selector: Some(Selector::Pid(pid)), ..ProcessSelector::default() };
    let event = |event| StreamInputRequest { event: Some(event), ..Default::default() };
    let start =
        stream_input_request::StartEvent { process: selector().into(), ..Default::default() };
    let start = event(InputEvent::Start(start.into()));
    let (failed, failure) = tokio::sync::oneshot::channel();
    let data = input
        .scan(Some(failed), |failed, piece| {
            // Whoever waits for a failure is below.
            let piece = piece.map_err(|error| failed.take().map(|failed| failed.send(error)));
            std::future::ready(piece.ok())
        })
        .map(move |piece| {
            let input =
                ProcessInput { input: Some(Input::Stdin(piece.into())), ..Default::default() };
            let data =
                stream_input_request::DataEvent { input: input.into(), ..Default::default() };
            event(InputEvent::Data(data.into()))
        });
    let sent = client.stream_input(stream::once(async { start }).chain(data)).await;
    if let Ok(error) = failure.await {
        return Err(Error::new(codes::INVALID_REQUEST, format!("the input failed: {error}.")));
    }
    sent.map_err(unreachable)?;
    let request = CloseStdinRequest { process: selector().into(), ..CloseStdinRequest::default() };
    client.close_stdin(request).await.map(drop).map_err(unreachable)
}

/// A command that runs.
pub struct Running {
    client: Client,
    stream: Responses,
    pid: u32,
}

/// Something that a command has done.
#[derive(Debug)]
pub enum Happened {
    /// It printed something.
    Printed(Output, Bytes),
    /// It has ended.
    Ended(Exit),
}

impl Running {
    /// The next thing that it does. Not to be called again after its end.
    ///
    /// # Errors
    /// `GUEST_UNREACHABLE` when the sandbox ends.
    pub async fn next(&mut self) -> Result<Happened> {
        loop {
            match next(&mut self.stream).await? {
                Some(Event::Data(data)) => match data.output {
                    Some(Data::Stdout(bytes) | Data::Pty(bytes)) => {
                        return Ok(Happened::Printed(Output::Out, bytes.into()));
                    }
                    Some(Data::Stderr(bytes)) => {
                        return Ok(Happened::Printed(Output::Err, bytes.into()));
                    }
                    None => {}
                },
                Some(Event::End(end)) => {
                    let exit = Exit { code: end.exit_code, error: end.error.clone() };
                    return Ok(Happened::Ended(exit));
                }
                Some(Event::Start(_) | Event::Keepalive(_)) => {}
                None => return Err(unreachable("it ended without saying how")),
            }
        }
    }
}

/// A request, each over a connection of its own.
impl tower::Service<Request<ClientBody>> for Guest {
    type Response = Response<Incoming>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<ClientBody>) -> Self::Future {
        let dial = (self.dial)();
        async move {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
            let io = TokioIo::new(dial.await?);
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(io).await.map_err(io::Error::other)?;
            // It ends with the body of the answer.
            tokio::spawn(connection);
            sender.send_request(request).await.map_err(io::Error::other)
        }
        .boxed()
    }
}
