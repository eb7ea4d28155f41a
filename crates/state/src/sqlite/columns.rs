//! Reading columns, with errors that have a code.

use std::{fmt::Display, str::FromStr};

use atoll_core::{Error, Result, error::codes};
use jiff::Timestamp;
use sqlx::{Decode, Row, Sqlite, Type, sqlite::SqliteRow};

/// A stored value that cannot be what the column says: somebody else wrote it.
pub(super) fn bad_value(column: &str, error: impl Display) -> Error {
    tracing::error!(column, %error, "the database holds a value that Atoll did not write");
    Error::new(
        codes::DATA_DIR_UNUSABLE,
        format!("the database holds an unusable value in the column {column}."),
    )
    .with_fix("Correct the value; the log has it.")
}

/// Columns of a row, with an error that has a code.
pub(super) trait Columns {
    /// The column as the type that is stored.
    fn value<'r, T>(&'r self, name: &'static str) -> Result<T>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>;

    /// An integer column as a type of another range.
    fn number<T: TryFrom<i64, Error: Display>>(&self, name: &'static str) -> Result<T>;

    /// A text column as the id it is.
    fn id<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T>;

    /// A column of microseconds as a time.
    fn time(&self, name: &'static str) -> Result<Timestamp>;

    /// A column of microseconds, or null.
    fn optional_time(&self, name: &'static str) -> Result<Option<Timestamp>>;
}

impl Columns for SqliteRow {
    fn value<'r, T>(&'r self, name: &'static str) -> Result<T>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>,
    {
        self.try_get(name).map_err(|error| bad_value(name, error))
    }

    fn number<T: TryFrom<i64, Error: Display>>(&self, name: &'static str) -> Result<T> {
        T::try_from(self.value::<i64>(name)?).map_err(|error| bad_value(name, error))
    }

    fn id<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T> {
        self.value::<&str>(name)?.parse().map_err(|error| bad_value(name, error))
    }

    fn time(&self, name: &'static str) -> Result<Timestamp> {
        to_time(name, self.value(name)?)
    }

    fn optional_time(&self, name: &'static str) -> Result<Option<Timestamp>> {
        self.value::<Option<i64>>(name)?.map(|at| to_time(name, at)).transpose()
    }
}

fn to_time(name: &'static str, microseconds: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(microseconds).map_err(|error| bad_value(name, error))
}
