//! Buckets of tags: they tell a tag that was never invalidated from one whose marker was lost.
//!
//! A server may evict any key, so a missing marker proves nothing by itself. Each namespace has
//! [`BUCKETS`] buckets, and the hash of a tag selects one. A bucket is a document in L2 that counts
//! the invalidations of its tags and lists the latest ones. An entry remembers, per tag, the
//! bucket's identity and count. If the same bucket still exists and lists all later invalidations,
//! and none of them is of the tag, then the tag was not invalidated since. In any other case the
//! state is unknown, and the entry is stale.
//!
//! The hash, the key and the document are part of the wire format.

use std::fmt;

use bytes::Bytes;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::site::{BUCKET, LAST, LEVEL, RESERVED, as_ttl, until};
use crate::wire::codec::{Codec, Format};
use crate::wire::document::{Document, Expiration, Meta};
use crate::wire::marker::MarkerTimes;

/// The number of buckets that the tags of a namespace share.
const BUCKETS: u64 = 1_024;
/// The number of invalidations that a bucket lists.
const MOST_RECENT: usize = 64;
const DAY: u64 = 24 * 60 * 60 * 1_000;
/// The shortest life of a bucket.
const LEAST_LIFE: u64 = 30 * DAY;

/// The bucket of a tag, and the tag's hash in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BucketPlace<'a> {
    /// The prefix of the tag's handle.
    pub(super) prefix: &'a str,
    /// The number of the bucket.
    number: u64,
    /// The hash of the tag in the bucket's list, below 2^53 so that every JSON reader can hold it.
    pub(super) hash: u64,
}

impl<'a> BucketPlace<'a> {
    /// The place of the tag whose marker has this complete key.
    pub(super) fn of(marker_key: &'a str) -> Self {
        let parts = [RESERVED, LEVEL];
        let at = parts.iter().filter_map(|part| marker_key.find(part)).min().unwrap_or(0);
        let (prefix, name) = marker_key.split_at(at);
        let hash = stable_hash(name.strip_prefix(RESERVED).unwrap_or(name));
        Self { prefix, number: hash % BUCKETS, hash: hash >> 11 }
    }

    /// The place of all tags in the bucket with this complete key; `None` if it is not a bucket's
    /// key.
    pub(super) fn of_bucket(key: &'a str) -> Option<Self> {
        let (prefix, number) = key.split_at(key.rfind(BUCKET)?);
        let number = number.strip_prefix(BUCKET)?.parse().ok()?;
        Some(Self { prefix, number, hash: 0 })
    }

    /// The key of the bucket, without the prefix.
    pub(super) fn name(&self) -> String {
        format!("{BUCKET}{}", self.number)
    }

    /// The complete key of the bucket.
    pub(super) fn key(&self) -> String {
        [self.prefix, &self.name()].concat()
    }

    /// Identifies the bucket within this process. A collision is harmless.
    pub(super) fn id(&self) -> u64 {
        stable_hash(self.prefix) ^ self.number
    }
}

/// FNV-1a with 64 bits, and the finalizer of MurmurHash3: the same in every process and version.
pub(super) fn stable_hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ fnv >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ mixed >> 33
}

/// A stored bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    content: BucketContent,
    created_at: u64,
    /// In ms since the epoch; `None` if it has no end.
    end: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BucketContent {
    /// The identity: a bucket that was lost and created again has another one.
    id: u64,
    /// The number of invalidations so far.
    seq: u64,
    /// The latest invalidations, the newest last.
    recent: Vec<Listed>,
}

/// An invalidation in a bucket's list: `[hash of the tag, marker]`, and if the tag was ever
/// deleted, the difference between this marker and the last one that deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Listed {
    hash: u64,
    times: MarkerTimes,
}

impl Serialize for Listed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        list.serialize_element(&self.hash)?;
        list.serialize_element(&self.times.at)?;
        if self.times.hard_at > 0 {
            list.serialize_element(&self.times.at.saturating_sub(self.times.hard_at))?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = Listed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of two or three numbers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Listed, A::Error> {
                let missing = || A::Error::custom("a number is missing");
                let hash = list.next_element()?.ok_or_else(missing)?;
                let at: u64 = list.next_element()?.ok_or_else(missing)?;
                let since: Option<u64> = list.next_element()?;
                let hard_at = since.map_or(0, |since| at.saturating_sub(since));
                Ok(Listed { hash, times: MarkerTimes { at, hard_at } })
            }
        }

        deserializer.deserialize_seq(List)
    }
}

impl Bucket {
    /// A new bucket, under which no entry is valid yet. Its life has a random part, so that buckets
    /// do not expire together.
    pub(super) fn new(now: u64, tag_ttl: u64) -> Self {
        let least = tag_ttl.saturating_add(DAY).max(LEAST_LIFE);
        let life = least.saturating_add(fastrand::u64(..=least));
        let end = now.saturating_add(life);
        let content = BucketContent { id: fastrand::u64(1..=LAST), seq: 0, recent: Vec::new() };
        Self { content, created_at: now, end: (end <= LAST).then_some(end) }
    }

    /// The bucket in these bytes; `None` if they are not a bucket.
    pub(super) fn parse(stored: Option<&Bytes>) -> Option<Self> {
        let document = Document::parse(stored?).ok()?;
        let content: BucketContent = document.value().ok()?;
        let listed = content.recent.len() as u64;
        let sound = content.id > 0 && listed <= content.seq && content.seq < LAST;
        let Meta { created_at, stale_until, .. } = document.meta;
        sound.then_some(Self { content, created_at, end: stale_until })
    }

    /// The bytes to store, and their ttl.
    pub(super) fn encode(&self, now: u64) -> (Bytes, Option<std::time::Duration>) {
        let meta = Meta {
            created_at: self.created_at,
            expiration: self.end.map_or(Expiration::Never, Expiration::At),
            stale_until: self.end,
            ..Meta::default()
        };
        // The content has only numbers, so this cannot fail.
        let content = serde_json::to_vec(&self.content).unwrap_or_default();
        let bytes = Document::from_payload(Codec::json(), &meta, Format::Json, &content);
        (bytes, self.end.and_then(|end| as_ttl(until(end, now))))
    }

    pub(super) fn id(&self) -> u64 {
        self.content.id
    }

    pub(super) fn seq(&self) -> u64 {
        self.content.seq
    }

    /// Counts and lists an invalidation.
    pub(super) fn push(&mut self, hash: u64, times: MarkerTimes) {
        let BucketContent { seq, recent, .. } = &mut self.content;
        *seq += 1;
        recent.push(Listed { hash, times });
        let over = recent.len().saturating_sub(MOST_RECENT);
        recent.drain(..over);
    }

    /// The latest listed times of the tag; 0 if none is listed.
    pub(super) fn marker(&self, hash: u64) -> MarkerTimes {
        let of_tag = self.content.recent.iter().filter(|listed| listed.hash == hash);
        of_tag.fold(MarkerTimes::default(), |times, listed| times.merged(listed.times))
    }

    /// The number of the tag's last listed invalidation, or else of the last invalidation that is
    /// no longer listed. No later invalidation was of this tag.
    pub(super) fn clean_since(&self, hash: u64) -> u64 {
        let BucketContent { seq, recent, .. } = &self.content;
        let after = recent.iter().rev().take_while(|listed| listed.hash != hash).count();
        seq - after as u64
    }

    /// An invalidation at or before this time, in ms since the epoch, may have left no trace here:
    /// the bucket did not exist yet, or the list does not reach back so far.
    pub(super) fn blind_since(&self) -> u64 {
        let BucketContent { seq, recent, .. } = &self.content;
        match recent.first() {
            Some(oldest) if (recent.len() as u64) < *seq => self.created_at.max(oldest.times.at),
            _ => self.created_at,
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_everywhere_and_for_ever() {
        for (text, expected) in [
            ("", 0xefd0_1f60_ba99_2926),
            ("a", 0x82a2_a958_a9be_ce5b),
            ("foobar", 0x2c22_1949_22d1_672b),
            ("user:1", 0x4ce5_3ee4_648c_ef41),
            ("ü:☃", 0x0307_6a36_80ab_8901),
        ] {
            assert_eq!(stable_hash(text), expected, "{text}");
        }
    }

    #[test]
    fn a_place_follows_from_the_key_of_the_marker_alone() {
        let root = BucketPlace::of("___bc:t:a");
        assert_eq!(root.key(), format!("___bc:b:{}", stable_hash("a") % 1_024));
        let users = BucketPlace::of("bentocache:users:___bc:t:a");
        assert_eq!(users.key(), format!("bentocache:users:{}", root.key()));
        assert_eq!((users.hash, users.number), (root.hash, root.number));
        assert!(users.hash < 1 << 53);
        let bucket = users.key();
        let of_bucket = BucketPlace::of_bucket(&bucket).unwrap();
        assert_eq!((of_bucket.id(), of_bucket.key()), (users.id(), users.key()));
        for other in ["bentocache:users:___bc:t:a", "k", "___bc:b:", "___bc:b:x", "___bc:b:-1"] {
            assert_eq!(BucketPlace::of_bucket(other), None, "{other}");
        }
        let level = BucketPlace::of("bentocache:___bc:c:00ff");
        assert_eq!((level.prefix, level.hash), ("bentocache:", stable_hash("___bc:c:00ff") >> 11));
        // A tag of an application that looks like a level's tag is another tag.
        let tag = BucketPlace::of("bentocache:___bc:t:___bc:c:00ff");
        assert_eq!(tag.prefix, "bentocache:");
        let nested = BucketPlace::of("p:___bc:t:x:___bc:t:a");
        assert_eq!(nested.prefix, "p:");
        assert_ne!(nested.hash, root.hash);
    }

    #[test]
    fn tags_are_spread_over_all_buckets() {
        let mut counts = [0_u32; BUCKETS as usize];
        for i in 0..102_400 {
            counts[BucketPlace::of(&format!("p:___bc:t:user:{i}")).number as usize] += 1;
        }
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bucket = Bucket::new(1_700_000_000_000, 30 * DAY);
        for i in 0..100 {
            let (bytes, ttl) = bucket.encode(1_700_000_000_000);
            assert_eq!(Bucket::parse(Some(&bytes)).as_ref(), Some(&bucket));
            let days = ttl.unwrap().as_secs() / (24 * 3_600);
            assert!((31..=62).contains(&days), "{days}");
            // Every kind of invalidation.
            let at = 1_000 + i;
            bucket.push(i, MarkerTimes { at, hard_at: [0, at, 7][i as usize % 3] });
        }
        assert_eq!((bucket.seq(), bucket.content.recent.len()), (100, MOST_RECENT));
        let forever = Bucket::new(1_700_000_000_000, u64::MAX);
        assert_eq!(forever.encode(1_700_000_000_000).1, None);
    }

    #[test]
    fn a_bucket_tells_since_when_a_tag_was_not_invalidated() {
        let mut bucket = Bucket::new(500, 0);
        let expired = |at| MarkerTimes { at, hard_at: 0 };
        assert_eq!((bucket.clean_since(7), bucket.marker(7).at, bucket.blind_since()), (0, 0, 500));
        bucket.push(7, MarkerTimes { at: 1_000, hard_at: 1_000 });
        bucket.push(8, expired(1_001));
        assert_eq!((bucket.clean_since(7), bucket.marker(7).hard_at), (1, 1_000));
        assert_eq!(bucket.marker(8), expired(1_001));
        assert_eq!((bucket.clean_since(9), bucket.blind_since()), (0, 500));
        for i in 0..64 {
            bucket.push(100, expired(2_000 + i));
        }
        assert_eq!((bucket.clean_since(7), bucket.marker(7)), (2, expired(0)));
        assert_eq!((bucket.clean_since(100), bucket.marker(100)), (66, expired(2_063)));
        assert_eq!(bucket.blind_since(), 2_000);
    }

    #[test]
    fn what_is_no_bucket_is_none() {
        let parse = |text: &'static str| Bucket::parse(Some(&Bytes::from_static(text.as_bytes())));
        assert!(
            parse(r#"{"value":{"id":1,"seq":1,"recent":[[2,3]],"more":0},"createdAt":1}"#)
                .is_some()
        );
        for text in [
            "",
            "x",
            r#"{"value":1,"createdAt":1}"#,
            r#"{"value":{"id":1,"seq":1},"createdAt":1}"#,
            r#"{"value":{"id":0,"seq":1,"recent":[]},"createdAt":1}"#,
            r#"{"value":{"id":1,"seq":0,"recent":[[2,3]]},"createdAt":1}"#,
            r#"{"value":{"id":1,"seq":-1,"recent":[]},"createdAt":1}"#,
            r#"{"value":{"id":1,"seq":1,"recent":[[2]]},"createdAt":1}"#,
            r#"{"value":{"id":1,"seq":1,"recent":[[2,3,4,5]]},"createdAt":1}"#,
            r#"{"value":{"id":1,"seq":9007199254740991,"recent":[]},"createdAt":1}"#,
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
        assert!(Bucket::parse(None).is_none());
    }
}
