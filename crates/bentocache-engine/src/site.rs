//! The basics that every module of the engine uses: the store's name and keys, the clock, the
//! events, and the rules for logs.

use std::borrow::Cow;
use std::cell::RefCell;
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::NEVER;
use bytes::Bytes;
use foldhash::fast::RandomState as KeyHasher;
use smallvec::SmallVec;

use crate::clock::Clock;
use crate::error::{Error, ErrorKey};
use crate::event::log::{self, HIDDEN, Log};
use crate::event::{Event, EventKind, Events, Tier};
use crate::stats::{Counter, Counters};

/// One item per key of a call. Most calls have one key, and then it needs no allocation.
pub(crate) type KeyVec<T> = SmallVec<[T; 1]>;

/// The latest time that every reader can represent exactly, the Node library included. A value
/// that would expire later never expires.
pub(crate) const LAST: u64 = (1 << 53) - 1;

/// The identity of a store. Cheap to clone: each room has its own copy.
#[derive(Clone)]
pub(crate) struct Site {
    /// The store's name.
    pub(crate) name: Arc<str>,
    /// The prefix of all keys of the store with its colon, or nothing.
    pub(crate) root: Arc<str>,
    pub(crate) clock: Clock,
    pub(crate) events: Arc<Events>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) log_keys: bool,
    /// Hashes keys, and stored bytes for fingerprints. It is fast, and a collision does little
    /// harm.
    pub(crate) hasher: KeyHasher,
    /// Hashes stored bytes into digests, which identify them.
    pub(crate) digester: RandomState,
}

impl Site {
    pub(crate) fn key(&self, prefix: &str, name: &str) -> Key {
        let full: Arc<str> = with_joined(prefix, name, |full| full.into());
        let hash = self.hash(&full);
        let local_at = full.starts_with(&*self.root).then_some(self.root.len());
        Key { full, name_at: prefix.len(), local_at, hash }
    }

    pub(crate) fn hash(&self, full: &str) -> u64 {
        self.hasher.hash_one(full)
    }

    /// Identifies stored bytes.
    pub(crate) fn digest(&self, bytes: &Bytes) -> u64 {
        self.digester.hash_one(bytes)
    }

    /// The fingerprint of stored bytes. It distinguishes two values of one key and one millisecond,
    /// except for one pair in a million.
    pub(crate) fn fingerprint(&self, bytes: &Bytes) -> u32 {
        self.hasher.hash_one(bytes) as u32
    }

    /// Sends an event to every listener, and to the log. `kind` is only called if anybody may read
    /// it.
    #[inline]
    pub(crate) fn emit<'a>(&'a self, kind: impl FnOnce() -> EventKind<'a>) {
        if self.events.is_active() || log::may_be_read() {
            self.tell(kind());
        }
    }

    #[cold]
    fn tell(&self, kind: EventKind<'_>) {
        if self.events.follow_log() {
            let log = Log { store: &self.name, root: &self.root, log_keys: self.log_keys };
            log.write(&kind);
        }
        if self.events.is_active() {
            self.events.send(&Event { store: Cow::Borrowed(&self.name), kind });
        }
    }

    /// Counts something.
    #[inline(always)]
    pub(crate) fn count(&self, counter: Counter) {
        self.counters.add(counter, 1);
    }

    /// Counts something, and sends its event.
    #[inline]
    pub(crate) fn record<'a>(&'a self, counter: Counter, kind: impl FnOnce() -> EventKind<'a>) {
        self.count(counter);
        self.emit(kind);
    }

    /// Counts something that took this long, and the time.
    pub(crate) fn count_time(&self, counter: Counter, nanos: Counter, took: Duration) {
        self.count(counter);
        self.counters.add(nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts a hit, and sends its event.
    pub(crate) fn record_hit(&self, full: &str, tier: Tier, graced: bool) {
        let counter = match tier {
            _ if graced => Counter::GracedHits,
            Tier::L1 => Counter::L1Hits,
            Tier::L2 => Counter::L2Hits,
        };
        self.record(counter, || EventKind::Hit { key: self.shown(full), tier, graced });
    }

    /// A complete key as events show it: without the store's prefix.
    pub(crate) fn shown<'a>(&self, full: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(full.strip_prefix(&*self.root).unwrap_or(full))
    }

    /// A key as errors show it.
    pub(crate) fn key_in_errors(&self, key: &Key) -> ErrorKey {
        ErrorKey::new(self.shown(&key.full), self.log_keys)
    }

    /// A complete key as logs show it.
    pub(crate) fn logged<'a>(&self, full: &'a str) -> &'a str {
        if self.log_keys { full } else { HIDDEN }
    }

    /// An error as logs show it: the only one that quotes a tag is hidden with the keys.
    pub(crate) fn logged_error(&self, error: &Error) -> String {
        match error {
            Error::TagTooLong { .. } if !self.log_keys => HIDDEN.to_owned(),
            error => chain(error).to_string(),
        }
    }
}

#[cfg(all(test, not(shuttle)))]
impl Site {
    /// The site of a store without a name and prefix.
    pub(crate) fn for_tests() -> Self {
        Self {
            name: "".into(),
            root: "".into(),
            clock: Clock::default(),
            events: Arc::new(Events::new(Vec::new())),
            counters: Arc::default(),
            log_keys: false,
            hasher: KeyHasher::default(),
            digester: RandomState::default(),
        }
    }
}

/// A complete key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) full: Arc<str>,
    /// Where the caller's key begins, after prefix and namespaces.
    name_at: usize,
    /// Where the key without the store's prefix begins; `None` for a key of another store.
    local_at: Option<usize>,
    pub(crate) hash: u64,
}

impl Key {
    /// The part before the caller's key, without its last colon.
    pub(crate) fn namespace(&self) -> &str {
        let before = &self.full[..self.name_at];
        before.strip_suffix(':').unwrap_or(before)
    }

    /// The prefix of its handle as a key, which stands for all keys under it.
    pub(crate) fn as_prefix(&self) -> Self {
        let full: Arc<str> = self.prefix().into();
        Self { name_at: full.len(), local_at: self.local_at, hash: self.hash, full }
    }

    /// The part before the caller's key, which is the prefix of its handle.
    pub(crate) fn prefix(&self) -> &str {
        &self.full[..self.name_at]
    }

    /// The key without the store's prefix, as L1 has it; `None` for a key of another store.
    pub(crate) fn local(&self) -> Option<&str> {
        self.local_at.map(|at| &self.full[at..])
    }

    /// The caller's key.
    pub(crate) fn name(&self) -> &str {
        &self.full[self.name_at..]
    }
}

/// Calls `with` with the key in one piece. It allocates only for a very long key.
#[inline]
pub(crate) fn with_joined<R>(namespace: &str, name: &str, with: impl FnOnce(&str) -> R) -> R {
    /// The longest key for which the thread's buffer is kept.
    const ROOM: usize = 4 << 10;
    thread_local! {
        static BUFFER: RefCell<String> = const { RefCell::new(String::new()) };
    }
    if namespace.is_empty() {
        return with(name);
    }
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) if namespace.len() + name.len() <= ROOM => {
            buffer.clear();
            buffer.push_str(namespace);
            buffer.push_str(name);
            with(&buffer)
        }
        // The buffer is in use: a driver has called the cache.
        _ => with(&[namespace, name].concat()),
    })
}

/// An error with all its causes on one line.
pub(crate) fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl std::fmt::Display + 'a {
    struct Chain<'a>(&'a (dyn StdError + 'static));
    impl std::fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}", self.0)?;
            let mut cause = self.0.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
            Ok(())
        }
    }
    Chain(error)
}

/// The time from `now` until `end`; [`NEVER`] stays.
pub(crate) fn until(end: u64, now: u64) -> u64 {
    if end == NEVER { NEVER } else { end.saturating_sub(now) }
}

/// Milliseconds as drivers expect them; `None` means no expiry.
pub(crate) fn as_ttl(ms: u64) -> Option<Duration> {
    (ms != NEVER).then(|| Duration::from_millis(ms))
}

/// The prefix of marker keys, after prefix and namespaces.
pub(crate) const RESERVED: &str = "___bc:t:";
/// The prefix of bucket keys, after prefix and namespaces.
pub(crate) const BUCKET: &str = "___bc:b:";

/// The prefix of the keys of markers that clear a namespace, after the store's prefix.
pub(crate) const LEVEL: &str = "___bc:c:";
/// What comes before a version, in the namespace of its keys.
pub(crate) const VERSION: &str = "___bc:v:";

/// The namespace that has the keys of this version. Versions 0 and 1 need none of their own.
pub(crate) fn with_version(namespace: &str, version: u32) -> String {
    if version < 2 { namespace.into() } else { format!("{namespace}{VERSION}{version}:") }
}

/// A key or prefix without its version.
pub(crate) fn unversioned(full: &str) -> Cow<'_, str> {
    let Some(at) = part_at(full, VERSION) else { return Cow::Borrowed(full) };
    let version = &full[at + VERSION.len()..];
    match version.find(':') {
        Some(end) if version[..end].bytes().all(|byte| byte.is_ascii_digit()) => {
            let (before, after) = (&full[..at], &version[end + 1..]);
            if after.is_empty() { before.into() } else { [before, after].concat().into() }
        }
        _ => Cow::Borrowed(full),
    }
}

/// Whether this is the complete key of a tag's marker, hidden tags included.
pub(crate) fn is_marker(key: &str) -> bool {
    has_part(key, RESERVED) || has_part(key, LEVEL)
}

/// Whether this is the complete key of a marker or of a bucket. Applications may not use such keys.
pub(crate) fn is_reserved(key: &str) -> bool {
    is_marker(key) || has_part(key, BUCKET)
}

pub(crate) fn has_part(key: &str, part: &str) -> bool {
    part_at(key, part).is_some()
}

fn part_at(key: &str, part: &str) -> Option<usize> {
    // Keys often contain no underscore, and the search for it is fast.
    if !key.as_bytes().contains(&b'_') {
        return None;
    }
    let mut found = key.match_indices(part).map(|(at, _)| at);
    found.find(|at| *at == 0 || key.as_bytes()[at - 1] == b':')
}
