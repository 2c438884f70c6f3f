//! Failures of a database, as the adapter of a library reports them.

use std::error::Error;

use bentocache_driver::{DriverError, ErrorKind};

/// The reason why a statement failed. [`Dialect::failure`](crate::Dialect::failure) maps errors of
/// a database; [`Failure::new`] makes any other failure, such as a lost connection.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    reason: String,
    cause: Cause,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The driver's own reaction to a failure.
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
    /// A reason that says what an operator can do, without passwords, keys and values.
    pub fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), cause: Cause::Other, source: None }
    }

    /// The statement lost a conflict with another one, and may succeed if it is repeated at once.
    pub fn conflict(reason: impl Into<String>) -> Self {
        Self { cause: Cause::Conflict, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The table does not exist. The driver creates it again if it may, and repeats the statement.
    pub fn missing_table(reason: impl Into<String>) -> Self {
        Self { cause: Cause::MissingTable, ..Self::new(ErrorKind::Denied, reason) }
    }

    /// A prepared statement does not match the table any more. The driver repeats the statement;
    /// the library must prepare it again, or must not reuse the connection.
    pub fn stale_plan(reason: impl Into<String>) -> Self {
        Self { cause: Cause::StalePlan, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The server refuses writes, like a former primary that is now a replica. The library must not
    /// reuse the connection: a new one may reach the primary.
    pub fn read_only(reason: impl Into<String>) -> Self {
        Self { cause: Cause::ReadOnly, ..Self::new(ErrorKind::Denied, reason) }
    }

    /// A pooler gave the session's prepared statements, or their names, to another client. The
    /// statement did not run.
    pub fn mixed_up(reason: impl Into<String>) -> Self {
        Self { cause: Cause::MixedUp, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The same failure with its cause, which must not contain passwords, keys or values either.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of the failure, as far as a caller can act on it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the statement lost a conflict with another one, and is repeated.
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

    /// Whether the connection must not be reused, because its server refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.cause == Cause::ReadOnly
    }

    /// Whether a pooler mixes up prepared statements.
    pub fn is_mixed_up(&self) -> bool {
        self.cause == Cause::MixedUp
    }

    /// The error of the driver with this name: `doing` completes "cannot …".
    pub fn error(self, name: &str, doing: &str) -> DriverError {
        let error = DriverError::new(self.kind, format!("{name}: cannot {doing}: {}", self.reason));
        match self.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}
