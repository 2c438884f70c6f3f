//! What went wrong in a database, for the adapter of a library to tell.

use std::error::Error;

use bentocache_driver::{DriverError, ErrorKind};

/// The reason of a failed statement. See [`Dialect::failure`](crate::Dialect::failure) for what a
/// database reports, and [`Failure::new`] for anything else, such as a lost connection.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    reason: String,
    cause: Cause,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What the driver can do about a failure by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Other,
    Conflict,
    MissingTable,
    StalePlan,
    ReadOnly,
    MixedUp,
}

impl Failure {
    /// A reason that says what to do about it, without passwords, keys and values.
    pub fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), cause: Cause::Other, source: None }
    }

    /// The statement lost against another one, and may succeed when it is repeated at once.
    pub fn conflict(reason: impl Into<String>) -> Self {
        Self { cause: Cause::Conflict, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The table does not exist. The driver creates it again where it may, and repeats the
    /// statement.
    pub fn missing_table(reason: impl Into<String>) -> Self {
        Self { cause: Cause::MissingTable, ..Self::new(ErrorKind::Denied, reason) }
    }

    /// A prepared statement does not fit the table any more. The statement is repeated; the
    /// library must prepare it again, or not use the connection again.
    pub fn stale_plan(reason: impl Into<String>) -> Self {
        Self { cause: Cause::StalePlan, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The server takes no writes, as one that was a primary and is a replica now. The library must
    /// not use the connection again: a new one may lead to the primary.
    pub fn read_only(reason: impl Into<String>) -> Self {
        Self { cause: Cause::ReadOnly, ..Self::new(ErrorKind::Denied, reason) }
    }

    /// A pooler has given the session's prepared statements, or their names, to another one. The
    /// statement did not run.
    pub fn mixed_up(reason: impl Into<String>) -> Self {
        Self { cause: Cause::MixedUp, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The same with its cause, which must not hold passwords, keys and values either.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, as far as a caller can act on it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the statement lost against another one, and is repeated.
    pub fn is_conflict(&self) -> bool {
        self.cause == Cause::Conflict
    }

    /// Whether the table does not exist.
    pub fn is_missing_table(&self) -> bool {
        self.cause == Cause::MissingTable
    }

    /// Whether the statement must be prepared again.
    pub fn is_stale_plan(&self) -> bool {
        self.cause == Cause::StalePlan
    }

    /// Whether the connection must not be used again, because its server takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.cause == Cause::ReadOnly
    }

    /// Whether a pooler mixes up prepared statements.
    pub fn is_mixed_up(&self) -> bool {
        self.cause == Cause::MixedUp
    }

    /// The error of a driver of that name: `doing` completes "cannot …".
    pub fn error(self, name: &str, doing: &str) -> DriverError {
        let error = DriverError::new(self.kind, format!("{name}: cannot {doing}: {}", self.reason));
        match self.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}
