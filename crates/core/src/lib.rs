//! The vocabulary every Atoll crate shares. No I/O, no async: what is here can be tested with
//! values alone.
//!
//! - [`addresses`]: which addresses of the internet are everyone's.
//! - [`id`]: sandbox, template and team ids and how the wire spells them.
//! - [`key`]: API keys and access tokens: generation, hashing, masking.
//! - [`reference`]: the template reference grammar `namespace/name:tag`.
//! - [`error`]: coded errors. Every failure a user can see has a code with a page in `docs/errors/`.
//! - [`lifecycle`]: the states of a sandbox, and how it gets from one to the next, whatever fails.
//! - [`limits`]: the numbers that bound everything, with their sources.

pub mod addresses;
pub mod error;
pub mod id;
pub mod key;
pub mod lifecycle;
pub mod limits;
pub mod reference;

pub use error::{Code, Error, Result};
pub use id::{InstanceId, LayerId, SandboxId, TemplateId};
