//! The Filesystem service, over HTTP as the SDKs call it: JSON in Connect's framing.

#![allow(clippy::unwrap_used)]

mod calls;
mod fixture;
mod fuse;
#[path = "../http/mod.rs"]
mod http;
mod watch;
