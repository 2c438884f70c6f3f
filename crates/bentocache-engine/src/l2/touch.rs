//! Another life for a document that is stored: `touch`.
//!
//! The document has times of its own, and the driver has an expiry for it. Both change, and the
//! process may end in between. The later of both ends is harmless in the driver, because readers
//! obey the document. So a longer expiry is set before the document is rewritten, and a shorter one
//! after it.
//!
//! The document is rewritten by compare-and-swap, so every other change wins. The driver's expiry
//! is not compared: a newer document that gets the expiry of an older one has its own restored.

use std::sync::Arc;

use bentocache_driver::{DriverError, NEVER};
use bytes::Bytes;

use super::change::{MOST_ATTEMPTS, Rule};
use super::queue::Pending;
use super::remote::Budget;
use super::tier::L2;
use crate::site::{Key, as_ttl};
use crate::wire::document::{Document, Expiration, Meta};

/// The life that a touch gives, in ms since the epoch; [`NEVER`] is no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewLife {
    /// When the touch began.
    pub(crate) at: u64,
    pub(crate) plain: Span,
    /// For a value with tags, which must not outlive their markers.
    pub(crate) tagged: Span,
}

/// Until when a value is fresh, and until when it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) fresh: u64,
    pub(crate) end: u64,
}

impl NewLife {
    /// The life of a value with or without tags, hidden ones included.
    pub(crate) fn of(&self, has_tags: bool) -> Span {
        if has_tags { self.tagged } else { self.plain }
    }

    /// The stored document with this life, and its end. `None` if it is not a fresh document: a
    /// touch makes nothing valid that has expired.
    pub(super) fn renewed(&self, stored: &Bytes) -> Option<(Bytes, u64)> {
        let document = Document::parse(stored).ok()?;
        let meta = &document.meta;
        if meta.expiration.is_over(self.at) {
            return None;
        }
        let Span { fresh, end } = self.of(!meta.tags.is_empty() || meta.levels.is_some());
        let has_end = fresh != NEVER;
        let meta = Meta {
            expiration: if has_end { Expiration::At(fresh) } else { Expiration::Never },
            stale_until: has_end.then_some(end),
            touched_at: Some(self.at.max(meta.touched_at.unwrap_or(0))),
            ..meta.clone()
        };
        Some((document.rewrite(&meta), end))
    }
}

/// The result of a touch.
#[derive(Debug)]
pub(crate) enum Touched {
    /// L2 has the document with its new life.
    Reached(Bytes),
    /// The touch, or a write that it changed, waits for replay.
    Queued,
    /// Another value was stored meanwhile, which has a life of its own.
    Replaced,
    /// There is no fresh document.
    Nothing,
}

/// Gets a form of a document before it is stored, and the creation time of its value.
type Remember<'a> = &'a (dyn Fn(&Bytes, u64) + Send + Sync);

type Result<T> = std::result::Result<T, Arc<DriverError>>;

impl L2 {
    /// Gives the document that was read another life.
    pub(crate) async fn touch(
        &self,
        key: &Key,
        found: Bytes,
        life: &NewLife,
        budget: &Budget,
        rule: Rule,
        remember: Remember<'_>,
    ) -> Result<Touched> {
        if let Some(is_renewed) = self.queue.renew_write(&key.full, life) {
            return Ok(if is_renewed { Touched::Queued } else { Touched::Nothing });
        }
        match self.touch_stored(key, found, life, budget, false, remember).await {
            Err(error) if error.is_transient() && rule.keep && self.keep_touch(key, life) => {
                Ok(Touched::Queued)
            }
            touched => touched,
        }
    }

    /// Queues a touch that could not be made; returns whether it is queued. A queued write gets the
    /// new life at once, and a queued invalidation wins.
    pub(crate) fn keep_touch(&self, key: &Key, life: &NewLife) -> bool {
        if let Some(is_renewed) = self.queue.renew_write(&key.full, life) {
            return is_renewed;
        }
        match self.queue.pending(&key.full) {
            None | Some(Pending::Check { .. } | Pending::Touch { .. }) => {
                self.push(key, Pending::Touch { life: Box::new(*life) })
            }
            Some(_) => false,
        }
    }

    /// Gives the stored document another life: the one that was read, or another form of it.
    pub(super) async fn touch_stored(
        &self,
        key: &Key,
        mut found: Bytes,
        life: &NewLife,
        budget: &Budget,
        probe: bool,
        remember: Remember<'_>,
    ) -> Result<Touched> {
        let full = &*key.full;
        let value = created_at(&found);
        let now = self.site.clock.epoch();
        for _ in 0..MOST_ATTEMPTS {
            let Some((bytes, end)) = life.renewed(&found) else { return Ok(Touched::Nothing) };
            let left = as_ttl(stored_for(&bytes, now));
            let before = end_of(&found);
            let is_sliding = idle_of(&found) != NEVER;
            if (end > before || is_sliding)
                && !self.touch_driver(key, &bytes, budget, probe).await?
            {
                return Ok(Touched::Nothing);
            }
            remember(&bytes, value.unwrap_or(0));
            let update = self.attempt("touch", full, budget.left(), probe, |driver| {
                driver.update(full, &found, bytes.clone(), left)
            });
            if update.await? {
                if end < before && !is_sliding {
                    self.shorten(key, &bytes, budget, probe).await?;
                }
                return Ok(Touched::Reached(bytes));
            }
            let get = self.attempt("get", full, budget.left(), probe, |driver| driver.get(full));
            let Some(other) = get.await? else { return Ok(Touched::Nothing) };
            if created_at(&other) != value {
                self.touch_driver(key, &other, budget, probe).await?;
                return Ok(Touched::Replaced);
            }
            found = other;
        }
        Ok(Touched::Replaced)
    }

    /// Sets a nearer expiry of the document that was just stored. If another one has replaced it
    /// meanwhile, that gets its own expiry back.
    async fn shorten(&self, key: &Key, bytes: &Bytes, budget: &Budget, probe: bool) -> Result<()> {
        let full = &*key.full;
        self.touch_driver(key, bytes, budget, probe).await?;
        let get = self.attempt("get", full, budget.left(), probe, |driver| driver.get(full));
        if let Some(other) = get.await?.filter(|other| other != bytes) {
            self.touch_driver(key, &other, budget, probe).await?;
        }
        Ok(())
    }

    /// A sliding value was used: gives it its whole idle time again, but not more than its life.
    pub(crate) async fn extend(
        &self,
        key: &Key,
        value: u64,
        idle: u64,
        budget: &Budget,
    ) -> Result<()> {
        // A change that waits stores the value with its whole idle time, or removes it.
        if self.is_waiting(key) {
            return Ok(());
        }
        let full = &*key.full;
        let ttl = as_ttl(idle);
        let touch = self.call("touch", full, budget.left(), |driver| driver.touch(full, ttl));
        if !touch.await? {
            return Ok(());
        }
        // The life may be shorter, and another value may have been stored, which has its own.
        let get = self.call("get", full, budget.left(), |driver| driver.get(full));
        let Some(found) = get.await? else { return Ok(()) };
        let is_it = created_at(&found) == Some(value);
        if !is_it || stored_for(&found, self.site.clock.epoch()) != idle {
            self.touch_driver(key, &found, budget, false).await?;
        }
        Ok(())
    }

    /// Gives the key the expiry of this document; returns whether the key is there.
    async fn touch_driver(
        &self,
        key: &Key,
        document: &Bytes,
        budget: &Budget,
        probe: bool,
    ) -> Result<bool> {
        let ttl = as_ttl(stored_for(document, self.site.clock.epoch()));
        let full = &*key.full;
        self.attempt("touch", full, budget.left(), probe, |driver| driver.touch(full, ttl)).await
    }
}

/// The creation time of a stored document; `None` if the bytes are not a document.
fn created_at(stored: &Bytes) -> Option<u64> {
    Document::parse(stored).ok().map(|document| document.meta.created_at)
}

/// Until when the document wants to be stored, whether it is used or not. One of the Node library
/// does not tell its grace.
fn end_of(stored: &Bytes) -> u64 {
    let Ok(Document { meta, .. }) = Document::parse(stored) else { return NEVER };
    match (meta.stale_until, meta.expiration) {
        (Some(end), _) => end,
        (None, Expiration::At(fresh)) if fresh > 0 => fresh,
        (None, _) => NEVER,
    }
}

/// The idle time of a sliding document; [`NEVER`] for another one.
pub(super) fn idle_of(stored: &Bytes) -> u64 {
    Document::parse(stored).ok().and_then(|document| document.meta.idle).unwrap_or(NEVER)
}

/// How long to store the document from now on, in ms.
fn stored_for(stored: &Bytes, now: u64) -> u64 {
    let end = end_of(stored);
    Document::parse(stored).map_or(NEVER, |document| document.meta.stored_for(end, now))
}
