//! One repository of a registry, and what the registry is told of who asks.
//!
//! A registry that wants to know answers with a challenge: either it takes a password itself, or it
//! names a place that gives out tokens for one. That place is asked by the same rules as any other,
//! and gets a password only with TLS.

use std::time::Duration;

use atoll_core::{Error, Result};
use atoll_wire::build::Credentials;
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    Reference, Registries, amazon,
    client::{Client, Request, host},
    told, unavailable,
};
use crate::host_bundle;

/// Bytes of a token's answer, and of an error's.
const LARGEST_ANSWER: usize = 256 << 10;
/// How often a registry is asked that does not answer or has a fault, and how long it is left alone
/// after the first time.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(400);

/// A session.
pub(super) struct Session {
    client: Client,
    reference: Reference,
    base: Url,
    /// `user:password`.
    password: Option<String>,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A token service's answer.
#[derive(Deserialize)]
struct Token {
    #[serde(alias = "access_token")]
    token: String,
}

/// What a registry says when it refuses.
#[derive(Default, Deserialize)]
struct Refusals {
    #[serde(default)]
    errors: Vec<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry wants to know.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Password,
    Token { realm: String, service: Option<String>, scope: Option<String> },
}

impl Session {
    /// A session with the registry of `reference`.
    pub(super) async fn open(
        reference: Reference,
        credentials: Option<&Credentials>,
        registries: &Registries,
    ) -> Result<Self> {
        let client = Client::new(registries.clone(), host_bundle().as_deref())?;
        let base = registries.base(reference.host())?;
        // Before anything is asked for a password.
        registries.check(&base)?;
        let password = match credentials {
            None => None,
            Some(Credentials::Basic { username, password }) => {
                Some(format!("{username}:{password}"))
            }
            Some(Credentials::Aws { access_key_id, secret_access_key, region }) => {
                Some(amazon::password(&client, access_key_id, secret_access_key, region).await?)
            }
        };
        Ok(Self { client, reference, base, password, authorization: Mutex::default() })
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Gets `kind` (`manifests` or `blobs`) of that name from `start` on; the response is one of
    /// success.
    pub(super) async fn get(
        &self,
        kind: &str,
        name: &str,
        accept: &str,
        start: u64,
    ) -> Result<Response> {
        let path = format!("v2/{}/{kind}/{name}", self.reference.repository);
        let url = self.base.join(&path);
        let url = url.map_err(|_| unavailable(format!("{} has no URL.", self.reference)))?;
        let mut headers = HeaderMap::new();
        if let Ok(accept) = HeaderValue::from_str(accept) {
            headers.insert(ACCEPT, accept);
        }
        if start > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={start}-"))
        {
            headers.insert(RANGE, range);
        }
        let authorization = self.authorization.lock().await.clone();
        let mut response = self.ask(&url, &headers, authorization.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let authorization = self.authorize(response.headers(), authorization).await?;
            response = self.ask(&url, &headers, Some(authorization)).await?;
        }
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    /// Asks, and again where that may help.
    async fn ask(
        &self,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> Result<Response> {
        let headers = headers.clone();
        let request = Request { method: Method::GET, url, headers, authorization, body: "" };
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match self.client.send(&request).await {
                Ok(response) if !response.status().is_server_error() => return Ok(response),
                Err(error) if error.code != atoll_core::error::codes::IMAGE_UNAVAILABLE => {
                    return Err(error);
                }
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.client.send(&request).await
    }

    /// What a request must say after this challenge. `used` was not enough.
    async fn authorize(
        &self,
        challenge: &HeaderMap,
        used: Option<HeaderValue>,
    ) -> Result<HeaderValue> {
        let mut authorization = self.authorization.lock().await;
        if let Some(known) = authorization.as_ref()
            && used.as_ref() != Some(known)
        {
            return Ok(known.clone());
        }
        let mut value = match challenge_of(challenge) {
            Some(Challenge::Password) => self.password_header(&self.base)?.ok_or_else(|| {
                unavailable(format!("{} is private: it needs credentials.", self.reference))
            })?,
            Some(Challenge::Token { realm, service, scope }) => {
                let token = self.token(&realm, service, scope).await?;
                HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| unavailable(format!("{} gave no usable token.", told(&realm))))?
            }
            None => return Err(self.not_understood()),
        };
        value.set_sensitive(true);
        Ok(authorization.insert(value).clone())
    }

    fn not_understood(&self) -> Error {
        unavailable(format!("{} asks for credentials in an unknown way.", host(&self.base)))
    }

    /// The password for a URL, if there is one.
    fn password_header(&self, url: &Url) -> Result<Option<HeaderValue>> {
        let Some(password) = &self.password else { return Ok(None) };
        if url.scheme() != "https" && url.origin() != self.base.origin() {
            let message = format!(
                "{} wants credentials sent to {} without TLS.",
                host(&self.base),
                host(url)
            );
            return Err(unavailable(message));
        }
        let value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(password)));
        let mut value = value.map_err(|_| self.not_understood())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String> {
        let mut url = Url::parse(realm).map_err(|_| self.not_understood())?;
        let scope =
            scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("scope", &scope);
            if let Some(service) = service {
                query.append_pair("service", &service);
            }
        }
        let authorization = self.password_header(&url)?;
        let response = self.ask(&url, &HeaderMap::new(), authorization).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let answer = bounded(response, LARGEST_ANSWER).await?;
        let token: Token = serde_json::from_slice(&answer)
            .map_err(|_| unavailable(format!("{} gave no token.", host(&url))))?;
        Ok(token.token)
    }

    /// Why there was no success.
    async fn refusal(&self, response: Response) -> Error {
        let status = response.status();
        let answer = bounded(response, LARGEST_ANSWER).await.unwrap_or_default();
        let said: Refusals = serde_json::from_slice(&answer).unwrap_or_default();
        let said =
            said.errors.first().map(|error| told(&format!("{}: {}", error.code, error.message)));
        let said = said.map_or(String::new(), |said| format!(" ({said})"));
        let (host, image) = (host(&self.base), &self.reference);
        let with = self.password.is_some();
        unavailable(match status {
            StatusCode::NOT_FOUND => format!("{host} has no {image}{said}."),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if with => {
                format!("{host} does not give {image} to these credentials{said}.")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!(
                    "{host} does not give {image} without credentials{said}: it is private, or does not exist."
                )
            }
            StatusCode::TOO_MANY_REQUESTS => {
                format!(
                    "{host} limits how often it is asked{said}: build again later, or with credentials."
                )
            }
            status => format!("{host} answered {status} for {image}{said}."),
        })
    }
}

/// The body of a response, of at most `limit` bytes.
pub(super) async fn bounded(mut response: Response, limit: usize) -> Result<Vec<u8>> {
    let host = host(response.url());
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= limit => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                return Err(super::refused(format!(
                    "{host} answered with more than {limit} bytes."
                )));
            }
            Err(_) => return Err(unavailable(format!("{host} broke off."))),
        }
    }
}

/// The challenge that can be met; one for a token if there are both.
fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<Challenge> = texts.filter_map(parse).collect();
    let is_token = |challenge: &Challenge| matches!(challenge, Challenge::Token { .. });
    let best = challenges.iter().position(is_token).unwrap_or(0);
    challenges.into_iter().nth(best)
}

fn parse(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Password);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((key, value)) = rest.split_once('=') {
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => value.split_at(value.find(',').unwrap_or(value.len())),
        };
        match key.trim_matches([',', ' ']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Token { realm: realm?, service, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let token = parse(
            r#"Bearer realm="https://a/token?x=1,2", service="b",scope="repository:c:pull,push",error=d"#,
        );
        let expected = Challenge::Token {
            realm: "https://a/token?x=1,2".to_owned(),
            service: Some("b".to_owned()),
            scope: Some("repository:c:pull,push".to_owned()),
        };
        assert_eq!(token, Some(expected));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Challenge::Password));
        for none in ["", "Bearer", "Bearer service=x", "Bearer realm=\"x", "Negotiate"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
