//! The control plane over real HTTP, on the SQLite database and the in-process catalogue, with a
//! node that keeps records instead of sandboxes and a builder that builds nothing.

// Helpers of tests fail as the tests do.
#![allow(clippy::unwrap_used)]

mod auth;
mod build_start;
mod build_status;
mod builder;
mod connections;
mod copies;
mod create;
mod documents;
mod errors;
mod files;
mod lifecycle;
mod list;
mod logs;
mod metrics;
mod node;
mod pause;
mod register;
mod rules;
mod stack;
mod tags;
mod templates;
