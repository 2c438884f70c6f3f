//! Pauses between attempts.

use std::future::Future;
use std::time::Duration;

use tokio::time::sleep;

use crate::DriverError;

/// Exponential backoff with full jitter.
///
/// The limit of a pause doubles with each failure. The pause itself is any part of its limit, at random:
/// processes that fail at the same time must not come back at the same time. [`jitter`](Self::jitter)
/// makes a smaller part of it random.
///
/// ```
/// use std::time::Duration;
///
/// use bentocache_driver::kit::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// assert!(backoff.next_pause() <= Duration::from_millis(50));
/// assert!(backoff.next_pause() <= Duration::from_millis(100));
/// assert_eq!(backoff.failures(), 2);
/// backoff.reset();
/// assert!(backoff.next_pause() <= Duration::from_millis(50));
/// ```
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    jitter: f64,
    failures: u32,
}

impl Backoff {
    /// Pauses of at most `first`, later of at most `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, jitter: 1.0, failures: 0 }
    }

    /// Which part of a limit is random, up to 1.0, the default, for all of it. With 0.2, pauses take at
    /// least 0.8 of their limits, as for an interval that a user has chosen.
    #[must_use]
    pub const fn jitter(mut self, part: f64) -> Self {
        self.jitter = part.clamp(0.0, 1.0);
        self
    }

    /// How many pauses there were since the last reset.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts again with the shortest pauses: an attempt has succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after a failure that so many came before, for a caller that counts by itself.
    pub fn pause_after(&self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failures));
        let limit = doubled.min(self.longest);
        let part = 1.0 - self.jitter * fastrand::f64();
        Duration::try_from_secs_f64(limit.as_secs_f64() * part).unwrap_or(limit)
    }

    /// Makes a call, and repeats it with pauses while its error is transient, until there were this
    /// many attempts. Needs a Tokio runtime.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use bentocache_driver::kit::Backoff;
    /// use bentocache_driver::{DriverError, ErrorKind};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(10));
    /// let mut answers = vec![Ok(7), Err(DriverError::new(ErrorKind::Unavailable, "busy"))];
    /// let answer = backoff.retry(3, || std::future::ready(answers.pop().unwrap())).await;
    /// assert_eq!(answer.unwrap(), 7);
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of the last attempt.
    pub async fn retry<T, F>(
        mut self,
        attempts: u32,
        mut call: impl FnMut() -> F,
    ) -> Result<T, DriverError>
    where
        F: Future<Output = Result<T, DriverError>>,
    {
        loop {
            match call().await {
                Err(error)
                    if error.is_transient() && self.failures.saturating_add(1) < attempts =>
                {
                    self.pause().await;
                }
                done => return done,
            }
        }
    }

    /// Waits after one more failure, which counts now, even if something else ends the wait before it
    /// has begun. Needs a Tokio runtime.
    pub fn pause(&mut self) -> impl Future<Output = ()> + use<> {
        sleep(self.next_pause())
    }
}

impl Default for Backoff {
    /// Pauses between attempts to connect: of at most 50 milliseconds, later of at most one second.
    fn default() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::ErrorKind;

    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);
    const MANY: usize = 1_000;

    /// The longest of many pauses, which comes close to the limit.
    fn longest_after(failures: u32) -> Duration {
        let backoff = Backoff::default();
        (0..MANY).map(|_| backoff.pause_after(failures)).max().unwrap()
    }

    #[test]
    fn the_limit_doubles_up_to_the_longest_pause() {
        let limits = [1, 2, 4, 8, 16, 20, 20, 20].map(|times| FIRST * times);
        for (failures, limit) in (0..).zip(limits) {
            let longest = longest_after(failures);
            assert!(longest <= limit, "{failures}: {longest:?}");
            assert!(longest >= limit.mul_f64(0.9), "{failures}: {longest:?}");
        }
        assert!(longest_after(u32::MAX) <= LONGEST);
    }

    #[test]
    fn pauses_are_spread_over_the_whole_of_their_limit() {
        let backoff = Backoff::default();
        let mut parts = [0; 4];
        for _ in 0..MANY {
            let part = backoff.pause_after(0).as_secs_f64() / FIRST.as_secs_f64() * 4.0;
            parts[(part as usize).min(3)] += 1;
        }
        assert!(parts.iter().all(|count| *count > MANY / 8), "{parts:?}");
    }

    #[test]
    fn each_pause_counts_until_a_reset() {
        let mut backoff = Backoff { failures: u32::MAX - 1, ..Backoff::default() };
        backoff.next_pause();
        backoff.next_pause();
        assert_eq!(backoff.failures(), u32::MAX);
        backoff.reset();
        assert_eq!(backoff.failures(), 0);
        assert!(backoff.next_pause() <= FIRST);
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn a_smaller_jitter_leaves_the_rest_of_the_pause() {
        let backoff = Backoff::new(FIRST, LONGEST).jitter(0.2);
        for (failures, limit) in [(0, FIRST), (1, FIRST * 2), (5, LONGEST), (50, LONGEST)] {
            let pauses: Vec<_> = (0..MANY).map(|_| backoff.pause_after(failures)).collect();
            let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
            assert!((limit.mul_f64(0.799)..limit.mul_f64(0.85)).contains(least), "{least:?}");
            assert!((limit.mul_f64(0.95)..=limit).contains(most), "{most:?}");
        }
        assert_eq!(Backoff::new(FIRST, LONGEST).jitter(-1.0).pause_after(0), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_never_begins_counts() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            tokio::select! {
                biased;
                () = async {} => {}
                () = backoff.pause() => {}
            }
        }
        assert_eq!(backoff.failures(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_repeats_what_may_pass_and_nothing_else() {
        for (kind, attempts, made) in [
            (ErrorKind::Unavailable, 4, 4),
            (ErrorKind::Unavailable, 1, 1),
            (ErrorKind::Unavailable, 0, 1),
            (ErrorKind::TooLarge, 4, 1),
        ] {
            let mut calls = 0;
            let call = || {
                calls += 1;
                std::future::ready(Err::<(), _>(DriverError::new(kind, "no")))
            };
            let result = Backoff::default().retry(attempts, call).await;
            assert_eq!((result.unwrap_err().kind(), calls), (kind, made));
        }
        let mut answers = vec![Ok(1), Err(DriverError::new(ErrorKind::Timeout, "late"))];
        let answer = Backoff::default().retry(3, || std::future::ready(answers.pop().unwrap()));
        assert_eq!(answer.await.unwrap(), 1);
    }

    #[test]
    fn extreme_limits_are_no_panic() {
        for failures in [0, 1, 64, u32::MAX] {
            assert_eq!(Backoff::new(Duration::ZERO, LONGEST).pause_after(failures), Duration::ZERO);
            let endless = Backoff::new(Duration::MAX, Duration::MAX);
            endless.pause_after(failures);
            assert_eq!(endless.jitter(0.0).pause_after(failures), Duration::MAX);
        }
        assert!(Backoff::new(LONGEST, FIRST).pause_after(0) <= FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits() {
        let mut backoff = Backoff::default();
        let start = Instant::now();
        for _ in 0..20 {
            backoff.pause().await;
        }
        // At most 50, 100, 200, 400, 800 ms and fifteen times a second. A timer rounds up.
        let waited = start.elapsed();
        assert!(waited > LONGEST && waited <= Duration::from_millis(16_550 + 20), "{waited:?}");
        assert_eq!(backoff.failures(), 20);
    }
}
