//! Requests: every operation returns one, and awaiting it runs the operation. Options are setters
//! on the request. Options that are not set come from the store, then from the whole cache; the
//! documentation of each option names its default. An invalid [`TimeSpan`](crate::TimeSpan) is the error of the
//! awaited call.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use crate::engine::context::{Context, ManyContext};
use crate::engine::factory::{Factory, FactoryOfMany, FactoryOfOne};
use crate::engine::fetch::{FetchMany, FetchRequest, Source, Sourced};
use crate::engine::{FactoryError, Key};
use crate::error::{Error, Result, boxed};
use crate::front::cache::Cache;
use crate::front::call_options::{CallOption, CallOptions, setters};
use crate::front::kept::{Encoded, Kept};
use crate::front::key::{IntoKey, KeyText};
use crate::front::span::in_span;
use crate::tags::TagChange;

pub use crate::engine::change::Change;
pub use crate::front::add::Add;
pub use crate::front::inspect::Inspect;
pub use crate::front::invalidate::Invalidate;
pub use crate::front::keys::{BlockingKeys, Keys};
pub use crate::front::scoped::GetOrSetScoped;
pub use crate::front::touch::{Touch, TouchMany};

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The future of a read. A hit in L1 is ready at once and allocates nothing.
#[must_use = "futures do nothing unless awaited"]
pub struct Fetch<T> {
    /// `None` after it was returned.
    hit: Option<T>,
    run: Option<BoxFuture<Result<T>>>,
}

impl<T> Fetch<T> {
    #[inline(always)]
    fn hit(value: T) -> Self {
        Self { hit: Some(value), run: None }
    }

    #[inline(always)]
    fn run(future: BoxFuture<Result<T>>) -> Self {
        Self { hit: None, run: Some(future) }
    }
}

// Only the box is pinned, never the value.
impl<T> Unpin for Fetch<T> {}

impl<T> Future for Fetch<T> {
    type Output = Result<T>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<T>> {
        if let Some(value) = self.hit.take() {
            return Poll::Ready(Ok(value));
        }
        // A second poll after a hit has no value to return.
        self.run.as_mut().map_or(Poll::Pending, |run| run.as_mut().poll(cx))
    }
}

/// Reads a value; see [`Cache::get`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let user = cache.get::<String>("user:42").grace("1h").await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct Get<'a, T, K = Encoded> {
    cache: &'a Cache,
    key: KeyText<'a>,
    options: CallOptions<'a>,
    value: PhantomData<fn() -> (T, K)>,
}

impl<'a, T, K> Get<'a, T, K> {
    pub(crate) fn new(cache: &'a Cache, key: KeyText<'a>) -> Self {
        Self { cache, key, options: CallOptions::default(), value: PhantomData }
    }

    setters!(grace l1_ttl l2_timeout suppress_l2_errors skip_l1_read skip_l2_read skip_l1_write);
}

impl<T: 'static, K: Kept<T>> IntoFuture for Get<'_, T, K> {
    type Output = Result<Option<T>>;
    type IntoFuture = Fetch<Option<T>>;

    #[inline(always)]
    fn into_future(self) -> Self::IntoFuture {
        if self.options.on_hit(self.cache.engine.policy()).0
            && let Some((value, _)) = self.cache.hit(&self.key, 0.0)
        {
            return Fetch::hit(Some(K::value(value)));
        }
        Fetch::run(self.miss())
    }
}

impl<T: 'static, K: Kept<T>> Get<'_, T, K> {
    /// Returns a type that fits into registers, so that a hit is constructed in place.
    #[cold]
    #[inline(never)]
    fn miss(mut self) -> BoxFuture<Result<Option<T>>> {
        let (cache, key) = (self.cache, self.cache.key(&self.key));
        let (policy, checked) = (self.options.policy(cache, K::ONLY_L1), self.options.check());
        let (store, span) = (cache.guard.clone(), cache.span("get", &key));
        let read = async move {
            checked?;
            Ok(store.get(&key, &policy).await?.map(K::value))
        };
        in_span(span, read)
    }
}

/// Reads many values; see [`Cache::get_many`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let users = cache.get_many::<String>(["user:42", "user:43"]).skip_l2_read(true).await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct GetMany<'a, T, K = Encoded> {
    cache: &'a Cache,
    keys: Vec<Key>,
    options: CallOptions<'a>,
    value: PhantomData<fn() -> (T, K)>,
}

impl<'a, T, K> GetMany<'a, T, K> {
    pub(crate) fn new(cache: &'a Cache, keys: Vec<Key>) -> Self {
        Self { cache, keys, options: CallOptions::default(), value: PhantomData }
    }

    setters!(grace l1_ttl l2_timeout suppress_l2_errors skip_l1_read skip_l2_read skip_l1_write);
}

impl<T: 'static, K: Kept<T>> IntoFuture for GetMany<'_, T, K> {
    type Output = Result<Vec<Option<T>>>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, keys, mut options, .. } = self;
        let (policy, checked) = (options.policy(cache, K::ONLY_L1), options.check());
        let (store, span) = (cache.guard.clone(), cache.span_many("get_many"));
        let read = async move {
            checked?;
            let values = store.get_many(&keys, &policy).await?;
            Ok(values.into_iter().map(|value| value.map(K::value)).collect())
        };
        in_span(span, read)
    }
}

/// Reads a value or runs the factory; see [`Cache::get_or_set`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let user = cache
///     .get_or_set("user:42", |_| async { Ok::<_, std::io::Error>("ann".to_owned()) })
///     .ttl("10m")
///     .grace("6h")
///     .timeout("200ms")
///     .hard_timeout("2s")
///     .tags(["users"])
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct GetOrSet<'a, T, F, K = Encoded> {
    cache: &'a Cache,
    key: KeyText<'a>,
    factory: F,
    options: CallOptions<'a>,
    value: PhantomData<fn() -> (T, K)>,
}

impl<'a, T, F, K> GetOrSet<'a, T, F, K> {
    pub(crate) fn new(cache: &'a Cache, key: KeyText<'a>, factory: F) -> Self {
        Self { cache, key, factory, options: CallOptions::default(), value: PhantomData }
    }

    setters!(
        ttl l1_ttl l2_ttl grace grace_backoff timeout hard_timeout lock_timeout factory_timeout
        early_refresh jitter l2_timeout suppress_l2_errors force_fresh skip_l1_read skip_l1_write
        skip_l2_write skip_l2_read l2_write_in_background skip_bus_notify announce_fills
        on_factory_error stale_if expected_errors tags sliding
    );

    pub(crate) fn forever(mut self) -> Self {
        self.options.push(CallOption::Forever);
        self
    }

    /// Returns `None` instead of an error when the factory calls [`skip`](Context::skip).
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let user = cache
    ///     .get_or_set("user:42", |cx| async move { cx.skip::<String>() })
    ///     .optional()
    ///     .await?;
    /// assert_eq!(user, None);
    /// # Ok(()) }
    /// ```
    pub fn optional(self) -> GetOrSetOptional<'a, T, F, K> {
        GetOrSetOptional(self)
    }

    /// Also returns where the value came from.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Source, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let request = || cache.get_or_set("a", |_| async { Ok::<_, std::io::Error>(1) });
    /// assert_eq!(request().with_source().await?, (1, Source::Factory));
    /// assert_eq!(request().with_source().await?, (1, Source::L1));
    /// # Ok(()) }
    /// ```
    pub fn with_source(self) -> GetOrSetWithSource<'a, T, F, K> {
        GetOrSetWithSource(self)
    }
}

impl<T, F, K, Fut, E> IntoFuture for GetOrSet<'_, T, F, K>
where
    T: Clone + Send + Sync + 'static,
    K: Kept<T>,
    F: FnOnce(Context<T>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    E: FactoryError,
{
    type Output = Result<T>;
    type IntoFuture = Fetch<T>;

    #[inline(always)]
    fn into_future(self) -> Self::IntoFuture {
        if let Some((value, due)) = self.hit() {
            if let Some(created_at) = due {
                self.refresh(created_at);
            }
            return Fetch::hit(value);
        }
        Fetch::run(self.miss(|(value, _)| value))
    }
}

impl<T: 'static, F, K: Kept<T>> GetOrSet<'_, T, F, K> {
    /// The fresh value of L1, and its creation time if it is due for early refresh.
    #[inline(always)]
    fn hit(&self) -> Option<(T, Option<u64>)> {
        let (may_hit, early_refresh) = self.options.on_hit(self.cache.engine.policy());
        if !may_hit {
            return None;
        }
        let (value, due) = self.cache.hit(&self.key, early_refresh)?;
        Some((K::value(value), due))
    }
}

/// The code of a miss, which a hit does not need.
impl<T, F, K, Fut, E> GetOrSet<'_, T, F, K>
where
    T: Clone + Send + Sync + 'static,
    K: Kept<T>,
    F: FnOnce(Context<T>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    E: FactoryError,
{
    #[cold]
    #[inline(never)]
    fn miss<R: 'static>(mut self, result: fn(Sourced<T>) -> R) -> BoxFuture<Result<R>> {
        let (cache, checked) = (self.cache, self.options.check());
        let (key, request) = self.request(None);
        let (store, span) = (cache.guard.clone(), cache.span("get_or_set", &key));
        let read = async move {
            checked?;
            let (value, source) = store.get_or_set(key, request).await?;
            Ok(result((K::value(value), source)))
        };
        in_span(span, read)
    }

    #[cold]
    #[inline(never)]
    fn refresh(self, created_at: u64) {
        let cache = self.cache;
        let (key, request) = self.request(Some(created_at));
        cache.engine.refresh(key, request);
    }

    fn request(self, refresh_of: Option<u64>) -> (Key, FetchRequest<'static, K::Held>) {
        let Self { cache, key, factory, options, .. } = self;
        let factory: FactoryOfOne<'static, K::Held> = Box::new(move |context| {
            let produced = factory(context.map(K::value));
            Box::pin(async move { produced.await.map(K::hold).map_err(boxed) })
        });
        let request = FetchRequest {
            prefix: cache.tag_prefix(),
            policy: options.policy(cache, K::ONLY_L1),
            tags: options.tags(),
            hooks: options.hooks(cache),
            factory: Factory::One(factory),
            refresh_of,
        };
        (cache.key(&key), request)
    }
}

/// As [`GetOrSet`], but returns `None` if the factory skipped.
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let request = cache.get_or_set("user:42", |cx| async move { cx.skip::<String>() });
/// let user: Option<String> = request.optional().await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct GetOrSetOptional<'a, T, F, K = Encoded>(GetOrSet<'a, T, F, K>);

impl<T, F, K, Fut, E> IntoFuture for GetOrSetOptional<'_, T, F, K>
where
    T: Clone + Send + Sync + 'static,
    K: Kept<T>,
    F: FnOnce(Context<T>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    E: FactoryError,
{
    type Output = Result<Option<T>>;
    type IntoFuture = FetchOptional<T>;

    fn into_future(self) -> Self::IntoFuture {
        FetchOptional(self.0.into_future())
    }
}

/// The future of [`GetOrSetOptional`].
#[must_use = "futures do nothing unless awaited"]
pub struct FetchOptional<T>(Fetch<T>);

impl<T> Future for FetchOptional<T> {
    type Output = Result<Option<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|result| match result {
            Ok(value) => Ok(Some(value)),
            Err(Error::Skipped { .. } | Error::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        })
    }
}

/// As [`GetOrSet`], but also returns where the value came from.
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let request = cache.get_or_set("user:42", |_| async { Ok::<_, std::io::Error>(7) });
/// let (user, source) = request.with_source().await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct GetOrSetWithSource<'a, T, F, K = Encoded>(GetOrSet<'a, T, F, K>);

impl<T, F, K, Fut, E> IntoFuture for GetOrSetWithSource<'_, T, F, K>
where
    T: Clone + Send + Sync + 'static,
    K: Kept<T>,
    F: FnOnce(Context<T>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    E: FactoryError,
{
    type Output = Result<(T, Source)>;
    type IntoFuture = Fetch<(T, Source)>;

    #[inline(always)]
    fn into_future(self) -> Self::IntoFuture {
        if let Some((value, due)) = self.0.hit() {
            if let Some(created_at) = due {
                self.0.refresh(created_at);
            }
            return Fetch::hit((value, Source::L1));
        }
        Fetch::run(self.0.miss(|sourced| sourced))
    }
}

/// Reads many values and produces the missing ones; see [`Cache::get_or_set_many`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let users = cache
///     .get_or_set_many(["1", "2"], |cx| async move {
///         let rows = cx.keys().iter().map(|key| (key.clone(), format!("user {key}")));
///         Ok::<_, std::io::Error>(rows.collect::<Vec<_>>())
///     })
///     .ttl("10m")
///     .tags(["users"])
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct GetOrSetMany<'a, T, F, K = Encoded> {
    cache: &'a Cache,
    keys: Vec<Key>,
    factory: F,
    options: CallOptions<'a>,
    value: PhantomData<fn() -> (T, K)>,
}

impl<'a, T, F, K> GetOrSetMany<'a, T, F, K> {
    pub(crate) fn new(cache: &'a Cache, keys: Vec<Key>, factory: F) -> Self {
        Self { cache, keys, factory, options: CallOptions::default(), value: PhantomData }
    }

    setters!(
        ttl l1_ttl grace grace_backoff timeout hard_timeout lock_timeout factory_timeout jitter
        l2_timeout suppress_l2_errors force_fresh skip_l1_read skip_l1_write skip_l2_write
        skip_l2_read l2_write_in_background skip_bus_notify announce_fills on_factory_error
        stale_if expected_errors tags l2_ttl sliding
    );
}

impl<T, F, K, Fut, E, I, N> IntoFuture for GetOrSetMany<'_, T, F, K>
where
    T: Clone + Send + Sync + 'static,
    K: Kept<T>,
    F: Fn(ManyContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
    E: FactoryError,
    I: IntoIterator<Item = (N, T)>,
    N: IntoKey,
{
    type Output = Result<Vec<Option<T>>>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, keys, factory, mut options, .. } = self;
        let many: FactoryOfMany<K::Held> = Arc::new(move |context| {
            let produced = factory(context);
            Box::pin(async move {
                let values = produced.await.map_err(boxed)?;
                let named = |(key, value): (N, T)| (key.into_key().into_string(), K::hold(value));
                Ok(values.into_iter().map(named).collect::<HashMap<_, _>>())
            })
        });
        let request = FetchMany {
            prefix: cache.tag_prefix(),
            policy: options.policy(cache, K::ONLY_L1),
            tags: options.tags(),
            hooks: options.hooks(cache),
            factory: many,
        };
        let (store, checked) = (cache.guard.clone(), options.check());
        let span = cache.span_many("get_or_set_many");
        let read = async move {
            checked?;
            let values = store.get_or_set_many(&keys, request).await?;
            Ok(values.into_iter().map(|value| value.map(K::value)).collect())
        };
        in_span(span, read)
    }
}

/// Stores a value; see [`Cache::set`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// cache.set("user:42", "ann".to_owned()).ttl("10m").jitter("30s").tags(["users"]).await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct Set<'a, T, K = Encoded> {
    cache: &'a Cache,
    values: Vec<(Key, T)>,
    options: CallOptions<'a>,
    kept: PhantomData<fn() -> K>,
}

impl<'a, T, K> Set<'a, T, K> {
    pub(crate) fn new(cache: &'a Cache, values: Vec<(Key, T)>) -> Self {
        Self { cache, values, options: CallOptions::default(), kept: PhantomData }
    }

    pub(crate) fn forever(mut self) -> Self {
        self.options.push(CallOption::Forever);
        self
    }

    setters!(
        ttl l1_ttl grace jitter l2_timeout suppress_l2_errors skip_l1_write skip_l2_write
        l2_write_in_background skip_bus_notify tags l2_ttl sliding
    );
}

impl<T: 'static, K: Kept<T>> IntoFuture for Set<'_, T, K> {
    type Output = Result<()>;
    type IntoFuture = Change<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, values, mut options, .. } = self;
        let (policy, tags, checked) =
            (options.policy(cache, K::ONLY_L1), options.tags(), options.check());
        let store = cache.guard.clone();
        let values = values.into_iter().map(|(key, value)| (key, K::hold(value))).collect();
        let set = async move {
            checked?;
            if store.is_off()? {
                return Ok(());
            }
            store.set_many(values, &tags, &policy).await
        };
        cache.engine.to_the_end(in_span(cache.span_many("set"), set))
    }
}

/// Generates the request of an operation on keys without values, on a namespace, or on tags.
macro_rules! request {
    ($(#[$doc:meta])* $name:ident($items:ident: $type:ty) -> $output:ty, $span:literal,
     off: $off:expr, [$($setter:ident)*], $run:ident, |$store:ident, $policy:ident| $call:expr) => {
        $(#[$doc])*
        #[must_use = "requests do nothing unless awaited"]
        pub struct $name<'a> {
            cache: &'a Cache,
            $items: $type,
            options: CallOptions<'a>,
        }

        impl<'a> $name<'a> {
            pub(crate) fn new(cache: &'a Cache, $items: $type) -> Self {
                Self { cache, $items, options: CallOptions::default() }
            }

            setters!($($setter)*);
        }

        impl IntoFuture for $name<'_> {
            type Output = Result<$output>;
            type IntoFuture = request!(@future $run);

            fn into_future(self) -> Self::IntoFuture {
                let Self { cache, $items, mut options } = self;
                let ($policy, checked) = (options.policy(cache, false), options.check());
                let $store = cache.guard.clone();
                let call = async move {
                    checked?;
                    if $store.is_off()? {
                        return Ok($off);
                    }
                    $call
                };
                request!(@run $run, cache, in_span(cache.span_many($span), call))
            }
        }
    };
    (@future read) => { BoxFuture<Self::Output> };
    (@future change) => { Change<Self::Output> };
    (@run read, $cache:ident, $call:expr) => { $call };
    (@run change, $cache:ident, $call:expr) => { $cache.engine.to_the_end($call) };
}
pub(super) use request;

request! {
    /// Tests whether there is a fresh value; see [`Cache::has`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let is_cached = cache.has("user:42").skip_l2_read(true).await?;
    /// # Ok(()) }
    /// ```
    Has(keys: Vec<Key>) -> bool, "has", off: false,
    [l1_ttl l2_timeout suppress_l2_errors skip_l1_read skip_l2_read], read,
    |store, policy| store.exists(&keys[0], &policy).await
}

request! {
    /// Tests whether there is no fresh value; see [`Cache::missing`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let is_missing = cache.missing("user:42").l2_timeout("none", "200ms").await?;
    /// # Ok(()) }
    /// ```
    Missing(keys: Vec<Key>) -> bool, "missing", off: true,
    [l1_ttl l2_timeout suppress_l2_errors skip_l1_read skip_l2_read], read,
    |store, policy| store.exists(&keys[0], &policy).await.map(|there| !there)
}

request! {
    /// Deletes a key; see [`Cache::delete`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let was_there = cache.delete("user:42").suppress_l2_errors(false).await?;
    /// # Ok(()) }
    /// ```
    Delete(keys: Vec<Key>) -> bool, "delete", off: false,
    [l2_timeout suppress_l2_errors skip_l2_write skip_bus_notify], change,
    |store, policy| store.delete(&keys, &policy).await.map(|deleted| deleted > 0)
}

request! {
    /// Deletes keys; see [`Cache::delete_many`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let count = cache.delete_many(["user:42", "user:43"]).skip_bus_notify(true).await?;
    /// # Ok(()) }
    /// ```
    DeleteMany(keys: Vec<Key>) -> u64, "delete_many", off: 0,
    [l2_timeout suppress_l2_errors skip_l2_write skip_bus_notify], change,
    |store, policy| store.delete(&keys, &policy).await
}

request! {
    /// Makes keys stale; see [`Cache::expire`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.expire("user:42").grace("1h").await?;
    /// # Ok(()) }
    /// ```
    Expire(keys: Vec<Key>) -> (), "expire", off: (),
    [grace l2_timeout suppress_l2_errors skip_l2_write skip_bus_notify], change,
    |store, policy| store.expire(&keys, &policy).await
}

/// Reads and deletes a value; see [`Cache::pull`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let token = cache.pull::<u64>("token").suppress_l2_errors(false).await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct Pull<'a, T, K = Encoded> {
    cache: &'a Cache,
    key: Key,
    options: CallOptions<'a>,
    value: PhantomData<fn() -> (T, K)>,
}

impl<'a, T, K> Pull<'a, T, K> {
    pub(crate) fn new(cache: &'a Cache, key: Key) -> Self {
        Self { cache, key, options: CallOptions::default(), value: PhantomData }
    }

    setters!(grace l2_timeout suppress_l2_errors skip_l2_write skip_bus_notify);
}

impl<T: Send + 'static, K: Kept<T>> IntoFuture for Pull<'_, T, K> {
    type Output = Result<Option<T>>;
    type IntoFuture = Change<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, key, mut options, .. } = self;
        let (policy, checked) = (options.policy(cache, K::ONLY_L1), options.check());
        let (store, span) = (cache.guard.clone(), cache.span("pull", &key));
        let pull = async move {
            checked?;
            let pulled =
                if store.is_off()? { None } else { store.pull::<K::Held>(&key, &policy).await? };
            let Some((value, tier, graced)) = pulled else {
                store.missed(&key);
                return Ok(None);
            };
            store.record_hit(&key.full, tier, graced);
            Ok(Some(K::value(value)))
        };
        cache.engine.to_the_end(in_span(span, pull))
    }
}

request! {
    /// Deletes the values with tags; see [`Cache::delete_by_tag`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.delete_by_tag(["users"]).l2_timeout("none", "5s").await?;
    /// # Ok(()) }
    /// ```
    DeleteByTag(tags: (Arc<str>, Vec<String>)) -> (), "delete_by_tag", off: (),
    [l2_timeout suppress_l2_errors skip_bus_notify], change,
    |store, policy| store.change_tags(TagChange::Delete, &tags.0, &tags.1, &policy).await
}

request! {
    /// Makes the values with tags stale; see [`Cache::expire_by_tag`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.expire_by_tag(["users"]).l2_timeout("none", "5s").await?;
    /// # Ok(()) }
    /// ```
    ExpireByTag(tags: (Arc<str>, Vec<String>)) -> (), "expire_by_tag", off: (),
    [l2_timeout suppress_l2_errors skip_bus_notify], change,
    |store, policy| store.change_tags(TagChange::Expire, &tags.0, &tags.1, &policy).await
}

request! {
    /// Removes everything under a namespace; see [`Cache::clear`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.namespace("users").clear().suppress_l2_errors(false).await?;
    /// # Ok(()) }
    /// ```
    Clear(prefix: Arc<str>) -> (), "clear", off: (),
    [suppress_l2_errors skip_bus_notify], change,
    |store, policy| store.clear(&prefix, &policy).await
}
