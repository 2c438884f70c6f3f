//! Timeouts of callers: soft, hard and lock. Every wait is bounded by the waiter's own, and a
//! factory that is no longer waited for goes on in the background.

use std::time::Duration;

use crate::common::{Node, World, get, ms, pass, secs, settle};
use crate::races::{Source, calm, down, go};
use bentocache::{Error, EventKind, RecoveryMode, Store, TimeSpan};
use bentocache_testkit::Ops;
use tokio::time::Instant;

/// A node with `k` = 1, stale for a second, to be served for an hour. Calls take a stale value.
async fn stale(world: &World) -> Node {
    let node = world.node_where(|store| store.grace("1h")).await;
    node.set("k", 1_u32).ttl("10s").await.unwrap();
    pass(secs(11)).await;
    node
}

fn worlds() -> [World; 3] {
    [World::only_l1(), World::only_l2(), World::new()]
}

#[tokio::test(start_paused = true)]
async fn by_default_a_stale_value_is_served_at_once_and_refreshed_in_the_background() {
    for world in worlds() {
        let node = stale(&world).await;
        let source = Source::slow(secs(3));
        let began = Instant::now();
        assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
        assert_eq!(began.elapsed(), Duration::ZERO);
        // Concurrent callers are also served at once, and start no factory.
        for _ in 0..10 {
            assert_eq!(node.get_or_set("k", source.gives(3_u32)).await.unwrap(), 1);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        pass(secs(4)).await;
        assert_eq!((get(&node, "k").await, source.runs()), (Some(2), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn the_soft_timeout_is_waited_for_exactly_and_then_the_stale_value_is_served() {
    for world in worlds() {
        let node = stale(&world).await;
        let source = Source::slow(ms(500));
        let began = Instant::now();
        let call = node.get_or_set("k", source.gives(2_u32)).timeout("200ms");
        assert_eq!((call.await.unwrap(), began.elapsed()), (1, ms(200)));
        // The factory went on.
        pass(ms(301)).await;
        assert_eq!((get(&node, "k").await, source.runs()), (Some(2), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_within_the_soft_timeout_gives_the_new_value() {
    let node = stale(&World::new()).await;
    let source = Source::slow(ms(199));
    let call = node.get_or_set("k", source.gives(2_u32)).timeout("200ms");
    assert_eq!(call.await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_soft_timeout_the_factory_is_waited_for() {
    let node = stale(&World::new()).await;
    for (key, timeout) in [("k", TimeSpan::from("none")), ("k", TimeSpan::NONE)] {
        let source = Source::slow(secs(100));
        let began = Instant::now();
        let call = node.get_or_set(key, source.gives(2_u32)).timeout(timeout).ttl("1s");
        assert_eq!((call.await.unwrap(), began.elapsed()), (2, secs(100)));
        pass(secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_soft_timeout_is_no_limit_without_a_stale_value_or_without_grace() {
    let node = World::new().node().await;
    let source = Source::slow(secs(5));
    let call = node.get_or_set("none", source.gives(2_u32)).timeout("1ms").grace("1h");
    assert_eq!(call.await.unwrap(), 2);

    node.set("stale", 1_u32).ttl("1s").grace("1h").await.unwrap();
    pass(secs(2)).await;
    let call = node.get_or_set("stale", source.gives(3_u32)).timeout("1ms");
    assert_eq!(call.await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_caller_waits_for_its_own_soft_timeout() {
    let node = stale(&World::new()).await;
    let source = Source::slow(secs(10));
    let began = Instant::now();
    let first = go(node.get_or_set("k", source.gives(2_u32)).timeout("1s"));
    source.begun(1).await;
    let short = node.get_or_set("k", source.gives(3_u32)).timeout("300ms");
    assert_eq!((short.await.unwrap(), began.elapsed()), (1, ms(300)));
    assert_eq!((first.await.unwrap().unwrap(), began.elapsed()), (1, secs(1)));
    let patient = node.get_or_set("k", source.gives(3_u32)).timeout("none");
    assert_eq!((patient.await.unwrap(), began.elapsed()), (2, secs(10)));
}

#[tokio::test(start_paused = true)]
async fn the_hard_timeout_is_an_error_with_the_key_and_the_value_is_stored_later() {
    for world in worlds() {
        let node = world.node().await;
        let source = Source::slow(ms(500));
        let began = Instant::now();
        let names = node.namespace("n");
        let call = names.get_or_set("k", source.gives(2_u32)).hard_timeout("200ms");
        let error = call.await.unwrap_err();
        assert_eq!(began.elapsed(), ms(200));
        assert!(matches!(&error, Error::HardTimeout { after, .. } if *after == ms(200)));
        assert_eq!(error.key(), Some("n:k"));
        assert!(error.is_timeout());
        pass(ms(301)).await;
        assert_eq!((get(&node, "n:k").await, source.runs()), (Some(2), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn with_a_stale_value_the_hard_timeout_comes_into_play_only_before_the_soft_one() {
    let node = stale(&World::new()).await;
    let source = Source::slow(secs(9));
    let call = node.get_or_set("k", source.gives(2_u32)).timeout("1s").hard_timeout("2s");
    assert_eq!(call.await.unwrap(), 1);
    let call = node.get_or_set("k", source.gives(2_u32)).timeout("none").hard_timeout("2s");
    assert!(matches!(call.await, Err(Error::HardTimeout { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_hard_timeout_bounds_the_wait_for_the_flight_of_another() {
    let node = World::new().node().await;
    let hung = Source::held();
    let _leader = go(node.get_or_set("k", hung.gives(1_u32)));
    hung.begun(1).await;
    let began = Instant::now();
    let calls: Vec<_> = (1..=5_u64)
        .map(|i| go(node.get_or_set("k", hung.gives(2_u32)).hard_timeout(ms(100 * i))))
        .collect();
    for (i, call) in calls.into_iter().enumerate() {
        assert!(matches!(call.await.unwrap(), Err(Error::HardTimeout { .. })));
        assert_eq!(began.elapsed(), ms(100 * (i as u64 + 1)));
    }
    assert_eq!(hung.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hung_background_factory_blocks_nobody_for_longer_than_their_own_timeouts() {
    let node = stale(&World::new()).await;
    let hung = Source::held();
    assert_eq!(node.get_or_set("k", hung.gives(2_u32)).await.unwrap(), 1);
    hung.begun(1).await;
    // Past the end of the stale value: nothing is left to fall back on.
    pass(secs(3_700)).await;
    let began = Instant::now();
    let call = node.get_or_set("k", hung.gives(2_u32)).hard_timeout("1s");
    assert!(matches!(call.await, Err(Error::HardTimeout { .. })));
    assert_eq!(began.elapsed(), secs(1));
    let source = Source::new();
    let call = node.get_or_set("k", source.gives(3_u32)).lock_timeout("2s");
    assert_eq!((call.await.unwrap(), began.elapsed()), (3, secs(3)));
    // And what the hung one brings in the end does not replace it.
    hung.release();
    calm().await;
    assert_eq!(get(&node, "k").await, Some(3));
    assert_eq!(node.document("k").unwrap()["value"], 3);
}

#[tokio::test(start_paused = true)]
async fn the_hard_timeout_covers_a_hung_second_tier() {
    let node = World::new().node_where(|s| s.l2_timeout("none", "none")).await;
    node.l2.on(Ops::GET).hang();
    let began = Instant::now();
    let call = node.get_or_set("k", Source::new().gives(2_u32)).hard_timeout("700ms");
    assert!(matches!(call.await, Err(Error::HardTimeout { .. })));
    assert_eq!(began.elapsed(), ms(700));
}

#[tokio::test(start_paused = true)]
async fn a_hard_timeout_of_0_is_over_at_once_but_not_for_a_hit() {
    let node = World::new().node().await;
    let source = Source::slow(secs(1));
    let began = Instant::now();
    let call = node.get_or_set("k", source.gives(2_u32)).hard_timeout(Duration::ZERO);
    assert!(matches!(call.await, Err(Error::HardTimeout { .. })));
    assert_eq!(began.elapsed(), Duration::ZERO);
    pass(secs(2)).await;
    let call = node.get_or_set("k", source.gives(3_u32)).hard_timeout(Duration::ZERO);
    assert_eq!(call.await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_the_lock_timeout_a_stale_value_is_served_if_there_is_one() {
    for world in worlds() {
        let node = stale(&world).await;
        let hung = Source::held();
        let _leader = go(node.get_or_set("k", hung.gives(2_u32)).timeout("none"));
        hung.begun(1).await;
        let began = Instant::now();
        let call = node.get_or_set("k", hung.gives(3_u32)).timeout("none").lock_timeout("400ms");
        assert_eq!((call.await.unwrap(), began.elapsed()), (1, ms(400)));
        assert_eq!(hung.runs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_lock_timeout_without_a_stale_value_the_caller_runs_the_factory_itself() {
    let node = World::new().node().await;
    let (hung, source) = (Source::held(), Source::new());
    let leader = go(node.get_or_set("k", hung.gives(1_u32)));
    hung.begun(1).await;
    let began = Instant::now();
    let call = node.get_or_set("k", source.gives(2_u32)).lock_timeout("400ms");
    // No error of a mutex, and none of ours either.
    assert_eq!((call.await.unwrap(), began.elapsed()), (2, ms(400)));
    assert_eq!(node.seen.count(|e| matches!(e, EventKind::LockTimeout { .. })), 1);
    // The first caller still gets its own value, which is not stored over the newer one.
    hung.release();
    assert_eq!(leader.await.unwrap().unwrap(), 1);
    calm().await;
    assert_eq!(get(&node, "k").await, Some(2));
    assert_eq!(node.document("k").unwrap()["value"], 2);
}

#[tokio::test(start_paused = true)]
async fn all_whose_lock_timeout_passes_share_one_new_run() {
    let node = World::new().node().await;
    let (hung, source) = (Source::held(), Source::slow(ms(50)));
    let _leader = go(node.get_or_set("k", hung.gives(1_u32)));
    hung.begun(1).await;
    let calls: Vec<_> = (0..100)
        .map(|_| go(node.get_or_set("k", source.gives(2_u32)).lock_timeout("400ms")))
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 2);
    }
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_lock_timeout_is_no_limit_for_ones_own_factory() {
    let node = World::new().node().await;
    let source = Source::slow(secs(9));
    let call = node.get_or_set("k", source.gives(2_u32)).lock_timeout("1ms");
    assert_eq!((call.await.unwrap(), source.runs()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_ends_within_the_lock_timeout_gives_its_value() {
    let node = World::new().node().await;
    let source = Source::slow(ms(300));
    let _leader = go(node.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    let call = node.get_or_set("k", source.gives(2_u32)).lock_timeout("400ms");
    assert_eq!((call.await.unwrap(), source.runs()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn background_results_are_stored_exactly_like_foreground_ones() {
    let node = stale(&World::new()).await;
    let factory = |cx: bentocache::Context<u32>| async move {
        pass(secs(1)).await;
        cx.ttl("20s").grace("40s").tags(["added"]);
        Ok::<_, Error>(2_u32)
    };
    let call = node.get_or_set("k", factory).tags(["given"]);
    assert_eq!(call.await.unwrap(), 1);
    pass(ms(1_001)).await;
    let document = node.document("k").unwrap();
    assert_eq!(document["value"], 2);
    assert_eq!(document["tags"], serde_json::json!(["given", "added"]));
    let left = node.remaining("k").unwrap();
    assert!(left > secs(59) && left <= secs(60), "{left:?}");
    assert_eq!(node.seen.count(|e| matches!(e, EventKind::Written { .. })), 2);
}

#[tokio::test(start_paused = true)]
async fn events_tell_a_soft_timeout_a_hard_one_and_work_in_the_background() {
    let node = stale(&World::only_l1()).await;
    node.seen.take();
    let call = node.get_or_set("k", Source::slow(secs(1)).gives(2_u32)).timeout("100ms");
    call.await.unwrap();
    pass(secs(1)).await;
    assert_eq!(
        node.seen.texts(),
        ["soft timeout k", "graced l1 k", "factory ok background k", "written k"]
    );
    let call = node.get_or_set("x", Source::slow(secs(1)).fails(1)).hard_timeout("100ms");
    call.await.unwrap_err();
    pass(secs(1)).await;
    assert_eq!(node.seen.texts(), ["hard timeout x", "miss x", "factory failed background x"]);
}

#[tokio::test(start_paused = true)]
async fn the_longest_duration_there_is_does_no_harm_anywhere() {
    // One that is no limit, and one that is nearly none.
    for long in [Duration::MAX, ms(u64::MAX - 1), secs(30 * 24 * 3_600)] {
        for world in worlds() {
            let node = world
                .node_where(|s| {
                    s.ttl(long)
                        .l1_ttl(long)
                        .grace(long)
                        .grace_backoff(long)
                        .timeout(long)
                        .hard_timeout(long)
                        .lock_timeout(long)
                        .l2_timeout(long, long)
                        .l2_circuit_breaker(long, 2)
                        .jitter(long)
                        .tag_ttl(long)
                        .tag_check_interval(long)
                        .recovery(10, long)
                })
                .await;
            let source = Source::slow(secs(40));
            let (first, second) = (
                go(node.get_or_set("k", source.gives(2_u32)).tags(["t"])),
                go(node.get_or_set("k", source.gives(3_u32)).jitter(long)),
            );
            assert_eq!(first.await.unwrap().unwrap(), 2, "{long:?}");
            assert_eq!(second.await.unwrap().unwrap(), 2, "{long:?}");
            pass(secs(3_600)).await;
            assert_eq!(get(&node, "k").await, Some(2), "{long:?}");
            node.set("s", 1_u32).ttl(long).grace(long).l1_ttl(long).await.unwrap();
            node.expire("s").await.unwrap();
            let call = node.get_or_set("s", source.fails(1)).timeout(long).grace(long);
            assert_eq!(call.await.unwrap(), 1, "{long:?}");
            node.delete_by_tag(["t"]).await.unwrap();
            let call = node.get_or_set("k", source.gives(4_u32)).grace("off").force_fresh(true);
            assert_eq!(call.await.unwrap(), 4, "{long:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_retry_interval_survives_failures_and_reconnections() {
    let options = |s: Store| s.recovery(10, Duration::MAX).recovery_mode(RecoveryMode::LastWrite);
    let node = World::new().node_where(options).await;
    for round in 0..3_u32 {
        node.l2.cut();
        node.bus.cut();
        node.set_forever("k", round).await.unwrap();
        pass(secs(3_600)).await;
        // A reconnection that does not last.
        node.l2.on(Ops::WRITES).fail();
        node.l2.restore();
        node.bus.on(Ops::PUBLISH).fail();
        node.bus.restore();
        pass(secs(5)).await;
        node.l2.cut();
        node.bus.cut();
        node.l2.calm();
        node.bus.calm();
        pass(secs(5)).await;
        node.l2.restore();
        node.bus.restore();
        pass(secs(5)).await;
        assert_eq!(node.document("k").unwrap()["value"], round);
    }
    node.seen.take();
    node.set("after", 1_u32).await.unwrap();
    calm().await;
    assert_eq!(node.seen.count(|e| matches!(e, EventKind::BusPublished { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn many_keys_obey_the_same_timeouts() {
    let node = stale(&World::new()).await;
    let slow = |source: &Source| {
        let source = source.clone();
        move |cx: bentocache::ManyContext| {
            let source = source.clone();
            async move {
                source.run().await;
                let of = |key: &String| (key.clone(), 9_u32);
                Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
            }
        }
    };
    let source = Source::slow(secs(2));
    let began = Instant::now();
    let many = node.get_or_set_many(["k"], slow(&source)).timeout("500ms");
    assert_eq!((many.await.unwrap(), began.elapsed()), (vec![Some(1)], ms(500)));
    pass(secs(2)).await;
    assert_eq!(get(&node, "k").await, Some(9));

    let began = Instant::now();
    let many = node.get_or_set_many(["k", "x", "y"], slow(&source)).hard_timeout("500ms");
    let error = many.await.unwrap_err();
    assert!(matches!(&error, Error::HardTimeout { .. }), "{error:?}");
    assert_eq!(began.elapsed(), ms(500));
    pass(secs(2)).await;
    assert_eq!((get(&node, "x").await, get(&node, "y").await), (Some(9), Some(9)));

    let hung = Source::held();
    let _leader = go(node.get_or_set("z", hung.gives(1_u32)));
    hung.begun(1).await;
    let began = Instant::now();
    let many = node.get_or_set_many(["w", "z"], slow(&Source::new())).lock_timeout("300ms");
    assert_eq!((many.await.unwrap(), began.elapsed()), (vec![Some(9), Some(9)], ms(300)));
}

#[tokio::test(start_paused = true)]
async fn an_error_within_the_timeouts_goes_before_them() {
    let node = World::new().node().await;
    let call = node.get_or_set("k", Source::slow(ms(100)).fails(5)).hard_timeout("200ms");
    assert_eq!(down(call.await), 5);
}

#[tokio::test(start_paused = true)]
async fn the_soft_l2_timeout_holds_for_a_stale_value_that_a_message_left_in_doubt() {
    let world = World::new();
    let node = world.node_where(|s| s.grace("1h").l2_timeout("50ms", "1s")).await;
    let other = world.node().await;
    node.set("k", 1_u32).await.unwrap();
    other.expire("k").await.unwrap();
    settle().await;
    node.l2.on(Ops::GET).slow(ms(500));
    let start = Instant::now();
    assert_eq!(node.get("k").await.unwrap(), Some(1_u32));
    assert_eq!(start.elapsed(), ms(50));
    // There is nothing to serve instead.
    assert_eq!(node.get::<u32>("none").await.unwrap(), None);
    assert_eq!(start.elapsed(), ms(550));
}
