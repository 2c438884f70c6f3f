//! Shelf as an L2 of Bentocache.
//!
//! ```
//! use bentocache::{BentoCache, Memory, Store};
//! use bentocache_shelf::{Client, Shelf};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), bentocache::Error> {
//! let l2 = Shelf::new(Client::default()).timeout("500ms");
//! let store = Store::new().l1(Memory::new()).l2(l2);
//! let cache = BentoCache::builder().store("main", store).build().await?;
//! cache.set("answer", 42).await?;
//! # Ok(()) }
//! ```

mod client;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bentocache_driver::{
    Capabilities, DriverError, ErrorKind, KeyStream, L2Driver, OptionErrors, TimeSpan, key_pages,
    on_runtime,
};
use bytes::Bytes;

pub use crate::client::{Client, ClientError};

/// The longest key, in bytes.
const MAX_KEY: usize = 512;
/// The number of keys in one page of a listing.
const PAGE: usize = 500;
const NAME: &str = "shelf";

/// An L2 on a Shelf server.
pub struct Shelf {
    client: Client,
    timeout: Duration,
    errors: OptionErrors,
    closed: AtomicBool,
}

impl Shelf {
    /// A driver on this connection, which stays the application's.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            timeout: Duration::from_secs(5),
            errors: OptionErrors::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// The longest time for `connect`. Default: 5 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<TimeSpan>) -> Self {
        self.errors.set(&mut self.timeout, timeout.into().duration("timeout"));
        self
    }

    /// Runs a call. The first errors are those that no attempt can change.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, DriverError> {
        self.errors.check(NAME)?;
        if self.closed.load(Relaxed) {
            return Err(DriverError::new(ErrorKind::Closed, "shelf: the driver was disconnected"));
        }
        on_runtime(NAME, async { call.await.map_err(failed) }).await
    }
}

/// `Unavailable`, `Timeout`, `Denied` and `Full` are repeated later; every other kind is final. The
/// text goes to logs: no keys, values or passwords.
fn failed(error: ClientError) -> DriverError {
    match error {
        ClientError::Connection(text) => DriverError::new(ErrorKind::Unavailable, text),
        ClientError::Denied(text) => DriverError::new(ErrorKind::Denied, text),
    }
}

/// A key above the limit can never be there, so reads say that nothing is there and only writes
/// refuse it.
fn is_possible(key: &str) -> bool {
    key.len() <= MAX_KEY
}

fn check(key: &str) -> Result<(), DriverError> {
    if is_possible(key) {
        return Ok(());
    }
    let message = format!("shelf: a key of {} bytes; the limit is {MAX_KEY} bytes", key.len());
    Err(DriverError::new(ErrorKind::TooLarge, message))
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The end of a value that is written now. A ttl beyond every clock is no end.
fn end(ttl: Option<Duration>) -> Option<u64> {
    now().checked_add(u64::try_from(ttl?.as_millis()).ok()?)
}

fn is_live(end: Option<u64>) -> bool {
    end.is_none_or(|end| now() < end)
}

impl L2Driver for Shelf {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_atomic_pull().with_atomic_compare().with_max_key(MAX_KEY)
    }

    async fn connect(&self) -> Result<(), DriverError> {
        // Settings first: `Config` makes the build of the cache fail. A server that is down does not.
        self.errors.check(NAME)?;
        self.call(self.client.ping()).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        if !is_possible(key) {
            return Ok(None);
        }
        let row = self.call(self.client.get(key)).await?;
        Ok(row.filter(|(_, end)| is_live(*end)).map(|(value, _)| value.into()))
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        check(key)?;
        self.call(self.client.put(key, &value, end(ttl))).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let mut deleted = 0;
        for key in keys.iter().filter(|key| is_possible(key)) {
            let row = self.call(self.client.change(key, |row| (None, row))).await?;
            deleted += u64::from(row.is_some_and(|(_, end)| is_live(end)));
        }
        Ok(deleted)
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.call(self.client.delete_prefix(prefix)).await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        check(key)?;
        let insert = self.client.change(key, |row| match row {
            Some(row) if is_live(row.1) => (Some(row), false),
            _ => (Some((value.to_vec(), end(ttl))), true),
        });
        self.call(insert).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let row = self.call(self.client.change(key, |row| (None, row))).await?;
        Ok(row.filter(|(_, end)| is_live(*end)).map(|(value, _)| value.into()))
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let update = self.client.change(key, |row| match row {
            Some((old, end)) if old == expected && is_live(end) => {
                (Some((value.to_vec(), end)), true)
            }
            row => (row, false),
        });
        self.call(update).await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        check(key)?;
        let touch = self.client.change(key, |row| match row {
            Some((value, old)) if is_live(old) => (Some((value, end(ttl))), true),
            row => (row, false),
        });
        self.call(touch).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let delete = self.client.change(key, |row| match row {
            Some((old, end)) if old == value => (None, is_live(end)),
            row => (row, false),
        });
        self.call(delete).await
    }

    /// Called by `Cache::prune`, when the application asks for it; never by the engine.
    async fn prune(&self) -> Result<u64, DriverError> {
        self.call(self.client.delete_ended(now())).await
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        let (client, prefix) = (self.client.clone(), prefix.to_owned());
        key_pages(None::<String>, move |after| {
            let (client, prefix) = (client.clone(), prefix.clone());
            on_runtime(NAME, async move {
                let rows = client.scan(&prefix, after.as_deref(), PAGE).await.map_err(failed)?;
                let last = rows.last().filter(|_| rows.len() == PAGE).map(|(key, _)| key.clone());
                let live = rows.into_iter().filter(|(_, (_, end))| is_live(*end));
                Ok((live.map(|(key, _)| key).collect(), last.map(Some)))
            })
        })
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.closed.store(true, Relaxed);
        Ok(())
    }
}
