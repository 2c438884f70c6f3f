//! The errors of the cache.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, InvalidOption};

/// The result of every operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The reason why an operation failed. Cheap to clone: callers that waited for one factory share
/// its error.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The value of an option is invalid.
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The given value.
        given: Box<str>,
        /// The accepted values.
        expected: &'static str,
    },
    /// The configuration of the cache is invalid.
    Config(Box<str>),
    /// No store has that name.
    UnknownStore {
        /// The requested name.
        name: Box<str>,
        /// The existing names.
        known: Box<[Box<str>]>,
    },
    /// The key cannot be used.
    InvalidKey {
        /// The key, as given.
        key: Box<str>,
        /// The reason.
        reason: &'static str,
    },
    /// L2 cannot store the marker of a tag, so the tag could never be invalidated.
    TagTooLong {
        /// The tag, as given.
        tag: Box<str>,
        /// The driver's name.
        driver: &'static str,
        /// The longest key that the driver accepts, in bytes.
        most: usize,
        /// The length of the key of the tag's marker, in bytes.
        needs: usize,
    },
    /// The factory returned an error or panicked. The source is the factory's own error, see
    /// [`Error::factory`].
    Factory {
        /// The key.
        key: Arc<str>,
        /// The factory's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The factory did not end within the factory timeout. It was dropped and stores nothing.
    FactoryTimeout {
        /// The key.
        key: Arc<str>,
        /// The timeout.
        after: Duration,
    },
    /// The hard timeout passed. The factory continues, and its value will be stored.
    HardTimeout {
        /// The key.
        key: Arc<str>,
        /// The timeout.
        after: Duration,
    },
    /// The factory of another caller for the key did not end within the lock timeout, and this call
    /// has neither a stale value nor its own factory to fall back on.
    LockTimeout {
        /// The key.
        key: Arc<str>,
        /// The timeout.
        after: Duration,
    },
    /// The factory called [`skip`](crate::Context::skip): there is no value, and nothing was
    /// stored.
    Skipped {
        /// The key.
        key: Arc<str>,
    },
    /// A factory requested the key that it is producing.
    Reentrant {
        /// The key.
        key: Arc<str>,
    },
    /// L2 failed, and its errors are not suppressed.
    L2 {
        /// The operation.
        operation: &'static str,
        /// The driver's name.
        driver: &'static str,
        /// The driver's error.
        source: Arc<DriverError>,
    },
    /// Some keys of a call with many keys failed; the others succeeded.
    Keys {
        /// The keys that failed, each with its error.
        failed: Arc<[(Arc<str>, Error)]>,
        /// The number of keys in the call.
        of: usize,
    },
    /// The cache was disconnected before all changes had reached the other nodes, which may serve
    /// old values until these expire.
    Unflushed {
        /// The number of changes that did not reach L2.
        changes: usize,
        /// The number of keys whose changes were not announced to the other nodes.
        messages: usize,
    },
    /// The value has no representation in the store's codec.
    Encode {
        /// The key.
        key: Arc<str>,
        /// The codec's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The value is larger than L1 accepts, and there is no L2 to keep it: it was stored nowhere.
    TooLarge {
        /// The key.
        key: Arc<str>,
        /// The size of the entry in bytes, as L1 counts it.
        size: u64,
        /// The largest entry that L1 accepts, if L1 reports it.
        limit: Option<u64>,
        /// The option that sets the limit, if L1 reports it.
        option: Option<&'static str>,
    },
    /// The cache can no longer be used.
    Closed {
        /// The reason.
        reason: ClosedReason,
    },
    /// The work ended before it had a result, because the cache or its runtime was shut down.
    Abandoned {
        /// The key.
        key: Arc<str>,
    },
    /// A blocking call was made on a thread that drives a single-threaded runtime.
    BlockingInAsync,
}

impl Error {
    /// The factory's own error, if it has this type or was caused by an error of this type.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let result = cache
    ///     .get_or_set("page", |_| async { std::fs::read_to_string("/no/such/file") })
    ///     .await;
    /// let error = result.unwrap_err();
    /// let cause = error.factory::<std::io::Error>().unwrap();
    /// assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    /// # Ok(()) }
    /// ```
    pub fn factory<E: StdError + 'static>(&self) -> Option<&E> {
        let Self::Factory { source, .. } = self else { return None };
        let mut cause: Option<&(dyn StdError + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if let Some(found) = error.downcast_ref::<E>() {
                return Some(found);
            }
            cause = error.source();
        }
        None
    }

    /// Whether the factory reported that there is no value.
    pub fn is_skipped(&self) -> bool {
        matches!(self, Self::Skipped { .. })
    }

    /// Whether a timeout of the cache passed.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::FactoryTimeout { .. } | Self::HardTimeout { .. } | Self::LockTimeout { .. } => {
                true
            }
            Self::L2 { source, .. } => source.kind() == ErrorKind::Timeout,
            _ => false,
        }
    }

    /// The key of the failed operation, if there is one.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Factory { key, .. }
            | Self::FactoryTimeout { key, .. }
            | Self::HardTimeout { key, .. }
            | Self::LockTimeout { key, .. }
            | Self::Skipped { key }
            | Self::Reentrant { key }
            | Self::Encode { key, .. }
            | Self::TooLarge { key, .. }
            | Self::Abandoned { key } => Some(key),
            Self::InvalidKey { key, .. } => Some(key),
            Self::Keys { failed, .. } => match &**failed {
                [(key, _)] => Some(key),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error of a failed factory: the factory's own error, or a timeout.
    pub(crate) fn of_factory(key: Arc<str>, source: Arc<dyn StdError + Send + Sync>) -> Self {
        match source.downcast_ref::<TimedOut>() {
            Some(TimedOut(after)) => Self::FactoryTimeout { key, after: *after },
            None => Self::Factory { key, source },
        }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Config(message.into().into_boxed_str())
    }
}

impl From<InvalidOption> for Error {
    fn from(error: InvalidOption) -> Self {
        let InvalidOption { option, given, expected, .. } = error;
        Self::InvalidOption { option, given, expected }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidOption { option, given, expected } => {
                write!(f, "option `{option}`: cannot use {given:?}; give {expected}")
            }
            Self::Config(message) => f.write_str(message),
            Self::UnknownStore { name, known } => {
                write!(f, "there is no store named {name:?}; the stores are: ")?;
                for (i, name) in known.iter().enumerate() {
                    write!(f, "{}{name:?}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::InvalidKey { key, reason } => write!(f, "key {key:?}: {reason}"),
            Self::TagTooLong { tag, driver, most, needs } => write!(
                f,
                "tag {tag:?} is too long for the second tier ({driver}): its marker needs a key of \
                 {needs} bytes, and the limit is {most}; use a shorter tag, such as a hash"
            ),
            Self::Factory { key, .. } => {
                write!(f, "the factory for key {key:?} failed and no stale value could be served")
            }
            Self::FactoryTimeout { key, after } => write!(
                f,
                "the factory for key {key:?} did not end within the factory timeout of {after:?} \
                 and was dropped; no stale value could be served"
            ),
            Self::HardTimeout { key, after } => write!(
                f,
                "no value for key {key:?} within the hard timeout of {after:?}; \
                 the factory goes on in the background"
            ),
            Self::LockTimeout { key, after } => write!(
                f,
                "another caller's factory for key {key:?} did not end within the lock timeout of \
                 {after:?}"
            ),
            Self::Skipped { key } => {
                write!(f, "the factory for key {key:?} skipped it; use `.optional()` to get `None`")
            }
            Self::Reentrant { key } => write!(
                f,
                "the factory for key {key:?} asked the cache for the same key, which would wait \
                 for itself; use another key or compute the value directly"
            ),
            Self::L2 { operation, driver, source } if source.is_transient() => write!(
                f,
                "the second tier ({driver}) failed to {operation}; set `suppress_l2_errors(true)` \
                 to go on without it"
            ),
            Self::L2 { operation, driver, source } => {
                write!(f, "the second tier ({driver}) refused to {operation}: {source}")
            }
            Self::Keys { failed, of } => {
                write!(f, "{} of {of} keys failed, the others are done: ", failed.len())?;
                for (i, (key, error)) in failed.iter().take(3).enumerate() {
                    write!(f, "{}{key:?}: {error}", if i == 0 { "" } else { "; " })?;
                }
                if failed.len() > 3 { write!(f, "; and {} more", failed.len() - 3) } else { Ok(()) }
            }
            Self::Unflushed { changes, messages } => write!(
                f,
                "the cache was disconnected before {changes} changes reached the second tier and \
                 {messages} keys were announced on the bus; other nodes may serve old values \
                 until these expire"
            ),
            Self::Encode { key, .. } => {
                write!(f, "the value for key {key:?} cannot be encoded for the second tier")
            }
            Self::TooLarge { key, size, limit, option } => {
                write!(
                    f,
                    "the value for key {key:?} was not stored: it is larger than the first tier accepts"
                )?;
                if let Some(limit) = limit {
                    write!(f, " ({size} bytes of at most {limit})")?;
                }
                match option {
                    Some(option) => write!(f, "; raise `{option}`, or add a second tier"),
                    None => f.write_str("; raise its limit, or add a second tier"),
                }
            }
            Self::Closed { reason } => fmt::Display::fmt(reason, f),
            Self::Abandoned { key } => write!(
                f,
                "the work for key {key:?} was ended by a shutdown of the cache or its runtime"
            ),
            Self::BlockingInAsync => f.write_str(
                "a blocking call on a thread that runs a single-threaded runtime would wait for \
                 itself; use `.await`, or call it from `tokio::task::spawn_blocking`",
            ),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Factory { source, .. } | Self::Encode { source, .. } => Some(source.as_ref()),
            Self::L2 { source, .. } if source.is_transient() => Some(source.as_ref()),
            // The text of a refusal already contains the driver's words.
            Self::L2 { source, .. } => source.source(),
            _ => None,
        }
    }
}

/// Why a cache can no longer be used; see [`Error::Closed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClosedReason {
    /// It was disconnected.
    Disconnected,
    /// The tokio runtime that built the cache has ended. Fresh values in L1 can still be read.
    RuntimeEnded,
}

impl fmt::Display for ClosedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "the cache was disconnected; build a new one",
            Self::RuntimeEnded => {
                "the tokio runtime that built this cache has ended; build the cache in a runtime \
                 that lives as long as it"
            }
        })
    }
}

/// The error type that [`Context::skip`](crate::Context::skip) and
/// [`Context::fail`](crate::Context::fail) return. A factory that calls them can use it as its
/// error type: every error converts into it with `?`.
///
/// ```
/// use bentocache::{Context, Failure};
///
/// async fn load(cx: Context<u32>) -> Result<u32, Failure> {
///     let text = std::fs::read_to_string("count")?; // any error converts
///     if text.is_empty() {
///         return cx.skip();
///     }
///     Ok(text.trim().parse()?)
/// }
/// ```
pub struct Failure(BoxError);

impl Failure {
    /// A failure with this message or error.
    pub fn new(cause: impl Into<BoxError>) -> Self {
        Self(cause.into())
    }

    pub(crate) fn skip() -> Self {
        Self(Box::new(Skip(SkipMark)))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

// `Failure` does not implement `Error`, which allows this conversion from every type that does.
impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

/// Whether a factory's error means "no value" instead of a failure.
///
/// The mark is the cause of the error that `skip` returns. So it is also found if the caller's own
/// error type, such as `anyhow::Error`, wraps that error.
pub(crate) fn is_skip(error: &(dyn StdError + Send + Sync + 'static)) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<SkipMark>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[derive(Debug)]
struct Skip(SkipMark);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("skipped")
    }
}

impl StdError for Skip {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

#[derive(Debug)]
struct SkipMark;

impl fmt::Display for SkipMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no value for this key")
    }
}

impl StdError for SkipMark {}

/// A factory that panicked.
#[derive(Debug)]
pub struct FactoryPanic(pub(crate) String);

impl fmt::Display for FactoryPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the factory panicked: {}", self.0)
    }
}

impl StdError for FactoryPanic {}

/// A factory that ran for longer than the factory timeout.
#[derive(Debug)]
pub(crate) struct TimedOut(pub(crate) Duration);

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it did not end within the factory timeout of {:?} and was dropped", self.0)
    }
}

impl StdError for TimedOut {}
