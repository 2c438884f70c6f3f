//! Plain drivers in memory, for tests of the engine and of the suites.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bentocache_driver::{
    BusDriver, BusEvent, BusStream, Capabilities, DriverError, Entry, ErrorKind, Inserted,
    KeyStream, L1Driver, L2Driver, Life, LockDriver, NEVER, Topic, Value, Write,
};
use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A panic of one test thread must not hide behind poisoned locks of the others.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that no other test uses: `prefix`, then only letters, digits and `_`. For tables,
/// prefixes, channels and directories on a shared server.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let count = COUNT.fetch_add(1, Relaxed);
    format!("{prefix}{time:x}_{:x}_{count:x}", std::process::id())
}

/// An L2 in memory.
///
/// A clone shares the map, so several nodes of a test can share one store; only
/// [`disconnect`](L2Driver::disconnect) affects a single clone. Expiry follows [`tokio::time`], so
/// it works with a paused clock. Pull, update and compare-and-delete are atomic.
///
/// The other methods inspect and change the map without the cache's knowledge.
///
/// ```
/// use bentocache_driver::L2Driver;
/// use bentocache_testkit::MapL2;
/// use bytes::Bytes;
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache_driver::DriverError> {
/// let store = MapL2::new();
/// let node = store.clone();
/// node.set("a", Bytes::from_static(b"1"), Some(Duration::from_secs(60))).await?;
/// assert_eq!(store.peek("a").as_deref(), Some(&b"1"[..]));
/// assert!(store.remaining("a").unwrap() <= Duration::from_secs(60));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MapL2 {
    rows: Arc<Mutex<BTreeMap<String, Row>>>,
    max_value: Option<usize>,
    max_key: Option<usize>,
    can_clear: bool,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Row {
    value: Bytes,
    end: Option<Instant>,
}

impl Row {
    fn new(value: Bytes, ttl: Option<Duration>) -> Self {
        // An end that an `Instant` cannot represent is no end.
        Self { value, end: ttl.and_then(|ttl| Instant::now().checked_add(ttl)) }
    }

    fn is_live(&self) -> bool {
        self.end.is_none_or(|end| Instant::now() < end)
    }
}

impl Default for MapL2 {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MapL2 {
    fn clone(&self) -> Self {
        Self {
            rows: self.rows.clone(),
            max_value: self.max_value,
            max_key: self.max_key,
            can_clear: self.can_clear,
            closed: AtomicBool::new(false),
        }
    }
}

impl MapL2 {
    /// An empty store without limits.
    pub fn new() -> Self {
        Self {
            rows: Arc::default(),
            max_value: None,
            max_key: None,
            can_clear: true,
            closed: AtomicBool::new(false),
        }
    }

    /// Refuses values of more than this many bytes, in this clone and its clones.
    #[must_use]
    pub fn max_value(mut self, bytes: usize) -> Self {
        self.max_value = Some(bytes);
        self
    }

    /// Refuses keys of more than this many bytes, in this clone and its clones.
    #[must_use]
    pub fn max_key(mut self, bytes: usize) -> Self {
        self.max_key = Some(bytes);
        self
    }

    /// Refuses to clear by prefix, like a store that cannot list its keys, in this clone and its
    /// clones.
    #[must_use]
    pub fn without_clear(mut self) -> Self {
        self.can_clear = false;
        self
    }

    /// The bytes of the key, unless they have expired.
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        lock(&self.rows).get(key).filter(|row| row.is_live()).map(|row| row.value.clone())
    }

    /// Stores the bytes, like another process.
    pub fn put(&self, key: &str, value: impl Into<Bytes>, ttl: Option<Duration>) {
        lock(&self.rows).insert(key.to_owned(), Row::new(value.into(), ttl));
    }

    /// Removes the key, like another process, and returns its bytes unless they had expired.
    pub fn take(&self, key: &str) -> Option<Bytes> {
        lock(&self.rows).remove(key).filter(Row::is_live).map(|row| row.value)
    }

    /// The remaining time of the key; [`Duration::MAX`] without an end, `None` for a missing key.
    pub fn remaining(&self, key: &str) -> Option<Duration> {
        let rows = lock(&self.rows);
        let row = rows.get(key).filter(|row| row.is_live())?;
        Some(row.end.map_or(Duration::MAX, |end| end - Instant::now()))
    }

    /// The number of unexpired values.
    pub fn len(&self) -> usize {
        lock(&self.rows).values().filter(|row| row.is_live()).count()
    }

    /// Whether there are no unexpired values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of stored values, including expired ones that have not been removed yet.
    pub fn stored(&self) -> usize {
        lock(&self.rows).len()
    }

    /// The unexpired keys, sorted.
    pub fn all_keys(&self) -> Vec<String> {
        let rows = lock(&self.rows);
        rows.iter().filter(|(_, row)| row.is_live()).map(|(key, _)| key.clone()).collect()
    }

    fn rows(&self) -> Result<MutexGuard<'_, BTreeMap<String, Row>>, DriverError> {
        if self.closed.load(Relaxed) {
            return Err(DriverError::new(ErrorKind::Closed, "the map was disconnected"));
        }
        Ok(lock(&self.rows))
    }

    fn admit(&self, key: &str, value: &Bytes) -> Result<(), DriverError> {
        for (what, size, limit) in
            [("key", key.len(), self.max_key), ("value", value.len(), self.max_value)]
        {
            if let Some(limit) = limit.filter(|limit| size > *limit) {
                return Err(DriverError::new(
                    ErrorKind::TooLarge,
                    format!("a {what} of {size} bytes is over the map's limit of {limit} bytes"),
                ));
            }
        }
        Ok(())
    }
}

impl L2Driver for MapL2 {
    fn name(&self) -> &'static str {
        "map"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default().with_atomic_pull().with_atomic_compare();
        capabilities.max_value = self.max_value;
        capabilities.max_key = self.max_key;
        capabilities.clear = self.can_clear;
        capabilities
    }

    fn identity(&self) -> Option<String> {
        Some(format!("{:p}", Arc::as_ptr(&self.rows)))
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let rows = self.rows()?;
        Ok(rows.get(key).filter(|row| row.is_live()).map(|row| row.value.clone()))
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        let rows = self.rows()?;
        let live = |key: &&str| rows.get(*key).filter(|row| row.is_live());
        Ok(keys.iter().map(|key| live(key).map(|row| row.value.clone())).collect())
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.admit(key, &value)?;
        self.rows()?.insert(key.to_owned(), Row::new(value, ttl));
        Ok(())
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.admit(key, &value)?;
        let mut rows = self.rows()?;
        let vacant = rows.get(key).is_none_or(|row| !row.is_live());
        if vacant {
            rows.insert(key.to_owned(), Row::new(value, ttl));
        }
        Ok(vacant)
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        for write in writes {
            self.admit(write.key, &write.value)?;
        }
        let mut rows = self.rows()?;
        for write in writes {
            rows.insert(write.key.to_owned(), Row::new(write.value.clone(), write.ttl));
        }
        Ok(())
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let mut rows = self.rows()?;
        let gone = keys.iter().filter_map(|key| rows.remove(*key));
        Ok(gone.filter(Row::is_live).count() as u64)
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let mut rows = self.rows()?;
        if !self.can_clear {
            let message = "this map cannot clear by prefix";
            return Err(DriverError::new(ErrorKind::Unsupported, message));
        }
        rows.retain(|key, _| !key.starts_with(prefix));
        Ok(())
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        Ok(self.rows()?.remove(key).filter(Row::is_live).map(|row| row.value))
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.admit(key, &value)?;
        let mut rows = self.rows()?;
        let row = rows.get_mut(key).filter(|row| row.is_live() && row.value == expected);
        Ok(row.map(|row| row.value = value).is_some())
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        let mut rows = self.rows()?;
        let Some(row) = rows.get_mut(key).filter(|row| row.is_live()) else { return Ok(false) };
        *row = Row::new(row.value.clone(), ttl);
        Ok(true)
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let mut rows = self.rows()?;
        let same = rows.get(key).is_some_and(|row| row.is_live() && row.value == value);
        if same {
            rows.remove(key);
        }
        Ok(same)
    }

    async fn prune(&self) -> Result<u64, DriverError> {
        let mut rows = self.rows()?;
        let before = rows.len();
        rows.retain(|_, row| row.is_live());
        Ok((before - rows.len()) as u64)
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        let keys = self.rows().map(|rows| {
            let live = rows.iter().filter(|(key, row)| key.starts_with(prefix) && row.is_live());
            live.map(|(key, _)| Ok(key.clone())).collect()
        });
        Box::pin(Items(keys.unwrap_or_else(|error| vec![Err(error)]).into_iter()))
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.closed.store(true, Relaxed);
        Ok(())
    }
}

/// A stream of items that are ready.
struct Items<T>(std::vec::IntoIter<T>);

impl<T: Unpin> Stream for Items<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        Poll::Ready(self.0.next())
    }
}

/// A lock in memory. A clone shares the leases; they follow [`tokio::time`].
#[derive(Debug, Clone, Default)]
pub struct MapLock {
    leases: Arc<Mutex<HashMap<String, Lease>>>,
}

/// The owner's token, and the end of the lease.
type Lease = (String, Option<Instant>);

impl MapLock {
    /// A lock that nobody holds.
    pub fn new() -> Self {
        Self::default()
    }

    /// The token of the current owner of the key's lease.
    pub fn holder(&self, key: &str) -> Option<String> {
        lock(&self.leases).get(key).filter(|(_, end)| runs(end)).map(|(token, _)| token.clone())
    }

    fn lease_of(lease: Duration) -> Option<Instant> {
        Instant::now().checked_add(lease)
    }
}

/// Whether a lease with this end is running; a lease without an end always is.
fn runs(end: &Option<Instant>) -> bool {
    end.is_none_or(|end| Instant::now() < end)
}

impl LockDriver for MapLock {
    fn name(&self) -> &'static str {
        "map"
    }

    async fn acquire(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        let mut leases = lock(&self.leases);
        if leases.get(key).is_some_and(|(_, end)| runs(end)) {
            return Ok(false);
        }
        leases.insert(key.to_owned(), (token.to_owned(), Self::lease_of(lease)));
        Ok(true)
    }

    async fn renew(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        let mut leases = lock(&self.leases);
        let own = leases.get_mut(key).filter(|(holder, end)| holder == token && runs(end));
        Ok(own.map(|(_, end)| *end = Self::lease_of(lease)).is_some())
    }

    async fn release(&self, key: &str, token: &str) -> Result<bool, DriverError> {
        let mut leases = lock(&self.leases);
        let own = leases.get(key).is_some_and(|(holder, end)| holder == token && runs(end));
        if own {
            leases.remove(key);
        }
        Ok(own)
    }
}

/// A bus in memory. A clone is another process on the same bus: it shares the channels, and
/// [`disconnect`](BusDriver::disconnect) ends its own subscriptions only.
#[derive(Debug, Default)]
pub struct MapBus {
    channels: Arc<Mutex<Vec<Subscriber>>>,
    own: Arc<()>,
}

#[derive(Debug)]
struct Subscriber {
    channel: String,
    owner: Arc<()>,
    sender: mpsc::UnboundedSender<Bytes>,
}

impl Clone for MapBus {
    fn clone(&self) -> Self {
        Self { channels: self.channels.clone(), own: Arc::default() }
    }
}

impl MapBus {
    /// A bus that nobody listens to.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends the message to every subscriber of the channel, like another process.
    pub fn send(&self, channel: &str, message: impl Into<Bytes>) {
        let message = message.into();
        lock(&self.channels).retain(|subscriber| {
            if subscriber.channel == channel {
                subscriber.sender.send(message.clone()).is_ok()
            } else {
                !subscriber.sender.is_closed()
            }
        });
    }

    /// The number of open subscriptions to the channel, in all clones together.
    pub fn subscribers(&self, channel: &str) -> usize {
        let channels = lock(&self.channels);
        channels.iter().filter(|s| s.channel == channel && !s.sender.is_closed()).count()
    }
}

impl BusDriver for MapBus {
    fn name(&self) -> &'static str {
        "map"
    }

    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        self.send(topic.channel, message);
        Ok(())
    }

    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.channels).push(Subscriber {
            channel: topic.channel.to_owned(),
            owner: self.own.clone(),
            sender,
        });
        Ok(Box::pin(Messages(receiver)))
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        lock(&self.channels).retain(|subscriber| !Arc::ptr_eq(&subscriber.owner, &self.own));
        Ok(())
    }
}

struct Messages(mpsc::UnboundedReceiver<Bytes>);

impl Stream for Messages {
    type Item = BusEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<BusEvent>> {
        self.0.poll_recv(cx).map(|message| message.map(BusEvent::Message))
    }
}

/// An L1 that is only a map: it has no limit and evicts nothing.
#[derive(Debug, Default)]
pub struct MapL1 {
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
}

impl MapL1 {
    /// An empty tier.
    pub fn new() -> Self {
        Self::default()
    }
}

impl L1Driver for MapL1 {
    fn name(&self) -> &'static str {
        "map"
    }

    fn get(&self, key: &str) -> Option<Arc<Entry>> {
        lock(&self.entries).get(key).cloned()
    }

    fn insert(&self, entry: Arc<Entry>, _weight: u64) -> Inserted {
        let replaced = lock(&self.entries).insert(entry.key().to_owned(), entry);
        Inserted { replaced, ..Inserted::default() }
    }

    fn remove(&self, key: &str) -> Option<Arc<Entry>> {
        lock(&self.entries).remove(key)
    }

    fn clear(&self, prefix: &str) {
        self.drain(|key, _| key.starts_with(prefix));
    }

    fn prune(&self, now: u64) -> usize {
        self.drain(|_, entry| entry.dead_at() <= now)
    }

    fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    fn for_each(&self, visit: &mut dyn FnMut(&Arc<Entry>)) {
        let all: Vec<_> = lock(&self.entries).values().cloned().collect();
        all.iter().for_each(visit);
    }
}

impl MapL1 {
    /// Removes the entries that `is_out` selects, and drops them after the lock is released.
    fn drain(&self, is_out: impl Fn(&str, &Entry) -> bool) -> usize {
        let mut entries = lock(&self.entries);
        let (out, kept) =
            std::mem::take(&mut *entries).into_iter().partition(|(key, e)| is_out(key, e));
        *entries = kept;
        drop(entries);
        let out: BTreeMap<String, Arc<Entry>> = out;
        out.len()
    }
}

/// A [`Value`] of plain bytes, which are their own encoding in every codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Value for Blob {
    fn encode(&self, _codec: u8, out: &mut Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>> {
        out.extend_from_slice(&self.0);
        Ok(())
    }
}

/// An L1 entry that holds these bytes as a [`Blob`], is fresh until `dead_at` and must be gone then
/// ([`NEVER`] for no end).
pub fn entry(key: &str, bytes: impl Into<Vec<u8>>, dead_at: u64) -> Arc<Entry> {
    Arc::new(Entry::new(key, Blob(bytes.into()), life_until(dead_at), None))
}

/// Fresh until its end.
pub(crate) fn life_until(dead_at: u64) -> Life {
    Life {
        created_at: 1,
        fingerprint: 0,
        life: NEVER,
        ends_at: dead_at,
        fresh_until: dead_at,
        dead_at,
        verified_at: 0,
        epoch: 1,
        graced: false,
    }
}
