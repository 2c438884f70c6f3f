//! Compare-and-act scripts, which are atomic.

use std::sync::LazyLock;

use bentocache_driver::DriverError;
use redis::{Cmd, Script, Value};

use crate::error;
use crate::line::{Call, Line};

/// A script for one key, and its hash, by which the server caches it.
pub(crate) struct Step {
    code: &'static str,
    sum: LazyLock<String>,
}

macro_rules! step {
    ($code:literal) => {
        Step { code: $code, sum: LazyLock::new(|| Script::new($code).get_hash().to_owned()) }
    };
}

/// Replaces the value if it is the expected one; the expiry stays.
pub(crate) static UPDATE: Step = step!(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then \
       redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL') return 1 \
     end return 0"
);

/// Deletes the key if it has the expected value.
pub(crate) static DELETE_IF: Step = step!(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
);

/// Extends the expiry if the key has the expected value; without milliseconds, removes it.
pub(crate) static RENEW: Step = step!(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then \
       if ARGV[2] == '' then redis.call('PERSIST', KEYS[1]) return 1 end \
       return redis.call('PEXPIRE', KEYS[1], ARGV[2]) \
     end return 0"
);

impl Step {
    /// Whether the script acted. A key of another type does not have the expected value.
    pub(crate) async fn run(
        &self,
        line: &Line,
        doing: &'static str,
        key: &[u8],
        arguments: &[&[u8]],
    ) -> Result<bool, DriverError> {
        let call = Call::once(doing);
        let known = self.command("EVALSHA", &self.sum, key, arguments);
        let mut answer = line.try_query(call, &known).await?;
        if answer.as_ref().is_err_and(error::is_unknown_script) {
            let whole = self.command("EVAL", self.code, key, arguments);
            answer = line.try_query(call, &whole).await?;
        }
        match answer {
            Ok(Value::Int(done)) => Ok(done > 0),
            Ok(_) => Err(line.place().odd(doing)),
            Err(wrong) if error::is_foreign(&wrong) => Ok(false),
            Err(wrong) => Err(line.place().failed(doing, &wrong)),
        }
    }

    fn command(&self, verb: &str, script: &str, key: &[u8], arguments: &[&[u8]]) -> Cmd {
        let mut cmd = redis::cmd(verb);
        cmd.arg(script).arg(1).arg(key);
        for argument in arguments {
            cmd.arg(*argument);
        }
        cmd
    }
}
