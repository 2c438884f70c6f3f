//! What is known of one entry.

use crate::engine::Key;
use crate::error::Result;
use crate::front::blocking::Blocking;
use crate::front::cache::Cache;
use crate::front::call_options::{CallOptions, setters};
use crate::front::key::IntoKey;
use crate::front::request::BoxFuture;
use crate::front::span::in_span;
use crate::stats::Inspection;

/// Looks at the entry under a key; see [`Cache::inspect`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// let found = cache.inspect("user:42").skip_l2_read(true).await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct Inspect<'a> {
    cache: &'a Cache,
    key: Key,
    options: CallOptions<'a>,
}

impl<'a> Inspect<'a> {
    setters!(l2_timeout skip_l2_read);
}

impl IntoFuture for Inspect<'_> {
    type Output = Result<Inspection>;
    type IntoFuture = BoxFuture<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, key, mut options } = self;
        let (policy, checked) = (options.policy(cache, false), options.check());
        let (store, span) = (cache.guard.clone(), cache.span("inspect", &key));
        let inspect = async move {
            checked?;
            if store.is_off()? {
                return Ok(Inspection::of_nothing(key.name()));
            }
            store.inspect(&key, &policy).await
        };
        in_span(span, inspect)
    }
}

impl Cache {
    /// What is known of the value under the key: in which tiers it is, its times, its tags and
    /// whether each is valid, its size and encoding. The value itself is not shown.
    ///
    /// For administration and tests. It counts as no read and changes nothing. The result has
    /// public fields, and is `Serialize` and `Debug`.
    ///
    /// ```
    /// # use bentocache::{BentoCache, EntryState, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("a", 1).await?;
    /// let found = cache.inspect("a").await?;
    /// assert_eq!(found.l1.expect("it is in L1").state, EntryState::Fresh);
    /// assert!(found.l2.is_none());
    /// assert!(!cache.inspect("b").await?.is_there());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A bad option or key, a disconnected cache, and every failure of L2; with
    /// [`skip_l2_read`](Inspect::skip_l2_read), L1 can be inspected in an outage.
    pub fn inspect(&self, key: impl IntoKey) -> Inspect<'_> {
        let key = self.key(&key.into_key());
        Inspect { cache: self, key, options: CallOptions::default() }
    }
}

impl Blocking {
    /// See [`Cache::inspect`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// println!("{:?}", cache.inspect("user:42")?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Cache::inspect`].
    pub fn inspect(&self, key: impl IntoKey) -> Result<Inspection> {
        self.wait(self.inner().inspect(key))
    }
}
