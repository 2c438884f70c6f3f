//! The recovery queue: changes that failed to reach L2, the latest one per key.
//!
//! The queue has state and no connection. All rules are here: what waits, what hides what, and what
//! is given up. The replay itself is in `replay.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;

use super::stored::{Expired, expired, is_younger};
use super::touch::NewLife;
use crate::options::RecoveryOptions;
use crate::site::{Key, LAST, is_marker};
use crate::sync::Mutex;
use crate::wire::message::Kind;

/// A position in the history of the bus: the number of times that its link was lost. `None` while
/// the link is down, and without a bus. Two equal positions prove that no message was missed in
/// between.
pub(crate) type BusPosition = Option<u64>;

/// Parts of the store; `None` for all of it.
pub(crate) type Parts = Option<Arc<[u32]>>;
/// The part of the store that has a key.
pub(super) type PartOf = Box<dyn Fn(&str) -> Option<u32> + Send + Sync>;

/// A change that failed.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Write(Write),
    /// Remove every document that is not younger than `at`.
    Delete {
        at: u64,
    },
    /// Make the document stale as of `at`; `grace` is for an entry without an end.
    Expire {
        at: u64,
        grace: u64,
    },
    /// Remove a value of this process, if exactly the bytes with this digest are still stored. Not
    /// needed if the bus has missed no message since `heard`.
    TakeBack {
        digest: u64,
        created_at: u64,
        heard: BusPosition,
    },
    /// Clear everything under the key, which is a prefix, as of `at`. `parts` are the parts of the
    /// store that failed, if the others are cleared already.
    Clear {
        at: u64,
        parts: Parts,
    },
    /// Mark as unverified a value that a factory produced here and that could not be stored: L2 may
    /// have another value, or none.
    Check {
        created_at: u64,
    },
    /// Give the document another life, unless it is younger than the touch.
    Touch {
        life: Box<NewLife>,
    },
}

/// Bytes to store, until their end (ms since the epoch).
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(super) bytes: Bytes,
    pub(super) created_at: u64,
    pub(super) end: u64,
    /// Another value exists, and it is unknown whether it is younger: the stored document decides.
    pub(super) contested: bool,
    /// A pending clear may have removed the other value.
    pub(super) behind_clear: bool,
    /// The other value is known to be younger, because this process created it.
    pub(super) followed: bool,
    /// The position of the bus when the write began.
    pub(super) heard: BusPosition,
}

impl Pending {
    /// The kind of change that other nodes are told of.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Write(_) | Self::Touch { .. } => Kind::Set,
            Self::Expire { .. } => Kind::Expire,
            Self::Clear { .. } => Kind::Clear,
            Self::Delete { .. } | Self::TakeBack { .. } | Self::Check { .. } => Kind::Delete,
        }
    }

    /// Whether the outcome depends on the stored document.
    pub(super) fn needs_stored(&self) -> bool {
        match self {
            Self::Delete { .. }
            | Self::Expire { .. }
            | Self::TakeBack { .. }
            | Self::Touch { .. }
            | Self::Check { .. } => true,
            Self::Write(write) => write.contested,
            Self::Clear { .. } => false,
        }
    }

    /// Turns a write into the deletion of the document that it was to replace, and of its own
    /// document: a failed write may have been stored.
    fn give_up_write(&mut self) {
        if let Self::Write(Write { created_at, .. }) = self {
            *self = Self::Delete { at: *created_at };
        }
    }

    /// Turns a write into the write of a stale entry.
    fn expire_write(&mut self, now: u64, grace: u64) {
        if let Self::Write(Write { bytes, created_at, end, .. }) = self {
            match expired(bytes, now.max(*created_at), grace) {
                Expired::Stale(stale, until) => {
                    *bytes = stale;
                    *end = until.unwrap_or(LAST);
                }
                Expired::Gone => self.give_up_write(),
                Expired::Unchanged => {}
            }
        }
    }

    /// The time of the change, in ms since the epoch.
    pub(super) fn at(&self) -> u64 {
        match self {
            Self::Write(Write { created_at: at, .. })
            | Self::Delete { at }
            | Self::Expire { at, .. }
            | Self::TakeBack { created_at: at, .. }
            | Self::Check { created_at: at }
            | Self::Clear { at, .. } => *at,
            Self::Touch { life } => life.at,
        }
    }

    /// Whether a write must be given up because the value that it competes with is absent: that
    /// value may have been the younger one, and removed since. If this write is stored although it
    /// seemed to have failed, it stays: a server that hung has applied it last. A tag's marker
    /// invalidates, so it is stored in any case.
    pub(super) fn is_undecided(&self, key: &Key, stored: Option<&Bytes>) -> bool {
        let Self::Write(Write { contested: true, .. }) = self else { return false };
        stored.is_none() && !is_marker(&key.full)
    }

    /// The overlay: the document under the key as it will be after the replay, at `now` (ms since
    /// the epoch). `digest` hashes bytes.
    pub(super) fn applied_to(
        self,
        key: &Key,
        stored: Option<Bytes>,
        now: u64,
        digest: impl Fn(&Bytes) -> u64,
    ) -> Option<Bytes> {
        if self.is_undecided(key, stored.as_ref()) {
            return None;
        }
        match self {
            Self::Write(Write { bytes, created_at, contested, .. }) => stored
                .filter(|stored| contested && is_younger(stored, created_at, now))
                .or(Some(bytes)),
            Self::Delete { at } => stored.filter(|stored| is_younger(stored, at, now)),
            Self::Clear { .. } => None,
            Self::TakeBack { digest: ours, heard: None, .. } => {
                stored.filter(|stored| digest(stored) != ours)
            }
            Self::TakeBack { .. } | Self::Check { .. } => stored,
            Self::Touch { life } => {
                let stored = stored?;
                let touched = life.renewed(&stored).filter(|_| !is_younger(&stored, life.at, now));
                Some(touched.map_or(stored, |(bytes, _)| bytes))
            }
            Self::Expire { at, grace } => {
                let stored = stored?;
                if is_younger(&stored, at, now) {
                    return Some(stored);
                }
                match expired(&stored, at, grace) {
                    Expired::Stale(bytes, _) => Some(bytes),
                    Expired::Gone => None,
                    Expired::Unchanged => Some(stored),
                }
            }
        }
    }

    fn lane(&self) -> Lane {
        match self {
            Self::Write(_) | Self::Touch { .. } => Lane::Writes,
            Self::Check { .. } => Lane::Checks,
            _ => Lane::Invalidations,
        }
    }

    fn size(&self) -> usize {
        if let Self::Write(Write { bytes, .. }) = self { bytes.len() } else { 0 }
    }
}

/// Invalidations are replayed before writes: a late value costs a miss, and a late invalidation
/// serves an old value. Checks are last, because a check that is never made costs the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Invalidations = 0,
    Writes = 1,
    Checks = 2,
}

/// A complete key, and whether it is the prefix of a clear. A prefix may also be a key.
type Id = (bool, Arc<str>);

/// A queued change.
#[derive(Debug)]
struct QueuedChange {
    /// Incremented with every change in the queue: distinguishes this change from a later one of
    /// the same key.
    number: u64,
    /// The position in its lane.
    turn: u64,
    key: Key,
    pending: Pending,
}

impl QueuedChange {
    /// The approximate memory of the item.
    fn size(&self) -> usize {
        const OVERHEAD: usize = 200;
        OVERHEAD + self.key.full.len() + self.pending.size()
    }
}

/// A change that is being replayed.
#[derive(Debug)]
pub(super) struct TakenChange {
    id: Id,
    number: u64,
    pub(super) key: Key,
    pub(super) pending: Pending,
}

/// The changes that were given up to make room for a new one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    pub(super) queued: usize,
    /// Lost changes.
    pub(super) dropped: usize,
    /// Invalidations that were merged into one clear of their namespace.
    pub(super) merged: usize,
}

/// A queued clear.
struct WaitingClear {
    number: u64,
    prefix: Arc<str>,
    parts: Parts,
}

impl WaitingClear {
    /// Whether the clear will cover the key.
    fn reaches(&self, key: &str, part_of: &PartOf) -> bool {
        key.starts_with(&*self.prefix) && is_in(&self.parts, key, part_of)
    }
}

fn is_in(parts: &Parts, key: &str, part_of: &PartOf) -> bool {
    // A key whose part is unknown may be in any part.
    parts.as_ref().is_none_or(|parts| part_of(key).is_none_or(|part| parts.contains(&part)))
}

struct QueueState {
    part_of: PartOf,
    items: HashMap<Id, QueuedChange>,
    /// By lane and turn.
    lanes: [BTreeMap<u64, Id>; 3],
    /// Queued clears, usually few.
    clears: Vec<WaitingClear>,
    next: u64,
    bytes: usize,
    /// Changes that are being replayed now.
    taken: HashSet<Id>,
}

impl QueueState {
    fn put(&mut self, id: Id, key: Key, pending: Pending) {
        let number = self.next;
        self.next += 1;
        if let Pending::Clear { parts, .. } = &pending {
            let (prefix, parts) = (id.1.clone(), parts.clone());
            self.clears.push(WaitingClear { number, prefix, parts });
        }
        let item = QueuedChange { number, turn: number, key, pending };
        self.lanes[item.pending.lane() as usize].insert(number, id.clone());
        self.bytes += item.size();
        self.items.insert(id, item);
    }

    fn remove(&mut self, id: &Id) -> Option<QueuedChange> {
        let removed = self.items.remove(id)?;
        self.lanes[removed.pending.lane() as usize].remove(&removed.turn);
        self.bytes -= removed.size();
        self.clears.retain(|clear| clear.number != removed.number);
        Some(removed)
    }

    /// Replaces the change of a key by another one, so that a replay in progress does not complete
    /// it.
    fn alter(&mut self, id: &Id, alter: impl FnOnce(&mut Pending)) {
        // A clear keeps its number, which orders it before the changes behind it.
        let Some(mut item) = (if id.0 { None } else { self.remove(id) }) else { return };
        alter(&mut item.pending);
        self.put(id.clone(), item.key, item.pending);
    }

    /// Gives up the queued write of a key, because it is out of date.
    fn give_up_write(&mut self, id: &Id) {
        if matches!(self.items.get(id), Some(QueuedChange { pending: Pending::Write(_), .. })) {
            self.alter(id, Pending::give_up_write);
        }
    }

    /// Removes a change that is not needed any more. If a write is being replayed at this moment,
    /// it may still reach L2, so its removal is queued instead.
    fn forget(&mut self, id: &Id) {
        if self.taken.contains(id) {
            self.give_up_write(id);
        } else {
            self.remove(id);
        }
    }

    /// The changes under a prefix that satisfy `is_so`.
    fn under(&self, prefix: &str, is_so: impl Fn(&Id, &QueuedChange) -> bool) -> Vec<Id> {
        let all =
            self.items.iter().filter(|(id, item)| id.1.starts_with(prefix) && is_so(id, item));
        all.map(|(id, _)| id.clone()).collect()
    }

    /// The number of queued changes without checks.
    fn changes(&self) -> usize {
        self.items.len() - self.lanes[Lane::Checks as usize].len()
    }

    /// Whether a clear that was queued before this number will cover the key.
    fn is_behind_clear(&self, id: &Id, number: u64) -> bool {
        self.clears.iter().any(|clear| clear.number < number && clear.reaches(&id.1, &self.part_of))
    }

    /// Makes room: drops checks first, then writes, the oldest first. Invalidations are never lost
    /// if a clear of their namespace can replace them.
    fn make_room(&mut self, options: &RecoveryOptions, pushed: &mut Pushed) {
        while self.items.len() > options.max_size || self.bytes > options.max_bytes {
            let [invalidations, writes, checks] = &self.lanes;
            if let Some(oldest) = checks.first_key_value().map(|(_, id)| id.clone()) {
                self.remove(&oldest);
                continue;
            }
            if let Some(oldest) = writes.first_key_value().map(|(_, id)| id.clone()) {
                self.remove(&oldest);
                pushed.dropped += 1;
                continue;
            }
            let Some(oldest) = invalidations.first_key_value().map(|(_, id)| id.clone()) else {
                return;
            };
            let merged = self.items.get(&oldest).map_or(0, |item| {
                let prefix = item.key.prefix();
                if prefix.is_empty() { 0 } else { self.under(prefix, |id, _| !id.0).len() }
            });
            let Some(item) = self.remove(&oldest) else { return };
            if merged < 2 {
                pushed.dropped += 1;
                continue;
            }
            let prefix = item.key.as_prefix();
            let mut at = item.pending.at();
            for id in self.under(&prefix.full, |_, _| true) {
                at = self.remove(&id).map_or(at, |gone| at.max(gone.pending.at()));
            }
            pushed.merged += merged;
            self.put((true, prefix.full.clone()), prefix, Pending::Clear { at, parts: None });
        }
    }
}

pub(crate) struct Queue {
    options: RecoveryOptions,
    inner: Mutex<QueueState>,
    /// The length of the queue, so that an empty queue needs no lock.
    len: AtomicUsize,
}

impl Queue {
    pub(super) fn new(options: RecoveryOptions, part_of: PartOf) -> Self {
        let inner = QueueState {
            part_of,
            items: HashMap::new(),
            lanes: Default::default(),
            clears: Vec::new(),
            next: 0,
            bytes: 0,
            taken: HashSet::new(),
        };
        Self { options, inner: Mutex::new(inner), len: AtomicUsize::new(0) }
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(SeqCst)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of queued changes without checks.
    pub(super) fn changes(&self) -> usize {
        if self.is_empty() { 0 } else { self.inner.lock().changes() }
    }

    /// Whether the change that was taken is still the queued one.
    pub(super) fn has(&self, taken: &TakenChange) -> bool {
        let inner = self.inner.lock();
        inner.items.get(&taken.id).is_some_and(|item| item.number == taken.number)
    }

    /// The queued change of the key.
    pub(super) fn pending(&self, key: &Arc<str>) -> Option<Pending> {
        if self.is_empty() {
            return None;
        }
        let inner = self.inner.lock();
        if let Some(item) = inner.items.get(&(false, key.clone())) {
            return Some(item.pending.clone());
        }
        let reaches = |clear: &&WaitingClear| clear.reaches(key, &inner.part_of);
        let WaitingClear { prefix, .. } = inner.clears.iter().find(reaches)?;
        match &inner.items.get(&(true, prefix.clone()))?.pending {
            // Younger markers are preserved, see `Replay::clear`.
            Pending::Clear { at, .. } if is_marker(key) => Some(Pending::Delete { at: *at }),
            clear => Some(clear.clone()),
        }
    }

    /// Another process changed the key, at about `now` (ms since the epoch). It is unknown whether
    /// our queued write came before or after. If the other change was a write, the stored entry
    /// will show it. If it was a removal, nothing is stored that could show it, so our write is
    /// given up, which costs a miss. Queued invalidations stay, because they do not harm younger
    /// entries.
    pub(super) fn mark_changed_elsewhere(&self, key: &Arc<str>, kind: Kind, now: u64, grace: u64) {
        if self.is_empty() {
            return;
        }
        // A message of either kind tells of another marker, and no marker becomes stale.
        let is_marked = kind == Kind::Expire && is_marker(key);
        let kind = if is_marked { Kind::Set } else { kind };
        self.inner.lock().alter(&(false, key.clone()), |pending| match (kind, pending) {
            (_, Pending::TakeBack { heard, .. }) => *heard = None,
            (Kind::Set, Pending::Write(write)) => write.contested = true,
            (Kind::Set, _) => {}
            (Kind::Expire, pending) => pending.expire_write(now, grace),
            (Kind::Delete | Kind::Clear, pending) => pending.give_up_write(),
        });
    }

    /// This process has created another marker since `marker`. If `marker` is the queued one, the
    /// other marker has not failed.
    pub(super) fn follow(&self, key: &Arc<str>, marker: u64) {
        if self.is_empty() {
            return;
        }
        self.inner.lock().alter(&(false, key.clone()), |pending| {
            if let Pending::Write(write) = pending {
                write.contested = true;
                write.followed |= write.created_at == marker;
            }
        });
    }

    /// Gives the queued write of a key another life. Returns whether it was fresh; `None` if no
    /// write is queued.
    pub(super) fn renew_write(&self, key: &Arc<str>, life: &NewLife) -> Option<bool> {
        if self.is_empty() {
            return None;
        }
        let mut inner = self.inner.lock();
        let id = (false, key.clone());
        if !matches!(inner.items.get(&id)?.pending, Pending::Write(_)) {
            return None;
        }
        let mut is_renewed = false;
        inner.alter(&id, |pending| {
            if let Pending::Write(write) = pending
                && let Some((bytes, end)) = life.renewed(&write.bytes)
            {
                (write.bytes, write.end, is_renewed) = (bytes, end, true);
            }
        });
        Some(is_renewed)
    }

    /// A change of the key by this process begins: its queued write is out of date, and must not be
    /// replayed after the change.
    pub(super) fn supersede(&self, key: &Arc<str>) {
        if !self.is_empty() {
            self.inner.lock().give_up_write(&(false, key.clone()));
        }
    }

    /// As [`supersede`](Self::supersede), for everything under a prefix; also used when another
    /// process has cleared it. A tag's marker invalidates, so it stays queued.
    pub(super) fn supersede_under(&self, prefix: &str) {
        if self.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        let is_meant = |item: &QueuedChange| {
            matches!(item.pending, Pending::Write(_) | Pending::TakeBack { .. })
        };
        let all = inner
            .under(prefix, |(is_clear, key), item| !is_clear && !is_marker(key) && is_meant(item));
        for id in all {
            inner.alter(&id, |pending| match pending {
                // The value may arrive after the clear.
                Pending::TakeBack { heard, .. } => *heard = None,
                pending => pending.give_up_write(),
            });
        }
    }

    /// A position that separates the changes queued now from later ones.
    pub(super) fn now(&self) -> u64 {
        if self.is_empty() { 0 } else { self.inner.lock().next }
    }

    /// Whether a change of the key must be queued, because a queued clear will cover the key.
    pub(super) fn must_wait(&self, key: &str) -> bool {
        if self.is_empty() {
            return false;
        }
        let inner = self.inner.lock();
        inner.clears.iter().any(|clear| clear.reaches(key, &inner.part_of))
    }

    /// A change of the key that began at `before` has succeeded, so a change that was queued then
    /// is not needed any more. Returns the number of queued changes if there was one.
    pub(super) fn forget(&self, key: &Arc<str>, before: u64) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let id = (false, key.clone());
        let mut inner = self.inner.lock();
        let item = inner.items.get(&id).filter(|item| item.number < before)?;
        let is_check = matches!(item.pending, Pending::Check { .. });
        inner.forget(&id);
        let queued = self.counted(&inner);
        // A check would not have changed anything.
        (!is_check).then_some(queued)
    }

    /// As [`forget`](Self::forget), for everything under a prefix.
    pub(super) fn forget_under(&self, prefix: &str, before: u64) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let mut inner = self.inner.lock();
        let forgotten = inner.under(prefix, |_, item| item.number < before);
        forgotten.iter().for_each(|id| inner.forget(id));
        (!forgotten.is_empty()).then(|| self.counted(&inner))
    }

    /// Adds a change and replaces the queued change of the same key, unless that one satisfies
    /// `is_so`. `None` in that case.
    pub(super) fn push_unless(
        &self,
        key: &Key,
        pending: Pending,
        is_so: impl FnOnce(&Pending) -> bool,
    ) -> Option<Pushed> {
        if self.options.max_size == 0 {
            return Some(Pushed { dropped: 1, ..Pushed::default() });
        }
        let mut inner = self.inner.lock();
        let parts = match &pending {
            Pending::Clear { parts, .. } => Some(parts.clone()),
            _ => None,
        };
        let id = (parts.is_some(), key.full.clone());
        if inner.items.get(&id).is_some_and(|item| is_so(&item.pending)) {
            return None;
        }
        if let Some(parts) = &parts {
            // The changes that this clear covers need no replay.
            let is_reached = |id: &Id, item: &QueuedChange| match &item.pending {
                // A clear of a nested namespace. It may wait for other parts.
                Pending::Clear { parts: inner, .. } => parts.is_none() || inner == parts,
                _ => is_in(parts, &id.1, &inner.part_of),
            };
            for id in inner.under(&key.full, is_reached) {
                inner.remove(&id);
            }
        }
        inner.remove(&id);
        inner.put(id, key.clone(), pending);
        let mut pushed = Pushed::default();
        inner.make_room(&self.options, &mut pushed);
        pushed.queued = self.counted(&inner);
        Some(pushed)
    }

    /// Starts a round: changes that are queued later, or queued again, are not part of it.
    pub(super) fn round(&self) -> u64 {
        self.inner.lock().next
    }

    /// Takes the next changes of a round whose keys are due, at most `most`, invalidations first.
    /// Changes behind a queued clear wait for it. All stay in the queue until [`end`](Self::end).
    pub(super) fn take(&self, round: u64, most: usize, is_due: impl Fn(&str) -> bool) -> Batch<'_> {
        let inner = &mut *self.inner.lock();
        let mut items = Vec::new();
        for id in inner.lanes.iter().flat_map(|lane| lane.range(..round)).map(|(_, id)| id) {
            if items.len() == most {
                break;
            }
            let Some(item) = inner.items.get(id) else { continue };
            let waits = !id.0 && inner.is_behind_clear(id, item.number);
            if !waits && !inner.taken.contains(id) && (id.0 || is_due(&id.1)) {
                let QueuedChange { number, key, pending, .. } = item;
                let (key, pending) = (key.clone(), pending.clone());
                items.push(TakenChange { id: id.clone(), number: *number, key, pending });
            }
        }
        inner.taken.extend(items.iter().map(|item| item.id.clone()));
        Batch { queue: self, items }
    }

    /// Ends a replay. After a success the change is removed, unless another one has replaced it;
    /// after a failure it moves to the end of its lane. Returns the number of queued changes, and
    /// whether the change was no longer needed.
    pub(super) fn end(&self, taken: &TakenChange, failed: bool) -> (usize, bool) {
        let TakenChange { id, number, .. } = taken;
        let mut inner = self.inner.lock();
        inner.taken.remove(id);
        let current = inner.items.get(id).map(|item| item.number);
        let is_gone = current.is_none();
        let is_replaced = current.is_some_and(|current| current != *number);
        if is_replaced && !id.0 {
            // The replayed change may have been stored after another change that is still in
            // progress. The new number keeps that change from treating the queued one as older than
            // itself.
            inner.alter(id, |_| {});
        } else if !is_gone && !is_replaced && failed {
            let turn = inner.next;
            inner.next += 1;
            if let Some(item) = inner.items.get_mut(id) {
                let (lane, was) = (item.pending.lane() as usize, item.turn);
                item.turn = turn;
                inner.lanes[lane].remove(&was);
                inner.lanes[lane].insert(turn, id.clone());
            }
        } else if !is_replaced {
            inner.remove(id);
        }
        (self.counted(&inner), is_gone)
    }

    /// Updates the length; returns the number of queued changes.
    fn counted(&self, inner: &QueueState) -> usize {
        self.len.store(inner.items.len(), SeqCst);
        inner.changes()
    }
}

/// Changes that are being replayed. If this is dropped early, they stay queued.
pub(super) struct Batch<'a> {
    queue: &'a Queue,
    pub(super) items: Vec<TakenChange>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut inner = self.queue.inner.lock();
        for item in &self.items {
            inner.taken.remove(&item.id);
        }
    }
}
