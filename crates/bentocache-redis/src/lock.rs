//! The distributed lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bentocache_driver::kit::Backoff;
use bentocache_driver::{DriverError, ErrorKind, LockDriver};
use redis::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connect::{Connect, Given};
use crate::expiry::px;
use crate::line::{Call, Line, running_runtime};
use crate::{error, script};

/// The time limit for one attempt to release a lease, and the pauses between attempts.
const ATTEMPT: Duration = Duration::from_millis(500);
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
/// The assumed lease of a token that this driver has not seen.
const UNKNOWN_LEASE: Duration = Duration::from_secs(30);
/// Above this number of remembered leases, ended ones are dropped.
const MANY: usize = 1_000;

/// The suffix that turns a key into a lock. A cache key is valid UTF-8 and this is not, so they
/// never collide: a listing or a clear does not touch locks. It is a suffix so that rights by
/// prefix also apply to locks.
const SUFFIX: &[u8] = b":lock\xff";

/// The lock on Redis and compatible servers: `SET NX PX` with a token; scripts that compare the
/// token renew and release it.
///
/// A lease is stored on one server. A failover to a replica may lose it, and another owner may get
/// it too early: the lock only saves work and guarantees nothing, as the [contract](LockDriver)
/// says.
///
/// A failed release is repeated in the background until the lease ends, so that a broken connection
/// does not make others wait for a finished owner.
pub struct RedisLock {
    line: Arc<Line>,
    /// The ends of this driver's leases, by token.
    leases: Mutex<HashMap<Box<str>, Instant>>,
    /// The connection on which the test lease was taken, renewed and released.
    tested: AtomicU64,
}

constructors!(RedisLock);
from_connections!(RedisLock);
prefix!(RedisLock);

impl RedisLock {
    fn open(connect: Connect) -> Self {
        let line = Arc::new(Line::new(connect));
        let (leases, tested) = (Mutex::default(), AtomicU64::new(u64::MAX));
        Self { line, leases, tested }
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Box<str>, Instant>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, token: &str, lease: Duration) {
        let now = Instant::now();
        let end = now.checked_add(lease).unwrap_or_else(|| now + UNKNOWN_LEASE);
        let mut leases = self.leases();
        if leases.len() > MANY {
            leases.retain(|_, end| *end > now);
        }
        leases.insert(token.into(), end);
    }

    /// Takes, renews and releases a test lease once per connection: a user who may take leases but
    /// not release them would block every key.
    async fn test(&self, key: &[u8], token: &str) -> Result<(), DriverError> {
        const DOING: &str = "test the lock";
        let id = self.line.connected(DOING).await?;
        if self.tested.load(Relaxed) == id {
            return Ok(());
        }
        let key = [key, token.as_bytes()].concat();
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(token).arg("NX").arg("PX").arg(1_000);
        self.line.query(Call::once(DOING), &set).await?;
        let renewal = [token.as_bytes(), b"1000"];
        script::RENEW.run(&self.line, "renew a lock", &key, &renewal).await?;
        let release = [token.as_bytes()];
        script::DELETE_IF.run(&self.line, "release a lock", &key, &release).await?;
        self.tested.store(id, Relaxed);
        Ok(())
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.line.options().prefix.as_bytes(), key.as_bytes(), SUFFIX].concat()
    }
}

impl LockDriver for RedisLock {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn acquire(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        // Not repeated after a loss: the first attempt may have taken the lease, and nobody would
        // know its token.
        let call = Call::once("acquire a lock");
        let key = self.key(key);
        self.test(&key, token).await?;
        let mut set = redis::cmd("SET");
        set.arg(key).arg(token).arg("NX");
        if let Some(lease) = px(Some(lease)) {
            set.arg("PX").arg(lease);
        }
        // Also if the answer is lost or nobody waits for it: the lease may have been taken.
        self.remember(token, lease);
        match self.line.query(call, &set).await? {
            Value::Okay => Ok(true),
            Value::Nil => {
                self.leases().remove(token);
                Ok(false)
            }
            _ => Err(self.line.place().odd(call.doing)),
        }
    }

    async fn renew(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        self.remember(token, lease);
        let lease = px(Some(lease)).map(|lease| lease.to_string()).unwrap_or_default();
        let arguments = [token.as_bytes(), lease.as_bytes()];
        script::RENEW.run(&self.line, "renew a lock", &self.key(key), &arguments).await
    }

    async fn release(&self, key: &str, token: &str) -> Result<bool, DriverError> {
        running_runtime()?;
        let end = self.leases().remove(token);
        let release = Release {
            line: Arc::clone(&self.line),
            key: self.key(key),
            token: token.to_owned(),
            end: end.unwrap_or_else(|| Instant::now() + UNKNOWN_LEASE),
        };
        let (tell, outcome) = oneshot::channel();
        // In a task, because the caller may stop waiting.
        tokio::spawn(release.repeat(tell));
        outcome.await.unwrap_or_else(|_| Err(error::runtime_ended()))
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.line.close();
        Ok(())
    }
}

/// The release of one lease.
struct Release {
    line: Arc<Line>,
    key: Vec<u8>,
    token: String,
    end: Instant,
}

impl Release {
    /// Tries until it succeeds or the lease ends; reports the outcome of the first attempt. A
    /// release compares the token, so it can be repeated.
    async fn repeat(self, tell: oneshot::Sender<Result<bool, DriverError>>) {
        let mut tell = Some(tell);
        let mut backoff = PAUSES;
        loop {
            let outcome = self.attempt().await;
            let is_final = match &outcome {
                Ok(_) => true,
                Err(error) => error.kind() == ErrorKind::Closed || Instant::now() >= self.end,
            };
            if let Some(tell) = tell.take() {
                // The caller may have stopped waiting.
                let _ = tell.send(outcome);
            }
            if is_final {
                return;
            }
            backoff.pause().await;
        }
    }

    async fn attempt(&self) -> Result<bool, DriverError> {
        const DOING: &str = "release a lock";
        let arguments = [self.token.as_bytes()];
        let release = script::DELETE_IF.run(&self.line, DOING, &self.key, &arguments);
        match timeout(ATTEMPT, release).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.line.place().late(DOING, ATTEMPT)),
        }
    }
}
