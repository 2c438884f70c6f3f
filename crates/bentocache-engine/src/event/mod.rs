//! Events: what the cache reports about its work, to listeners and to the log.

pub(crate) mod log;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::DriverError;
use tokio::sync::broadcast;

/// A tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The tier in this process.
    L1,
    /// The tier that processes share.
    L2,
}

impl Tier {
    /// `l1` or `l2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
        }
    }
}

/// An event of a store.
///
/// Keys have no store prefix but include their namespaces. One call of a read operation emits one
/// [`Hit`](EventKind::Hit) or one [`Miss`](EventKind::Miss) per key. Lookups of tags emit neither.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The name of the store.
    pub store: Cow<'a, str>,
    /// The kind of the event, with its data.
    pub kind: EventKind<'a>,
}

/// The kinds of events.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum EventKind<'a> {
    /// A value was found.
    Hit {
        /// The key.
        key: Cow<'a, str>,
        /// The tier where it was found.
        tier: Tier,
        /// Whether the value was stale and served under grace.
        graced: bool,
    },
    /// No fresh value was found, and no stale value was served. The caller of a `get_or_set` got
    /// the value that the factory produced, or an error.
    Miss {
        /// The key.
        key: Cow<'a, str>,
    },
    /// A value was stored.
    Written {
        /// The key.
        key: Cow<'a, str>,
    },
    /// A key was deleted.
    Deleted {
        /// The key.
        key: Cow<'a, str>,
    },
    /// A call made a key stale.
    Expired {
        /// The key.
        key: Cow<'a, str>,
    },
    /// A call gave a value another ttl.
    Touched {
        /// The key.
        key: Cow<'a, str>,
    },
    /// Everything under a namespace was removed; the empty namespace is the whole store.
    Cleared {
        /// The namespace.
        namespace: Cow<'a, str>,
    },
    /// The values with a tag were made stale.
    TagExpired {
        /// The tag.
        tag: Cow<'a, str>,
    },
    /// The values with a tag were deleted.
    TagInvalidated {
        /// The tag.
        tag: Cow<'a, str>,
    },
    /// A factory produced a value.
    FactorySucceeded {
        /// The key.
        key: Cow<'a, str>,
        /// Whether no caller waited for it any more.
        background: bool,
        /// How long it took.
        took: Duration,
    },
    /// A factory failed or panicked.
    FactoryFailed {
        /// The key.
        key: Cow<'a, str>,
        /// Whether no caller waited for it any more.
        background: bool,
        /// How long it took.
        took: Duration,
    },
    /// A caller stopped waiting for a factory because of a timeout.
    FactoryTimeout {
        /// The key.
        key: Cow<'a, str>,
        /// Whether it was the hard timeout, which is an error. Otherwise it was the soft timeout,
        /// and a stale value was served.
        hard: bool,
    },
    /// A caller stopped waiting for another caller's factory because of the lock timeout.
    LockTimeout {
        /// The key.
        key: Cow<'a, str>,
    },
    /// The lock between processes failed; this node continues without it.
    LockFailed {
        /// The reason.
        error: Arc<DriverError>,
    },
    /// Stored bytes could not be decoded; the read counted as a miss.
    #[non_exhaustive]
    DecodeFailed {
        /// The key.
        key: Cow<'a, str>,
        /// What was expected and where, without any part of the value.
        reason: Cow<'a, str>,
    },
    /// A call of L2 failed.
    L2Failed {
        /// The operation.
        operation: &'static str,
        /// The driver's error.
        error: Arc<bentocache_driver::DriverError>,
    },
    /// A call of L2 was not made: the breaker is open, or the operation had no time left for it.
    L2Skipped {
        /// The operation.
        operation: &'static str,
    },
    /// L2 failed repeatedly; the breaker is open, and calls are skipped for a while.
    BreakerOpened,
    /// L2 works again; the breaker is closed.
    BreakerClosed,
    /// A message was sent to the other processes.
    BusPublished {
        /// The number of keys in the message.
        keys: usize,
    },
    /// A message of another process arrived.
    BusReceived {
        /// The number of keys in the message.
        keys: usize,
    },
    /// A message arrived that could not be decoded.
    BusRejected,
    /// Messages of other processes may be missed.
    BusLost,
    /// Messages of other processes arrive again.
    BusRestored,
    /// A change that failed was queued for replay.
    RecoveryQueued {
        /// The number of queued changes.
        queued: usize,
    },
    /// A queued change was replayed, or is no longer needed.
    RecoveryDone {
        /// The number of queued changes.
        queued: usize,
    },
    /// A failed change was given up: the queue is full, L2 refused the change for good, or a set
    /// was dropped because its key may have been deleted meanwhile.
    RecoveryDropped {
        /// The number of queued changes.
        queued: usize,
    },
    /// L1 refused a value that is larger than its limit for one entry.
    #[non_exhaustive]
    Refused {
        /// The key.
        key: Cow<'a, str>,
        /// The size of the entry in bytes, as L1 counts it.
        size: u64,
        /// The largest entry that L1 accepts, if L1 reports it.
        limit: Option<u64>,
    },
    /// L1 evicted a value to make room.
    Evicted {
        /// The key.
        key: Cow<'a, str>,
    },
}

impl Event<'_> {
    /// The same event with owned texts.
    pub fn into_owned(self) -> Event<'static> {
        use EventKind as E;
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        let kind = match self.kind {
            E::Hit { key, tier, graced } => E::Hit { key: own(key), tier, graced },
            E::Miss { key } => E::Miss { key: own(key) },
            E::Written { key } => E::Written { key: own(key) },
            E::Deleted { key } => E::Deleted { key: own(key) },
            E::Expired { key } => E::Expired { key: own(key) },
            E::Touched { key } => E::Touched { key: own(key) },
            E::Cleared { namespace } => E::Cleared { namespace: own(namespace) },
            E::TagExpired { tag } => E::TagExpired { tag: own(tag) },
            E::TagInvalidated { tag } => E::TagInvalidated { tag: own(tag) },
            E::FactorySucceeded { key, background, took } => {
                E::FactorySucceeded { key: own(key), background, took }
            }
            E::FactoryFailed { key, background, took } => {
                E::FactoryFailed { key: own(key), background, took }
            }
            E::FactoryTimeout { key, hard } => E::FactoryTimeout { key: own(key), hard },
            E::LockTimeout { key } => E::LockTimeout { key: own(key) },
            E::LockFailed { error } => E::LockFailed { error },
            E::DecodeFailed { key, reason } => {
                E::DecodeFailed { key: own(key), reason: own(reason) }
            }
            E::L2Failed { operation, error } => E::L2Failed { operation, error },
            E::L2Skipped { operation } => E::L2Skipped { operation },
            E::BreakerOpened => E::BreakerOpened,
            E::BreakerClosed => E::BreakerClosed,
            E::BusPublished { keys } => E::BusPublished { keys },
            E::BusReceived { keys } => E::BusReceived { keys },
            E::BusRejected => E::BusRejected,
            E::BusLost => E::BusLost,
            E::BusRestored => E::BusRestored,
            E::RecoveryQueued { queued } => E::RecoveryQueued { queued },
            E::RecoveryDone { queued } => E::RecoveryDone { queued },
            E::RecoveryDropped { queued } => E::RecoveryDropped { queued },
            E::Refused { key, size, limit } => E::Refused { key: own(key), size, limit },
            E::Evicted { key } => E::Evicted { key: own(key) },
        };
        Event { store: own(self.store), kind }
    }
}

/// Gets every event immediately, in the thread in which it happens; for metrics.
///
/// It runs on the hot path, so it should count and return. It must not block and must not call the
/// cache. A panic in it is contained. For slower work use
/// [`BentoCache::events`](crate::BentoCache::events) or [`BentoCache::on`](crate::BentoCache::on).
pub trait Observer: Send + Sync + 'static {
    /// Records an event.
    fn observe(&self, event: &Event<'_>);
}

/// Sends events to observers immediately, and to streams asynchronously.
pub(crate) struct Events {
    /// Whether there is an observer, a stream, or a log that has debug lines. It may be set although
    /// there is none.
    active: AtomicBool,
    observers: Vec<Arc<dyn Observer>>,
    sender: broadcast::Sender<Arc<Event<'static>>>,
}

/// The number of events that a stream may lag behind before it misses some.
const BACKLOG: usize = 4_096;

impl Events {
    pub(crate) fn new(observers: Vec<Arc<dyn Observer>>) -> Self {
        Self {
            active: AtomicBool::new(!observers.is_empty()),
            observers,
            sender: broadcast::channel(BACKLOG).0,
        }
    }

    /// Whether events have a reader. Without one, no event is built. This is all that a hit asks:
    /// [`follow_log`](Self::follow_log) keeps it up to date with the log.
    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// Whether the log has debug lines at present. Hits are logged as long as the latest call said
    /// so.
    pub(crate) fn follow_log(&self) -> bool {
        let is_read = log::is_read();
        if is_read {
            self.active.store(true, Relaxed);
        } else if self.is_active() && !self.has_listeners() {
            self.active.store(false, Relaxed);
            // A stream that was opened in between must stay active.
            if self.has_listeners() {
                self.active.store(true, Relaxed);
            }
        }
        is_read
    }

    fn has_listeners(&self) -> bool {
        !self.observers.is_empty() || self.sender.receiver_count() > 0
    }

    #[cold]
    pub(crate) fn send(&self, event: &Event<'_>) {
        for observer in &self.observers {
            if catch_unwind(AssertUnwindSafe(|| observer.observe(event))).is_err() {
                tracing::warn!("an observer of cache events panicked");
            }
        }
        if self.sender.receiver_count() > 0 {
            // Fails only if the last receiver has just been dropped.
            let _ = self.sender.send(Arc::new(event.clone().into_owned()));
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event<'static>>> {
        let receiver = self.sender.subscribe();
        self.active.store(true, Relaxed);
        receiver
    }
}

/// The events of a store, or of all stores, from the moment when the stream was opened.
///
/// A reader that lags behind misses events instead of slowing the cache down.
/// [`missed`](EventStream::missed) counts them.
pub struct EventStream {
    receiver: broadcast::Receiver<Arc<Event<'static>>>,
    missed: u64,
}

impl EventStream {
    pub(crate) fn new(receiver: broadcast::Receiver<Arc<Event<'static>>>) -> Self {
        Self { receiver, missed: 0 }
    }

    /// The next event; `None` when the cache is dropped. Cancel-safe.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::BentoCache) -> Result<(), bentocache::Error> {
    /// let mut events = cache.events();
    /// while let Some(event) = events.next().await {
    ///     println!("{}: {:?}", event.store, event.kind);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Option<Arc<Event<'static>>> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => self.missed += missed,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// The next event, if one is available.
    pub fn try_next(&mut self) -> Option<Arc<Event<'static>>> {
        loop {
            match self.receiver.try_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::TryRecvError::Lagged(missed)) => self.missed += missed,
                Err(_) => return None,
            }
        }
    }

    /// The number of events that were missed because the reader was too slow.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// A listener added with [`BentoCache::on`](crate::BentoCache::on). Dropping it does not end the
/// listener; [`stop`](Listener::stop) does.
#[derive(Debug, Clone)]
pub struct Listener {
    stopped: Arc<AtomicBool>,
    panics: Arc<AtomicU64>,
}

impl Listener {
    /// Runs `listen` on its own thread, where it may be slow or panic without harm.
    pub(crate) fn start(
        mut receiver: broadcast::Receiver<Arc<Event<'static>>>,
        listen: impl Fn(&Event<'static>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let listener = Self { stopped: Arc::default(), panics: Arc::default() };
        let Self { stopped, panics } = listener.clone();
        std::thread::Builder::new().name("bentocache-listener".into()).spawn(move || {
            while !stopped.load(Relaxed) {
                match receiver.blocking_recv() {
                    Ok(event) => {
                        if stopped.load(Relaxed) {
                            return;
                        }
                        if catch_unwind(AssertUnwindSafe(|| listen(&event))).is_err() {
                            panics.fetch_add(1, Relaxed);
                            tracing::warn!("a listener to cache events panicked");
                        }
                    }
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "a listener to cache events is too slow");
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        })?;
        Ok(listener)
    }

    /// Ends the listener: it gets no more events.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// The number of panics of the listener.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }
}
