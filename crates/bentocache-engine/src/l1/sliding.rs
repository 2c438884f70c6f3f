//! Uses of sliding entries that L2 must be told of.
//!
//! A hit notes its use in the entry. Once in a quarter of the idle time it also comes here, and a
//! task of the engine extends the expiry in L2.

use std::collections::HashMap;

use bentocache_driver::{Entry, Sliding};
use tokio::sync::Notify;

use crate::sync::Mutex;

/// The number of keys of which the time of the last extension is remembered.
const MOST: usize = 10_000;

/// A value in L2 whose expiry must be extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    /// The key without the store's prefix.
    pub(crate) key: Box<str>,
    pub(crate) created_at: u64,
    /// The idle time, in ms.
    pub(crate) idle: u64,
}

/// Uses that wait for the task.
#[derive(Default)]
pub(crate) struct Uses {
    /// Whether the store has an L2.
    is_shared: bool,
    inner: Mutex<Waiting>,
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct Waiting {
    uses: Vec<Use>,
    /// By hash of the key: until when L2 need not be told again.
    told_until: HashMap<u64, u64>,
}

impl Uses {
    pub(super) fn new(is_shared: bool) -> Self {
        Self { is_shared, ..Self::default() }
    }

    /// Notes a use of an entry.
    #[inline]
    pub(super) fn note(&self, entry: &Entry, sliding: &Sliding, now: u64) {
        if sliding.note_use(now) && self.is_shared {
            self.tell_of(entry, sliding);
        }
    }

    #[cold]
    fn tell_of(&self, entry: &Entry, sliding: &Sliding) {
        let (created_at, idle) = (entry.created_at(), sliding.idle());
        self.inner.lock().uses.push(Use { key: entry.key().into(), created_at, idle });
        self.wake.notify_one();
    }

    /// Notes a use of a value of L2 that L1 does not have.
    pub(crate) fn note_stored(&self, one: Use) {
        self.inner.lock().uses.push(one);
        self.wake.notify_one();
    }

    /// The uses of which L2 must be told. `hash` hashes keys.
    pub(crate) fn take(&self, now: u64, hash: impl Fn(&str) -> u64) -> Vec<Use> {
        let Waiting { uses, told_until } = &mut *self.inner.lock();
        if told_until.len() > MOST {
            told_until.retain(|_, until| *until > now);
        }
        if told_until.len() > MOST {
            told_until.clear();
        }
        let mut all = std::mem::take(uses);
        all.retain(|one| {
            let until = told_until.entry(hash(&one.key)).or_default();
            let is_due = *until <= now;
            if is_due {
                *until = now.saturating_add((one.idle / 4).max(1));
            }
            is_due
        });
        all
    }

    /// L2 could not be told of a use of this key.
    pub(crate) fn forget(&self, hash: u64) {
        self.inner.lock().told_until.remove(&hash);
    }
}
