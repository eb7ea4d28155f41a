//! The node agent: the lifecycle of the sandboxes on one machine.
//!
//! ```text
//! Node::create ── start.rs ─┬─ network: a slot        (taken from a pool)
//!                           ├─ storage: a disk        (taken from a pool)
//!                           ├─ isolation: the driver  (makes the first process)
//!                           └─ guest.rs: POST /init   (envd takes its settings)
//! Node::kill ──── sandbox.rs: end the first process, wait until nothing is left
//! ```
//!
//! - [`service`]: `Options`, `Service`, `Handle`; the table of sandboxes.
//! - `start`: one create, from taking a slot to envd's answer.
//! - [`sandbox`]: a sandbox that runs, and its end.
//! - `guest`: HTTP to envd.
//! - `logs`: what envd and the node say of a sandbox.
//! - [`rpc`]: the same [`Node`](atoll_wire::node::Node) calls over authenticated HTTP.

pub mod rpc;
pub mod sandbox;
pub mod service;

mod events;
mod guest;
mod logs;
mod start;

pub use service::{Handle, Options, Service};
