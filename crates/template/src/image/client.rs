//! Every connection that is made for images.

use std::{
    collections::HashMap,
    error::Error as StdError,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use atoll_core::{Error, Result, addresses::is_public};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{
    Certificate, Method, Response, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
    redirect::Policy,
};

use super::{
    Registries,
    registries::{Way, no_way},
    told, unavailable,
};

/// Redirects of one request. Registries use one, to where their blobs are.
const MOST_REDIRECTS: usize = 5;
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(20);
/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(60);

/// Makes requests, each to an address that may be asked.
pub(super) struct Client {
    pub(super) registries: Registries,
    roots: Option<Vec<Certificate>>,
    proxies: Matcher,
    /// One for each scheme, host and port: what is allowed differs.
    clients: Mutex<HashMap<String, reqwest::Client>>,
}

/// A request that is sent again where it is redirected to.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    /// Goes to the host of `url` only.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) body: &'static str,
}

impl Client {
    /// A client that trusts the certificates of `bundle`.
    pub(super) fn new(registries: Registries, bundle: Option<&Path>) -> Result<Self> {
        let read = |path: &Path| {
            let text = std::fs::read(path).map_err(|error| error.to_string())?;
            Certificate::from_pem_bundle(&text).map_err(|error| error.to_string())
        };
        let roots = bundle.map(read).transpose().map_err(|error| {
            unavailable(format!("this node's certificates cannot be read: {error}."))
        })?;
        let proxies = Matcher::from_env();
        Ok(Self { registries, roots, proxies, clients: Mutex::default() })
    }

    /// Sends a request, follows redirects, and returns the first other response.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response> {
        let mut url = request.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut headers = request.headers.clone();
            if let Some(value) = &request.authorization
                && url.origin() == request.url.origin()
            {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let sent = self.client(&url)?.request(request.method.clone(), url.clone());
            let response = sent.headers(headers).body(request.body).send().await;
            let response = response.map_err(|error| failed(&url, error))?;
            let location =
                response.headers().get(LOCATION).filter(|_| response.status().is_redirection());
            let Some(location) = location else { return Ok(response) };
            let next = location.to_str().ok().and_then(|location| url.join(location).ok());
            url =
                next.ok_or_else(|| unavailable(format!("{} redirects to nowhere.", host(&url))))?;
        }
        Err(unavailable(format!("{} redirects without end.", host(request.url))))
    }

    /// The client for a URL, if it may be asked.
    fn client(&self, url: &Url) -> Result<reqwest::Client> {
        self.registries.check(url)?;
        let origin = url.origin().ascii_serialization();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&origin) {
            return Ok(client.clone());
        }
        let way = self.registries.way(url);
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE);
        if let Some(roots) = &self.roots {
            builder = builder.tls_certs_only(roots.iter().cloned());
        }
        if way == Some(Way::Unverified) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        // Behind a proxy of the environment names are not looked up here: where a request goes is then
        // what the operator's proxy allows. Addresses have been checked all the same.
        let uri = url.as_str().parse::<http::Uri>();
        if !uri.is_ok_and(|uri| self.proxies.intercept(&uri).is_some()) {
            builder = builder.no_proxy().dns_resolver(Guard { is_listed: way.is_some() });
        }
        let client = builder.build();
        let client =
            client.map_err(|error| unavailable(format!("no client can be made: {error}.")))?;
        clients.insert(origin, client.clone());
        Ok(client)
    }
}

/// The name and port of a URL's host.
pub(super) fn host(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    format!("{}{port}", url.host_str().unwrap_or_default())
}

/// Looks names up, and gives only addresses that may be asked.
struct Guard {
    is_listed: bool,
}

/// A name has no address that may be asked.
#[derive(Debug, thiserror::Error)]
#[error("at an address that is not public")]
struct NotPublic;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let is_listed = self.is_listed;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.is_empty() {
                return Err(io::Error::from(io::ErrorKind::NotFound).into());
            }
            let allowed = found.into_iter().filter(|found| is_listed || is_public(found.ip()));
            let allowed: Vec<SocketAddr> = allowed.collect();
            if allowed.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Why a request has no response.
fn failed(url: &Url, error: reqwest::Error) -> Error {
    // Where blobs really are may be a secret for an hour.
    let error = error.without_url();
    let mut cause: &(dyn StdError + 'static) = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if cause.is::<NotPublic>() {
        return no_way(url, &NotPublic.to_string());
    }
    unavailable(format!("{} cannot be reached: {}.", host(url), told(&cause.to_string())))
        .with_fix("Check the registry's name, and whether this node reaches it; then build again.")
}
