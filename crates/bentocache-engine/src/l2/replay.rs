//! Replay of the changes that failed to reach L2.
//!
//! The main rule: **nothing is resurrected**. While a link was lost, another node may have
//! invalidated a key, and a deletion leaves no newer document. So a write is replayed only over a
//! document that is provably older and still stored. If nothing is stored, the write is dropped,
//! unless the bus proves that no message was missed since the write began. Invalidations are
//! replayed until they succeed: they never harm a younger document.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bentocache_driver::DriverError;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::change::{MOST_ATTEMPTS, WIDTH};
use super::queue::{BusPosition, Parts, Pending, TakenChange, Write};
use super::remote::Budget;
use super::stored::{Standing, standing};
use super::tier::L2;
use crate::event::EventKind;
use crate::join::join_all;
use crate::options::RecoveryMode;
use crate::site::{Key, KeyVec, as_ttl, chain, is_marker, until};
use crate::stats::Counter;
use crate::wire::message::Kind;

/// A round ends after this many batches in which the server refused every change.
const MOST_FRUITLESS: usize = 4;

/// The other modules of the engine, as far as a replay changes them.
pub(crate) trait ReplayEffects: Sync {
    /// L1's entry must be checked against L2.
    fn mark_unverified(&self, key: &Key);

    /// All entries of L1 must be checked.
    fn mark_all_unverified(&self);

    /// Announces the change to the other nodes.
    fn announce(&self, kind: Kind, key: &Key);

    /// Announces to the other nodes that a namespace was cleared.
    fn announce_clear(&self, namespace: &str);

    /// Remembers a document that is about to be stored late: a message about an invalidation may be
    /// in transit.
    fn remember(&self, key: &Key, bytes: &Bytes, created_at: u64, hides_nothing: bool);

    /// Proves that all messages of other nodes until now were received; returns the position of the
    /// bus.
    fn prove_heard(&self) -> impl Future<Output = BusPosition> + Send;

    /// The keys of the markers under a prefix that this node knows.
    fn markers_under(&self, prefix: &str) -> Vec<Key>;

    /// The marker in a stored document; 0 if there is none.
    fn marker_of(&self, stored: Option<&Bytes>) -> Result<u64, ()>;

    /// The document of a marker, and its end.
    fn marker_document(&self, marker: u64) -> (Bytes, u64);

    /// Clears everything under a prefix if the driver cannot.
    fn clear_level(&self, prefix: &Key) -> impl Future<Output = ()> + Send;

    /// The marker under this key differs from the one that this node knows.
    fn marker_changed(&self, key: &Key);
}

/// State that the replays of one batch share.
struct Attempt<'a, O> {
    effects: &'a O,
    /// Whether calls pass an open breaker.
    probe: bool,
    /// The position of the bus, proven once per batch, if a write depends on it.
    heard: OnceCell<BusPosition>,
}

/// The result of a replay.
enum Done {
    /// L2 has the change.
    Yes,
    /// L2 has a newer document.
    Outrun,
    /// The write was dropped, because it may have been invalidated.
    Dropped,
    /// Another change has replaced this one in the queue.
    Outdated,
    /// A check, which changes nothing in L2.
    Checked,
}

/// The changes of one round that were given up.
#[derive(Default)]
struct Lost {
    dropped: usize,
    refused: usize,
    refused_for: Option<Arc<DriverError>>,
}

type Repeated = Result<Done, Arc<DriverError>>;

impl L2 {
    /// Replays the queue forever, with growing pauses while it keeps failing.
    pub(crate) async fn replay_forever(&self, effects: &impl ReplayEffects, limit: u64) {
        let mut backoff = self.options.backoff();
        loop {
            tokio::select! {
                () = backoff.pause() => {}
                () = self.wake.notified() => {}
            }
            if self.queue.is_empty() || self.replay(effects, limit).await {
                backoff.reset();
            }
        }
    }

    /// Replays every queued change once; returns whether the queue is empty.
    pub(crate) async fn replay(&self, effects: &impl ReplayEffects, limit: u64) -> bool {
        let _one_at_a_time = self.replaying.lock().await;
        let mut lost = Lost::default();
        let is_done = self.round(effects, limit, &mut lost).await;
        // One log line per round, because there may be thousands of changes.
        if lost.dropped > 0 {
            tracing::warn!(store = %self.site.name, sets = lost.dropped,
                "sets that failed were dropped: nothing is stored under their keys, which may have \
                 been deleted meanwhile; see the option `recovery_mode`");
        }
        if let Some(error) = &lost.refused_for {
            tracing::warn!(store = %self.site.name, changes = lost.refused,
                error = %chain(&**error),
                "changes were refused by L2 for good and are given up");
        }
        is_done
    }

    async fn round(&self, effects: &impl ReplayEffects, limit: u64, lost: &mut Lost) -> bool {
        let round = self.queue.round();
        let probe = self.is_back.swap(false, SeqCst);
        let mut fruitless = 0;
        // Parts of the store that failed in this round: changes of other parts need not wait for
        // them.
        let mut down = KeyVec::new();
        loop {
            let is_due = |key: &str| down.is_empty() || !down.contains(&self.part(key));
            let batch = self.queue.take(round, WIDTH, is_due);
            if batch.items.is_empty() {
                return self.queue.is_empty();
            }
            let attempt = Attempt { effects, probe, heard: OnceCell::new() };
            let repeat = batch.items.iter().map(|item| {
                let (budget, attempt) = (Budget::for_each_call(limit), &attempt);
                async move { self.repeat(attempt, item, &item.pending, &budget, 0).await }
            });
            let repeated = join_all(repeat.collect()).await;
            let (mut reached, mut is_down) = (false, false);
            for (item, repeated) in batch.items.iter().zip(repeated) {
                match &repeated {
                    Err(error) if error.is_transient() && error.is_refusal() => {}
                    Err(error) if error.is_transient() => match self.part(&item.key.full) {
                        // A clear concerns all parts; its key belongs to none.
                        Some(part) if !matches!(item.pending, Pending::Clear { .. }) => {
                            down.push(Some(part));
                        }
                        _ => is_down |= error.parts().is_none(),
                    },
                    _ => reached = true,
                }
                let is_given_up = matches!(repeated, Ok(Done::Dropped | Done::Outrun));
                self.ended(item, repeated, lost);
                if is_given_up {
                    // A reader may just have read it from the queue.
                    effects.mark_unverified(&item.key);
                }
            }
            drop(batch);
            fruitless = if reached { 0 } else { fruitless + 1 };
            if !reached && (is_down || fruitless >= MOST_FRUITLESS) {
                return false;
            }
        }
    }

    fn ended(&self, item: &TakenChange, repeated: Repeated, lost: &mut Lost) {
        let failed = repeated.as_ref().is_err_and(|error| error.is_transient());
        let (queued, is_gone) = self.queue.end(item, failed);
        if is_gone && matches!(item.pending, Pending::Write(_)) {
            // A clear removed the write from the queue while it was being replayed. The server may
            // have stored it after the clear, so it is deleted.
            self.push(&item.key, Pending::Delete { at: self.site.clock.epoch() });
        }
        match repeated {
            Err(_) if failed => {}
            Ok(Done::Outdated | Done::Checked) => {}
            Ok(Done::Yes | Done::Outrun) => {
                self.site.record(Counter::RecoveryDone, || EventKind::RecoveryDone { queued });
            }
            Ok(Done::Dropped) => {
                lost.dropped += 1;
                tracing::debug!(store = %self.site.name, key = self.site.logged(&item.key.full),
                    "a set that failed was dropped");
                self.site
                    .record(Counter::RecoveryDropped, || EventKind::RecoveryDropped { queued });
            }
            Err(error) => {
                lost.refused += 1;
                tracing::debug!(store = %self.site.name, key = self.site.logged(&item.key.full),
                    error = %chain(&*error), "a change was refused for good");
                lost.refused_for.get_or_insert(error);
                self.site
                    .record(Counter::RecoveryDropped, || EventKind::RecoveryDropped { queued });
            }
        }
    }

    /// Replays one change, unless something newer is stored. `pending` is the item's change, or the
    /// change that it turned into.
    async fn repeat<O: ReplayEffects>(
        &self,
        attempt: &Attempt<'_, O>,
        item: &TakenChange,
        pending: &Pending,
        budget: &Budget,
        attempts: usize,
    ) -> Repeated {
        let Attempt { effects, probe, .. } = *attempt;
        let key = &item.key;
        let full = &*key.full;
        let now = self.site.clock.epoch();
        let pending = match pending {
            // The document that it was to replace is out of date even then.
            Pending::Write(Write { end, created_at, .. }) if *end <= now => {
                &Pending::Delete { at: *created_at }
            }
            pending => pending,
        };
        if let Pending::Clear { at, parts } = pending {
            return self.repeat_clear(attempt, key, *at, parts, budget).await;
        }
        let stored =
            self.attempt("get", full, budget.left(), probe, |driver| driver.get(full)).await?;
        let is_unfollowed_marker =
            is_marker(full) && matches!(pending, Pending::Write(Write { followed: false, .. }));
        if is_unfollowed_marker {
            let stored = effects.marker_of(stored.as_ref()).unwrap_or(0);
            if stored > pending.at() {
                // It is unknown whose clock made it newer. Only a marker above both is certain to
                // invalidate.
                let marker = stored + 1;
                let (bytes, end) = effects.marker_document(marker);
                self.keep_write(key, bytes, marker, end, None);
                effects.mark_unverified(key);
                effects.marker_changed(key);
                return Ok(Done::Yes);
            }
        }
        if let Pending::Check { .. } = pending {
            // Whatever is stored or absent there, all nodes must agree.
            effects.mark_unverified(key);
            return Ok(Done::Checked);
        }
        let standing = standing(stored.as_ref(), pending.at(), now);
        if standing == Standing::Younger && !is_unfollowed_marker {
            // The newer document wins, and the local entry must not hide it. Other nodes may know
            // of neither.
            effects.mark_unverified(key);
            effects.announce(Kind::Set, key);
            return Ok(Done::Outrun);
        }
        let pending = match pending.is_undecided(key, stored.as_ref()) {
            true => &Pending::Delete { at: pending.at() },
            false => pending,
        };
        let retry = match pending {
            Pending::Write(write) => {
                if self.may_be_invalidated(key, write, standing, stored.as_ref()) {
                    let heard = *attempt.heard.get_or_init(|| effects.prove_heard()).await;
                    if !self.queue.has(item) {
                        return Ok(Done::Outdated);
                    }
                    if write.heard.is_none() || write.heard != heard {
                        effects.mark_unverified(key);
                        return Ok(Done::Dropped);
                    }
                }
                !self.repeat_write(attempt, key, write, stored.as_ref(), attempts, budget).await?
            }
            // Only the document that was read: a newer one may be in transit.
            Pending::Delete { .. } => match &stored {
                Some(stored) => {
                    let deleted = self.attempt("delete", full, budget.left(), probe, |driver| {
                        driver.delete_if(full, stored)
                    });
                    !deleted.await? && attempts < MOST_ATTEMPTS
                }
                None => false,
            },
            Pending::TakeBack { digest, heard, .. } => {
                let is_other = |stored: &Bytes| self.site.digest(stored) != *digest;
                if stored.as_ref().is_none_or(is_other) {
                    // All nodes must agree. If the answer to a deletion was lost, our value was
                    // stored, in place of a value that other nodes still hold.
                    effects.mark_unverified(key);
                    if heard.is_none() {
                        let kind = if stored.is_some() { Kind::Set } else { Kind::Delete };
                        effects.announce(kind, key);
                    }
                    return Ok(Done::Yes);
                }
                let Some(ours) = stored else { return Ok(Done::Yes) };
                if heard.is_some() {
                    // The value may stay, unless it may have been invalidated before it arrived.
                    let now = *attempt.heard.get_or_init(|| effects.prove_heard()).await;
                    if !self.queue.has(item) {
                        return Ok(Done::Outdated);
                    }
                    if *heard == now {
                        return Ok(Done::Yes);
                    }
                }
                let deleted = self.attempt("delete", full, budget.left(), probe, |driver| {
                    driver.delete_if(full, &ours)
                });
                deleted.await?;
                false
            }
            Pending::Expire { at, grace } => {
                self.expire_stored(key, stored, *at, *grace, budget, probe).await?;
                false
            }
            Pending::Clear { .. } | Pending::Check { .. } => false,
        };
        if retry {
            // The document has changed since the read: try again.
            return Box::pin(self.repeat(attempt, item, pending, budget, attempts + 1)).await;
        }
        let kind = match pending {
            Pending::Write(_) => Kind::Set,
            Pending::Expire { .. } => Kind::Expire,
            _ => Kind::Delete,
        };
        if kind != Kind::Set {
            // The document may have been read here, or a factory's value may have replaced it in
            // L1.
            effects.mark_unverified(key);
        }
        effects.announce(kind, key);
        Ok(Done::Yes)
    }

    /// Whether nothing in L2 shows that a write is still valid.
    fn may_be_invalidated(
        &self,
        key: &Key,
        write: &Write,
        standing: Standing,
        stored: Option<&Bytes>,
    ) -> bool {
        matches!(standing, Standing::Nothing | Standing::Invalidated)
            // A marker invalidates. And a write that seemed to have failed may be stored.
            && !is_marker(&key.full)
            && stored != Some(&write.bytes)
            && self.options.mode == RecoveryMode::Safe
    }

    /// Stores the write in place of the document that was read; returns whether it succeeded.
    async fn repeat_write<O: ReplayEffects>(
        &self,
        attempt: &Attempt<'_, O>,
        key: &Key,
        write: &Write,
        stored: Option<&Bytes>,
        attempts: usize,
        budget: &Budget,
    ) -> Result<bool, Arc<DriverError>> {
        let Write { bytes, created_at, end, behind_clear, .. } = write;
        if stored == Some(bytes) {
            return Ok(true);
        }
        let (full, probe) = (&*key.full, attempt.probe);
        if !is_marker(full) {
            attempt.effects.remember(key, bytes, *created_at, !behind_clear);
        }
        let ttl = as_ttl(until(*end, self.site.clock.epoch()));
        let is_free = match stored {
            None => true,
            // A tag must not be without its marker even for a moment.
            Some(found) if is_marker(full) => {
                let update = self.attempt("set", full, budget.left(), probe, |driver| {
                    driver.update(full, found, bytes.clone(), ttl)
                });
                if update.await? {
                    return Ok(true);
                }
                false
            }
            // Removed first, because an update would keep its expiry. A server without room for the
            // new document accepts the removal nevertheless.
            Some(found) => {
                let removed = self.attempt("set", full, budget.left(), probe, |driver| {
                    driver.delete_if(full, found)
                });
                removed.await?
            }
        };
        if is_free {
            let inserted = self.attempt("set", full, budget.left(), probe, |driver| {
                driver.insert(full, bytes.clone(), ttl)
            });
            if inserted.await? {
                return Ok(true);
            }
        }
        if attempts < MOST_ATTEMPTS {
            return Ok(false);
        }
        // Bytes that are not an entry, which a read does not return, are stored under the key.
        let set = self.attempt("set", full, budget.left(), probe, |driver| {
            driver.set(full, bytes.clone(), ttl)
        });
        set.await.map(|()| true)
    }

    /// Clears late. Later writes of this process are queued behind the clear. Later writes of other
    /// processes are lost, which costs misses, except the markers of tags: without them, queued
    /// entries would become valid again. So markers are queued behind the clear too, and before it
    /// is sent, because a clear whose answer is lost still removes them.
    async fn repeat_clear<O: ReplayEffects>(
        &self,
        attempt: &Attempt<'_, O>,
        prefix: &Key,
        at: u64,
        parts: &Parts,
        budget: &Budget,
    ) -> Repeated {
        const AT_ONCE: usize = 1_000;
        let Attempt { effects, probe, .. } = *attempt;
        if !self.can_clear {
            // This queues a marker at least.
            effects.clear_level(prefix).await;
            self.was_cleared(effects, prefix);
            return Ok(Done::Yes);
        }
        for keys in effects.markers_under(&prefix.full).chunks(AT_ONCE) {
            let names: Vec<&str> = keys.iter().map(|key| &*key.full).collect();
            let get = |some| self.get_all(some, budget.left(), probe);
            let stored = self.for_each_part(&names, |name| name, get).await;
            for (key, bytes) in keys.iter().zip(stored) {
                let bytes = bytes?;
                let marker = effects.marker_of(bytes.as_ref()).ok().filter(|marker| *marker > at);
                let Some(marker) = marker else { continue };
                match self.queue.pending(&key.full) {
                    Some(Pending::Write(waiting)) if waiting.created_at >= marker => {}
                    _ => {
                        let (bytes, end) = effects.marker_document(marker);
                        self.keep_write(key, bytes, marker, end, None);
                        // The queued marker was read as the current one.
                        effects.marker_changed(key);
                    }
                }
            }
        }
        let clear = self.scan("clear", probe, |driver| match parts {
            Some(parts) => driver.clear_parts(&prefix.full, parts),
            None => driver.clear(&prefix.full),
        });
        clear.await?;
        self.was_cleared(effects, prefix);
        Ok(Done::Yes)
    }

    fn was_cleared(&self, effects: &impl ReplayEffects, prefix: &Key) {
        // Documents that other processes have stored since are gone from L2 too, and may have been
        // read here.
        effects.mark_all_unverified();
        // The key of a clear is the prefix with its colon; the message names the namespace.
        effects.announce_clear(prefix.full.strip_suffix(':').unwrap_or(&prefix.full));
    }
}
