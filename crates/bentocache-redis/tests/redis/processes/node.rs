//! A node: a process with a cache that reads requests from its standard input and answers on its
//! standard output.
//!
//! A request is `<number> <verb> <arguments>`, its answer
//! `<number> <begun> <took> <outcome> [<value>]` with times in microseconds. What nobody asked for
//! begins with `!`: when a factory began, and when the bus was lost or restored.

use std::cell::Cell;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bentocache::driver::LockDriver;
use bentocache::{BentoCache, Error, Event, EventKind, Memory, Observer, Store, Tier};
use bentocache_redis::{Redis, RedisBus, RedisLock};
use tokio::sync::mpsc;

/// The longest wait for one call of L2, when a stale value is available and otherwise.
pub(crate) const SOFT: Duration = Duration::from_millis(100);
pub(crate) const HARD: Duration = Duration::from_millis(250);
/// The longest wait of the driver for one answer.
pub(crate) const ANSWER: Duration = Duration::from_millis(500);

tokio::task_local! {
    /// The cache's report about the current call.
    static REPORTED: Cell<&'static str>;
}

/// The node's state for the tests.
#[derive(Default)]
struct State {
    is_linked: AtomicBool,
    queued: AtomicUsize,
}

struct Watch(Arc<State>);

impl Observer for Watch {
    fn observe(&self, event: &Event<'_>) {
        let report = |what| {
            let _ = REPORTED.try_with(|reported| reported.set(what));
        };
        match event.kind {
            EventKind::Hit { graced: false, tier: Tier::L1, .. } => report("fresh"),
            EventKind::Hit { graced: false, .. } => report("found"),
            EventKind::Hit { graced: true, .. } => report("graced"),
            EventKind::Miss { .. } => report("made"),
            EventKind::BusLost => {
                self.0.is_linked.store(false, SeqCst);
                say(&format!("! lost {}", now()));
            }
            EventKind::BusRestored => {
                self.0.is_linked.store(true, SeqCst);
                say(&format!("! restored {}", now()));
            }
            EventKind::RecoveryQueued { queued }
            | EventKind::RecoveryDone { queued }
            | EventKind::RecoveryDropped { queued } => {
                self.0.queued.store(queued, SeqCst);
            }
            _ => {}
        }
    }
}

/// Microseconds since the epoch, on which all processes of a machine agree.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The parent process may have ended.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

/// Serves until the input ends. `setup` names the servers of L2 and those of the bus,
/// several for a cluster: `url,url url,url`, and says `announce`
/// after them if what factories bring is to be announced.
pub(crate) fn run(setup: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Threads for blocking work end soon, so that they can be counted.
        .thread_keep_alive(SOFT)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(serve(setup));
}

struct Node {
    bento: BentoCache,
    lock: RedisLock,
}

async fn serve(setup: &str) {
    let words: Vec<_> = setup.split(' ').collect();
    let (l2, bus) = (words[0], words[1]);
    let [l2, bus]: [Vec<&str>; 2] = [l2, bus].map(|urls| urls.split(',').collect());
    let state = Arc::<State>::default();
    let quick = |redis: Redis| redis.connect_timeout(ANSWER).timeout(ANSWER).ping_interval(HARD);
    let redis = quick(match l2[..] {
        [one] => Redis::new(one),
        _ => Redis::cluster(l2.clone()),
    });
    let lock = match l2[..] {
        [one] => RedisLock::new(one),
        _ => RedisLock::cluster(l2.clone()),
    };
    let bus = match bus[..] {
        [one] => RedisBus::new(one),
        _ => RedisBus::cluster(bus.clone()),
    };
    let store = Store::new()
        .l1(Memory::new())
        .l2(redis)
        .bus(bus.connect_timeout(ANSWER).timeout(ANSWER).ping_interval(HARD));
    let bento = BentoCache::builder()
        .ttl("10m")
        .grace("1h")
        .grace_backoff("50ms")
        .l2_timeout(SOFT, HARD)
        .recovery(10_000, "200ms")
        .announce_fills(words.contains(&"announce"))
        .observer(Watch(state.clone()))
        .store("main", store)
        .build()
        .await
        .expect("a cache");
    let lock = lock.connect_timeout(ANSWER).timeout(ANSWER).ping_interval(HARD);
    let node = Arc::new(Node { bento, lock });
    let (requests, mut next) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if requests.send(line).is_err() {
                break;
            }
        }
    });
    say("\n! ready 0");
    while let Some(line) = next.recv().await {
        let (number, request) = line.split_once(' ').expect("a number");
        if request == "stats" {
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            let [queued, linked] =
                [state.queued.load(SeqCst), usize::from(state.is_linked.load(SeqCst))];
            say(&format!("{number} 0 0 stats {tasks} {queued} {linked}"));
            continue;
        }
        let (node, number, request) = (node.clone(), number.to_owned(), request.to_owned());
        tokio::spawn(REPORTED.scope(Cell::new("none"), async move {
            let (begun, start) = (now(), Instant::now());
            let answer = node.obey(&request).await;
            let took = start.elapsed().as_micros();
            let answer = answer.unwrap_or_else(|error| format!("error {error}"));
            say(&format!("{number} {begun} {took} {answer}"));
        }));
    }
    node.bento.disconnect().await.expect("an orderly end");
}

impl Node {
    async fn obey(&self, request: &str) -> Result<String, Error> {
        let words: Vec<_> = request.split(' ').collect();
        let bento = &self.bento;
        let number = |text: &str| text.parse::<u32>().expect("a number");
        let found = |value: Option<u32>| match value {
            Some(value) => format!("{} {value}", REPORTED.with(Cell::get)),
            None => "none".to_owned(),
        };
        let tags = words.last().filter(|word| word.starts_with('#')).copied();
        match words[..] {
            ["get", key] => bento.get::<u32>(key).await.map(found),
            ["get_or_set", key, value, how, ..] => {
                let (value, how) = (number(value), how.to_owned());
                let factory = move |_| async move {
                    say(&format!("! factory {value} {}", now()));
                    match how.parse() {
                        Ok(pause) => {
                            tokio::time::sleep(Duration::from_millis(pause)).await;
                            Ok(value)
                        }
                        Err(_) => Err("the source is down"),
                    }
                };
                bento.get_or_set(key, factory).tags(tags).await.map(Some).map(found)
            }
            ["set", key, value, ..] => bento.set(key, number(value)).tags(tags).await.map(done),
            ["add", key, value] => {
                let added = bento.add(key, number(value)).await?;
                Ok(if added { "done" } else { "refused" }.to_owned())
            }
            ["delete", key] => bento.delete(key).await.map(done),
            ["delete_by_tag", tag] => bento.delete_by_tag([tag]).await.map(done),
            ["expire", key] => bento.expire(key).await.map(done),
            ["clear"] => bento.clear().await.map(done),
            ["clear", namespace] => bento.namespace(namespace).clear().await.map(done),
            // Takes a lock, renews and releases it. The lease ends by itself if the server dies
            // in between.
            ["lock", key] => {
                let lease = Duration::from_secs(1);
                let held = self.lock.acquire(key, "token", lease).await;
                let renewed = self.lock.renew(key, "token", lease).await;
                let released = self.lock.release(key, "token").await;
                let is_well = [held, renewed, released].iter().all(|it| matches!(it, Ok(true)));
                Ok(if is_well { "done" } else { "refused" }.to_owned())
            }
            _ => panic!("a request that nobody understands: {request}"),
        }
    }
}

fn done<T>(_: T) -> String {
    "done".to_owned()
}
