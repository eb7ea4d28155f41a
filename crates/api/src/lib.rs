//! The REST control plane (control-plane contract, sections 1 to 6 and 8 to 11).
//!
//! [`Service`] serves the API and runs what keeps it true; [`Options`] configure it; a [`Handle`] is
//! how the rest of the process reaches it. It stands on four traits and knows nothing behind them:
//!
//! ```text
//!  HTTP ── connection ── router ── auth ── handlers ──┬── Database    durable state
//!                                                     ├── Catalogue   what there is
//!            watcher, sampler, archivist, foreman ────┼── Node        where it runs
//!                                                     └── Builder     what builds templates
//! ```
//!
//! - `service`: start, serve, shut down. `connection`: one client's connection and its timeouts.
//! - `router`: routes and what stands around them. `endpoints`: the table of the whole contract.
//! - `auth`, `local`: who asks. `extract`: reading requests. `error`: answering failures.
//! - `sandboxes`, `snapshots`, `templates`, `teams`, `health`: the handlers. `page`: listings in
//!   pages. `unbuilt`: what is not there yet.
//! - `watcher`, `sampler`, `archivist`, `foreman`: the background tasks. `wake`: traffic to what is paused.
//! - `openapi`, `compatibility`: the documents made from the code.

mod archivist;
mod auth;
mod compatibility;
mod connection;
mod control;
mod cursor;
mod endpoints;
mod error;
mod extract;
mod foreman;
mod health;
mod local;
mod openapi;
mod page;
mod router;
mod sampler;
mod sandboxes;
mod service;
mod snapshots;
mod teams;
mod templates;
mod tokens;
mod unbuilt;
mod wake;
mod watcher;

pub use compatibility::{built_endpoints, compatibility_markdown};
pub use service::{Handle, Options, Service};
