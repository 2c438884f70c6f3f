//! The operations of a [`Cache`]: each returns a request.

use crate::engine::context::{Context, ManyContext};
use crate::engine::{CacheValue, FactoryError};
use crate::front::cache::Cache;
use crate::front::key::IntoKey;
use crate::front::request::{
    Clear, Delete, DeleteByTag, DeleteMany, Expire, ExpireByTag, Get, GetMany, GetOrSet,
    GetOrSetMany, GetOrSetScoped, Has, Missing, Pull, Set, Touch, TouchMany,
};

impl Cache {
    /// Reads the value under the key. Returns `None` if there is no fresh value, and no stale value
    /// with [`grace`](Get::grace) on. A stored null is a value: `Some(None)` for an `Option`.
    ///
    /// A stored value that cannot be read as a `T` is a miss.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let user: Option<String> = cache.get("user:42").await?;
    /// assert_eq!(user, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A bad option, a disconnected cache, or, unless suppressed, a failure of L2.
    pub fn get<'a, T: CacheValue>(&'a self, key: impl IntoKey + 'a) -> Get<'a, T> {
        Get::new(self, key.into_key())
    }

    /// Reads the values under the keys, in their order, with one pass over L1 and one round trip to
    /// L2.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// let values: Vec<Option<i32>> = cache.get_many(["a", "b"]).await?;
    /// assert_eq!(values, [Some(1), None]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias("getMany"))]
    pub fn get_many<T: CacheValue>(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
    ) -> GetMany<'_, T> {
        GetMany::new(self, self.all_keys(keys))
    }

    /// Reads the value under the key, or runs the factory and stores its value.
    ///
    /// Single-flight prevents a cache stampede: however many callers request a key at once, its
    /// factory runs once, and all get its value or its error. Dropping the future of one caller
    /// does not affect the others. With a [`grace`](GetOrSet::grace), a stale value is served if
    /// the factory fails, or is slower than the [`timeout`](GetOrSet::timeout); the factory then
    /// continues in the background.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let user = cache
    ///     .get_or_set("user:42", |_| async {
    ///         Ok::<_, std::io::Error>("ann".to_owned()) // read from a database
    ///     })
    ///     .ttl("10m")
    ///     .grace("6h")
    ///     .await?;
    /// assert_eq!(user, "ann");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Factory`](crate::Error::Factory) with the factory's own error,
    /// [`FactoryTimeout`](crate::Error::FactoryTimeout),
    /// [`HardTimeout`](crate::Error::HardTimeout), [`Skipped`](crate::Error::Skipped) (see
    /// [`optional`](GetOrSet::optional)), or as [`get`](Self::get).
    #[doc(alias(
        "getOrSet",
        "remember",
        "memoize",
        "stampede",
        "single-flight",
        "single_flight",
        "swr",
        "stale-while-revalidate",
        "get_or_insert_with",
        "get_with"
    ))]
    pub fn get_or_set<'a, T, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSet<'a, T, F>
    where
        T: CacheValue,
        F: FnOnce(Context<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: FactoryError,
    {
        GetOrSet::new(self, key.into_key(), factory)
    }

    /// As [`get_or_set`](Self::get_or_set), but stores the value without an expiry, whatever ttl is
    /// set.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let request = cache.get_or_set_forever("limit", |_| async { Ok::<_, std::io::Error>(100) });
    /// assert_eq!(request.await?, 100);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set).
    #[doc(alias("getOrSetForever", "remember_forever"))]
    pub fn get_or_set_forever<'a, T, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSet<'a, T, F>
    where
        T: CacheValue,
        F: FnOnce(Context<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: FactoryError,
    {
        GetOrSet::new(self, key.into_key(), factory).forever()
    }

    /// As [`get_or_set`](Self::get_or_set), for a factory that borrows: it runs in the future of its
    /// caller, not in a task of its own.
    ///
    /// If that future is dropped, the factory is dropped too, and exactly one of the callers that
    /// wait for it runs its own factory instead. So nothing goes on in the background: there is no
    /// soft timeout and no early refresh, and after the [`hard_timeout`](GetOrSetScoped::hard_timeout)
    /// the factory is dropped. A value that the factory has produced is stored in both tiers even if
    /// the caller is dropped then.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let rows = vec![1, 2, 3]; // such as a transaction that the caller holds
    /// let count = cache
    ///     .get_or_set_scoped("count", |_| async { Ok::<_, std::io::Error>(rows.len()) })
    ///     .await?;
    /// assert_eq!(count, 3);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set).
    pub fn get_or_set_scoped<'a, T, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSetScoped<'a, T, F>
    where
        T: CacheValue,
        F: FnOnce(Context<T>) -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        E: FactoryError,
    {
        GetOrSetScoped::new(self, key.into_key(), factory)
    }

    /// Reads the values under the keys, in their order. The factory runs once for all missing keys
    /// and returns their values as a map or as pairs. The result of a key that it leaves out is
    /// `None`.
    ///
    /// The factory may run again for single keys: if another caller was producing their values, and
    /// these were invalidated meanwhile.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let users = cache
    ///     .get_or_set_many(["1", "2"], |cx| async move {
    ///         // One query for all missing keys.
    ///         let rows = cx.keys().iter().map(|key| (key.clone(), format!("user {key}")));
    ///         Ok::<_, std::io::Error>(rows.collect::<Vec<_>>())
    ///     })
    ///     .await?;
    /// assert_eq!(users[1].as_deref(), Some("user 2"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get_or_set`](Self::get_or_set), for the first key that fails.
    #[doc(alias("getOrSetMany"))]
    pub fn get_or_set_many<T, F, Fut, E, I, K>(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
        factory: F,
    ) -> GetOrSetMany<'_, T, F>
    where
        T: CacheValue,
        F: Fn(ManyContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        E: FactoryError,
        I: IntoIterator<Item = (K, T)>,
        K: IntoKey,
    {
        GetOrSetMany::new(self, self.all_keys(keys), factory)
    }

    /// Stores the value under the key.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("user:42", "ann".to_owned()).ttl("10m").tags(["users"]).await?;
    /// assert!(cache.has("user:42").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A bad option or key, a disconnected cache, a value that cannot be encoded, a value that
    /// no tier accepts because of its size, or, unless suppressed, a failure of L2.
    #[doc(alias("put", "insert"))]
    pub fn set<T: CacheValue>(&self, key: impl IntoKey, value: T) -> Set<'_, T> {
        Set::new(self, vec![(self.key(&key.into_key()), value)])
    }

    /// Stores the values under their keys, in one round trip to L2.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set_many([("a", 1), ("b", 2)]).ttl("1h").await?;
    /// assert_eq!(cache.get("b").await?, Some(2));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[doc(alias("setMany", "put_many"))]
    pub fn set_many<T: CacheValue>(
        &self,
        values: impl IntoIterator<Item = (impl IntoKey, T)>,
    ) -> Set<'_, T> {
        let values = values.into_iter().map(|(key, value)| (self.key(&key.into_key()), value));
        Set::new(self, values.collect())
    }

    /// Stores the value under the key without an expiry, whatever ttl is set.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set_forever("limit", 100).await?;
    /// assert_eq!(cache.get("limit").await?, Some(100));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[doc(alias("setForever"))]
    pub fn set_forever<T: CacheValue>(&self, key: impl IntoKey, value: T) -> Set<'_, T> {
        Set::new(self, vec![(self.key(&key.into_key()), value)]).forever()
    }

    /// Whether there is a fresh value under the key. Decodes no value and copies nothing to L1.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// assert!(!cache.has("a").await?);
    /// cache.set("a", 1).await?;
    /// assert!(cache.has("a").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn has(&self, key: impl IntoKey) -> Has<'_> {
        Has::new(self, vec![self.key(&key.into_key())])
    }

    /// Whether there is no fresh value under the key.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// assert!(cache.missing("a").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn missing(&self, key: impl IntoKey) -> Missing<'_> {
        Missing::new(self, vec![self.key(&key.into_key())])
    }

    /// Reads the value under the key and deletes it. If two calls on one L2 are concurrent, only
    /// one gets the value, provided that the driver supports it atomically.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("token", 7).await?;
    /// assert_eq!(cache.pull("token").await?, Some(7));
    /// assert!(cache.missing("token").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias("take", "get_and_delete"))]
    pub fn pull<T: CacheValue>(&self, key: impl IntoKey) -> Pull<'_, T> {
        Pull::new(self, self.key(&key.into_key()))
    }

    /// Deletes the key in both tiers and on all nodes; returns whether it existed.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// assert!(cache.delete("a").await?);
    /// assert!(!cache.delete("a").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias("invalidate", "remove", "evict"))]
    pub fn delete(&self, key: impl IntoKey) -> Delete<'_> {
        Delete::new(self, vec![self.key(&key.into_key())])
    }

    /// Deletes the keys in both tiers and on all nodes; returns how many existed.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// assert_eq!(cache.delete_many(["a", "b"]).await?, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias("deleteMany", "invalidate", "evict"))]
    pub fn delete_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> DeleteMany<'_> {
        DeleteMany::new(self, self.all_keys(keys))
    }

    /// Deletes every value that has one of these tags, in both tiers and on all nodes: no grace
    /// brings it back. The cost does not depend on the number of values. To serve the values as
    /// stale while they are produced anew, use [`expire_by_tag`](Self::expire_by_tag).
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("user:42", 1).tags(["users"]).await?;
    /// cache.delete_by_tag(["users"]).await?;
    /// assert!(cache.missing("user:42").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[doc(alias("deleteByTag", "invalidate"))]
    pub fn delete_by_tag(
        &self,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> DeleteByTag<'_> {
        DeleteByTag::new(self, (self.tag_prefix(), tags.into_iter().map(Into::into).collect()))
    }

    /// Makes every value stale that has one of these tags, in both tiers and on all nodes: it is
    /// served under grace, like a value whose ttl has ended, and is gone without a grace. The cost
    /// does not depend on the number of values.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new()).grace("1h");
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("user:42", 1).tags(["users"]).await?;
    /// cache.expire_by_tag(["users"]).await?;
    /// assert!(cache.missing("user:42").await?);
    /// assert_eq!(cache.get("user:42").await?, Some(1));
    ///
    /// cache.delete_by_tag(["users"]).await?;
    /// assert_eq!(cache.get::<u32>("user:42").await?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set).
    #[doc(alias("expireByTag", "invalidate"))]
    pub fn expire_by_tag(
        &self,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> ExpireByTag<'_> {
        ExpireByTag::new(self, (self.tag_prefix(), tags.into_iter().map(Into::into).collect()))
    }

    /// Makes the key stale in both tiers and on all nodes. It can still be served within the rest
    /// of its grace. A value without a grace is removed.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).grace("1h").await?;
    /// cache.expire("a").await?;
    /// assert_eq!(cache.get::<i32>("a").await?, None);
    /// assert_eq!(cache.get::<i32>("a").grace("1h").await?, Some(1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias("invalidate"))]
    pub fn expire(&self, key: impl IntoKey) -> Expire<'_> {
        Expire::new(self, vec![self.key(&key.into_key())])
    }

    /// Makes the keys stale in both tiers and on all nodes.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set_many([("a", 1), ("b", 2)]).await?;
    /// cache.expire_many(["a", "b"]).await?;
    /// assert!(cache.missing("b").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn expire_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> Expire<'_> {
        Expire::new(self, self.all_keys(keys))
    }

    /// Gives the value under the key another ttl, and another grace, from now, in both tiers and on
    /// all nodes. The value, its tags and its age stay. Returns whether there is a fresh value, as
    /// [`has`](Self::has) does: what has expired, was expired by a call or is invalidated by a tag
    /// stays as it is. With a ttl of zero or less the value is deleted.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("session:42", 7).ttl("20m").await?;
    /// assert!(cache.touch("session:42").ttl("20m").await?);
    /// assert!(!cache.touch("session:43").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get). With suppressed errors of L2, a touch of a value that L1 has waits in
    /// the recovery queue; of a value that L1 does not have, it is the error.
    #[doc(alias("refresh_ttl", "extend", "renew"))]
    pub fn touch(&self, key: impl IntoKey) -> Touch<'_> {
        Touch::new(self, vec![self.key(&key.into_key())])
    }

    /// Gives the values under the keys another ttl; returns for each key whether it has a fresh
    /// value, in the order of the keys. See [`touch`](Self::touch).
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// assert_eq!(cache.touch_many(["a", "b"]).ttl("1h").await?, [true, false]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`touch`](Self::touch).
    #[doc(alias("touchMany"))]
    pub fn touch_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> TouchMany<'_> {
        TouchMany::new(self, self.all_keys(keys))
    }

    /// Removes everything under this handle's prefix and namespace, and nothing else.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let users = cache.namespace("users");
    /// users.set("42", 1).await?;
    /// cache.set("a", 1).await?;
    /// users.clear().await?;
    /// assert!(users.missing("42").await? && cache.has("a").await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get), and a refusal of the L2 driver to clear data that may be foreign.
    #[doc(alias("flush", "invalidate_all"))]
    pub fn clear(&self) -> Clear<'_> {
        Clear::new(self, self.prefix().clone())
    }
}
