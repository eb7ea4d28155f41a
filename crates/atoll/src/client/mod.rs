//! A small client of the public API and of envd, for the command line and the self-check. It does
//! what an SDK does, over the same sockets.
//!
//! - here: where a deployment is, and how its API is asked.
//! - [`sandboxes`]: what it is asked.
//! - [`commands`]: programs in sandboxes. [`cells`]: code in their code interpreter.
//! - [`templates`]: what sandboxes are made of.

mod cells;
mod commands;
mod sandboxes;
mod templates;

use std::env;

use atoll_core::{Code, Error, Result, error::codes};
use atoll_wire::rest;
use connectrpc::client::HttpClient;
use reqwest::{Method, StatusCode, redirect::Policy};
use serde::{Serialize, de::DeserializeOwned};

use crate::up::environment::Environment;
pub(crate) use cells::{Cell, CellEvent, Shown};
pub(crate) use commands::{CommandInput, Exec, ExecEvent, Running, WindowSize};
pub(crate) use sandboxes::Create;
pub(crate) use templates::{Plan, PlanStep, Registration};

/// A client of one deployment.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    guests: HttpClient,
    api_url: String,
    sandbox_url: String,
    api_key: String,
}

impl Client {
    /// The deployment that `atoll up` reports as its own.
    pub(crate) fn of(environment: &Environment) -> Self {
        Self::new(&environment.api_url, &environment.sandbox_url, &environment.api_key)
    }

    /// The deployment that the SDKs' variables name, by default the local one.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a key.
    pub(crate) fn from_variables() -> Result<Self> {
        let or = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
        let key = env::var("E2B_API_KEY").map_err(|_| {
            Error::new(codes::UNAUTHENTICATED, "E2B_API_KEY is not set.")
                .with_fix("Source the file that `atoll up` names: `. <data-dir>/env`.")
        })?;
        Ok(Self::new(
            &or("E2B_API_URL", "http://127.0.0.1:3000"),
            &or("E2B_SANDBOX_URL", "http://127.0.0.1:3002"),
            &key,
        ))
    }

    fn new(api_url: &str, sandbox_url: &str, api_key: &str) -> Self {
        Self {
            // A proxy for the internet is no way to this deployment, and must not see the key.
            // No answer says where else to ask: one from a sandbox could name any server that this
            // machine reaches, and would have its tokens sent there.
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(Policy::none())
                .build()
                .unwrap_or_default(),
            guests: HttpClient::plaintext(),
            api_url: api_url.trim_end_matches('/').to_owned(),
            sandbox_url: sandbox_url.trim_end_matches('/').to_owned(),
            api_key: api_key.to_owned(),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<reqwest::Response> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.api_url))
            .header("X-API-Key", &self.api_key);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| {
            Error::new(
                codes::NODE_UNAVAILABLE,
                format!("the API at {} does not answer: {}.", self.api_url, root_cause(&error)),
            )
            .with_fix("Start it with `atoll up`, or set E2B_API_URL.")
        })?;
        Self::succeeded(response).await
    }

    /// The answer, unless it is the API's word for a failure.
    async fn succeeded(response: reqwest::Response) -> Result<reqwest::Response> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let error: rest::Error = response
            .json()
            .await
            .map_err(|_| Error::new(codes::INTERNAL, format!("the API answered {status}.")))?;
        let code = error.error_code.as_deref().and_then(find_code).unwrap_or(match status {
            StatusCode::NOT_FOUND => codes::NOT_FOUND,
            StatusCode::UNAUTHORIZED => codes::UNAUTHENTICATED,
            _ => codes::INVALID_REQUEST,
        });
        // The API's messages say what to do themselves.
        Err(Error::new(code, error.message).with_fix(""))
    }

    async fn parse<T: DeserializeOwned>(response: reqwest::Response) -> Result<T> {
        response.json().await.map_err(|error| {
            Error::new(codes::INTERNAL, format!("the API's answer is not understood: {error}."))
        })
    }

    /// Where requests for sandboxes go.
    pub(crate) fn sandbox_url(&self) -> &str {
        &self.sandbox_url
    }
}

/// The code that the API names: by its number, or as the contract spells it.
fn find_code(name: &str) -> Option<Code> {
    match name.strip_prefix("ATL-") {
        Some(number) => codes::find(number.parse().ok()?),
        None => codes::ALL.iter().copied().find(|code| code.wire == Some(name)),
    }
}

/// The innermost cause: the outer ones repeat the URL.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
