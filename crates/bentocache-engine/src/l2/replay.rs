//! Replay of the changes that failed to reach L2.
//!
//! The main rule: **nothing is resurrected**. While a link was lost, another node may have
//! invalidated a key, and a deletion leaves no newer document. So a write is replayed only over a
//! document that is provably older and still stored. If nothing is stored, the write is dropped,
//! unless the bus proves that no message was missed since the write began. Invalidations are
//! replayed until they succeed: they never harm a younger document.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use bentocache_driver::{Call, DriverError, DynL2};
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::change::{MOST_ATTEMPTS, WIDTH};
use super::mark::with_deletion_of;
use super::queue::{BusPosition, Parts, Pending, TakenChange, Write};
use super::remote::Budget;
use super::stored::{Standing, standing};
use super::tier::L2;
use super::touch::{Touched, idle_of};
use crate::event::EventKind;
use crate::join::join_all;
use crate::options::RecoveryMode;
use crate::site::{Key, KeyVec, as_ttl, chain, is_marker, until};
use crate::stats::Counter;
use crate::wire::marker::MarkerTimes;
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

    /// Remembers another form of a stored value, as [`remember`](Self::remember).
    fn touches(&self, key: &Key, bytes: &Bytes, created_at: u64);

    /// Proves that all messages of other nodes until now were received; returns the position of the
    /// bus.
    fn prove_heard(&self) -> impl Future<Output = BusPosition> + Send;

    /// The keys of the markers under a prefix that this node knows.
    fn markers_under(&self, prefix: &str) -> Vec<Key>;

    /// The marker in a stored document; 0 if there is none.
    fn marker_of(&self, stored: Option<&Bytes>) -> Result<MarkerTimes, ()>;

    /// The document of a marker, and its end.
    fn marker_document(&self, times: MarkerTimes) -> (Bytes, u64);

    /// Clears everything under a prefix if the driver cannot.
    fn clear_level(&self, prefix: &Key) -> impl Future<Output = ()> + Send;

    /// The marker under this key differs from the one that this node knows.
    fn marker_changed(&self, key: &Key, times: MarkerTimes);
}

/// One replay of a queued change.
struct Replay<'a, O> {
    l2: &'a L2,
    effects: &'a O,
    item: &'a TakenChange,
    /// Of each driver call.
    budget: Budget,
    /// Whether calls pass an open breaker.
    probe: bool,
    /// The position of the bus, proven once per batch, if a write depends on it.
    heard: &'a OnceCell<BusPosition>,
}

/// What a replay has done about the stored document.
enum Step {
    /// L2 is as the change wants it; the other nodes must be told.
    Applied,
    /// The document has changed since it was read.
    Again,
    /// Nothing more is to be done.
    Over(Done),
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
            let (budget, heard) = (Budget::for_each_call(limit), OnceCell::new());
            let repeat = batch.items.iter().map(|item| {
                let replay = Replay { l2: self, effects, item, budget, probe, heard: &heard };
                async move { replay.run(&item.pending, 0).await }
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

    fn was_cleared(&self, effects: &impl ReplayEffects, prefix: &Key) {
        // Documents that other processes have stored since are gone from L2 too, and may have been
        // read here.
        effects.mark_all_unverified();
        // The key of a clear is the prefix with its colon; the message names the namespace.
        effects.announce_clear(prefix.full.strip_suffix(':').unwrap_or(&prefix.full));
    }
}

impl<O: ReplayEffects> Replay<'_, O> {
    /// Makes one driver call.
    async fn call<'c, T>(
        &'c self,
        operation: &'static str,
        call: impl FnOnce(&'c dyn DynL2) -> Call<'c, T>,
    ) -> Result<T, Arc<DriverError>> {
        let (key, limit) = (&self.item.key.full, self.budget.left());
        self.l2.attempt(operation, key, limit, self.probe, call).await
    }

    /// The position of the bus when all messages until now were received.
    async fn heard(&self) -> BusPosition {
        *self.heard.get_or_init(|| self.effects.prove_heard()).await
    }

    /// Replays the change, unless something newer is stored. `pending` is the change, or what it
    /// turned into.
    async fn run(&self, pending: &Pending, attempts: usize) -> Repeated {
        let (effects, key, full) = (self.effects, &self.item.key, &*self.item.key.full);
        let now = self.l2.site.clock.epoch();
        let pending = match pending {
            // The document that it was to replace is out of date even then.
            Pending::Write(Write { end, created_at, .. }) if *end <= now => {
                &Pending::Delete { at: *created_at }
            }
            pending => pending,
        };
        if let Pending::Clear { at, parts } = pending {
            return self.clear(*at, parts).await;
        }
        let stored = self.call("get", |driver| driver.get(full)).await?;
        let is_unfollowed_marker =
            is_marker(full) && matches!(pending, Pending::Write(Write { followed: false, .. }));
        if is_unfollowed_marker && self.outdo_marker(pending, stored.as_ref()) {
            return Ok(Done::Yes);
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
        match self.apply(pending, standing, stored, attempts).await? {
            Step::Over(done) => return Ok(done),
            Step::Again => return Box::pin(self.run(pending, attempts + 1)).await,
            Step::Applied => {}
        }
        if !matches!(pending, Pending::Write(_)) {
            // The document may have been read here, or a factory's value may have replaced it in
            // L1.
            effects.mark_unverified(key);
        }
        effects.announce(pending.kind(), key);
        Ok(Done::Yes)
    }

    /// Queues another marker if the stored one is greater than that of the change: it is unknown
    /// whose clock made it greater, and only a marker above both is certain to invalidate. Returns
    /// whether that was so.
    fn outdo_marker(&self, pending: &Pending, stored: Option<&Bytes>) -> bool {
        let (effects, key) = (self.effects, &self.item.key);
        let stored = effects.marker_of(stored).unwrap_or_default();
        if stored.at <= pending.at() {
            return false;
        }
        let Pending::Write(Write { bytes, .. }) = pending else { return false };
        let times = effects.marker_of(Some(bytes)).unwrap_or_default().above(stored);
        let (bytes, end) = effects.marker_document(times);
        self.l2.keep_write(key, bytes, times.at, end, None);
        effects.mark_unverified(key);
        effects.marker_changed(key, times);
        true
    }

    /// Applies a change to the document that was read.
    async fn apply(
        &self,
        pending: &Pending,
        standing: Standing,
        stored: Option<Bytes>,
        attempts: usize,
    ) -> Result<Step, Arc<DriverError>> {
        let (key, full) = (&self.item.key, &*self.item.key.full);
        match pending {
            Pending::Write(write) => {
                if self.may_be_invalidated(write, standing, stored.as_ref()) {
                    let heard = self.heard().await;
                    if !self.l2.queue.has(self.item) {
                        return Ok(Step::Over(Done::Outdated));
                    }
                    if write.heard.is_none() || write.heard != heard {
                        self.effects.mark_unverified(key);
                        return Ok(Step::Over(Done::Dropped));
                    }
                }
                self.write(write, stored.as_ref(), attempts).await
            }
            // Only the document that was read: a newer one may be in transit.
            Pending::Delete { .. } => {
                let Some(stored) = &stored else { return Ok(Step::Applied) };
                let delete = self.call("delete", |driver| driver.delete_if(full, stored));
                let deleted = delete.await?;
                Ok(if deleted || attempts >= MOST_ATTEMPTS { Step::Applied } else { Step::Again })
            }
            Pending::TakeBack { digest, heard, .. } => {
                self.take_back(*digest, *heard, stored).await
            }
            Pending::Expire { at, grace } => {
                let expire =
                    self.l2.expire_stored(key, stored, *at, *grace, &self.budget, self.probe);
                expire.await?;
                Ok(Step::Applied)
            }
            Pending::Touch { life } => {
                let Some(stored) = stored else { return Ok(Step::Over(Done::Dropped)) };
                let remember =
                    |bytes: &Bytes, created_at| self.effects.touches(key, bytes, created_at);
                let (budget, probe) = (&self.budget, self.probe);
                let touch = self.l2.touch_stored(key, stored, life, budget, probe, &remember);
                Ok(match touch.await? {
                    Touched::Nothing => Step::Over(Done::Dropped),
                    Touched::Reached(_) | Touched::Queued | Touched::Replaced => Step::Applied,
                })
            }
            Pending::Clear { .. } | Pending::Check { .. } => Ok(Step::Applied),
        }
    }

    /// Removes a value of this process that is still stored.
    async fn take_back(
        &self,
        digest: u64,
        heard: BusPosition,
        stored: Option<Bytes>,
    ) -> Result<Step, Arc<DriverError>> {
        let (key, full) = (&self.item.key, &*self.item.key.full);
        let is_ours = |stored: &&Bytes| self.l2.site.digest(stored) == digest;
        let Some(ours) = stored.as_ref().filter(is_ours) else {
            // All nodes must agree. If the answer to a deletion was lost, our value was stored, in
            // place of a value that other nodes still hold.
            self.effects.mark_unverified(key);
            if heard.is_none() {
                let kind = if stored.is_some() { Kind::Set } else { Kind::Delete };
                self.effects.announce(kind, key);
            }
            return Ok(Step::Over(Done::Yes));
        };
        if heard.is_some() {
            // The value may stay, unless it may have been invalidated before it arrived.
            let now = self.heard().await;
            if !self.l2.queue.has(self.item) {
                return Ok(Step::Over(Done::Outdated));
            }
            if heard == now {
                return Ok(Step::Over(Done::Yes));
            }
        }
        self.call("delete", |driver| driver.delete_if(full, ours)).await?;
        Ok(Step::Applied)
    }

    /// Whether nothing in L2 shows that a write is still valid.
    fn may_be_invalidated(
        &self,
        write: &Write,
        standing: Standing,
        stored: Option<&Bytes>,
    ) -> bool {
        matches!(standing, Standing::Nothing | Standing::Invalidated)
            // A marker invalidates. And a write that seemed to have failed may be stored.
            && !is_marker(&self.item.key.full)
            && stored != Some(&write.bytes)
            && self.l2.options.mode == RecoveryMode::Safe
    }

    /// Stores the write in place of the document that was read.
    async fn write(
        &self,
        write: &Write,
        stored: Option<&Bytes>,
        attempts: usize,
    ) -> Result<Step, Arc<DriverError>> {
        let Write { bytes, created_at, end, behind_clear, .. } = write;
        if stored == Some(bytes) {
            return Ok(Step::Applied);
        }
        let (key, full) = (&self.item.key, &*self.item.key.full);
        if !is_marker(full) {
            self.effects.remember(key, bytes, *created_at, !behind_clear);
        }
        let ttl = as_ttl(until(*end, self.l2.site.clock.epoch()).min(idle_of(bytes)));
        let is_free = match stored {
            None => true,
            // A tag must not be without its marker even for a moment.
            Some(found) if is_marker(full) => {
                let bytes = with_deletion_of(bytes, found);
                let update = self.call("set", |driver| driver.update(full, found, bytes, ttl));
                if update.await? {
                    return Ok(Step::Applied);
                }
                false
            }
            // Removed first, because an update would keep its expiry. A server without room for the
            // new document accepts the removal nevertheless.
            Some(found) => self.call("set", |driver| driver.delete_if(full, found)).await?,
        };
        let insert = self.call("set", |driver| driver.insert(full, bytes.clone(), ttl));
        if is_free && insert.await? {
            return Ok(Step::Applied);
        }
        if attempts < MOST_ATTEMPTS {
            return Ok(Step::Again);
        }
        // Bytes that are not an entry, which a read does not return, are stored under the key.
        let set = self.call("set", |driver| driver.set(full, bytes.clone(), ttl));
        set.await.map(|()| Step::Applied)
    }

    /// Clears late. Later writes of this process are queued behind the clear. Later writes of other
    /// processes are lost, which costs misses, except the markers of tags: without them, queued
    /// entries would become valid again. So markers are queued behind the clear too, and before it
    /// is sent, because a clear whose answer is lost still removes them.
    async fn clear(&self, at: u64, parts: &Parts) -> Repeated {
        const AT_ONCE: usize = 1_000;
        let Self { l2, effects, budget, probe, .. } = *self;
        let prefix = &self.item.key;
        if !l2.can_clear {
            // This queues a marker at least.
            effects.clear_level(prefix).await;
            l2.was_cleared(effects, prefix);
            return Ok(Done::Yes);
        }
        for keys in effects.markers_under(&prefix.full).chunks(AT_ONCE) {
            let names: Vec<&str> = keys.iter().map(|key| &*key.full).collect();
            let get = |some| l2.get_all(some, budget.left(), probe);
            let stored = l2.for_each_part(&names, |name| name, get).await;
            for (key, bytes) in keys.iter().zip(stored) {
                let bytes = bytes?;
                let times = effects.marker_of(bytes.as_ref()).ok().filter(|times| times.at > at);
                let Some(times) = times else { continue };
                match l2.queue.pending(&key.full) {
                    Some(Pending::Write(waiting)) if waiting.created_at >= times.at => {}
                    _ => {
                        let (bytes, end) = effects.marker_document(times);
                        l2.keep_write(key, bytes, times.at, end, None);
                        // The queued marker was read as the current one.
                        effects.marker_changed(key, times);
                    }
                }
            }
        }
        let clear = l2.scan("clear", probe, |driver| match parts {
            Some(parts) => driver.clear_parts(&prefix.full, parts),
            None => driver.clear(&prefix.full),
        });
        clear.await?;
        l2.was_cleared(effects, prefix);
        Ok(Done::Yes)
    }
}
