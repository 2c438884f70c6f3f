//! Writes with a deadline, which the server compares with its own clock.
//!
//! A write that timed out may still be delayed in the network, and would replace a newer value when
//! it arrives. Ending its connection prevents that only once the server can be reached.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, RedisResult, Script};

use crate::error;

/// Stores a value unless the deadline has passed. The arguments are the deadline in µs since the
/// epoch, the value, and the options of SET.
const SET_IN_TIME: &str = "local now = redis.call('TIME') \
    if now[1] * 1000000 + now[2] > tonumber(ARGV[1]) then \
      return redis.error_reply('LATE the deadline of the write has passed') \
    end \
    return redis.call('SET', KEYS[1], ARGV[2], unpack(ARGV, 3))";

static SUM: LazyLock<String> = LazyLock::new(|| Script::new(SET_IN_TIME).get_hash().to_owned());

/// The server's clock, as this process knows it.
#[derive(Default)]
pub(crate) struct ServerClock {
    /// µs between this process's clock and the server's epoch; 0 if unknown.
    offset: AtomicI64,
}

/// µs since a fixed moment in the life of this process.
fn local() -> i64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    i64::try_from(START.elapsed().as_micros()).unwrap_or(i64::MAX)
}

impl ServerClock {
    /// Asks the server for its time, and loads the script.
    pub(crate) async fn measure(&self, conn: &mut MultiplexedConnection) -> RedisResult<()> {
        let before = local();
        let mut ask = Pipeline::with_capacity(2);
        ask.cmd("TIME").cmd("SCRIPT").arg("LOAD").arg(SET_IN_TIME).ignore();
        let ((seconds, micros),): ((i64, i64),) = ask.query_async(conn).await?;
        let there = seconds.saturating_mul(1_000_000).saturating_add(micros);
        let here = before + (local() - before) / 2;
        self.offset.store(there.saturating_sub(here), Relaxed);
        Ok(())
    }

    /// The server's time after this period.
    fn after(&self, limit: Duration) -> Option<i64> {
        let offset = self.offset.load(Relaxed);
        let limit = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX);
        (offset != 0).then(|| offset.saturating_add(local()).saturating_add(limit))
    }

    /// A SET that the server refuses after this period; `None` if the server's clock is unknown.
    pub(crate) fn set(&self, limit: Duration, key: &str, value: &[u8]) -> Option<Cmd> {
        let mut set = Cmd::with_capacity(10, key.len() + value.len() + 96);
        set.arg("EVALSHA").arg(SUM.as_str()).arg(1).arg(key).arg(self.after(limit)?).arg(value);
        Some(set)
    }
}

/// Whether a write came too late, or the script is not loaded: both need a check of the server at
/// once.
pub(crate) fn must_measure(error: &RedisError) -> bool {
    error::is_unknown_script(error) || error::is_late(error)
}
