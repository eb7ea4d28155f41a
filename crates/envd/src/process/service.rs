//! The `process.Process` Connect service.

use std::{sync::Arc, time::Duration};

use atoll_wire::rpc::process::{
    self as wire, __buffa::view, __buffa::view::oneof::stream_input_request::Event as InputEvent,
    ProcessEvent,
};
use buffa::MessageFieldView;
use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult,
    ServiceStream,
};
use futures::{Stream, StreamExt};
use rustix::process::{Rlimit, Signal};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Live, Processes,
    feed::{FeedOptions, feed},
    launch::{Launch, error_of, window_size},
};
use crate::{auth, guest::Guest};

/// How long a kill waits for the end. A process may be held up in the kernel, its killer may not.
const DYING: Duration = Duration::from_secs(1);

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
        let options = FeedOptions::from_context(ctx)?;
        let user = auth::rpc_user(ctx, &self.guest)?;
        let launch = Launch::new(request, user, &self.guest)?;
        let description = launch.description();
        let launched = launch
            .fork(&self.processes.reaper, self.open_files)
            .map_err(|error| error_of(error, &description))?;
        let process = Arc::clone(&launched.live.process);
        // Before its output is read, so that nothing is missed.
        let output = process.output.subscribe();
        let (started, has_started) = oneshot::channel();
        let processes = Arc::clone(&self.processes);
        tokio::spawn(processes.supervise(launched, options.deadline, started));
        match has_started.await {
            Ok(Ok(())) => Ok(feed(process, output, options)),
            Ok(Err(setup)) => {
                Err(error_of(setup.errno.into(), &format!("{description}: {}", setup.step)))
            }
            Err(_) => Err(ConnectError::internal("the process was not looked after")),
        }
    }

    fn find(
        &self,
        selector: &MessageFieldView<view::ProcessSelectorView<'_>>,
    ) -> Result<Live, ConnectError> {
        self.processes.find(selector.selector.as_ref())
    }
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
        let events = self.launch(&ctx, request.to_owned_message()).await?;
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
        let options = FeedOptions::from_context(&ctx)?;
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
        _ctx: RequestContext,
        mut requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<wire::StreamInputResponse> {
        let mut target: Option<Live> = None;
        while let Some(request) = requests.next().await {
            match &request?.view().event {
                Some(InputEvent::Start(start)) => target = Some(self.find(&start.process)?),
                Some(InputEvent::Data(data)) => {
                    let Some(live) = &target else {
                        let message = "the first message must be a start event";
                        return Err(ConnectError::invalid_argument(message));
                    };
                    live.write(data.input.input.as_ref()).await?;
                }
                Some(InputEvent::Keepalive(_)) => {}
                None => return Err(ConnectError::unimplemented("invalid event type")),
            }
        }
        Response::ok(wire::StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<wire::SendInputResponse> {
        let live = self.find(&request.process)?;
        live.write(request.input.input.as_ref()).await?;
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
