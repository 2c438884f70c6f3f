//! Recovery: what failed to reach the second tier is kept and repeated.
//!
//! The queue holds the latest change per key, in order, and is bounded. Until a change has been
//! repeated, this process reads the second tier as if it had been.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bentocache_core::DriverError;
use bytes::Bytes;
use tokio::sync::Notify;

use super::fence::Fence;
use super::tags::{is_marker, marker_of};
use super::write::THROUGH_ALL;
use super::{Engine, Key, as_ttl, chain, until};
use crate::event::EventKind;
use crate::options::RecoveryOptions;
use crate::sync::Mutex;
use crate::tier::local::Local;
use crate::tier::remote::Remote;
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

/// A change that failed.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    /// Bytes to store, until their end (ms since the epoch).
    Write { bytes: Bytes, created_at: u64, end: u64 },
    /// A deletion, and when.
    Delete { at: u64 },
    /// Making stale, when, and the grace of what was to last for ever.
    Expire { at: u64, grace: u64 },
    /// Removing a value of our own, if exactly these bytes are still stored.
    TakeBack { bytes: Bytes },
    /// Clearing everything under the key, which is a prefix, and when.
    Clear { at: u64 },
    /// A change while another process has told of one to the same key: the later one counts.
    Doubted(Box<Pending>),
}

impl Pending {
    /// Whether the outcome depends on what is stored.
    pub(crate) fn needs_stored(&self) -> bool {
        matches!(self, Self::Expire { .. } | Self::TakeBack { .. } | Self::Doubted(_))
    }

    /// A write becomes the deletion of what it was to replace.
    fn give_up_write(&mut self) {
        match self {
            Self::Doubted(change) => change.give_up_write(),
            Self::Write { created_at, .. } => *self = Self::Delete { at: *created_at },
            _ => {}
        }
    }

    /// A write becomes that of a stale entry.
    fn expire_write(&mut self, now: u64, grace: u64) {
        match self {
            Self::Doubted(change) => change.expire_write(now, grace),
            Self::Write { bytes, created_at, .. } => {
                match expired(bytes, now.max(*created_at), grace) {
                    Expired::Stale(stale, _) => *bytes = stale,
                    Expired::Gone => self.give_up_write(),
                    Expired::Unchanged => {}
                }
            }
            _ => {}
        }
    }

    /// When the change was made, in ms since the epoch, where that is known.
    fn at(&self) -> Option<u64> {
        match self {
            Self::Write { created_at: at, .. }
            | Self::Delete { at }
            | Self::Expire { at, .. }
            | Self::Clear { at } => Some(*at),
            Self::Doubted(change) => change.at(),
            Self::TakeBack { .. } => None,
        }
    }

    /// What will be stored once the change is repeated.
    pub(crate) fn applied_to(self, stored: Option<Bytes>) -> Option<Bytes> {
        match self {
            Self::Write { bytes, .. } => Some(bytes),
            Self::Delete { .. } | Self::Clear { .. } => None,
            Self::TakeBack { bytes } => stored.filter(|stored| *stored != bytes),
            Self::Doubted(change) => {
                let created_at = stored.as_ref().and_then(created_at);
                if created_at > change.at() { stored } else { change.applied_to(stored) }
            }
            Self::Expire { at, grace } => {
                let stored = stored?;
                if created_at(&stored) > Some(at) {
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
}

/// What becomes of a stored document that is made stale.
pub(crate) enum Expired {
    /// These bytes, and the end it keeps (ms since the epoch) where that is known.
    Stale(Bytes, Option<u64>),
    /// It has no grace to be stale in.
    Gone,
    /// It is stale, or no entry.
    Unchanged,
}

fn created_at(stored: &Bytes) -> Option<u64> {
    Document::parse(stored).ok().map(|document| document.meta.created_at)
}

/// Makes a document stale at that time. One that was to last for ever gets `grace` ms from then.
pub(crate) fn expired(stored: &Bytes, at: u64, grace: u64) -> Expired {
    let Ok(document) = Document::parse(stored) else { return Expired::Unchanged };
    let meta = &document.meta;
    let end = match (meta.expiration, meta.stale_until) {
        (Expiration::At(0), _) => return Expired::Unchanged,
        (Expiration::At(fresh), Some(end)) if end <= fresh => return Expired::Gone,
        (Expiration::At(fresh), None) if fresh <= at => return Expired::Unchanged,
        (Expiration::Never, None) if grace == 0 => return Expired::Gone,
        (Expiration::Never, None) => Some(at.saturating_add(grace)),
        (_, end) => end,
    };
    // Stale by every clock: that of a reader may be behind. Without an end, a reader counts its
    // grace from the time of expiry.
    let expiration = Expiration::At(if end.is_some() { 0 } else { at });
    let meta = Meta { expiration, stale_until: end, ..meta.clone() };
    Expired::Stale(document.rewrite(&meta), end)
}

pub(crate) struct Recovery {
    options: RecoveryOptions,
    queue: Mutex<Queue>,
    /// The queue's length, so that nobody locks an empty one.
    len: AtomicUsize,
    wake: Notify,
    /// One replay at a time.
    replaying: tokio::sync::Mutex<()>,
}

/// A complete key, and whether it is the prefix of a clear: a prefix may also be a key.
type Id = (bool, Arc<str>);

#[derive(Default)]
struct Queue {
    changes: HashMap<Id, (u64, Key, Pending)>,
    order: BTreeMap<u64, Id>,
    /// Prefixes of pending clears; few.
    clears: Vec<(u64, Arc<str>)>,
    next: u64,
}

impl Queue {
    fn remove(&mut self, id: &Id) -> Option<(u64, Key, Pending)> {
        let removed = self.changes.remove(id)?;
        self.order.remove(&removed.0);
        self.clears.retain(|(number, _)| *number != removed.0);
        Some(removed)
    }

    /// The change of a key turns into another one: should it be under way now, it is repeated.
    fn alter(&mut self, id: &Id, alter: impl FnOnce(&mut Pending)) {
        let Some((number, _, pending)) = self.changes.get_mut(id) else { return };
        alter(pending);
        self.order.remove(number);
        *number = self.next;
        self.order.insert(self.next, id.clone());
        self.next += 1;
    }

    fn remove_under(&mut self, prefix: &str) {
        let reached: Vec<_> =
            self.changes.keys().filter(|(_, key)| key.starts_with(prefix)).cloned().collect();
        for id in reached {
            self.remove(&id);
        }
    }
}

impl Recovery {
    pub(crate) fn new(options: RecoveryOptions) -> Self {
        Self {
            options,
            queue: Mutex::default(),
            len: AtomicUsize::new(0),
            wake: Notify::new(),
            replaying: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn options(&self) -> RecoveryOptions {
        self.options
    }

    /// Tries again soon: something seems to work again.
    pub(crate) fn kick(&self) {
        self.wake.notify_one();
    }

    /// The change of the key that is waiting.
    pub(crate) fn pending(&self, key: &Arc<str>) -> Option<Pending> {
        if self.len.load(SeqCst) == 0 {
            return None;
        }
        let queue = self.queue.lock();
        if let Some((_, _, pending)) = queue.changes.get(&(false, key.clone())) {
            return Some(pending.clone());
        }
        let (_, prefix) = queue.clears.iter().find(|(_, prefix)| key.starts_with(&**prefix))?;
        let (_, _, clear) = queue.changes.get(&(true, prefix.clone()))?;
        match clear {
            // Younger markers are spared, see `repeat_clear`.
            Pending::Clear { at } if is_marker(key) => {
                Some(Pending::Doubted(Box::new(Pending::Delete { at: *at })))
            }
            clear => Some(clear.clone()),
        }
    }

    /// Another process has changed the key, at about `now` (ms since the epoch). Nobody knows
    /// whether a write of ours that waits came before or after. After another write, the stored
    /// entry will tell; after a removal nothing is stored to tell, so ours is given up, which
    /// costs a miss. What waits to invalidate goes on waiting: it does no harm to younger entries.
    pub(crate) fn doubt(&self, key: &Arc<str>, kind: Kind, now: u64, grace: u64) {
        if self.len.load(SeqCst) == 0 {
            return;
        }
        self.queue.lock().alter(&(false, key.clone()), |pending| match kind {
            Kind::Set if !matches!(pending, Pending::Doubted(_)) => {
                *pending = Pending::Doubted(Box::new(pending.clone()));
            }
            Kind::Set => {}
            Kind::Expire => pending.expire_write(now, grace),
            Kind::Delete | Kind::Clear => pending.give_up_write(),
        });
    }

    /// As [`doubt`](Self::doubt), when another process has cleared everything whose key starts with
    /// that. A tag's marker invalidates, so it goes on waiting.
    pub(crate) fn doubt_under(&self, prefix: &str) {
        if self.len.load(SeqCst) == 0 {
            return;
        }
        self.give_up_under(prefix, |_| true);
    }

    /// Gives up the writes under a prefix that are so, but for markers of tags.
    fn give_up_under(&self, prefix: &str, is_so: impl Fn(&Pending) -> bool) {
        let mut queue = self.queue.lock();
        let is_meant = |((is_clear, key), (_, _, pending)): (&Id, &(u64, Key, Pending))| {
            !is_clear && key.starts_with(prefix) && !is_marker(key) && is_so(pending)
        };
        let meant: Vec<Id> = queue
            .changes
            .iter()
            .filter(|change| is_meant(*change))
            .map(|(id, _)| id.clone())
            .collect();
        for id in meant {
            queue.alter(&id, Pending::give_up_write);
        }
    }

    /// Whether a change of the key must queue up, because a clear that will reach it is waiting.
    pub(crate) fn must_wait(&self, key: &str) -> bool {
        self.len.load(SeqCst) > 0
            && self.queue.lock().clears.iter().any(|(_, prefix)| key.starts_with(&**prefix))
    }

    /// A later change of the key has succeeded; returns how many are waiting if one was.
    fn forget(&self, key: &Arc<str>) -> Option<usize> {
        if self.len.load(SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        queue.remove(&(false, key.clone()))?;
        self.len.store(queue.changes.len(), SeqCst);
        Some(queue.changes.len())
    }

    /// Everything whose key starts with that is gone; returns how many are waiting if some were.
    fn forget_under(&self, prefix: &str) -> Option<usize> {
        if self.len.load(SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let before = queue.changes.len();
        queue.remove_under(prefix);
        let after = queue.changes.len();
        self.len.store(after, SeqCst);
        (after < before).then_some(after)
    }

    /// Adds a change; returns how many are waiting and whether one had to be given up for it.
    fn push(&self, key: Key, pending: Pending) -> (usize, bool) {
        if self.options.max_size == 0 {
            return (0, true);
        }
        let mut queue = self.queue.lock();
        let name = key.full.clone();
        let is_clear = matches!(pending, Pending::Clear { .. });
        if is_clear {
            // What it reaches need not be repeated.
            queue.remove_under(&name);
        }
        let id = (is_clear, name.clone());
        queue.remove(&id);
        let full = queue.changes.len() >= self.options.max_size;
        if full && let Some((_, oldest)) = queue.order.pop_first() {
            queue.remove(&oldest);
        }
        let number = queue.next;
        queue.next += 1;
        if is_clear {
            queue.clears.push((number, name));
        }
        queue.order.insert(number, id.clone());
        queue.changes.insert(id, (number, key, pending));
        self.len.store(queue.changes.len(), SeqCst);
        (queue.changes.len(), full)
    }

    fn oldest(&self) -> Option<(u64, Id, Key, Pending)> {
        let queue = self.queue.lock();
        let (number, id) = queue.order.first_key_value()?;
        let (_, key, pending) = queue.changes.get(id)?;
        Some((*number, id.clone(), key.clone(), pending.clone()))
    }

    /// The change is done, unless a later one took its place meanwhile.
    fn done(&self, number: u64, id: &Id) -> usize {
        let mut queue = self.queue.lock();
        if queue.changes.get(id).is_some_and(|(current, ..)| *current == number) {
            queue.remove(id);
        }
        self.len.store(queue.changes.len(), SeqCst);
        queue.changes.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(SeqCst)
    }
}

impl Engine {
    /// A change of the key that waits is not needed any more.
    pub(crate) fn forget_waiting(&self, key: &Key) {
        if let Some(queued) = self.recovery.forget(&key.full) {
            self.emit(|| EventKind::RecoveryDone { queued });
        }
    }

    /// No change under the prefix that waits is needed any more.
    pub(crate) fn forget_waiting_under(&self, prefix: &str) {
        if let Some(queued) = self.recovery.forget_under(prefix) {
            self.emit(|| EventKind::RecoveryDone { queued });
        }
    }

    pub(crate) fn recover_write(&self, key: &Key, bytes: Bytes, created_at: u64, end: u64) -> bool {
        self.recover(key, Pending::Write { bytes, created_at, end })
    }

    /// Keeps a take-back that failed, unless a later change of the key is waiting anyway.
    pub(crate) fn recover_take_back(&self, key: &Key, bytes: &Bytes) {
        if self.recovery.pending(&key.full).is_none() {
            self.recover(key, Pending::TakeBack { bytes: bytes.clone() });
        }
    }

    /// Keeps a deletion of then that failed; returns whether it is kept.
    pub(crate) fn recover_delete(&self, key: &Key, at: u64, fence: &Fence) -> bool {
        let delete = Pending::Delete { at };
        if fence.is_unchanged() {
            return self.recover(key, delete);
        }
        // A later change of the key counts. If that waits as well, it is enough.
        self.recovery.pending(&key.full).is_some()
            || self.recover(key, Pending::Doubted(Box::new(delete)))
    }

    /// Removes what is older than a value that can never be stored. Mostly that is nothing, and
    /// then nobody hears of it: others may have such values of their own.
    pub(crate) async fn remove_older(&self, key: &Key) {
        let at = self.clock.epoch();
        let stored = self.l2_read(&[key], self.policy.l2_hard_timeout).await;
        if !matches!(stored.as_deref(), Ok([None])) {
            self.recover(key, Pending::Delete { at });
            self.recovery.kick();
        }
    }

    /// Keeps a change that failed; returns whether it is kept.
    pub(crate) fn recover(&self, key: &Key, pending: Pending) -> bool {
        let (queued, dropped) = self.recovery.push(key.clone(), pending);
        if dropped {
            tracing::warn!(store = %self.name, queued,
                "a change that failed to reach the second tier was given up");
            self.emit(|| EventKind::RecoveryDropped { queued });
        }
        if queued > 0 {
            self.emit(|| EventKind::RecoveryQueued { queued });
        }
        queued > 0
    }

    /// Repeats what failed, again and again, with growing pauses while it goes on failing.
    pub(crate) async fn recover_forever(self: Arc<Self>) {
        let first = self.recovery.options().retry_interval;
        let mut pause = first;
        loop {
            // Nodes that failed together must not come back together.
            let jittered = pause.saturating_add(fastrand::u64(..=pause / 4));
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(jittered)) => {}
                () = self.recovery.wake.notified() => {}
            }
            if self.recovery.len() == 0 || self.replay().await {
                pause = first;
            } else {
                pause = pause.saturating_add(pause / 2).min(first.saturating_mul(15));
            }
        }
    }

    /// Repeats what failed, oldest first, until something fails again. Returns whether all is done.
    pub(crate) async fn replay(&self) -> bool {
        let _one_at_a_time = self.recovery.replaying.lock().await;
        while let Some((number, id, key, pending)) = self.recovery.oldest() {
            if let Err(error) = self.repeat(&key, &pending, 0).await {
                if error.is_transient() {
                    return false;
                }
                tracing::warn!(store = %self.name, error = %chain(&*error),
                    "a change was refused by the second tier and is given up");
            }
            let queued = self.recovery.done(number, &id);
            self.emit(|| EventKind::RecoveryDone { queued });
        }
        true
    }

    /// Repeats one change, unless something newer is stored by now.
    async fn repeat(
        &self,
        key: &Key,
        pending: &Pending,
        attempts: usize,
    ) -> Result<(), Arc<DriverError>> {
        /// How often what is stored may have changed between the look and the write.
        const MOST_ATTEMPTS: usize = 8;
        let Some(remote) = &self.l2 else { return Ok(()) };
        let limit = self.policy.l2_hard_timeout;
        let full = &*key.full;
        let now = self.clock.epoch();
        let pending = match pending {
            // Repeating compares with what is stored anyway.
            Pending::Doubted(change) => change,
            pending => pending,
        };
        let kind = match pending {
            Pending::Clear { at } => return self.repeat_clear(remote, full, *at).await,
            Pending::TakeBack { bytes } => {
                self.l2_call(remote, "delete", limit, |driver| driver.delete_if(full, bytes))
                    .await?;
                self.distrust(key);
                self.announce(Kind::Delete, key, &self.policy);
                return Ok(());
            }
            Pending::Write { end, .. } if *end <= now => return Ok(()),
            Pending::Write { .. } => Kind::Set,
            Pending::Delete { .. } => Kind::Delete,
            Pending::Expire { .. } => Kind::Expire,
            Pending::Doubted(_) => return Ok(()),
        };
        let fence = self.watch(key);
        let stored = self.l2_call(remote, "get", limit, |driver| driver.get(full)).await?;
        let meta = stored.as_ref().and_then(|bytes| Document::parse(bytes).ok()).map(|d| d.meta);
        let newer_than = |at: u64| meta.as_ref().is_some_and(|meta| meta.created_at > at);
        let stored_marker =
            if is_marker(full) { marker_of(stored.as_ref()).unwrap_or(0) } else { 0 };
        match pending {
            Pending::Write { created_at: at, .. } if stored_marker > *at => {
                // By whose clock is it newer? Only one above both is sure to invalidate.
                let marker = stored_marker + 1;
                let (bytes, end) = self.marker_document(marker, &self.policy);
                self.recover_write(key, bytes, marker, end);
                self.distrust(key);
                self.tags.changed(full, None);
                return Ok(());
            }
            Pending::Write { created_at: at, .. }
            | Pending::Delete { at }
            | Pending::Expire { at, .. }
                if newer_than(*at) && !is_marker(full) =>
            {
                // The newer one wins, and what is here must not hide it. Others may not have heard
                // of either.
                self.distrust(key);
                self.announce(Kind::Set, key, &self.policy);
                return Ok(());
            }
            Pending::Write { bytes, .. } if stored.as_ref() == Some(bytes) => {}
            Pending::Write { bytes, end, .. } => {
                let ttl = as_ttl(until(*end, now));
                if !self.replace(remote, full, stored.as_ref(), bytes, ttl).await? {
                    if attempts < MOST_ATTEMPTS {
                        // It is not what it was: look again.
                        return Box::pin(self.repeat(key, pending, attempts + 1)).await;
                    }
                    // Something that is no entry, which a look does not show, is in its place.
                    self.l2_call(remote, "set", limit, |driver| {
                        driver.set(full, bytes.clone(), ttl)
                    })
                    .await?;
                }
                // A later change or a clear of this process that was under way at the same time.
                if !fence.is_unchanged() || self.recovery.pending(&key.full).is_none() {
                    self.take_back(remote, key, bytes).await;
                    return Ok(());
                }
            }
            Pending::Delete { .. } => {
                // Only what was found: something newer may be on its way there.
                if let Some(stored) = &stored {
                    self.l2_call(remote, "delete", limit, |driver| driver.delete_if(full, stored))
                        .await?;
                }
            }
            Pending::Expire { at, grace } => {
                let Some(stored) = &stored else { return Ok(()) };
                self.l2_expire(remote, key, stored, *at, *grace, limit).await?;
            }
            Pending::Clear { .. } | Pending::TakeBack { .. } | Pending::Doubted(_) => {}
        }
        self.announce(kind, key, &self.policy);
        Ok(())
    }

    /// Stores in the place of what was found there, if that is still so; returns whether it did.
    async fn replace(
        &self,
        remote: &Remote,
        key: &str,
        found: Option<&Bytes>,
        bytes: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, Arc<DriverError>> {
        let limit = self.policy.l2_hard_timeout;
        match found {
            None => {}
            // A tag must not be without its marker for a moment.
            Some(found) if is_marker(key) => {
                let update = self.l2_call(remote, "set", limit, |driver| {
                    driver.update(key, found, bytes.clone(), ttl)
                });
                return update.await;
            }
            // Removed first, since a replacement would keep its expiry.
            Some(found) => {
                let removed =
                    self.l2_call(remote, "set", limit, |driver| driver.delete_if(key, found));
                if !removed.await? {
                    return Ok(false);
                }
            }
        }
        self.l2_call(remote, "set", limit, |driver| driver.insert(key, bytes.clone(), ttl)).await
    }

    /// Clears late. What was written here since is waiting behind it; what other processes have
    /// written since is lost, which costs misses, but for the markers of tags: without those,
    /// entries that waited would be valid again.
    async fn repeat_clear(
        &self,
        remote: &Remote,
        prefix: &str,
        at: u64,
    ) -> Result<(), Arc<DriverError>> {
        const AT_ONCE: usize = 1_000;
        let mut younger = Vec::new();
        for tags in self.tags.under(prefix).chunks(AT_ONCE) {
            let keys: Vec<&str> = tags.iter().map(|tag| tag.key()).collect();
            let limit = self.policy.l2_hard_timeout;
            let stored =
                self.l2_call(remote, "get", limit, |driver| driver.get_many(&keys)).await?;
            let marked = tags.iter().zip(stored).filter_map(|(tag, bytes)| {
                let marker = marker_of(bytes.as_ref()).ok().filter(|marker| *marker > at)?;
                Some((self.marker_key(tag), marker))
            });
            younger.extend(marked);
        }
        // Those that others have told of can no longer be compared with what they stored.
        self.recovery.give_up_under(prefix, |pending| matches!(pending, Pending::Doubted(_)));
        self.l2_call(remote, "clear", THROUGH_ALL, |driver| driver.clear(prefix)).await?;
        // What others have stored since is gone from there too, and may have been read here.
        self.fences.invalidate_all();
        self.l1.iter().for_each(Local::distrust_all);
        for (key, marker) in younger {
            // Unless a later invalidation of ours waits. What fails is kept.
            if self.recovery.pending(&key.full).and_then(|pending| pending.at()) < Some(marker) {
                let _ = self.write_marker(remote, &key, marker, &self.policy).await;
            }
        }
        // The key of a clear is the prefix with its colon; the message names the namespace.
        self.announce_clear(prefix.strip_suffix(':').unwrap_or(prefix), &self.policy);
        Ok(())
    }
}
