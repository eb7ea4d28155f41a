//! Clients made with other toolkits: Connect, gRPC and gRPC-Web, binary and JSON, compressed or
//! not, over HTTP/1.1 and HTTP/2. The same calls have to mean the same in each of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, time::Duration};

use atoll_wire::rpc::{
    filesystem::{
        __buffa::oneof::watch_dir_response::Event as WatchEvent, EventType, FilesystemClient,
        StatRequest, WatchDirRequest, WatchDirResponse,
    },
    process::{
        __buffa::oneof::{
            process_event::{Event, data_event::Output},
            process_input::Input,
            process_selector::Selector,
            stream_input_request::Event as InputEvent,
        },
        CloseStdinRequest, ConnectRequest, ConnectResponse, ListRequest, PTY, ProcessClient,
        ProcessConfig, ProcessEvent, ProcessInput, ProcessSelector, SendInputRequest,
        SendSignalRequest, Signal, StartRequest, StartResponse, StreamInputRequest, UpdateRequest,
        stream_input_request::{DataEvent, KeepAlive, StartEvent},
    },
};
use connectrpc::{
    CodecFormat, CompressionPolicy, CompressionRegistry, ErrorCode, Protocol,
    client::{CallOptions, ClientConfig, HttpClient},
    stream_iter,
};
use support::{Envd, soon, until};

/// A way to call.
#[derive(Clone, Copy, Debug)]
struct Dialect {
    protocol: Protocol,
    codec: CodecFormat,
    http2: bool,
    gzip: bool,
}

const DIALECTS: [Dialect; 8] = {
    use CodecFormat::{Json, Proto};
    use Protocol::{Connect, Grpc, GrpcWeb};
    [
        Dialect { protocol: Connect, codec: Proto, http2: false, gzip: false },
        Dialect { protocol: Connect, codec: Proto, http2: false, gzip: true },
        Dialect { protocol: Connect, codec: Json, http2: true, gzip: true },
        Dialect { protocol: Grpc, codec: Proto, http2: true, gzip: false },
        Dialect { protocol: Grpc, codec: Proto, http2: true, gzip: true },
        Dialect { protocol: Grpc, codec: Json, http2: true, gzip: false },
        Dialect { protocol: GrpcWeb, codec: Proto, http2: false, gzip: false },
        Dialect { protocol: GrpcWeb, codec: Json, http2: true, gzip: true },
    ]
};

impl Dialect {
    fn parts(self, envd: &Envd) -> (HttpClient, ClientConfig) {
        let uri = format!("http://{}", envd.address()).parse().unwrap();
        let mut config =
            ClientConfig::new(uri).with_protocol(self.protocol).with_codec_format(self.codec);
        if self.gzip {
            // However small: else none of these messages would be.
            let policy = CompressionPolicy::default().with_min_size(1);
            config = config.compress_requests("gzip").with_compression_policy(policy);
        } else {
            config = config.with_compression(CompressionRegistry::new());
        }
        let transport =
            if self.http2 { HttpClient::plaintext_http2_only() } else { HttpClient::plaintext() };
        (transport, config)
    }

    fn process(self, envd: &Envd) -> ProcessClient<HttpClient> {
        let (transport, config) = self.parts(envd);
        ProcessClient::new(transport, config)
    }

    fn filesystem(self, envd: &Envd) -> FilesystemClient<HttpClient> {
        let (transport, config) = self.parts(envd);
        FilesystemClient::new(transport, config)
    }
}

fn shell(script: &str, tag: Option<&str>) -> StartRequest {
    let process = ProcessConfig {
        cmd: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        cwd: Some("/".into()),
        ..Default::default()
    };
    StartRequest { process: process.into(), tag: tag.map(str::to_owned), ..Default::default() }
}

fn selector(selector: Selector) -> ProcessSelector {
    ProcessSelector { selector: Some(selector), ..Default::default() }
}

fn stdin(data: &[u8]) -> ProcessInput {
    ProcessInput { input: Some(Input::Stdin(data.to_vec())), ..Default::default() }
}

fn typed(event: impl Into<InputEvent>) -> StreamInputRequest {
    StreamInputRequest { event: Some(event.into()), ..Default::default() }
}

/// What a process said and how it ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    pid: u32,
    stdout: Vec<u8>,
    exit: Option<(i32, bool, String)>,
}

impl Heard {
    fn add(&mut self, event: &ProcessEvent) {
        match &event.event {
            Some(Event::Start(start)) => self.pid = start.pid,
            Some(Event::Data(data)) => match &data.output {
                Some(Output::Stdout(data)) => self.stdout.extend_from_slice(data),
                other => panic!("unexpected output: {other:?}"),
            },
            Some(Event::End(end)) => {
                self.exit = Some((end.exit_code, end.exited, end.status.clone()));
            }
            Some(Event::Keepalive(_)) => {}
            None => panic!("an event of no kind"),
        }
    }
}

// Rules: RPC-4, RPC-5
#[tokio::test]
async fn a_process_is_followed_and_fed_in_every_dialect() {
    const DATA: &[u8] = b"bytes \xff\x00 of no alphabet";
    let envd = Envd::start().await;
    for dialect in DIALECTS {
        let client = dialect.process(&envd);
        let mut started = soon(client.start(shell("cat; exit 3", Some("cat")))).await.unwrap();
        let mut heard = Heard::default();
        let first = soon(started.message::<StartResponse>()).await.unwrap().unwrap();
        heard.add(&first.to_owned_message().event);
        assert!(heard.pid > 0, "{dialect:?}");

        let listed = soon(client.list(ListRequest::default())).await.unwrap().into_owned();
        assert_eq!(listed.processes[0].pid, heard.pid, "{dialect:?}");
        assert_eq!(listed.processes[0].tag.as_deref(), Some("cat"));
        let tag = || selector(Selector::Tag("cat".into()));
        let request = ConnectRequest { process: tag().into(), ..Default::default() };
        let mut connected = soon(client.connect(request)).await.unwrap();

        let start = StartEvent { process: tag().into(), ..Default::default() };
        let data = |data| DataEvent { input: stdin(data).into(), ..Default::default() };
        let input = [
            typed(start),
            typed(data(&DATA[..7])),
            typed(KeepAlive::default()),
            typed(data(&DATA[7..12])),
        ];
        soon(client.stream_input(stream_iter(input))).await.unwrap();
        let process = selector(Selector::Pid(heard.pid));
        let request = SendInputRequest {
            process: process.into(),
            input: stdin(&DATA[12..]).into(),
            ..Default::default()
        };
        soon(client.send_input(request)).await.unwrap();
        let request = CloseStdinRequest { process: tag().into(), ..Default::default() };
        soon(client.close_stdin(request)).await.unwrap();

        while let Some(message) = soon(started.message::<StartResponse>()).await.unwrap() {
            heard.add(&message.to_owned_message().event);
        }
        assert_eq!(heard.stdout, DATA, "{dialect:?}");
        assert_eq!(heard.exit, Some((3, true, "exit status 3".into())), "{dialect:?}");
        let mut other = Heard::default();
        while let Some(message) = soon(connected.message::<ConnectResponse>()).await.unwrap() {
            other.add(&message.to_owned_message().event);
        }
        assert_eq!(other, heard, "{dialect:?}");
    }
}

// Rules: RPC-4, RPC-5
#[tokio::test]
async fn errors_have_their_code_in_every_dialect() {
    let envd = Envd::start().await;
    for dialect in DIALECTS {
        let client = dialect.process(&envd);
        let gone = || selector(Selector::Pid(4_000_000));
        let request = SendSignalRequest {
            process: gone().into(),
            signal: Signal::SIGNAL_SIGKILL.into(),
            ..Default::default()
        };
        let error = soon(client.send_signal(request)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound, "{dialect:?}");
        assert_eq!(error.message.as_deref(), Some("process with pid 4000000 not found"));

        let error = soon(client.update(UpdateRequest::default())).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unimplemented, "{dialect:?}");

        let early = DataEvent { input: stdin(b"x").into(), ..Default::default() };
        let error = soon(client.stream_input(stream_iter([typed(early)]))).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{dialect:?}");

        // A stream may say so in its first message or before it.
        let request = ConnectRequest { process: gone().into(), ..Default::default() };
        let error = match soon(client.connect(request)).await {
            Ok(mut stream) => soon(stream.message::<ConnectResponse>()).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.code, ErrorCode::NotFound, "{dialect:?}");

        let request = StatRequest { path: "/does/not/exist \u{e9}".into(), ..Default::default() };
        let error = soon(dialect.filesystem(&envd).stat(request)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound, "{dialect:?}");
        assert!(error.message.unwrap().contains("/does/not/exist \u{e9}"), "{dialect:?}");
    }
}

// Rules: RPC-5
#[tokio::test]
async fn a_deadline_ends_the_stream_and_the_process_in_every_dialect() {
    let envd = Envd::start().await;
    for dialect in DIALECTS {
        let client = dialect.process(&envd);
        let options = CallOptions::default().with_timeout(Duration::from_millis(500));
        let request = shell("exec sleep 1000", None);
        let error = match soon(client.start_with_options(request, options)).await {
            Ok(mut stream) => loop {
                match soon(stream.message::<StartResponse>()).await {
                    Ok(message) => assert!(message.is_some(), "{dialect:?}: no end of the process"),
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{dialect:?}");
        until(async || envd.list().await.is_empty()).await;
    }
}

// Rules: RPC-5, WATCH-5
#[tokio::test]
async fn a_watch_reports_in_every_dialect() {
    let envd = Envd::start().await;
    for dialect in DIALECTS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        let request = WatchDirRequest { path, include_entry: true, ..Default::default() };
        let client = dialect.filesystem(&envd);
        let mut watch = soon(client.watch_dir(request)).await.unwrap();
        let mut next = async || {
            let message = soon(watch.message::<WatchDirResponse>()).await.unwrap().unwrap();
            message.to_owned_message().event.unwrap()
        };
        assert!(matches!(next().await, WatchEvent::Start(_)), "{dialect:?}");
        fs::write(directory.path().join("file"), "12345").unwrap();
        let WatchEvent::Filesystem(event) = next().await else { panic!("{dialect:?}: no event") };
        assert_eq!(event.name, "file", "{dialect:?}");
        assert_eq!(event.r#type, EventType::EVENT_TYPE_CREATE, "{dialect:?}");
        assert_eq!(event.entry.name, "file", "{dialect:?}");
    }
}

// Rules: RPC-5
#[tokio::test]
async fn terminals_work_over_grpc() {
    let envd = Envd::start().await;
    let dialect = DIALECTS[3];
    assert_eq!(dialect.protocol, Protocol::Grpc);
    let client = dialect.process(&envd);
    let size = atoll_wire::rpc::process::pty::Size { cols: 91, rows: 17, ..Default::default() };
    let pty = PTY { size: size.into(), ..Default::default() };
    let request = StartRequest { pty: pty.into(), ..shell("stty size", None) };
    let mut stream = soon(client.start(request)).await.unwrap();
    let mut shown = Vec::new();
    while let Some(message) = soon(stream.message::<StartResponse>()).await.unwrap() {
        if let Some(Event::Data(data)) = &message.to_owned_message().event.event
            && let Some(Output::Pty(data)) = &data.output
        {
            shown.extend_from_slice(data);
        }
    }
    assert_eq!(String::from_utf8_lossy(&shown), "17 91\r\n");
}
