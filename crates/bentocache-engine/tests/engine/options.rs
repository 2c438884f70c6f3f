//! Options: their levels, what they inherit, and what they refuse.

use crate::common::{Node, Runs, World, get, get_stale, leap, ms, pass, secs};
use bentocache::{BentoCache, Codec, Error, Failure, Memory, Result, Store, TimeSpan};
use bentocache_testkit::Ops;
use std::time::Duration;

const MINUTE: u64 = 60_000;

/// Stores a value with nothing set on the call; tells its ttl and whole life in ms.
async fn life_of_set(node: &Node) -> (Option<u64>, Option<u64>) {
    node.set("k", 1_u32).await.unwrap();
    node.life("k")
}

#[tokio::test(start_paused = true)]
async fn the_defaults() {
    let node = World::new().node().await;
    assert_eq!(life_of_set(&node).await, (Some(30 * MINUTE), Some(30 * MINUTE)));
    assert!(node.document("k").is_some(), "the prefix is `bentocache`, the codec JSON");
}

#[tokio::test(start_paused = true)]
async fn the_store_goes_before_the_cache_and_the_call_before_the_store() {
    let world = World::new();
    let global = world.node_with(|b| b.ttl("1m").grace("2m"), |s| s).await;
    assert_eq!(life_of_set(&global).await, (Some(MINUTE), Some(3 * MINUTE)));

    let store = world.node_with(|b| b.ttl("1m").grace("2m"), |s| s.ttl("5m").grace("3m")).await;
    assert_eq!(life_of_set(&store).await, (Some(5 * MINUTE), Some(8 * MINUTE)));

    store.set("k", 1_u32).ttl("7m").grace("1m").await.unwrap();
    assert_eq!(store.life("k"), (Some(7 * MINUTE), Some(8 * MINUTE)));
}

#[tokio::test(start_paused = true)]
async fn the_factory_goes_before_the_call() {
    let node = World::new().node().await;
    let produce = |cx: bentocache::Context<u32>| async move {
        cx.ttl("3m").grace("4m").tags(["b"]);
        Ok::<_, Error>(1)
    };
    node.get_or_set("k", produce).ttl("1m").grace("1m").tags(["a"]).await.unwrap();
    assert_eq!(node.life("k"), (Some(3 * MINUTE), Some(7 * MINUTE)));
    assert_eq!(node.document("k").unwrap()["tags"], serde_json::json!(["a", "b"]));
}

/// Each option on its own: setting one leaves those set on lower levels as they are.
#[tokio::test(start_paused = true)]
async fn what_a_level_leaves_open_it_inherits() {
    let world = World::new();
    let node = world.node_with(|b| b.ttl("1m"), |s| s.grace("2m")).await;
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(node.life("k"), (Some(MINUTE), Some(3 * MINUTE)));
    node.set("k", 1_u32).ttl("10m").await.unwrap();
    assert_eq!(node.life("k"), (Some(10 * MINUTE), Some(12 * MINUTE)));
    node.set("k", 1_u32).grace("off").await.unwrap();
    assert_eq!(node.life("k"), (Some(MINUTE), Some(MINUTE)));
}

/// In Node, a factory that set one option lost `skipL2Write`, and its tags and grace were ignored.
#[tokio::test(start_paused = true)]
async fn an_option_set_by_the_factory_leaves_the_others_of_the_call() {
    let node = World::new().node().await;
    let produce = |cx: bentocache::Context<u32>| async move {
        cx.ttl("3m");
        Ok::<_, Error>(1)
    };
    node.get_or_set("k", produce).skip_l2_write(true).await.unwrap();
    assert_eq!(node.document("k"), None);
    assert_eq!(get(&node, "k").await, Some(1));

    node.get_or_set("l", produce).grace("1h").tags(["t"]).await.unwrap();
    assert_eq!(node.life("l"), (Some(3 * MINUTE), Some(63 * MINUTE)));
    assert_eq!(node.document("l").unwrap()["tags"], serde_json::json!(["t"]));
}

#[tokio::test(start_paused = true)]
async fn a_factory_may_skip_tiers_and_the_bus() {
    let world = World::new();
    let node = world.node_where(|s| s.announce_fills(true)).await;
    let l2 = |cx: bentocache::Context<u32>| async move {
        cx.skip_l2_write(true);
        Ok::<_, Error>(1)
    };
    node.get_or_set("no l2", l2).await.unwrap();
    assert_eq!(node.document("no l2"), None);

    let l1 = |cx: bentocache::Context<u32>| async move {
        cx.skip_l1_write(true);
        Ok::<_, Error>(1)
    };
    node.get_or_set("no l1", l1).await.unwrap();
    node.seen.take();
    assert_eq!(get(&node, "no l1").await, Some(1));
    assert_eq!(node.seen.reads(), ["hit l2 no l1"]);

    crate::common::settle().await;
    node.bus.reset_calls();
    let bus = |cx: bentocache::Context<u32>| async move {
        cx.skip_bus_notify(true);
        Ok::<_, Error>(1)
    };
    node.get_or_set("no bus", bus).await.unwrap();
    crate::common::settle().await;
    assert_eq!(node.bus.on(Ops::PUBLISH).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn forever_wins_over_any_ttl() {
    let node = World::new().node_where(|s| s.ttl("1s")).await;
    node.set_forever("set", 1_u32).ttl("1s").await.unwrap();
    assert_eq!(node.life("set"), (None, None));
    node.get_or_set_forever("fill", |_| async { Ok::<_, Error>(1) }).ttl("1s").await.unwrap();
    assert_eq!(node.life("fill"), (None, None));
    leap(secs(100 * 24 * 3_600)).await;
    assert_eq!(get(&node, "set").await, Some(1));
    assert_eq!(get(&node, "fill").await, Some(1));
    assert_eq!(node.remaining("set"), Some(Duration::MAX));
}

#[tokio::test(start_paused = true)]
async fn texts_and_durations_mean_the_same() {
    let node = World::new().node().await;
    let spans: [(TimeSpan, Option<u64>); 11] = [
        (Duration::from_millis(1_500).into(), Some(1_500)),
        ("1.5s".into(), Some(1_500)),
        ("1500".into(), Some(1_500)),
        ("1500.5".into(), Some(1_501)),
        ("2.5H".into(), Some(9_000_000)),
        ("1d".into(), Some(86_400_000)),
        ("500ms".into(), Some(500)),
        ("10 Minutes".into(), Some(600_000)),
        ("1y".into(), Some(31_557_600_000)),
        ("forever".into(), None),
        (TimeSpan::NONE, None),
    ];
    for (span, ms) in spans {
        node.set("k", 1_u32).ttl(span.clone()).await.unwrap();
        assert_eq!(node.life("k").0, ms, "{span:?}");
    }
}

async fn is_refused(builder: bentocache::Builder, option: &str, given: &str) {
    let store = Store::new().l1(Memory::new());
    let error = builder.store("s", store).build().await.unwrap_err();
    names(&error, option, given);
}

#[track_caller]
fn names(error: &Error, option: &str, given: &str) {
    assert!(matches!(error, Error::InvalidOption { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(option) && text.contains(given), "{option} and {given} in: {text}");
}

/// It would keep nothing that has a tag.
#[tokio::test(start_paused = true)]
async fn a_tag_ttl_of_0_is_an_error_of_the_build() {
    is_refused(BentoCache::builder().tag_ttl("0s"), "tag_ttl", "0").await;
    is_refused(BentoCache::builder().tag_ttl("-1s"), "tag_ttl", "-1s").await;
}

#[tokio::test]
async fn a_bad_text_is_an_error_of_the_build_that_names_the_option_and_the_text() {
    let b = BentoCache::builder;
    is_refused(b().ttl("soon"), "ttl", "soon").await;
    is_refused(b().ttl(""), "ttl", "\"\"").await;
    is_refused(b().l1_ttl("1h30m"), "l1_ttl", "1h30m").await;
    is_refused(b().grace("5 parsecs"), "grace", "5 parsecs").await;
    is_refused(b().grace("-1s"), "grace", "-1s").await;
    is_refused(b().grace_backoff("x"), "grace_backoff", "x").await;
    is_refused(b().timeout("x"), "timeout", "x").await;
    is_refused(b().hard_timeout("x"), "hard_timeout", "x").await;
    is_refused(b().lock_timeout("x"), "lock_timeout", "x").await;
    is_refused(b().l2_timeout("x", "1s"), "l2_timeout", "x").await;
    is_refused(b().l2_timeout("1s", "y"), "l2_timeout", "y").await;
    is_refused(b().l2_circuit_breaker("x", 5), "l2_circuit_breaker", "x").await;
    is_refused(b().jitter("x"), "jitter", "x").await;
    is_refused(b().tag_ttl("x"), "tag_ttl", "x").await;
    is_refused(b().tag_check_interval("x"), "tag_check_interval", "x").await;
    is_refused(b().recovery(1, "x"), "recovery", "x").await;
    for share in [-0.1, 1.0, 7.0, f32::NAN, f32::INFINITY] {
        is_refused(b().early_refresh(share), "early_refresh", &share.to_string()).await;
    }
}

#[tokio::test]
async fn a_bad_text_is_reported_for_every_store_and_even_where_another_level_overrides_it() {
    let l1 = || Store::new().l1(Memory::new());
    let build = BentoCache::builder().store("good", l1()).store("bad", l1().ttl("soon"));
    names(&build.default_store("good").build().await.unwrap_err(), "ttl", "soon");

    let build = BentoCache::builder().ttl("soon").store("s", l1().ttl("1s")).build().await;
    names(&build.unwrap_err(), "ttl", "soon");

    let build = BentoCache::builder().enabled(false).store("s", l1().ttl("soon")).build().await;
    names(&build.unwrap_err(), "ttl", "soon");
}

#[tokio::test]
async fn a_bad_size_is_an_error_of_the_build() {
    let build = |memory| async {
        BentoCache::builder().store("s", Store::new().l1(memory)).build().await.unwrap_err()
    };
    names(&build(Memory::new().max_size("ten")).await, "max_size", "ten");
    names(&build(Memory::new().max_size(-1)).await, "max_size", "-1");
    names(&build(Memory::new().max_size(0_u64)).await, "max_size", "0");
    names(&build(Memory::new().max_entry_size("1 parsec")).await, "max_entry_size", "1 parsec");
    names(&build(Memory::new().max_items(0)).await, "max_items", "0");
}

#[tokio::test]
async fn a_bad_text_on_a_call_is_the_error_of_that_call_and_changes_nothing() {
    let node = World::new().node().await;
    let runs = Runs::new();
    let produce = {
        let runs = runs.clone();
        move |_: bentocache::Context<u32>| {
            runs.count();
            async { Ok::<_, Error>(1) }
        }
    };
    names(&node.get::<u32>("k").grace("soon").await.unwrap_err(), "grace", "soon");
    names(&node.get_many::<u32>(["k"]).l1_ttl("x").await.unwrap_err(), "l1_ttl", "x");
    names(&node.get_or_set("k", produce.clone()).ttl("soon").await.unwrap_err(), "ttl", "soon");
    let error = node.get_or_set("k", produce.clone()).early_refresh(2.0).await.unwrap_err();
    names(&error, "early_refresh", "2");
    let error = node.get_or_set("k", produce.clone()).optional().await;
    assert_eq!(error.unwrap(), Some(1));
    node.delete("k").await.unwrap();
    let runs_before = runs.so_far();
    let error = node.get_or_set("k", produce).l2_timeout("1s", "y").await.unwrap_err();
    names(&error, "l2_timeout", "y");
    let many = node.get_or_set_many(["k"], |_| async { Ok::<_, Error>(vec![("k".to_owned(), 1)]) });
    names(&many.jitter("soon").await.unwrap_err(), "jitter", "soon");
    names(&node.set("k", 1_u32).ttl("soon").await.unwrap_err(), "ttl", "soon");
    names(&node.has("k").l2_timeout("x", "1s").await.unwrap_err(), "l2_timeout", "x");
    names(&node.missing("k").l2_timeout("x", "1s").await.unwrap_err(), "l2_timeout", "x");
    names(&node.pull::<u32>("k").grace("soon").await.unwrap_err(), "grace", "soon");
    names(&node.delete("k").l2_timeout("x", "1s").await.unwrap_err(), "l2_timeout", "x");
    names(&node.delete_many(["k"]).l2_timeout("x", "1s").await.unwrap_err(), "l2_timeout", "x");
    names(&node.expire("k").grace("soon").await.unwrap_err(), "grace", "soon");
    names(&node.delete_by_tag(["t"]).l2_timeout("x", "1s").await.unwrap_err(), "l2_timeout", "x");
    assert_eq!(runs.so_far(), runs_before, "no factory ran for a bad call");
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test]
async fn a_bad_option_of_a_hit_is_an_error_too() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    names(&node.get::<u32>("k").grace("soon").await.unwrap_err(), "grace", "soon");
    let hit = node.get_or_set("k", |_| async { Ok::<u32, Error>(2) }).ttl("soon").await;
    names(&hit.unwrap_err(), "ttl", "soon");
}

#[tokio::test]
async fn a_bad_text_from_a_factory_is_the_error_of_the_call() {
    let node = World::new().node().await;
    let produce = |cx: bentocache::Context<u32>| async move {
        cx.ttl("soon");
        Ok::<_, Error>(1)
    };
    names(&node.get_or_set("k", produce).await.unwrap_err(), "ttl", "soon");
    let many = node
        .get_or_set_many(["k"], |cx| async move {
            cx.grace("later");
            Ok::<_, Error>(vec![("k".to_owned(), 1)])
        })
        .await;
    names(&many.unwrap_err(), "grace", "later");
    assert_eq!(get(&node, "k").await, None, "nothing was stored");
}

/// Every duration up to the largest: Node's 30 days fired at once.
#[tokio::test(start_paused = true)]
async fn the_longest_durations_work_everywhere() {
    let max = Duration::MAX;
    for long in [
        max,
        secs(30 * 24 * 3_600),
        Duration::from_secs(u64::MAX),
        Duration::from_millis(u64::MAX - 1),
    ] {
        let node = World::new()
            .node_where(|s| {
                s.ttl(long)
                    .l1_ttl(long)
                    .grace(long)
                    .grace_backoff(long)
                    .timeout(long)
                    .hard_timeout(long)
                    .lock_timeout(long)
                    .l2_timeout(long, long)
                    .l2_circuit_breaker(long, 1)
                    .jitter(long)
                    .tag_ttl(long)
                    .tag_check_interval(long)
                    .recovery(10, long)
            })
            .await;
        let slow = |_| async {
            pass(secs(5)).await;
            Ok::<_, Error>(1)
        };
        assert_eq!(node.get_or_set("k", slow).await.unwrap(), 1, "{long:?}");
        assert_eq!(get(&node, "k").await, Some(1));
        node.set("tagged", 2_u32).tags(["t"]).await.unwrap();
        assert_eq!(get(&node, "tagged").await, Some(2));
        node.expire("k").await.unwrap();
        let failing = |_| async { Err::<u32, _>("down") };
        assert_eq!(node.get_or_set("k", failing).await.unwrap(), 1, "graced");
        assert_eq!(get(&node, "k").await, Some(1), "backed off");
        node.expire_by_tag(["t"]).await.unwrap();
        assert_eq!(get_stale(&node, "tagged").await, Some(2));
        pass(secs(24 * 3_600)).await;
        node.set("k", 3_u32).ttl(long).await.unwrap();
        assert_eq!(get(&node, "k").await, Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hard_timeout_of_30_days_does_not_fire_at_once() {
    let node = World::new().node().await;
    let slow = |_| async {
        pass(secs(3_600)).await;
        Ok::<_, Error>(1)
    };
    let filled = node.get_or_set("k", slow).hard_timeout("30d").await;
    assert_eq!(filled.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn trailing_colons_of_the_prefix_are_trimmed() {
    let world = World::new();
    let node = world.node_where(|s| s.prefix("app::")).await;
    node.set("k", 1_u32).await.unwrap();
    node.namespace("n").set("k", 1_u32).await.unwrap();
    assert_eq!(world.l2.all_keys(), ["app:k", "app:n:k"]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_prefix_puts_nothing_before_the_key() {
    let world = World::new();
    for prefix in ["", ":"] {
        let node = world.node_where(|s| s.prefix(prefix)).await;
        node.set("k", 1_u32).await.unwrap();
        assert_eq!(world.l2.all_keys(), ["k"]);
        assert_eq!(get(&node, "k").await, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_off_stores_nothing_runs_factories_and_calls_no_driver() {
    let world = World::new();
    world.node().await.set("k", 9_u32).tags(["t"]).await.unwrap();
    let node = world.node_where(|s| s.enabled(false)).await;
    let runs = Runs::new();
    for run in 1..=3 {
        let runs = runs.clone();
        let produce = move |_| async move { Ok::<_, Error>(runs.count() as u32) };
        assert_eq!(node.get_or_set("k", produce).await.unwrap(), run);
    }
    node.set("k", 1_u32).await.unwrap();
    node.set_many([("a", 1_u32)]).await.unwrap();
    node.set_forever("f", 1_u32).await.unwrap();
    assert_eq!(node.get::<u32>("k").await.unwrap(), None);
    assert_eq!(node.get_many::<u32>(["k", "a"]).await.unwrap(), [None, None]);
    assert!(!node.has("k").await.unwrap());
    assert!(node.missing("k").await.unwrap());
    assert_eq!(node.pull::<u32>("k").await.unwrap(), None);
    assert!(!node.delete("k").await.unwrap());
    assert_eq!(node.delete_many(["k"]).await.unwrap(), 0);
    node.expire("k").await.unwrap();
    node.delete_by_tag(["t"]).await.unwrap();
    node.clear().await.unwrap();
    assert_eq!(node.prune().await.unwrap(), 0);
    crate::common::settle().await;
    assert_eq!((node.l2.calls(), node.bus.calls()), (0, 0));
    assert!(node.document("k").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_off_neither_connects_nor_subscribes() {
    let l2 = bentocache_testkit::ChaosL2::new(bentocache_testkit::MapL2::new());
    let bus = bentocache_testkit::ChaosBus::new(bentocache_testkit::MapBus::new());
    let (l2_calls, bus_calls) = (l2.chaos(), bus.chaos());
    let store = Store::new().l1(Memory::new()).l2(l2).bus(bus);
    let _cache = BentoCache::builder().enabled(false).store("s", store).build().await.unwrap();
    crate::common::settle().await;
    assert_eq!((l2_calls.calls(), bus_calls.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_factory_of_a_cache_that_is_off_may_skip_fail_and_panic() {
    let node = World::new().node_where(|s| s.enabled(false)).await;
    let skip = |cx: bentocache::Context<u32>| async move { cx.skip() };
    assert!(node.get_or_set("k", skip).await.unwrap_err().is_skipped());
    assert_eq!(node.get_or_set("k", skip).optional().await.unwrap(), None);
    let fail = |cx: bentocache::Context<u32>| async move { cx.fail("no") };
    assert!(matches!(node.get_or_set("k", fail).await, Err(Error::Factory { .. })));
    let panic = |_| async { if true { panic!("boom") } else { Ok::<u32, Error>(1) } };
    assert!(matches!(node.get_or_set("k", panic).await, Err(Error::Factory { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_store_can_be_off_while_the_others_are_on() {
    let l1 = || Store::new().l1(Memory::new());
    let cache = BentoCache::builder()
        .store("on", l1())
        .store("off", l1().enabled(false))
        .default_store("on")
        .build()
        .await
        .unwrap();
    let off = cache.store("off").unwrap();
    cache.set("k", 1_u32).await.unwrap();
    off.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&cache, "k").await, Some(1));
    assert_eq!(get(&off, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn l2_errors_are_suppressed_by_default_only_where_there_is_an_l1() {
    for (world, suppressed) in [(World::new(), true), (World::only_l2(), false)] {
        let node = world.node().await;
        node.l2.fail();
        assert_eq!(node.get::<u32>("k").await.is_ok(), suppressed);
        assert_eq!(node.set("l", 1_u32).await.is_ok(), suppressed);
        assert_eq!(node.delete("m").await.is_ok(), suppressed);
        assert_eq!(node.has("n").await.is_ok(), suppressed);
    }
}

#[tokio::test(start_paused = true)]
async fn whether_l2_errors_are_suppressed_can_be_said_on_every_level() {
    let node = World::new().node_with(|b| b.suppress_l2_errors(false), |s| s).await;
    node.l2.fail();
    assert!(matches!(node.get::<u32>("k").await, Err(Error::L2 { .. })));
    assert_eq!(node.get::<u32>("k").suppress_l2_errors(true).await.unwrap(), None);
    let node = World::new()
        .node_with(|b| b.suppress_l2_errors(false), |s| s.suppress_l2_errors(true))
        .await;
    node.l2.fail();
    assert_eq!(node.get::<u32>("k").await.unwrap(), None);
    assert!(node.get::<u32>("k").suppress_l2_errors(false).await.is_err());
}

/// One L2 call at most 1 s by default; the soft limit only where a stale value could be served.
#[tokio::test(start_paused = true)]
async fn the_soft_l2_timeout_holds_only_with_a_stale_value_at_hand() {
    let node = World::without_bus()
        .node_where(|s| s.ttl("1s").grace("1h").l2_timeout("100ms", "700ms"))
        .await;
    node.set("stale", 1_u32).await.unwrap();
    pass(secs(2)).await;
    node.l2.hang();
    let start = tokio::time::Instant::now();
    assert_eq!(get(&node, "stale").await, Some(1));
    assert_eq!(start.elapsed(), ms(100));
    let start = tokio::time::Instant::now();
    assert_eq!(get(&node, "nothing").await, None);
    assert_eq!(start.elapsed(), ms(700));
}

#[tokio::test(start_paused = true)]
async fn the_codec_is_a_matter_of_the_store() {
    let node = World::new().node_with(|b| b, |s| s.codec(Codec::json())).await;
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn on_factory_error_of_the_call_goes_before_that_of_the_store() {
    let (store, call) = (Runs::new(), Runs::new());
    let counted = store.clone();
    let node = World::new()
        .node_where(move |s| {
            s.on_factory_error(move |_| {
                counted.count();
            })
        })
        .await;
    let failing = |_| async { Err::<u32, Failure>(Failure::new("down")) };
    let failed: Result<u32> = node.get_or_set("k", failing).await;
    assert!(failed.is_err());
    assert_eq!((store.so_far(), call.so_far()), (1, 0));
    let counted = call.clone();
    let failed = node
        .get_or_set("k", failing)
        .on_factory_error(move |_| {
            counted.count();
        })
        .await;
    assert!(failed.is_err());
    assert_eq!((store.so_far(), call.so_far()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_harms_nobody() {
    let node = World::new().node_where(|s| s.on_factory_error(|_| panic!("in the hook"))).await;
    let failing = |_| async { Err::<u32, _>("down") };
    assert!(matches!(node.get_or_set("k", failing).await, Err(Error::Factory { .. })));
    assert_eq!(node.fill("k", 1).await, 1);
}

#[tokio::test(start_paused = true)]
async fn fills_are_announced_only_when_asked_for() {
    let world = World::new();
    let node = world.node().await;
    let published = || node.bus.on(Ops::PUBLISH).calls();
    node.fill("a", 1).await;
    crate::common::settle().await;
    assert_eq!(published(), 0);
    node.get_or_set("b", |_| async { Ok::<_, Error>(1) }).announce_fills(true).await.unwrap();
    crate::common::settle().await;
    assert_eq!(published(), 1);
    node.get_or_set("a", |_| async { Ok::<_, Error>(2) }).force_fresh(true).await.unwrap();
    crate::common::settle().await;
    assert_eq!(published(), 2, "force_fresh always announces");
    let loud = world.node_where(|s| s.announce_fills(true)).await;
    loud.fill("c", 1).await;
    crate::common::settle().await;
    assert_eq!(loud.bus.on(Ops::PUBLISH).calls(), 1);
}
