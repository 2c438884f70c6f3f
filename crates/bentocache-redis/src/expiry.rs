//! Times to live in the server's units.

use std::time::Duration;

use bentocache_driver::kit::ttl_millis;

/// The argument of `PX`; `None` for no expiry. The server refuses 0.
pub(crate) fn px(ttl: Option<Duration>) -> Option<u64> {
    ttl_millis(ttl).map(|millis| millis.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_never_0() {
        assert_eq!(px(Some(Duration::ZERO)), Some(1));
        assert_eq!(px(Some(Duration::from_micros(1_001))), Some(2));
        assert_eq!(px(Some(Duration::MAX)), None);
        assert_eq!(px(None), None);
    }
}
