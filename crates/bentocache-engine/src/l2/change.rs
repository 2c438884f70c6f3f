//! The protocol of changes, common to set, fill, delete, expire, clear and markers.

use std::sync::Arc;

use bentocache_driver::{DriverError, Write};
use bytes::Bytes;

use super::background::{Contest, Ticket};
use super::queue::{BusPosition, Pending, Write as QueuedWrite};
use super::remote::Budget;
use super::stored::{Expired, expired, is_younger};
use super::tier::L2;
use super::touch::idle_of;
use crate::event::EventKind;
use crate::join::join_all;
use crate::l1::fence::Fence;
use crate::site::{Key, KeyVec, as_ttl, until};
use crate::stats::Counter;
use crate::wire::message::Kind;

/// Compare-and-swap attempts before giving up.
pub(crate) const MOST_ATTEMPTS: usize = 8;
/// The number of concurrent driver calls where the driver has no call for many keys.
pub(super) const WIDTH: usize = 32;

/// The result of a change of L2.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// L2 has the change. If `others_waited`, other nodes may have read the document that a queued
    /// change was to remove.
    Reached { others_waited: bool },
    /// The change is queued for replay.
    Queued,
    /// The change is queued for replay, and the document that it was to replace is removed: the
    /// server refused the write and accepted the deletion.
    Removed,
    /// The change failed and is not queued; only the caller has the value. If it was sent, the
    /// server may have stored it and its answer was lost.
    Lost { was_sent: bool },
    /// The change failed, and the caller gets the error.
    Failed(Arc<DriverError>),
    /// L2 can never store it.
    Refused(Arc<DriverError>),
}

impl Outcome {
    /// The error that the caller gets.
    pub(crate) fn error(&self) -> Option<&Arc<DriverError>> {
        match self {
            Self::Failed(error) | Self::Refused(error) => Some(error),
            _ => None,
        }
    }
}

/// How a failed change is treated.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    /// Queue it and continue, instead of returning the error.
    pub(crate) keep: bool,
    /// The position of the bus when the change began.
    pub(crate) heard: BusPosition,
}

/// A document to store.
pub(crate) struct NewDocument<'a> {
    pub(crate) key: &'a Key,
    pub(crate) bytes: &'a Bytes,
    /// The time to keep it, in ms.
    pub(crate) life: u64,
    /// Its end, in ms since the epoch.
    pub(crate) end: u64,
    pub(crate) created_at: u64,
    /// Other nodes may hold a fresh document that this one replaces.
    pub(crate) replaces: bool,
    /// Watches the key since the start of this change.
    pub(crate) fence: &'a Fence,
}

impl NewDocument<'_> {
    fn write(&self) -> Write<'_> {
        Write { key: &self.key.full, value: self.bytes.clone(), ttl: as_ttl(self.life) }
    }
}

type Called = Result<(), Arc<DriverError>>;
/// The number of keys that existed.
type Deleted = Result<u64, Arc<DriverError>>;

impl L2 {
    /// Stores the values of a `set`. A later change of the key takes precedence.
    pub(crate) async fn set(
        &self,
        puts: &[NewDocument<'_>],
        budget: &Budget,
        rule: Rule,
    ) -> Vec<Outcome> {
        let (called, before) = self.put_all(puts, budget).await;
        let mut is_refusal = false;
        let mut outcomes = Vec::with_capacity(puts.len());
        for (put, called) in puts.iter().zip(called) {
            outcomes.push(match called {
                Some(Ok(())) => {
                    put.fence.has_reached();
                    Outcome::Reached { others_waited: self.forget_waiting(put.key, before) }
                }
                Some(Err(error)) if !error.is_transient() => {
                    // It can never be stored, and the previous document must not be served again.
                    if put.fence.is_unchanged() {
                        self.push(put.key, Pending::Delete { at: self.site.clock.epoch() });
                        self.kick();
                    }
                    Outcome::Refused(error)
                }
                Some(Err(error)) if !rule.keep => Outcome::Failed(error),
                failed => {
                    is_refusal |= matches!(&failed, Some(Err(error)) if error.is_refusal());
                    match (self.keep_set(put, rule.heard), failed) {
                        (false, Some(Err(error))) => Outcome::Failed(error),
                        _ => Outcome::Queued,
                    }
                }
            });
        }
        if is_refusal {
            self.remove_instead(puts, &mut outcomes, budget).await;
        }
        outcomes
    }

    /// As [`set`](Self::set), for a caller that did not wait; each value has a ticket. If another
    /// process changed a key meanwhile, the recovery queue decides by the stored document which value
    /// stays.
    pub(crate) async fn set_in_background(
        &self,
        puts: &[NewDocument<'_>],
        tickets: &mut [Ticket],
        budget: &Budget,
        rule: Rule,
    ) -> Vec<Outcome> {
        for ticket in &mut *tickets {
            ticket.turn().await;
        }
        let is_due = |ticket: &Ticket| ticket.contest().is_none() && !ticket.is_superseded();
        let mut outcomes = if tickets.iter().all(is_due) {
            self.set(puts, budget, rule).await
        } else {
            let mut outcomes = Vec::with_capacity(puts.len());
            for (put, ticket) in puts.iter().zip(&*tickets) {
                let set = match is_due(ticket) {
                    true => self.set(std::slice::from_ref(put), budget, rule).await.pop(),
                    false => None,
                };
                outcomes.push(set.unwrap_or(Outcome::Queued));
            }
            outcomes
        };
        for ((put, ticket), outcome) in puts.iter().zip(tickets).zip(&mut outcomes) {
            let Some(Contest { kind, at, grace }) = ticket.contest() else { continue };
            if outcome.error().is_none() && put.fence.is_unchanged() {
                let NewDocument { key, bytes, created_at, end, .. } = *put;
                self.keep_write(key, bytes.clone(), created_at, end, rule.heard);
                self.queue.mark_changed_elsewhere(&key.full, kind, at, grace);
                self.kick();
                *outcome = Outcome::Queued;
            }
        }
        outcomes
    }

    /// Stores the values that a factory produced. They are never replayed: a miss costs one factory
    /// run.
    pub(crate) async fn fill(
        &self,
        puts: &[NewDocument<'_>],
        budget: &Budget,
        rule: Rule,
    ) -> Vec<Outcome> {
        let is_skipped: KeyVec<bool> =
            puts.iter().map(|put| self.is_skipped(&put.key.full)).collect();
        let (called, before) = self.put_all(puts, budget).await;
        let each = puts.iter().zip(is_skipped).zip(called);
        let outcomes = each.map(|((put, is_skipped), called)| match called {
            Some(Ok(())) => {
                Outcome::Reached { others_waited: self.forget_waiting(put.key, before) }
            }
            Some(Err(error)) if !error.is_transient() => Outcome::Refused(error),
            Some(Err(error)) if !rule.keep => Outcome::Failed(error),
            failed => {
                let digest = self.site.digest(put.bytes);
                let take_back = |heard| {
                    self.keep_take_back(put.key, digest, put.created_at, heard);
                };
                let was_sent = failed.is_some() && !is_skipped;
                if !put.fence.holds() {
                    // The value may have been written over the change that advanced the fence.
                    take_back(None);
                } else if put.replaces {
                    let at = put.created_at.saturating_sub(1);
                    self.keep_delete(put.key, at, put.fence);
                } else if was_sent {
                    // The value may have been written, or may be in transit. This is harmless
                    // unless a message that invalidated it was missed.
                    take_back(rule.heard);
                } else {
                    // Other nodes may have stored values of their own, which could not be read.
                    let check = Pending::Check { created_at: put.created_at };
                    self.push_unless(put.key, check, |_| true);
                }
                Outcome::Lost { was_sent }
            }
        });
        outcomes.collect()
    }

    /// Writes documents: in one round trip, or one by one if the driver refuses some of them.
    /// `None` for a change that must wait behind a queued clear. Also returns the queue position
    /// from before the calls.
    async fn put_all(
        &self,
        puts: &[NewDocument<'_>],
        budget: &Budget,
    ) -> (Vec<Option<Called>>, u64) {
        puts.iter().for_each(|put| self.queue.supersede(&put.key.full));
        let before = self.queue.now();
        let waits: KeyVec<bool> =
            puts.iter().map(|put| self.queue.must_wait(&put.key.full)).collect();
        let ready: KeyVec<&NewDocument<'_>> = due(puts, &waits);
        let put_some = |some| self.put_some(some, budget);
        let called = self.for_each_part(&ready, |put| &put.key.full, put_some).await;
        (with_waiting(called, &waits), before)
    }

    /// Writes documents of one part of the store.
    async fn put_some(&self, puts: KeyVec<&NewDocument<'_>>, budget: &Budget) -> Vec<Called> {
        let Some(first) = puts.first() else { return Vec::new() };
        if puts.len() == 1 {
            return vec![self.put_one(first, budget).await];
        }
        let (name, limit) = (&first.key.full, budget.left());
        let writes: KeyVec<_> = puts.iter().map(|put| put.write()).collect();
        match self.call("set", name, limit, |driver| driver.set_many(&writes)).await {
            Err(error) if !error.is_transient() => {
                Self::each(&puts, |put| self.put_one(put, budget)).await
            }
            all => puts.iter().map(|_| all.clone()).collect(),
        }
    }

    async fn put_one(&self, put: &NewDocument<'_>, budget: &Budget) -> Called {
        let Write { key, value, ttl } = put.write();
        self.call("set", key, budget.left(), |driver| driver.set(key, value, ttl)).await
    }

    /// Makes a call for each item, up to [`WIDTH`] of them concurrently.
    async fn each<'i, I, F, R>(items: &'i [I], call: impl Fn(&'i I) -> F) -> Vec<R>
    where
        F: Future<Output = R>,
    {
        let mut called = Vec::with_capacity(items.len());
        for some in items.chunks(WIDTH) {
            called.extend(join_all(some.iter().map(&call).collect()).await);
        }
        called
    }

    /// Queues a set that failed; returns whether the set, or a later change of the key, is queued.
    fn keep_set(&self, put: &NewDocument<'_>, heard: BusPosition) -> bool {
        let NewDocument { key, bytes, created_at, end, fence, .. } = *put;
        if fence.is_unchanged() {
            self.keep_write(key, bytes.clone(), created_at, end, heard)
        } else if fence.is_outdone() {
            // A later change of the key takes precedence. This one may or may not have been
            // written.
            self.keep_take_back(key, self.site.digest(bytes), created_at, None);
            true
        } else {
            // Until that later change is stored, the older document must not be found.
            self.keep_delete(key, created_at, fence)
        }
    }

    /// A server that refuses a write may accept a deletion. Without it, other nodes would continue
    /// to read the old value. The write stays queued.
    async fn remove_instead(
        &self,
        puts: &[NewDocument<'_>],
        outcomes: &mut [Outcome],
        budget: &Budget,
    ) {
        let refused: KeyVec<(usize, &Key)> = (0..)
            .zip(puts)
            .filter(|(place, _)| matches!(outcomes[*place], Outcome::Queued))
            .map(|(place, put)| (place, put.key))
            .collect();
        let keys: KeyVec<&Key> = refused.iter().map(|(_, key)| *key).collect();
        let deleted = self.delete_by_part(&keys, budget).await;
        for ((place, _), deleted) in refused.into_iter().zip(deleted) {
            if deleted.is_ok() {
                outcomes[place] = Outcome::Removed;
            }
        }
    }

    /// Deletes keys; each has the result of its part of the store. The first key of each part
    /// carries the number of keys that existed.
    async fn delete_by_part(&self, keys: &[&Key], budget: &Budget) -> Vec<Deleted> {
        let delete = |some| self.delete_some(some, budget);
        self.for_each_part(keys, |key| &key.full, delete).await
    }

    async fn delete_some(&self, keys: KeyVec<&Key>, budget: &Budget) -> Vec<Deleted> {
        let names = keys.iter().map(|key| &*key.full).collect();
        let deleted = self.delete_names(names, budget.left()).await;
        match deleted.first() {
            Some(Err(error)) if keys.len() > 1 && !error.is_transient() => {
                Self::each(&keys, |key| self.delete_one(key, budget)).await
            }
            _ => deleted,
        }
    }

    /// Deletes keys of one part of the store, in one call.
    pub(super) async fn delete_names(&self, keys: KeyVec<&str>, limit: u64) -> Vec<Deleted> {
        let Some(first) = keys.first() else { return Vec::new() };
        let deleted = self.call("delete", first, limit, |driver| driver.delete(&keys)).await;
        let rest = deleted.clone().map(|_| 0);
        std::iter::once(deleted).chain(std::iter::repeat(rest)).take(keys.len()).collect()
    }

    /// Deletes keys. Returns the outcome of each, and the number of keys that existed.
    pub(crate) async fn delete(
        &self,
        keys: &[Key],
        fences: &[Fence],
        at: u64,
        budget: &Budget,
        rule: Rule,
    ) -> (Vec<Outcome>, u64) {
        let waits: KeyVec<bool> = keys.iter().map(|key| self.queue.must_wait(&key.full)).collect();
        keys.iter().for_each(|key| self.queue.supersede(&key.full));
        let before = self.queue.now();
        let ready: KeyVec<&Key> = due(keys, &waits);
        let deleted = self.delete_by_part(&ready, budget).await;
        let there = deleted.iter().flatten().sum();
        let called = deleted.into_iter().map(|deleted| deleted.map(drop)).collect();
        let called = with_waiting(called, &waits);
        let outcomes = keys.iter().zip(fences).zip(called).map(|((key, fence), called)| {
            match called {
                Some(Ok(())) => {
                    fence.has_reached();
                    Outcome::Reached { others_waited: self.forget_waiting(key, before) }
                }
                // The driver cannot hold such a key, or is closed.
                Some(Err(error)) if !error.is_transient() => Outcome::Refused(error),
                failed => {
                    let kept = self.keep_delete(key, at, fence);
                    match failed {
                        Some(Err(error)) if !(rule.keep && kept) => Outcome::Failed(error),
                        _ => Outcome::Queued,
                    }
                }
            }
        });
        (outcomes.collect(), there)
    }

    async fn delete_one(&self, key: &Key, budget: &Budget) -> Deleted {
        let keys = std::iter::once(&*key.full).collect();
        self.delete_names(keys, budget.left()).await.pop().unwrap_or(Ok(0))
    }

    /// Makes keys stale.
    pub(crate) async fn expire(
        &self,
        keys: &[Key],
        at: u64,
        grace: u64,
        budget: &Budget,
        rule: Rule,
    ) -> Vec<Outcome> {
        Self::each(keys, |key| self.expire_one(key, at, grace, budget, rule)).await
    }

    async fn expire_one(
        &self,
        key: &Key,
        at: u64,
        grace: u64,
        budget: &Budget,
        rule: Rule,
    ) -> Outcome {
        let expire = Pending::Expire { at, grace };
        let if_it_fails = match self.queue.pending(&key.full) {
            None
            | Some(Pending::TakeBack { .. } | Pending::Check { .. } | Pending::Touch { .. }) => {
                expire
            }
            // The queued write is stored as stale. If another process has stored something younger,
            // that must become stale too, or be removed.
            Some(Pending::Write(_)) => {
                self.queue.mark_changed_elsewhere(&key.full, Kind::Expire, at, grace);
                Pending::Delete { at }
            }
            // The queued change now covers this one too.
            Some(Pending::Delete { .. }) => {
                self.push(key, Pending::Delete { at });
                return Outcome::Queued;
            }
            Some(Pending::Expire { .. }) => {
                self.push(key, expire);
                return Outcome::Queued;
            }
            Some(Pending::Clear { .. }) => return Outcome::Queued,
        };
        let stored =
            self.call("get", &key.full, budget.left(), |driver| driver.get(&key.full)).await;
        let result = match stored {
            Ok(stored) => self.expire_stored(key, stored, at, grace, budget, false).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => Outcome::Reached { others_waited: false },
            Err(error) if !error.is_transient() => Outcome::Refused(error),
            Err(error) => {
                let kept = self.push(key, if_it_fails);
                if rule.keep && kept { Outcome::Queued } else { Outcome::Failed(error) }
            }
        }
    }

    /// Makes the stored document stale: the one that was read, or one that has replaced it since.
    pub(super) async fn expire_stored(
        &self,
        key: &Key,
        mut stored: Option<Bytes>,
        at: u64,
        grace: u64,
        budget: &Budget,
        probe: bool,
    ) -> Called {
        for attempt in 0..MOST_ATTEMPTS {
            let Some(found) = &stored else { return Ok(()) };
            // A replacement of the same millisecond may have come after the expiry. The first
            // document came before it, whatever the clock of its writer says.
            if attempt > 0 && is_younger(found, at.saturating_sub(1), at) {
                return Ok(());
            }
            let limit = budget.left();
            let done = match expired(found, at, grace) {
                Expired::Stale(bytes, end) => {
                    let left = end.and_then(|end| as_ttl(until(end, at).min(idle_of(&bytes))));
                    let update = self.attempt("expire", &key.full, limit, probe, |driver| {
                        driver.update(&key.full, found, bytes, left)
                    });
                    update.await?
                }
                Expired::Gone => {
                    let delete = self.attempt("expire", &key.full, limit, probe, |driver| {
                        driver.delete_if(&key.full, found)
                    });
                    delete.await?
                }
                Expired::Unchanged => true,
            };
            if done {
                return Ok(());
            }
            let get = self
                .attempt("get", &key.full, budget.left(), probe, |driver| driver.get(&key.full));
            stored = get.await?;
        }
        Ok(())
    }

    /// Clears everything under the prefix.
    pub(crate) async fn clear(&self, prefix: &Key, at: u64, rule: Rule) -> Outcome {
        self.queue.supersede_under(&prefix.full);
        let before = self.queue.now();
        match self.scan("clear", false, |driver| driver.clear(&prefix.full)).await {
            Ok(()) => {
                if let Some(queued) = self.queue.forget_under(&prefix.full, before) {
                    self.site.record(Counter::RecoveryDone, || EventKind::RecoveryDone { queued });
                }
                Outcome::Reached { others_waited: false }
            }
            Err(error) if !error.is_transient() => Outcome::Refused(error),
            Err(error) => {
                let parts = error.parts().cloned();
                if rule.keep && self.push(prefix, Pending::Clear { at, parts }) {
                    Outcome::Queued
                } else {
                    Outcome::Failed(error)
                }
            }
        }
    }

    /// Removes the document under the key and returns it. Also returns a document that only the
    /// queue has.
    pub(crate) async fn pull(
        &self,
        key: &Key,
        fence: &Fence,
        at: u64,
        budget: &Budget,
        rule: Rule,
    ) -> (Outcome, Option<Bytes>) {
        let pending = self.queue.pending(&key.full);
        self.queue.supersede(&key.full);
        let before = self.queue.now();
        if let Some(pending) = pending.clone().filter(|pending| !pending.needs_stored()) {
            self.keep_delete(key, at, fence);
            self.kick();
            return (Outcome::Queued, self.applied(pending, key, None));
        }
        match self.call("pull", &key.full, budget.left(), |driver| driver.pull(&key.full)).await {
            Ok(bytes) => {
                fence.has_reached();
                let others_waited = pending.is_some() && self.forget_waiting(key, before);
                let bytes = match pending {
                    Some(pending) => self.applied(pending, key, bytes),
                    None => bytes,
                };
                (Outcome::Reached { others_waited }, bytes)
            }
            Err(error) if !error.is_transient() => (Outcome::Refused(error), None),
            Err(error) => {
                let kept = self.keep_delete(key, at, fence);
                let kept = rule.keep && kept;
                (if kept { Outcome::Queued } else { Outcome::Failed(error) }, None)
            }
        }
    }

    /// Rewrites a document and keeps its expiry.
    pub(crate) async fn rewrite(
        &self,
        key: &Key,
        budget: &Budget,
        rewrite: impl FnOnce(&Bytes) -> Option<(Bytes, u64)>,
    ) {
        let stored =
            self.call("get", &key.full, budget.left(), |driver| driver.get(&key.full)).await;
        let Ok(Some(stored)) = stored else { return };
        let Some((bytes, left)) = rewrite(&stored) else { return };
        let update = self.call("update", &key.full, budget.left(), |driver| {
            driver.update(&key.full, &stored, bytes, as_ttl(left))
        });
        // If this fails, the old document stays, which is no worse than before.
        let _ = update.await;
    }

    /// Removes a value of this process if exactly these bytes are stored; returns whether they
    /// were.
    pub(crate) async fn take_back(
        &self,
        key: &Key,
        bytes: &Bytes,
        created_at: u64,
        budget: &Budget,
    ) -> bool {
        let delete = self
            .call("delete", &key.full, budget.left(), |driver| driver.delete_if(&key.full, bytes));
        delete.await.unwrap_or_else(|_| {
            self.keep_take_back(key, self.site.digest(bytes), created_at, None);
            false
        })
    }

    /// As [`take_back`](Self::take_back), for values of which only the digests are known.
    pub(crate) async fn find_and_take_back(
        &self,
        key: &Key,
        digests: &[u64],
        created_at: u64,
        budget: &Budget,
    ) -> bool {
        match self.call("get", &key.full, budget.left(), |driver| driver.get(&key.full)).await {
            Ok(Some(stored)) if digests.contains(&self.site.digest(&stored)) => {
                self.take_back(key, &stored, created_at, budget).await
            }
            Ok(_) => false,
            Err(_) => {
                // The latest digest is the first. There are older ones only if the latest value
                // could not be stored.
                match digests {
                    [digest] => self.keep_take_back(key, *digest, created_at, None),
                    _ => drop(self.push(key, Pending::Delete { at: created_at })),
                }
                false
            }
        }
    }

    /// Removes the document that is older than a value that can never be stored, unless the key
    /// changed since the watch began. Usually there is none, and then no message is sent: other
    /// processes may have such values of their own.
    pub(crate) async fn remove_older(
        &self,
        key: &Key,
        fence: &Fence,
        budget: &Budget,
    ) -> OlderDocument {
        let at = self.site.clock.epoch();
        let older = match self.read_one(key, budget.left()).await {
            Ok(None) => return OlderDocument::Nothing,
            Ok(Some(stored)) if is_younger(&stored, at, at) => return OlderDocument::Younger,
            Ok(Some(stored)) => Some(stored),
            Err(error) if !error.is_transient() => return OlderDocument::Nothing,
            Err(_) => None,
        };
        // At once if possible: a queued removal would have the local value checked against L2,
        // where it never is.
        if let Some(older) = older.filter(|_| self.queue.pending(&key.full).is_none()) {
            let delete = self
                .call("delete", &key.full, budget.left(), |driver| {
                    driver.delete_if(&key.full, &older)
                })
                .await;
            match delete {
                Ok(true) => return OlderDocument::Removed,
                Ok(false) => return OlderDocument::Younger,
                Err(_) => {}
            }
        }
        self.keep_delete(key, at, fence);
        self.kick();
        OlderDocument::Nothing
    }
}

/// The document in the place of a value that can never be stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OlderDocument {
    Nothing,
    Removed,
    Younger,
}

/// The operations that add changes to the queue.
impl L2 {
    /// A change of the key that began at `before` has succeeded. Returns whether another change was
    /// queued, which is not needed any more.
    pub(super) fn forget_waiting(&self, key: &Key, before: u64) -> bool {
        let forgotten = self.queue.forget(&key.full, before);
        if let Some(queued) = forgotten {
            self.site.record(Counter::RecoveryDone, || EventKind::RecoveryDone { queued });
        }
        forgotten.is_some()
    }

    pub(super) fn keep_write(
        &self,
        key: &Key,
        bytes: Bytes,
        created_at: u64,
        end: u64,
        heard: BusPosition,
    ) -> bool {
        let behind_clear = self.queue.must_wait(&key.full);
        let (contested, followed) = (false, false);
        let write =
            QueuedWrite { bytes, created_at, end, contested, behind_clear, followed, heard };
        self.push(key, Pending::Write(write))
    }

    /// Queues a failed deletion with the time `at`; returns whether it is queued. A later change of
    /// the key takes precedence.
    pub(super) fn keep_delete(&self, key: &Key, at: u64, fence: &Fence) -> bool {
        let is_latest = fence.is_unchanged();
        match self.queue.pending(&key.full) {
            // The queued write replaces the document that was to be deleted.
            Some(Pending::Write(_)) if !is_latest => true,
            // The deletion must also cover our own value, which may be of the same millisecond.
            Some(waiting) if !is_latest || matches!(waiting, Pending::TakeBack { .. }) => {
                self.push(key, Pending::Delete { at: at.max(waiting.at()) })
            }
            _ => self.push(key, Pending::Delete { at }),
        }
    }

    /// Repeats an invalidation that was made here and published late, in case other nodes have
    /// stored something older meanwhile.
    pub(crate) fn repeat_invalidation(&self, key: &Key, kind: Kind, at: u64) {
        let pending = match kind {
            Kind::Clear => Pending::Clear { at, parts: None },
            Kind::Delete => Pending::Delete { at },
            Kind::Expire => Pending::Expire { at, grace: 0 },
            // Removes documents that are older than the value that was set.
            Kind::Set => Pending::Delete { at: at.saturating_sub(1) },
        };
        self.push_unless(key, pending, |waiting| {
            waiting.at() >= at || matches!(waiting, Pending::Write(_))
        });
        self.kick();
    }

    /// Queues the removal of our own value after a failure, unless a later change is queued. An
    /// earlier queued change must still cover its own document.
    pub(super) fn keep_take_back(
        &self,
        key: &Key,
        digest: u64,
        created_at: u64,
        heard: BusPosition,
    ) {
        match self.queue.pending(&key.full) {
            Some(pending) if pending.at() < created_at && heard.is_none() => {
                self.push(key, Pending::Delete { at: created_at });
            }
            _ => {
                let take_back = Pending::TakeBack { digest, created_at, heard };
                self.push_unless(key, take_back, |waiting| {
                    !matches!(waiting, Pending::Check { .. })
                });
            }
        }
    }

    /// Queues a failed change; returns whether it is queued.
    pub(super) fn push(&self, key: &Key, pending: Pending) -> bool {
        self.push_unless(key, pending, |_| false)
    }

    /// As [`push`](Self::push), unless the queued change of the key satisfies `is_so`.
    fn push_unless(
        &self,
        key: &Key,
        pending: Pending,
        is_so: impl FnOnce(&Pending) -> bool,
    ) -> bool {
        let is_check = matches!(pending, Pending::Check { .. });
        let Some(pushed) = self.queue.push_unless(key, pending, is_so) else { return true };
        if is_check {
            return pushed.queued > 0;
        }
        let queued = pushed.queued;
        if pushed.dropped > 0 {
            self.trouble.report_full(&self.site, queued);
            for _ in 0..pushed.dropped {
                self.site
                    .record(Counter::RecoveryDropped, || EventKind::RecoveryDropped { queued });
            }
        }
        if pushed.merged > 0 {
            tracing::warn!(store = %self.site.name, queued, merged = pushed.merged,
                "too many invalidations wait for L2: those of one namespace became \
                 a clear of that namespace; see the option `recovery`");
        }
        if queued > 0 {
            self.site.record(Counter::RecoveryQueued, || EventKind::RecoveryQueued { queued });
        }
        queued > 0
    }
}

/// The items that need not wait behind a queued clear.
fn due<'i, I>(items: &'i [I], waits: &[bool]) -> KeyVec<&'i I> {
    items.iter().zip(waits).filter(|(_, waits)| !**waits).map(|(item, _)| item).collect()
}

/// The results at their items' indices; `None` for an item that must wait.
fn with_waiting<R>(called: Vec<R>, waits: &[bool]) -> Vec<Option<R>> {
    let mut called = called.into_iter();
    waits.iter().map(|waits| if *waits { None } else { called.next() }).collect()
}
