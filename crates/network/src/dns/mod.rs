//! The name server that sandboxes see: a forwarder with its sockets inside each slot.
//!
//! The sockets are the daemon's, opened in the slot's namespace on [`crate::NAME_SERVER`]; a
//! sandbox reaches them over its own loopback, and the upstreams hear from the host. So a sandbox
//! needs no route to a name server, which often is at a private address, and none can be reached by
//! it directly. Queries pass as they are, once [`message`] finds them well-formed; nothing is
//! resolved from the host's own tables.

mod message;
mod server;
mod upstream;

pub(crate) use server::{Server, Sockets, open, serve};
pub(crate) use upstream::Upstreams;
