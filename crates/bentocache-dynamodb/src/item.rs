//! An entry as an item, in the form of npm `bentocache`: `key`, `value` and `ttl`.
//!
//! DynamoDB removes items by `ttl`, in whole seconds, so it is rounded up. The end in milliseconds
//! is in `expiresAt`, which Node ignores, and which is missing when Node has written the item.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bentocache_driver::DriverError;
use bentocache_driver::kit::ttl_millis;
use bytes::Bytes;

use crate::error;

pub(crate) const KEY: &str = "key";
pub(crate) const VALUE: &str = "value";
pub(crate) const TTL: &str = "ttl";
pub(crate) const END: &str = "expiresAt";

/// The longest partition key of DynamoDB, in bytes.
pub(crate) const MAX_KEY: usize = 2_048;
/// An item has at most 400 KiB, with the longest key, the names and the numbers.
pub(crate) const MAX_VALUE: usize = 396 << 10;

pub(crate) type Item = HashMap<String, AttributeValue>;

/// The condition that an item has not expired, with `#e` and `#t` for the two ends. `:ms` and `:s`
/// are the current time.
pub(crate) const ALIVE: &str =
    "(#e > :ms OR (attribute_not_exists(#e) AND (attribute_not_exists(#t) OR #t > :s)))";

/// The current time, in ms since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The values of [`ALIVE`]'s placeholders.
pub(crate) fn times(now: u64) -> [(&'static str, AttributeValue); 2] {
    let seconds = format!("{}.{:03}", now / 1_000, now % 1_000);
    [(":ms", AttributeValue::N(now.to_string())), (":s", AttributeValue::N(seconds))]
}

/// Whether a table can contain this key.
pub(crate) fn is_possible(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY
}

/// Refuses keys and values that a table cannot contain.
pub(crate) fn check(key: &str, value: &[u8]) -> Result<(), DriverError> {
    if key.is_empty() {
        return Err(error::refused("DynamoDB has no empty key; set a prefix for the store"));
    }
    if key.len() > MAX_KEY {
        return Err(error::too_large("key", key.len(), MAX_KEY));
    }
    if value.len() > MAX_VALUE {
        return Err(error::too_large("value", value.len(), MAX_VALUE));
    }
    Ok(())
}

/// The key attribute of an item.
pub(crate) fn key(key: &str) -> Item {
    HashMap::from([(KEY.to_owned(), AttributeValue::S(key.to_owned()))])
}

/// The value attribute of an item: a string if it is text, as Node expects.
pub(crate) fn value(bytes: &[u8]) -> AttributeValue {
    match std::str::from_utf8(bytes) {
        Ok(text) => AttributeValue::S(text.to_owned()),
        Err(_) => AttributeValue::B(Blob::new(bytes)),
    }
}

/// The whole item.
pub(crate) fn write(name: &str, bytes: &[u8], ttl: Option<Duration>, now: u64) -> Item {
    let mut item = key(name);
    item.insert(VALUE.to_owned(), value(bytes));
    if let Some((end, seconds)) = ends(ttl, now) {
        item.insert(END.to_owned(), end);
        item.insert(TTL.to_owned(), seconds);
    }
    item
}

/// The end of an item in milliseconds, and in seconds as DynamoDB reads it; `None` for no end.
pub(crate) fn ends(ttl: Option<Duration>, now: u64) -> Option<(AttributeValue, AttributeValue)> {
    let end = now.saturating_add(ttl_millis(ttl)?);
    let number = |number: u64| AttributeValue::N(number.to_string());
    Some((number(end), number(end.div_ceil(1_000))))
}

/// The value of an item that has not expired. An item in another form does not belong to a cache.
pub(crate) fn read(mut item: Item, now: u64) -> Option<Bytes> {
    if !is_alive(&item, now) {
        return None;
    }
    match item.remove(VALUE)? {
        AttributeValue::S(text) => Some(text.into()),
        AttributeValue::B(bytes) => Some(bytes.into_inner().into()),
        _ => None,
    }
}

/// Whether an item has not expired.
pub(crate) fn is_alive(item: &Item, now: u64) -> bool {
    let number = |attribute: &AttributeValue| attribute.as_n().ok()?.parse::<f64>().ok();
    let end = match (item.get(END), item.get(TTL)) {
        (Some(end), _) => number(end),
        (None, Some(ttl)) => number(ttl).map(|seconds| seconds * 1_000.0),
        (None, None) => return true,
    };
    end.is_some_and(|end| end > now as f64)
}

#[cfg(test)]
mod tests {
    use bentocache_driver::ErrorKind;

    use super::*;

    /// An item that lives longer has no end.
    const LONGEST: Duration = Duration::from_secs(1_000 * 365 * 24 * 60 * 60);

    const NOW: u64 = 1_700_000_000_123;

    fn number(item: &Item, name: &str) -> Option<String> {
        item.get(name).map(|value| value.as_n().unwrap().clone())
    }

    #[test]
    fn ends_are_rounded_up() {
        for (ttl, end, seconds) in [
            (Duration::ZERO, "1700000000123", "1700000001"),
            (Duration::from_nanos(1), "1700000000124", "1700000001"),
            (Duration::from_millis(877), "1700000001000", "1700000001"),
            (Duration::from_micros(877_001), "1700000001001", "1700000002"),
        ] {
            let item = write("k", b"v", Some(ttl), NOW);
            assert_eq!(number(&item, END).as_deref(), Some(end), "{ttl:?}");
            assert_eq!(number(&item, TTL).as_deref(), Some(seconds), "{ttl:?}");
        }
        for ttl in [None, Some(Duration::MAX), Some(LONGEST + Duration::from_secs(1))] {
            let item = write("k", b"v", ttl, NOW);
            assert_eq!(item.len(), 2, "{ttl:?}");
            assert!(read(item, u64::MAX).is_some());
        }
    }

    #[test]
    fn what_has_ended_is_not_read() {
        let item = write("k", b"v", Some(Duration::from_millis(2)), NOW);
        assert!(read(item.clone(), NOW + 1).is_some());
        assert!(read(item, NOW + 2).is_none());
        // The form of Node.
        let mut item = key("k");
        item.insert(VALUE.to_owned(), AttributeValue::S("v".to_owned()));
        assert!(read(item.clone(), NOW).is_some());
        item.insert(TTL.to_owned(), AttributeValue::N("1700000001".to_owned()));
        assert!(read(item.clone(), NOW).is_some());
        assert!(read(item, 1_700_000_001_000).is_none());
    }

    #[test]
    fn foreign_items_are_nobodys() {
        let with = |name: &str, value| {
            let mut item = write("k", b"v", None, NOW);
            item.insert(name.to_owned(), value);
            item
        };
        assert!(read(key("k"), NOW).is_none());
        assert!(read(with(VALUE, AttributeValue::Bool(true)), NOW).is_none());
        assert!(read(with(TTL, AttributeValue::S("soon".to_owned())), NOW).is_none());
        assert!(read(with(END, AttributeValue::N("NaN".to_owned())), NOW).is_none());
    }

    #[test]
    fn values_keep_their_bytes() {
        for bytes in [&b""[..], b"{}", b"\xb3\x01\xff", "\u{feff}\0é".as_bytes()] {
            let item = write("k", bytes, None, NOW);
            assert_eq!(read(item, NOW).as_deref(), Some(bytes));
        }
        assert!(value(b"{}").is_s() && value(b"\xb3").is_b());
    }

    #[test]
    fn the_largest_item_fits() {
        let largest = write(&"k".repeat(MAX_KEY), &[b'v'; MAX_VALUE], Some(LONGEST), NOW);
        let size = |value: &AttributeValue| match value {
            AttributeValue::S(text) | AttributeValue::N(text) => text.len(),
            _ => unreachable!(),
        };
        let total: usize = largest.iter().map(|(name, value)| name.len() + size(value)).sum();
        assert!(total <= 400 << 10, "{total}");
        assert_eq!(check("", b"").unwrap_err().kind(), ErrorKind::Refused);
        assert!(check("k", &[0; MAX_VALUE]).is_ok());
        assert_eq!(check("k", &[0; MAX_VALUE + 1]).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
