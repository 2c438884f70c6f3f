//! The entries of L1.
//!
//! All times here are milliseconds of the cache's own clock, which is monotonic and has any origin,
//! except [`Entry::created_at`], which is in milliseconds since the Unix epoch.

use std::any::Any;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compact_str::CompactString;

use crate::sliding::Sliding;
use crate::validators::Validators;

/// The instant that never comes.
pub const NEVER: u64 = u64::MAX;

/// A decoded value of any type, as L1 stores it. As a `&dyn Any` it can be downcast to its type.
pub trait Value: Any + Send + Sync {
    /// Appends the encoded value. `codec` is the number of the codec.
    ///
    /// # Errors
    /// The codec's own error if it cannot represent the value.
    fn encode(&self, codec: u8, out: &mut Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// One cached value with its key and its lifetime. Shared as `Arc<Entry>`.
///
/// An L1 driver stores entries, and needs only [`key`](Entry::key) and [`dead_at`](Entry::dead_at).
/// The engine uses the rest: it changes the state of an entry in place and never replaces the entry
/// for that, so that two threads which change it concurrently cannot lose a newer entry.
// Field order matters: a hit reads only the last fields, which share a cache line with a small
// value and with a key of up to 24 bytes.
#[repr(C)]
pub struct Entry<V: ?Sized = dyn Value> {
    /// Bits: the creation time in the lowest [`CREATED_BITS`], above it the fingerprint, and
    /// [`GRACED`] as the highest.
    created_at: AtomicU64,
    ends_at: AtomicU64,
    dead_at: AtomicU64,
    /// Bits: the time of the last check in the lowest [`TIME_BITS`], enough for 17 years, and above
    /// it the last part of its life in which an early refresh may start.
    checks: AtomicU64,
    key: CompactString,
    fresh_until: AtomicU64,
    epoch: AtomicU32,
    /// The bits of an `f32`, because only a share of it is computed.
    life: AtomicU32,
    /// Boxed, because most entries have none of it.
    more: Option<Box<More>>,
    value: V,
}

/// What few entries have.
#[derive(Debug, Default)]
struct More {
    tags: Box<[TagSeen]>,
    sliding: Option<Sliding>,
    validators: Validators,
}

const GRACED: u64 = 1 << 63;
/// Enough until the year 2248.
const CREATED_BITS: u32 = 43;
const CREATED: u64 = (1 << CREATED_BITS) - 1;
const FINGERPRINT: u64 = (1 << (63 - CREATED_BITS)) - 1;
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// The number of parts of a whole life. One less is the longest that a refresh is held back.
const WHOLE: u64 = (1 << (u64::BITS - TIME_BITS)) - 1;

/// The lifetime of a new [`Entry`].
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// The creation time of the value, in milliseconds since the Unix epoch, capped at 2^43 - 1.
    pub created_at: u64,
    /// A 20-bit hash of the stored form, or 0. It distinguishes stored forms of the same creation
    /// time.
    pub fingerprint: u32,
    /// The time for which the value was fresh at its creation, in milliseconds, or [`NEVER`].
    pub life: u64,
    /// The end of that life.
    pub ends_at: u64,
    /// The end of its fresh time in L1, which may be earlier.
    pub fresh_until: u64,
    /// The time when it must be removed from L1.
    pub dead_at: u64,
    /// The time when it was last known to agree with L2.
    pub verified_at: u64,
    /// The link epoch in which it was read. 0 marks it as unverified.
    pub epoch: u32,
    /// Whether it may be served as stale after its life.
    pub graced: bool,
}

impl Life {
    /// Creation time, fingerprint and grace, as an entry stores them.
    fn identity(&self) -> u64 {
        let graced = if self.graced { GRACED } else { 0 };
        let fingerprint = (u64::from(self.fingerprint) & FINGERPRINT) << CREATED_BITS;
        self.created_at.min(CREATED) | fingerprint | graced
    }

    /// The time of the last check; an early refresh may start at any time.
    fn checks(&self) -> u64 {
        WHOLE << TIME_BITS | self.verified_at & TIME
    }
}

impl<V: Value> Entry<V> {
    /// Creates an entry for L1.
    pub fn new(key: &str, value: V, life: Life, tags: Option<Box<[TagSeen]>>) -> Self {
        Self {
            created_at: AtomicU64::new(life.identity()),
            life: AtomicU32::new((life.life as f32).to_bits()),
            key: key.into(),
            ends_at: AtomicU64::new(life.ends_at),
            dead_at: AtomicU64::new(life.dead_at),
            fresh_until: AtomicU64::new(life.fresh_until),
            checks: AtomicU64::new(life.checks()),
            epoch: AtomicU32::new(life.epoch),
            more: tags.map(|tags| Box::new(More { tags, ..More::default() })),
            value,
        }
    }

    /// The same entry with an end that moves with each use: it is gone when nobody has used it for
    /// `idle` milliseconds. `told_at` is the time when L2 got it with its whole idle time, or 0.
    #[must_use]
    pub fn with_sliding(mut self, idle: u64, now: u64, told_at: u64) -> Self {
        let more = self.more.get_or_insert_default();
        more.sliding = Some(Sliding::new(idle, now, told_at));
        self
    }

    /// The same entry with what its source says about its version.
    #[must_use]
    pub fn with_validators(mut self, validators: Validators) -> Self {
        if !validators.is_empty() {
            self.more.get_or_insert_default().validators = validators;
        }
        self
    }
}

impl<V: Value + ?Sized> Entry<V> {
    /// The key, without the store's prefix.
    #[inline]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value.
    #[inline]
    pub fn value(&self) -> &V {
        &self.value
    }

    /// The creation time of the value, in milliseconds since the Unix epoch.
    pub fn created_at(&self) -> u64 {
        self.created_at.load(Relaxed) & CREATED
    }

    /// Whether the entry can be the one with this creation time and fingerprint.
    pub fn is_of(&self, created_at: u64, fingerprint: u32) -> bool {
        let own = self.created_at.load(Relaxed) >> CREATED_BITS & FINGERPRINT;
        self.created_at() == created_at.min(CREATED) && own == u64::from(fingerprint) & FINGERPRINT
    }

    /// The fingerprint of its stored form; see [`Life::fingerprint`].
    pub fn fingerprint(&self) -> u32 {
        (self.created_at.load(Relaxed) >> CREATED_BITS & FINGERPRINT) as u32
    }

    /// The time for which the value was fresh at its creation, in milliseconds, to seven digits, or
    /// [`NEVER`].
    pub fn life(&self) -> u64 {
        self.life_share(1.0) as u64
    }

    /// This share of the life.
    fn life_share(&self, share: f64) -> f64 {
        share * f64::from(f32::from_bits(self.life.load(Relaxed)))
    }

    /// The end of that life, or [`NEVER`]. The entry may need a lookup in L2 earlier.
    pub fn ends_at(&self) -> u64 {
        self.ends_at.load(Relaxed)
    }

    /// The time from which the driver may drop the entry, and
    /// [`L1Driver::prune`](crate::L1Driver::prune) should; [`NEVER`] if it has no end.
    #[inline]
    pub fn dead_at(&self) -> u64 {
        let end = self.kept_until();
        self.sliding().map_or(end, |sliding| sliding.ends_at().min(end))
    }

    /// The same, if the entry is always in use.
    #[inline]
    pub fn kept_until(&self) -> u64 {
        self.dead_at.load(Relaxed)
    }

    /// The end that moves with each use, if the entry has one.
    #[inline]
    pub fn sliding(&self) -> Option<&Sliding> {
        self.more.as_ref()?.sliding.as_ref()
    }

    /// Limits the entry's end to this time.
    pub fn end_by(&self, end: u64) {
        self.dead_at.fetch_min(end, Relaxed);
    }

    /// Whether the entry may be served as stale after its life.
    pub fn is_graced(&self) -> bool {
        self.created_at.load(Relaxed) & GRACED != 0
    }

    /// Gives the entry another life. Value and tags stay, with what it remembers of its tags.
    ///
    /// The creation time should stay too: it identifies the value.
    pub fn renew(&self, life: &Life) {
        self.created_at.store(life.identity(), Relaxed);
        self.life.store((life.life as f32).to_bits(), Relaxed);
        self.ends_at.store(life.ends_at, Relaxed);
        self.dead_at.store(life.dead_at, Relaxed);
        self.checks.store(life.checks(), Relaxed);
        self.epoch.store(life.epoch, Relaxed);
        self.fresh_until.store(life.fresh_until, Relaxed);
    }

    /// The end of the entry's fresh time; 0 if a call or a message has expired it.
    #[inline]
    pub fn fresh_until(&self) -> u64 {
        self.fresh_until.load(Relaxed)
    }

    /// Makes the entry stale now.
    pub fn expire(&self) {
        self.fresh_until.store(0, Relaxed);
    }

    /// Makes the entry fresh until this time, but never past its end.
    pub fn freshen(&self, until: u64) {
        self.fresh_until.store(until.min(self.kept_until()), Relaxed);
    }

    /// The milliseconds since the entry was last known to agree with L2.
    #[inline]
    pub fn unverified_for(&self, now: u64) -> u64 {
        let age = now.wrapping_sub(self.checks.load(Relaxed)) & TIME;
        // Another thread verified the entry after the caller had read the clock.
        if age > TIME / 2 { 0 } else { age }
    }

    /// The link epoch in which the entry was last known to agree with L2.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// Records that the entry agrees with L2.
    pub fn verify(&self, now: u64, epoch: u32) {
        self.change_checks(|part, _| (part, now));
        self.epoch.store(epoch, Relaxed);
    }

    /// Marks the entry as unverified: it must be checked against L2 before it is used again, even
    /// as stale.
    pub fn mark_unverified(&self) {
        self.epoch.store(0, Relaxed);
    }

    /// The time from which an early refresh may start.
    pub fn refresh_after(&self) -> u64 {
        match self.checks.load(Relaxed) >> TIME_BITS {
            WHOLE => 0,
            part => {
                let last = self.life_share(part as f64 / WHOLE as f64);
                self.ends_at().saturating_sub(last.round() as u64)
            }
        }
    }

    /// Holds back early refreshes until this time, to seven digits of the entry's life.
    pub fn hold_refresh(&self, until: u64) {
        let last = self.ends_at().saturating_sub(until) as f64 / self.life_share(1.0);
        let part = (last * WHOLE as f64).round() as u64;
        self.change_checks(|_, verified_at| (part.min(WHOLE - 1), verified_at));
    }

    fn change_checks(&self, change: impl Fn(u64, u64) -> (u64, u64)) {
        let change = |checks| {
            let (part, time) = change(checks >> TIME_BITS, checks & TIME);
            Some(part << TIME_BITS | time & TIME)
        };
        let _ = self.checks.fetch_update(Relaxed, Relaxed, change);
    }

    /// The tags, each with its state when the production of the value began.
    #[inline]
    pub fn tags(&self) -> &[TagSeen] {
        self.more.as_ref().map_or(&[], |more| &more.tags)
    }

    /// What the source says about its version of the value.
    pub fn validators(&self) -> Option<&Validators> {
        self.more.as_ref().map(|more| &more.validators).filter(|known| !known.is_empty())
    }
}

impl<V: Value + ?Sized> std::fmt::Debug for Entry<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("created_at", &self.created_at())
            .field("fresh_until", &self.fresh_until())
            .field("dead_at", &self.dead_at())
            .finish_non_exhaustive()
    }
}

/// The state of one tag in this process. Every entry with the tag shares it, so a hit compares two
/// numbers and needs no lookup.
#[derive(Debug)]
pub struct Tag {
    key: Box<str>,
    marker: AtomicU64,
    believed_until: AtomicU64,
    is_known: AtomicBool,
    contested_at: AtomicU64,
    deleted: Deletion,
    /// Counts while the tag is unknown: a message may have told of a deletion.
    suspected: Deletion,
    /// Locked by lookups only, never by a hit.
    position: Mutex<Option<TagPosition>>,
}

/// The position of a tag in its bucket. L2 counts the invalidations per bucket of tags, so that a
/// tag without a marker can be told from a tag whose marker was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagPosition {
    /// The identity of the bucket. A bucket that was lost and created again has another one.
    pub bucket: u64,
    /// The number of the bucket's latest invalidation when the tag was looked up.
    pub seq: u64,
    /// No invalidation of the bucket after this number was of this tag.
    pub clean_since: u64,
    /// Whether L2 has no marker of the tag.
    pub is_unmarked: bool,
    /// An invalidation of the tag at or before this time, in milliseconds since the epoch, may have
    /// left no trace.
    pub blind_since: u64,
    /// The time of the lookup, in milliseconds of the cache's clock.
    pub read_at: u64,
    /// The number of invalidations in the bucket that this process knew of at that time.
    pub heard: u64,
}

impl Tag {
    /// Numbers from here on mean "no marker". Each is a separate state, so that an entry made under
    /// one is not valid under another.
    pub const UNMARKED: u64 = 1 << 63;

    /// A tag of unknown state. `key` is the complete key of its marker.
    pub fn new(key: impl Into<Box<str>>) -> Self {
        Self {
            key: key.into(),
            marker: AtomicU64::new(0),
            believed_until: AtomicU64::new(0),
            is_known: AtomicBool::new(false),
            contested_at: AtomicU64::new(0),
            deleted: Deletion::default(),
            suspected: Deletion::default(),
            position: Mutex::new(None),
        }
    }

    /// The complete key of the tag's marker.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The state of the tag in this process: its marker, or a number from
    /// [`UNMARKED`](Tag::UNMARKED) on. It changes when the tag is invalidated, and when it is
    /// unknown whether it was.
    #[inline]
    pub fn marker(&self) -> u64 {
        self.marker.load(Relaxed)
    }

    /// The time of the tag's last invalidation, in milliseconds since the Unix epoch; 0 for never.
    #[inline]
    pub fn invalidated_at(&self) -> u64 {
        Self::time_of(self.marker())
    }

    /// The time in a state of a tag; 0 if the state has no marker.
    #[inline]
    pub fn time_of(marker: u64) -> u64 {
        if marker & Self::UNMARKED == 0 { marker } else { 0 }
    }

    /// Whether [`marker`](Tag::marker) may be relied on at this time.
    #[inline]
    pub fn is_believed(&self, now: u64) -> bool {
        now < self.believed_until.load(Relaxed)
    }

    /// Sets the marker and the position that was read with it, and how long both may be relied on.
    pub fn learn(&self, marker: u64, position: Option<TagPosition>, believed_until: u64) {
        let mut known = self.position();
        self.marker.store(marker, Relaxed);
        *known = position;
        self.suspected.at.store(0, Relaxed);
        self.is_known.store(true, Relaxed);
        self.believed_until.store(believed_until, Relaxed);
    }

    /// The state, and the position that was read with it, if any.
    pub fn state(&self) -> (u64, Option<TagPosition>) {
        let known = self.position();
        (self.marker(), *known)
    }

    /// Limits how long the known state may be relied on, because it may be out of date.
    pub fn mark_doubtful(&self, believed_until: u64) {
        self.believed_until.fetch_min(believed_until, Relaxed);
    }

    /// Marks the known state as wrong, because the tag was invalidated or is being invalidated.
    /// `at` is the latest state that any tag was given.
    pub fn mark_contested(&self, at: u64) {
        let mut known = self.position();
        *known = None;
        self.contested_at.store(at, Relaxed);
        self.is_known.store(false, Relaxed);
        self.believed_until.store(0, Relaxed);
    }

    /// Records that a marker of this time, in milliseconds since the Unix epoch, deleted the entries
    /// with the tag: they are gone, not only stale. `moment` is the latest state that any tag was
    /// given. The latest deletion counts.
    pub fn mark_deleted(&self, at: u64, moment: u64) {
        self.deleted.raise(at, moment);
    }

    /// As [`mark_deleted`](Tag::mark_deleted), if it is not known yet whether the invalidation
    /// deletes. Counts until [`learn`](Tag::learn).
    pub fn suspect_deleted(&self, at: u64, moment: u64) {
        self.suspected.raise(at, moment);
    }

    /// The time of the marker that last deleted the entries with the tag; 0 if none is known.
    pub fn deleted_at(&self) -> u64 {
        self.deleted.at.load(Relaxed)
    }

    /// The time of the deletion that is suspected; 0 if there is none.
    pub fn suspected_at(&self) -> u64 {
        self.suspected.at.load(Relaxed)
    }

    /// The argument of the last call of [`mark_contested`](Tag::mark_contested); 0 if there was
    /// none.
    pub fn contested_at(&self) -> u64 {
        self.contested_at.load(Relaxed)
    }

    /// Whether a marker was set that was not contested since. It may be out of date.
    pub fn is_known(&self) -> bool {
        self.is_known.load(Relaxed)
    }

    /// Extends the known state, because no better one is available. Does nothing if the state is
    /// unknown.
    pub fn extend(&self, believed_until: u64) {
        if self.is_known() {
            self.believed_until.fetch_max(believed_until, Relaxed);
        }
    }

    fn position(&self) -> MutexGuard<'_, Option<TagPosition>> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last deletion of the entries with a tag.
#[derive(Debug, Default)]
struct Deletion {
    /// The time of the marker; 0 for never.
    at: AtomicU64,
    /// The latest state that any tag was given before the deletion was known.
    moment: AtomicU64,
}

impl Deletion {
    fn raise(&self, at: u64, moment: u64) {
        if at > self.at.load(Relaxed) {
            self.moment.fetch_max(moment, Relaxed);
            self.at.fetch_max(at, Relaxed);
        }
    }

    /// Whether an entry that remembers this state was made before the deletion.
    fn is_after(&self, seen: u64, created_at: u64) -> bool {
        let at = self.at.load(Relaxed);
        at > 0
            && match seen {
                TagSeen::BY_AGE | TagSeen::UNREAD => created_at <= at,
                TagSeen::STALE => true,
                unmarked @ Tag::UNMARKED.. => unmarked <= self.moment.load(Relaxed),
                marker => marker < at,
            }
    }
}

/// A tag of an entry, with the state of the tag when the production of the value began.
#[derive(Debug)]
pub struct TagSeen {
    tag: Arc<Tag>,
    seen: AtomicU64,
}

impl TagSeen {
    /// Means "not remembered", as in entries that the Node library stores: the entry is valid if it
    /// is younger than the marker, or if there is no marker.
    pub const BY_AGE: u64 = u64::MAX;

    /// Means "could not be read": the entry is valid if there is a marker and it is younger.
    pub const UNREAD: u64 = u64::MAX - 1;

    /// Means a state that no tag has: the entry is stale.
    pub const STALE: u64 = u64::MAX - 2;

    /// Remembers that `tag` had this marker, or one of the constants.
    pub fn new(tag: Arc<Tag>, seen: u64) -> Self {
        Self { tag, seen: AtomicU64::new(seen) }
    }

    /// The tag.
    #[inline]
    pub fn tag(&self) -> &Arc<Tag> {
        &self.tag
    }

    /// The remembered marker, or one of the constants.
    #[inline]
    pub fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Remembers another marker, under which the entry counts as valid.
    pub fn accept(&self, marker: u64) {
        self.seen.store(marker, Relaxed);
    }

    /// Whether an entry with this creation time is valid under the tag's current marker.
    #[inline]
    pub fn is_valid(&self, created_at: u64) -> bool {
        self.seen() == self.tag.marker() || self.is_valid_by_age(created_at)
    }

    /// Whether an entry with this creation time was deleted together with the tag, so that it may
    /// not be served as stale either. If the tag is unknown, a suspected deletion counts.
    pub fn is_gone(&self, created_at: u64) -> bool {
        let (tag, seen) = (&self.tag, self.seen());
        match tag.is_known() {
            true => tag.deleted.is_after(seen, created_at) && !self.is_valid(created_at),
            false => {
                tag.deleted.is_after(seen, created_at) || tag.suspected.is_after(seen, created_at)
            }
        }
    }

    fn is_valid_by_age(&self, created_at: u64) -> bool {
        let invalidated_at = self.tag.invalidated_at();
        match self.seen() {
            Self::BY_AGE => invalidated_at == 0 || created_at > invalidated_at,
            Self::UNREAD => invalidated_at != 0 && created_at > invalidated_at,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Value for Nothing {
        fn encode(&self, _: u8, _: &mut Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>> {
            Ok(())
        }
    }

    fn entry(life: Life) -> Entry<Nothing> {
        Entry::new("k", Nothing, life, None)
    }

    const LIFE: Life = Life {
        created_at: 1_700_000_000_000,
        fingerprint: 0,
        life: 3_600_000,
        ends_at: 5_000_000,
        fresh_until: 5_000_000,
        dead_at: 6_000_000,
        verified_at: 1_400_000,
        epoch: 7,
        graced: true,
    };

    #[test]
    fn a_sliding_entry_ends_when_nobody_uses_it() {
        let entry = Entry::new("k", Nothing, LIFE, None).with_sliding(1_000, 1_400_000, 1_400_000);
        let sliding = entry.sliding().unwrap();
        assert_eq!(
            (entry.dead_at(), entry.kept_until(), sliding.idle()),
            (1_401_000, LIFE.dead_at, 1_000)
        );
        // L2 is told once in a quarter of the idle time.
        assert!(!sliding.note_use(1_400_249) && sliding.note_use(1_400_250));
        assert!(!sliding.note_use(1_400_499) && sliding.note_use(1_400_600));
        assert_eq!(entry.dead_at(), 1_401_600);
        // After a failure it is told again a little later.
        sliding.note_untold(1_400_600);
        assert!(!sliding.note_use(1_400_661) && sliding.note_use(1_400_663));
        // Never for longer than its life.
        sliding.note_use(LIFE.dead_at - 1);
        assert_eq!(entry.dead_at(), LIFE.dead_at);
        assert!(entry.tags().is_empty());
        entry.freshen(LIFE.dead_at);
        assert_eq!(entry.fresh_until(), LIFE.dead_at);
    }

    #[test]
    fn a_renewed_entry_has_the_new_life_and_its_old_value() {
        let tag = Arc::new(Tag::new("t"));
        let tags = Some([TagSeen::new(tag, 7)].into());
        let entry = Entry::new("k", Nothing, LIFE, tags);
        entry.hold_refresh(4_000_000);
        entry.expire();
        let life = Life {
            fingerprint: 9,
            life: 600_000,
            ends_at: 2_000_000,
            fresh_until: 1_900_000,
            dead_at: 2_500_000,
            verified_at: 1_500_000,
            epoch: 8,
            graced: false,
            ..LIFE
        };
        entry.renew(&life);
        assert_eq!((entry.life(), entry.ends_at()), (600_000, 2_000_000));
        assert_eq!((entry.fresh_until(), entry.dead_at()), (1_900_000, 2_500_000));
        assert_eq!((entry.epoch(), entry.is_graced(), entry.refresh_after()), (8, false, 0));
        assert_eq!(entry.unverified_for(1_500_010), 10);
        assert!(entry.is_of(LIFE.created_at, 9) && !entry.is_of(LIFE.created_at, 0));
        assert_eq!((entry.tags()[0].seen(), entry.created_at()), (7, LIFE.created_at));
    }

    #[test]
    fn what_it_is_given_is_what_it_says() {
        for graced in [false, true] {
            let entry = entry(Life { graced, ..LIFE });
            assert_eq!((entry.key(), entry.created_at()), ("k", LIFE.created_at));
            assert_eq!((entry.life(), entry.ends_at()), (LIFE.life, LIFE.ends_at));
            assert_eq!((entry.fresh_until(), entry.dead_at()), (LIFE.fresh_until, LIFE.dead_at));
            assert_eq!((entry.epoch(), entry.is_graced()), (7, graced));
            assert_eq!(entry.unverified_for(1_400_123), 123);
            assert_eq!(entry.unverified_for(1_399_999), 0, "the clock was looked at before");
        }
        let forever = entry(Life { life: NEVER, ends_at: NEVER, created_at: u64::MAX, ..LIFE });
        assert_eq!((forever.life(), forever.ends_at()), (NEVER, NEVER));
        assert_eq!(forever.created_at(), (1 << 43) - 1, "what is beyond counts as that");
        assert!(forever.is_of(u64::MAX, 0) && !forever.is_of(1, 0));
    }

    #[test]
    fn a_fingerprint_tells_entries_of_one_time_apart() {
        let created_at = LIFE.created_at;
        for fingerprint in [0, 1, (1 << 20) - 1, u32::MAX] {
            let entry = entry(Life { fingerprint, ..LIFE });
            assert_eq!((entry.created_at(), entry.is_graced()), (created_at, true));
            assert!(entry.is_of(created_at, fingerprint));
            assert!(!entry.is_of(created_at, fingerprint ^ 1));
            assert!(!entry.is_of(created_at + 1, fingerprint));
        }
    }

    #[test]
    fn an_entry_has_validators_with_tags_and_without() {
        let validators = Validators { etag: Some("1".into()), last_modified: None };
        for tags in [0, 2] {
            let tags = (0..tags).map(|_| TagSeen::new(Arc::new(Tag::new("t")), 0));
            let tags: Option<Box<[TagSeen]>> = Some(tags.collect());
            let entry = Entry::new("k", Nothing, LIFE, tags);
            let count = entry.tags().len();
            assert_eq!(entry.validators(), None);
            let entry = entry.with_validators(validators.clone());
            assert_eq!((entry.tags().len(), entry.validators()), (count, Some(&validators)));
        }
        assert_eq!(entry(LIFE).with_validators(Validators::default()).validators(), None);
        let newer = Validators { etag: Some("2".into()), last_modified: Some("now".into()) };
        let both = validators.or(newer);
        assert_eq!((both.etag.as_deref(), both.last_modified.as_deref()), (Some("1"), Some("now")));
    }

    #[test]
    fn a_check_and_a_held_refresh_leave_each_other_alone() {
        let entry = entry(LIFE);
        assert_eq!(entry.refresh_after(), 0);
        entry.hold_refresh(4_000_123);
        assert_eq!((entry.refresh_after(), entry.unverified_for(1_400_123)), (4_000_123, 123));
        entry.verify(2_000_000, 8);
        assert_eq!((entry.refresh_after(), entry.unverified_for(2_000_009)), (4_000_123, 9));
        assert_eq!(entry.epoch(), 8);
        // Held back from the start of its life is not the same as never held back.
        entry.hold_refresh(0);
        assert!(entry.refresh_after() > 0);
        entry.hold_refresh(NEVER);
        assert_eq!(entry.refresh_after(), 5_000_000);
    }

    #[test]
    fn an_entry_is_gone_if_its_tag_was_deleted_after_it_saw_the_tag() {
        let tag = Arc::new(Tag::new("t"));
        let seen = |state| TagSeen::new(tag.clone(), state);
        let gone = |state| seen(state).is_gone(150);
        let (early, late) = (Tag::UNMARKED + 3, Tag::UNMARKED + 4);
        let all = [0, 99, 100, early, late, TagSeen::STALE, TagSeen::BY_AGE, TagSeen::UNREAD];
        tag.learn(200, None, NEVER);
        assert!(!all.into_iter().any(gone), "expired only");

        tag.mark_deleted(100, early);
        assert_eq!(all.map(gone), [true, true, false, true, false, true, false, false]);
        tag.mark_deleted(50, Tag::UNMARKED + 9);
        assert!(!gone(late), "an earlier deletion changes nothing");
        tag.mark_deleted(160, early);
        assert!(gone(100) && gone(TagSeen::BY_AGE) && gone(TagSeen::UNREAD));
        assert!(!gone(200), "what is valid is not gone");

        tag.mark_contested(0);
        tag.suspect_deleted(300, late);
        assert!(gone(200) && gone(late) && !seen(TagSeen::UNREAD).is_gone(301));
        tag.learn(300, None, NEVER);
        assert!(!gone(200) && !gone(late), "the marker decides");
    }

    #[test]
    fn a_long_life_is_held_to_seven_digits() {
        const YEAR: u64 = 365 * 86_400_000;
        let entry = entry(Life { life: YEAR, ends_at: YEAR, ..LIFE });
        entry.hold_refresh(YEAR - YEAR / 5);
        let off = entry.refresh_after().abs_diff(YEAR - YEAR / 5);
        assert!(off <= YEAR >> 23, "{off} ms off");
    }
}
