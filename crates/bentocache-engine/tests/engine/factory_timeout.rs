//! A factory that hangs: `factory_timeout` ends it, and `lock_timeout` replaces it, also for callers
//! who are served a stale value.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Node, World, get, ms, pass, secs};
use crate::races::{Source, calm, go};
use bentocache::{BentoCache, Error, EventKind, ManyContext, Memory, Store};
use bentocache_testkit::{ChaosLock, MapLock};
use tokio::time::Instant;

fn worlds() -> [World; 3] {
    [World::only_l1(), World::only_l2(), World::new()]
}

/// A node with `k` = 1, stale for a second, to be served for an hour.
async fn stale(world: &World) -> Node {
    let node = world.node_where(|store| store.grace("1h")).await;
    node.set("k", 1_u32).ttl("10s").await.unwrap();
    pass(secs(11)).await;
    node
}

/// A factory for many keys that gives each of them the value.
fn many(
    source: &Source,
    value: u32,
) -> impl Fn(ManyContext) -> crate::races::Work<HashMap<String, u32>> + Send + Sync + 'static {
    let source = source.clone();
    move |cx| {
        let source = source.clone();
        Box::pin(async move {
            source.run().await;
            Ok(cx.keys().iter().map(|key| (key.clone(), value)).collect())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_hangs_is_dropped_and_its_key_is_free_at_once() {
    for world in worlds() {
        let node = world.node_where(|s| s.factory_timeout("2s").log_keys(true)).await;
        let (hung, source) = (Source::held(), Source::new());
        let began = Instant::now();
        let error = node.get_or_set("k", hung.gives(1_u32)).await.unwrap_err();
        let is_it = matches!(&error, Error::FactoryTimeout { after, .. } if *after == secs(2));
        assert!(is_it && error.is_timeout(), "{error:?}");
        assert_eq!((error.key(), began.elapsed()), (Some("k"), secs(2)));
        assert_eq!((hung.runs(), hung.ended()), (1, 1), "its future was dropped");
        let text = error.to_string();
        assert!(text.contains("\"k\"") && text.contains("2s"), "{text}");
        // The key is free, and what the source brings now counts.
        assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 2);
        assert_eq!(began.elapsed(), secs(2));
        hung.release();
        calm().await;
        assert_eq!(get(&node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_the_end_of_a_factory_that_hangs() {
    let node = World::new().node().await;
    let hung = Source::held();
    let first = go(node.get_or_set("k", hung.gives(1_u32)).factory_timeout("1s"));
    hung.begun(1).await;
    let second = go(node.get_or_set("k", hung.gives(2_u32)));
    for call in [first, second] {
        assert!(matches!(call.await.unwrap(), Err(Error::FactoryTimeout { .. })));
    }
    assert_eq!(hung.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_factory_timeout_counts_as_a_failure_for_the_hook_the_events_and_the_backoff() {
    for world in worlds() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let hook = move |error: &Error| tell.lock().unwrap().push(error.to_string());
        let node = world
            .node_where(|s| {
                s.grace("1h").factory_timeout("2s").grace_backoff("30s").on_factory_error(hook)
            })
            .await;
        node.set("k", 1_u32).ttl("10s").await.unwrap();
        pass(secs(11)).await;
        node.seen.take();
        let hung = Source::held();
        // Served at once, and refreshed in the background, which fails after the timeout.
        assert_eq!(node.get_or_set("k", hung.gives(2_u32)).await.unwrap(), 1);
        pass(secs(3)).await;
        assert_eq!(told.lock().unwrap().len(), 1);
        assert!(told.lock().unwrap()[0].contains("factory timeout"));
        let failed =
            |e: &EventKind<'_>| matches!(e, EventKind::FactoryFailed { background: true, .. });
        assert_eq!(node.seen.count(failed), 1);
        // The source is left alone for a while, and then asked again.
        for _ in 0..5 {
            assert_eq!(node.get_or_set("k", hung.gives(2_u32)).await.unwrap(), 1);
            calm().await;
        }
        assert_eq!(hung.runs(), 1);
        pass(secs(31)).await;
        node.get_or_set("k", Source::new().gives(3_u32)).await.unwrap();
        calm().await;
        assert_eq!(get(&node, "k").await, Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_factory_that_hangs_gets_the_stale_value_in_the_end() {
    let node = stale(&World::new()).await;
    let began = Instant::now();
    let call = node.get_or_set("k", Source::held().gives(2_u32));
    assert_eq!(call.timeout("none").factory_timeout("3s").await.unwrap(), 1);
    assert_eq!(began.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_factory_timeout_of_none_a_text_or_a_duration_and_a_bad_one() {
    let node = World::new().node_where(|s| s.factory_timeout(ms(10))).await;
    let slow = Source::slow(secs(1));
    assert_eq!(node.get_or_set("a", slow.gives(1_u32)).factory_timeout("none").await.unwrap(), 1);
    assert!(node.get_or_set("b", slow.gives(1_u32)).await.is_err());
    let error = node.get_or_set("c", slow.gives(1_u32)).factory_timeout("soon").await.unwrap_err();
    assert!(error.to_string().contains("factory_timeout"), "{error}");
    let store = || Store::new().l1(Memory::new());
    let bento = BentoCache::builder().factory_timeout("a while").store("s", store());
    assert!(bento.build().await.unwrap_err().to_string().contains("factory_timeout"));
    // The whole cache's, and a cache that is switched off.
    for enabled in [true, false] {
        let bento = BentoCache::builder().factory_timeout("1s").enabled(enabled);
        let bento = bento.store("s", store()).build().await.unwrap();
        let call = bento.get_or_set("k", Source::held().gives(1_u32)).await;
        assert!(matches!(call, Err(Error::FactoryTimeout { .. })), "{call:?}");
        let call = bento.get_or_set_many(["k"], many(&Source::held(), 1)).await;
        assert!(matches!(call, Err(Error::FactoryTimeout { .. })), "{call:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_freed_by_the_factory_timeout_together() {
    for world in worlds() {
        let node = stale(&world).await;
        let hung = Source::held();
        let call = node.get_or_set_many(["k", "x", "y"], many(&hung, 2));
        let error = call.factory_timeout("2s").timeout("none").await.unwrap_err();
        assert!(matches!(&error, Error::FactoryTimeout { .. }), "{error:?}");
        assert_eq!((hung.runs(), hung.ended()), (1, 1));
        let call = node.get_or_set_many(["k", "x", "y"], many(&Source::new(), 3));
        assert_eq!(call.await.unwrap(), [Some(1), Some(3), Some(3)], "k has its backoff");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_drop_of_a_factory_goes_no_further() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let node = World::new().node().await;
    let call = node.get_or_set("k", |_| async {
        let _bomb = Bomb;
        std::future::pending::<Result<u32, Error>>().await
    });
    let error = call.factory_timeout("1s").await.unwrap_err();
    assert!(matches!(&error, Error::FactoryTimeout { .. }), "{error:?}");
    assert_eq!(node.fill("k", 2).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_typed_handle_and_a_refresh_ahead_of_expiry_have_a_factory_timeout() {
    let node = World::new().node_where(|s| s.early_refresh(0.5)).await;
    let typed = node.typed::<u32>();
    let hung = Source::held();
    let call = typed.get_or_set("t", hung.gives(1)).factory_timeout("1s").await;
    assert!(matches!(call, Err(Error::FactoryTimeout { .. })), "{call:?}");

    node.set("k", 1_u32).ttl("100s").await.unwrap();
    pass(secs(60)).await;
    let refresh = || node.get_or_set("k", hung.gives(2_u32)).grace_backoff("5s");
    assert_eq!(refresh().factory_timeout("1s").await.unwrap(), 1);
    hung.begun(2).await;
    pass(secs(2)).await;
    assert_eq!(hung.ended(), 2);
    pass(secs(5)).await;
    assert_eq!(node.get_or_set("k", Source::new().gives(3_u32)).await.unwrap(), 1);
    calm().await;
    assert_eq!(get(&node, "k").await, Some(3));
}

#[test]
fn a_blocking_factory_that_hangs_is_left_behind_after_the_factory_timeout() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let store = Store::new().l1(Memory::new()).factory_timeout("50ms");
    let bento = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let cache = bento.blocking();
    let hung = cache.get_or_set("k", move |_| {
        let _ = held.lock().unwrap().recv();
        Ok::<_, Error>(1_u32)
    });
    assert!(matches!(hung, Err(Error::FactoryTimeout { .. })), "{hung:?}");
    assert_eq!(cache.get_or_set("k", |_| Ok::<_, Error>(2_u32)).unwrap(), 2);
    drop(release);
    assert_eq!(cache.get::<u32>("k").unwrap(), Some(2));
}

// A refresh that hangs, and callers who are served meanwhile.

#[tokio::test(start_paused = true)]
async fn a_hung_refresh_is_replaced_after_the_lock_timeout_although_nobody_waits_for_it() {
    for world in worlds() {
        let node = stale(&world).await;
        let (hung, source) = (Source::held(), Source::new());
        let ask = |source: &Source, value: u32| {
            node.get_or_set("k", source.gives(value)).lock_timeout("2s").into_future()
        };
        assert_eq!(ask(&hung, 2).await.unwrap(), 1);
        hung.begun(1).await;
        // Within the lock timeout no second factory runs.
        pass(secs(1)).await;
        assert_eq!(ask(&source, 3).await.unwrap(), 1);
        calm().await;
        assert_eq!(source.runs(), 0);
        pass(secs(1)).await;
        node.seen.take();
        let began = Instant::now();
        for _ in 0..3 {
            ask(&source, 3).await.unwrap();
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "they are served at once");
        calm().await;
        assert_eq!(source.runs(), 1);
        assert_eq!(node.seen.count(|e| matches!(e, EventKind::LockTimeout { .. })), 1);
        assert_eq!(get(&node, "k").await, Some(3));
        // What the hung one brings in the end is stored nowhere.
        hung.release();
        pass(secs(1)).await;
        assert_eq!(get(&node, "k").await, Some(3));
        assert!(node.document("k").is_none_or(|document| document["value"] == 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_refresh_that_fails_at_last_leaves_its_successor_alone() {
    let node = stale(&World::new()).await;
    let (hung, slow) = (Source::held(), Source::slow(secs(5)));
    let call = node.get_or_set("k", hung.fails(1)).lock_timeout("1s");
    assert_eq!(call.await.unwrap(), 1);
    hung.begun(1).await;
    pass(secs(1)).await;
    assert_eq!(node.get_or_set("k", slow.gives(2_u32)).lock_timeout("1s").await.unwrap(), 1);
    slow.begun(1).await;
    hung.release();
    pass(secs(6)).await;
    assert_eq!(get(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_hung_refresh_of_many_keys_is_replaced_key_by_key() {
    for world in worlds() {
        let node = stale(&world).await;
        let (hung, source) = (Source::held(), Source::new());
        let ask = |source: &Source, value: u32| {
            let call = node.get_or_set_many(["k"], many(source, value));
            call.lock_timeout("2s").into_future()
        };
        assert_eq!(ask(&hung, 2).await.unwrap(), [Some(1)]);
        hung.begun(1).await;
        pass(secs(2)).await;
        assert_eq!(ask(&source, 3).await.unwrap(), [Some(1)]);
        calm().await;
        assert_eq!((source.runs(), get(&node, "k").await), (1, Some(3)));
        hung.release();
        pass(secs(1)).await;
        assert_eq!(get(&node, "k").await, Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_refresh_ahead_of_expiry_is_replaced_while_the_value_is_fresh() {
    let node = World::new().node_where(|s| s.early_refresh(0.5).lock_timeout("2s")).await;
    node.set("k", 1_u32).ttl("100s").await.unwrap();
    pass(secs(60)).await;
    let (hung, source) = (Source::held(), Source::new());
    assert_eq!(node.get_or_set("k", hung.gives(2_u32)).await.unwrap(), 1);
    hung.begun(1).await;
    pass(secs(2)).await;
    assert_eq!(node.get_or_set("k", source.gives(3_u32)).await.unwrap(), 1);
    calm().await;
    assert_eq!((source.runs(), get(&node, "k").await), (1, Some(3)));
}

#[tokio::test(start_paused = true)]
async fn without_a_lock_timeout_a_refresh_may_take_its_time() {
    let node = stale(&World::new()).await;
    let (slow, source) = (Source::slow(secs(600)), Source::new());
    assert_eq!(node.get_or_set("k", slow.gives(2_u32)).await.unwrap(), 1);
    pass(secs(599)).await;
    assert_eq!(node.get_or_set("k", source.gives(3_u32)).await.unwrap(), 1);
    pass(secs(2)).await;
    assert_eq!((source.runs(), get(&node, "k").await), (0, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn the_successor_of_a_hung_refresh_gets_its_lease_between_processes() {
    let lock = MapLock::new();
    let chaos = ChaosLock::new(lock.clone());
    let node = World::new()
        .node_where(|s| s.lock(chaos).lock_lease("10s").grace("1h").lock_timeout("2s"))
        .await;
    node.set("k", 1_u32).ttl("10s").await.unwrap();
    pass(secs(11)).await;
    let (hung, source) = (Source::held(), Source::new());
    assert_eq!(node.get_or_set("k", hung.gives(2_u32)).await.unwrap(), 1);
    hung.begun(1).await;
    let holder = lock.holder("bentocache:k").unwrap();
    pass(secs(2)).await;
    assert_eq!(node.get_or_set("k", source.gives(3_u32)).await.unwrap(), 1);
    pass(ms(200)).await;
    assert_eq!((source.runs(), get(&node, "k").await), (1, Some(3)));
    assert_ne!(lock.holder("bentocache:k"), Some(holder));
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_waits_for_another_process_is_not_taken_for_a_hung_one() {
    let (world, lock) = (World::new(), MapLock::new());
    let node = |lock: MapLock| {
        world.node_where(|s| s.lock(lock).lock_lease("10s").grace("1h").lock_timeout("2s"))
    };
    let (a, b) = (node(lock.clone()).await, node(lock).await);
    a.set("k", 1_u32).ttl("10s").await.unwrap();
    pass(secs(11)).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let slow = Source::slow(secs(60));
    assert_eq!(a.get_or_set("k", slow.gives(2_u32)).await.unwrap(), 1);
    slow.begun(1).await;
    // Asked all the time, the other process runs its own factory after the lock timeout, once.
    for _ in 0..30 {
        let runs = runs.clone();
        let factory = move |_| async move {
            runs.fetch_add(1, SeqCst);
            pass(ms(500)).await;
            Ok::<_, Error>(3_u32)
        };
        b.get_or_set("k", factory).await.unwrap();
        pass(ms(100)).await;
    }
    assert_eq!((runs.load(SeqCst), get(&b, "k").await), (1, Some(3)));
}
