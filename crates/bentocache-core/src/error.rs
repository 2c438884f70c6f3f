//! What a driver says when it could not do its work.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The error of every driver call.
///
/// The engine decides by [`kind`](DriverError::kind) and shows the message, so the message should
/// say what the driver tried and what an operator can do. It must not contain passwords or values.
///
/// It is cheap to clone: calls that went together share what failed.
#[derive(Debug, Clone)]
pub struct DriverError {
    kind: ErrorKind,
    message: Arc<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server or the disk did not answer or answered with an error; trying later may help.
    Unavailable,
    /// The call took longer than it was allowed to.
    Timeout,
    /// The key or the value is beyond a limit of this driver. The message names the limit.
    /// Trying again does not help.
    TooLarge,
    /// The driver's own settings cannot work. Building the cache fails with it.
    Config,
    /// The driver can do it but must not, such as a clear that would reach foreign data.
    Refused,
    /// This driver has no such operation.
    Unsupported,
    /// The driver was disconnected.
    Closed,
}

impl DriverError {
    /// An error of that kind. The message should say what to do about it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().into(), source: None }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// [`ErrorKind::Unavailable`], caused by `source`.
    pub fn unavailable(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::Unavailable, message).with_source(source)
    }

    /// What went wrong, as far as a caller can act on it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later. Decides whether a write is kept for recovery.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for DriverError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}
