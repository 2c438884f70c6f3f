//! What L1 holds for a key.
//!
//! All times here are milliseconds of the cache's own clock, which is monotonic and starts
//! anywhere, except [`Entry::created_at`], which is milliseconds since the Unix epoch.

use std::any::Any;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compact_str::CompactString;

/// The instant that never comes.
pub const NEVER: u64 = u64::MAX;

/// A value of any type, as L1 keeps it: decoded. As a `&dyn Any` it can be downcast to
/// its type.
pub trait Value: Any + Send + Sync {
    /// Appends the value's bytes in the codec with this id.
    ///
    /// # Errors
    /// The codec's own error when the value has no representation in it.
    fn encode(&self, codec: u8, out: &mut Vec<u8>) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// One cached value, its key, and what is known of its life. Shared as `Arc<Entry>`.
///
/// An L1 driver stores it, and needs only [`key`](Entry::key) and
/// [`dead_at`](Entry::dead_at). The rest is the engine's: an entry is never replaced to change its
/// state, so that two threads that change it at once cannot lose a newer entry.
// In this order: a hit looks at the last ones only, which share a cache line with a small value and
// with a key of up to 24 bytes.
#[repr(C)]
pub struct Entry<V: ?Sized = dyn Value> {
    /// With the fingerprint above its [`CREATED_BITS`], and [`GRACED`] in its highest bit.
    created_at: u64,
    ends_at: u64,
    dead_at: AtomicU64,
    /// When it was verified, in the lower [`TIME_BITS`], enough for 17 years; above them, in which
    /// last part of its life a refresh may start.
    checks: AtomicU64,
    key: CompactString,
    fresh_until: AtomicU64,
    epoch: AtomicU32,
    /// Only a share of it is ever asked for.
    life: f32,
    /// Boxed twice: half the room here, and most entries have none.
    tags: Option<Box<Box<[TagSeen]>>>,
    value: V,
}

const GRACED: u64 = 1 << 63;
/// Enough until the year 2248.
const CREATED_BITS: u32 = 43;
const CREATED: u64 = (1 << CREATED_BITS) - 1;
const FINGERPRINT: u64 = (1 << (63 - CREATED_BITS)) - 1;
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;
/// The part that is the whole life; one less is the longest that is held back.
const WHOLE: u64 = (1 << (u64::BITS - TIME_BITS)) - 1;

/// The life of a new [`Entry`].
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// When the value was produced, in milliseconds since the Unix epoch. A later time than 2^43 -
    /// 1 counts as that.
    pub created_at: u64,
    /// Tells its stored form from others of the same time: 20 bits of a hash of it, or 0.
    pub fingerprint: u32,
    /// For how long it was fresh when it was produced, in milliseconds, or [`NEVER`].
    pub life: u64,
    /// When that life ends.
    pub ends_at: u64,
    /// Until when it is fresh in this tier, which may be sooner.
    pub fresh_until: u64,
    /// When it must be gone from this tier.
    pub dead_at: u64,
    /// When it was known to agree with L2.
    pub verified_at: u64,
    /// The link epoch in which it was read. 0 asks for a check against L2.
    pub epoch: u32,
    /// Whether it may be served as a stale value after its life.
    pub graced: bool,
}

impl<V: Value> Entry<V> {
    /// An entry that holds `value` under a key, as L1 knows it.
    pub fn new(key: &str, value: V, life: Life, tags: Option<Box<[TagSeen]>>) -> Self {
        let graced = if life.graced { GRACED } else { 0 };
        let fingerprint = (u64::from(life.fingerprint) & FINGERPRINT) << CREATED_BITS;
        Self {
            created_at: life.created_at.min(CREATED) | fingerprint | graced,
            life: life.life as f32,
            key: key.into(),
            ends_at: life.ends_at,
            dead_at: AtomicU64::new(life.dead_at),
            fresh_until: AtomicU64::new(life.fresh_until),
            checks: AtomicU64::new(WHOLE << TIME_BITS | life.verified_at & TIME),
            epoch: AtomicU32::new(life.epoch),
            tags: tags.map(Box::new),
            value,
        }
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

    /// When the value was produced, in milliseconds since the Unix epoch.
    pub fn created_at(&self) -> u64 {
        self.created_at & CREATED
    }

    /// Whether the entry may be that with this time of creation and this fingerprint.
    pub fn is_of(&self, created_at: u64, fingerprint: u32) -> bool {
        let own = self.created_at >> CREATED_BITS & FINGERPRINT;
        self.created_at() == created_at.min(CREATED) && own == u64::from(fingerprint) & FINGERPRINT
    }

    /// For how long the value was fresh when it was produced, in milliseconds, to seven digits, or
    /// [`NEVER`].
    pub fn life(&self) -> u64 {
        self.life as u64
    }

    /// When that life ends, or [`NEVER`]; L1 may have to look again sooner.
    pub fn ends_at(&self) -> u64 {
        self.ends_at
    }

    /// From when on the driver may drop the entry, and [`L1Driver::prune`](crate::L1Driver::prune)
    /// should; [`NEVER`] when it has no end.
    #[inline]
    pub fn dead_at(&self) -> u64 {
        self.dead_at.load(Relaxed)
    }

    /// Makes the entry end by then at the latest.
    pub fn end_by(&self, end: u64) {
        self.dead_at.fetch_min(end, Relaxed);
    }

    /// Whether the entry may be served as a stale value after its life.
    pub fn is_graced(&self) -> bool {
        self.created_at & GRACED != 0
    }

    /// Until when the entry is fresh; 0 when a call or a message has expired it.
    #[inline]
    pub fn fresh_until(&self) -> u64 {
        self.fresh_until.load(Relaxed)
    }

    /// Makes the entry stale from now on.
    pub fn expire(&self) {
        self.fresh_until.store(0, Relaxed);
    }

    /// Makes the entry fresh until then, but never past its end.
    pub fn freshen(&self, until: u64) {
        self.fresh_until.store(until.min(self.dead_at()), Relaxed);
    }

    /// For how many milliseconds it has not been known to agree with L2.
    #[inline]
    pub fn unverified_for(&self, now: u64) -> u64 {
        let age = now.wrapping_sub(self.checks.load(Relaxed)) & TIME;
        // It was verified after the caller had looked at the clock.
        if age > TIME / 2 { 0 } else { age }
    }

    /// The link epoch in which the entry was last known to agree with L2.
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    /// Notes that the entry agrees with L2.
    pub fn verify(&self, now: u64, epoch: u32) {
        self.change_checks(|part, _| (part, now));
        self.epoch.store(epoch, Relaxed);
    }

    /// Asks for a look at L2 before the entry is used again, even as a stale one.
    pub fn mark_unverified(&self) {
        self.epoch.store(0, Relaxed);
    }

    /// From when on a refresh ahead of expiry may start.
    pub fn refresh_after(&self) -> u64 {
        match self.checks.load(Relaxed) >> TIME_BITS {
            WHOLE => 0,
            part => {
                let last = part as f64 / WHOLE as f64 * f64::from(self.life);
                self.ends_at.saturating_sub(last.round() as u64)
            }
        }
    }

    /// Holds back refreshes ahead of expiry until then, to seven digits of the entry's life.
    pub fn hold_refresh(&self, until: u64) {
        let last = self.ends_at.saturating_sub(until) as f64 / f64::from(self.life);
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

    /// The tags, with what was known of each when the value began to be produced.
    #[inline]
    pub fn tags(&self) -> &[TagSeen] {
        self.tags.as_ref().map_or(&[], |tags| tags)
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

/// What this process knows of one tag. Every entry with the tag shares it, so a hit compares two
/// numbers and looks nothing up.
#[derive(Debug)]
pub struct Tag {
    key: Box<str>,
    marker: AtomicU64,
    believed_until: AtomicU64,
    is_known: AtomicBool,
    contested_at: AtomicU64,
    /// Locked by look-ups only, never by a hit.
    position: Mutex<Option<TagPosition>>,
}

/// Where a tag stands in its bucket. L2 keeps, for each bucket of tags, how often one of
/// them was invalidated, so that a missing marker can be told from a lost one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagPosition {
    /// The bucket's identity. One that was lost and made again has another.
    pub bucket: u64,
    /// The number of the bucket's latest invalidation when the tag was looked up.
    pub seq: u64,
    /// None of the bucket's invalidations after this one was of this tag.
    pub clean_since: u64,
    /// Whether L2 has no marker of the tag.
    pub is_unmarked: bool,
    /// An invalidation of the tag at this time or later may have left no trace, in milliseconds
    /// since the epoch.
    pub blind_since: u64,
    /// When it was looked up, in milliseconds of the cache's clock.
    pub read_at: u64,
    /// How many invalidations in the bucket this process had heard of then.
    pub heard: u64,
}

impl Tag {
    /// Numbers from here on stand for "no marker". Each is a state of its own, so that an entry
    /// which was made under one is not valid under another.
    pub const UNMARKED: u64 = 1 << 63;

    /// A tag of which nothing is known, with the complete key of its marker.
    pub fn new(key: impl Into<Box<str>>) -> Self {
        Self {
            key: key.into(),
            marker: AtomicU64::new(0),
            believed_until: AtomicU64::new(0),
            is_known: AtomicBool::new(false),
            contested_at: AtomicU64::new(0),
            position: Mutex::new(None),
        }
    }

    /// The complete key of the tag's marker.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The state of the tag, as far as this process knows: its marker, or a number from
    /// [`UNMARKED`](Tag::UNMARKED) on. It changes when the tag is invalidated, and when nobody can
    /// tell whether it was.
    #[inline]
    pub fn marker(&self) -> u64 {
        self.marker.load(Relaxed)
    }

    /// When the tag was last invalidated, in milliseconds since the Unix epoch; 0 for never.
    #[inline]
    pub fn invalidated_at(&self) -> u64 {
        Self::time_of(self.marker())
    }

    /// The time in a state of a tag; 0 when it has no marker.
    #[inline]
    pub fn time_of(marker: u64) -> u64 {
        if marker & Self::UNMARKED == 0 { marker } else { 0 }
    }

    /// Whether [`marker`](Tag::marker) may be relied on at that time.
    #[inline]
    pub fn is_believed(&self, now: u64) -> bool {
        now < self.believed_until.load(Relaxed)
    }

    /// Learns a marker and the position that was read with it, and until when to rely on them.
    pub fn learn(&self, marker: u64, position: Option<TagPosition>, believed_until: u64) {
        let mut known = self.position();
        self.marker.store(marker, Relaxed);
        *known = position;
        self.is_known.store(true, Relaxed);
        self.believed_until.store(believed_until, Relaxed);
    }

    /// The marker, and the position that was read with it, if any.
    pub fn state(&self) -> (u64, Option<TagPosition>) {
        let known = self.position();
        (self.marker(), *known)
    }

    /// Relies on what is known no longer than until then: it may be out of date.
    pub fn doubt(&self, believed_until: u64) {
        self.believed_until.fetch_min(believed_until, Relaxed);
    }

    /// The tag was invalidated, or is being invalidated: what is known of it is wrong. `at` is the
    /// latest state that any tag was given.
    pub fn contest(&self, at: u64) {
        let mut known = self.position();
        *known = None;
        self.contested_at.store(at, Relaxed);
        self.is_known.store(false, Relaxed);
        self.believed_until.store(0, Relaxed);
    }

    /// What the last call of [`contest`](Tag::contest) was given; 0 before.
    pub fn contested_at(&self) -> u64 {
        self.contested_at.load(Relaxed)
    }

    /// Whether a marker was learnt that nothing has contested since. It may be out of date.
    pub fn is_known(&self) -> bool {
        self.is_known.load(Relaxed)
    }

    /// Relies on what is known until then, because nothing better can be found out. Does nothing
    /// when nothing is known.
    pub fn extend(&self, believed_until: u64) {
        if self.is_known() {
            self.believed_until.fetch_max(believed_until, Relaxed);
        }
    }

    fn position(&self) -> MutexGuard<'_, Option<TagPosition>> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tag of an entry, with the marker it had when the value began to be produced.
#[derive(Debug)]
pub struct TagSeen {
    tag: Arc<Tag>,
    seen: AtomicU64,
}

impl TagSeen {
    /// Stands for "not remembered", as the Node library stores entries: the entry is valid if it is
    /// younger than the marker, or if there is none.
    pub const BY_AGE: u64 = u64::MAX;

    /// Stands for "could not be read": the entry is valid if there is a marker and it is younger.
    pub const UNREAD: u64 = u64::MAX - 1;

    /// Stands for a state that no tag has: the entry is stale.
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

    /// The marker remembered, or one of the constants.
    #[inline]
    pub fn seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// Remembers another marker: the entry counts as valid under it.
    pub fn accept(&self, marker: u64) {
        self.seen.store(marker, Relaxed);
    }

    /// Whether an entry of that age is valid under the tag's marker as it is known now.
    #[inline]
    pub fn is_valid(&self, created_at: u64) -> bool {
        self.seen() == self.tag.marker() || self.is_valid_by_age(created_at)
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
    fn a_check_and_a_held_refresh_leave_each_other_alone() {
        let entry = entry(LIFE);
        assert_eq!(entry.refresh_after(), 0);
        entry.hold_refresh(4_000_123);
        assert_eq!((entry.refresh_after(), entry.unverified_for(1_400_123)), (4_000_123, 123));
        entry.verify(2_000_000, 8);
        assert_eq!((entry.refresh_after(), entry.unverified_for(2_000_009)), (4_000_123, 9));
        assert_eq!(entry.epoch(), 8);
        // From its beginning on is not the same as never.
        entry.hold_refresh(0);
        assert!(entry.refresh_after() > 0);
        entry.hold_refresh(NEVER);
        assert_eq!(entry.refresh_after(), 5_000_000);
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
