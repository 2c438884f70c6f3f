//! The cache for synchronous code.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::advisor::Advice;
use crate::engine::context::Context;
use crate::engine::nesting::CallStack;
use crate::engine::{CacheValue, FactoryError};
use crate::error::{BoxError, Error, Result, boxed};
use crate::front::cache::Cache;
use crate::front::key::IntoKey;
use crate::front::request::{BoxFuture, Invalidate};
use crate::park;
use crate::stats::{Stats, StoreHealth};

/// A [`Cache`] whose operations block the calling thread; see [`Cache::blocking`].
///
/// It works on any thread that may block: a thread of the application, a thread of
/// `tokio::task::spawn_blocking`, or a worker of a multi-threaded runtime. The runtime in which the
/// cache was built must keep running. Operations with options use [`wait`](Blocking::wait):
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # let runtime = tokio::runtime::Runtime::new().unwrap();
/// # let store = Store::new().l1(Memory::new());
/// # let cache = runtime.block_on(BentoCache::builder().store("m", store).build()).unwrap();
/// let cache = cache.blocking();
/// let user = cache.get_or_set("user:42", |_| Ok::<_, std::io::Error>("ann".to_owned()))?;
/// assert_eq!(user, "ann");
///
/// cache.wait(cache.inner().set("user:43", "bob".to_owned()).ttl("5m"))?;
/// assert_eq!(cache.get("user:43")?, Some("bob".to_owned()));
/// # Ok::<(), bentocache::Error>(())
/// ```
#[derive(Clone)]
pub struct Blocking {
    cache: Cache,
}

impl Cache {
    /// The same store for synchronous code.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let blocking = cache.blocking();
    /// let work = tokio::task::spawn_blocking(move || {
    ///     blocking.set("a", 1)?;
    ///     blocking.get::<i32>("a")
    /// });
    /// assert_eq!(work.await.expect("no panic")?, Some(1));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn blocking(&self) -> Blocking {
        Blocking::new(self.clone())
    }
}

impl Blocking {
    pub(crate) fn new(cache: Cache) -> Self {
        Self { cache }
    }

    /// The asynchronous handle, to create requests for [`wait`](Self::wait).
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.wait(cache.inner().set("user:42", 7).ttl("5m"))?;
    /// # Ok(()) }
    /// ```
    pub fn inner(&self) -> &Cache {
        &self.cache
    }

    /// Blocks until the request ends.
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let user = cache.wait(cache.inner().get::<String>("user:42").grace("1h"))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of the request, and [`Error::BlockingInAsync`] on a thread that drives a
    /// single-threaded runtime; then the request has not run.
    pub fn wait<T>(&self, request: impl IntoFuture<Output = Result<T>>) -> Result<T> {
        let mut began = false;
        let run = || {
            began = true;
            // A driver may need the cache's runtime from its first step on.
            let _context = self.cache.engine.runtime().enter();
            park::block_on(request.into_future())
        };
        let Ok(here) = Handle::try_current() else { return run() };
        // A panic is tokio's only sign that this thread may not block.
        let waited = catch_unwind(AssertUnwindSafe(|| match here.runtime_flavor() {
            RuntimeFlavor::CurrentThread => {
                here.block_on(async {});
                run()
            }
            _ => tokio::task::block_in_place(run),
        }));
        match waited {
            Ok(result) => result,
            Err(panic) if began => resume_unwind(panic),
            Err(_) => Err(Error::BlockingInAsync),
        }
    }

    /// See [`Cache::get`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let user: Option<String> = cache.get("user:42")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get`] and [`wait`](Self::wait), like all operations of this type.
    pub fn get<T: CacheValue>(&self, key: impl IntoKey) -> Result<Option<T>> {
        self.wait(self.cache.get(key))
    }

    /// See [`Cache::get_many`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let users: Vec<Option<String>> = cache.get_many(["user:42", "user:43"])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_many`].
    #[doc(alias("getMany"))]
    pub fn get_many<T: CacheValue>(
        &self,
        keys: impl IntoIterator<Item = impl IntoKey>,
    ) -> Result<Vec<Option<T>>> {
        self.wait(self.cache.get_many(keys))
    }

    /// See [`Cache::get_or_set`]. The factory runs on a thread that may block.
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let page = cache.get_or_set("page", |_| std::fs::read_to_string("page.html"))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_set`].
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
    pub fn get_or_set<T, E>(
        &self,
        key: impl IntoKey,
        factory: impl FnOnce(&Context<T>) -> Result<T, E> + Send + 'static,
    ) -> Result<T>
    where
        T: CacheValue,
        E: FactoryError + Send + 'static,
    {
        self.wait(self.cache.get_or_set(key, factory_on_a_thread(factory)))
    }

    /// See [`Cache::get_or_set_forever`]. The factory runs on a thread that may block.
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let limit = cache.get_or_set_forever("limit", |_| Ok::<_, std::io::Error>(100))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_set`].
    #[doc(alias("getOrSetForever", "remember_forever"))]
    pub fn get_or_set_forever<T, E>(
        &self,
        key: impl IntoKey,
        factory: impl FnOnce(&Context<T>) -> Result<T, E> + Send + 'static,
    ) -> Result<T>
    where
        T: CacheValue,
        E: FactoryError + Send + 'static,
    {
        self.wait(self.cache.get_or_set_forever(key, factory_on_a_thread(factory)))
    }

    /// See [`Cache::get_or_set_scoped`]. The factory runs on this thread and may borrow.
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let rows = vec![1, 2, 3];
    /// let count = cache.get_or_set_scoped("count", |_| Ok::<_, std::io::Error>(rows.len()))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::get_or_set`].
    pub fn get_or_set_scoped<T, E>(
        &self,
        key: impl IntoKey,
        factory: impl FnOnce(&Context<T>) -> Result<T, E> + Send,
    ) -> Result<T>
    where
        T: CacheValue,
        E: FactoryError + Send,
    {
        let key = key.into_key().into_string();
        self.wait(self.cache.get_or_set_scoped(key, |context| async move { factory(&context) }))
    }

    /// See [`Cache::set`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.set("user:42", "ann".to_owned())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set`].
    #[doc(alias("put", "insert"))]
    pub fn set<T: CacheValue>(&self, key: impl IntoKey, value: T) -> Result<()> {
        self.wait(self.cache.set(key, value))
    }

    /// See [`Cache::add`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let was_stored = cache.add("user:42", "ann".to_owned())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::add`].
    #[doc(alias("set_nx", "setnx", "put_if_absent", "insert_if_absent"))]
    pub fn add<T: CacheValue>(&self, key: impl IntoKey, value: T) -> Result<bool> {
        self.wait(self.cache.add(key, value))
    }

    /// See [`Cache::set_many`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.set_many([("a", 1), ("b", 2)])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set`].
    #[doc(alias("setMany", "put_many"))]
    pub fn set_many<T: CacheValue>(
        &self,
        values: impl IntoIterator<Item = (impl IntoKey, T)>,
    ) -> Result<()> {
        self.wait(self.cache.set_many(values))
    }

    /// See [`Cache::set_forever`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.set_forever("limit", 100)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::set`].
    #[doc(alias("setForever"))]
    pub fn set_forever<T: CacheValue>(&self, key: impl IntoKey, value: T) -> Result<()> {
        self.wait(self.cache.set_forever(key, value))
    }

    /// See [`Cache::has`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// if cache.has("user:42")? { /* … */ }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::has`].
    pub fn has(&self, key: impl IntoKey) -> Result<bool> {
        self.wait(self.cache.has(key))
    }

    /// See [`Cache::missing`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// if cache.missing("user:42")? { /* … */ }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::missing`].
    pub fn missing(&self, key: impl IntoKey) -> Result<bool> {
        self.wait(self.cache.missing(key))
    }

    /// See [`Cache::pull`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let token: Option<u64> = cache.pull("token")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::pull`].
    #[doc(alias("take", "get_and_delete"))]
    pub fn pull<T: CacheValue>(&self, key: impl IntoKey) -> Result<Option<T>> {
        self.wait(self.cache.pull(key))
    }

    /// See [`Cache::delete`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let was_there = cache.delete("user:42")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::delete`].
    #[doc(alias("invalidate", "remove", "evict"))]
    pub fn delete(&self, key: impl IntoKey) -> Result<bool> {
        self.wait(self.cache.delete(key))
    }

    /// See [`Cache::delete_many`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let count = cache.delete_many(["user:42", "user:43"])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::delete_many`].
    #[doc(alias("deleteMany", "invalidate", "evict"))]
    pub fn delete_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> Result<u64> {
        self.wait(self.cache.delete_many(keys))
    }

    /// See [`Cache::delete_by_tag`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.delete_by_tag(["users"])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::delete_by_tag`].
    #[doc(alias("deleteByTag", "invalidate"))]
    pub fn delete_by_tag(&self, tags: impl IntoIterator<Item = impl Into<String>>) -> Result<()> {
        self.wait(self.cache.delete_by_tag(tags))
    }

    /// See [`Cache::expire_by_tag`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.expire_by_tag(["users"])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::expire_by_tag`].
    #[doc(alias("expireByTag", "invalidate"))]
    pub fn expire_by_tag(&self, tags: impl IntoIterator<Item = impl Into<String>>) -> Result<()> {
        self.wait(self.cache.expire_by_tag(tags))
    }

    /// See [`Cache::invalidate`]: `request` adds what to invalidate.
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.invalidate(|request| request.keys(["user:42"]).tags(["users"]))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::invalidate`].
    pub fn invalidate<'a>(
        &'a self,
        request: impl FnOnce(Invalidate<'a>) -> Invalidate<'a>,
    ) -> Result<()> {
        self.wait(request(self.cache.invalidate()))
    }

    /// See [`Cache::expire`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.expire("user:42")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::expire`].
    #[doc(alias("invalidate"))]
    pub fn expire(&self, key: impl IntoKey) -> Result<()> {
        self.wait(self.cache.expire(key))
    }

    /// See [`Cache::touch`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let is_there: bool = cache.touch("session:42")?;
    /// let request = cache.inner().touch("session:42").ttl("20m");
    /// let is_there: bool = cache.wait(request)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::touch`].
    pub fn touch(&self, key: impl IntoKey) -> Result<bool> {
        self.wait(self.cache.touch(key))
    }

    /// See [`Cache::touch_many`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let are_there: Vec<bool> = cache.touch_many(["session:42", "session:43"])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::touch_many`].
    #[doc(alias("touchMany"))]
    pub fn touch_many(&self, keys: impl IntoIterator<Item = impl IntoKey>) -> Result<Vec<bool>> {
        self.wait(self.cache.touch_many(keys))
    }

    /// See [`Cache::clear`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.namespace("users").clear()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::clear`].
    #[doc(alias("flush", "invalidate_all"))]
    pub fn clear(&self) -> Result<()> {
        self.wait(self.cache.clear())
    }

    /// See [`Cache::prune`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let removed = cache.prune()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::prune`].
    pub fn prune(&self) -> Result<u64> {
        self.wait(self.cache.prune())
    }

    /// See [`Cache::advice`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) {
    /// cache.advice().iter().for_each(|advice| println!("{advice}"));
    /// # }
    /// ```
    pub fn advice(&self) -> Vec<Advice> {
        self.cache.advice()
    }

    /// See [`Cache::stats`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) {
    /// println!("{} hits", cache.stats().hits());
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.cache.stats()
    }

    /// See [`Cache::health`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// println!("ready: {}", cache.health()?.is_ready());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`wait`](Self::wait): on a thread that must not block.
    pub fn health(&self) -> Result<StoreHealth> {
        self.wait(async { Ok(self.cache.health().await) })
    }

    /// See [`Cache::version`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.version(2).set("ann", 42)?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn version(&self, version: u32) -> Self {
        Self { cache: self.cache.version(version) }
    }

    /// See [`Cache::namespace`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// let users = cache.namespace("users");
    /// users.set("42", "ann".to_owned())?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn namespace(&self, name: impl IntoKey) -> Self {
        Self { cache: self.cache.namespace(name) }
    }

    /// See [`Cache::flush`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.flush()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub fn flush(&self) -> Result<()> {
        self.wait(self.cache.flush())
    }

    /// See [`Cache::disconnect`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// cache.disconnect()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::disconnect`].
    pub fn disconnect(&self) -> Result<()> {
        self.wait(self.cache.disconnect())
    }
}

/// Turns a synchronous factory into an asynchronous one.
fn factory_on_a_thread<T, E>(
    factory: impl FnOnce(&Context<T>) -> Result<T, E> + Send + 'static,
) -> impl FnOnce(Context<T>) -> BoxFuture<Result<T, BoxError>> + Send + 'static
where
    T: CacheValue,
    E: FactoryError + Send + 'static,
{
    move |context| {
        Box::pin(async move {
            let inside = CallStack::current();
            let run = move || inside.run(|| factory(&context).map_err(boxed));
            let run = tokio::task::spawn_blocking(run);
            match run.await {
                Ok(result) => result,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => Err(error.into()),
                },
            }
        })
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blocking").field(&self.cache).finish()
    }
}
