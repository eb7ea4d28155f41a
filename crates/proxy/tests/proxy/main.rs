//! The proxies as their users meet them: real servers on loopback stand for what runs in sandboxes,
//! real clients talk to them through one hop (the client proxy) and through two (and a node proxy).

// Helpers outside `#[test]` functions may fail like tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod abuse;
mod death;
mod forwarding;
mod frames;
mod grpc;
mod lifetime;
mod memory;
mod nodes;
mod refusals;
mod reuse;
mod stack;
mod streaming;
mod wake;
mod websocket;
