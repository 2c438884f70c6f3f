//! L2: the tier that processes share, asynchronous.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use crate::{DriverError, ErrorKind, Finding};

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
    /// How long to keep them; `None` means no expiry.
    pub ttl: Option<Duration>,
}

/// The native capabilities of an L2 store. The conformance suite adapts to them.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Capabilities {
    /// Two concurrent [`pull`](L2Driver::pull)s never both return the value.
    pub atomic_pull: bool,
    /// [`delete_if`](L2Driver::delete_if), [`update`](L2Driver::update),
    /// [`insert`](L2Driver::insert) and [`touch`](L2Driver::touch) compare and act in one step.
    pub atomic_compare: bool,
    /// The store removes expired values itself, so [`prune`](L2Driver::prune) does nothing.
    pub native_expiry: bool,
    /// The finest expiry the store keeps. A value is readable no longer than this past its end.
    pub ttl_precision: Duration,
    /// Values larger than this many bytes are refused.
    pub max_value: Option<usize>,
    /// Keys longer than this many bytes are refused.
    pub max_key: Option<usize>,
    /// [`clear`](L2Driver::clear) works. If it does not, the engine gives each entry a hidden tag
    /// per namespace level and clears by invalidating these tags.
    pub clear: bool,
    /// The store is memory, a file or a directory of this machine, not a server that other machines
    /// and programs use. The cache gives less advice then.
    pub local: bool,
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
            local: false,
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

    /// Sets [`local`](Self::local).
    #[must_use]
    pub fn with_local(mut self) -> Self {
        self.local = true;
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
/// Keys are complete (prefix and namespaces included) and may contain any Unicode. A store must
/// keep them exactly: case-sensitive, without collisions, and without interpreting any part of a
/// key as a pattern or a path. A key or value beyond a limit of the store is refused with
/// [`ErrorKind::TooLarge`] and a message that names the limit. Values are opaque and may be empty.
///
/// Implement the methods as plain `async fn`. Four are required. The others have default bodies,
/// which are correct but slower than what most stores can do.
///
/// The engine limits each call with a timeout and drops its future at the limit, so every method
/// must be safe to cancel at any `await`.
pub trait L2Driver: Send + Sync + 'static {
    /// A short name for errors and logs, such as `redis`.
    fn name(&self) -> &'static str;

    /// The native capabilities of the store.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Called once when the cache is built: check settings, create a table, start background tasks.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] makes the build fail. Any other error is logged and the cache starts
    /// without the store, which must keep trying to connect by itself.
    fn connect(&self) -> impl Future<Output = Result<(), DriverError>> + Send {
        async { Ok(()) }
    }

    /// The bytes under the key, unless they have expired.
    ///
    /// # Errors
    /// If the store cannot tell. A corrupt or foreign record is `None`, not an error.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Bytes>, DriverError>> + Send;

    /// Stores the bytes, and replaces the existing bytes and their expiry. `None` means no expiry.
    ///
    /// # Errors
    /// If the bytes were not stored, or may not have been.
    fn set(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Deletes the keys and returns how many existed. An empty list does nothing.
    ///
    /// # Errors
    /// If some keys were not deleted, or may not have been.
    fn delete(&self, keys: &[&str]) -> impl Future<Output = Result<u64, DriverError>> + Send;

    /// Deletes every key that starts with `prefix`, taken literally, and no other.
    ///
    /// With an empty prefix: deletes everything that provably belongs to this store. If that cannot
    /// be told from foreign data, the driver refuses with [`ErrorKind::Refused`] and says what to
    /// configure.
    ///
    /// A store that cannot find its keys by prefix says so in [`Capabilities::clear`], and returns
    /// [`ErrorKind::Unsupported`]. The engine then never calls this method.
    ///
    /// # Errors
    /// If some keys were not deleted, or may not have been, or if the driver refused. A store of
    /// several [parts](L2Driver::part) clears the parts that it can reach, and names the others in
    /// the error ([`DriverError::with_parts`]).
    fn clear(&self, prefix: &str) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Completes a [`clear`](L2Driver::clear) that these [parts](L2Driver::part) of the store
    /// failed to do. The other parts should not be cleared again, because they may have new values;
    /// the default body clears them once more.
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

    /// Stores the bytes if the key does not exist; returns whether it did.
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

    /// Returns the bytes under the key and deletes the key.
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

    /// Compare-and-swap: replaces the bytes of a key if they equal `expected`, and keeps the
    /// expiry; returns whether it did. `remaining` is the rest of the expiry as far as the caller
    /// knows, for stores that cannot keep it themselves.
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

    /// Gives the key a new expiry, from now, and keeps its bytes. `None` means no expiry. Returns
    /// whether the key is there: a missing or expired key stays missing.
    ///
    /// The default body removes the bytes and stores them again, because it must not write over
    /// newer bytes. It is not one step: a key that is deleted at that moment may come back. So a
    /// driver that declares [`Capabilities::atomic_compare`] needs a method of its own.
    ///
    /// ```
    /// # async fn example(driver: impl bentocache_driver::L2Driver)
    /// #     -> Result<(), bentocache_driver::DriverError> {
    /// use std::time::Duration;
    ///
    /// let is_there = driver.touch("app:session", Some(Duration::from_secs(600))).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As `set`.
    fn touch(
        &self,
        key: &str,
        ttl: Option<Duration>,
    ) -> impl Future<Output = Result<bool, DriverError>> + Send {
        async move {
            let Some(value) = self.get(key).await? else { return Ok(false) };
            if self.delete_if(key, &value).await? {
                self.insert(key, value, ttl).await?;
                return Ok(true);
            }
            // Newer bytes have an expiry of their own.
            Ok(self.get(key).await?.is_some())
        }
    }

    /// Deletes the key if its bytes equal these; returns whether it did.
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

    /// Removes expired values if the store does not do so itself; returns how many.
    ///
    /// # Errors
    /// If it could not scan everything.
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

    /// Reports changes of the connection, if the driver knows them. When the connection is back,
    /// the engine replays failed changes at once. Called once.
    fn link(&self) -> Option<LinkStream> {
        None
    }

    /// The part of the store that has the key, for a store of parts that fail independently, such
    /// as the shards of a cluster. `None`, the default, is a store without parts.
    ///
    /// The engine has one circuit breaker per part, and splits calls for many keys by part, so that
    /// a failing part affects only its own keys. Number the parts from 0 upwards: parts whose
    /// numbers differ by a multiple of 64 share a breaker. A part keeps its number when another
    /// server replaces it. The engine calls this before each call, so it must not wait for
    /// anything.
    fn part(&self, key: &str) -> Option<u32> {
        let _ = key;
        None
    }

    /// The reason why calls of this driver wait at present, or waited until a moment ago: a
    /// connection that cannot be opened, a service that throttles, a pool without a free
    /// connection. `None`, the default, if the driver knows of none.
    ///
    /// The engine calls this when a call exceeds its limit, and puts the answer into the error. The
    /// answer is a part of a sentence that says what is wrong and what an operator can do. A driver
    /// that waits or retries inside a call can keep its last reason in a
    /// [`LastTrouble`](crate::LastTrouble).
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What tells this store from every other one, such as the server's address and the database,
    /// without a login. Two drivers with the same identity see the same keys. `None`, the default,
    /// if the driver cannot tell. The cache warns when two stores share an L2 and a prefix.
    ///
    /// ```
    /// # use bentocache_driver::{DriverError, L2Driver};
    /// # use bytes::Bytes;
    /// # use std::time::Duration;
    /// struct Shelf {
    ///     path: String,
    /// }
    ///
    /// impl L2Driver for Shelf {
    ///     fn identity(&self) -> Option<String> {
    ///         Some(self.path.clone())
    ///     }
    /// #   fn name(&self) -> &'static str { "shelf" }
    /// #   async fn get(&self, _: &str) -> Result<Option<Bytes>, DriverError> { Ok(None) }
    /// #   async fn set(&self, _: &str, _: Bytes, _: Option<Duration>) -> Result<(), DriverError> { Ok(()) }
    /// #   async fn delete(&self, _: &[&str]) -> Result<u64, DriverError> { Ok(0) }
    /// #   async fn clear(&self, _: &str) -> Result<(), DriverError> { Ok(()) }
    ///     // …
    /// }
    /// ```
    fn identity(&self) -> Option<String> {
        None
    }

    /// Settings of the server or of this driver that work and are probably wrong, for the cache's
    /// list of advice. Called after [`connect`](L2Driver::connect), and again when the
    /// [link](L2Driver::link) is restored. A question that the server does not answer, for example
    /// for lack of a right, has no finding.
    fn findings(&self) -> impl Future<Output = Vec<Finding>> + Send {
        async { Vec::new() }
    }

    /// Ends the driver's tasks and connections. Later calls may fail with [`ErrorKind::Closed`].
    ///
    /// # Errors
    /// If a part could not be closed in order; it is closed nevertheless.
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
