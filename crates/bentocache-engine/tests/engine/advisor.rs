//! The advisor: it finds each configuration that is probably wrong, and nothing in those of the
//! README and of the examples.

use std::time::Duration;

use crate::common::{pass, secs};
use crate::logs::Log;
use bentocache::driver::{
    Capabilities, DriverError, ErrorKind, Finding, L2Driver, Link, LinkStream,
};
use bentocache::file::File;
use bentocache::redis::{Redis, RedisBus, RedisLock};
use bentocache::{Advice, BentoCache, Builder, InProcessBus, Memory, Store};
use bentocache_testkit::MapL2;
use bytes::Bytes;
use tokio::sync::mpsc;

async fn build(store: Store) -> BentoCache {
    BentoCache::builder().store("main", store).build().await.unwrap()
}

fn codes(advice: &[Advice]) -> Vec<&'static str> {
    advice.iter().map(|advice| advice.code).collect()
}

async fn advice(store: Store) -> Vec<&'static str> {
    codes(&build(store).await.advice())
}

fn l1() -> Store {
    Store::new().l1(Memory::new())
}

/// The driver with [`Capabilities::local`], as a file.
fn local() -> (tempfile::TempDir, File) {
    let directory = tempfile::tempdir().unwrap();
    let file = File::new(directory.path());
    (directory, file)
}

#[tokio::test]
async fn l2_without_bus() {
    assert_eq!(advice(l1().l2(MapL2::new())).await, ["l2-without-bus"]);
    // Near misses.
    assert_eq!(advice(l1().l2(MapL2::new()).l1_ttl("10s")).await, [""; 0]);
    assert_eq!(advice(l1().l2(MapL2::new()).bus(InProcessBus::new())).await, [""; 0]);
    assert_eq!(advice(Store::new().l2(MapL2::new())).await, [""; 0]);
    assert_eq!(advice(l1().l2(local().1)).await, [""; 0]);
    // The whole cache may have the option.
    let builder = BentoCache::builder().l1_ttl("10s").store("s", l1().l2(MapL2::new()));
    assert_eq!(codes(&builder.build().await.unwrap().advice()), [""; 0]);
}

#[tokio::test]
async fn bus_without_l1() {
    let bus = InProcessBus::new;
    assert_eq!(advice(Store::new().l2(MapL2::new()).bus(bus())).await, ["bus-without-l1"]);
    assert_eq!(advice(l1().bus(bus())).await, [""; 0]);
}

#[tokio::test]
async fn grace_without_timeout_and_with_a_hook_that_never_fires() {
    let store = || l1().grace("1h").timeout("none").on_factory_error(|_| {});
    assert_eq!(advice(store()).await, ["grace-without-timeout"]);
    assert_eq!(advice(l1().grace("1h").timeout("none").stale_if(|_| true)).await.len(), 1);
    for near in [
        store().factory_timeout("1s"),
        store().hard_timeout("1s"),
        store().lock_timeout("1s"),
        store().timeout("1s"),
        store().timeout("0s"),
        store().grace("off"),
        l1().grace("1h").timeout("none"),
    ] {
        assert_eq!(advice(near).await, [""; 0]);
    }
}

#[tokio::test]
async fn stale_if_without_grace() {
    assert_eq!(advice(l1().stale_if(|_| true)).await, ["stale-if-without-grace"]);
    assert_eq!(advice(l1().stale_if(|_| true).grace("1s")).await, [""; 0]);
    assert_eq!(advice(l1().on_factory_error(|_| {})).await, [""; 0]);
}

#[tokio::test]
async fn ttl_above_tag_ttl() {
    assert_eq!(advice(l1().ttl("31d")).await, ["ttl-above-tag-ttl"]);
    assert_eq!(advice(l1().ttl("2h").tag_ttl("1h")).await, ["ttl-above-tag-ttl"]);
    assert_eq!(advice(l1().ttl("30d")).await, [""; 0]);
    assert_eq!(advice(l1().ttl("31d").tag_ttl("31d")).await, [""; 0]);
    assert_eq!(advice(l1().ttl("forever")).await, [""; 0], "it may have no tags");
    // Seen at run time.
    let cache = build(l1()).await;
    cache.set("k", 1).ttl("31d").await.unwrap();
    cache.set_forever("l", 1).await.unwrap();
    cache.set("m", 1).ttl("30d").tags(["t"]).await.unwrap();
    assert_eq!(codes(&cache.advice()), [""; 0]);
    cache.set_forever("m", 1).tags(["t"]).await.unwrap();
    assert_eq!(codes(&cache.advice()), ["ttl-above-tag-ttl"]);
}

#[tokio::test]
async fn empty_prefix_on_a_server() {
    let store = || Store::new().l2(MapL2::new());
    assert_eq!(advice(store().prefix("")).await, ["empty-prefix"]);
    assert_eq!(advice(store().prefix(":")).await, ["empty-prefix"]);
    assert_eq!(advice(store().prefix("a")).await, [""; 0]);
    assert_eq!(advice(l1().prefix("")).await, [""; 0]);
    assert_eq!(advice(l1().l2(local().1).prefix("")).await, [""; 0]);
}

#[tokio::test]
async fn two_stores_with_one_prefix_on_one_l2() {
    let of = async |a: Store, b: Store| {
        let builder = BentoCache::builder().default_store("a").store("a", a).store("b", b);
        builder.build().await.unwrap()
    };
    let (map, other) = (MapL2::new(), MapL2::new());
    let store = |map: &MapL2| Store::new().l2(map.clone());
    let cache = of(store(&map), store(&map)).await;
    let found = cache.advice();
    assert_eq!(codes(&found), ["shared-prefix"]);
    assert_eq!(&*found[0].store, "b");
    assert!(found[0].problem.contains("\"a\"") && found[0].problem.contains("\"bentocache\""));
    assert_eq!(codes(&cache.store("a").unwrap().advice()), [""; 0]);
    assert_eq!(codes(&cache.store("b").unwrap().advice()), ["shared-prefix"]);
    // Near misses.
    assert_eq!(codes(&of(store(&map), store(&other)).await.advice()), [""; 0]);
    assert_eq!(codes(&of(store(&map), store(&map).prefix("b")).await.advice()), [""; 0]);
    assert_eq!(codes(&of(l1(), l1()).await.advice()), [""; 0]);
    // Either store may silence it.
    let silent = || store(&map).silence_advice("shared-prefix");
    assert_eq!(codes(&of(silent(), store(&map)).await.advice()), [""; 0]);
    assert_eq!(codes(&of(store(&map), silent()).await.advice()), [""; 0]);
    // One directory, written in two ways.
    let directory = tempfile::tempdir().unwrap();
    let file = |path: &str| Store::new().l2(File::new(directory.path().join(path)));
    assert_eq!(codes(&of(file("x"), file("./x")).await.advice()), ["shared-prefix"]);
    assert_eq!(codes(&of(file("x"), file("y")).await.advice()), [""; 0]);
}

#[tokio::test]
async fn large_values_with_the_default_limit_of_l1() {
    let (large, small) = ("x".repeat(1 << 20), "x".repeat((1 << 20) - 1_000));
    let bus = InProcessBus::new;
    for store in [l1(), l1().l2(MapL2::new()).bus(bus())] {
        let cache = build(store).await;
        cache.set("k", small.clone()).await.unwrap();
        assert_eq!(codes(&cache.advice()), [""; 0]);
        for _ in 0..64 {
            cache.set("k", large.clone()).await.unwrap();
        }
        assert_eq!(codes(&cache.advice()), ["large-values"]);
        assert!(!cache.advice()[0].problem.contains("xxx"));
    }
    for memory in [
        Memory::new().max_size("1gb"),
        Memory::new().max_items(1_000),
        Memory::new().max_entry_size("2mb"),
    ] {
        let cache = build(Store::new().l1(memory)).await;
        for _ in 0..64 {
            cache.set("k", large.clone()).await.unwrap();
        }
        assert_eq!(codes(&cache.advice()), [""; 0]);
    }
}

/// Without an L2, values are hardly ever encoded only to be measured.
#[tokio::test]
async fn one_of_64_values_of_a_store_without_l2_is_measured() {
    let (cache, large) = (build(l1()).await, "x".repeat(1 << 20));
    for _ in 0..63 {
        cache.set("k", large.clone()).await.unwrap();
    }
    assert_eq!(codes(&cache.advice()), [""; 0]);
    cache.set("k", large).await.unwrap();
    assert_eq!(codes(&cache.advice()), ["large-values"]);
}

#[tokio::test]
async fn invalidating_a_tag_that_only_other_scopes_use() {
    let cache = build(l1().log_keys(true)).await;
    cache.namespace("users").set("42", 1).tags(["team:1"]).await.unwrap();
    cache.set("a", 1).tags(["both"]).await.unwrap();
    cache.namespace("users").set("43", 1).tags(["both"]).await.unwrap();
    // The right scope, a tag of both scopes, a tag of no scope.
    cache.namespace("users").delete_by_tag(["team:1"]).await.unwrap();
    cache.delete_by_tag(["both", "none"]).await.unwrap();
    cache.namespace("other").delete_by_tag(["none"]).await.unwrap();
    assert_eq!(codes(&cache.advice()), [""; 0]);
    cache.delete_by_tag(["team:1"]).await.unwrap();
    let found = cache.advice();
    assert_eq!(codes(&found), ["tag-of-other-scope"]);
    for wanted in ["\"team:1\"", "the store itself", "the namespace \"users\""] {
        assert!(found[0].problem.contains(wanted), "{wanted} in {}", found[0]);
    }
}

#[tokio::test]
async fn a_tag_of_the_whole_store_has_one_scope_and_names_are_hidden() {
    let cache = build(l1().tag_scope("store")).await;
    cache.namespace("users").set("42", 1).tags(["team:1"]).await.unwrap();
    cache.delete_by_tag(["team:1"]).await.unwrap();
    assert_eq!(codes(&cache.advice()), [""; 0]);
    let cache = build(l1()).await;
    cache.namespace("users").set("42", 1).tags(["team:1"]).await.unwrap();
    cache.invalidate().tags(["team:1"]).await.unwrap();
    let text = cache.advice()[0].to_string();
    assert!(!text.contains("team") && !text.contains("users"), "{text}");
}

/// An L2 that has advice, once it can be reached.
#[derive(Clone)]
struct Advises {
    map: MapL2,
    link: std::sync::Arc<std::sync::Mutex<Option<mpsc::UnboundedReceiver<Link>>>>,
    asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl L2Driver for Advises {
    fn name(&self) -> &'static str {
        "advises"
    }

    fn capabilities(&self) -> Capabilities {
        self.map.capabilities()
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        L2Driver::get(&self.map, key).await
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        L2Driver::set(&self.map, key, value, ttl).await
    }

    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        L2Driver::delete(&self.map, keys).await
    }

    async fn clear(&self, _: &str) -> Result<(), DriverError> {
        Err(DriverError::new(ErrorKind::Unsupported, "no"))
    }

    fn link(&self) -> Option<LinkStream> {
        let mut link = self.link.lock().unwrap().take()?;
        Some(Box::pin(Polled(std::future::poll_fn(move |cx| link.poll_recv(cx)))))
    }

    /// The first answer is not there, the second hangs, the third is there.
    async fn findings(&self) -> Vec<Finding> {
        match self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Vec::new(),
            1 => std::future::pending().await,
            _ => vec![Finding::new("l2-evicts-markers", "the policy is bad", "set a good one")],
        }
    }
}

/// A future that is a stream.
struct Polled<F>(F);

impl<F: Future<Output = Option<Link>> + Unpin> futures_core::Stream for Polled<F> {
    type Item = Link;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Link>> {
        std::pin::Pin::new(&mut self.0).poll(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_driver_advises_joins_the_list_when_its_server_is_back() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let (tell, link) = mpsc::unbounded_channel();
    let link = std::sync::Arc::new(std::sync::Mutex::new(Some(link)));
    let driver = Advises { map: MapL2::new(), link, asked: Default::default() };
    let cache = build(Store::new().l2(driver)).await;
    assert_eq!(codes(&cache.advice()), [""; 0]);
    for _ in 0..3 {
        tell.send(Link::Restored).unwrap();
    }
    pass(secs(5)).await;
    let found = cache.advice();
    assert_eq!(codes(&found), ["l2-evicts-markers"]);
    let wanted = "store \"main\": the policy is bad; set a good one [l2-evicts-markers]";
    assert_eq!(found[0].to_string(), wanted);
    assert_eq!(log.warnings().len(), 1, "it is logged once");
}

#[tokio::test]
async fn each_finding_is_logged_once_as_a_warning() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let cache = build(l1().l2(MapL2::new()).ttl("31d")).await;
    for _ in 0..3 {
        cache.set("k", 1).tags(["t"]).await.unwrap();
    }
    let lines = log.warnings();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("store=main code=\"l2-without-bus\""), "{lines:#?}");
    assert!(lines[0].contains("neither a bus nor") && lines[0].contains("add a bus"), "{lines:#?}");
}

#[tokio::test]
async fn a_silenced_finding_is_neither_listed_nor_logged() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let store = || l1().l2(MapL2::new()).prefix("").ttl("31d");
    let quiet = store().silence_advice("l2-without-bus").silence_advice("empty-prefix");
    assert_eq!(advice(quiet).await, ["ttl-above-tag-ttl"]);
    let builder = |store| BentoCache::builder().silence_advice("l2-without-bus").store("s", store);
    let of = async |builder: Builder| codes(&builder.build().await.unwrap().advice());
    assert_eq!(of(builder(store())).await, ["ttl-above-tag-ttl", "empty-prefix"]);
    // Both levels count.
    let both = builder(store().silence_advice("empty-prefix"));
    assert_eq!(of(both).await, ["ttl-above-tag-ttl"]);
    assert_eq!(log.warnings().len(), 4);
    let cache =
        build(l1().silence_advice("large-values").silence_advice("tag-of-other-scope")).await;
    for _ in 0..64 {
        cache.set("k", "x".repeat(1 << 20)).await.unwrap();
    }
    cache.namespace("n").set("k", 1).tags(["t"]).await.unwrap();
    cache.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(codes(&cache.advice()), [""; 0]);
}

#[tokio::test]
async fn a_disabled_store_has_no_advice() {
    let store = l1().l2(MapL2::new()).prefix("").ttl("31d").enabled(false);
    let cache = build(store).await;
    cache.set("k", "x".repeat(1 << 20)).tags(["t"]).await.unwrap();
    assert_eq!(codes(&cache.advice()), [""; 0]);
}

#[tokio::test]
async fn typed_and_blocking_handles_have_the_list_too() {
    let cache = build(l1().ttl("31d")).await;
    assert_eq!(codes(&cache.typed::<u32>().advice()), ["ttl-above-tag-ttl"]);
    assert_eq!(codes(&cache.blocking().advice()), ["ttl-above-tag-ttl"]);
}

/// The configurations of the README, of the quickstart and of the other examples.
#[tokio::test]
async fn there_is_no_advice_about_the_readme_and_the_examples() {
    let directory = tempfile::tempdir().unwrap();
    let file = || File::new(directory.path());
    // Nobody listens there: the cache starts without Redis.
    let url = "redis://127.0.0.1:1";
    let redis = |memory: Memory| {
        let store = Store::new().l1(memory).l2(Redis::new(url));
        store.bus(RedisBus::new(url)).lock(RedisLock::new(url))
    };
    let tiers = l1().ttl("30m").l2(file()).bus(InProcessBus::new());
    let builders = [
        BentoCache::builder().store("main", l1()),
        BentoCache::builder().store("main", l1().l2(file())),
        BentoCache::builder()
            .ttl("10m")
            .default_store("two tiers")
            .store("two tiers", tiers)
            .store("memory", l1()),
        BentoCache::builder()
            .ttl("10m")
            .grace("6h")
            .store("main", redis(Memory::new().max_items(100_000))),
        // Examples: basic, bus and quickstart, grace_and_timeouts, nodes, stale_while_revalidate,
        // testing_with_a_paused_clock, two_tiers.
        BentoCache::builder()
            .ttl("5m")
            .store("users", Store::new().l1(Memory::new().max_items(10_000))),
        BentoCache::builder().ttl("10m").store("prices", l1().l2(file()).bus(InProcessBus::new())),
        BentoCache::builder().store("m", l1().grace_backoff("0s")),
        BentoCache::builder()
            .prefix("bentocache-nodes")
            .ttl("1m")
            .store("main", redis(Memory::new().max_items(10_000))),
        BentoCache::builder().store("m", l1().ttl("200ms").grace("1h")),
        BentoCache::builder().store("m", l1().ttl("1h").grace("12h").timeout("none")),
        BentoCache::builder().store("m", l1().l2(file()).ttl("1h")),
    ];
    for (at, builder) in builders.into_iter().enumerate() {
        let cache = builder.build().await.unwrap();
        // As they are used there.
        cache.set("post:1", "…".to_owned()).tags(["posts", "author:7"]).await.unwrap();
        cache.namespace("users").set("42", "Ada".to_owned()).await.unwrap();
        cache.delete_by_tag(["author:7", "users"]).await.unwrap();
        assert_eq!(codes(&cache.advice()), [""; 0], "the configuration at {at}");
    }
}
