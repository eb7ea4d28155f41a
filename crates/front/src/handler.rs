//! What answers: it finds the part of the deployment that a request is for and hands it over.

use std::{convert::Infallible, sync::Arc};

use atoll_core::{Error, error::codes};
use atoll_proxy::{Body, Handler, Peer, RequestBody, client::Edge};
use axum::{Router, extract::ConnectInfo};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::Scheme,
};
use serde_json::json;
use tower::ServiceExt;

use crate::{
    domain::Domain,
    route::{Host, Place},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Everything a front leads to.
pub(crate) struct Front {
    domain: Domain,
    api: Router,
    edge: Arc<Edge>,
}

impl Front {
    pub(crate) fn new(domain: Domain, api: Router, edge: Arc<Edge>) -> Self {
        Self { domain, api, edge }
    }

    async fn api(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(peer.address));
        if peer.secure {
            request.extensions_mut().insert(Scheme::HTTPS);
        }
        let answer: Result<_, Infallible> = self.api.clone().oneshot(request).await;
        match answer {
            Ok(response) => response.map(Body::of_service),
            Err(never) => match never {},
        }
    }

    /// What the domain itself says, until there is a dashboard.
    fn home(&self, request: &Request<RequestBody>) -> Response<Body> {
        let path = request.uri().path();
        if path != "/" {
            let message = format!("There is nothing at {path} of {}.", self.domain);
            let error = Error::new(codes::ROUTE_NOT_FOUND, message);
            return refused(&error.with_fix(format!("The API is at api.{}.", self.domain)));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let message = format!("/ does not take {}.", request.method());
            let error = Error::new(codes::METHOD_NOT_ALLOWED, message);
            return refused(&error.with_fix(format!("The API is at api.{}.", self.domain)));
        }
        let domain = &self.domain;
        let (api, sandboxes) = (format!("https://api.{domain}"), format!("<port>-<id>.{domain}"));
        if wants_page(request.headers()) {
            let sandboxes = sandboxes.replace('<', "&lt;").replace('>', "&gt;");
            let page = format!(
                "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Atoll</title>\
                 <meta name=\"viewport\" content=\"width=device-width\">\
                 <style>body{{font-family:system-ui,sans-serif;max-width:40em;margin:15vh auto;\
                 padding:0 1em;color-scheme:light dark}}</style></head>\
                 <body><h1>Atoll</h1><p>This is a deployment of Atoll, sandboxes for AI agents.</p>\
                 <p>API: <code>{api}</code></p>\
                 <p>Sandboxes: <code>https://{sandboxes}</code></p></body></html>"
            );
            return answer(StatusCode::OK, HTML, page);
        }
        let about = json!({
            "name": "Atoll",
            "version": env!("CARGO_PKG_VERSION"),
            "api": api,
            "sandboxes": format!("https://{sandboxes}"),
        });
        answer(StatusCode::OK, JSON, about.to_string())
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        if request.method() == Method::CONNECT {
            let error = Error::new(codes::METHOD_NOT_ALLOWED, "CONNECT is not supported.");
            return refused(&error.with_fix("Send requests for the host itself."));
        }
        let invalid = |message| {
            let error = Error::new(codes::INVALID_REQUEST, message);
            refused(&error.with_fix("Send one Host header, with the name of the host."))
        };
        let host = match Host::of(request.uri(), request.headers()) {
            Ok(host) => host,
            Err(message) => return invalid(message),
        };
        let place = host.place(self.domain.name());
        let Some(request) = addressed(request, &host) else {
            return invalid("The Host header is not a host.");
        };
        match place {
            Place::Api => self.api(request, peer).await,
            Place::Sandbox => self.edge.handle(request, peer).await,
            Place::Home => self.home(&request),
            Place::Nowhere => {
                let message = format!("{} is no host of this deployment.", host.name);
                let fix = format!(
                    "Its hosts are api.{0}, <port>-<sandbox id>.{0}, sandbox.{0} and {0}.",
                    self.domain
                );
                refused(&Error::new(codes::HOST_UNKNOWN, message).with_fix(fix))
            }
        }
    }
}

/// The request with its host in one place, `Host`, where everything behind looks.
fn addressed(mut request: Request<RequestBody>, host: &Host) -> Option<Request<RequestBody>> {
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    request.headers_mut().insert(header::HOST, host.header()?);
    Some(request)
}

/// Whether a person opened it in a browser.
fn wants_page(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

/// A refusal in the API's form.
fn refused(error: &Error) -> Response<Body> {
    let status =
        StatusCode::from_u16(error.code.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({
        "code": status.as_u16(),
        "message": format!("{} {}", error.message, error.fix),
        "error_code": error.code.to_string(),
    });
    answer(status, JSON, body.to_string())
}

fn answer(status: StatusCode, kind: HeaderValue, text: String) -> Response<Body> {
    let mut response = Response::new(Body::whole(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
