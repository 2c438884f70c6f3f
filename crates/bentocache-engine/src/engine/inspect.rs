//! What is known of one entry.

use std::sync::Arc;

use bentocache_driver::{Entry, NEVER, TagSeen};
use bytes::Bytes;

use super::set::check_name;
use super::{Engine, Key};
use crate::error::Result;
use crate::l1::{Verdict, is_gone, is_level};
use crate::l2::L2;
use crate::options::Policy;
use crate::site::RESERVED;
use crate::stats::{EntryState, InspectedEntry, InspectedTag, Inspection};
use crate::wire::document::{Document, Expiration, Meta};

impl Engine {
    /// What both tiers have under the key. Changes nothing, and counts as no read.
    pub(crate) async fn inspect(&self, key: &Key, policy: &Policy) -> Result<Inspection> {
        check_name(key)?;
        let policy = &policy.begun();
        let mut found = Inspection::of_nothing(key.name());
        found.is_change_waiting = self.l2.as_ref().is_some_and(|l2| l2.is_waiting(key));
        if let Some(entry) = self.l1.get(key) {
            let tags = entry.tags().iter().map(TagSeen::tag);
            self.tags.resolve(self.tag_call(policy), tags).await;
            found.l1 = Some(self.inspect_in_l1(&entry));
        }
        if let Some(l2) = self.l2.as_ref().filter(|_| !policy.skip_l2_read) {
            found.l2 = self.inspect_in_l2(l2, key, policy).await?;
        }
        Ok(found)
    }

    fn inspect_in_l1(&self, entry: &Arc<Entry>) -> InspectedEntry {
        let now = self.clock.now();
        let mut bytes = Vec::new();
        let encoded = entry.value().encode(self.codec.format().id(), &mut bytes);
        InspectedEntry {
            state: match self.l1.judge(entry, now) {
                Verdict::Fresh => EntryState::Fresh,
                // If a tag cannot be looked up, its entries count as stale.
                Verdict::Stale | Verdict::UnknownTag => EntryState::Stale,
                Verdict::Unverified => EntryState::Unverified,
                Verdict::Dead => EntryState::Dead,
            },
            created_at: entry.created_at(),
            fresh_until: self.as_epoch(entry.fresh_until()),
            stale_until: self.as_epoch(entry.dead_at()),
            tags: self.inspect_tags(entry),
            size: encoded.is_ok().then_some(bytes.len() as u64),
            codec: None,
            is_compressed: false,
            is_encrypted: false,
        }
    }

    async fn inspect_in_l2(
        &self,
        l2: &L2,
        key: &Key,
        policy: &Policy,
    ) -> Result<Option<InspectedEntry>> {
        let read = l2.read_one(key, policy.l2_limit(false)).await;
        let read = read.map_err(|error| self.l2_error("inspect", error))?;
        let Some(bytes) = read else { return Ok(None) };
        let Ok(document) = Document::parse(&bytes) else {
            return Ok(Some(self.no_entry(&bytes)));
        };
        let meta = &document.meta;
        let probe = self.entry_of(key, (), meta, 0, self.l1.epoch(), policy);
        self.resolve_loaded(&[&probe], policy).await;
        let (entry, now) = (probe.entry, self.clock.now());
        let is_dead = entry.dead_at() <= now || is_gone(&entry);
        let (fresh_until, stale_until) = ends(meta);
        Ok(Some(InspectedEntry {
            state: match entry.ends_at() > now && self.tags_hold(&entry) {
                _ if is_dead => EntryState::Dead,
                true => EntryState::Fresh,
                false => EntryState::Stale,
            },
            created_at: meta.created_at,
            fresh_until,
            stale_until,
            tags: self.inspect_tags(&entry),
            size: Some(bytes.len() as u64),
            codec: Some(document.format().name()),
            is_compressed: document.is_compressed(),
            is_encrypted: self.encrypts,
        }))
    }

    fn inspect_tags(&self, entry: &Entry) -> Vec<InspectedTag> {
        let now = self.clock.now();
        let tags = entry.tags().iter().filter(|seen| !is_level(seen.tag()));
        tags.map(|seen| {
            let key = seen.tag().key();
            InspectedTag {
                name: key.split_once(RESERVED).map_or(key, |(_, name)| name).to_owned(),
                is_valid: seen.tag().is_believed(now).then(|| seen.is_valid(entry.created_at())),
            }
        })
        .collect()
    }

    fn no_entry(&self, bytes: &Bytes) -> InspectedEntry {
        InspectedEntry {
            state: EntryState::Unreadable,
            created_at: 0,
            fresh_until: None,
            stale_until: None,
            tags: Vec::new(),
            size: Some(bytes.len() as u64),
            codec: None,
            is_compressed: false,
            is_encrypted: self.encrypts,
        }
    }

    /// A time of the monotonic clock in ms since the epoch.
    fn as_epoch(&self, time: u64) -> Option<u64> {
        let (now, epoch) = (self.clock.now(), self.clock.epoch());
        match time {
            NEVER => None,
            0 => Some(0),
            time if time >= now => Some(epoch.saturating_add(time - now)),
            time => Some(epoch.saturating_sub(now - time)),
        }
    }
}

/// Until when a document is fresh and until when it is kept. The Node library stores no end.
fn ends(meta: &Meta) -> (Option<u64>, Option<u64>) {
    match meta.expiration {
        Expiration::Never => (None, meta.stale_until),
        Expiration::At(fresh) => (Some(fresh), Some(meta.stale_until.unwrap_or(fresh))),
    }
}
