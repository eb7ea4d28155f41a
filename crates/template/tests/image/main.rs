//! Images from a registry as people run it (Debian's `docker-registry`), filled by the tools people
//! fill it with, and from archives; and from servers that mean harm.

#![allow(clippy::unwrap_used)]

mod addresses;
mod archives;
mod registry;
mod support;
