//! Tags: what this process knows of each, and how it finds out.
//!
//! All entries with a tag share one [`Tag`], so that a hit compares numbers and looks nothing up.
//! The table finds a tag by the complete key of its marker. A tag that no entry and no call holds
//! can be forgotten: without a second tier nothing is left that it could invalidate, and with one
//! its marker is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use bentocache_core::{NEVER, Tag, TagSeen};
use bytes::Bytes;

use super::fence::Fence;
use super::recovery::Pending;
use super::{Engine, Key, LAST, as_ttl};
use crate::error::Result;
use crate::event::EventKind;
use crate::options::{BusDown, Policy};
use crate::sync::Mutex;
use crate::tier::local::Local;
use crate::tier::remote::Remote;
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::message::Kind;

/// What the keys of markers start with, after prefix and namespaces.
pub(crate) const RESERVED: &str = "___bc:t:";

/// Whether that is the complete key of a marker. Other keys like it are refused.
pub(crate) fn is_marker(key: &str) -> bool {
    // Hardly any key has the character, and to look for it is quick.
    key.as_bytes().contains(&b'_')
        && key.match_indices(RESERVED).any(|(at, _)| at == 0 || key.as_bytes()[at - 1] == b':')
}

const DAY: u64 = 24 * 60 * 60 * 1_000;
/// Instead of a marker that was told of and not read yet: less than any.
const UNKNOWN: u64 = 1;
/// How often the marker of a tag that is being invalidated is read at most, by one call.
const MOST_LOOKS: usize = 3;
/// From this many tags on, forgotten ones are looked for when the table has doubled.
const SWEEP_FROM: usize = 1_024;

pub(crate) struct Tags {
    table: Mutex<Table>,
    /// Without a working bus what is known is relied on for this long, in ms.
    check_interval: u64,
    /// Whether a working bus tells of changes.
    told: AtomicBool,
    /// Whether the last known marker of a tag counts while the second tier cannot be asked.
    serve: bool,
    /// When a look-up last failed; 0 if the latest one succeeded.
    failed_at: AtomicU64,
}

struct Table {
    tags: HashMap<Box<str>, Arc<Tag>>,
    sweep_at: usize,
}

/// A tag and the marker it had when a value began to be produced.
pub(crate) type Seen = (Arc<Tag>, u64);

impl Tags {
    pub(crate) fn new(check_interval: u64, bus_down: BusDown) -> Self {
        let table = Table { tags: HashMap::new(), sweep_at: SWEEP_FROM };
        Self {
            table: Mutex::new(table),
            check_interval,
            told: AtomicBool::new(false),
            serve: matches!(bus_down, BusDown::Serve),
            failed_at: AtomicU64::new(0),
        }
    }

    /// The tag whose marker has that complete key.
    fn tag(&self, marker_key: &str) -> Arc<Tag> {
        let table = &mut *self.table.lock();
        if let Some(tag) = table.tags.get(marker_key) {
            return tag.clone();
        }
        if table.tags.len() >= table.sweep_at {
            table.tags.retain(|_, tag| Arc::strong_count(tag) > 1);
            table.sweep_at = (table.tags.len() * 2).max(SWEEP_FROM);
        }
        let tag = Arc::new(Tag::new(marker_key));
        table.tags.insert(marker_key.into(), tag.clone());
        tag
    }

    /// The tags of these names, as a handle with that prefix means them.
    pub(crate) fn named<'a>(
        &'a self,
        prefix: &'a str,
        names: impl IntoIterator<Item = &'a str> + 'a,
    ) -> impl Iterator<Item = Arc<Tag>> + 'a {
        names.into_iter().map(move |name| self.tag(&[prefix, RESERVED, name].concat()))
    }

    /// The tag with that marker was invalidated elsewhere. Where no second tier could tell when, it
    /// counts as invalidated `now` (ms since the epoch).
    pub(crate) fn changed(&self, marker_key: &str, now: Option<u64>) {
        if let Some(tag) = self.table.lock().tags.get(marker_key) {
            match now {
                Some(now) => tag.learn(now.max(tag.marker() + 1), NEVER),
                // There is one now: if none is found, it was cleared since.
                None => {
                    if tag.marker() == 0 {
                        tag.learn(UNKNOWN, 0);
                    }
                    tag.contest();
                }
            }
        }
    }

    /// The tags with markers whose keys start with that.
    pub(crate) fn under(&self, prefix: &str) -> Vec<Arc<Tag>> {
        let table = self.table.lock();
        table.tags.values().filter(|tag| tag.key().starts_with(prefix)).cloned().collect()
    }

    /// What is known of markers whose keys start with that may be out of date.
    pub(crate) fn doubt_all(&self, prefix: &str) {
        for (key, tag) in &self.table.lock().tags {
            if key.starts_with(prefix) {
                tag.doubt(0);
            }
        }
    }

    /// The markers whose keys start with that are gone, everywhere.
    pub(crate) fn forget_all(&self, prefix: &str, has_l2: bool) {
        for (key, tag) in &self.table.lock().tags {
            if key.starts_with(prefix) {
                tag.learn(0, NEVER);
                if has_l2 {
                    tag.contest();
                }
            }
        }
    }

    /// A working bus tells of changes from now on, or does not.
    pub(crate) fn told(&self, told: bool, now: u64) {
        self.told.store(told, SeqCst);
        if !told {
            let until = now.saturating_add(self.check_interval);
            for tag in self.table.lock().tags.values() {
                tag.doubt(until);
            }
        }
    }

    /// The last known marker of these tags counts for another interval, if it may: the second tier
    /// cannot be asked. A tag whose fence has moved was invalidated meanwhile.
    fn extend(&self, tags: &[&Arc<Tag>], fences: &[Fence], now: u64) {
        if !self.serve {
            return;
        }
        let until = now.saturating_add(self.check_interval);
        for (tag, fence) in tags.iter().zip(fences) {
            let _ = fence.fill(|| tag.extend(until));
        }
    }

    /// Whether a look-up failed a short while ago.
    fn failed_lately(&self, now: u64) -> bool {
        let failed_at = self.failed_at.load(Relaxed);
        failed_at > 0 && now.saturating_sub(failed_at) <= self.check_interval.saturating_mul(2)
    }

    /// Learns a marker that was read from `began` on and is looked at `now`, which must still count.
    fn learn(&self, tag: &Tag, marker: u64, began: u64, now: u64) {
        /// In ms: the clock may move on before the first look.
        const FIRST_LOOK: u64 = 2;
        let bounded = began.saturating_add(self.check_interval).max(now + FIRST_LOOK);
        tag.learn(marker, if self.told.load(SeqCst) { NEVER } else { bounded });
        // The bus may have gone just before it was relied on.
        if !self.told.load(SeqCst) {
            tag.doubt(bounded);
        }
    }
}

impl Engine {
    /// Finds out what is not known of these tags, with one read of the second tier for all. What
    /// cannot be read stays unknown.
    pub(crate) async fn resolve_tags<'a>(
        &self,
        tags: impl Iterator<Item = &'a Arc<Tag>>,
        policy: &Policy,
    ) {
        let mut tags = tags.peekable();
        if tags.peek().is_none() {
            return;
        }
        let now = self.clock.now();
        let mut unknown: Vec<&Arc<Tag>> = tags.filter(|tag| !tag.is_believed(now)).collect();
        if unknown.is_empty() {
            return;
        }
        unknown.sort_unstable_by_key(|tag| Arc::as_ptr(tag));
        unknown.dedup_by_key(|tag| Arc::as_ptr(tag));
        if self.l2.is_none() {
            for tag in unknown {
                tag.learn(tag.marker(), NEVER);
            }
            return;
        }
        for _ in 0..MOST_LOOKS {
            // Boxed: without it the future of every call would have room for this.
            unknown = Box::pin(self.look_up_tags(unknown, policy)).await;
            if unknown.is_empty() {
                return;
            }
        }
    }

    /// Reads the markers of these tags; returns the tags that were invalidated meanwhile.
    async fn look_up_tags<'a>(
        &self,
        tags: Vec<&'a Arc<Tag>>,
        policy: &Policy,
    ) -> Vec<&'a Arc<Tag>> {
        let now = self.clock.now();
        let keys: Vec<Key> = tags.iter().map(|tag| self.marker_key(tag)).collect();
        let fences: Vec<_> = keys.iter().map(|key| self.watch(key)).collect();
        if self.tags.failed_lately(now) {
            // Others need not wait while this one finds out whether it works again.
            self.tags.extend(&tags, &fences, now);
        }
        let limit = policy.l2_limit(self.tags.serve && tags.iter().all(|tag| tag.is_known()));
        let Ok(markers) = self.l2_read(&keys.iter().collect::<Vec<_>>(), limit).await else {
            let now = self.clock.now();
            self.tags.failed_at.store(now, Relaxed);
            self.tags.extend(&tags, &fences, now);
            return Vec::new();
        };
        self.tags.failed_at.store(0, Relaxed);
        let mut changed = Vec::new();
        for ((tag, fence), bytes) in tags.into_iter().zip(&fences).zip(markers) {
            let Ok(marker) = marker_of(bytes.as_ref()) else { continue };
            if marker < tag.marker() && fence.holds() {
                // It was cleared, and so was what is here, but the message has not come yet. Under
                // the former marker, what was invalidated since would be valid again.
                self.l1.iter().for_each(Local::distrust_all);
            }
            let learned = fence.fill(|| self.tags.learn(tag, marker, now, self.clock.now()));
            if learned.is_none() {
                changed.push(tag);
            }
        }
        changed
    }

    /// The tags of a value that begins to be produced now, each with its marker.
    pub(crate) async fn see_tags<'a>(
        &'a self,
        prefix: &str,
        names: impl IntoIterator<Item = &'a str> + 'a,
        policy: &Policy,
    ) -> Vec<Seen> {
        let mut names: Vec<&str> = names.into_iter().collect();
        if names.is_empty() {
            return Vec::new();
        }
        names.sort_unstable();
        names.dedup();
        let tags: Vec<_> = self.tags.named(prefix, names).collect();
        self.resolve_tags(tags.iter(), policy).await;
        let now = self.clock.now();
        // A marker that cannot be read is not remembered: the entry is stale until it can, and
        // valid then if it is younger.
        let seen =
            |tag: &Arc<Tag>| if tag.is_believed(now) { tag.marker() } else { TagSeen::BY_AGE };
        tags.iter().map(|tag| (tag.clone(), seen(tag))).collect()
    }

    /// Adds the tags that a factory chose, whose markers were not read before it began (ms since
    /// the epoch): one that was invalidated since leaves the entry stale at birth.
    pub(crate) async fn see_added(
        &self,
        prefix: &str,
        mut seen: Vec<Seen>,
        names: &[String],
        began: u64,
        policy: &Policy,
    ) -> Vec<Seen> {
        if names.is_empty() {
            return seen;
        }
        for (tag, marker) in self.see_tags(prefix, names.iter().map(String::as_str), policy).await {
            if seen.iter().any(|(known, _)| Arc::ptr_eq(known, &tag)) {
                continue;
            }
            let invalidated = marker != TagSeen::BY_AGE && marker >= began;
            seen.push((tag, if invalidated { 0 } else { marker }));
        }
        seen
    }

    /// Invalidates every entry that has one of these tags.
    pub(crate) async fn delete_by_tag(
        &self,
        prefix: &str,
        names: &[String],
        policy: &Policy,
    ) -> Result<()> {
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Ok(());
        }
        let tags: Vec<_> = self.tags.named(prefix, names.iter().copied()).collect();
        let keys: Vec<Key> =
            names.iter().map(|name| self.key(prefix, &[RESERVED, name].concat())).collect();
        let before = match &self.l2 {
            Some(_) => {
                self.l2_read(&keys.iter().collect::<Vec<_>>(), policy.l2_limit(false)).await.ok()
            }
            None => None,
        };
        let mut first_error = None;
        for (i, (tag, key)) in tags.iter().zip(&keys).enumerate() {
            let stored = before.as_ref().and_then(|all| marker_of(all[i].as_ref()).ok());
            let (marker, fence) = self.fences.change(key.hash, || {
                let before = stored.unwrap_or(0).max(tag.marker());
                let marker = self.clock.epoch().max(before + 1);
                if self.l2.is_none() {
                    tag.learn(marker, NEVER);
                } else {
                    // Nobody may remember a marker that is not stored yet: one of another call
                    // could still be stored before it.
                    tag.contest();
                }
                marker
            });
            if let Err(error) = self.store_marker(key, marker, policy).await {
                first_error.get_or_insert(error);
            }
            if self.l2.is_some() {
                let now = self.clock.now();
                let settled = fence.settle(|| self.tags.learn(tag, marker, now, now));
                if settled.is_none() {
                    if fence.is_unchanged() {
                        self.recovery.doubt(&key.full, Kind::Set, marker, policy.grace);
                    } else {
                        self.recovery.follow(&key.full, marker);
                    }
                    tag.contest();
                }
            }
            self.emit(|| EventKind::TagInvalidated { tag: names[i].into() });
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Writes a marker where other processes find it, and tells them.
    pub(crate) async fn store_marker(&self, key: &Key, marker: u64, policy: &Policy) -> Result<()> {
        let stored = match &self.l2 {
            Some(remote) => self.write_marker(remote, key, marker, policy).await,
            None => Ok(()),
        };
        self.announce(Kind::Set, key, policy);
        stored
    }

    /// Writes a marker, now or later.
    pub(crate) async fn write_marker(
        &self,
        remote: &Remote,
        key: &Key,
        marker: u64,
        policy: &Policy,
    ) -> Result<()> {
        let (bytes, end) = self.marker_document(marker, policy);
        let life = policy.tag_ttl.saturating_add(DAY);
        let before = self.recovery.now();
        let stored = if self.recovery.must_wait(&key.full) {
            None
        } else {
            let set = self.l2_call(remote, "set", policy.l2_limit(false), |driver| {
                driver.set(&key.full, bytes.clone(), as_ttl(life))
            });
            Some(set.await)
        };
        match stored {
            Some(Ok(())) => {
                self.forget_waiting(key, before);
            }
            Some(Err(error)) if !policy.suppress_l2_errors => {
                return Err(self.l2_error("invalidate a tag", error));
            }
            _ => match self.recovery.pending(&key.full) {
                // The greater one is the one to keep.
                Some(Pending::Write { created_at, .. }) if created_at >= marker => {}
                _ => drop(self.recover_write(key, bytes, marker, end)),
            },
        }
        Ok(())
    }

    /// The document of a marker, and its end (ms since the epoch).
    pub(crate) fn marker_document(&self, marker: u64, policy: &Policy) -> (Bytes, u64) {
        let life = policy.tag_ttl.saturating_add(DAY);
        let end = marker.saturating_add(life);
        let meta = Meta {
            created_at: marker,
            expiration: if life == NEVER { Expiration::Never } else { Expiration::At(end) },
            stale_until: (life != NEVER).then_some(end),
            ..Meta::default()
        };
        // Markers are JSON whatever the codec: every reader can read them.
        let bytes = Document::from_payload(
            crate::wire::codec::Codec::json(),
            &meta,
            crate::wire::codec::Format::Json,
            marker.to_string().as_bytes(),
        );
        (bytes, end)
    }

    pub(crate) fn marker_key(&self, tag: &Tag) -> Key {
        self.key("", tag.key())
    }
}

/// The marker in a stored document; 0 when there is none. What cannot be read, or leaves no room for
/// a later marker, is an error: the tag stays unknown until it is invalidated.
pub(crate) fn marker_of(bytes: Option<&Bytes>) -> Result<u64, ()> {
    let Some(bytes) = bytes else { return Ok(0) };
    let document = Document::parse(bytes).map_err(|_| ())?;
    let marker = document.value::<f64>().map_err(|_| ())? as u64;
    if marker < LAST { Ok(marker) } else { Err(()) }
}
