//! The errors of the cache.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{DriverError, ErrorKind, InvalidOption};

/// The result of every operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The key of a failed operation. Code can read it; error texts show it only where
/// [`log_keys`](crate::Store::log_keys) allows.
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// let error = cache.get_or_set("user:42", |_| async { Err::<u8, _>("down") }).await.unwrap_err();
/// assert_eq!(error.key(), Some("user:42"));
/// assert!(!error.to_string().contains("user:42"));
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ErrorKey {
    key: Arc<str>,
    is_shown: bool,
}

impl ErrorKey {
    pub(crate) fn new(key: impl Into<Arc<str>>, is_shown: bool) -> Self {
        Self { key: key.into(), is_shown }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.key
    }
}

impl Deref for ErrorKey {
    type Target = str;

    fn deref(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for ErrorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_shown { write!(f, "{:?}", self.key) } else { f.write_str("(hidden)") }
    }
}

impl fmt::Debug for ErrorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

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
        key: ErrorKey,
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
        key: ErrorKey,
        /// The factory's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The factory did not end within the factory timeout. It was dropped and stores nothing.
    FactoryTimeout {
        /// The key.
        key: ErrorKey,
        /// The timeout.
        after: Duration,
    },
    /// The hard timeout passed. The factory continues, and its value will be stored.
    HardTimeout {
        /// The key.
        key: ErrorKey,
        /// The timeout.
        after: Duration,
    },
    /// The factory of another caller for the key did not end within the lock timeout, and this call
    /// has neither a stale value nor its own factory to fall back on.
    LockTimeout {
        /// The key.
        key: ErrorKey,
        /// The timeout.
        after: Duration,
    },
    /// The factory called [`skip`](crate::Context::skip): there is no value, and nothing was
    /// stored.
    Skipped {
        /// The key.
        key: ErrorKey,
    },
    /// The factory called [`gone`](crate::Context::gone): the source no longer has a value, and the
    /// stale value was removed.
    Gone {
        /// The key.
        key: ErrorKey,
    },
    /// A factory requested the key that it is producing.
    Reentrant {
        /// The key.
        key: ErrorKey,
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
        failed: Arc<[(ErrorKey, Error)]>,
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
        key: ErrorKey,
        /// The codec's error.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The value is larger than L1 accepts, and there is no L2 to keep it: it was stored nowhere.
    TooLarge {
        /// The key.
        key: ErrorKey,
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
        key: ErrorKey,
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
    pub fn factory<E: StdError + Send + Sync + 'static>(&self) -> Option<&E> {
        let Self::Factory { source, .. } = self else { return None };
        causes(source.as_ref()).find_map(|cause| {
            let marked = match cause.downcast_ref() {
                Some(Mark::NotFound(marked)) => find(marked.as_ref()),
                _ => None,
            };
            marked.or_else(|| find(cause))
        })
    }

    /// The factory's own error, if it has this type or was caused by an error of this type; else
    /// this error again. All callers that waited for a factory share its error, so an error that
    /// is not `Clone` can only be borrowed: see [`factory`](Self::factory).
    ///
    /// ```
    /// # use bentocache::Error;
    /// # #[derive(Debug, Clone, PartialEq)] enum DbError { NoRow, Cache(String) }
    /// # impl std::fmt::Display for DbError {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
    /// # }
    /// # impl std::error::Error for DbError {}
    /// fn own(error: Error) -> DbError {
    ///     error.into_factory().unwrap_or_else(|other| DbError::Cache(other.to_string()))
    /// }
    /// ```
    ///
    /// # Errors
    /// This error, if no factory's error of that type caused it.
    pub fn into_factory<E: StdError + Clone + Send + Sync + 'static>(self) -> Result<E> {
        self.factory().cloned().ok_or(self)
    }

    /// Whether the factory reported that there is no value: by [`skip`](crate::Context::skip), by
    /// [`gone`](crate::Context::gone) or by [`Failure::not_found`].
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Skipped { .. } | Self::Gone { .. } => true,
            Self::Factory { source, .. } => {
                matches!(mark_of(source.as_ref()), Some(Mark::NotFound(_)))
            }
            _ => false,
        }
    }

    /// Whether the factory skipped the key.
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
            | Self::Gone { key }
            | Self::Reentrant { key }
            | Self::Encode { key, .. }
            | Self::TooLarge { key, .. }
            | Self::InvalidKey { key, .. }
            | Self::Abandoned { key } => Some(key),
            Self::Keys { failed, .. } => match &**failed {
                [(key, _)] => Some(key),
                _ => None,
            },
            _ => None,
        }
    }

    /// The error of a failed factory: the factory's own error, or a timeout.
    pub(crate) fn of_factory(key: ErrorKey, source: Arc<dyn StdError + Send + Sync>) -> Self {
        if let Some(TimedOut(after)) = source.downcast_ref() {
            return Self::FactoryTimeout { key, after: *after };
        }
        match mark_of(source.as_ref()) {
            Some(Mark::Skip) => Self::Skipped { key },
            Some(Mark::Gone) => Self::Gone { key },
            Some(Mark::NotFound(_)) | None => Self::Factory { key, source },
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
            Self::InvalidKey { key, reason } => write!(f, "key {key}: {reason}"),
            Self::TagTooLong { tag, driver, most, needs } => write!(
                f,
                "tag {tag:?} is too long for L2 ({driver}): its marker needs a key of \
                 {needs} bytes, and the limit is {most}; use a shorter tag, such as a hash"
            ),
            Self::Factory { key, source } => write!(
                f,
                "the factory for key {key} failed, and no stale value could be served: {source}"
            ),
            Self::FactoryTimeout { key, after } => write!(
                f,
                "the factory for key {key} did not end within the factory timeout of {after:?} \
                 and was dropped; no stale value could be served"
            ),
            Self::HardTimeout { key, after } => write!(
                f,
                "no value for key {key} within the hard timeout of {after:?}; \
                 the factory goes on in the background"
            ),
            Self::LockTimeout { key, after } => write!(
                f,
                "another caller's factory for key {key} did not end within the lock timeout of \
                 {after:?}"
            ),
            Self::Skipped { key } => {
                write!(f, "the factory for key {key} skipped it; use `.optional()` to get `None`")
            }
            Self::Gone { key } => write!(
                f,
                "the source no longer has a value for key {key}; use `.optional()` to get `None`"
            ),
            Self::Reentrant { key } => write!(
                f,
                "the factory for key {key} asked the cache for the same key, which would wait \
                 for itself; use another key or compute the value directly"
            ),
            Self::L2 { operation, driver, source } if source.is_transient() => write!(
                f,
                "L2 ({driver}) failed to {operation}; set `suppress_l2_errors(true)` \
                 to go on without it"
            ),
            Self::L2 { operation, driver, source } => {
                write!(f, "L2 ({driver}) refused to {operation}: {source}")
            }
            Self::Keys { failed, of } => {
                write!(f, "{} of {of} keys failed, the others are done: ", failed.len())?;
                for (i, (key, error)) in failed.iter().take(3).enumerate() {
                    write!(f, "{}{key}: {error}", if i == 0 { "" } else { "; " })?;
                }
                if failed.len() > 3 { write!(f, "; and {} more", failed.len() - 3) } else { Ok(()) }
            }
            Self::Unflushed { changes, messages } => write!(
                f,
                "the cache was disconnected before {changes} changes reached L2 and \
                 {messages} keys were announced on the bus; other nodes may serve old values \
                 until these expire"
            ),
            Self::Encode { key, .. } => {
                write!(f, "the value for key {key} cannot be encoded for L2")
            }
            Self::TooLarge { key, size, limit, option } => {
                write!(f, "the value for key {key} was not stored: it is larger than L1 accepts")?;
                if let Some(limit) = limit {
                    write!(f, " ({size} bytes of at most {limit})")?;
                }
                match option {
                    Some(option) => write!(f, "; raise `{option}`, or add an L2"),
                    None => f.write_str("; raise its limit, or add an L2"),
                }
            }
            Self::Closed { reason } => fmt::Display::fmt(reason, f),
            Self::Abandoned { key } => write!(
                f,
                "the work for key {key} was ended by a shutdown of the cache or its runtime"
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

    /// The source has no such value: an answer, which the log does not report as a fault. A stale
    /// value is not served, but removed in every tier and on all nodes. The callers get
    /// [`Error::Factory`] with this cause.
    ///
    /// ```
    /// use bentocache::{Context, Failure};
    ///
    /// async fn load(cx: Context<String>) -> Result<String, Failure> {
    ///     std::fs::read_to_string("page.html").map_err(|error| match error.kind() {
    ///         std::io::ErrorKind::NotFound => Failure::not_found(error),
    ///         _ => Failure::from(error),
    ///     })
    /// }
    /// ```
    pub fn not_found(cause: impl Into<BoxError>) -> Self {
        Self::marked(Mark::NotFound(cause.into()))
    }

    pub(crate) fn marked(mark: Mark) -> Self {
        Self(Box::new(Marked(mark)))
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

/// What a factory's error means, other than a failure.
#[derive(Debug)]
pub(crate) enum Mark {
    /// There is no value, and nothing changes.
    Skip,
    /// The source has no value any more.
    Gone,
    /// As `Gone`, but the callers get this error.
    NotFound(BoxError),
}

/// The mark of a factory's error.
///
/// The mark is the cause of the error that `skip` returns. So it is also found if the caller's own
/// error type, such as `anyhow::Error`, wraps that error.
pub(crate) fn mark_of<'a>(error: &'a (dyn StdError + Send + Sync + 'static)) -> Option<&'a Mark> {
    causes(error).find_map(|cause| cause.downcast_ref::<Mark>())
}

/// This error as that type. `anyhow` hides the type of its errors from everyone else.
fn find<'a, E: StdError + Send + Sync + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a E> {
    #[cfg(feature = "anyhow")]
    if let Some(Anyhow(error)) = error.downcast_ref() {
        return error.downcast_ref();
    }
    error.downcast_ref()
}

/// Boxes the error of a factory.
pub(crate) fn boxed<E: Into<BoxError> + 'static>(error: E) -> BoxError {
    #[cfg(feature = "anyhow")]
    {
        let mut error = Some(error);
        let any: &mut dyn std::any::Any = &mut error;
        if let Some(Some(error)) = any.downcast_mut().map(Option::take) {
            return Box::new(Anyhow(error));
        }
        // Only an error of `anyhow` is taken.
        error.map_or_else(|| "no error".into(), Into::into)
    }
    #[cfg(not(feature = "anyhow"))]
    error.into()
}

/// An error of `anyhow`, which can be asked for the error that it was made from.
#[cfg(feature = "anyhow")]
struct Anyhow(anyhow::Error);

#[cfg(feature = "anyhow")]
impl fmt::Debug for Anyhow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(feature = "anyhow")]
impl fmt::Display for Anyhow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(feature = "anyhow")]
impl StdError for Anyhow {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// An error and its causes.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let next = |error: &&'a (dyn StdError + 'static)| (*error).source();
    std::iter::successors(Some(error), next)
}

#[derive(Debug)]
struct Marked(Mark);

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Mark::Skip => "skipped",
            Mark::Gone => "gone",
            Mark::NotFound(_) => "not found",
        })
    }
}

impl StdError for Marked {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip => f.write_str("there is no value for this key"),
            Self::Gone => f.write_str("the source no longer has a value for this key"),
            Self::NotFound(cause) => fmt::Display::fmt(cause, f),
        }
    }
}

impl StdError for Mark {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Skip | Self::Gone => None,
            // The text of the cause is this mark's own.
            Self::NotFound(cause) => cause.source(),
        }
    }
}

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
