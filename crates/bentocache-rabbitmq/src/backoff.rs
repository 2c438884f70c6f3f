//! Pauses between attempts.

use std::time::Duration;

/// Pauses that grow, and are jittered so that processes do not come all at once.
#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        let longest = (Self::FIRST * 2_u32.pow(self.failures.min(6))).min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second() {
        let mut backoff = Backoff::default();
        assert!(backoff.next() <= Backoff::FIRST);
        for _ in 0..100 {
            backoff.next();
        }
        let pause = backoff.next();
        assert!(pause >= Backoff::LONGEST / 2 && pause <= Backoff::LONGEST, "{pause:?}");
    }
}
