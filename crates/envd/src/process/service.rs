//! The `process.Process` Connect service.

use std::{sync::Arc, time::Duration};

use atoll_wire::rpc::process::{
    self as wire,
    __buffa::view,
    __buffa::view::oneof::{process_input::Input, stream_input_request::Event as InputEvent},
    ProcessEvent,
};
use buffa::MessageFieldView;
use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use futures::{Stream, StreamExt};
use rustix::process::{Rlimit, Signal};
use tokio::{
    sync::oneshot,
    time::{timeout, timeout_at},
};

use super::{
    Live, Processes, Started,
    feed::{FeedOptions, feed, too_late},
    journal,
    launch::{Launch, error_of, window_size},
};
use crate::{auth, budget::Charge, guest::Guest};

/// How long a kill waits for the end. A process may be held up in the kernel, its killer may not.
const DYING: Duration = Duration::from_secs(5);

/// Tells proxies not to hold back what a stream sends.
const UNBUFFERED: (&str, &str) = ("x-accel-buffering", "no");

/// The Process service.
pub struct ProcessService {
    guest: Arc<Guest>,
    processes: Arc<Processes>,
    open_files: Option<Rlimit>,
}

impl ProcessService {
    /// `open_files` is the limit that commands get.
    pub fn new(
        guest: Arc<Guest>,
        processes: Arc<Processes>,
        open_files: Option<Rlimit>,
    ) -> Arc<Self> {
        Arc::new(Self { guest, processes, open_files })
    }

    /// Starts a process and follows it. Once forked it runs on whatever becomes of this call.
    async fn launch(
        &self,
        ctx: &RequestContext,
        request: wire::StartRequest,
    ) -> Result<impl Stream<Item = Result<ProcessEvent, ConnectError>> + use<>, ConnectError> {
        if self.guest.is_frozen() {
            return Err(ConnectError::unavailable("the sandbox is frozen for the moment"));
        }
        let options = FeedOptions::from_context(ctx);
        let user = auth::rpc_user(ctx, &self.guest)?;
        let launch = Launch::new(request, user, &self.guest)?;
        let description = launch.description();
        let (started, has_started) = oneshot::channel();
        let processes = Arc::clone(&self.processes);
        // In a task of its own: a start that was asked for is seen through.
        tokio::spawn(processes.run(launch, self.open_files, options.deadline, started));
        let has_started = match options.deadline {
            Some(deadline) => timeout_at(deadline, has_started).await,
            None => Ok(has_started.await),
        };
        match has_started {
            Ok(Ok(Ok(Started { process, output }))) => Ok(feed(process, output, options)),
            Ok(Ok(Err(error))) => Err(error_of(error, &description)),
            Ok(Err(_)) => Err(ConnectError::internal("the process was not looked after")),
            Err(_) => Err(too_late()),
        }
    }

    fn find(
        &self,
        selector: &MessageFieldView<view::ProcessSelectorView<'_>>,
    ) -> Result<Live, ConnectError> {
        self.processes.find(selector.selector.as_ref())
    }
}

/// Accounts for input that may have to wait.
fn cover(charge: Option<&Arc<Charge>>, input: Option<&Input<'_>>) -> Result<(), ConnectError> {
    let length = match input {
        Some(Input::Stdin(data) | Input::Pty(data)) => data.len(),
        None => 0,
    };
    charge.map_or(Ok(()), |charge| charge.cover(length))
}

#[allow(refining_impl_trait)]
impl wire::Process for ProcessService {
    async fn list(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<wire::ListResponse> {
        let processes = self.processes.live().into_iter().map(|live| wire::ProcessInfo {
            config: wire::ProcessConfig::clone(&live.config).into(),
            pid: live.process.pid(),
            tag: live.process.tag.clone(),
            ..wire::ProcessInfo::default()
        });
        Response::ok(wire::ListResponse {
            processes: processes.collect(),
            ..wire::ListResponse::default()
        })
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<wire::StartResponse>> {
        let events = self.launch(&ctx, request.to_owned_message()).await;
        let events = events.inspect_err(journal::not_started)?;
        let responses = events.map(|event| {
            let event = event?.into();
            Ok(wire::StartResponse { event, ..wire::StartResponse::default() })
        });
        Ok(Response::stream(responses).with_header(UNBUFFERED.0, UNBUFFERED.1))
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<wire::ConnectResponse>> {
        let options = FeedOptions::from_context(&ctx);
        let process = self.processes.find_or_ended(request.process.selector.as_ref())?;
        let output = process.output.subscribe();
        let responses = feed(process, output, options).map(|event| {
            let event = event?.into();
            Ok(wire::ConnectResponse { event, ..wire::ConnectResponse::default() })
        });
        Ok(Response::stream(responses).with_header(UNBUFFERED.0, UNBUFFERED.1))
    }

    async fn update(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<wire::UpdateResponse> {
        let live = self.find(&request.process)?;
        if let Some(pty) = request.pty.as_option() {
            live.input.resize(window_size(pty.size.cols, pty.size.rows))?;
        }
        Response::ok(wire::UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        ctx: RequestContext,
        mut requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<wire::StreamInputResponse> {
        let charge = ctx.extensions().get::<Arc<Charge>>();
        let mut target: Option<Live> = None;
        while let Some(request) = requests.next().await {
            match &request?.view().event {
                Some(InputEvent::Start(start)) => target = Some(self.find(&start.process)?),
                Some(InputEvent::Data(data)) => {
                    let Some(live) = &target else {
                        let message = "the first message must be a start event";
                        return Err(ConnectError::invalid_argument(message));
                    };
                    let input = data.input.input.as_ref();
                    cover(charge, input)?;
                    live.write(input).await?;
                }
                Some(InputEvent::Keepalive(_)) => {}
                None => return Err(ConnectError::unimplemented("invalid event type")),
            }
            if let Some(charge) = charge {
                charge.settle();
            }
        }
        Response::ok(wire::StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<wire::SendInputResponse> {
        let live = self.find(&request.process)?;
        let input = request.input.input.as_ref();
        cover(ctx.extensions().get(), input)?;
        live.write(input).await?;
        Response::ok(wire::SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::SendSignalRequest>,
    ) -> ServiceResult<wire::SendSignalResponse> {
        let live = self.find(&request.process)?;
        let signal = match request.signal.as_known() {
            Some(wire::Signal::SIGNAL_SIGTERM) => Signal::TERM,
            Some(wire::Signal::SIGNAL_SIGKILL) => Signal::KILL,
            _ => {
                let message = format!("invalid signal: {}", request.signal);
                return Err(ConnectError::unimplemented(message));
            }
        };
        self.processes.signal(&live.process, signal)?;
        if signal == Signal::KILL {
            // So that whoever kills it, and then looks for it, does not find it dying.
            let _ = timeout(DYING, live.process.ended.cancelled()).await;
        }
        Response::ok(wire::SendSignalResponse::default())
    }

    async fn close_stdin(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<wire::CloseStdinResponse> {
        self.find(&request.process)?.input.close().await?;
        Response::ok(wire::CloseStdinResponse::default())
    }
}
