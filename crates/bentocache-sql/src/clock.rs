//! Time, in milliseconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bentocache_driver::kit::ttl_millis;

/// The current time of this machine.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The end of a row with this ttl.
pub(crate) fn end(ttl: Option<Duration>) -> Option<i64> {
    now().checked_add(i64::try_from(ttl_millis(ttl)?).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        assert_eq!(end(None), None);
        assert_eq!(end(Some(Duration::MAX)), None);
        assert_eq!(end(Some(Duration::from_secs(2_000 * 365 * 86_400))), None);
        let left = |ttl| end(Some(ttl)).unwrap() - now();
        assert!((-60_000..=0).contains(&left(Duration::ZERO)));
        assert!((-60_000..=1).contains(&left(Duration::from_nanos(1))));
        assert!((0..=100_000).contains(&left(Duration::from_secs(100))));
    }
}
