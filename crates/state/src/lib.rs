//! Control-plane state.
//!
//! - [`Database`]: durable: teams, keys, templates and their builds, snapshots, metrics, logs. SQLite
//!   here.
//! - [`Catalogue`]: the sandboxes that there are, as their nodes said last, reservations against the
//!   concurrency limit, idempotency keys. In process here.
//!
//! Both are traits with one backend each so far; a backend is held to the suite in `tests/`.

pub mod builds;
pub mod catalogue;
pub mod database;
mod memory;
pub mod model;
mod sqlite;

pub use catalogue::Catalogue;
pub use database::Database;
pub use memory::MemoryCatalogue;
pub use sqlite::SqliteDatabase;
