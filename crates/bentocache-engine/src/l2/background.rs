//! Writes whose callers do not wait for L2 (`l2_write_in_background`).
//!
//! Each such write has a [`Ticket`] from its call until L2 has it, or until it has failed and joined
//! the recovery queue. The tickets of a key form a line: writes reach L2 in the order of their
//! calls, and a change whose caller waits lets the line end first. Reads of this process see the
//! bytes of the last ticket as if L2 had them already. A `set` that waits behind another write takes
//! its place, so that a key that is set all the time needs only one call of L2 at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use tokio::sync::watch;

use crate::options::RecoveryOptions;
use crate::sync::Mutex;
use crate::wire::message::Kind;

/// A change by another process that was heard of while a write was under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contest {
    pub(crate) kind: Kind,
    /// In ms since the epoch.
    pub(crate) at: u64,
    pub(crate) grace: u64,
}

/// A write in its line.
struct Waiting {
    number: u64,
    bytes: Bytes,
    is_set: bool,
    contest: Option<Contest>,
    /// Its end, for the next in line: dropped with it.
    end: watch::Sender<()>,
}

#[derive(Default)]
struct Lines {
    of_keys: HashMap<Arc<str>, VecDeque<Waiting>>,
    next: u64,
    bytes: usize,
}

/// The writes under way.
#[derive(Default)]
pub(crate) struct Background {
    lines: Mutex<Lines>,
    /// The number of writes, so that a store without any needs no lock.
    len: AtomicUsize,
}

/// A write under way. It ends when this is dropped.
pub(crate) struct Ticket {
    background: Arc<Background>,
    key: Arc<str>,
    number: u64,
    /// The write before this one.
    before: Option<watch::Receiver<()>>,
}

impl Background {
    pub(super) fn len(&self) -> usize {
        self.len.load(SeqCst)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a ticket for each write, in this order; `None` if there is no room for all of them.
    pub(super) fn begin<'a>(
        self: &Arc<Self>,
        writes: impl Iterator<Item = (&'a Arc<str>, &'a Bytes)> + Clone,
        is_set: bool,
        limits: &RecoveryOptions,
    ) -> Option<Vec<Ticket>> {
        let size = |key: &Arc<str>, bytes: &Bytes| key.len() + bytes.len();
        let mut lines = self.lines.lock();
        let more: usize = writes.clone().map(|(key, bytes)| size(key, bytes)).sum();
        let count = self.len() + writes.clone().count();
        if count > limits.max_size || lines.bytes.saturating_add(more) > limits.max_bytes {
            return None;
        }
        let tickets = writes.map(|(key, bytes)| {
            let (number, end) = (lines.next, watch::Sender::new(()));
            lines.next += 1;
            lines.bytes += size(key, bytes);
            let line = lines.of_keys.entry(key.clone()).or_default();
            let before = line.back().map(|last| last.end.subscribe());
            line.push_back(Waiting { number, bytes: bytes.clone(), is_set, contest: None, end });
            Ticket { background: self.clone(), key: key.clone(), number, before }
        });
        let tickets = tickets.collect();
        self.len.store(count, SeqCst);
        Some(tickets)
    }

    /// The bytes that L2 will have under the key, unless another process has changed it.
    pub(super) fn overlay(&self, key: &str) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let lines = self.lines.lock();
        let last = lines.of_keys.get(key)?.back()?;
        last.contest.is_none().then(|| last.bytes.clone())
    }

    /// The writes of these keys.
    pub(super) fn of_keys<'k>(&self, keys: impl Iterator<Item = &'k str>) -> UnderWay {
        let mut ends = Vec::new();
        if !self.is_empty() {
            let lines = self.lines.lock();
            let last = keys.filter_map(|key| lines.of_keys.get(key)?.back());
            ends.extend(last.map(|last| last.end.subscribe()));
        }
        UnderWay(ends)
    }

    /// The writes of all keys under a prefix.
    pub(super) fn of_prefix(&self, prefix: &str) -> UnderWay {
        let mut ends = Vec::new();
        if !self.is_empty() {
            let lines = self.lines.lock();
            let lines = lines.of_keys.iter().filter(|(key, _)| key.starts_with(prefix));
            ends.extend(lines.filter_map(|(_, line)| Some(line.back()?.end.subscribe())));
        }
        UnderWay(ends)
    }

    /// Another process has changed the key: the writes under way may be older.
    pub(super) fn heard_of(&self, key: &str, contest: Contest) {
        if self.is_empty() {
            return;
        }
        let mut lines = self.lines.lock();
        lines.of_keys.get_mut(key).into_iter().flatten().for_each(|write| write.heard(contest));
    }

    /// As [`heard_of`](Self::heard_of), for all keys under a prefix.
    pub(super) fn heard_of_clear(&self, prefix: &str, at: u64) {
        if self.is_empty() {
            return;
        }
        let contest = Contest { kind: Kind::Clear, at, grace: 0 };
        let mut lines = self.lines.lock();
        for (_, line) in lines.of_keys.iter_mut().filter(|(key, _)| key.starts_with(prefix)) {
            line.iter_mut().for_each(|write| write.heard(contest));
        }
    }

    fn end(&self, key: &Arc<str>, number: u64) {
        let mut lines = self.lines.lock();
        let Some(line) = lines.of_keys.get_mut(key) else { return };
        let Some(place) = line.iter().position(|write| write.number == number) else { return };
        let ended = line.remove(place);
        if line.is_empty() {
            lines.of_keys.remove(key);
        }
        if let Some(Waiting { bytes, .. }) = &ended {
            lines.bytes -= key.len() + bytes.len();
            self.len.fetch_sub(1, SeqCst);
        }
        // Wakes the next in line.
        drop(lines);
        drop(ended);
    }
}

impl Waiting {
    /// A removal counts for more than a write that came after it: what was removed leaves nothing
    /// in L2 that could be compared.
    fn heard(&mut self, contest: Contest) {
        let is_removal = |kind| matches!(kind, Kind::Delete | Kind::Clear);
        if self.contest.is_none_or(|known| !is_removal(known.kind)) {
            self.contest = Some(contest);
        }
    }
}

impl Ticket {
    /// Waits until the writes before this one have ended.
    pub(crate) async fn turn(&mut self) {
        if let Some(before) = self.before.take() {
            UnderWay(vec![before]).ended().await;
        }
    }

    /// What another process has done with the key since the call.
    pub(crate) fn contest(&self) -> Option<Contest> {
        let lines = self.background.lines.lock();
        let line = lines.of_keys.get(&self.key)?;
        line.iter().find(|write| write.number == self.number)?.contest
    }

    /// Whether a `set` that waits in the line makes this write needless.
    pub(super) fn is_superseded(&self) -> bool {
        let lines = self.background.lines.lock();
        let mut line = lines.of_keys.get(&self.key).into_iter().flatten();
        line.any(|write| write.number > self.number && write.is_set)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.background.end(&self.key, self.number);
    }
}

/// The ends of some writes: a sender is dropped when its write ends.
#[must_use]
pub(crate) struct UnderWay(Vec<watch::Receiver<()>>);

impl UnderWay {
    /// Waits until all have ended.
    pub(crate) async fn ended(self) {
        for mut end in self.0 {
            while end.changed().await.is_ok() {}
        }
    }
}
