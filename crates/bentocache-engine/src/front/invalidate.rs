//! Invalidations of keys, tags and namespaces in one call.

use std::sync::Arc;

use crate::engine::Key;
use crate::engine::change::Change;
use crate::error::Result;
use crate::front::cache::Cache;
use crate::front::call_options::CallOptions;
use crate::front::key::IntoKey;
use crate::front::span::in_span;
use crate::options::option_row;

/// Invalidates keys, tags and namespaces together; see [`Cache::invalidate`].
///
/// ```
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// cache.invalidate().keys(["user:42"]).tags(["users"]).namespace("lists").await?;
/// # Ok(()) }
/// ```
#[must_use = "requests do nothing unless awaited"]
pub struct Invalidate<'a> {
    cache: &'a Cache,
    keys: Vec<Key>,
    tags: Vec<String>,
    expired_tags: Vec<String>,
    prefixes: Vec<Arc<str>>,
    options: CallOptions<'a>,
}

impl Cache {
    /// Invalidates keys, tags and namespaces together, in both tiers and on all nodes: the parts
    /// run at the same time; keys and tags share one limit for L2, and a namespace has that of
    /// [`clear`](Cache::clear). What one part invalidated stays so when another part fails.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// cache.set("user:42", 1).await?;
    /// cache.set("list", 2).tags(["users"]).await?;
    /// cache.namespace("pages").set("1", 3).await?;
    ///
    /// // After the transaction that changed the user was committed:
    /// cache.invalidate().keys(["user:42"]).tags(["users"]).namespace("pages").await?;
    /// assert_eq!(cache.get_many::<u8>(["user:42", "list", "pages:1"]).await?, [None; 3]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A bad key or option, a disconnected cache, or, unless suppressed, the first failure of L2.
    #[doc(alias("delete_many", "after_commit"))]
    pub fn invalidate(&self) -> Invalidate<'_> {
        Invalidate {
            cache: self,
            keys: Vec::new(),
            tags: Vec::new(),
            expired_tags: Vec::new(),
            prefixes: Vec::new(),
            options: CallOptions::default(),
        }
    }
}

impl Invalidate<'_> {
    /// Adds keys, which are deleted.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.invalidate().keys([("user", 42), ("user", 43)]).await?;
    /// # Ok(()) }
    /// ```
    pub fn keys(mut self, keys: impl IntoIterator<Item = impl IntoKey>) -> Self {
        self.keys.extend(self.cache.all_keys(keys));
        self
    }

    /// Adds tags whose values are deleted; see [`Cache::delete_by_tag`].
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.invalidate().tags(["users"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Adds tags whose values become stale; see [`Cache::expire_by_tag`]. A tag that is also in
    /// [`tags`](Self::tags) deletes.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.invalidate().keys(["user:42"]).expire_tags(["lists"]).await?;
    /// # Ok(()) }
    /// ```
    pub fn expire_tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.expired_tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Adds a namespace under this handle, which is cleared.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// cache.invalidate().namespace("users").namespace("lists").await?;
    /// # Ok(()) }
    /// ```
    pub fn namespace(mut self, name: impl IntoKey) -> Self {
        self.prefixes.push(self.cache.namespace(name).prefix().clone());
        self
    }

    option_row!(owned_setter l2_timeout);
    option_row!(owned_setter suppress_l2_errors);
    option_row!(owned_setter skip_bus_notify);
}

impl IntoFuture for Invalidate<'_> {
    type Output = Result<()>;
    type IntoFuture = Change<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self { cache, keys, tags, mut expired_tags, prefixes, mut options } = self;
        expired_tags.retain(|tag| !tags.contains(tag));
        let (policy, checked) = (options.policy(cache, false), options.check());
        let (store, tag_prefix) = (cache.guard.clone(), cache.tag_prefix());
        let call = async move {
            checked?;
            if store.is_off()? {
                return Ok(());
            }
            let tags = (&*tag_prefix, &*tags, &*expired_tags);
            store.invalidate(&keys, tags, &prefixes, &policy).await
        };
        cache.engine.to_the_end(in_span(cache.span_many("invalidate"), call))
    }
}
