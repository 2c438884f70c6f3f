//! An L2 driver whose values are encrypted.
//!
//! The rest of the engine sees documents only: comparisons, digests and the overlay of the recovery
//! queue know nothing of the encryption, which gives other bytes for the same document each time.
//! `update` and `delete_if` read the stored bytes first, and compare the document in them.
//!
//! Markers and buckets of tags have no values and stay as they are.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{
    Call, Capabilities, DriverError, DynL2, ErrorKind, Finding, KeyStream, LinkStream, Write,
};
use bytes::Bytes;

use crate::site::is_reserved;
use crate::wire::seal::{KeyRing, Refusal};

pub(crate) struct Sealed {
    driver: Arc<dyn DynL2>,
    ring: Arc<KeyRing>,
}

impl Sealed {
    pub(crate) fn new(driver: Arc<dyn DynL2>, ring: Arc<KeyRing>) -> Self {
        Self { driver, ring }
    }

    /// The bytes to store.
    fn seal(&self, key: &str, document: Bytes) -> Result<Bytes, DriverError> {
        if is_reserved(key) {
            return Ok(document);
        }
        self.ring.seal(key, &document).map_err(|reason| {
            let kind = if document.len() > u32::MAX as usize {
                ErrorKind::TooLarge
            } else {
                ErrorKind::Unavailable
            };
            DriverError::new(kind, format!("a value cannot be encrypted: {}", reason.0))
        })
    }

    /// The document in stored bytes, or bytes that no reader can decode.
    fn open(&self, key: &str, stored: &Bytes) -> Bytes {
        if is_reserved(key) {
            return stored.clone();
        }
        self.ring.open(key, stored).unwrap_or_else(|refusal: Refusal| refusal.shown(stored))
    }

    /// The stored bytes, if they are the expected document.
    async fn stored(&self, key: &str, expected: &[u8]) -> Result<Option<Bytes>, DriverError> {
        let stored = self.driver.get(key).await?;
        Ok(stored.filter(|stored| self.open(key, stored)[..] == *expected))
    }
}

impl DynL2 for Sealed {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.driver.capabilities()
    }

    fn connect(&self) -> Call<'_, ()> {
        self.driver.connect()
    }

    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<Bytes>> {
        Box::pin(async move {
            let stored = self.driver.get(key).await?;
            Ok(stored.map(|stored| self.open(key, &stored)))
        })
    }

    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> Call<'a, Vec<Option<Bytes>>> {
        Box::pin(async move {
            let stored = self.driver.get_many(keys).await?;
            let open = |(key, stored): (&&str, Option<Bytes>)| Some(self.open(key, &stored?));
            Ok(keys.iter().zip(stored).map(open).collect())
        })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, ttl: Option<Duration>) -> Call<'a, ()> {
        Box::pin(async move { self.driver.set(key, self.seal(key, value)?, ttl).await })
    }

    fn set_many<'a>(&'a self, writes: &'a [Write<'a>]) -> Call<'a, ()> {
        Box::pin(async move {
            let seal = |write: &Write<'a>| {
                let Write { key, ttl, .. } = *write;
                Ok(Write { key, value: self.seal(key, write.value.clone())?, ttl })
            };
            let sealed = writes.iter().map(seal).collect::<Result<Vec<_>, DriverError>>()?;
            self.driver.set_many(&sealed).await
        })
    }

    fn delete<'a>(&'a self, keys: &'a [&'a str]) -> Call<'a, u64> {
        self.driver.delete(keys)
    }

    fn clear<'a>(&'a self, prefix: &'a str) -> Call<'a, ()> {
        self.driver.clear(prefix)
    }

    fn clear_parts<'a>(&'a self, prefix: &'a str, parts: &'a [u32]) -> Call<'a, ()> {
        self.driver.clear_parts(prefix, parts)
    }

    fn pull<'a>(&'a self, key: &'a str) -> Call<'a, Option<Bytes>> {
        Box::pin(async move {
            let stored = self.driver.pull(key).await?;
            Ok(stored.map(|stored| self.open(key, &stored)))
        })
    }

    fn update<'a>(
        &'a self,
        key: &'a str,
        expected: &'a [u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Call<'a, bool> {
        if is_reserved(key) {
            return self.driver.update(key, expected, value, remaining);
        }
        Box::pin(async move {
            let Some(stored) = self.stored(key, expected).await? else { return Ok(false) };
            self.driver.update(key, &stored, self.seal(key, value)?, remaining).await
        })
    }

    fn insert<'a>(&'a self, key: &'a str, value: Bytes, ttl: Option<Duration>) -> Call<'a, bool> {
        Box::pin(async move { self.driver.insert(key, self.seal(key, value)?, ttl).await })
    }

    fn delete_if<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Call<'a, bool> {
        if is_reserved(key) {
            return self.driver.delete_if(key, value);
        }
        Box::pin(async move {
            let Some(stored) = self.stored(key, value).await? else { return Ok(false) };
            self.driver.delete_if(key, &stored).await
        })
    }

    fn touch<'a>(&'a self, key: &'a str, ttl: Option<Duration>) -> Call<'a, bool> {
        self.driver.touch(key, ttl)
    }

    fn prune(&self) -> Call<'_, u64> {
        self.driver.prune()
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        self.driver.keys(prefix)
    }

    fn link(&self) -> Option<LinkStream> {
        self.driver.link()
    }

    fn part(&self, key: &str) -> Option<u32> {
        self.driver.part(key)
    }

    fn trouble(&self) -> Option<String> {
        self.driver.trouble()
    }

    fn identity(&self) -> Option<String> {
        self.driver.identity()
    }

    fn findings(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>> {
        self.driver.findings()
    }

    fn disconnect(&self) -> Call<'_, ()> {
        self.driver.disconnect()
    }
}
