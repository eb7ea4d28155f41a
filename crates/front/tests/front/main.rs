//! The front as its users meet it: real TLS and HTTP clients, an API, and a sandbox that is a server
//! on loopback.

// Helpers outside `#[test]` functions may fail like tests do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod certificates;
mod hosts;
mod patience;
mod stack;
mod streams;
