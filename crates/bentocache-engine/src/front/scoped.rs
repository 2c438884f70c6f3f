//! `get_or_set` with a factory that borrows.

use std::marker::PhantomData;
use std::pin::Pin;

use crate::engine::context::Context;
use crate::engine::factory::{Factory, FactoryOfOne};
use crate::engine::fetch::FetchRequest;
use crate::engine::{CacheValue, FactoryError};
use crate::error::{Result, boxed};
use crate::front::cache::Cache;
use crate::front::call_options::{CallOptions, setters};
use crate::front::key::KeyText;

/// Reads a value or runs a factory that borrows; see [`Cache::get_or_set_scoped`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let table = vec![1, 2, 3];
/// let count = cache
///     .get_or_set_scoped("count", |_| async { Ok::<_, std::io::Error>(table.len()) })
///     .ttl("10m")
///     .await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct GetOrSetScoped<'a, T, F> {
    cache: &'a Cache,
    key: KeyText<'a>,
    factory: F,
    options: CallOptions<'a>,
    value: PhantomData<fn() -> T>,
}

impl<'a, T, F> GetOrSetScoped<'a, T, F> {
    pub(crate) fn new(cache: &'a Cache, key: KeyText<'a>, factory: F) -> Self {
        Self { cache, key, factory, options: CallOptions::default(), value: PhantomData }
    }

    setters!(
        ttl l1_ttl l2_ttl grace grace_backoff hard_timeout lock_timeout factory_timeout jitter
        l2_timeout sliding
        suppress_l2_errors force_fresh skip_l1_read skip_l1_write skip_l2_write skip_l2_read
        l2_write_in_background skip_bus_notify announce_fills on_factory_error stale_if
        expected_errors tags
    );
}

impl<'a, T, F, Fut, E> IntoFuture for GetOrSetScoped<'a, T, F>
where
    T: CacheValue,
    F: FnOnce(Context<T>) -> Fut + Send + 'a,
    Fut: Future<Output = Result<T, E>> + Send + 'a,
    E: FactoryError,
{
    type Output = Result<T>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, key, factory, mut options, .. } = self;
        if options.on_hit(cache.engine.policy()).0
            && let Some((value, _)) = cache.hit(&key, 0.0)
        {
            return Box::pin(std::future::ready(Ok(value)));
        }
        let factory: FactoryOfOne<'a, T> = Box::new(move |context| {
            let produced = factory(context);
            Box::pin(async move { produced.await.map_err(boxed) })
        });
        let request = FetchRequest {
            prefix: cache.tag_prefix(),
            policy: options.policy(cache, false),
            tags: options.tags(),
            hooks: options.hooks(cache),
            factory: Factory::One(factory),
            refresh_of: None,
        };
        let (key, checked) = (cache.key(&key), options.check());
        let (store, span) = (cache.guard.clone(), cache.span("get_or_set_scoped", &key));
        let read = async move {
            checked?;
            store.get_or_set_scoped(key, request).await.map(|(value, _)| value)
        };
        if span.is_empty() { Box::pin(read) } else { Box::pin(span.run(read)) }
    }
}
