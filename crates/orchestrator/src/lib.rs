//! The node agent: the lifecycle of the sandboxes on one machine.
//!
//! ```text
//! Node ── sandbox.rs ── owner.rs ─┬─ journal.rs: what is to outlive this process
//!         (what is asked) (does it) ├─ start.rs ─┬─ network: a slot        (taken from a pool)
//!                                   │            ├─ storage: a disk        (taken from a pool)
//!                                   │            ├─ isolation: the driver  (makes the first process)
//!                                   │            └─ guest.rs: POST /init   (envd takes its settings)
//!                                   └─ run.rs: freeze, thaw, end
//! ```
//!
//! - [`service`]: `Options`, `Service`, `Handle`; the table of sandboxes.
//! - [`sandbox`]: what is known of a sandbox, and how to ask something of it.
//! - `owner`: the task that performs the steps of its lifecycle. `abort`: where tests end it.
//! - `run`: one run, its processes, network and disk. `start`: how one comes to be.
//! - [`journal`]: what the next start must know. `adopt`: what it does with that.
//! - `guest`: HTTP to envd.
//! - `logs`: what envd and the node say of a sandbox.
//! - [`rpc`]: the same [`Node`](atoll_wire::node::Node) calls over authenticated HTTP.

pub mod journal;
pub mod rpc;
pub mod sandbox;
pub mod service;

mod abort;
mod adopt;
mod events;
mod guest;
mod logs;
mod owner;
mod run;
mod start;

pub use journal::Journal;
pub use service::{Handle, Options, Service};
