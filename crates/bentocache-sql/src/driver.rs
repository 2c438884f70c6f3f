//! L2 over an adapter.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bentocache_driver::{
    ByteSize, Capabilities, DriverError, ErrorKind, Gather, KeyStream, L2Driver, LinkProbe,
    LinkStream, OptionErrors, TimeSpan, Write, key_pages, on_runtime,
};
use bytes::Bytes;

use crate::access::Access;
use crate::batch;
use crate::clock::{end, now};
use crate::prune::Pruning;
use crate::{DatabaseAdapter, Row};

/// The number of keys per page of a listing.
const PAGE: usize = 1_000;
/// Concurrent gets of one key each, concurrent batches of gets, and the most keys in one batch.
/// Each takes a connection of the pool.
const ALONE: usize = 4;
const TRIPS: usize = 2;
const KEYS_AT_ONCE: usize = 64;

/// L2 on a table of a database. The [crate's page](crate) lists its guarantees.
///
/// Dropping it ends the background task of [`prune_interval`](Self::prune_interval).
pub struct DatabaseDriver<A> {
    access: Access<A>,
    /// Batches of reads by key.
    reads: Gather<String, Option<Bytes>>,
    probe: LinkProbe,
    prune_interval: Option<Duration>,
    pruning: Mutex<Option<Pruning>>,
}

impl<A> fmt::Debug for DatabaseDriver<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseDriver")
            .field("options", &self.access.options)
            .field("prune_interval", &self.prune_interval)
            .finish_non_exhaustive()
    }
}

impl<A: DatabaseAdapter> DatabaseDriver<A> {
    /// A driver on the table `bentocache` of this database. It does nothing yet.
    pub fn new(adapter: A) -> Self {
        Self {
            access: Access::new(adapter),
            reads: Gather::with(ALONE, TRIPS, KEYS_AT_ONCE, |value| {
                value.as_ref().map_or(0, Bytes::len)
            }),
            probe: LinkProbe::default(),
            prune_interval: None,
            pruning: Mutex::new(None),
        }
    }

    /// The table: `name` or `schema.name`, of letters, digits and underscores. Default
    /// `bentocache`. An invalid name fails the build of the cache. No other data may be in this
    /// table: a clear without a prefix empties it.
    #[must_use]
    pub fn table_name(mut self, name: impl Into<String>) -> Self {
        self.access.options_mut().table_name = name.into();
        self
    }

    /// Whether the driver creates a missing table. Default true. If the application's user must not
    /// create tables, create it in advance with the SQL of the guide (`docs/sql-adapter.md`).
    #[must_use]
    pub fn auto_create_table(mut self, create: bool) -> Self {
        self.access.options_mut().auto_create_table = create;
        self
    }

    /// How often to remove expired rows in the background, such as `"1h"`; the first time is one
    /// interval after the build of the cache. It ends when the driver is disconnected or dropped.
    /// `"off"` or `None`, the default, leaves it to calls of `prune`. An interval of 0 or an
    /// invalid text is an [`ErrorKind::Config`] of the build, and an invalid text one of the first
    /// call.
    #[must_use]
    pub fn prune_interval(mut self, interval: impl Into<TimeSpan>) -> Self {
        let interval = interval.into().limit("prune_interval");
        self.access.options_mut().errors.set(&mut self.prune_interval, interval);
        self
    }

    /// The largest value to store: a number of bytes or a text such as `"10mb"`. Default and
    /// maximum: the limit of the database. An invalid text is an [`ErrorKind::Config`] of the first
    /// call.
    #[must_use]
    pub fn max_value(mut self, size: impl Into<ByteSize>) -> Self {
        let bytes = size.into().bytes("max_value");
        let bytes = bytes.map(|bytes| Some(usize::try_from(bytes).unwrap_or(usize::MAX)));
        let options = self.access.options_mut();
        options.errors.set(&mut options.max_value, bytes);
        self
    }

    /// Takes the invalid options of a builder that made this driver, such as the one of a file.
    /// Building the cache, or the first call, fails with the first of them.
    #[must_use]
    pub fn option_errors(mut self, errors: OptionErrors) -> Self {
        self.access.options_mut().errors = errors;
        self
    }

    /// Runs a call. After a failure, a background probe finds out when calls succeed again.
    async fn watched<T>(
        &self,
        call: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        let access = self.access.clone();
        let probe = move || {
            let access = access.clone();
            async move { access.open().await?.check_rights().await }
        };
        self.probe.watch(on_runtime(self.access.adapter.name(), call), probe).await
    }

    fn replace_pruning(&self, next: Option<Pruning>) -> Option<Pruning> {
        let mut pruning = self.pruning.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut pruning, next)
    }
}

/// One statement per batch of keys within the adapter's limit.
async fn get_all<A: DatabaseAdapter>(
    access: &Access<A>,
    keys: &[&str],
) -> Result<Vec<Option<Bytes>>, DriverError> {
    let adapter = access.open().await?;
    let distinct = access.distinct(keys);
    let mut found = HashMap::with_capacity(distinct.len());
    for keys in distinct.chunks(access.limits().batch.max(1)) {
        found.extend(adapter.get(keys, now()).await?);
    }
    Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
}

impl<A: DatabaseAdapter> L2Driver for DatabaseDriver<A> {
    fn name(&self) -> &'static str {
        self.access.adapter.name()
    }

    fn capabilities(&self) -> Capabilities {
        let limits = self.access.limits();
        let mut can = Capabilities::default().with_atomic_pull().with_atomic_compare();
        if let Some(bytes) = limits.max_key.or(limits.max_key_chars) {
            can = can.with_max_key(bytes);
        }
        if let Some(bytes) = limits.max_value {
            can = can.with_max_value(bytes);
        }
        if self.access.adapter.is_local() {
            can = can.with_local();
        }
        can
    }

    /// Finds or creates the table and starts pruning.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if an operator must fix the login, a right, the table or an option, or
    /// if the server is read-only. Other kinds if the database cannot be reached yet: later calls
    /// look for the table again.
    async fn connect(&self) -> Result<(), DriverError> {
        let call = async {
            if let Some(interval) = self.prune_interval {
                if interval.is_zero() {
                    return Err(self.access.error(
                        ErrorKind::Config,
                        "a prune interval of zero; leave it out to turn pruning off",
                    ));
                }
                self.replace_pruning(Some(Pruning::start(self.access.clone(), interval)));
            }
            let checked = async { self.access.open().await?.check_rights().await };
            checked.await.map_err(|error: DriverError| match error.kind() {
                // It does not go away by itself, so the build must fail.
                ErrorKind::Denied => {
                    self.replace_pruning(None);
                    DriverError::new(ErrorKind::Config, error.to_string()).with_source(error)
                }
                _ => error,
            })
        };
        self.watched(call).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            if !self.access.can_hold(key) {
                return Ok(None);
            }
            let alone = |key: String| async move {
                let found = adapter.get(&[&key], now()).await?;
                Ok(found.into_iter().find(|(found, _)| *found == key).map(|(_, value)| value))
            };
            let together = || {
                let access = self.access.clone();
                move |keys: Vec<String>| {
                    let access = access.clone();
                    async move {
                        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                        let mut values = get_all(&access, &keys).await;
                        if values
                            .as_ref()
                            .is_err_and(|error| error.kind() == ErrorKind::Unavailable)
                        {
                            // One lost connection must not count as a failure of every call in the
                            // batch.
                            values = get_all(&access, &keys).await;
                        }
                        Ok(values?.into_iter().map(Ok).collect())
                    }
                }
            };
            self.reads.ask(key.to_owned(), alone, together).await
        };
        self.watched(call).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            self.access.check(key, &value)?;
            adapter.set(&[Row { key, value, expires_at: end(ttl) }]).await
        };
        self.watched(call).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            let keys = self.access.distinct(keys);
            let mut deleted = 0;
            for keys in keys.chunks(self.access.limits().batch.max(1)) {
                deleted += adapter.delete(keys, now()).await?;
            }
            Ok(deleted)
        };
        self.watched(call).await
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            if !self.access.takes_characters_of(prefix) {
                return Ok(());
            }
            adapter.clear(prefix).await
        };
        self.watched(call).await
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        let call = async { get_all(&self.access, keys).await };
        self.watched(call).await
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            for write in writes {
                self.access.check(write.key, &write.value)?;
            }
            let rows = batch::rows(writes);
            for rows in batch::split(&rows, &self.access.limits()) {
                adapter.set(rows).await?;
            }
            Ok(())
        };
        self.watched(call).await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            self.access.check(key, &value)?;
            adapter.insert(Row { key, value, expires_at: end(ttl) }, now()).await
        };
        self.watched(call).await
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            if !self.access.can_hold(key) {
                return Ok(None);
            }
            adapter.pull(key, now()).await
        };
        self.watched(call).await
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            self.access.check(key, &value)?;
            if !self.access.can_be_there(expected) {
                return Ok(false);
            }
            adapter.update(key, expected, value, now()).await
        };
        self.watched(call).await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            if !self.access.can_hold(key) {
                return Ok(false);
            }
            adapter.touch(key, end(ttl), now()).await
        };
        self.watched(call).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let call = async {
            let adapter = self.access.open().await?;
            if !self.access.can_hold(key) || !self.access.can_be_there(value) {
                return Ok(false);
            }
            adapter.delete_if(key, value, now()).await
        };
        self.watched(call).await
    }

    async fn prune(&self) -> Result<u64, DriverError> {
        let call = async { self.access.open().await?.prune(now()).await };
        self.watched(call).await
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        let access = self.access.clone();
        let prefix = prefix.to_owned();
        key_pages(None::<String>, move |after| {
            let (access, prefix, name) = (access.clone(), prefix.clone(), access.adapter.name());
            let page = async move {
                let adapter = access.open().await?;
                if !access.takes_characters_of(&prefix) {
                    return Ok((Vec::new(), None));
                }
                let page = adapter.keys(&prefix, after.as_deref(), PAGE, now()).await?;
                let last = page.last().filter(|_| page.len() >= PAGE).cloned();
                Ok((page, last.map(Some)))
            };
            on_runtime(name, page)
        })
    }

    fn link(&self) -> Option<LinkStream> {
        Some(self.probe.reports())
    }

    /// Ends the background task. The pool of the application stays open.
    fn trouble(&self) -> Option<String> {
        self.access.adapter.trouble()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        let call = async {
            drop(self.replace_pruning(None));
            if self.access.close() { self.access.adapter.disconnect().await } else { Ok(()) }
        };
        self.watched(call).await
    }
}
