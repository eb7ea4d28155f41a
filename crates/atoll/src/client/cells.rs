//! Cells of code: the code interpreter of a sandbox, through the client proxy.

use atoll_core::{Code, Error, Result, error::codes};
use atoll_wire::rest;
use bytes::{Bytes, BytesMut};
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Client, root_cause};
use crate::terminal;

/// Where the code interpreter listens (in-sandbox contract, section B).
const INTERPRETER_PORT: u16 = 49999;
/// A line of its stream is an event, with whole pictures in it: the server sends at most 128 MiB at once
/// (`MAX_CONTENT` in `interpreter/src/kernel`), and little around it.
const MAX_LINE: usize = 129 << 20;
/// So much is read of what a sandbox answers instead of a stream, and said of its errors; bytes.
const MAX_REFUSAL: usize = 4 << 10;

/// A cell to run, in the default context of its language.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) code: String,
    pub(crate) language: String,
}

/// What a cell does: a line of the stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum CellEvent {
    Stdout {
        text: String,
    },
    Stderr {
        text: String,
    },
    /// It shows something, or this is the value of its last expression.
    #[serde(rename = "result")]
    Shown(Box<Shown>),
    #[serde(rename = "error")]
    Failed {
        name: String,
        value: String,
        traceback: String,
    },
    /// It is over; last of all.
    #[serde(rename = "end_of_execution")]
    Ended,
    /// Of no interest here, such as a sign of life.
    #[serde(other)]
    Other,
}

/// The representations of a result that a terminal, or files beside it, have a use for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Shown {
    pub(crate) text: Option<String>,
    pub(crate) markdown: Option<String>,
    pub(crate) latex: Option<String>,
    pub(crate) html: Option<String>,
    pub(crate) svg: Option<String>,
    /// In base64, as JPEG and PDF are.
    pub(crate) png: Option<String>,
    pub(crate) jpeg: Option<String>,
    pub(crate) pdf: Option<String>,
}

/// The interpreter cannot be heard (any more); what to do depends on why.
fn unreachable(fact: impl std::fmt::Display) -> Error {
    Error::new(codes::INTERPRETER_UNREACHABLE, format!("{fact}.")).with_fix("")
}

/// The beginning of what a sandbox wrote, fit for a terminal.
fn excerpt(text: &str) -> String {
    terminal::harmless(&text[..text.floor_char_boundary(MAX_REFUSAL)])
}

impl Client {
    /// Starts a cell; the sandbox has taken it when this returns.
    ///
    /// # Errors
    /// `INTERPRETER_UNREACHABLE` without a code interpreter in the sandbox, `INVALID_REQUEST` if it
    /// refuses the cell.
    pub(crate) async fn execute(
        &self,
        sandbox: &rest::Sandbox,
        cell: &Cell,
    ) -> Result<RunningCell> {
        let mut request = self
            .http
            .post(format!("{}/execute", self.sandbox_url))
            .header("e2b-sandbox-id", &sandbox.sandbox_id)
            .header("e2b-sandbox-port", INTERPRETER_PORT)
            .json(cell);
        let tokens = [
            ("x-access-token", &sandbox.envd_access_token),
            ("e2b-traffic-access-token", &sandbox.traffic_access_token),
        ];
        for (name, token) in tokens {
            if let Some(token) = token {
                request = request.header(name, token);
            }
        }
        let response = request.send().await.map_err(|error| {
            unreachable(format_args!("the code cannot be sent: {}", root_cause(&error)))
                .with_fix("Check that Atoll runs and that E2B_SANDBOX_URL is its address.")
        })?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        Ok(RunningCell { response, buffer: BytesMut::new(), seen: 0 })
    }
}

async fn refused(mut response: Response) -> Error {
    let status = response.status();
    // The proxy's word for a port on which nobody listens.
    if status == StatusCode::BAD_GATEWAY {
        let fact = format!("nothing serves port {INTERPRETER_PORT} of the sandbox.");
        return Error::new(codes::INTERPRETER_UNREACHABLE, fact);
    }
    let code: Code =
        if status.is_client_error() { codes::INVALID_REQUEST } else { codes::INTERNAL };
    let mut text = Vec::new();
    while text.len() < MAX_REFUSAL
        && let Ok(Some(bytes)) = response.chunk().await
    {
        text.extend_from_slice(&bytes);
    }
    let text = excerpt(String::from_utf8_lossy(&text).trim().trim_end_matches('.'));
    Error::new(code, format!("the code interpreter answered {status}: {text}.")).with_fix("")
}

/// A cell that runs. Dropped, it is interrupted.
pub(crate) struct RunningCell {
    response: Response,
    buffer: BytesMut,
    /// So much of the buffer has no end of a line.
    seen: usize,
}

impl RunningCell {
    /// The next thing it does. Not to be called again after its end.
    ///
    /// # Errors
    /// `INTERPRETER_UNREACHABLE` when the sandbox ends or the connection breaks.
    pub(crate) async fn next(&mut self) -> Result<CellEvent> {
        parse(&self.line().await?)
    }

    /// Reads what is left of the stream, so that its connection can be used again.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn finish(mut self) -> Result<()> {
        while self.response.chunk().await.map_err(|error| broken(&error))?.is_some() {}
        Ok(())
    }

    async fn line(&mut self) -> Result<Bytes> {
        loop {
            if let Some(length) = self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
                let end = self.seen + length;
                let line = self.buffer.split_to(end + 1).freeze();
                self.seen = 0;
                return Ok(line.slice(..end));
            }
            self.seen = self.buffer.len();
            if self.seen > MAX_LINE {
                let fact = "what comes from the sandbox is no stream of events: a line has no end";
                return Err(unreachable(fact));
            }
            match self.response.chunk().await.map_err(|error| broken(&error))? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Err(unreachable("the connection was closed before the cell ended")),
            }
        }
    }
}

fn broken(error: &reqwest::Error) -> Error {
    unreachable(format_args!(
        "the connection was lost before the cell ended: {}",
        root_cause(error)
    ))
}

fn parse(line: &[u8]) -> Result<CellEvent> {
    // The error quotes what it does not understand.
    serde_json::from_slice(line).map_err(|error| {
        let error = excerpt(&error.to_string());
        unreachable(format_args!("an event of the cell is not understood: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use axum::{
        Router,
        body::Body,
        response::{IntoResponse, Redirect},
        routing::any,
    };
    use futures::stream;
    use tokio::{net::TcpListener, time::timeout};

    use super::*;

    /// What comes of a cell in a sandbox that serves this.
    async fn executed(sandbox: Router) -> Result<RunningCell> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async { axum::serve(listener, sandbox).await });
        let client = Client::new(&url, &url, "key");
        let cell = Cell { code: "1".to_owned(), language: "python".to_owned() };
        let executed = timeout(Duration::from_secs(20), client.execute(&sandbox_of(), &cell)).await;
        server.abort();
        executed.expect("it ends")
    }

    fn sandbox_of() -> rest::Sandbox {
        serde_json::from_value(serde_json::json!({
            "sandboxID": "i1", "templateID": "t", "clientID": "c", "envdVersion": "0.6.4",
        }))
        .unwrap()
    }

    fn of_cut_off(error: &Error) -> bool {
        error.code == codes::INTERPRETER_UNREACHABLE && error.fix.is_empty()
    }

    #[tokio::test]
    async fn a_sandbox_sends_nobody_elsewhere() {
        let ended = any(|| async { "{\"type\":\"end_of_execution\"}\n" });
        let router = Router::new()
            .route("/execute", any(|| async { Redirect::temporary("/elsewhere") }))
            .route("/elsewhere", ended);
        let refused = executed(router).await.err().unwrap();
        assert!(refused.message.contains("307"), "{refused}");
    }

    #[tokio::test]
    async fn a_refusal_without_end_is_cut_off_and_steers_no_terminal() {
        let endless = || async {
            let title = stream::repeat_with(|| Ok::<_, Infallible>("\u{1b}]0;owned\u{7}\n"));
            (StatusCode::BAD_REQUEST, Body::from_stream(title)).into_response()
        };
        let refused = executed(Router::new().fallback(endless)).await.err().unwrap().to_string();
        assert!(refused.contains("400 Bad Request: \\u{1b}]0;owned"), "{refused}");
        assert!(!refused.contains(char::is_control) && refused.len() < 8 * MAX_REFUSAL);
    }

    #[tokio::test]
    async fn a_template_without_an_interpreter_is_told_from_a_sandbox_that_ends() {
        let nobody = || async { StatusCode::BAD_GATEWAY };
        let refused = executed(Router::new().fallback(nobody)).await.err().unwrap();
        assert!(refused.fix.contains("code-interpreter-v1"), "{refused}");
        let printed = || async { "{\"type\":\"stdout\",\"text\":\"1\"}\n" };
        let mut running = executed(Router::new().fallback(printed)).await.unwrap();
        assert!(matches!(running.next().await.unwrap(), CellEvent::Stdout { text } if text == "1"));
        assert!(of_cut_off(&running.next().await.unwrap_err()));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let endless = || async {
            let line = Bytes::from(vec![b' '; 1 << 20]);
            Body::from_stream(stream::repeat_with(move || Ok::<_, Infallible>(line.clone())))
        };
        let mut running = executed(Router::new().fallback(endless)).await.unwrap();
        assert!(of_cut_off(&running.next().await.unwrap_err()));
        assert!(running.buffer.len() < 130 << 20, "{}", running.buffer.len());
    }

    #[test]
    fn lines_are_events() {
        let printed = br#"{"type":"stdout","text":"1\n","timestamp":"2026-01-01T00:00:00Z"}"#;
        assert!(matches!(parse(printed).unwrap(), CellEvent::Stdout { text } if text == "1\n"));
        let shown = br#"{"type":"result","text":"1","png":null,"is_main_result":true,"extra":{}}"#;
        let CellEvent::Shown(shown) = parse(shown).unwrap() else { panic!("{shown:?}") };
        assert_eq!((shown.text.as_deref(), shown.png), (Some("1"), None));
        let failed = br#"{"type":"error","name":"E","value":"v","traceback":"t"}"#;
        assert!(matches!(parse(failed).unwrap(), CellEvent::Failed { name, .. } if name == "E"));
        let ended = br#"{"type":"end_of_execution"}"#;
        assert!(matches!(parse(ended).unwrap(), CellEvent::Ended));
    }

    #[test]
    fn what_is_new_is_passed_over_and_what_is_broken_is_not() {
        for line in
            [r#"{"type":"keepalive"}"#, r#"{"type":"number_of_executions","execution_count":1}"#]
        {
            assert!(matches!(parse(line.as_bytes()).unwrap(), CellEvent::Other));
        }
        let long = format!(r#"{{"type":"stdout","text":1,"{}":"#, "\u{9b}".repeat(MAX_REFUSAL));
        let quoted = r#"{"type":"stdout","text":{"\u001b]0;owned":1}}"#;
        for broken in ["<html>", r#"{"type":"stdout"}"#, quoted, &long] {
            let error = parse(broken.as_bytes()).unwrap_err();
            assert!(of_cut_off(&error) && !error.message.contains(char::is_control), "{error}");
        }
    }
}
