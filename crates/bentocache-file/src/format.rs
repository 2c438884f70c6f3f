//! The bytes of an entry's file; the crate's page has the table.

use std::time::{Duration, SystemTime};

/// Bytes before the key.
pub(crate) const HEADER: usize = 36;

/// The longest key. It limits how much of a hostile file is read before its checksum is verified.
pub(crate) const MAX_KEY: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"bentofs\x01";

/// The end of an entry, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expiry(u64);

impl Expiry {
    const NEVER: Self = Self(u64::MAX);

    /// Rounds up, so that no entry ends early.
    pub(crate) fn after(ttl: Option<Duration>, now: Duration) -> Self {
        let Some(ttl) = ttl else { return Self::NEVER };
        let millis = now.saturating_add(ttl).as_nanos().div_ceil(1_000_000);
        Self(u64::try_from(millis).unwrap_or(u64::MAX).min(u64::MAX - 1))
    }

    pub(crate) fn passed(self, now: Duration) -> bool {
        self != Self::NEVER && now.as_millis() >= u128::from(self.0)
    }
}

/// The current time for expiry: the wall clock, which the processes share.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The header of an entry's file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    pub(crate) key: &'a str,
    pub(crate) expiry: Expiry,
    value_sum: u32,
}

impl Head<'_> {
    pub(crate) fn value_at(&self) -> usize {
        HEADER + self.key.len()
    }

    pub(crate) fn fits(&self, value: &[u8]) -> bool {
        crc32fast::hash(value) == self.value_sum
    }
}

/// The bytes before the value. The caller has checked that the key has at most [`MAX_KEY`] bytes.
pub(crate) fn encode(key: &str, value: &[u8], expiry: Expiry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + key.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&expiry.0.to_le_bytes());
    bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
    let sum = head_sum(&bytes, key.as_bytes());
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(key.as_bytes());
    bytes
}

/// The number of bytes that [`decode`] needs, from the first [`HEADER`] bytes; `None` if the file
/// is foreign.
pub(crate) fn head_len(bytes: &[u8]) -> Option<usize> {
    let key_len = u32::from_le_bytes(field(bytes, 24)?) as usize;
    (field(bytes, 0)? == MAGIC && key_len <= MAX_KEY).then_some(HEADER + key_len)
}

/// Decodes the bytes before the value, in a file of this length; `None` if any part is invalid.
pub(crate) fn decode(bytes: &[u8], file_len: u64) -> Option<Head<'_>> {
    let head_len = head_len(bytes)?;
    let key = bytes.get(HEADER..head_len)?;
    let expiry = Expiry(u64::from_le_bytes(field(bytes, 8)?));
    let value_len = u64::from_le_bytes(field(bytes, 16)?);
    let value_sum = u32::from_le_bytes(field(bytes, 28)?);
    let sum = u32::from_le_bytes(field(bytes, 32)?);
    let intact = sum == head_sum(bytes.get(..32)?, key)
        && value_len.checked_add(head_len as u64) == Some(file_len);
    intact.then_some(())?;
    Some(Head { key: std::str::from_utf8(key).ok()?, expiry, value_sum })
}

fn head_sum(fixed: &[u8], key: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(fixed);
    sum.update(key);
    sum.finalize()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(key: &str, value: &[u8], expiry: Expiry) -> Vec<u8> {
        [&encode(key, value, expiry)[..], value].concat()
    }

    /// The steps of a reader.
    fn read(bytes: &[u8]) -> Option<(&str, &[u8], Expiry)> {
        let head = decode(bytes, bytes.len() as u64)?;
        let value = &bytes[head.value_at()..];
        head.fits(value).then_some((head.key, value, head.expiry))
    }

    proptest! {
        #[test]
        fn round_trip(
            key in any::<String>(),
            value in any::<Vec<u8>>(),
            expiry in any::<u64>().prop_map(Expiry),
        ) {
            let bytes = whole(&key, &value, expiry);
            prop_assert_eq!(head_len(&bytes), Some(HEADER + key.len()));
            prop_assert_eq!(read(&bytes), Some((&*key, &*value, expiry)));
        }

        #[test]
        fn a_flipped_bit_is_found(key in ".{0,40}", value in any::<Vec<u8>>(), bit in any::<usize>()) {
            let mut bytes = whole(&key, &value, Expiry(5));
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(read(&bytes), None);
        }

        #[test]
        fn a_wrong_length_is_found(value in any::<Vec<u8>>(), cut in any::<usize>()) {
            let mut bytes = whole("key", &value, Expiry(5));
            bytes.push(0);
            prop_assert_eq!(read(&bytes), None);
            bytes.truncate(cut % (bytes.len() - 1));
            prop_assert_eq!(read(&bytes), None);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(
            mut bytes in any::<Vec<u8>>(),
            len in any::<u64>(),
            ours in any::<bool>(),
        ) {
            if ours && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&MAGIC);
            }
            prop_assert_eq!(decode(&bytes, len), None);
        }
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let bytes = whole("k", b"val", Expiry(0x0102));
        assert_eq!(&bytes[..8], b"bentofs\x01");
        assert_eq!(bytes[8..16], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..28], [1, 0, 0, 0]);
        assert_eq!(bytes[28..32], crc32fast::hash(b"val").to_le_bytes());
        assert_eq!(bytes[32..36], crc32fast::hash(&[&bytes[..32], b"k"].concat()).to_le_bytes());
        assert_eq!(&bytes[36..], b"kval");
    }

    #[test]
    fn an_expiry_is_neither_early_nor_more_than_a_millisecond_late() {
        let now = Duration::from_micros(10_900);
        let expiry = Expiry::after(Some(Duration::from_micros(200)), now);
        assert_eq!(expiry, Expiry(12));
        assert!(!expiry.passed(Duration::from_micros(11_999)));
        assert!(expiry.passed(Duration::from_micros(12_000)));
    }

    #[test]
    fn any_ttl_can_be_stored() {
        let now = now();
        assert!(!Expiry::after(None, now).passed(Duration::MAX));
        let longest = Expiry::after(Some(Duration::MAX), now);
        assert_ne!(longest, Expiry::NEVER);
        assert!(!longest.passed(now));
        assert!(Expiry::after(Some(Duration::ZERO), Duration::ZERO).passed(Duration::ZERO));
    }
}
