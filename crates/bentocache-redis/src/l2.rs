//! L2.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bentocache_driver::{
    ByteSize, Capabilities, DriverError, ErrorKind, Finding, Gather, KeyStream, L2Driver,
    LinkStream, TimeSpan, Write,
};
use bytes::Bytes;
use redis::{Cmd, FromRedisValue, Value};

use crate::connect::{Connect, Given};
use crate::error::Place;
use crate::expiry::px;
use crate::line::{Call, Line};
use crate::tracking::RedisTracking;
use crate::{error, scan, script};

/// The longest string that a server stores by default.
const LONGEST: usize = 512 << 20;
/// The lowest value of that limit in a server's configuration.
const SMALLEST_LIMIT: usize = 1 << 20;
/// The most keys in one command.
const MOST_KEYS: usize = 1_000;
/// Larger values are not batched: a batch is in memory at once.
const LARGE: usize = 16 << 10;

/// L2 on Redis and compatible servers. The [crate's page](crate) lists its guarantees.
///
/// It has one connection, which the first call opens. A task reopens it after a loss, until the
/// driver is dropped.
pub struct Redis {
    line: Arc<Line>,
    /// Batches of reads by key, and of single SET commands.
    reads: Gather<String, Option<Bytes>>,
    writes: Gather<Cmd, ()>,
    max_value: usize,
    /// The largest request that the server accepts, as far as known.
    server_takes: AtomicUsize,
}

constructors!(Redis);
from_connections!(Redis);
prefix!(Redis);

impl Redis {
    pub(crate) fn open(connect: Connect) -> Self {
        let line = Arc::new(Line::new(connect));
        Self {
            line,
            reads: Gather::new(|value| value.as_ref().map_or(0, Bytes::len)),
            writes: Gather::new(|()| 0),
            max_value: LONGEST,
            server_takes: AtomicUsize::new(usize::MAX),
        }
    }

    /// The largest value to send: a number of bytes or a text such as `"10mb"`. Default and
    /// maximum: 512 MiB. Lower it if the server accepts less: its `proto-max-bulk-len`, or the
    /// limit of a hosted service. After an invalid text, the first call fails with [`ErrorKind::Config`].
    #[must_use]
    pub fn max_value(mut self, size: impl Into<ByteSize>) -> Self {
        let bytes = size.into().bytes("max_value");
        let bytes = bytes.map(|bytes| usize::try_from(bytes).unwrap_or(LONGEST).min(LONGEST));
        let mut max_value = self.max_value;
        self.options_mut().errors.set(&mut max_value, bytes);
        self.max_value = max_value;
        self
    }

    /// The server refuses a write that arrives later than this after the start of the call, such as
    /// `"1s"`. Default: off. Set it to the store's `l2_timeout`.
    ///
    /// A write that timed out may be delayed in the network and replace a newer value when it
    /// arrives. The driver ends the connection of such a write as soon as it reaches the server
    /// again; until then, and with several servers or routes, only a deadline helps. Each write is
    /// then a script that compares the deadline with the server's clock, which the driver reads
    /// once per second. This costs the server some time; see the guide (`docs/redis.md`). It needs
    /// the rights to `EVALSHA`, `SCRIPT LOAD` and `TIME`, works with one server or sentinels, and
    /// cannot be combined with [`tracking`](Self::tracking).
    #[must_use]
    pub fn write_deadline(mut self, limit: impl Into<TimeSpan>) -> Self {
        let limit = limit.into().limit("write_deadline");
        let options = self.options_mut();
        options.errors.set(&mut options.write_deadline, limit);
        self
    }

    /// A bus over which the server reports the changes of all other clients, `redis-cli` included,
    /// but not values that this driver sets, pulls or deletes. (It does report an update, because
    /// an update is a script.) It uses the settings made so far: call the setters first. Use it
    /// with the same store, and only with that one. It needs Redis 6 or a compatible server, and
    /// works neither with a cluster nor with a connection of the application.
    ///
    /// ```no_run
    /// use bentocache::{BentoCache, Memory, Store};
    /// use bentocache::redis::Redis;
    ///
    /// # async fn build() -> bentocache::Result<()> {
    /// let redis = Redis::new("redis://127.0.0.1").prefix("app");
    /// let tracking = redis.tracking();
    /// let store = Store::new().l1(Memory::new()).l2(redis).bus(tracking);
    /// let bento = BentoCache::builder().store("main", store).build().await?;
    /// # Ok(()) }
    /// ```
    pub fn tracking(&self) -> RedisTracking {
        self.line.track();
        RedisTracking::beside(&self.line)
    }

    /// A bus over which the server reports every change, for a process that only reads: it cannot
    /// tell who wrote. A store that writes and uses it would treat the report about its own value
    /// as another process's change, and remove the value; use [`tracking`](Self::tracking) there.
    ///
    /// It uses the settings made so far, and also works with a cluster. It needs Redis 6 or a
    /// compatible server, and does not work with a connection of the application.
    pub fn read_only_tracking(&self) -> RedisTracking {
        RedisTracking::read_only(&self.line)
    }

    fn key(&self, key: &str) -> String {
        [&self.line.options().prefix, key].concat()
    }

    fn keys_of(&self, keys: &[&str]) -> Vec<String> {
        keys.iter().map(|key| self.key(key)).collect()
    }

    async fn query(&self, call: Call, cmd: &Cmd) -> Result<Value, DriverError> {
        self.line.query(call, cmd).await
    }

    /// Whether the server answers with 1, and not with 0.
    async fn is_one(&self, call: Call, cmd: &Cmd) -> Result<bool, DriverError> {
        match self.query(call, cmd).await? {
            Value::Int(count @ 0..=1) => Ok(count == 1),
            _ => Err(self.line.place().odd(call.doing)),
        }
    }

    /// A server closes the connection of a request that is too large, and the reason may be lost
    /// with the connection. So the driver asks the server for its limit if size may be the reason.
    async fn explained(&self, error: DriverError, sizes: [usize; 2]) -> DriverError {
        let [key, value] = sizes;
        if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TooLarge)
            || key.max(value) <= SMALLEST_LIMIT
        {
            return error;
        }
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("proto-max-bulk-len");
        let Ok(answer) = self.query(Call::read("ask for limits"), &ask).await else { return error };
        let Some((_, limit)) = <(String, usize)>::from_redis_value(answer).ok() else {
            return error;
        };
        self.server_takes.store(limit, Relaxed);
        let checked = fits("key", key, limit).and_then(|()| fits("value", value, limit));
        checked.err().unwrap_or(error)
    }

    async fn set_command(
        &self,
        key: &str,
        value: &Bytes,
        ttl: Option<Duration>,
    ) -> Result<Cmd, DriverError> {
        let key = self.key(key);
        let limit = self.server_takes.load(Relaxed);
        fits("key", key.len(), LONGEST.min(limit))?;
        fits("value", value.len(), self.max_value.min(limit))?;
        let mut set = match self.line.options().write_deadline {
            Some(limit) => self.line.set_in_time(limit, &key, value).await?,
            None => {
                let mut set = Cmd::with_capacity(5, key.len() + value.len() + 32);
                set.arg("SET").arg(key).arg(&value[..]);
                set
            }
        };
        if let Some(expiry) = px(ttl) {
            set.arg("PX").arg(expiry);
        }
        Ok(set)
    }
}

/// One command per slot: in a cluster keys of different slots cannot share a command.
fn commands(line: &Line, verb: &str, keys: &[String]) -> Vec<Cmd> {
    let most = if line.is_cluster() { 1 } else { MOST_KEYS };
    let commands = keys.chunks(most).map(|keys| {
        let size = keys.iter().map(String::len).sum::<usize>();
        let mut cmd = Cmd::with_capacity(1 + keys.len(), verb.len() + size);
        cmd.arg(verb);
        for key in keys {
            cmd.arg(key);
        }
        cmd
    });
    commands.collect()
}

async fn get_one(line: &Line, key: String) -> Result<Option<Bytes>, DriverError> {
    let call = Call::read("get");
    let mut get = redis::cmd("GET");
    get.arg(key);
    match line.try_query(call, &get).await? {
        Ok(answer) => value(line.place(), call.doing, answer),
        Err(wrong) if error::is_foreign(&wrong) => Ok(None),
        Err(wrong) => Err(line.place().failed(call.doing, &wrong)),
    }
}

async fn get_all(line: &Line, keys: &[String]) -> Result<Vec<Option<Bytes>>, DriverError> {
    let call = Call::read("get");
    // Also in a cluster: GET of a foreign type must count as a missing key.
    let gets = commands(line, "MGET", keys);
    let answers = line.query_all(call, gets).await?;
    let mut values = Vec::with_capacity(keys.len());
    for answer in answers {
        let Value::Array(answers) = answer else { return Err(line.place().odd(call.doing)) };
        for answer in answers {
            values.push(value(line.place(), call.doing, answer)?);
        }
    }
    if values.len() == keys.len() { Ok(values) } else { Err(line.place().odd(call.doing)) }
}

fn fits(what: &str, size: usize, limit: usize) -> Result<(), DriverError> {
    if size > limit { Err(error::too_large(what, size, limit)) } else { Ok(()) }
}

fn value(place: &Place, doing: &str, answer: Value) -> Result<Option<Bytes>, DriverError> {
    match answer {
        Value::BulkString(bytes) => Ok(Some(bytes.into())),
        Value::Nil => Ok(None),
        _ => Err(place.odd(doing)),
    }
}

/// The finding about a server that evicts any key, by its answer to `INFO memory`. A cluster answers
/// with one text for each node.
fn evicts_markers(info: &Value) -> Option<Finding> {
    let text = match info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text.as_str().into(),
        Value::Map(nodes) => return nodes.iter().find_map(|(_, info)| evicts_markers(info)),
        Value::Array(nodes) => return nodes.iter().find_map(evicts_markers),
        _ => return None,
    };
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let policy = field("maxmemory_policy").filter(|policy| policy.starts_with("allkeys"))?;
    // Without a limit, nothing is evicted.
    field("maxmemory").filter(|limit| *limit != "0")?;
    Some(Finding::new(
        "l2-evicts-markers",
        format!(
            "the maxmemory-policy of Redis is {policy}, which evicts the markers of tags as readily \
             as values, and then values with tags become stale early"
        ),
        "set maxmemory-policy to volatile-lru or another volatile-*, or to noeviction with enough \
         memory",
    ))
}

impl L2Driver for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
            .with_atomic_pull()
            .with_atomic_compare()
            .with_native_expiry()
            .with_max_value(self.max_value)
    }

    fn identity(&self) -> Option<String> {
        let server = self.line.connect().identity()?;
        Some(format!("redis {server} {}", self.line.options().prefix))
    }

    async fn findings(&self) -> Vec<Finding> {
        let mut info = redis::cmd("INFO");
        info.arg("memory");
        // Some users may not ask.
        let answer = self.query(Call::read("ask for its memory"), &info).await;
        answer.ok().as_ref().and_then(evicts_markers).into_iter().collect()
    }

    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid URL or option, a wrong password, or a user who may not
    /// read and write. Other errors if there is no connection yet; the driver keeps trying.
    async fn connect(&self) -> Result<(), DriverError> {
        let is_fenced = self.line.options().write_deadline.is_some();
        if is_fenced && (self.line.is_cluster() || self.line.is_given()) {
            return Err(error::config(
                "write_deadline works with one server or sentinels, by URL or client; leave it out \
                 with a cluster and with a connection that was given",
            ));
        }
        self.line.ready().await?;
        self.line.check_rights().await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let key = self.key(key);
        // In a cluster the keys are on different nodes.
        if self.line.is_cluster() {
            return get_one(&self.line, key).await;
        }
        // A single call is not part of a batch, which it would make large.
        let alone = |key| Box::pin(get_one(&self.line, key));
        let together = || {
            let line = self.line.clone();
            move |keys: Vec<String>| {
                let line = line.clone();
                async move {
                    let values = get_all(&line, &keys).await?;
                    Ok(values.into_iter().map(Ok).collect())
                }
            }
        };
        self.reads.ask(key, alone, together).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        let (call, set) = (Call::again("set"), self.set_command(key, &value, ttl).await?);
        if self.line.is_cluster() || value.len() > LARGE {
            let sizes = [key.len(), value.len()];
            return match self.query(call, &set).await {
                Ok(_) => Ok(()),
                Err(error) => Err(self.explained(error, sizes).await),
            };
        }
        let alone = |set| Box::pin(async move { self.query(call, &set).await.map(drop) });
        let together = || {
            let line = self.line.clone();
            move |sets: Vec<Cmd>| {
                let line = line.clone();
                async move {
                    let answers = line.query_each(call, sets).await?;
                    let each = answers.into_iter().map(|answer| match answer {
                        Ok(_) => Ok(()),
                        Err(wrong) => Err(line.place().failed(call.doing, &wrong)),
                    });
                    Ok(each.collect())
                }
            }
        };
        self.writes.ask(set, alone, together).await
    }

    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        let call = Call::once("set");
        let mut set = self.set_command(key, &value, ttl).await?;
        set.arg("NX");
        let answer = match self.query(call, &set).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.explained(error, [key.len(), value.len()]).await),
        };
        match answer {
            Value::Okay => Ok(true),
            Value::Nil => Ok(false),
            _ => Err(self.line.place().odd(call.doing)),
        }
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        if keys.is_empty() {
            return Ok(0);
        }
        let call = Call::once("delete");
        let unlinks = commands(&self.line, "UNLINK", &self.keys_of(keys));
        let answers = self.line.query_all(call, unlinks).await?;
        answers.iter().try_fold(0, |sum, answer| match answer {
            Value::Int(deleted) => Ok(sum + u64::try_from(*deleted).unwrap_or_default()),
            _ => Err(self.line.place().odd(call.doing)),
        })
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let prefix = self.key(prefix);
        if prefix.is_empty() {
            return Err(DriverError::new(
                ErrorKind::Refused,
                "redis: clearing everything would delete the keys of others too; \
                 set a prefix with Redis::prefix, or for the store",
            ));
        }
        scan::clear(&self.line, &prefix, None).await
    }

    async fn clear_parts(&self, prefix: &str, parts: &[u32]) -> Result<(), DriverError> {
        scan::clear(&self.line, &self.key(prefix), Some(parts)).await
    }

    async fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, DriverError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        get_all(&self.line, &self.keys_of(keys)).await
    }

    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut last = std::collections::HashMap::with_capacity(writes.len());
        for (at, write) in writes.iter().enumerate() {
            last.insert(write.key, at);
        }
        // Only the last write of each key: commands to a cluster may overtake each other.
        let mut sets = Vec::with_capacity(last.len());
        for (_, write) in writes.iter().enumerate().filter(|(at, write)| last[write.key] == *at) {
            sets.push(self.set_command(write.key, &write.value, write.ttl).await?);
        }
        match self.line.query_all(Call::again("set"), sets).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let key = writes.iter().map(|write| write.key.len()).max();
                let value = writes.iter().map(|write| write.value.len()).max();
                Err(self.explained(error, [key, value].map(Option::unwrap_or_default)).await)
            }
        }
    }

    async fn pull(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        let call = Call::once("pull");
        let mut take = redis::cmd("GETDEL");
        take.arg(self.key(key));
        match self.line.try_query(call, &take).await? {
            Ok(answer) => value(self.line.place(), call.doing, answer),
            Err(wrong) if error::is_foreign(&wrong) => Ok(None),
            Err(wrong) => Err(self.line.place().failed(call.doing, &wrong)),
        }
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        _remaining: Option<Duration>,
    ) -> Result<bool, DriverError> {
        fits("value", value.len(), self.max_value)?;
        let key = self.key(key);
        let arguments = [expected, &value[..]];
        script::UPDATE.run(&self.line, "update", key.as_bytes(), &arguments).await
    }

    async fn touch(&self, key: &str, ttl: Option<Duration>) -> Result<bool, DriverError> {
        let (call, key) = (Call::again("touch"), self.key(key));
        let Some(expiry) = px(ttl) else {
            let persist = redis::cmd("PERSIST").arg(&key).take();
            // The server counts a key that had no expiry before as unchanged.
            return Ok(self.is_one(call, &persist).await?
                || self.is_one(call, &redis::cmd("EXISTS").arg(&key).take()).await?);
        };
        self.is_one(call, &redis::cmd("PEXPIRE").arg(&key).arg(expiry).take()).await
    }

    async fn delete_if(&self, key: &str, value: &[u8]) -> Result<bool, DriverError> {
        let key = self.key(key);
        script::DELETE_IF.run(&self.line, "delete", key.as_bytes(), &[value]).await
    }

    fn keys(&self, prefix: &str) -> KeyStream {
        let strip = self.line.options().prefix.len();
        scan::keys(Arc::clone(&self.line), self.key(prefix), strip)
    }

    /// Reports the connection's state, unless the application opened it.
    fn link(&self) -> Option<LinkStream> {
        self.line.link()
    }

    /// The number of the key's shard in a cluster.
    fn part(&self, key: &str) -> Option<u32> {
        if !self.line.is_cluster() { None } else { self.line.part(&self.key(key)) }
    }

    fn trouble(&self) -> Option<String> {
        self.line.trouble()
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.line.close();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bentocache_driver::{BusDriver, LockDriver, Topic};

    use super::*;
    use crate::{RedisBus, RedisLock};

    #[tokio::test]
    async fn a_setter_after_tracking_is_refused() {
        let redis = Redis::new("redis://127.0.0.1:1").prefix("before");
        let tracking = redis.tracking();
        let error = redis.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let error = redis.prefix("after").connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains("Redis::tracking"), "{error}");
        drop(tracking);
    }

    #[test]
    fn prefixes_end() {
        assert_eq!(Redis::new("").prefix("app").line.options().prefix, "app:");
        assert_eq!(Redis::new("").prefix("app:").line.options().prefix, "app:");
        assert_eq!(Redis::new("").prefix("").line.options().prefix, "");
    }

    const URL: &str = "redis://127.0.0.1:1";

    #[test]
    fn options_take_texts() {
        let redis = Redis::new(URL)
            .connect_timeout("500ms")
            .timeout("4s")
            .ping_interval(Duration::from_secs(2))
            .write_deadline("1.5s")
            .max_value("10mb");
        let options = redis.line.options();
        assert_eq!(options.connect_timeout, Duration::from_millis(500));
        assert_eq!(options.timeout, Duration::from_secs(4));
        assert_eq!(options.ping_interval, Duration::from_secs(2));
        assert_eq!(options.write_deadline, Some(Duration::from_millis(1_500)));
        assert_eq!(redis.max_value, 10 << 20);
        let redis = redis.write_deadline("off").max_value("1tb");
        assert_eq!(redis.line.options().write_deadline, None);
        assert_eq!(redis.max_value, 512 << 20);
    }

    #[tokio::test]
    async fn a_bad_text_fails_connect_and_the_first_call() {
        let refused = |error: DriverError, named: &str| {
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            assert!(error.to_string().starts_with(&format!("redis: option {named}")), "{error}");
        };
        for (redis, named) in [
            (Redis::new(URL).connect_timeout("soon"), "`connect_timeout`: cannot use \"soon\""),
            (Redis::new(URL).timeout("none"), "`timeout`: cannot use \"none\""),
            (Redis::cluster([URL]).ping_interval("0"), "`ping_interval`: cannot use \"0\""),
            (Redis::new(URL).write_deadline("-1s"), "`write_deadline`: cannot use \"-1s\""),
            (Redis::new(URL).max_value("ten").timeout("soon"), "`max_value`: cannot use \"ten\""),
        ] {
            refused(redis.connect().await.unwrap_err(), named);
            refused(redis.get("a").await.unwrap_err(), named);
        }
        let bus = RedisBus::new(URL).timeout("soon");
        let topic = Topic::new("any", "");
        refused(bus.publish(topic, "1".into()).await.unwrap_err(), "`timeout`");
        refused(bus.subscribe(topic).await.map(drop).unwrap_err(), "`timeout`");
        let lock = RedisLock::new(URL).ping_interval("often");
        let lease = Duration::from_secs(1);
        refused(lock.acquire("a", "token", lease).await.unwrap_err(), "`ping_interval`");
    }
}
