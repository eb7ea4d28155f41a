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

/// What a client asked of a stream in its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedOptions {
    /// When the stream ends with `deadline_exceeded`.
    pub deadline: Option<Instant>,
    /// Silence after which a sign of life is sent.
    pub keepalive: Duration,
}

impl FeedOptions {
    /// The deadline as the protocol of the call has it, and `Keepalive-Ping-Interval` (seconds).
    pub fn from_context(ctx: &RequestContext) -> Self {
        let keepalive = ctx.header(KEEPALIVE_HEADER).and_then(|value| value.to_str().ok());
        let keepalive = keepalive.and_then(|seconds| seconds.parse::<u32>().ok());
        let keepalive = keepalive.filter(|seconds| *seconds > 0);
        Self {
            deadline: ctx.deadline().map(Instant::from_std),
            keepalive: keepalive.map_or(DEFAULT_KEEPALIVE, |s| Duration::from_secs(s.into())),
        }
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
                Err(too_late())
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

/// What a client is told whose time is up.
pub fn too_late() -> ConnectError {
    ConnectError::deadline_exceeded("the command exceeded its timeout")
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
    use futures::StreamExt;
    use http::HeaderMap;
    use tokio::sync::mpsc;

    use super::{super::tests::named, *};

    fn options(headers: &[(&'static str, &str)]) -> FeedOptions {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        FeedOptions::from_context(&RequestContext::new(HeaderMap::from_iter(headers)))
    }

    // Rules: STREAM-9
    #[test]
    fn a_useless_keepalive_is_replaced() {
        let keepalive = |value| options(&[(KEEPALIVE_HEADER, value)]).keepalive;
        assert_eq!(keepalive("50"), Duration::from_secs(50));
        for bad in ["0", "-1", "1.5", "99999999999", "soon", ""] {
            assert_eq!(keepalive(bad), DEFAULT_KEEPALIVE, "{bad}");
        }
    }

    // Rules: STREAM-7, STREAM-8
    #[tokio::test(start_paused = true)]
    async fn keepalives_come_after_silence_only() {
        let options = FeedOptions { deadline: None, keepalive: Duration::from_secs(50) };
        let (sender, output) = mpsc::channel(1);
        let mut events = Box::pin(feed(named(7, None), output, options));
        let mut next = async || {
            let event = events.next().await.unwrap().unwrap().event.unwrap();
            (matches!(event, Event::Keepalive(_)), Instant::now())
        };
        assert!(!next().await.0);
        let begin = Instant::now();
        tokio::spawn(async move {
            for _ in 0..3 {
                sleep(Duration::from_secs(49)).await;
                let chunk = Chunk { stream: Stream::Stdout, data: "x".into() };
                sender.send(chunk).await.unwrap();
            }
            sender.closed().await;
        });
        let after = |seconds| begin + Duration::from_secs(seconds);
        for (is_keepalive, when) in
            [(false, 49), (false, 98), (false, 147), (true, 197), (true, 247)]
        {
            assert_eq!(next().await, (is_keepalive, after(when)));
        }
    }
}
