//! The errors of drivers.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The error of every driver call.
///
/// The engine decides by [`kind`](DriverError::kind) and shows the message. So the message should
/// say what the driver tried and what an operator can do. It must not contain passwords or values.
///
/// It is cheap to clone: calls that were sent together share its source.
#[derive(Debug, Clone)]
pub struct DriverError {
    kind: ErrorKind,
    message: Arc<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
    parts: Option<Arc<[u32]>>,
}

/// The kinds of errors, as far as a caller can act on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server or the disk did not answer or answered with an error; trying later may help.
    Unavailable,
    /// The server answered and refused, for a reason that an operator can fix: a login, a
    /// permission, a missing table or schema, a read-only server, a server of the wrong kind. The
    /// message says what to fix. The same call succeeds afterwards, so the engine keeps changes
    /// that failed this way.
    Denied,
    /// The server has no space for more data: memory, disk or quota. Reads and deletes may still
    /// succeed, so the engine deletes an old value that it cannot replace.
    Full,
    /// The call took longer than it was allowed to.
    Timeout,
    /// The key or the value exceeds a limit of this driver. The message names the limit. A retry
    /// does not help.
    TooLarge,
    /// The driver's own settings are invalid: building the cache fails with this error. Use it only
    /// in `connect` and for settings; a later refusal by the server is
    /// [`Denied`](ErrorKind::Denied).
    Config,
    /// The driver could do it but must not, such as a clear that would reach foreign data.
    Refused,
    /// This driver does not have this operation.
    Unsupported,
    /// The driver was disconnected.
    Closed,
}

impl DriverError {
    /// An error of this kind. The message should say what to do about it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().into(), source: None, parts: None }
    }

    /// The same error with a source.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The same error, limited to these parts of the store: all other parts succeeded. For
    /// [`L2Driver::clear`](crate::L2Driver::clear) of a store that consists of
    /// [parts](crate::L2Driver::part).
    #[must_use]
    pub fn with_parts(mut self, parts: impl IntoIterator<Item = u32>) -> Self {
        self.parts = Some(parts.into_iter().collect());
        self
    }

    /// The parts of the store that failed; `None` if the error concerns the whole call.
    pub fn parts(&self) -> Option<&Arc<[u32]>> {
        self.parts.as_ref()
    }

    /// [`ErrorKind::Unavailable`], caused by `source`.
    pub fn unavailable(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::Unavailable, message).with_source(source)
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same call may succeed later: without intervention, or after an operator has
    /// fixed something. The engine queues and replays a change that failed with such an error, and
    /// its circuit breaker counts the failure. Every other error concerns this one key, value or
    /// operation, and is final.
    pub fn is_transient(&self) -> bool {
        use ErrorKind::{Config, Denied, Full, Timeout, Unavailable};
        matches!(self.kind, Unavailable | Timeout | Denied | Full | Config)
    }

    /// Whether the server refused this one call, so that another command may succeed: a full server
    /// still deletes.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind, ErrorKind::Denied | ErrorKind::Full)
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
