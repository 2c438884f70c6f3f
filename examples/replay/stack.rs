//! The cache that a trace is played through, the source behind it, and what watches both.

use std::cell::Cell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use bentocache::driver::{DriverError, L2Driver};
use bentocache::file::File;
use bentocache::{BentoCache, BoxError, Event, EventKind, Memory, Observer, Store, Tier};
use bentocache::{TimeSource, TimeSpan};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{Args, Clock, L2};

/// A cache, ready to be asked.
pub(crate) struct Stack {
    pub(crate) cache: BentoCache,
    pub(crate) source: Arc<Source>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) l1: Arc<Memory>,
    pub(crate) clock: Option<Arc<TraceTime>>,
}

impl Stack {
    /// With the files of L2 in `scratch`, if that is where they are to be.
    pub(crate) async fn open(
        args: &Args,
        clock: Clock,
        scratch: Option<&Scratch>,
    ) -> Result<Self, BoxError> {
        let l1 = Arc::new(Memory::new().max_items(args.items));
        let store = Store::new().l1(l1.clone());
        let store = match (&args.l2, scratch) {
            (L2::Memory, _) => store.l2(Map::default()),
            (L2::Directory(path), _) => store.l2(File::new(path)),
            (L2::TemporaryFiles, Some(scratch)) => store.l2(File::new(scratch.0.path())),
            (L2::None, _) | (L2::TemporaryFiles, None) => store,
        };
        let seen = Arc::new(Seen::default());
        let mut builder = BentoCache::builder()
            .prefix("replay")
            .ttl(TimeSpan::from(&args.ttl))
            .grace(TimeSpan::from(&args.grace))
            .observer(Watch(seen.clone()))
            .store("replay", store);
        let clock = match clock {
            Clock::Auto | Clock::Real => None,
            Clock::Log => Some(Arc::new(TraceTime::new(None))),
            Clock::Rate(rate) => Some(Arc::new(TraceTime::new(Some(rate)))),
        };
        if let Some(clock) = &clock {
            builder = builder.clock(SharedTime(clock.clone()));
        }
        let source = Arc::new(Source {
            latency: args.source_latency,
            size: args.value_size,
            calls: AtomicU64::new(0),
        });
        Ok(Self { cache: builder.build().await?, source, seen, l1, clock })
    }
}

/// A temporary directory for L2.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        TempDir::with_prefix("bentocache-replay-").map(Self)
    }

    /// Removes it, with several threads: it may hold a file for each key, and a file system that
    /// is busy writing can take minutes to remove a hundred thousand of them one by one.
    pub(crate) fn remove(self) -> io::Result<()> {
        const THREADS: usize = 8;
        let parts: Vec<_> =
            self.0.path().read_dir()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some(part) = parts.get(next.fetch_add(1, Relaxed)) {
                        // What could not be removed is tried once more below, and reported.
                        let _ = std::fs::remove_dir_all(part);
                    }
                });
            }
        });
        self.0.close()
    }
}

/// What the source has for a key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Tells whose value it is, so that an answer can be checked.
    pub(crate) id: u64,
    body: String,
}

/// A simulated database: it has something for every key.
pub(crate) struct Source {
    latency: Duration,
    size: usize,
    calls: AtomicU64,
}

impl Source {
    pub(crate) fn id(key: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    }

    /// The value is shared, not copied, with all who ask for it.
    pub(crate) async fn load(&self, id: u64) -> Result<Arc<Record>, Infallible> {
        self.calls.fetch_add(1, Relaxed);
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        Ok(Arc::new(Record { id, body: "x".repeat(self.size) }))
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }
}

/// By what a request was answered, in the words of the cache's own events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    L1,
    L2,
    Stale,
    Miss,
}

impl Answered {
    pub(crate) const ALL: [Self; 4] = [Self::L1, Self::L2, Self::Stale, Self::Miss];
}

tokio::task_local! {
    /// What the events of the present task's last request said. The cache reports a read in the
    /// task that asked for it.
    pub(crate) static ANSWERED: Cell<Option<Answered>>;
}

/// Counts what the cache reports of its own work.
#[derive(Default)]
pub(crate) struct Seen {
    answered: [AtomicU64; Answered::ALL.len()],
    pub(crate) written: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) l2_failures: AtomicU64,
    /// The first of them.
    pub(crate) l2_failure: OnceLock<String>,
    pub(crate) breaker_openings: AtomicU64,
}

impl Seen {
    pub(crate) fn answered(&self) -> [u64; Answered::ALL.len()] {
        std::array::from_fn(|at| self.answered[at].load(Relaxed))
    }
}

struct Watch(Arc<Seen>);

impl Observer for Watch {
    fn observe(&self, event: &Event<'_>) {
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Relaxed);
        };
        let answered = match &event.kind {
            EventKind::Hit { graced: true, .. } => Answered::Stale,
            EventKind::Hit { tier: Tier::L1, .. } => Answered::L1,
            EventKind::Hit { tier: Tier::L2, .. } => Answered::L2,
            EventKind::Miss { .. } => Answered::Miss,
            EventKind::Written { .. } => return count(&self.0.written),
            EventKind::Evicted { .. } => return count(&self.0.evicted),
            EventKind::L2Failed { operation, error } => {
                self.0.l2_failure.get_or_init(|| format!("{operation}: {error}"));
                return count(&self.0.l2_failures);
            }
            EventKind::BreakerOpened => return count(&self.0.breaker_openings),
            _ => return,
        };
        count(&self.0.answered[answered as usize]);
        // Elsewhere there is nobody to tell.
        let _ = ANSWERED.try_with(|last| last.set(Some(answered)));
    }
}

/// The time of the trace: it moves with the requests, so that a ttl of five minutes is five minutes
/// of the trace, however fast it is played.
pub(crate) struct TraceTime {
    /// Milliseconds between two requests; none if the trace tells the time.
    step: Option<f64>,
    /// Milliseconds since 1970; 0 before the first request.
    now: AtomicU64,
    first: AtomicU64,
}

/// Where a trace that tells no time begins: 2 January 2000.
const BEGINNING: u64 = 946_771_200_000;

impl TraceTime {
    fn new(rate: Option<f64>) -> Self {
        let (step, now, first) = (rate.map(|rate| 1000.0 / rate), AtomicU64::new(0), 0.into());
        Self { step, now, first }
    }

    /// Moves on to a request: its number, from 0, and its own time. A log is written when requests
    /// end, so its times go back a little now and then; the cache's never does.
    pub(crate) fn advance(&self, number: u64, at: Option<u64>) {
        let now = match self.step {
            Some(step) => BEGINNING + (number as f64 * step) as u64,
            None => at.unwrap_or(BEGINNING),
        };
        let _ = self.first.compare_exchange(0, now, Relaxed, Relaxed);
        self.now.fetch_max(now, Relaxed);
    }

    /// How much time the trace has covered.
    pub(crate) fn covered(&self) -> Duration {
        Duration::from_millis(self.now.load(Relaxed) - self.first.load(Relaxed))
    }
}

struct SharedTime(Arc<TraceTime>);

impl TimeSource for SharedTime {
    fn monotonic_ms(&self) -> u64 {
        // Not 0, which means "expired" in an entry.
        self.0.now.load(Relaxed) + 1
    }

    fn epoch_ms(&self) -> u64 {
        self.0.now.load(Relaxed)
    }
}

/// An L2 in this process, for measuring without a disk or a network. Its expiry is left to
/// the cache, which looks at the end of every entry it reads.
#[derive(Default)]
struct Map(RwLock<HashMap<Box<str>, Bytes>>);

impl L2Driver for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    async fn set(&self, key: &str, value: Bytes, _: Option<Duration>) -> Result<(), DriverError> {
        self.write().insert(key.into(), value);
        Ok(())
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        let mut map = self.write();
        Ok(keys.iter().filter(|&&key| map.remove(key).is_some()).count() as u64)
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.write().retain(|key, _| !key.starts_with(prefix));
        Ok(())
    }
}

impl Map {
    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Box<str>, Bytes>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
