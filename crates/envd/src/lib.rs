//! envd: the daemon inside every sandbox.
//!
//! It is the sandbox's process 1. Over HTTP it starts processes and terminals, reads and writes
//! files and watches directories for the clients of the sandbox; the node configures it through
//! `POST /init`. One thread runs everything: an idle sandbox should cost next to nothing.
//!
//! | module | what it does |
//! |---|---|
//! | [`guest`] | what all handlers share: tokens, defaults, variables |
//! | [`server`], [`connection`], [`drain`] | listens, routes, answers the small routes |
//! | [`auth`], [`cors`] | access token, choice of user; web pages |
//! | [`rpc`], [`budget`], [`legacy`] | what all RPCs share: limits, timeouts, very old clients |
//! | [`control`], [`init`], [`mounts`] | what only the node may call; `init` uses [`trust`], [`identity`] |
//! | [`metrics`] | the route of the same name |
//! | [`reaper`], [`process`] | children: spawning, reaping, output, input, the Process service |
//! | [`users`], [`paths`] | `/etc/passwd`, and what a path means to a user |
//! | [`files`], [`signature`], [`filesystem`] | uploads, downloads, the Filesystem service |
//! | [`log`] | what envd says of its work, for the node |
//! | [`tool`], [`unpack`], [`provision`] | commands that builds of templates run: no daemon |
//! | [`disk`], [`random`] | small steps that several of them need |

pub mod auth;
pub mod budget;
pub mod connection;
pub mod control;
pub mod cors;
pub mod disk;
pub mod drain;
pub mod files;
pub mod filesystem;
pub mod guest;
pub mod identity;
pub mod init;
pub mod legacy;
pub mod log;
pub mod metrics;
pub mod mounts;
pub mod paths;
pub mod process;
pub mod provision;
pub mod random;
pub mod reaper;
pub mod rpc;
pub mod server;
pub mod signature;
pub mod tool;
pub mod trust;
pub mod unpack;
pub mod users;

/// The version this envd reports. Clients compare it to decide which features to use, so it may
/// only name a release whose features all work here.
pub const VERSION: &str = "0.6.13";
