//! What SQLite's failures mean to an operator.

use std::{fmt::Display, io, path::Path};

use atoll_core::{Error, Result, error::codes};
use sqlx::{error::DatabaseError, migrate::MigrateError};

// Primary result codes (https://sqlite.org/rescode.html); extended ones have them in the low byte.
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const IO: u32 = 10;
const CORRUPT: u32 = 11;
const FULL: u32 = 13;
const NOT_A_DATABASE: u32 = 26;

/// The extended code for "could not enlarge the index of the log", an I/O error by its low byte: a
/// full disk is what causes it.
const GROWING_SHARED_MEMORY: u32 = IO | (19 << 8);

const REPLACE: &str = "Stop Atoll, put a backup of the file in its place, or move the file and its \
                       -wal and -shm companions away: the next start makes a new one, without the \
                       present teams, keys and templates.";

/// Gives a failure of SQLite a code.
pub(super) trait Context<T> {
    /// For a query while Atoll runs. The cause goes to the log: the message may reach a client.
    fn coded(self) -> Result<T>;

    /// For the opening of the file at `path`.
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> Context<T> for Result<T, sqlx::Error> {
    fn coded(self) -> Result<T> {
        self.map_err(|error| {
            tracing::error!(%error, "a database query failed");
            match primary_code(&error) {
                Some(FULL) => Error::new(codes::DISK_FULL, "the database's disk is full."),
                Some(CORRUPT | NOT_A_DATABASE) => {
                    Error::new(codes::DATA_DIR_UNUSABLE, "the database is damaged.")
                        .with_fix(REPLACE)
                }
                Some(IO) => {
                    Error::new(codes::DATA_DIR_UNUSABLE, "the database's disk does not work.")
                        .with_fix(io_advice())
                }
                Some(BUSY | LOCKED) => {
                    Error::new(codes::INTERNAL, "the database was busy for too long.")
                }
                _ => Error::new(codes::INTERNAL, "the database could not answer."),
            }
        })
    }

    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|error| cannot_open(path, &error))
    }
}

fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error().and_then(DatabaseError::code)?;
    match code.parse::<u32>().ok()? {
        GROWING_SHARED_MEMORY => Some(FULL),
        code => Some(code & 0xff),
    }
}

fn io_advice() -> String {
    "Look for disk errors with dmesg, and check that the disk is not full.".to_owned()
}

fn unusable(path: &Path, what: impl Display) -> Error {
    Error::new(codes::DATA_DIR_UNUSABLE, format!("the database {} {what}", path.display()))
}

fn cannot_open(path: &Path, error: &sqlx::Error) -> Error {
    match primary_code(error) {
        Some(FULL) => disk_full(path),
        Some(BUSY | LOCKED) => Error::new(
            codes::DATA_DIR_IN_USE,
            format!("another program keeps the database {} locked.", path.display()),
        ),
        Some(NOT_A_DATABASE) => {
            unusable(path, "is not an SQLite database, or damaged.").with_fix(REPLACE)
        }
        Some(CORRUPT) => unusable(path, "is damaged.").with_fix(REPLACE),
        Some(IO) => {
            unusable(path, format!("cannot be read or written ({error}).")).with_fix(io_advice())
        }
        _ => unusable(path, format!("cannot be opened ({error}).")),
    }
}

fn disk_full(path: &Path) -> Error {
    Error::new(codes::DISK_FULL, format!("the disk of the database {} is full.", path.display()))
}

/// The error for a file that could not be created.
pub(super) fn cannot_create(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => disk_full(path),
        _ => unusable(path, format!("cannot be created ({error}).")),
    }
}

/// The error for a schema that could not be brought up to date.
pub(super) fn cannot_migrate(path: &Path, error: MigrateError) -> Error {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            cannot_open(path, &error)
        }
        MigrateError::VersionMissing(version) => unusable(
            path,
            format!("was made by a newer Atoll: this one does not know its schema {version}."),
        )
        .with_fix("Start that newer Atoll, or give this one another directory with --data-dir."),
        MigrateError::VersionMismatch(version) => {
            unusable(path, format!("was made by another build of Atoll (schema {version})."))
                .with_fix("Start that build, or give this one another directory with --data-dir.")
        }
        error => unusable(path, format!("has a schema that cannot be updated ({error}).")),
    }
}
