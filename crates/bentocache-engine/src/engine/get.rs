//! Reads: `get`, `get_many`, and what every read does with an entry that it finds.
//!
//! A fresh entry of L1 never comes here: the request returns it at once (see `l1/hit.rs`).

use bentocache_driver::Entry;

use super::find::Found;
use super::flight::{Filled, Located};
use super::set::check_name;
use super::{CacheValue, Engine, Key, KeyVec, convert, value_of};
use crate::error::{BoxError, Error, Result};
use crate::event::EventKind;
use crate::l1::{Verdict, is_gone};
use crate::options::Policy;
use crate::stats::Counter;
use crate::value::Unread;

impl Engine {
    /// `get`, when L1 had no fresh value.
    pub(crate) async fn get<T: CacheValue>(&self, key: &Key, policy: &Policy) -> Result<Option<T>> {
        self.check_open()?;
        check_name(key)?;
        if !self.enabled {
            self.missed(key);
            return Ok(None);
        }
        if !self.l1.is_there() {
            return self.get_stored(key, policy).await;
        }
        let fence = self.l1.watch(key);
        let found = self.find::<T>(key, policy, &fence).await?;
        Ok(self.got(key, found, policy))
    }

    /// The value that a `get` returns.
    pub(super) fn got<T: CacheValue>(&self, key: &Key, found: Found, policy: &Policy) -> Option<T> {
        match found {
            Found::Fresh(hit) => self.served(key, &hit, false),
            Found::Stale(hit) if policy.grace > 0 => self.served(key, &hit, true),
            Found::Stale(_) | Found::Nothing => {
                self.missed(key);
                None
            }
        }
    }

    /// One value or none per key, in the order of the keys.
    pub(crate) async fn get_many<T: CacheValue>(
        &self,
        keys: &[Key],
        policy: &Policy,
    ) -> Result<Vec<Option<T>>> {
        self.check_open()?;
        keys.iter().try_for_each(check_name)?;
        if !self.enabled {
            keys.iter().for_each(|key| self.missed(key));
            return Ok(keys.iter().map(|_| None).collect());
        }
        let fences: KeyVec<_> = keys.iter().map(|key| self.l1.watch(key)).collect();
        let found = self
            .find_many::<T>(
                &keys.iter().collect::<KeyVec<_>>(),
                policy,
                &fences.iter().collect::<KeyVec<_>>(),
            )
            .await?;
        Ok(keys.iter().zip(found).map(|(key, found)| self.got(key, found, policy)).collect())
    }

    /// The fresh value in L1, which is counted as a hit.
    pub(super) fn value_now<T: CacheValue>(&self, key: &Key) -> Option<T> {
        let hit = self.entry_in_l1(key, Verdict::Fresh)?;
        let value: T = self.read_value(&hit).ok()?;
        if Unread::of(&hit.entry).is_some() {
            self.now_read(key, &hit.entry, value.clone());
        }
        self.report_hit(key, &hit, false);
        Some(value)
    }

    pub(super) fn is_readable<T: CacheValue>(&self, filled: &Filled) -> bool {
        let (Filled::Found(Located { entry, .. }) | Filled::Produced(entry)) = filled;
        self.is_readable_entry::<T>(entry)
    }

    fn is_readable_entry<T: CacheValue>(&self, entry: &Entry) -> bool {
        value_of::<T>(entry).is_some() || convert::<T>(entry, self.codec).is_ok()
    }

    /// The value of a hit, as the requested type.
    pub(super) fn read_value<T: CacheValue>(&self, hit: &Located) -> Result<T, BoxError> {
        match value_of::<T>(&hit.entry) {
            Some(value) => Ok(value.clone()),
            None => convert(&hit.entry, self.codec),
        }
    }

    /// The value of a hit, which is counted.
    pub(super) fn served<T: CacheValue>(
        &self,
        key: &Key,
        hit: &Located,
        graced: bool,
    ) -> Option<T> {
        match self.read_value(hit) {
            Ok(value) => {
                self.report_hit(key, hit, graced);
                Some(value)
            }
            Err(error) => {
                self.unreadable::<T>(key, &*error);
                self.missed(key);
                None
            }
        }
    }

    /// Whether a stale entry can still be served to a caller of this type.
    pub(super) fn is_usable<T: CacheValue>(&self, hit: &Located) -> bool {
        self.clock.now() < hit.entry.dead_at()
            && !is_gone(&hit.entry)
            && self.is_readable_entry::<T>(&hit.entry)
    }

    fn report_hit(&self, key: &Key, hit: &Located, graced: bool) {
        self.record_hit(&key.full, hit.tier, graced);
        self.l1.note_use(&hit.entry);
    }

    pub(crate) fn missed(&self, key: &Key) {
        self.record(Counter::Misses, || EventKind::Miss { key: self.shown(&key.full) });
    }

    pub(super) fn abandoned(&self, key: &Key) -> Error {
        Error::Abandoned { key: self.key_in_errors(key) }
    }
}
