//! Handles of a store or of a namespace.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::advisor::Advice;
use crate::engine::{CacheValue, Engine, Key};
use crate::error::Result;
use crate::front::key::IntoKey;
use crate::stats::{Stats, StoreHealth};

/// A handle of a store, or of a namespace in it. It is cheap to clone.
///
/// Every operation returns a request that does nothing until it is awaited. Options are set on the
/// request first. Options that a request does not set come from the store, then from the whole
/// cache.
///
/// A cache works in the tokio runtime that built it. After that runtime has ended, fresh values in
/// L1 can still be read; every other operation returns [`Error::Closed`](crate::Error::Closed).
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// let users = cache.namespace("users");
/// let user = users.get_or_set("42", |_| async { Ok::<_, std::io::Error>("ann".to_owned()) });
/// assert_eq!(user.ttl("5m").await?, "ann");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Cache {
    pub(crate) engine: Arc<Engine>,
    pub(crate) guard: Arc<Guard>,
    /// Prefix and namespaces, each with its colon; `None` for the prefix alone.
    namespaced: Option<Arc<str>>,
}

/// Ends a store's background work when its last handle is dropped. A call holds a clone, which
/// keeps the store alive.
pub(crate) struct Guard(Arc<Engine>);

impl Deref for Guard {
    type Target = Arc<Engine>;

    fn deref(&self) -> &Arc<Engine> {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cache {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { guard: Arc::new(Guard(engine.clone())), engine, namespaced: None }
    }

    /// Removes expired values in tiers that do not do so themselves; returns how many. Applies to
    /// the whole store.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let removed = cache.prune().await?;
    /// assert_eq!(removed, 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A failure of L2.
    pub async fn prune(&self) -> Result<u64> {
        if self.engine.is_off()? {
            return Ok(0);
        }
        self.engine.prune().await
    }

    /// A handle that puts `name:` before its keys. Namespaces nest. The outer handle reads a key of
    /// a namespace as `name:key`.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let users = cache.namespace("users");
    /// users.set("42", 7).await?;
    /// assert_eq!(cache.get("users:42").await?, Some(7));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn namespace(&self, name: impl IntoKey) -> Self {
        let name = name.into_key();
        let name = name.trim_end_matches(':');
        let mut cache = self.clone();
        if !name.is_empty() {
            cache.namespaced = Some(format!("{}{name}:", self.prefix()).into());
        }
        cache
    }

    /// A handle for values of this version, whose keys in both tiers are its own. Raise the version
    /// by one whenever the type of the values changes, so that the processes of the old deploy and
    /// of the new one do not read and overwrite each other's values. The guide "Deploying a changed
    /// struct" shows how.
    ///
    /// Version 1 has the same keys as a handle without a version. A handle of version n that deletes,
    /// expires or sets a key also invalidates that key in the versions n-1 and n+1. So does every other
    /// handle of the same process. Tags and `clear` apply to all versions.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let users = cache.namespace("users").version(2);
    /// users.set("42", "ann, 33".to_owned()).await?;
    /// assert_eq!(cache.namespace("users").get::<String>("42").await?, None);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn version(&self, version: u32) -> Self {
        let mut cache = self.clone();
        cache.namespaced = Some(self.engine.version(self.prefix(), version).into());
        cache
    }

    /// The name of the store.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// assert_eq!(cache.name(), "m");
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> &str {
        &self.engine.name
    }

    /// A snapshot of the counters and gauges of the whole store, whatever the namespace of this
    /// handle. It takes a few microseconds, and slows no other call.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// cache.get::<i32>("a").await?;
    /// let stats = cache.stats();
    /// assert_eq!((stats.l1_hits, stats.writes), (1, 1));
    /// assert_eq!(stats.l1.expect("an L1").entries, 1);
    /// # Ok(()) }
    /// ```
    #[doc(alias("metrics"))]
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// The configurations of the store that work and are probably wrong, in the order in which they
    /// were found: when the cache was built, or since. Each is also logged once, as a warning. The
    /// guide `docs/advisor.md` lists them.
    /// [`BentoCache::advice`](crate::BentoCache::advice) has those of all stores.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// let store = Store::new().l1(Memory::new()).ttl("60d");
    /// let cache = BentoCache::builder().store("m", store).build().await?;
    /// assert_eq!(cache.store("m")?.advice()[0].code, "ttl-above-tag-ttl");
    /// # Ok(()) }
    /// ```
    #[doc(alias("lint", "warnings"))]
    pub fn advice(&self) -> Vec<Advice> {
        self.engine.advisor.advice()
    }

    /// The health of the store: reads a key of L2, for at most the hard `l2_timeout` (5 seconds if
    /// that is none), and reports that round trip with the state of breaker, recovery queue and
    /// bus. The round trip passes an open breaker, and closes it if it succeeds.
    /// [`BentoCache::health`](crate::BentoCache::health) asks all stores.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let health = cache.store("m")?.health().await;
    /// assert!(health.is_open && health.is_ready());
    /// # Ok(()) }
    /// ```
    #[doc(alias("ping"))]
    pub async fn health(&self) -> StoreHealth {
        self.engine.health().await
    }

    /// Waits until every change so far has reached L2 and the other processes: writes whose callers
    /// did not wait ([`l2_write_in_background`](crate::Store::l2_write_in_background)), and changes
    /// that failed, which are tried once more. It takes at most 11 seconds.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).l2_write_in_background(true).await?;
    /// cache.flush().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Unflushed`](crate::Error::Unflushed) if some changes are not there yet. They go on in the
    /// background. [`Closed`](crate::Error::Closed) if the store was ended before.
    pub async fn flush(&self) -> Result<()> {
        if self.engine.is_off()? {
            return Ok(());
        }
        self.engine.flush().await
    }

    /// Ends the store: background work gets up to 5 seconds to finish, failed changes are retried
    /// once more, the drivers are closed, and the [snapshot](crate::Memory::snapshot) of L1, if there
    /// is one, is written. Later calls fail with
    /// [`Closed`](crate::Error::Closed).
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.disconnect().await?;
    /// assert!(cache.get::<i32>("a").await.is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Closed`](crate::Error::Closed) if the store was ended before,
    /// [`Unflushed`](crate::Error::Unflushed) if some changes did not reach L2 or the other nodes,
    /// or the error of a driver that could not be closed in order.
    pub async fn disconnect(&self) -> Result<()> {
        self.engine.disconnect().await
    }

    /// The prefix of every key: store prefix and namespaces, each with its colon.
    pub(crate) fn prefix(&self) -> &Arc<str> {
        self.namespaced.as_ref().unwrap_or(&self.engine.root)
    }

    /// The prefix of every tag.
    pub(crate) fn tag_prefix(&self) -> Arc<str> {
        match self.engine.tag_prefix(self.prefix()) {
            Cow::Borrowed(same) if same == &**self.prefix() => self.prefix().clone(),
            other => other.into(),
        }
    }

    /// The namespaces of every key, each with its colon.
    #[inline]
    fn namespace_prefix(&self) -> &str {
        self.namespaced.as_deref().map_or("", |prefix| &prefix[self.engine.root.len()..])
    }

    /// The fresh value of L1 under the key, and its creation time if it is due for early refresh.
    #[inline(always)]
    pub(crate) fn hit<T: CacheValue>(
        &self,
        key: &str,
        early_refresh: f32,
    ) -> Option<(T, Option<u64>)> {
        self.engine.hit(self.namespace_prefix(), key, early_refresh)
    }

    pub(crate) fn key(&self, name: &str) -> Key {
        self.engine.key(self.prefix(), name)
    }

    pub(super) fn all_keys(&self, names: impl IntoIterator<Item = impl IntoKey>) -> Vec<Key> {
        names.into_iter().map(|name| self.key(&name.into_key())).collect()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("store", &self.engine.name)
            .field("prefix", self.prefix())
            .finish_non_exhaustive()
    }
}
