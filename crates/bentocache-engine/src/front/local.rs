//! Handles for values that stay in this process.

use std::fmt;
use std::marker::PhantomData;

use crate::engine::FactoryError;
use crate::engine::context::{Context, ManyContext};
use crate::error::Result;
use crate::front::cache::Cache;
use crate::front::kept::InProcess;
use crate::front::key::IntoKey;
use crate::front::request::{
    Add, Clear, Delete, DeleteByTag, DeleteMany, Expire, ExpireByTag, Get, GetMany, GetOrSet,
    GetOrSetMany, Has, Inspect, Invalidate, Missing, Pull, Set, Touch, TouchMany,
};

/// A [`Cache`] for values of the type `T` that are never encoded: they are kept in L1 only, and `T`
/// needs no serde. Single-flight, ttl, grace, timeouts and tags work as for other values, and the
/// bus invalidates them on the other nodes. L2 is never asked, except for the states of tags.
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// /// Not serializable.
/// #[derive(Clone)]
/// struct Template(std::sync::Arc<dyn Fn(&str) -> String + Send + Sync>);
///
/// let templates = cache.namespace("templates").local::<Template>();
/// let compile = |_| async {
///     Ok::<_, std::io::Error>(Template(std::sync::Arc::new(|name| format!("Hello {name}"))))
/// };
/// let template = templates.get_or_set("greeting", compile).ttl("10m").await?;
/// assert_eq!(template.0("Ada"), "Hello Ada");
/// # Ok(()) }
/// ```
///
/// A key has one value: the same key in [`cache`](Self::cache) or under another type reads as a
/// miss, and writing it replaces the local value.
pub struct Local<T> {
    cache: Cache,
    value: PhantomData<fn() -> T>,
}

impl Cache {
    /// A handle for values that are never encoded and stay in this process, such as compiled
    /// templates, connections or other types without serde.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let started = cache.local::<std::time::Instant>();
    /// started.set("job:1", std::time::Instant::now()).await?;
    /// assert!(started.get("job:1").await?.is_some());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn local<T: Clone + Send + Sync + 'static>(&self) -> Local<T> {
        Local { cache: self.clone(), value: PhantomData }
    }
}

impl<T: Clone + Send + Sync + 'static> Local<T> {
    /// The handle for other values.
    ///
    /// ```
    /// # fn example(jobs: bentocache::Local<std::time::Instant>) {
    /// assert_eq!(jobs.cache().name(), "m");
    /// # }
    /// ```
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// See [`Cache::namespace`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.namespace("nightly").set("1", 7).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn namespace(&self, name: impl IntoKey) -> Self {
        Self { cache: self.cache.namespace(name), value: PhantomData }
    }

    /// See [`Cache::get`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let job: Option<u32> = jobs.get("1").await?;
    /// # Ok(()) }
    /// ```
    pub fn get<'a>(&'a self, key: impl IntoKey + 'a) -> Get<'a, T, InProcess> {
        Get::new(&self.cache, key.into_key())
    }

    /// See [`Cache::get_many`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let found: Vec<Option<u32>> = jobs.get_many(["1", "2"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
    ) -> GetMany<'_, T, InProcess> {
        GetMany::new(&self.cache, self.cache.all_keys(keys))
    }

    /// See [`Cache::get_or_set`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let job = jobs.get_or_set("1", |_| async { Ok::<_, std::io::Error>(7) }).ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    pub fn get_or_set<'a, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSet<'a, T, F, InProcess>
    where
        F: FnOnce(Context<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: FactoryError,
    {
        GetOrSet::new(&self.cache, key.into_key(), factory)
    }

    /// See [`Cache::get_or_set_forever`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let job = jobs.get_or_set_forever("1", |_| async { Ok::<_, std::io::Error>(7) }).await?;
    /// # Ok(()) }
    /// ```
    pub fn get_or_set_forever<'a, F, Fut, E>(
        &'a self,
        key: impl IntoKey + 'a,
        factory: F,
    ) -> GetOrSet<'a, T, F, InProcess>
    where
        F: FnOnce(Context<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        E: FactoryError,
    {
        GetOrSet::new(&self.cache, key.into_key(), factory).forever()
    }

    /// See [`Cache::get_or_set_many`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let load = |cx: bentocache::ManyContext| async move {
    ///     let all = cx.keys().iter().map(|key| (key.clone(), 7));
    ///     Ok::<_, std::io::Error>(all.collect::<Vec<_>>())
    /// };
    /// let found: Vec<Option<u32>> = jobs.get_or_set_many(["1", "2"], load).await?;
    /// # Ok(()) }
    /// ```
    pub fn get_or_set_many<F, Fut, E, I, N>(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
        factory: F,
    ) -> GetOrSetMany<'_, T, F, InProcess>
    where
        F: Fn(ManyContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
        E: FactoryError,
        I: IntoIterator<Item = (N, T)>,
        N: IntoKey,
    {
        GetOrSetMany::new(&self.cache, self.cache.all_keys(keys), factory)
    }

    /// See [`Cache::set`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.set("1", 7).ttl("1h").tags(["jobs"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn set(&self, key: impl IntoKey, value: T) -> Set<'_, T, InProcess> {
        Set::new(&self.cache, vec![(self.cache.key(&key.into_key()), value)])
    }

    /// See [`Cache::add`]: exactly one of several concurrent calls in this process gets `true`.
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let was_stored = jobs.add("1", 7).ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    #[doc(alias("put_if_absent", "insert_if_absent"))]
    pub fn add(&self, key: impl IntoKey, value: T) -> Add<'_, T, InProcess> {
        Add::new(&self.cache, self.cache.key(&key.into_key()), value)
    }

    /// See [`Cache::inspect`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// println!("{:?}", jobs.inspect("1").skip_l2_read(true).await?);
    /// # Ok(()) }
    /// ```
    pub fn inspect(&self, key: impl IntoKey) -> Inspect<'_> {
        self.cache.inspect(key)
    }

    /// See [`Cache::set_many`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.set_many([("1", 7), ("2", 8)]).await?;
    /// # Ok(()) }
    /// ```
    pub fn set_many(
        &self,
        values: impl IntoIterator<Item = (impl IntoKey, T)>,
    ) -> Set<'_, T, InProcess> {
        let key = |key: &str| self.cache.key(key);
        let values = values.into_iter().map(|(name, value)| (key(&name.into_key()), value));
        Set::new(&self.cache, values.collect())
    }

    /// See [`Cache::set_forever`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.set_forever("1", 7).await?;
    /// # Ok(()) }
    /// ```
    pub fn set_forever(&self, key: impl IntoKey, value: T) -> Set<'_, T, InProcess> {
        self.set(key, value).forever()
    }

    /// See [`Cache::pull`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let job: Option<u32> = jobs.pull("1").await?;
    /// # Ok(()) }
    /// ```
    pub fn pull(&self, key: impl IntoKey) -> Pull<'_, T, InProcess> {
        Pull::new(&self.cache, self.cache.key(&key.into_key()))
    }

    /// See [`Cache::has`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let is_there: bool = jobs.has("1").await?;
    /// # Ok(()) }
    /// ```
    pub fn has(&self, key: impl IntoKey) -> Has<'_> {
        self.cache.has(key).skip_l2_read(true)
    }

    /// See [`Cache::missing`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let is_missing: bool = jobs.missing("1").await?;
    /// # Ok(()) }
    /// ```
    pub fn missing(&self, key: impl IntoKey) -> Missing<'_> {
        self.cache.missing(key).skip_l2_read(true)
    }

    /// See [`Cache::delete`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let was_there: bool = jobs.delete("1").await?;
    /// # Ok(()) }
    /// ```
    pub fn delete(&self, key: impl IntoKey) -> Delete<'_> {
        self.cache.delete(key).skip_l2_write(true)
    }

    /// See [`Cache::delete_many`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let count: u64 = jobs.delete_many(["1", "2"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn delete_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> DeleteMany<'_> {
        self.cache.delete_many(keys).skip_l2_write(true)
    }

    /// See [`Cache::expire`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.expire("1").grace("1h").await?;
    /// # Ok(()) }
    /// ```
    pub fn expire(&self, key: impl IntoKey) -> Expire<'_> {
        self.cache.expire(key).skip_l2_write(true)
    }

    /// See [`Cache::expire_many`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.expire_many(["1", "2"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn expire_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> Expire<'_> {
        self.cache.expire_many(keys).skip_l2_write(true)
    }

    /// See [`Cache::touch`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let is_there: bool = jobs.touch("1").ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    pub fn touch(&self, key: impl IntoKey) -> Touch<'_> {
        self.cache.touch(key).skip_l2_write(true)
    }

    /// See [`Cache::touch_many`].
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// let are_there: Vec<bool> = jobs.touch_many(["1", "2"]).ttl("1h").await?;
    /// # Ok(()) }
    /// ```
    pub fn touch_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> TouchMany<'_> {
        self.cache.touch_many(keys).skip_l2_write(true)
    }

    /// See [`Cache::delete_by_tag`]. It applies to all values of the store with these tags.
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.delete_by_tag(["jobs"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn delete_by_tag(
        &self,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> DeleteByTag<'_> {
        self.cache.delete_by_tag(tags)
    }

    /// See [`Cache::expire_by_tag`]. It applies to all values of the store with these tags.
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.expire_by_tag(["jobs"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn expire_by_tag(
        &self,
        tags: impl IntoIterator<Item = impl Into<String>>,
    ) -> ExpireByTag<'_> {
        self.cache.expire_by_tag(tags)
    }

    /// See [`Cache::invalidate`]. It also deletes the keys in L2.
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.invalidate().keys(["1"]).tags(["jobs"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn invalidate(&self) -> Invalidate<'_> {
        self.cache.invalidate()
    }

    /// See [`Cache::clear`]. It applies to all values of the namespace.
    ///
    /// ```
    /// # async fn example(jobs: bentocache::Local<u32>) -> Result<(), bentocache::Error> {
    /// jobs.namespace("nightly").clear().await?;
    /// # Ok(()) }
    /// ```
    pub fn clear(&self) -> Clear<'_> {
        self.cache.clear()
    }
}

impl<T> Clone for Local<T> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Local<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").field(&self.cache).finish()
    }
}
