//! The distributed lock.

use std::sync::Arc;
use std::time::Duration;

use bentocache_core::{DriverError, LockDriver};
use redis::Value;

use crate::connect::{Connect, Given, Options};
use crate::l2::milliseconds;
use crate::line::{Call, Line};
use crate::script;

/// What makes a lock of a key. A cache key is text and this is not, so that the two never meet:
/// locks are neither listed nor cleared with the entries. It stands in the end, so that rights
/// that an administrator gave by prefix hold for locks too.
const SUFFIX: &[u8] = b":lock\xff";

/// The lock on Redis or one of its like: `SET NX PX` with a token, renewed and released by scripts
/// that compare it.
///
/// A lease lives on one server. When that fails over to a replica the lease may be lost, and
/// somebody else get it too early: as the [contract](LockDriver) says, it saves work and guards
/// nothing.
pub struct RedisLock {
    line: Line,
    options: Arc<Options>,
}

constructors!(RedisLock);
from_connections!(RedisLock);
prefix!(RedisLock);

impl RedisLock {
    fn open(connect: Connect) -> Self {
        Self { line: Line::new(connect), options: Arc::default() }
    }

    fn key(&self, key: &str) -> Vec<u8> {
        [self.options.prefix.as_bytes(), key.as_bytes(), SUFFIX].concat()
    }
}

impl LockDriver for RedisLock {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn acquire(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        // Not again after a loss: the first one may have had success, and nobody would have it.
        let call = Call::once("acquire a lock");
        let mut set = redis::cmd("SET");
        set.arg(self.key(key)).arg(token).arg("NX");
        if let Some(lease) = milliseconds(Some(lease)) {
            set.arg("PX").arg(lease);
        }
        match self.line.query(&self.options, call, &set).await? {
            Value::Okay => Ok(true),
            Value::Nil => Ok(false),
            _ => Err(self.line.place().odd(call.doing)),
        }
    }

    async fn renew(&self, key: &str, token: &str, lease: Duration) -> Result<bool, DriverError> {
        let lease = milliseconds(Some(lease)).map(|lease| lease.to_string()).unwrap_or_default();
        let arguments = [token.as_bytes(), lease.as_bytes()];
        script::RENEW
            .run(&self.line, &self.options, "renew a lock", &self.key(key), &arguments)
            .await
    }

    async fn release(&self, key: &str, token: &str) -> Result<bool, DriverError> {
        script::DELETE_IF
            .run(&self.line, &self.options, "release a lock", &self.key(key), &[token.as_bytes()])
            .await
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.line.close();
        Ok(())
    }
}
