//! What envd knows of the sandbox: its variables, for those who may.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;

/// Names and values.
pub(crate) type Variables = BTreeMap<String, String>;

/// The header with the caller's token.
pub(crate) const TOKEN: HeaderName = HeaderName::from_static("x-access-token");

/// How long envd may take; it answers from memory.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read, bytes.
const MAX_ANSWER: usize = 16 << 20;

/// Why there are no variables.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The token is not the sandbox's.
    #[error("Invalid access token")]
    Unauthorized,
    /// envd did not answer as it should.
    #[error("The variables of the sandbox cannot be read: {0}")]
    Failed(String),
}

/// envd, over connections that are kept.
#[derive(Clone, Debug)]
pub(crate) struct Envd {
    client: Client<HttpConnector, Empty<Bytes>>,
    envs: Uri,
}

impl Envd {
    /// The one at this address, such as `http://127.0.0.1:49983`.
    ///
    /// # Errors
    /// When that is no address.
    pub(crate) fn new(address: &str) -> Result<Self, http::uri::InvalidUri> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, envs: format!("{address}/envs").parse()? })
    }

    /// The variables of the sandbox, for a caller with this token.
    ///
    /// # Errors
    /// When the token is not the sandbox's, or envd does not answer.
    pub(crate) async fn variables(&self, token: Option<&HeaderValue>) -> Result<Variables, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Failed(error.to_string());
        let mut request = Request::get(self.envs.clone());
        if let Some(token) = token {
            request = request.header(TOKEN, token);
        }
        let request = request.body(Empty::new()).map_err(|error| failed(&error))?;
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| failed(&error))?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED => return Err(Error::Unauthorized),
                status => return Err(failed(&format!("envd answered {status}"))),
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| failed(&error))?.to_bytes();
            serde_json::from_slice(&body).map_err(|error| failed(&error))
        };
        let late = || failed(&format!("envd did not answer in {TIMEOUT:?}"));
        timeout(TIMEOUT, answer).await.unwrap_or_else(|_| Err(late()))
    }
}
