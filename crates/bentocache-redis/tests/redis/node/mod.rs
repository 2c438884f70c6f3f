//! A real Node process with npm `bentocache`, and both libraries behind a common set of calls.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bentocache::{BentoCache, Builder, Cache, Memory, Store};
use bentocache_redis::{Redis, RedisBus};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use testservers::{RedisServer, npm_install, wait_for};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::oneshot;

/// The time limit for everything that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

const PACKAGE: &str = include_str!("package.json");
const LOCK: &str = include_str!("package-lock.json");
const PEER: &str = include_str!("peer.mjs");

/// Our `peer.mjs` in a directory with the packages, which the first test to need it fills.
static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = npm_install(target, "node-peer", PACKAGE, LOCK);
    // Atomically: another test process may start the same file.
    let written = directory.join(format!("peer-{}.tmp", std::process::id()));
    fs::write(&written, PEER).unwrap();
    let mut hasher = DefaultHasher::new();
    PEER.hash(&mut hasher);
    let peer = directory.join(format!("peer-{:016x}.mjs", hasher.finish()));
    fs::rename(&written, &peer).unwrap();
    peer
});

type Reply = Result<Value, String>;

/// A running `peer.mjs`. It ends with its standard input, so also when the test is killed.
pub(crate) struct Node {
    input: tokio::sync::Mutex<ChildStdin>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>,
    next: AtomicU64,
    _process: Child,
}

impl Node {
    pub(crate) async fn start(server: &RedisServer) -> Self {
        let installed = tokio::task::spawn_blocking(|| &*INSTALLED).await.expect("npm bentocache");
        let mut process = tokio::process::Command::new("node")
            .arg(installed)
            .arg(server.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let waiting = Arc::<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>::default();
        let answered = waiting.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut reply: Value = serde_json::from_str(&line).expect("a line of JSON");
                let sender = answered.lock().unwrap().remove(&reply["id"].as_u64().unwrap());
                let reply = match reply.get("error") {
                    Some(error) => Err(error.as_str().unwrap().to_owned()),
                    None => Ok(reply["result"].take()),
                };
                // The caller may have stopped waiting.
                let _ = sender.expect("an answer to a question").send(reply);
            }
            // The process ended: no answers will come any more.
            answered.lock().unwrap().clear();
        });
        let input = tokio::sync::Mutex::new(process.stdin.take().unwrap());
        Self { input, waiting, next: AtomicU64::new(1), _process: process }
    }

    pub(crate) async fn call(&self, op: &str, args: impl Serialize) -> Reply {
        let id = self.next.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, sender);
        let args = serde_json::to_string(&args).unwrap();
        let line = format!("{{\"id\":{id},\"op\":\"{op}\",\"args\":{args}}}\n");
        self.input.lock().await.write_all(line.as_bytes()).await.expect("node listens");
        let reply = tokio::time::timeout(PATIENCE, receiver).await;
        reply.unwrap_or_else(|_| panic!("node does not answer {line}")).expect("node runs")
    }
}

/// A server with a Node process and a Rust cache on it, each with both tiers and the bus.
pub(crate) struct Pair {
    pub(crate) rust: Side,
    pub(crate) node: Side,
    pub(crate) server: RedisServer,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        Self::start_with(|builder| builder).await
    }

    /// With more options for Rust.
    pub(crate) async fn start_with(with: impl FnOnce(Builder) -> Builder) -> Self {
        let server = RedisServer::start();
        let (bento, node) = tokio::join!(cache_that(&server, with), Node::start(&server));
        subscribed(&server, 2);
        Self { rust: Side::of(&bento), node: Side::Node(Arc::new(node), Vec::new()), server }
    }

    /// Both directions: the side that changes something, and the side that must see it.
    pub(crate) fn directions(&self) -> [(&Side, &Side); 2] {
        [(&self.node, &self.rust), (&self.rust, &self.node)]
    }

    /// The remaining time of a key in Redis.
    pub(crate) fn left(&self, key: &str) -> Duration {
        let left = self.server.cli(&["pttl", key]).parse().unwrap_or_else(|_| panic!("no {key}"));
        Duration::from_millis(left)
    }
}

/// Waits until this many processes are subscribed to the bus.
pub(crate) fn subscribed(server: &RedisServer, processes: usize) {
    let channel = "bentocache.notifications:main";
    let wanted = format!("{channel}\n{processes}");
    wait_for("the subscriptions", || server.cli(&["pubsub", "numsub", channel]) == wanted);
}

fn store(server: &RedisServer) -> Store {
    let url = server.url();
    Store::new().l1(Memory::new()).l2(Redis::new(&url)).bus(RedisBus::new(&url))
}

/// A Rust cache as `peer.mjs` makes it in Node: prefix, name of the store and ttl are the same.
pub(crate) async fn cache(server: &RedisServer) -> BentoCache {
    cache_that(server, |builder| builder).await
}

/// One with more options.
pub(crate) async fn cache_that(
    server: &RedisServer,
    with: impl FnOnce(Builder) -> Builder,
) -> BentoCache {
    let builder = with(BentoCache::builder().ttl("10m").timeout("none"));
    builder.store("main", store(server)).build().await.expect("a cache")
}

/// Options of a call; what is left out is the default of both.
#[derive(Clone, Copy, Default)]
pub(crate) struct With<'a> {
    pub(crate) ttl: Option<&'a str>,
    pub(crate) grace: Option<&'a str>,
    pub(crate) tags: &'a [&'a str],
}

impl With<'_> {
    fn json(self) -> Value {
        let mut options = json!({});
        for (name, text) in [("ttl", self.ttl), ("grace", self.grace)] {
            match text {
                Some("forever") => options[name] = Value::Null,
                Some("0") => options[name] = 0.into(),
                Some(text) => options[name] = text.into(),
                None => {}
            }
        }
        if !self.tags.is_empty() {
            options["tags"] = json!(self.tags);
        }
        options
    }
}

/// What a factory does.
#[derive(Clone)]
pub(crate) enum Factory {
    Makes(Value),
    Fails,
}

/// One library, or a namespace in it.
#[derive(Clone)]
pub(crate) enum Side {
    Rust(Cache),
    Node(Arc<Node>, Vec<String>),
}

/// Sets what options of a request there are.
macro_rules! with {
    ($request:expr, $with:expr, $($name:ident)+) => {{
        let (mut request, with) = ($request, $with);
        $(if let Some(text) = with.$name { request = request.$name(text); })+
        request
    }};
}

impl Side {
    pub(crate) fn of(bento: &BentoCache) -> Self {
        Self::Rust(Cache::clone(bento))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rust(_) => "rust",
            Self::Node(..) => "node",
        }
    }

    pub(crate) fn namespace(&self, name: &str) -> Self {
        match self {
            Self::Rust(cache) => Self::Rust(cache.namespace(name)),
            Self::Node(node, outer) => {
                let inner = outer.iter().map(String::as_str).chain([name]).map(str::to_owned);
                Self::Node(node.clone(), inner.collect())
            }
        }
    }

    /// Calls Node, for operations that only it has.
    pub(crate) async fn call(&self, op: &str, mut args: Value) -> Reply {
        let Self::Node(node, namespaces) = self else { panic!("this is not node") };
        args["ns"] = json!(namespaces);
        node.call(op, args).await
    }

    async fn asked(&self, op: &str, args: Value) -> Value {
        self.call(op, args).await.unwrap_or_else(|error| panic!("node's {op}: {error}"))
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Value> {
        self.get_with(key, With::default()).await
    }

    pub(crate) async fn get_with(&self, key: &str, with: With<'_>) -> Option<Value> {
        match self {
            Self::Rust(cache) => with!(cache.get(key), with, grace).await.unwrap(),
            Self::Node(..) => {
                let mut options = with.json();
                options["key"] = key.into();
                option(self.asked("get", options).await)
            }
        }
    }

    pub(crate) async fn set(&self, key: &str, value: impl Into<Value>) {
        self.set_with(key, value, With::default()).await;
    }

    pub(crate) async fn set_with(&self, key: &str, value: impl Into<Value>, with: With<'_>) {
        match self {
            Self::Rust(cache) => {
                let request = cache.set::<Value>(key, value.into()).tags(with.tags.to_vec());
                with!(request, with, ttl grace).await.unwrap();
            }
            Self::Node(..) => {
                let mut options = with.json();
                options["key"] = key.into();
                options["value"] = value.into();
                assert_eq!(self.asked("set", options).await, true);
            }
        }
    }

    /// Sets, in Node, what only JavaScript can hold.
    pub(crate) async fn set_raw(&self, key: &str, value: &RawValue) {
        #[derive(Serialize)]
        struct Set<'a> {
            key: &'a str,
            value: &'a RawValue,
        }
        let Self::Node(node, _) = self else { panic!("this is not node") };
        assert_eq!(node.call("set", Set { key, value }).await, Ok(true.into()));
    }

    /// The value, and whether the factory ran.
    pub(crate) async fn get_or_set(
        &self,
        key: &str,
        factory: Factory,
        with: With<'_>,
    ) -> Result<(Value, bool), String> {
        match self {
            Self::Rust(cache) => {
                let ran = Arc::new(AtomicU64::new(0));
                let count = ran.clone();
                let produce = move |_| async move {
                    count.fetch_add(1, Relaxed);
                    match factory {
                        Factory::Makes(value) => Ok(value),
                        Factory::Fails => Err("the factory failed"),
                    }
                };
                let request = cache.get_or_set(key, produce).tags(with.tags.to_vec());
                let value = with!(request, with, ttl grace).await;
                value.map(|value| (value, ran.load(Relaxed) > 0)).map_err(|e| e.to_string())
            }
            Self::Node(..) => {
                let mut options = with.json();
                options["key"] = key.into();
                match factory {
                    Factory::Makes(value) => options["value"] = value,
                    Factory::Fails => options["fails"] = true.into(),
                }
                let mut reply = self.call("getOrSet", options).await?;
                let ran = reply["ran"].as_bool().unwrap();
                Ok((option(reply["value"].take()).expect("a value"), ran))
            }
        }
    }

    pub(crate) async fn pull(&self, key: &str) -> Option<Value> {
        match self {
            Self::Rust(cache) => cache.pull(key).await.unwrap(),
            Self::Node(..) => option(self.asked("pull", json!({ "key": key })).await),
        }
    }

    pub(crate) async fn has(&self, key: &str) -> bool {
        match self {
            Self::Rust(cache) => cache.has(key).await.unwrap(),
            Self::Node(..) => self.asked("has", json!({ "key": key })).await == true,
        }
    }

    pub(crate) async fn missing(&self, key: &str) -> bool {
        match self {
            Self::Rust(cache) => cache.missing(key).await.unwrap(),
            Self::Node(..) => self.asked("missing", json!({ "key": key })).await == true,
        }
    }

    pub(crate) async fn delete(&self, key: &str) {
        match self {
            Self::Rust(cache) => drop(cache.delete(key).await.unwrap()),
            Self::Node(..) => drop(self.asked("delete", json!({ "key": key })).await),
        }
    }

    pub(crate) async fn delete_many(&self, keys: &[&str]) {
        match self {
            Self::Rust(cache) => drop(cache.delete_many(keys).await.unwrap()),
            Self::Node(..) => drop(self.asked("deleteMany", json!({ "keys": keys })).await),
        }
    }

    pub(crate) async fn delete_by_tag(&self, tags: &[&str]) {
        match self {
            Self::Rust(cache) => cache.delete_by_tag(tags.to_vec()).await.unwrap(),
            Self::Node(..) => drop(self.asked("deleteByTag", json!({ "tags": tags })).await),
        }
    }

    pub(crate) async fn expire(&self, key: &str, with: With<'_>) {
        match self {
            Self::Rust(cache) => with!(cache.expire(key), with, grace).await.unwrap(),
            Self::Node(..) => {
                let mut options = with.json();
                options["key"] = key.into();
                self.asked("expire", options).await;
            }
        }
    }

    pub(crate) async fn clear(&self) {
        match self {
            Self::Rust(cache) => cache.clear().await.unwrap(),
            Self::Node(..) => drop(self.asked("clear", json!({})).await),
        }
    }

    /// Waits until the value is that.
    pub(crate) async fn becomes(&self, key: &str, wanted: Option<Value>) {
        let start = Instant::now();
        loop {
            let value = self.get(key).await;
            if value == wanted {
                return;
            }
            let name = self.name();
            assert!(start.elapsed() < PATIENCE, "{name}: {key} is {value:?}, not {wanted:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until all announcements of the other side have arrived here.
    pub(crate) async fn has_heard(&self, other: &Self) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = format!("heard-{}", NEXT.fetch_add(1, Relaxed));
        // Our own value stays in our memory until the one message about the key comes.
        self.set(&key, "asked").await;
        other.set(&key, "heard").await;
        self.becomes(&key, Some(json!("heard"))).await;
    }

    /// Waits until there is no fresh value.
    pub(crate) async fn runs_out(&self, key: &str) {
        let start = Instant::now();
        while self.has(key).await {
            assert!(start.elapsed() < PATIENCE, "{}: {key} lives on", self.name());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A value as Node sends it: null is one, too.
fn option(mut sent: Value) -> Option<Value> {
    sent.as_array_mut().expect("[value] or []").pop()
}
