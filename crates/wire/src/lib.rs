//! What crosses a wire.
//!
//! - [`rpc`]: envd's Connect services, generated from `proto/`.
//! - [`guest`]: the HTTP bodies between a node and the envd of its sandboxes.
//! - [`node`]: what the control plane asks of a node. A trait, so that one process needs no socket.
//! - [`build`]: what it asks of who builds templates; another such trait.
//! - [`rest`]: the bodies of the public REST API, named as the contract names them.
//!
//! - [`log`]: the words that all three use for logs.
//!
//! Each other module is a feature: envd links only what it speaks.

#[cfg(feature = "node")]
pub mod build;
#[cfg(feature = "guest")]
pub mod guest;
pub mod log;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "rest")]
pub mod rest;

/// envd's Connect services: `rpc::process` and `rpc::filesystem`.
#[cfg(feature = "rpc")]
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod rpc {
    include!(concat!(env!("OUT_DIR"), "/_services.rs"));
}
