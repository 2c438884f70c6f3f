//! What went wrong in a database, for the adapter of a library to tell.

use std::error::Error;

use bentocache_core::{DriverError, ErrorKind};

/// The reason of a failed statement. See [`Dialect::failure`](crate::Dialect::failure) for what a
/// database reports, and [`Failure::new`] for anything else, such as a lost connection.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    reason: String,
    is_conflict: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A reason that says what to do about it, without passwords, keys and values.
    pub fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), is_conflict: false, source: None }
    }

    /// The statement lost against another one, and may succeed when it is repeated at once.
    pub fn conflict(reason: impl Into<String>) -> Self {
        Self { is_conflict: true, ..Self::new(ErrorKind::Unavailable, reason) }
    }

    /// The same with its cause, which must not hold passwords, keys and values either.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the statement is repeated.
    pub fn is_conflict(&self) -> bool {
        self.is_conflict
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
