//! Handles with one value type.

use std::fmt;
use std::marker::PhantomData;

use crate::advisor::Advice;
use crate::engine::context::{Context, ManyContext};
use crate::engine::{CacheValue, FactoryError};
use crate::error::Result;
use crate::front::cache::Cache;
use crate::front::key::IntoKey;
use crate::front::request::{
    Add, Clear, Delete, DeleteByTag, DeleteMany, Expire, ExpireByTag, Get, GetMany, GetOrSet,
    GetOrSetMany, GetOrSetScoped, Has, Inspect, Invalidate, Keys, Missing, Pull, Set, Touch,
    TouchMany,
};
use crate::stats::{Stats, StoreHealth};

/// A [`Cache`] whose values all have the type `T`.
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let bento = BentoCache::builder().store("m", store).build().await?;
/// let ages = bento.namespace("ages").typed::<u32>();
/// ages.set("ann", 42).await?;
/// assert_eq!(ages.get("ann").await?, Some(42));
/// assert!(ages.delete("ann").await?);
/// # Ok(()) }
/// ```
pub struct Typed<T> {
    cache: Cache,
    value: PhantomData<fn() -> T>,
}

impl Cache {
    /// A handle whose values all have one type, so that calls need not name the type.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let ages = cache.typed::<u32>();
    /// ages.set("ann", 42).await?;
    /// assert_eq!(ages.get("ann").await?, Some(42));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn typed<T: CacheValue>(&self) -> Typed<T> {
        Typed::new(self.clone())
    }
}

impl<T: CacheValue> Typed<T> {
    pub(crate) fn new(cache: Cache) -> Self {
        Self { cache, value: PhantomData }
    }

    /// The handle without a value type.
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.cache().delete("ann").await?;
    /// # Ok(()) }
    /// ```
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// See [`Cache::get`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let age: Option<u32> = ages.get("ann").await?;
    /// # Ok(()) }
    /// ```
    pub fn get<'a>(&'a self, key: impl IntoKey + 'a) -> Get<'a, T> {
        self.cache.get(key)
    }

    /// See [`Cache::get_many`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let found: Vec<Option<u32>> = ages.get_many(["ann", "bob"]).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("getMany"))]
    pub fn get_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> GetMany<'_, T> {
        self.cache.get_many(keys)
    }

    /// See [`Cache::get_or_set`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let request = ages.get_or_set("ann", |_| async { Ok::<_, std::io::Error>(42) });
    /// let age = request.ttl("1h").await?;
    /// # Ok(()) }
    /// ```
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
    pub fn get_or_set<'a, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSet<'a, T, F>
    where
        F: FnOnce(Context<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: FactoryError,
    {
        self.cache.get_or_set(key, factory)
    }

    /// See [`Cache::get_or_set_forever`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let request = ages.get_or_set_forever("ann", |_| async { Ok::<_, std::io::Error>(42) });
    /// let age = request.await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("getOrSetForever", "remember_forever"))]
    pub fn get_or_set_forever<'a, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSet<'a, T, F>
    where
        F: FnOnce(Context<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: FactoryError,
    {
        self.cache.get_or_set_forever(key, factory)
    }

    /// See [`Cache::get_or_set_scoped`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let known = vec![42];
    /// let request = ages.get_or_set_scoped("ann", |_| async { Ok::<_, std::io::Error>(known[0]) });
    /// let age = request.await?;
    /// # Ok(()) }
    /// ```
    pub fn get_or_set_scoped<'a, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSetScoped<'a, T, F>
    where
        F: FnOnce(Context<T>) -> Fut + Send + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        E: FactoryError,
    {
        self.cache.get_or_set_scoped(key, factory)
    }

    /// See [`Cache::get_or_set_many`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let found = ages
    ///     .get_or_set_many(["ann", "bob"], |cx| async move {
    ///         let rows = cx.keys().iter().map(|name| (name.clone(), 42));
    ///         Ok::<_, std::io::Error>(rows.collect::<Vec<_>>())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("getOrSetMany"))]
    pub fn get_or_set_many<F, Fut, E, I, K>(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
        factory: F,
    ) -> GetOrSetMany<'_, T, F>
    where
        F: Fn(ManyContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        E: FactoryError,
        I: IntoIterator<Item = (K, T)>,
        K: IntoKey,
    {
        self.cache.get_or_set_many(keys, factory)
    }

    /// See [`Cache::set`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.set("ann", 42).ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("put", "insert"))]
    pub fn set(&self, key: impl IntoKey, value: T) -> Set<'_, T> {
        self.cache.set(key, value)
    }

    /// See [`Cache::add`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let was_stored = ages.add("ann", 42).ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("set_nx", "setnx", "put_if_absent", "insert_if_absent"))]
    pub fn add(&self, key: impl IntoKey, value: T) -> Add<'_, T> {
        self.cache.add(key, value)
    }

    /// See [`Cache::inspect`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// println!("{:?}", ages.inspect("ann").await?);
    /// # Ok(()) }
    /// ```
    pub fn inspect(&self, key: impl IntoKey) -> Inspect<'_> {
        self.cache.inspect(key)
    }

    /// See [`Cache::keys`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let names = ages.keys("").all().await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("scan", "iter"))]
    pub fn keys(&self, start: impl IntoKey) -> Keys {
        self.cache.keys(start)
    }

    /// See [`Cache::set_many`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.set_many([("ann", 42), ("bob", 43)]).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("setMany", "put_many"))]
    pub fn set_many(&self, values: impl IntoIterator<Item = (impl IntoKey, T)>) -> Set<'_, T> {
        self.cache.set_many(values)
    }

    /// See [`Cache::set_forever`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.set_forever("ann", 42).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("setForever"))]
    pub fn set_forever(&self, key: impl IntoKey, value: T) -> Set<'_, T> {
        self.cache.set_forever(key, value)
    }

    /// See [`Cache::pull`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let age: Option<u32> = ages.pull("ann").await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("take", "get_and_delete"))]
    pub fn pull(&self, key: impl IntoKey) -> Pull<'_, T> {
        self.cache.pull(key)
    }

    /// See [`Cache::advice`].
    ///
    /// ```
    /// # fn example(ages: bentocache::Typed<u32>) {
    /// ages.advice().iter().for_each(|advice| println!("{advice}"));
    /// # }
    /// ```
    pub fn advice(&self) -> Vec<Advice> {
        self.cache.advice()
    }

    /// See [`Cache::stats`].
    ///
    /// ```
    /// # fn example(ages: bentocache::Typed<u32>) {
    /// println!("{} hits", ages.stats().hits());
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// See [`Cache::health`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) {
    /// println!("ready: {}", ages.health().await.is_ready());
    /// # }
    /// ```
    pub async fn health(&self) -> StoreHealth {
        self.cache.health().await
    }

    /// See [`Cache::version`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.version(2).set("ann", 42).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn version(&self, version: u32) -> Self {
        Self::new(self.cache.version(version))
    }

    /// See [`Cache::namespace`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.namespace("guests").set("ann", 42).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn namespace(&self, name: impl IntoKey) -> Self {
        Self::new(self.cache.namespace(name))
    }

    /// See [`Cache::has`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let is_there: bool = ages.has("ann").await?;
    /// # Ok(()) }
    /// ```
    pub fn has(&self, key: impl IntoKey) -> Has<'_> {
        self.cache.has(key)
    }

    /// See [`Cache::missing`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let is_missing: bool = ages.missing("ann").await?;
    /// # Ok(()) }
    /// ```
    pub fn missing(&self, key: impl IntoKey) -> Missing<'_> {
        self.cache.missing(key)
    }

    /// See [`Cache::delete`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let was_there: bool = ages.delete("ann").await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("invalidate", "remove", "evict"))]
    pub fn delete(&self, key: impl IntoKey) -> Delete<'_> {
        self.cache.delete(key)
    }

    /// See [`Cache::delete_many`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let count: u64 = ages.delete_many(["ann", "bob"]).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("deleteMany"))]
    pub fn delete_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> DeleteMany<'_> {
        self.cache.delete_many(keys)
    }

    /// See [`Cache::delete_by_tag`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.delete_by_tag(["guests"]).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("deleteByTag"))]
    pub fn delete_by_tag(
        &self,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> DeleteByTag<'_> {
        self.cache.delete_by_tag(tags)
    }

    /// See [`Cache::expire_by_tag`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.expire_by_tag(["guests"]).await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("expireByTag"))]
    pub fn expire_by_tag(
        &self,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> ExpireByTag<'_> {
        self.cache.expire_by_tag(tags)
    }

    /// See [`Cache::invalidate`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.invalidate().keys(["ann"]).tags(["guests"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn invalidate(&self) -> Invalidate<'_> {
        self.cache.invalidate()
    }

    /// See [`Cache::expire`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.expire("ann").await?;
    /// # Ok(()) }
    /// ```
    pub fn expire(&self, key: impl IntoKey) -> Expire<'_> {
        self.cache.expire(key)
    }

    /// See [`Cache::expire_many`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.expire_many(["ann", "bob"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn expire_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> Expire<'_> {
        self.cache.expire_many(keys)
    }

    /// See [`Cache::touch`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let is_there: bool = ages.touch("ann").ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    pub fn touch(&self, key: impl IntoKey) -> Touch<'_> {
        self.cache.touch(key)
    }

    /// See [`Cache::touch_many`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let are_there: Vec<bool> = ages.touch_many(["ann", "bob"]).ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("touchMany"))]
    pub fn touch_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> TouchMany<'_> {
        self.cache.touch_many(keys)
    }

    /// See [`Cache::clear`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// ages.clear().await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("flush", "invalidate_all"))]
    pub fn clear(&self) -> Clear<'_> {
        self.cache.clear()
    }

    /// See [`Cache::prune`].
    ///
    /// ```
    /// # async fn example(ages: bentocache::Typed<u32>) -> Result<(), bentocache::Error> {
    /// let removed: u64 = ages.prune().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A failure of L2.
    pub async fn prune(&self) -> Result<u64> {
        self.cache.prune().await
    }
}

impl<T> Clone for Typed<T> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Typed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Typed").field(&self.cache).finish()
    }
}
