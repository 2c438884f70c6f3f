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
use super::invalidate::THROUGH_ALL;
use super::tags::{is_marker, marker_of};
use super::{Engine, Key, LAST, as_ttl, chain, until};
use crate::event::EventKind;
use crate::options::RecoveryOptions;
use crate::sync::Mutex;
use crate::tier::local::Local;
use crate::tier::remote::Remote;
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

/// How often what is stored may have changed between the look and the change of it.
const MOST_ATTEMPTS: usize = 8;

/// A change that failed.
#[derive(Clone, Debug)]
pub(crate) enum Pending {
    /// Bytes to store, until their end (ms since the epoch). They are `contested` when there is
    /// another value, of which nobody knows whether it is younger: what is stored decides. Behind
    /// a clear, the clear may have removed that other value. They are `followed` when it is known
    /// to be younger, because this process has made it.
    Write {
        bytes: Bytes,
        created_at: u64,
        end: u64,
        contested: bool,
        behind_clear: bool,
        followed: bool,
    },
    /// Removing everything that is not younger than that.
    Delete { at: u64 },
    /// Making stale, when, and the grace of what was to last for ever.
    Expire { at: u64, grace: u64 },
    /// Removing a value of our own, if exactly the bytes with that digest are still stored.
    TakeBack { digest: u64, created_at: u64 },
    /// Clearing everything under the key, which is a prefix, and when.
    Clear { at: u64 },
}

impl Pending {
    /// Whether the outcome depends on what is stored.
    pub(crate) fn needs_stored(&self) -> bool {
        match self {
            Self::Delete { .. } | Self::Expire { .. } | Self::TakeBack { .. } => true,
            Self::Write { contested, .. } => *contested,
            Self::Clear { .. } => false,
        }
    }

    /// A write becomes the deletion of what it was to replace, and of itself: that it failed does
    /// not mean that it was not stored.
    fn give_up_write(&mut self) {
        if let Self::Write { created_at, .. } = self {
            *self = Self::Delete { at: *created_at };
        }
    }

    /// A write becomes that of a stale entry.
    fn expire_write(&mut self, now: u64, grace: u64) {
        if let Self::Write { bytes, created_at, end, .. } = self {
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

    /// When the change was made, in ms since the epoch.
    fn at(&self) -> u64 {
        match self {
            Self::Write { created_at: at, .. }
            | Self::Delete { at }
            | Self::Expire { at, .. }
            | Self::TakeBack { created_at: at, .. }
            | Self::Clear { at } => *at,
        }
    }

    /// Whether a write must be given up because the value it competes with is not there: it may
    /// have been the younger one, and removed since. If this very write is there although it was
    /// thought to have failed, it stays: after a server that stood still, that is the last one. A
    /// marker of a tag invalidates, so it is stored in any case.
    fn is_undecided(&self, key: &Key, stored: Option<&Bytes>) -> bool {
        let Self::Write { contested: true, .. } = self else { return false };
        stored.is_none() && !is_marker(&key.full)
    }

    /// What will be stored under the key once the change is repeated. `digest` is that of bytes.
    pub(crate) fn applied_to(
        self,
        key: &Key,
        stored: Option<Bytes>,
        digest: impl Fn(&Bytes) -> u64,
    ) -> Option<Bytes> {
        if self.is_undecided(key, stored.as_ref()) {
            return None;
        }
        match self {
            Self::Write { bytes, created_at, contested, .. } => {
                stored.filter(|stored| contested && is_younger(stored, created_at)).or(Some(bytes))
            }
            Self::Delete { at } => stored.filter(|stored| is_younger(stored, at)),
            Self::Clear { .. } => None,
            Self::TakeBack { digest: ours, .. } => stored.filter(|stored| digest(stored) != ours),
            Self::Expire { at, grace } => {
                let stored = stored?;
                if is_younger(&stored, at) {
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

/// Whether the stored document is of a later time.
fn is_younger(stored: &Bytes, at: u64) -> bool {
    Document::parse(stored).is_ok_and(|document| document.meta.created_at > at)
}

/// What becomes of a stored document that is made stale.
enum Expired {
    /// These bytes, and the end it keeps (ms since the epoch) where that is known.
    Stale(Bytes, Option<u64>),
    /// It has no grace to be stale in.
    Gone,
    /// It is stale, or no entry.
    Unchanged,
}

/// Makes a document stale at that time. One that was to last for ever gets `grace` ms from then.
fn expired(stored: &Bytes, at: u64, grace: u64) -> Expired {
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
    /// What is being repeated now.
    repeated: Option<Id>,
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

    /// The write of a key that waits is out of date.
    fn give_up_write(&mut self, id: &Id) {
        if matches!(self.changes.get(id), Some((_, _, Pending::Write { .. }))) {
            self.alter(id, Pending::give_up_write);
        }
    }

    /// A change is not needed any more. One that is being repeated at this moment may still reach
    /// the second tier: if it is a write, it is removed from there again.
    fn forget(&mut self, id: &Id) {
        if self.repeated.as_ref() == Some(id) {
            self.give_up_write(id);
        } else {
            self.remove(id);
        }
    }

    /// The changes under a prefix that are so.
    fn under(&self, prefix: &str, is_so: impl Fn(&Id, u64) -> bool) -> Vec<Id> {
        let is_meant = |id: &Id, number| id.1.starts_with(prefix) && is_so(id, number);
        let all = self.changes.iter().filter(|(id, (number, ..))| is_meant(id, *number));
        all.map(|(id, _)| id.clone()).collect()
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
            Pending::Clear { at } if is_marker(key) => Some(Pending::Delete { at: *at }),
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
            Kind::Set => {
                if let Pending::Write { contested, .. } = pending {
                    *contested = true;
                }
            }
            Kind::Expire => pending.expire_write(now, grace),
            Kind::Delete | Kind::Clear => pending.give_up_write(),
        });
    }

    /// This process has made another marker since that one. If it is the one that waits, the other
    /// has not failed.
    pub(crate) fn follow(&self, key: &Arc<str>, marker: u64) {
        if self.len.load(SeqCst) == 0 {
            return;
        }
        self.queue.lock().alter(&(false, key.clone()), |pending| {
            if let Pending::Write { created_at, contested, followed, .. } = pending {
                *contested = true;
                *followed |= *created_at == marker;
            }
        });
    }

    /// A change of the key by this process begins: a write of it that waits is out of date, and
    /// must not be repeated behind the change.
    pub(crate) fn supersede(&self, key: &Arc<str>) {
        if self.len.load(SeqCst) > 0 {
            self.queue.lock().give_up_write(&(false, key.clone()));
        }
    }

    /// As [`supersede`](Self::supersede), for everything whose key starts with that, and when
    /// another process has cleared it. A tag's marker invalidates, so it goes on waiting.
    pub(crate) fn supersede_under(&self, prefix: &str) {
        if self.len.load(SeqCst) == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        for id in queue.under(prefix, |(is_clear, key), _| !is_clear && !is_marker(key)) {
            queue.give_up_write(&id);
        }
    }

    /// What tells changes that are waiting now from those that will wait later.
    pub(crate) fn now(&self) -> u64 {
        if self.len.load(SeqCst) == 0 { 0 } else { self.queue.lock().next }
    }

    /// Whether a change of the key must queue up, because a clear that will reach it is waiting.
    pub(crate) fn must_wait(&self, key: &str) -> bool {
        self.len.load(SeqCst) > 0
            && self.queue.lock().clears.iter().any(|(_, prefix)| key.starts_with(&**prefix))
    }

    /// A change of the key that began at `before` has succeeded: one that waited then is not
    /// needed any more. Returns how many are waiting if there was one.
    fn forget(&self, key: &Arc<str>, before: u64) -> Option<usize> {
        if self.len.load(SeqCst) == 0 {
            return None;
        }
        let id = (false, key.clone());
        let mut queue = self.queue.lock();
        queue.changes.get(&id).filter(|(number, ..)| *number < before)?;
        queue.forget(&id);
        self.len.store(queue.changes.len(), SeqCst);
        Some(queue.changes.len())
    }

    /// As [`forget`](Self::forget), for everything whose key starts with that.
    fn forget_under(&self, prefix: &str, before: u64) -> Option<usize> {
        if self.len.load(SeqCst) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let forgotten = queue.under(prefix, |_, number| number < before);
        forgotten.iter().for_each(|id| queue.forget(id));
        self.len.store(queue.changes.len(), SeqCst);
        (!forgotten.is_empty()).then_some(queue.changes.len())
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
            for id in queue.under(&name, |_, _| true) {
                queue.remove(&id);
            }
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

    /// The oldest change, which will be repeated now.
    fn begin_oldest(&self) -> Option<(u64, Id, Key, Pending)> {
        let mut queue = self.queue.lock();
        let (number, id) = queue.order.first_key_value()?;
        let (_, key, pending) = queue.changes.get(id)?;
        let oldest = (*number, id.clone(), key.clone(), pending.clone());
        queue.repeated = Some(oldest.1.clone());
        Some(oldest)
    }

    /// The repetition has ended. If it succeeded, the change is done, unless another one took its
    /// place meanwhile. Returns how many are waiting, and whether the change was not needed any
    /// more.
    fn end(&self, number: u64, id: &Id, succeeded: bool) -> (usize, bool) {
        let mut queue = self.queue.lock();
        queue.repeated = None;
        let is_gone = !queue.changes.contains_key(id);
        let is_replaced = queue.changes.get(id).is_some_and(|(current, ..)| *current != number);
        if is_replaced && !id.0 {
            // What was repeated may have been stored behind a change that has not ended yet, which
            // must not take what waits now for something from before it.
            queue.alter(id, |_| {});
        } else if succeeded && !is_replaced {
            queue.remove(id);
        }
        self.len.store(queue.changes.len(), SeqCst);
        (queue.changes.len(), is_gone)
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(SeqCst)
    }
}

impl Engine {
    /// A change of the key that began at `before` has succeeded. Returns whether another one was
    /// waiting, which is not needed any more.
    pub(crate) fn forget_waiting(&self, key: &Key, before: u64) -> bool {
        let forgotten = self.recovery.forget(&key.full, before);
        if let Some(queued) = forgotten {
            self.emit(|| EventKind::RecoveryDone { queued });
        }
        forgotten.is_some()
    }

    /// As [`forget_waiting`](Self::forget_waiting), for a clear.
    pub(crate) fn forget_waiting_under(&self, prefix: &str, before: u64) {
        if let Some(queued) = self.recovery.forget_under(prefix, before) {
            self.emit(|| EventKind::RecoveryDone { queued });
        }
    }

    pub(crate) fn recover_write(&self, key: &Key, bytes: Bytes, created_at: u64, end: u64) -> bool {
        let behind_clear = self.recovery.must_wait(&key.full);
        let (contested, followed) = (false, false);
        let write = Pending::Write { bytes, created_at, end, contested, behind_clear, followed };
        self.recover(key, write)
    }

    /// Keeps a deletion of then that failed; returns whether it is kept. A later change of the key
    /// counts.
    pub(crate) fn recover_delete(&self, key: &Key, at: u64, fence: &Fence) -> bool {
        let later = if fence.is_unchanged() { None } else { self.recovery.pending(&key.full) };
        match later {
            // It replaces what was to be deleted.
            Some(Pending::Write { .. }) => true,
            Some(later) => self.recover(key, Pending::Delete { at: at.max(later.at()) }),
            None => self.recover(key, Pending::Delete { at }),
        }
    }

    /// Removes what is older than a value that can never be stored, unless the key was changed since
    /// the watch began. Mostly that is nothing, and then nobody hears of it: others may have such
    /// values of their own.
    pub(crate) async fn remove_older(&self, key: &Key, fence: &Fence) {
        let at = self.clock.epoch();
        let limit = self.policy.l2_hard_timeout;
        let older = match self.l2_read(&[key], limit).await.as_deref() {
            Ok([None]) => return,
            Ok([Some(stored)]) if is_younger(stored, at) => return self.distrust(key),
            Ok([Some(stored)]) => Some(stored.clone()),
            _ => None,
        };
        // At once, if that is possible: the queue would have the value here checked against what
        // is stored, and never finds it there.
        if let (Some(remote), Some(older)) = (&self.l2, older)
            && self.recovery.pending(&key.full).is_none()
        {
            let delete =
                self.l2_call(remote, "delete", limit, |driver| driver.delete_if(&key.full, &older));
            match delete.await {
                Ok(true) => return self.announce(Kind::Delete, key, &self.policy),
                // What is there now is newer.
                Ok(false) => return self.distrust(key),
                Err(_) => {}
            }
        }
        self.recover_delete(key, at, fence);
        self.recovery.kick();
    }

    /// Keeps the removal of a value of our own that failed, unless a later change is waiting. An
    /// earlier one that waits must go on to reach what it was about.
    pub(crate) fn recover_take_back(&self, key: &Key, digest: u64, created_at: u64) {
        match self.recovery.pending(&key.full) {
            None => drop(self.recover(key, Pending::TakeBack { digest, created_at })),
            Some(pending) if pending.at() < created_at => {
                self.recover(key, Pending::Delete { at: created_at });
            }
            Some(_) => {}
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
        while let Some((number, id, key, pending)) = self.recovery.begin_oldest() {
            let repeated = self.repeat(&key, &pending, 0).await;
            let failed = repeated.as_ref().is_err_and(|error| error.is_transient());
            let (queued, is_gone) = self.recovery.end(number, &id, !failed);
            if is_gone && matches!(pending, Pending::Write { .. }) {
                // A clear made it needless, and it may have been stored behind that.
                self.recover(&key, Pending::Delete { at: self.clock.epoch() });
            }
            if failed {
                return false;
            }
            if let Err(error) = repeated {
                tracing::warn!(store = %self.name, error = %chain(&*error),
                    "a change was refused by the second tier and is given up");
            }
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
        let Some(remote) = &self.l2 else { return Ok(()) };
        let limit = self.policy.l2_hard_timeout;
        let full = &*key.full;
        let now = self.clock.epoch();
        let pending = match pending {
            // What it was to replace is out of date all the same.
            Pending::Write { end, created_at, .. } if *end <= now => {
                &Pending::Delete { at: *created_at }
            }
            pending => pending,
        };
        if let Pending::Clear { at } = pending {
            return self.repeat_clear(remote, full, *at).await;
        }
        let stored = self.l2_call(remote, "get", limit, |driver| driver.get(full)).await?;
        if is_marker(full) && matches!(pending, Pending::Write { followed: false, .. }) {
            let stored = marker_of(stored.as_ref()).unwrap_or(0);
            if stored > pending.at() {
                // By whose clock is it newer? Only one above both is sure to invalidate.
                let marker = stored + 1;
                let (bytes, end) = self.marker_document(marker, &self.policy);
                self.recover_write(key, bytes, marker, end);
                self.distrust(key);
                self.tags.changed(full, None);
                return Ok(());
            }
        } else if stored.as_ref().is_some_and(|stored| is_younger(stored, pending.at())) {
            // The newer one wins, and what is here must not hide it. Others may not have heard
            // of either.
            self.distrust(key);
            self.announce(Kind::Set, key, &self.policy);
            return Ok(());
        }
        let pending = match pending.is_undecided(key, stored.as_ref()) {
            true => &Pending::Delete { at: pending.at() },
            false => pending,
        };
        let kind = match pending {
            Pending::Write { .. } => Kind::Set,
            Pending::Expire { .. } => Kind::Expire,
            Pending::Delete { .. } | Pending::TakeBack { .. } | Pending::Clear { .. } => {
                Kind::Delete
            }
        };
        match pending {
            Pending::Write { bytes, .. } if stored.as_ref() == Some(bytes) => {}
            Pending::Write { bytes, end, created_at, behind_clear, .. } => {
                if let Some(bus) = self.bus.as_ref().filter(|_| !is_marker(full)) {
                    // A message about a change since this write failed may be on its way.
                    bus.filled(self, key, bytes, *created_at, !behind_clear);
                }
                let ttl = as_ttl(until(*end, now));
                let stored = self.replace(remote, full, stored.as_ref(), bytes, ttl).await?;
                if !stored && attempts < MOST_ATTEMPTS {
                    // It is not what it was: look again.
                    return Box::pin(self.repeat(key, pending, attempts + 1)).await;
                }
                if !stored {
                    // Something that is no entry, which a look does not show, is in its place.
                    self.l2_call(remote, "set", limit, |driver| {
                        driver.set(full, bytes.clone(), ttl)
                    })
                    .await?;
                }
            }
            Pending::Delete { .. } => {
                // Only what was found: something newer may be on its way there.
                if let Some(stored) = &stored {
                    let removed = self
                        .l2_call(remote, "delete", limit, |driver| driver.delete_if(full, stored))
                        .await?;
                    if !removed && attempts < MOST_ATTEMPTS {
                        return Box::pin(self.repeat(key, pending, attempts + 1)).await;
                    }
                }
                // It may have been read here.
                self.distrust(key);
            }
            Pending::TakeBack { digest, .. } => {
                if let Some(stored) = stored.filter(|stored| self.digest(stored) == *digest) {
                    self.l2_call(remote, "delete", limit, |driver| driver.delete_if(full, &stored))
                        .await?;
                }
                self.distrust(key);
            }
            Pending::Expire { at, grace } => {
                self.l2_expire(remote, key, stored, *at, *grace, limit).await?;
            }
            Pending::Clear { .. } => {}
        }
        self.announce(kind, key, &self.policy);
        Ok(())
    }

    /// Makes what is stored stale: what was found there, or what took its place meanwhile.
    pub(crate) async fn l2_expire(
        &self,
        remote: &Remote,
        key: &Key,
        mut stored: Option<Bytes>,
        at: u64,
        grace: u64,
        limit: u64,
    ) -> Result<(), Arc<DriverError>> {
        for attempt in 0..MOST_ATTEMPTS {
            let Some(found) = &stored else { return Ok(()) };
            // What took its place in the same millisecond may have come after the expiry. What was
            // found at first came before it, whatever the clock of its writer says.
            if attempt > 0 && is_younger(found, at.saturating_sub(1)) {
                return Ok(());
            }
            let done = match expired(found, at, grace) {
                Expired::Stale(bytes, end) => {
                    let left = end.and_then(|end| as_ttl(until(end, at)));
                    self.l2_call(remote, "expire", limit, |driver| {
                        driver.update(&key.full, found, bytes, left)
                    })
                    .await?
                }
                Expired::Gone => {
                    self.l2_call(remote, "expire", limit, |driver| {
                        driver.delete_if(&key.full, found)
                    })
                    .await?
                }
                Expired::Unchanged => true,
            };
            if done {
                return Ok(());
            }
            stored = self.l2_call(remote, "get", limit, |driver| driver.get(&key.full)).await?;
        }
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
    /// entries that waited would be valid again. They wait behind it, too, from before the clear,
    /// because one whose answer is lost takes them all the same.
    async fn repeat_clear(
        &self,
        remote: &Remote,
        prefix: &str,
        at: u64,
    ) -> Result<(), Arc<DriverError>> {
        const AT_ONCE: usize = 1_000;
        for tags in self.tags.under(prefix).chunks(AT_ONCE) {
            let keys: Vec<&str> = tags.iter().map(|tag| tag.key()).collect();
            let limit = self.policy.l2_hard_timeout;
            let stored =
                self.l2_call(remote, "get", limit, |driver| driver.get_many(&keys)).await?;
            for (tag, bytes) in tags.iter().zip(stored) {
                let key = self.marker_key(tag);
                let marker = marker_of(bytes.as_ref()).ok().filter(|marker| *marker > at);
                if let Some(marker) = marker {
                    let _ = self.write_marker(remote, &key, marker, &self.policy).await;
                }
            }
        }
        self.l2_call(remote, "clear", THROUGH_ALL, |driver| driver.clear(prefix)).await?;
        // What others have stored since is gone from there too, and may have been read here.
        self.fences.invalidate_all();
        self.l1.iter().for_each(Local::distrust_all);
        // The key of a clear is the prefix with its colon; the message names the namespace.
        self.announce_clear(prefix.strip_suffix(':').unwrap_or(prefix), &self.policy);
        Ok(())
    }
}
