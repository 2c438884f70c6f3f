//! Lists the keys of a handle.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::engine::keys::KeyList;
use crate::error::Result;
use crate::front::blocking::Blocking;
use crate::front::cache::{Cache, Guard};
use crate::front::key::IntoKey;

/// A stream of keys; see [`Cache::keys`]. After an error it ends.
#[must_use = "streams do nothing unless polled"]
pub struct Keys {
    list: KeyList,
    _store: Arc<Guard>,
}

impl Keys {
    /// The next key; `None` at the end. Cancel-safe.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let mut keys = cache.keys("user:");
    /// while let Some(key) = keys.next().await {
    ///     println!("{}", key?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`Cache::keys`].
    pub async fn next(&mut self) -> Option<Result<String>> {
        poll_fn(|cx| self.list.poll_next(cx)).await
    }

    /// All keys.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let users: Vec<String> = cache.keys("user:").all().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// See [`Cache::keys`].
    pub async fn all(mut self) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        while let Some(key) = self.next().await {
            keys.push(key?);
        }
        Ok(keys)
    }
}

impl Stream for Keys {
    type Item = Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.list.poll_next(cx)
    }
}

impl Cache {
    /// Lists the keys of this handle that start with `start`, without the prefix of the store and
    /// the namespace of the handle, in any order; `""` lists all. Keys of namespaces below are
    /// `name:key`. The cache's own keys are left out.
    ///
    /// For administration: it reads the whole keyspace of many stores. In a store with an L2, the
    /// keys of L2 are listed as they are stored, whatever waits in the recovery queue; else those
    /// of L1. Stale values are listed too. A key that comes or goes meanwhile may be left out.
    ///
    /// ```
    /// # use bentocache::{BentoCache, Memory, Store};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), bentocache::Error> {
    /// # let store = Store::new().l1(Memory::new());
    /// # let cache = BentoCache::builder().store("m", store).build().await?;
    /// let users = cache.namespace("users");
    /// users.set_many([("1", "ann"), ("2", "bob")].map(|(id, name)| (id, name.to_owned()))).await?;
    /// let mut keys = users.keys("").all().await?;
    /// keys.sort();
    /// assert_eq!(keys, ["1", "2"]);
    /// assert_eq!(cache.keys("users:1").all().await?, ["users:1"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A disconnected cache, or a failure of L2; `Unsupported` if the driver cannot list its keys,
    /// such as a hosted store without a scan.
    #[doc(alias("scan", "iter"))]
    pub fn keys(&self, start: impl IntoKey) -> Keys {
        let list = self.engine.keys(self.prefix(), &start.into_key());
        Keys { list, _store: self.guard.clone() }
    }
}

/// An iterator over keys; see [`Blocking::keys`]. After an error it ends.
#[must_use = "iterators do nothing unless consumed"]
pub struct BlockingKeys {
    cache: Blocking,
    keys: Option<Keys>,
}

impl Blocking {
    /// See [`Cache::keys`].
    ///
    /// ```
    /// # fn example(cache: bentocache::Blocking) -> Result<(), bentocache::Error> {
    /// for key in cache.keys("user:") {
    ///     println!("{}", key?);
    /// }
    /// # Ok(()) }
    /// ```
    #[doc(alias("scan", "iter"))]
    pub fn keys(&self, start: impl IntoKey) -> BlockingKeys {
        BlockingKeys { cache: self.clone(), keys: Some(self.inner().keys(start)) }
    }
}

impl Iterator for BlockingKeys {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let keys = self.keys.as_mut()?;
        let next = self.cache.wait(async { Ok(keys.next().await) });
        match next {
            Ok(Some(Ok(key))) => Some(Ok(key)),
            Ok(Some(Err(error))) | Err(error) => {
                self.keys = None;
                Some(Err(error))
            }
            Ok(None) => {
                self.keys = None;
                None
            }
        }
    }
}
