//! Times to live as servers take them.

use std::time::Duration;

/// Backends have no later dates, some of them earlier than others, and nobody sees the difference.
const FOREVER: u128 = 1_000 * 365 * 24 * 60 * 60 * 1_000;

/// A time to live in whole milliseconds, rounded up so that nothing expires early. `None`, no expiry,
/// beyond a thousand years.
///
/// ```
/// use std::time::Duration;
///
/// use bentocache_driver::kit::ttl_millis;
///
/// assert_eq!(ttl_millis(Some(Duration::from_micros(1_001))), Some(2));
/// assert_eq!(ttl_millis(Some(Duration::MAX)), None);
/// assert_eq!(ttl_millis(None), None);
/// ```
pub fn ttl_millis(ttl: Option<Duration>) -> Option<u64> {
    let millis = ttl?.as_nanos().div_ceil(1_000_000);
    u64::try_from(millis).ok().filter(|_| millis <= FOREVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up_to_milliseconds() {
        let of = |ttl| ttl_millis(Some(ttl));
        assert_eq!(ttl_millis(None), None);
        assert_eq!(of(Duration::ZERO), Some(0));
        assert_eq!(of(Duration::from_nanos(1)), Some(1));
        assert_eq!(of(Duration::from_millis(2)), Some(2));
        assert_eq!(of(Duration::from_nanos(2_000_001)), Some(3));
    }

    #[test]
    fn a_thousand_years_are_the_longest() {
        let longest = Duration::from_secs(1_000 * 365 * 86_400);
        assert_eq!(ttl_millis(Some(longest)), Some(31_536_000_000_000));
        assert_eq!(ttl_millis(Some(longest + Duration::from_nanos(1))), None);
        assert_eq!(ttl_millis(Some(Duration::MAX)), None);
    }
}
