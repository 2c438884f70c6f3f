//! Stores a value only where none is fresh.

use std::marker::PhantomData;

use crate::engine::change::Change;
use crate::engine::{CacheValue, Key};
use crate::error::Result;
use crate::front::cache::Cache;
use crate::front::call_options::{CallOptions, setters};
use crate::front::kept::{Encoded, Kept};
use crate::front::key::IntoKey;
use crate::front::span::in_span;

/// Stores a value only if nothing fresh is there; see [`Cache::add`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let is_first = cache.add("mail:42", true).ttl("1h").tags(["mails"]).await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct Add<'a, T, K = Encoded> {
    cache: &'a Cache,
    key: Key,
    value: T,
    options: CallOptions<'a>,
    kept: PhantomData<fn() -> K>,
}

impl<'a, T, K> Add<'a, T, K> {
    pub(super) fn new(cache: &'a Cache, key: Key, value: T) -> Self {
        Self { cache, key, value, options: CallOptions::default(), kept: PhantomData }
    }

    setters!(ttl l1_ttl l2_ttl grace jitter l2_timeout skip_l1_read skip_l1_write skip_bus_notify tags);
}

impl<T: 'static, K: Kept<T>> IntoFuture for Add<'_, T, K> {
    type Output = Result<bool>;
    type IntoFuture = Change<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, key, value, mut options, .. } = self;
        let (policy, tags, checked) =
            (options.policy(cache, K::ONLY_L1), options.tags(), options.check());
        let (store, value, span) = (cache.guard.clone(), K::hold(value), cache.span("add", &key));
        let add = async move {
            checked?;
            if store.is_off()? {
                return Ok(false);
            }
            store.add(&key, value, &tags, &policy).await
        };
        cache.engine.to_the_end(in_span(span, add))
    }
}

impl Cache {
    /// Stores the value only if nothing fresh is under the key; returns whether it did. A stale
    /// value, also one that a tag invalidated, is replaced. With a ttl of 0, nothing is stored.
    ///
    /// Of several concurrent calls on one L2, in any processes, exactly one gets `true`, if the
    /// driver compares and acts in one step
    /// ([`Capabilities::atomic_compare`](bentocache_driver::Capabilities::atomic_compare)). All
    /// drivers of this project do, except that the file driver does so on one machine only. With
    /// another driver, two calls of one moment may both get `true`. In a store with an L1 only,
    /// exactly one call of this process does.
    ///
    /// If L2 cannot be asked, the call fails, whatever
    /// [`suppress_l2_errors`](crate::Store::suppress_l2_errors) says. After such an error the value
    /// may be stored for a moment; it is removed when L2 works again. Only `add` looks before it
    /// stores: a `set`, or a factory that was already running on another node, replaces the value.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// if cache.add("reminder:42", "sent".to_owned()).ttl("1d").await? {
    ///     // The first one in a day: send it.
    /// }
    /// assert!(!cache.add("reminder:42", "sent".to_owned()).await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set), and every failure of L2.
    #[doc(alias("set_nx", "setnx", "put_if_absent", "insert_if_absent"))]
    pub fn add<T: CacheValue>(&self, key: impl IntoKey, value: T) -> Add<'_, T> {
        Add::new(self, self.key(&key.into_key()), value)
    }
}
