//! The file routes, over HTTP.

#![allow(clippy::unwrap_used)]

mod access;
mod compose;
mod download;
mod fixture;
#[path = "../http/mod.rs"]
mod http;
mod upload;
