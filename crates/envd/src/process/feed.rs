//! What one client sees of a process: its start, its output, its end, and signs of life between.

use std::{sync::Arc, time::Duration};

use atoll_wire::rpc::process::{
    __buffa::oneof::process_event::{Event, data_event::Output},
    ProcessEvent,
    process_event::{DataEvent, KeepAlive, StartEvent},
};
use connectrpc::{ConnectError, RequestContext};
use futures::stream::{self, Stream as Events};
use tokio::{
    select,
    sync::mpsc::Receiver,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Process,
    output::{Chunk, Stream},
};

/// Silence after which a sign of life is sent, unless the client asks for another interval.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);
const KEEPALIVE_HEADER: &str = "keepalive-ping-interval";
const TIMEOUT_HEADER: &str = "connect-timeout-ms";

/// The longest timeout that the protocol can express, in digits.
const MAX_TIMEOUT_DIGITS: usize = 10;

/// What a client asked of a stream in its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedOptions {
    /// When the stream ends with `deadline_exceeded`.
    pub deadline: Option<Instant>,
    /// Silence after which a sign of life is sent.
    pub keepalive: Duration,
}

impl FeedOptions {
    /// Reads `Connect-Timeout-Ms` (absent or 0 for none) and `Keepalive-Ping-Interval` (seconds).
    ///
    /// # Errors
    /// `invalid_argument` when the timeout is not a number.
    pub fn from_context(ctx: &RequestContext) -> Result<Self, ConnectError> {
        let header = |name| ctx.header(name).map(|value| value.to_str().unwrap_or_default());
        let timeout = header(TIMEOUT_HEADER).map(parse_timeout).transpose()?.flatten();
        let keepalive = header(KEEPALIVE_HEADER).and_then(|seconds| seconds.parse::<u32>().ok());
        let keepalive = keepalive.filter(|seconds| *seconds > 0);
        Ok(Self {
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            keepalive: keepalive.map_or(DEFAULT_KEEPALIVE, |s| Duration::from_secs(s.into())),
        })
    }
}

fn parse_timeout(value: &str) -> Result<Option<Duration>, ConnectError> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse::<u64>() {
        Ok(0) if digits => Ok(None),
        Ok(millis) if digits && value.len() <= MAX_TIMEOUT_DIGITS => {
            Ok(Some(Duration::from_millis(millis)))
        }
        _ => Err(ConnectError::invalid_argument(format!("invalid {TIMEOUT_HEADER}: '{value}'"))),
    }
}

/// Where a feed is.
enum Phase {
    Start,
    Running,
    Over,
}

struct Feed {
    process: Arc<Process>,
    output: Receiver<Chunk>,
    options: FeedOptions,
    phase: Phase,
}

/// The events of a process for one client: `output` must come from its fan-out.
///
/// Dropping the stream ends the subscription and nothing else.
pub fn feed(
    process: Arc<Process>,
    output: Receiver<Chunk>,
    options: FeedOptions,
) -> impl Events<Item = Result<ProcessEvent, ConnectError>> + Send + 'static {
    let feed = Feed { process, output, options, phase: Phase::Start };
    stream::unfold(feed, async |mut feed| {
        let event = feed.next().await?;
        let event = event.map(|event| ProcessEvent { event: Some(event), ..Default::default() });
        Some((event, feed))
    })
}

impl Feed {
    async fn next(&mut self) -> Option<Result<Event, ConnectError>> {
        match self.phase {
            Phase::Start => {
                self.phase = Phase::Running;
                let pid = self.process.pid();
                Some(Ok(StartEvent { pid, ..StartEvent::default() }.into()))
            }
            Phase::Running => Some(self.next_while_running().await),
            Phase::Over => None,
        }
    }

    async fn next_while_running(&mut self) -> Result<Event, ConnectError> {
        let deadline = self.options.deadline;
        let time_is_up = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        select! {
            // The deadline also kills the process it started: it must win over that end.
            biased;
            () = time_is_up => {
                self.phase = Phase::Over;
                Err(ConnectError::deadline_exceeded("the command exceeded its timeout"))
            }
            chunk = self.output.recv() => Ok(match chunk {
                Some(chunk) => data_event(chunk).into(),
                None => {
                    self.phase = Phase::Over;
                    return self.end();
                }
            }),
            () = sleep(self.options.keepalive) => Ok(KeepAlive::default().into()),
        }
    }

    fn end(&self) -> Result<Event, ConnectError> {
        let end = self.process.end().cloned();
        end.map(Event::from).ok_or_else(|| ConnectError::internal("the end of the process is lost"))
    }
}

fn data_event(chunk: Chunk) -> DataEvent {
    let data = chunk.data.into();
    let output = match chunk.stream {
        Stream::Stdout => Output::Stdout(data),
        Stream::Stderr => Output::Stderr(data),
        Stream::Terminal => Output::Pty(data),
    };
    DataEvent { output: Some(output), ..DataEvent::default() }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn options(headers: &[(&'static str, &str)]) -> Result<FeedOptions, ConnectError> {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        FeedOptions::from_context(&RequestContext::new(HeaderMap::from_iter(headers)))
    }

    #[test]
    fn no_timeout_and_zero_mean_forever() {
        assert_eq!(options(&[]).unwrap().deadline, None);
        assert_eq!(options(&[(TIMEOUT_HEADER, "0")]).unwrap().deadline, None);
        assert!(options(&[(TIMEOUT_HEADER, "60000")]).unwrap().deadline.is_some());
    }

    #[test]
    fn a_timeout_that_is_no_number_is_refused() {
        for bad in ["", "1s", "-1", "+5", "1.5", "99999999999"] {
            assert!(options(&[(TIMEOUT_HEADER, bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_useless_keepalive_is_replaced() {
        let keepalive = |value| options(&[(KEEPALIVE_HEADER, value)]).unwrap().keepalive;
        assert_eq!(keepalive("50"), Duration::from_secs(50));
        for bad in ["0", "-1", "soon", ""] {
            assert_eq!(keepalive(bad), DEFAULT_KEEPALIVE, "{bad}");
        }
    }
}
