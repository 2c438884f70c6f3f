//! Named stores: the default one, unknown ones, what keeps a cache from being built, and the end.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::common::{Node, Runs, World, fill, get, ms, pass, secs, settle};
use bentocache::driver::ErrorKind;
use bentocache::{BentoCache, BoxError, Error, InProcessBus, Memory, Plugin, Store};
use bentocache_testkit::{ChaosBus, ChaosL2, MapL2, Ops};
use tokio::time::Instant;

fn memory() -> Store {
    Store::new().l1(Memory::new())
}

#[tokio::test]
async fn the_cache_is_its_default_store() {
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("b")
        .build()
        .await
        .unwrap();
    cache.set("k", 1_u32).await.unwrap();
    assert_eq!(cache.name(), "b");
    assert_eq!(get(&cache.store("b").unwrap(), "k").await, Some(1));
    assert_eq!(get(&cache.store("a").unwrap(), "k").await, None);
    assert_eq!(cache.stores().collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn a_single_store_is_the_default() {
    let cache = BentoCache::builder().store("only", memory()).build().await.unwrap();
    assert_eq!(cache.name(), "only");
}

#[tokio::test]
async fn an_unknown_store_is_an_error_that_names_the_known_ones() {
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let error = cache.store("c").unwrap_err();
    assert!(matches!(error, Error::UnknownStore { .. }));
    let text = error.to_string();
    assert!(["\"c\"", "\"a\"", "\"b\""].iter().all(|name| text.contains(name)), "{text}");
    let error = BentoCache::builder().store("a", memory()).default_store("x").build().await;
    assert!(matches!(error.unwrap_err(), Error::UnknownStore { name, .. } if &*name == "x"));
}

#[tokio::test]
async fn what_cannot_work_is_an_error_that_says_what_to_do() {
    let built = [
        (BentoCache::builder(), ".store("),
        (BentoCache::builder().store("a", memory()).store("b", memory()), ".default_store("),
        (BentoCache::builder().store("a", memory()).store("a", memory()), "\"a\""),
        (BentoCache::builder().store("empty", Store::new()), "\"empty\""),
        (BentoCache::builder().store("bus", Store::new().bus(InProcessBus::new())), ".l1("),
    ];
    for (builder, hint) in built {
        let error = builder.build().await.unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains(hint), "{hint} in {error}");
    }
}

/// Polls once, outside of any runtime.
fn poll_now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn without_a_tokio_runtime_it_is_an_error_and_no_panic() {
    let error = poll_now(BentoCache::builder().store("m", memory()).build()).unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("runtime")), "{error:?}");
}

#[test]
fn a_runtime_without_a_timer_is_an_error_that_says_so() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(BentoCache::builder().store("m", memory()).build()).unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("enable_time")), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn drivers_that_cannot_be_reached_do_not_keep_the_cache_from_starting() {
    for hang in [false, true] {
        let l2 = ChaosL2::new(MapL2::new());
        let bus = ChaosBus::new(InProcessBus::new());
        let (l2_chaos, bus_chaos) = (l2.chaos(), bus.chaos());
        if hang {
            l2_chaos.hang();
            bus_chaos.hang();
        } else {
            l2_chaos.fail();
            bus_chaos.fail();
        }
        let start = Instant::now();
        let store = memory().l2(l2).bus(bus);
        let cache = BentoCache::builder().store("s", store).build().await.unwrap();
        assert!(start.elapsed() <= secs(10), "{:?}", start.elapsed());
        assert_eq!(fill(&cache, "k", 1).await, 1);
        l2_chaos.calm();
        bus_chaos.calm();
        pass(secs(30)).await;
        assert!(bus_chaos.on(Ops::SUBSCRIBE).calls() > 1, "it is tried again");
        cache.set("l", 1_u32).await.unwrap();
        settle().await;
        assert!(bus_chaos.on(Ops::PUBLISH).calls() > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_with_a_bad_setting_keeps_the_cache_from_starting() {
    let l2 = ChaosL2::new(MapL2::new());
    l2.chaos().on(Ops::CONNECT).fail_with(ErrorKind::Config);
    let error = BentoCache::builder().store("s", memory().l2(l2)).build().await.unwrap_err();
    assert!(matches!(&error, Error::Config(text) if text.contains("\"s\"")), "{error:?}");
}

/// A bus that is only not there yet does not; see above.
#[tokio::test(start_paused = true)]
async fn a_bus_that_refuses_the_login_keeps_the_cache_from_starting() {
    for kind in [ErrorKind::Config, ErrorKind::Denied] {
        let bus = ChaosBus::new(InProcessBus::new());
        bus.chaos().on(Ops::SUBSCRIBE).fail_with(kind);
        let store = memory().l2(MapL2::new()).bus(bus);
        let error = BentoCache::builder().store("s", store).build().await.unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains("\"s\"")), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stores_are_apart_even_with_equal_prefixes_and_drivers() {
    let runs = Runs::new();
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let other = cache.store("b").unwrap();
    let slow = |runs: Runs| {
        move |_| async move {
            let run = runs.count() as u32;
            pass(ms(100)).await;
            Ok::<_, Error>(run)
        }
    };
    let (one, two) = tokio::join!(
        cache.get_or_set("k", slow(runs.clone())).into_future(),
        other.get_or_set("k", slow(runs.clone())).into_future(),
    );
    assert_eq!(runs.so_far(), 2, "flights belong to their store");
    assert_ne!(one.unwrap(), two.unwrap());
    cache.delete("k").await.unwrap();
    assert!(other.has("k").await.unwrap());
}

/// A factory of one store may ask another store for the same key.
#[tokio::test(start_paused = true)]
async fn the_same_key_of_another_store_is_another_key_for_nested_calls() {
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let inner = cache.store("b").unwrap();
    let outer =
        cache.get_or_set("k", move |_| async move { Ok::<_, Error>(fill(&inner, "k", 7).await) });
    assert_eq!(outer.await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_store_is_its_channel_on_the_bus() {
    let (l2, bus) = (MapL2::new(), InProcessBus::new());
    let build = |name: &'static str| {
        let store = memory().l2(l2.clone()).bus(bus.clone());
        async move { BentoCache::builder().store(name, store).build().await.unwrap() }
    };
    let (a, same, other) = (build("x").await, build("x").await, build("y").await);
    for cache in [&a, &same, &other] {
        cache.set("k", 1_u32).skip_bus_notify(true).await.unwrap();
    }
    a.delete("k").await.unwrap();
    settle().await;
    assert_eq!(get(&same, "k").await, None);
    assert_eq!(get(&other, "k").await, Some(1), "it listens elsewhere");
}

// plugins

#[tokio::test]
async fn a_plugin_joins_the_cache_or_keeps_it_from_starting() {
    struct Joins(Runs);
    impl Plugin for Joins {
        fn installed(self: Box<Self>, cache: &BentoCache) -> Result<(), BoxError> {
            assert_eq!(cache.name(), "m");
            self.0.count();
            Ok(())
        }
    }
    struct Refuses;
    impl Plugin for Refuses {
        fn installed(self: Box<Self>, _: &BentoCache) -> Result<(), BoxError> {
            Err("no port left".into())
        }
    }
    let runs = Runs::new();
    let builder = BentoCache::builder().store("m", memory()).plugin(Joins(runs.clone()));
    builder.build().await.unwrap();
    assert_eq!(runs.so_far(), 1);
    let error = BentoCache::builder().store("m", memory()).plugin(Refuses).build().await;
    assert!(error.unwrap_err().to_string().contains("no port left"));
}

// the end

#[tokio::test(start_paused = true)]
async fn after_disconnect_every_call_is_a_clear_error() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.disconnect().await.unwrap();
    let users = node.namespace("users");
    let produce = |_| async { Ok::<u32, Error>(1) };
    let many = |_: bentocache::ManyContext| async { Ok::<_, Error>([("k".to_owned(), 1_u32)]) };
    let results = [
        node.get::<u32>("k").await.map(drop),
        users.get::<u32>("k").await.map(drop),
        node.get_many::<u32>(["k"]).await.map(drop),
        node.get_or_set("k", produce).await.map(drop),
        node.get_or_set("k", produce).optional().await.map(drop),
        node.get_or_set_forever("k", produce).await.map(drop),
        node.get_or_set_many(["k"], many).await.map(drop),
        node.set("k", 1_u32).await,
        node.set("k", 1_u32).ttl("0").await,
        node.set_many([("k", 1_u32)]).await,
        node.set_forever("k", 1_u32).await,
        node.has("k").await.map(drop),
        node.missing("k").await.map(drop),
        node.pull::<u32>("k").await.map(drop),
        node.delete("k").await.map(drop),
        node.delete_many(["k"]).await.map(drop),
        node.delete_by_tag(["t"]).await,
        node.expire("k").await,
        node.expire_many(["k"]).await,
        node.clear().await,
        node.clear_all().await,
        node.prune().await.map(drop),
        node.disconnect().await,
    ];
    for (at, result) in results.iter().enumerate() {
        assert!(matches!(result, Err(Error::Closed { .. })), "call {at}: {result:?}");
    }
    assert!(
        Error::Closed { reason: bentocache::ClosedReason::Disconnected }
            .to_string()
            .contains("disconnected")
    );
}

#[tokio::test(start_paused = true)]
async fn disconnect_closes_the_drivers() {
    let node = World::new().node().await;
    node.disconnect().await.unwrap();
    assert_eq!(node.l2.on(Ops::DISCONNECT).calls(), 1);
    assert_eq!(node.bus.on(Ops::DISCONNECT).calls(), 1);
    node.l2.reset_calls();
    node.bus.reset_calls();
    pass(secs(120)).await;
    assert_eq!((node.l2.calls(), node.bus.calls()), (0, 0), "nothing goes on");
}

#[tokio::test(start_paused = true)]
async fn disconnect_all_ends_all_stores_the_disconnected_too() {
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    cache.store("b").unwrap().disconnect().await.unwrap();
    assert_eq!(fill(&cache, "k", 1).await, 1, "the other one goes on");
    cache.disconnect_all().await.unwrap();
    assert!(matches!(cache.get::<u32>("k").await, Err(Error::Closed { .. })));
    cache.disconnect_all().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn disconnect_flushes_the_recovery_queue_once() {
    let world = World::new();
    let node = world.node_where(|s| s.recovery(10, "1h")).await;
    node.l2.on(Ops::SET).fail_next(1);
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(node.document("k"), None);
    node.disconnect().await.unwrap();
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn what_disconnect_repeats_is_announced_too() {
    let world = World::new();
    let (a, b) = (world.node_where(|s| s.recovery(10, "1h")).await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.l2.on(Ops::SET).fail_next(1);
    a.set("k", 2_u32).await.unwrap();
    a.disconnect().await.unwrap();
    settle().await;
    assert_eq!(a.document("k").unwrap()["value"], 2);
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn disconnect_sends_the_messages_that_wait() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    get(&b, "k").await;
    a.delete("k").await.unwrap();
    a.disconnect().await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn background_work_gets_a_moment_to_finish() {
    let node = World::new().node_where(|s| s.grace("1h")).await;
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let slow = |_| async {
        pass(secs(3)).await;
        Ok::<_, Error>(2_u32)
    };
    assert_eq!(node.get_or_set("k", slow).await.unwrap(), 1);
    node.disconnect().await.unwrap();
    assert_eq!(node.document("k").unwrap()["value"], 2);
}

#[tokio::test(start_paused = true)]
async fn background_work_that_does_not_finish_is_abandoned_and_its_waiters_are_told() {
    let node = World::new().node().await;
    let caller = tokio::spawn({
        let cache = node.cache.clone();
        let hangs = |_| std::future::pending::<Result<u32, Error>>();
        async move { cache.get_or_set("k", hangs).await }
    });
    settle().await;
    let start = Instant::now();
    node.disconnect().await.unwrap();
    assert!(start.elapsed() <= secs(10), "{:?}", start.elapsed());
    let result = tokio::time::timeout(secs(1), caller).await.unwrap().unwrap();
    assert!(matches!(result, Err(Error::Abandoned { .. } | Error::Closed { .. })), "{result:?}");
}

/// The time limit of `disconnect` with drivers that hang.
async fn is_bounded(node: &Node) {
    node.set("k", 1_u32).await.unwrap();
    node.l2.hang();
    node.bus.hang();
    let start = Instant::now();
    let ended = tokio::time::timeout(secs(120), node.disconnect()).await;
    assert!(ended.is_ok() && start.elapsed() <= secs(30), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn disconnect_is_bounded_with_drivers_that_hang() {
    is_bounded(&World::new().node().await).await;
    let node = World::new().node().await;
    node.l2.on(Ops::SET).fail_next(1);
    is_bounded(&node).await;
}

#[tokio::test(start_paused = true)]
async fn disconnect_is_bounded_with_a_second_tier_that_hangs() {
    let node = World::new().node_where(|s| s.l2_timeout("none", "none").recovery(10, "1h")).await;
    node.l2.on(Ops::SET).fail_next(1);
    is_bounded(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_many_writes_does_not_make_disconnect_long() {
    let node =
        World::new().node_where(|s| s.recovery(1_000, "1h").l2_circuit_breaker("off", 1)).await;
    node.l2.on(Ops::SET_MANY).fail_next(1);
    node.set_many((0..500_u32).map(|i| (i.to_string(), i))).await.unwrap();
    node.l2.on(Ops::ALL).slow(ms(900));
    let start = Instant::now();
    // It says what did not get there in time.
    let error = node.disconnect().await.unwrap_err();
    let Error::Unflushed { changes, messages: 0 } = error else { panic!("{error}") };
    assert!((1..500).contains(&changes), "{changes}");
    assert!(start.elapsed() <= secs(30), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_the_background_work() {
    let node = World::new().node().await;
    node.l2.on(Ops::SET).fail();
    node.set("k", 1_u32).await.unwrap();
    let Node { cache, l2, bus, .. } = node;
    let users = cache.namespace("users");
    drop(cache);
    pass(secs(10)).await;
    assert!(l2.calls() > 2, "a namespace is a handle too: {}", l2.calls());
    drop(users);
    settle().await;
    let calls = (l2.calls(), bus.calls());
    pass(secs(600)).await;
    assert_eq!((l2.calls(), bus.calls()), calls);
}

#[tokio::test(start_paused = true)]
async fn a_disconnect_that_fails_is_an_error_and_the_store_is_closed_all_the_same() {
    let node = World::new().node().await;
    node.l2.on(Ops::DISCONNECT).fail();
    assert!(matches!(node.disconnect().await, Err(Error::L2 { .. })));
    assert!(matches!(node.get::<u32>("k").await, Err(Error::Closed { .. })));
}
