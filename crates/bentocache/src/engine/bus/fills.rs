//! What this node stored in the second tier a moment ago.
//!
//! Nothing orders a message of another node and a write of this one. So a node remembers for a
//! while what it stored of values that it had not just been given. When a message invalidates such
//! a key, the node takes its own value back.

use std::collections::HashMap;

use crate::site::Key;
use crate::sync::Mutex;
use crate::wire::message::Kind;

/// How long a fill is remembered, in ms.
const REMEMBERED_FOR: u64 = 2_000;
/// Fills remembered at most.
const MOST: usize = 10_000;

/// What this process stored in the second tier of values that it had not just been given.
pub(super) struct Fill {
    pub(super) key: Key,
    /// Of the bytes, which may be large.
    pub(super) digest: u64,
    /// Of the entry, in ms since the epoch.
    pub(super) created_at: u64,
    /// Whether it took only the place of something older: no message about another value is meant.
    pub(super) hides_nothing: bool,
    pub(super) at: u64,
}

impl Fill {
    fn is_recent(&self, now: u64) -> bool {
        self.at + REMEMBERED_FOR >= now
    }
}

/// By the hash of the key.
#[derive(Default)]
pub(super) struct Fills(Mutex<HashMap<u64, Fill>>);

impl Fills {
    pub(super) fn add(&self, fill: Fill) {
        let mut fills = self.0.lock();
        if fills.len() >= MOST {
            fills.retain(|_, other| other.is_recent(fill.at));
        }
        if fills.len() < MOST {
            fills.insert(fill.key.hash, fill);
        }
    }

    /// The fill of a key to which that happened.
    pub(super) fn take(&self, key: &Key, kind: Kind, now: u64) -> Option<Fill> {
        let mut fills = self.0.lock();
        if kind == Kind::Set && fills.get(&key.hash)?.hides_nothing {
            return None;
        }
        let fill = fills.remove(&key.hash)?;
        (fill.is_recent(now) && fill.key.full == key.full).then_some(fill)
    }

    /// The fills of all keys under a prefix.
    pub(super) fn take_under(&self, prefix: &str, now: u64) -> Vec<Fill> {
        let mut fills = self.0.lock();
        let all = fills.extract_if(|_, fill| fill.key.full.starts_with(prefix));
        all.map(|(_, fill)| fill).filter(|fill| fill.is_recent(now)).collect()
    }
}
