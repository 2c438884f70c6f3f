//! Factories: runs a caller's function within its timeout and contains its panics.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use bentocache_driver::{NEVER, Validators};

use super::context::{Context, ManyContext, Overrides};
use super::{CacheValue, Key, KeyVec};
use crate::error::{BoxError, FactoryPanic, TimedOut};
use crate::timers::Timers;

type Boxed<'f, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'f>>;
/// A factory for one key, which borrows for `'f`. Only calls that miss pay for the box.
pub(crate) type FactoryOfOne<'f, T> = Box<dyn FnOnce(Context<T>) -> Boxed<'f, T> + Send + 'f>;
/// A factory for many keys.
pub(crate) type FactoryOfMany<T> =
    Arc<dyn Fn(ManyContext) -> Boxed<'static, HashMap<String, T>> + Send + Sync>;

pub(crate) enum Factory<'f, T> {
    One(FactoryOfOne<'f, T>),
    Many(FactoryOfMany<T>),
}

impl<T: CacheValue> Factory<'_, T> {
    /// Runs the factory for these keys, each with its stale value and what the source said
    /// about it. Returns a value or `None` for
    /// each key.
    pub(super) async fn run(
        self,
        keys: KeyVec<(Key, Option<(T, Validators)>)>,
        overrides: Arc<Overrides>,
    ) -> Result<KeyVec<Option<T>>, BoxError> {
        match self {
            Self::One(factory) => {
                let mut values = KeyVec::new();
                if let Some((key, stale)) = keys.into_iter().next() {
                    values.push(Some(factory(Context::new(key, stale, overrides)).await?));
                }
                Ok(values)
            }
            Self::Many(factory) => {
                let names: Vec<_> = keys.iter().map(|(key, _)| key.name().to_owned()).collect();
                let context = ManyContext::new(names, overrides);
                let mut values = factory(context).await?;
                Ok(keys.iter().map(|(key, _)| values.remove(key.name())).collect())
            }
        }
    }
}

/// Runs a factory for at most `limit` ms, and drops it then. A panic is returned as an error, also
/// one before the first `await`.
pub(super) async fn caught<T, F>(
    timers: &Timers,
    limit: u64,
    start: impl FnOnce() -> F,
) -> Result<T, BoxError>
where
    F: Future<Output = Result<T, BoxError>>,
{
    let mut factory = match std::panic::catch_unwind(AssertUnwindSafe(start)) {
        Ok(future) => Contained(Some(Box::pin(future))),
        Err(panic) => return Err(panicked(&*panic)),
    };
    let run = std::future::poll_fn(move |cx| factory.poll(cx));
    if limit == NEVER {
        return run.await;
    }
    let limit = Duration::from_millis(limit);
    timers.within(limit, run).await.unwrap_or_else(|| Err(Box::new(TimedOut(limit))))
}

/// A factory whose panics are contained, including a panic in its drop.
struct Contained<F>(Option<Pin<Box<F>>>);

impl<T, F: Future<Output = Result<T, BoxError>>> Contained<F> {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<T, BoxError>> {
        let Some(factory) = &mut self.0 else { return Poll::Pending };
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| factory.as_mut().poll(cx)));
        polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    }
}

impl<F> Drop for Contained<F> {
    fn drop(&mut self) {
        let factory = self.0.take();
        if std::panic::catch_unwind(AssertUnwindSafe(|| drop(factory))).is_err() {
            tracing::error!("the future of a factory panicked when it was dropped");
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> BoxError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    Box::new(FactoryPanic(text.unwrap_or_else(|| "no message".to_owned())))
}
