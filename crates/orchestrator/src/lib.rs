//! The node agent: the lifecycle of the sandboxes on one machine.
//!
//! ```text
//! Node ── sandbox.rs ── owner.rs ─┬─ journal.rs: what is to outlive this process
//!         (what is asked) (does it) ├─ start.rs ─┬─ network: a slot        (taken from a pool)
//!                                   │            ├─ storage: a disk        (taken from a pool)
//!                                   │            ├─ isolation: the driver  (makes the first process)
//!                                   │            └─ guest.rs: POST /init   (envd takes its settings)
//!                                   ├─ run.rs: freeze, dump, thaw, end
//!                                   └─ copies.rs: snapshots, rewinds
//! ```
//!
//! - [`service`]: `Options`, `Service`, `Handle`; the table of sandboxes. `node`: the calls on it.
//! - [`sandbox`]: how to ask something of a sandbox, and how it is remembered. `known`: what is known
//!   of it.
//! - `owner`: the task that performs the steps of its lifecycle. `deadline`: when its time is up;
//!   `expiry`: what is done then. `abort`: where tests end it.
//! - `run`: one run, its processes, network and disk. `start`: how one comes to be, from nothing or
//!   from what is saved. `copies`: snapshots of one.
//! - [`journal`]: what the next start must know. `adopt`: what it does with that.
//! - [`services`]: what a template's sandboxes start with.
//! - `guest`: HTTP to envd. [`commands`]: commands through it.
//! - `events`: what happened to sandboxes, for the control plane. `logs`: what envd and the node say
//!   of one; `report`: the node's words.
//! - [`rpc`]: the same [`Node`](atoll_wire::node::Node) calls over authenticated HTTP.

pub mod commands;
pub mod journal;
pub mod rpc;
pub mod sandbox;
pub mod service;
pub mod services;

mod abort;
mod adopt;
mod copies;
mod deadline;
mod events;
mod expiry;
mod guest;
mod known;
mod logs;
mod node;
mod owner;
mod report;
mod run;
mod start;
#[cfg(test)]
mod tests;

pub use journal::Journal;
pub use service::{Handle, Options, Service};
