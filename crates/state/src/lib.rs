//! Control-plane state.
//!
//! - [`Database`]: durable: teams, keys, templates and their builds, metrics, logs. SQLite here.
//! - [`Catalogue`]: what runs, and what is about to: reservations against the concurrency limit,
//!   idempotency keys, deadlines in order. In process here.
//!
//! Both are traits with one backend each so far; a backend is held to the suite in `tests/`.

pub mod catalogue;
pub mod database;
mod memory;
pub mod model;
mod sqlite;

pub use catalogue::Catalogue;
pub use database::Database;
pub use memory::MemoryCatalogue;
pub use sqlite::SqliteDatabase;
