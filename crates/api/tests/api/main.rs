//! The control plane over real HTTP, on the SQLite database and the in-process catalogue, with a
//! node that keeps records instead of sandboxes.

// Helpers of tests fail as the tests do.
#![allow(clippy::unwrap_used)]

mod auth;
mod connections;
mod copies;
mod create;
mod documents;
mod errors;
mod lifecycle;
mod list;
mod logs;
mod metrics;
mod node;
mod pause;
mod rules;
mod stack;
