//! L2: shared between processes, asynchronous.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use crate::{DriverError, ErrorKind};

/// A boxed stream of keys, see [`L2Driver::keys`].
pub type KeyStream = Pin<Box<dyn Stream<Item = Result<String, DriverError>> + Send>>;

/// A boxed stream of link reports, see [`L2Driver::link`].
pub type LinkStream = Pin<Box<dyn Stream<Item = Link> + Send>>;

/// A change of a driver's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The connection is gone.
    Lost,
    /// The connection is back.
    Restored,
}

/// One write of [`L2Driver::set_many`].
#[derive(Debug, Clone)]
pub struct Write<'a> {
    /// The complete key.
    pub key: &'a str,
    /// The bytes to store.
    pub value: Bytes,
    /// How long to keep them; `None` for ever.
    pub ttl: Option<Duration>,
}

/// What an L2 store can do natively. The conformance suite adapts to it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Capabilities {
    /// Two concurrent [`pull`](L2Driver::pull)s never both return the value.
    pub atomic_pull: bool,
    /// [`delete_if`](L2Driver::delete_if), [`update`](L2Driver::update) and
    /// [`insert`](L2Driver::insert) compare and act in one step.
    pub atomic_compare: bool,
    /// The store removes expired values by itself, so [`prune`](L2Driver::prune) has nothing to do.
    pub native_expiry: bool,
    /// The finest expiry the store keeps. A value is readable no longer than this past its end.
    pub ttl_precision: Duration,
    /// Values larger than this many bytes are refused.
    pub max_value: Option<usize>,
    /// Keys longer than this many bytes are refused.
    pub max_key: Option<usize>,
    /// [`clear`](L2Driver::clear) works. Where it does not, the engine gives each entry a hidden
    /// tag per namespace and clears by invalidating these.
    pub clear: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            atomic_pull: false,
            atomic_compare: false,
            native_expiry: false,
            ttl_precision: Duration::from_millis(1),
            max_value: None,
            max_key: None,
            clear: true,
        }
    }
}

impl Capabilities {
    /// Sets [`atomic_pull`](Self::atomic_pull).
    #[must_use]
    pub fn with_atomic_pull(mut self) -> Self {
        self.atomic_pull = true;
        self
    }

    /// Sets [`atomic_compare`](Self::atomic_compare).
    #[must_use]
    pub fn with_atomic_compare(mut self) -> Self {
        self.atomic_compare = true;
        self
    }

    /// Sets [`native_expiry`](Self::native_expiry).
    #[must_use]
    pub fn with_native_expiry(mut self) -> Self {
        self.native_expiry = true;
        self
    }

    /// Sets [`ttl_precision`](Self::ttl_precision).
    #[must_use]
    pub fn with_ttl_precision(mut self, precision: Duration) -> Self {
        self.ttl_precision = precision;
        self
    }

    /// Sets [`max_value`](Self::max_value), in bytes.
    #[must_use]
    pub fn with_max_value(mut self, bytes: usize) -> Self {
        self.max_value = Some(bytes);
        self
    }

    /// Sets [`max_key`](Self::max_key), in bytes.
    #[must_use]
    pub fn with_max_key(mut self, bytes: usize) -> Self {
        self.max_key = Some(bytes);
        self
    }

    /// Unsets [`clear`](Self::clear), for stores that cannot find their keys by prefix.
    #[must_use]
    pub fn without_clear(mut self) -> Self {
        self.clear = false;
        self
    }
}

/// An L2 store: opaque bytes under complete keys, with an expiry.
///
/// Keys arrive complete (prefix and namespaces included), may hold any Unicode, and must be kept
/// exactly: case-sensitive, no two keys may meet, and nothing in a key may act as a pattern or a
/// path. A key or value beyond a limit of the store is refused with [`ErrorKind::TooLarge`] and a
/// message that names the limit. Values are opaque, also empty ones.
///
/// Write methods as plain `async fn`. Four are required; the others have bodies that are correct
/// but slower than what most stores can do.
///
/// The engine bounds each call with a timeout and drops the future when it passes, so every
/// method must be safe to abandon at any `await`.
pub trait L2Driver: Send + Sync + 'static {
    /// A short name for errors and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// What the store can do natively.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Called once when the cache is built: check settings, create a table, start own tasks.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] makes the build fail. Any other error is logged and the cache starts
    /// without the store, which must go on trying by itself.
    fn connect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }

    /// The bytes under the key, unless they have expired.
    ///
    /// # Errors
    /// When the store cannot tell. A corrupt or foreign record is `None`, not an error.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, DriverError>> + Send;

    /// Stores the bytes, replacing what is there and its expiry; `None` keeps them for ever.
    ///
    /// # Errors
    /// When the bytes were not, or not certainly, stored.
    fn set(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Deletes the keys and returns how many were there. An empty list does nothing.
    ///
    /// # Errors
    /// When not all are certainly gone.
    fn delete(&self, keys: &[&str]) -> impl Future<Output = Result<u64, DriverError>> + Send;

    /// Deletes every key that starts with `prefix`, taken literally, and no other.
    ///
    /// With an empty prefix: everything that is provably this store's own; where that cannot be
    /// told from foreign data, refuse with [`ErrorKind::Refused`] and say what to configure.
    ///
    /// A store that cannot find its keys by prefix says so in
    /// [`Capabilities::clear`], and returns [`ErrorKind::Unsupported`]. The engine then never
    /// calls it.
    ///
    /// # Errors
    /// When not all are certainly gone, or refused. A store of several [parts](L2Driver::part)
    /// clears those that it can reach, and names the others in the error
    /// ([`DriverError::with_parts`]).
    fn clear(&self, prefix: &str) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Does what a [`clear`](L2Driver::clear) left undone because these [parts](L2Driver::part) of
    /// the store failed. The other parts are better left alone, because something new may be there;
    /// by default they are cleared once more.
    ///
    /// # Errors
    /// As `clear`.
    fn clear_parts(
        &self,
        prefix: &str,
        parts: &[u32],
    ) -> impl Future<Output = Result<(), DriverError>> + Send {
        let _ = parts;
        self.clear(prefix)
    }

    /// [`get`](L2Driver::get) for many keys, in their order, in as few round trips as possible.
    ///
    /// # Errors
    /// As `get`; all or nothing.
    fn get_many(
        &self,
        keys: &[&str],
    ) -> impl Future<Output = Result<Vec<Option<Bytes>>, DriverError>> + Send {
        async move {
            let mut values = Vec::with_capacity(keys.len());
            for key in keys {
                values.push(self.get(key).await?);
            }
            Ok(values)
        }
    }

    /// [`set`](L2Driver::set) for many keys, in as few round trips as possible.
    ///
    /// # Errors
    /// As `set`; some of the writes may have been done.
    fn set_many(
        &self,
        writes: &[Write<'_>],
    ) -> impl Future<Output = Result<(), DriverError>> + Send {
        async move {
            for write in writes {
                self.set(write.key, write.value.clone(), write.ttl).await?;
            }
            Ok(())
        }
    }

    /// Stores the bytes if nothing is under the key; returns whether it did.
    ///
    /// # Errors
    /// As `set`.
    fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send {
        async move {
            if self.get(key).await?.is_some() {
                return Ok(false);
            }
            self.set(key, value, ttl).await?;
            Ok(true)
        }
    }

    /// The bytes under the key, which is deleted.
    ///
    /// # Errors
    /// As `get` and `delete`.
    fn pull(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, DriverError>> + Send {
        async move {
            let value = self.get(key).await?;
            if value.is_some() {
                self.delete(&[key]).await?;
            }
            Ok(value)
        }
    }

    /// Replaces the bytes of a key, if exactly `expected` is under it, and keeps its expiry;
    /// returns whether it did. `remaining` is what the caller knows to be left of the expiry, for
    /// stores that cannot keep it themselves.
    ///
    /// # Errors
    /// As `set`.
    fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send {
        async move {
            match self.get(key).await? {
                Some(current) if current == expected => {
                    self.set(key, value, remaining).await?;
                    Ok(true)
                }
                _ => Ok(false),
            }
        }
    }

    /// Deletes the key if exactly these bytes are under it; returns whether it did.
    ///
    /// # Errors
    /// As `delete`.
    fn delete_if(
        &self,
        key: &str,
        value: &[u8],
    ) -> impl Future<Output = Result<bool, DriverError>> + Send {
        async move {
            match self.get(key).await? {
                Some(current) if current == value => Ok(self.delete(&[key]).await? > 0),
                _ => Ok(false),
            }
        }
    }

    /// Removes expired values and returns how many, where the store does not do so by itself.
    ///
    /// # Errors
    /// When it could not look at everything.
    fn prune(&self) -> impl Future<Output = Result<u64, DriverError>> + Send {
        async { Ok(0) }
    }

    /// The unexpired keys that start with `prefix`, taken literally, in any order.
    fn keys(&self, prefix: &str) -> KeyStream {
        let _ = prefix;
        let name = self.name();
        Box::pin(Once(Some(Err(DriverError::new(
            ErrorKind::Unsupported,
            format!("the {name} driver cannot list its keys"),
        )))))
    }

    /// Reports on the connection, if the driver knows; lets writes that failed be repeated at once
    /// when it is back. Asked for once.
    fn link(&self) -> Option<LinkStream> {
        None
    }

    /// The part of the store that has the key, where the store consists of parts that fail one by
    /// one, such as the shards of a cluster. `None`, the default, is a store without parts.
    ///
    /// The engine keeps a circuit breaker for each part, and splits calls for many keys by part, so
    /// that a dead part costs nothing but its own keys. Number the parts from 0 upwards: parts
    /// whose numbers differ by a multiple of 64 share a breaker. A part keeps its number when
    /// another server takes its place. The engine asks before each call, so the answer must not
    /// wait for anything.
    fn part(&self, key: &str) -> Option<u32> {
        let _ = key;
        None
    }

    /// What calls of this driver are waiting for, or were until a moment ago: a connection that
    /// cannot be opened, a service that throttles, a pool without a free connection. `None`, the
    /// default, if the driver knows of nothing.
    ///
    /// The engine asks when it cuts a call that took too long, and puts the answer into the error:
    /// a part of a sentence that says what is wrong and what an operator can do. A driver that
    /// waits or tries again inside of a call can keep its last reason in a
    /// [`LastTrouble`](crate::LastTrouble).
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends what the driver runs and holds. Later calls may fail with [`ErrorKind::Closed`].
    ///
    /// # Errors
    /// When something could not be ended in order; it is ended all the same.
    fn disconnect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }
}

/// A stream of at most one item.
struct Once<T>(Option<T>);

impl<T: Unpin> Stream for Once<T> {
    type Item = T;

    fn poll_next(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        std::task::Poll::Ready(self.0.take())
    }
}
