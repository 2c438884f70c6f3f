//! Writes of markers and buckets of tags to L2.
//!
//! A marker invalidates, so it is stored in any case, now or from the queue. A bucket that cannot
//! be stored is removed instead: then the states of its tags are unknown, and their entries are
//! stale.

use std::sync::Arc;
use std::time::Duration;

use bentocache_driver::{DriverError, Write};
use bytes::Bytes;

use super::change::Outcome;
use super::queue::Pending;
use super::tier::L2;
use crate::site::{Key, KeyVec, LAST};
use crate::wire::document::{Document, Meta};
use crate::wire::marker::MarkerTimes;

/// A marker or a bucket to store.
pub(crate) struct Mark<'a> {
    pub(crate) key: &'a Key,
    pub(crate) bytes: Bytes,
    pub(crate) life: Option<Duration>,
    /// `None` for a bucket.
    pub(crate) marker: Option<Marker>,
}

pub(crate) struct Marker {
    pub(crate) times: MarkerTimes,
    /// In ms since the epoch.
    pub(crate) end: u64,
    /// The complete key of the tag's bucket.
    pub(crate) bucket: String,
}

impl L2 {
    /// Whether a change of the key is queued.
    pub(crate) fn is_waiting(&self, key: &Key) -> bool {
        self.queue.pending(&key.full).is_some()
    }

    /// Stores bytes in place of the bytes that were found, or if the key was absent
    /// (compare-and-swap); returns whether it succeeded.
    pub(crate) async fn swap(
        &self,
        key: &Key,
        found: Option<&Bytes>,
        bytes: Bytes,
        life: Option<Duration>,
        limit: u64,
    ) -> Result<bool, Arc<DriverError>> {
        let key = &*key.full;
        let Some(found) = found else {
            return self.call("set", key, limit, |driver| driver.insert(key, bytes, life)).await;
        };
        self.call("set", key, limit, |driver| driver.update(key, found, bytes, life)).await
    }

    /// Stores markers and buckets, now or from the queue, in one call if possible. `keep`
    /// suppresses transient errors. Outcomes have the order of the marks.
    pub(crate) async fn mark(
        &self,
        marks: &[Mark<'_>],
        keep: bool,
        limit: impl Fn() -> u64,
    ) -> Vec<Outcome> {
        let before = self.queue.now();
        let ready: KeyVec<usize> =
            (0..marks.len()).filter(|i| !self.must_queue(&marks[*i])).collect();
        let stored = self.store_marks(ready.iter().map(|i| &marks[*i]).collect(), &limit).await;
        let mut errors: Vec<Option<Arc<DriverError>>> = marks.iter().map(|_| None).collect();
        let mut outcomes: Vec<Option<Outcome>> = marks.iter().map(|_| None).collect();
        for (i, stored) in ready.into_iter().zip(stored) {
            match stored {
                Ok(()) => {
                    let others_waited = self.forget_waiting(marks[i].key, before);
                    outcomes[i] = Some(Outcome::Reached { others_waited });
                }
                Err(error) => errors[i] = Some(error),
            }
        }
        let failed = marks.iter().zip(&errors).filter_map(|(mark, e)| Some((mark, e.as_ref()?)));
        let is_refusal = failed.clone().any(|(_, error)| error.is_refusal());
        let removed = is_refusal && self.remove_marks(failed.map(|(mark, _)| mark), limit()).await;
        let rest = marks.iter().zip(errors).zip(outcomes);
        rest.map(|((mark, error), outcome)| {
            outcome.unwrap_or_else(|| self.keep_mark(mark, error, keep, removed))
        })
        .collect()
    }

    /// Whether a queued change would remove the mark again.
    fn must_queue(&self, mark: &Mark<'_>) -> bool {
        match mark.marker {
            Some(_) => self.queue.must_wait(&mark.key.full),
            None => self.is_waiting(mark.key),
        }
    }

    /// Stores all marks in one call, or in one per part of the store. A mark that can never be
    /// stored does not affect the others.
    async fn store_marks(
        &self,
        marks: KeyVec<&Mark<'_>>,
        limit: &impl Fn() -> u64,
    ) -> Vec<Result<(), Arc<DriverError>>> {
        let store = |some| self.store_some(some, limit);
        self.for_each_part(&marks, |mark| &mark.key.full, store).await
    }

    async fn store_some(
        &self,
        marks: KeyVec<&Mark<'_>>,
        limit: &impl Fn() -> u64,
    ) -> Vec<Result<(), Arc<DriverError>>> {
        let Some(first) = marks.first() else { return Vec::new() };
        if marks.len() == 1 {
            return vec![self.store_mark(first, limit()).await];
        }
        let writes: KeyVec<_> = marks
            .iter()
            .map(|mark| Write { key: &mark.key.full, value: mark.bytes.clone(), ttl: mark.life })
            .collect();
        let key = &first.key.full;
        let set = self.call("set", key, limit(), |driver| driver.set_many(&writes)).await;
        let mut stored = vec![set.clone(); marks.len()];
        if set.is_err_and(|error| !error.is_transient()) {
            for (mark, stored) in marks.iter().zip(&mut stored) {
                *stored = self.store_mark(mark, limit()).await;
            }
        }
        stored
    }

    async fn store_mark(&self, mark: &Mark<'_>, limit: u64) -> Result<(), Arc<DriverError>> {
        let (key, bytes) = (&*mark.key.full, mark.bytes.clone());
        self.call("set", key, limit, |driver| driver.set(key, bytes, mark.life)).await
    }

    /// A full store accepts no marker, but may accept deletions. Without marker and bucket a tag is
    /// unknown, so that its entries are stale. Returns whether the deletions succeeded.
    async fn remove_marks<'m>(
        &self,
        failed: impl Iterator<Item = &'m Mark<'m>>,
        limit: u64,
    ) -> bool {
        let mut keys: Vec<&str> = Vec::new();
        for Mark { key, marker, .. } in failed {
            keys.push(&key.full);
            keys.extend(marker.as_ref().map(|marker| &*marker.bucket));
        }
        keys.sort_unstable();
        keys.dedup();
        let delete = |some| self.delete_names(some, limit);
        let deleted = self.for_each_part(&keys, |key| key, delete).await;
        deleted.into_iter().all(|deleted| deleted.is_ok())
    }

    /// Queues a marker that must still be written, or the removal of a bucket that could not be
    /// changed.
    fn keep_mark(
        &self,
        mark: &Mark<'_>,
        error: Option<Arc<DriverError>>,
        keep: bool,
        removed: bool,
    ) -> Outcome {
        let Mark { key, bytes, marker, .. } = mark;
        let is_kept = match (marker, &error) {
            (Some(_), Some(error)) if !error.is_transient() => {
                return Outcome::Refused(error.clone());
            }
            (Some(_), Some(_)) if !keep => false,
            // The greater marker is kept, and the last deletion of both.
            (Some(marker), _) => match self.queue.pending(&key.full) {
                Some(Pending::Write(waiting)) if waiting.created_at >= marker.times.at => {
                    let both = with_deletion_of(&waiting.bytes, bytes);
                    both == waiting.bytes
                        || self.keep_write(key, both, waiting.created_at, waiting.end, None)
                }
                Some(Pending::Write(waiting)) => {
                    let both = with_deletion_of(bytes, &waiting.bytes);
                    self.keep_write(key, both, marker.times.at, marker.end, None)
                }
                _ => self.keep_write(key, bytes.clone(), marker.times.at, marker.end, None),
            },
            (None, _) if removed => true,
            // Whatever is stored there by then: the tags become unknown, and no value is lost.
            (None, _) => self.push(key, Pending::Delete { at: LAST }),
        };
        match error {
            Some(error) if !is_kept => Outcome::Failed(error),
            _ => Outcome::Queued,
        }
    }
}

/// The document of a marker, with the last deletion of another one if that is later.
pub(super) fn with_deletion_of(marker: &Bytes, other: &Bytes) -> Bytes {
    let hard_at = |bytes| Document::parse(bytes).ok().and_then(|document| document.meta.hard_at);
    let (Ok(document), Some(other)) = (Document::parse(marker), hard_at(other)) else {
        return marker.clone();
    };
    if document.meta.hard_at.is_some_and(|own| own >= other) {
        return marker.clone();
    }
    document.rewrite(&Meta { hard_at: Some(other), ..document.meta.clone() })
}
