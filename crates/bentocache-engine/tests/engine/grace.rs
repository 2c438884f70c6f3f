//! Grace: stale values when a factory fails or is slow, the backoff after a failure, and forced
//! refreshes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::common::{Node, World, get_stale, ms, pass, secs};
use crate::races::{Source, calm, down, fresh, go};
use bentocache::{Context, Error, EventKind};
use bentocache_testkit::Ops;

fn worlds() -> [World; 3] {
    [World::only_l1(), World::only_l2(), World::new()]
}

/// A node whose calls take stale values for an hour and wait for their factories.
async fn patient(world: &World) -> Node {
    world.node_where(|s| s.ttl("10s").grace("1h").timeout("none")).await
}

#[tokio::test(start_paused = true)]
async fn a_failed_factory_is_covered_by_the_stale_value() {
    for world in worlds() {
        let node = patient(&world).await;
        let source = Source::new();
        node.set("k", 1_u32).await.unwrap();
        pass(secs(11)).await;
        assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
        assert_eq!(source.runs(), 1);
        // Not for callers without grace: for them the backoff is over.
        pass(secs(11)).await;
        assert_eq!(down(node.get_or_set("k", source.fails(2)).grace("off").await), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_stale_value_the_failure_is_the_callers() {
    let node = patient(&World::new()).await;
    assert_eq!(down(node.get_or_set("none", Source::new().fails(1)).await), 1);
    node.set("over", 1_u32).grace("5s").await.unwrap();
    pass(ms(15_001)).await;
    assert_eq!(down(node.get_or_set("over", Source::new().fails(2)).await), 2);
}

#[tokio::test(start_paused = true)]
async fn the_backoff_counts_from_the_failure_however_long_ago_the_value_expired() {
    for world in worlds() {
        for expired_for in [ms(390), secs(3_000)] {
            let node =
                world.node_where(|s| s.grace("1h").timeout("none").grace_backoff("100ms")).await;
            let source = Source::new();
            node.set("k", 1_u32).ttl("10s").await.unwrap();
            pass(secs(10) + expired_for).await;
            for _ in 0..5 {
                assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
            }
            assert_eq!(source.runs(), 1, "{expired_for:?}");
            pass(ms(99)).await;
            assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
            assert_eq!(source.runs(), 1);
            pass(ms(2)).await;
            assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
            assert_eq!(source.runs(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_background_backs_off_too() {
    for world in worlds() {
        let node = world.node_where(|s| s.grace("1h").grace_backoff("20s")).await;
        let source = Source::slow(ms(5));
        node.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(secs(2)).await;
        for _ in 0..5 {
            assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
            pass(ms(10)).await;
        }
        assert_eq!(source.runs(), 1);
        pass(secs(20)).await;
        assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
        calm().await;
        assert_eq!(source.runs(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn no_backoff_serves_a_value_past_its_end() {
    for world in worlds() {
        for backoff in [ms(200), Duration::MAX] {
            let node =
                world.node_where(|s| s.grace("300ms").timeout("none").grace_backoff(backoff)).await;
            node.set("k", 1_u32).ttl("100ms").await.unwrap();
            // The end is fixed when the value is produced: 400 ms from there.
            for _ in 0..39 {
                pass(ms(10)).await;
                assert_eq!(node.get_or_set("k", Source::new().fails(1)).await.unwrap(), 1);
            }
            pass(ms(11)).await;
            let error = node.get_or_set("k", Source::new().fails(7)).await;
            assert_eq!(down(error), 7, "{backoff:?}");
            assert_eq!(get_stale(&node, "k").await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_background_factory_that_keeps_failing_serves_nothing_past_the_end() {
    let node = World::new().node_where(|s| s.grace("300ms").grace_backoff("50ms")).await;
    node.set("k", 1_u32).ttl("100ms").await.unwrap();
    for _ in 0..39 {
        pass(ms(10)).await;
        assert_eq!(node.get_or_set("k", Source::new().fails(1)).await.unwrap(), 1);
    }
    pass(ms(11)).await;
    assert_eq!(down(node.get_or_set("k", Source::new().fails(7)).await), 7);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_that_dies_while_it_is_waited_for_is_not_served() {
    for world in worlds() {
        let node = world.node_where(|s| s.grace("1s")).await;
        node.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(ms(1_500)).await;
        // It ends 500 ms from here, the factory later.
        let failing = Source::slow(ms(800));
        let error = node.get_or_set("k", failing.fails(3)).timeout("none").await;
        assert_eq!(down(error), 3);

        node.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(ms(1_500)).await;
        let source = Source::slow(secs(2));
        let call = node.get_or_set("k", source.gives(2_u32)).timeout("600ms");
        assert_eq!(call.await.unwrap(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grace_shorter_than_the_ttl_does_not_cut_the_ttl_short() {
    for world in worlds() {
        let node = world.node_where(|s| s.ttl("1h").grace("10m").timeout("none")).await;
        let source = Source::new();
        node.get_or_set("k", source.gives(1_u32)).await.unwrap();
        pass(secs(3_599)).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        pass(secs(600)).await;
        assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
        pass(secs(3)).await;
        assert_eq!(down(node.get_or_set("k", source.fails(2)).await), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_backoff_is_applied_in_every_tier_the_entry_lives_in() {
    let world = World::new();
    let (a, b) = (patient(&world).await, patient(&world).await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(fresh(&b, "k").await, Some(1));
    let end = a.remaining("k").unwrap();
    pass(secs(11)).await;
    let source = Source::new();
    assert_eq!(a.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    // The other node finds it in L2 and does not call the source.
    assert_eq!(b.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    assert_eq!(fresh(&world.node().await.cache, "k").await, Some(1));
    assert_eq!(source.runs(), 1);
    // What is left there stays what is left.
    assert_eq!(a.remaining("k").unwrap(), end.checked_sub(secs(11)).unwrap());
    assert_eq!(a.document("k").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn the_backoff_gets_no_jitter() {
    let node = World::new()
        .node_where(|s| s.ttl("1s").grace("1h").timeout("none").grace_backoff("10s").jitter("1m"))
        .await;
    node.set("k", 1_u32).jitter("off").await.unwrap();
    pass(secs(2)).await;
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    pass(ms(10_001)).await;
    assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    assert_eq!(source.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_backoff_every_call_asks_the_source() {
    let node = World::new()
        .node_where(|s| s.ttl("1s").grace("1h").timeout("none").grace_backoff(Duration::ZERO))
        .await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(2)).await;
    let source = Source::new();
    for _ in 0..5 {
        assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    }
    assert_eq!(source.runs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_success_after_failures_replaces_the_value() {
    let node = patient(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(11)).await;
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    pass(secs(11)).await;
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 2);
    assert_eq!((fresh(&node, "k").await, source.runs()), (Some(2), 2));
}

#[tokio::test(start_paused = true)]
async fn ten_waiters_on_a_failing_factory_all_get_the_stale_value() {
    for world in worlds() {
        let node = patient(&world).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(11)).await;
        let source = Source::slow(ms(30));
        let calls: Vec<_> = (0..10).map(|i| go(node.get_or_set("k", source.fails(i)))).collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap(), 1);
        }
        assert_eq!(source.runs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn waiters_without_grace_get_the_error_that_others_are_spared() {
    let node = patient(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(11)).await;
    let source = Source::held();
    let graced = go(node.get_or_set("k", source.fails(1)));
    source.begun(1).await;
    let strict = go(node.get_or_set("k", source.fails(2)).grace("off"));
    calm().await;
    source.release();
    assert_eq!(graced.await.unwrap().unwrap(), 1);
    assert_eq!(down(strict.await.unwrap()), 1);
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fresh_value_in_the_second_tier_goes_before_a_stale_one_in_the_first() {
    let world = World::without_bus();
    for timeout in ["0s", "none"] {
        let (a, b) = (patient(&world).await, patient(&world).await);
        a.set("k", 1_u32).await.unwrap();
        assert_eq!(fresh(&b, "k").await, Some(1));
        pass(secs(11)).await;
        a.set("k", 2_u32).await.unwrap();
        let source = Source::new();
        let call = b.get_or_set("k", source.gives(3_u32)).timeout(timeout);
        assert_eq!((call.await.unwrap(), source.runs()), (2, 0));
        assert_eq!(get_stale(&b, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_stale_entries_the_newer_is_served() {
    let world = World::without_bus();
    let (a, b) = (patient(&world).await, patient(&world).await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(fresh(&b, "k").await, Some(1));
    pass(secs(5)).await;
    a.set("k", 2_u32).await.unwrap();
    pass(secs(11)).await;
    assert_eq!(get_stale(&b, "k").await, Some(2));
    assert_eq!(b.get_or_set("k", Source::new().fails(1)).await.unwrap(), 2);

    a.set("l", 1_u32).await.unwrap();
    pass(ms(5)).await;
    b.set("l", 2_u32).skip_l2_write(true).await.unwrap();
    pass(secs(11)).await;
    assert_eq!(get_stale(&b, "l").await, Some(2));
    assert_eq!(b.get_or_set("l", Source::new().fails(1)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_entry_expired_by_a_message_is_looked_up_before_it_is_served_stale() {
    let world = World::new();
    let (a, b) = (patient(&world).await, patient(&world).await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(fresh(&b, "k").await, Some(1));
    a.set("k", 2_u32).await.unwrap();
    crate::common::settle().await;
    // Even at once, and even when the factory fails.
    let call = b.get_or_set("k", Source::new().fails(1)).timeout("0s");
    assert_eq!(call.await.unwrap(), 2);
    a.delete("k").await.unwrap();
    crate::common::settle().await;
    assert_eq!(down(b.get_or_set("k", Source::new().fails(9)).timeout("0s").await), 9);
}

#[tokio::test(start_paused = true)]
async fn skip_serves_no_stale_value() {
    let node = patient(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(11)).await;
    let skip = |cx: Context<u32>| async move { cx.skip::<u32>() };
    assert!(node.get_or_set("k", skip).await.unwrap_err().is_skipped());
    assert_eq!(node.get_or_set("k", skip).optional().await.unwrap(), None);
    assert_eq!(fresh(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_of_another_type_counts_as_none() {
    for world in worlds() {
        for timeout in ["0s", "1s", "none"] {
            let node = patient(&world).await;
            node.set("k", 1_u32).await.unwrap();
            pass(secs(11)).await;
            let source = Source::slow(secs(2));
            let call = node.get_or_set("k", source.gives("new".to_owned())).timeout(timeout);
            assert_eq!(call.await.unwrap(), "new", "{timeout}");
            node.delete("k").await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_of_another_type_does_not_choke_on_the_flights_stale_value() {
    for world in worlds() {
        for timeouts in [("0s", "none"), ("1s", "none"), ("none", "1s")] {
            let node = patient(&world).await;
            node.set("k", 1_u32).await.unwrap();
            pass(secs(11)).await;
            let (numbers, texts) = (Source::slow(secs(3)), Source::new());
            let number = go(node.get_or_set("k", numbers.gives(2_u32)));
            numbers.begun(1).await;
            let text = node
                .get_or_set("k", texts.gives("new".to_owned()))
                .timeout(timeouts.0)
                .lock_timeout(timeouts.1);
            assert_eq!(text.await.unwrap(), "new", "{timeouts:?}");
            assert_eq!(number.await.unwrap().unwrap(), 2);
            node.delete("k").await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_that_fails_gives_the_entry_at_hand_if_grace_is_on() {
    for world in worlds() {
        let node = patient(&world).await;
        let source = Source::new();
        node.set("fresh", 1_u32).await.unwrap();
        let call = node.get_or_set("fresh", source.fails(1)).force_fresh(true);
        assert_eq!((call.await.unwrap(), source.runs()), (1, 1));
        // It is what it was.
        assert_eq!(fresh(&node, "fresh").await, Some(1));
        pass(ms(9_999)).await;
        assert_eq!(fresh(&node, "fresh").await, Some(1));
        pass(ms(2)).await;
        assert_eq!(fresh(&node, "fresh").await, None);

        let call = node.get_or_set("fresh", source.fails(1)).force_fresh(true);
        assert_eq!(call.await.unwrap(), 1);
        node.set("fresh", 2_u32).await.unwrap();
        let call = node.get_or_set("fresh", source.fails(5)).force_fresh(true).grace("off");
        assert_eq!(down(call.await), 5);
        assert_eq!(fresh(&node, "fresh").await, Some(2));
        let call = node.get_or_set("none", source.fails(6)).force_fresh(true);
        assert_eq!(down(call.await), 6);
    }
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_waits_for_its_factory_whatever_the_soft_timeout() {
    let node = World::new().node_where(|s| s.grace("1h")).await;
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let call = node.get_or_set("k", Source::slow(secs(9)).gives(2_u32)).force_fresh(true);
    assert_eq!(call.await.unwrap(), 2);
    let call = node.get_or_set("k", Source::slow(secs(9)).gives(3_u32)).force_fresh(true);
    assert!(matches!(call.hard_timeout("1s").await, Err(Error::HardTimeout { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_hook_hears_every_failure_in_the_foreground_and_in_the_background() {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = |heard: &Arc<AtomicUsize>| {
        let heard = heard.clone();
        move |error: &Error| {
            assert!(error.factory::<crate::races::Down>().is_some());
            heard.fetch_add(1, SeqCst);
        }
    };
    let node = World::new()
        .node_where(|s| s.grace("1h").grace_backoff("1s").on_factory_error(count(&heard)))
        .await;
    node.get_or_set("k", Source::new().fails(1)).await.unwrap_err();
    assert_eq!(heard.load(SeqCst), 1);
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    node.get_or_set("k", Source::slow(ms(5)).fails(1)).await.unwrap();
    assert_eq!(heard.load(SeqCst), 1);
    pass(ms(10)).await;
    assert_eq!(heard.load(SeqCst), 2);
    // The call's own goes before the store's.
    pass(secs(2)).await;
    let own = Arc::new(AtomicUsize::new(0));
    let call = node.get_or_set("k", Source::new().fails(1)).timeout("none");
    call.on_factory_error(count(&own)).await.unwrap();
    assert_eq!((heard.load(SeqCst), own.load(SeqCst)), (2, 1));
    // A skip is not reported: it is no failure.
    let skip = |cx: Context<u32>| async move { cx.skip::<u32>() };
    node.get_or_set("x", skip).await.unwrap_err();
    assert_eq!(heard.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_breaks_nothing() {
    let node = World::new()
        .node_where(|s| s.grace("1h").on_factory_error(|_| panic!("boom: the hook")))
        .await;
    assert_eq!(down(node.get_or_set("k", Source::new().fails(3)).await), 3);
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    assert_eq!(node.get_or_set("k", Source::slow(ms(5)).fails(1)).await.unwrap(), 1);
    pass(ms(10)).await;
    // The failure was backed off all the same.
    assert_eq!(fresh(&node, "k").await, Some(1));
    node.set("k", 2_u32).await.unwrap();
    assert_eq!(fresh(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_error_while_a_background_result_is_stored_is_reported_and_harmless() {
    for suppress in [true, false] {
        let node = World::new()
            .node_where(|s| s.grace("1h").suppress_l2_errors(suppress).l2_circuit_breaker("off", 1))
            .await;
        node.set("k", 1_u32).ttl("1s").await.unwrap();
        pass(secs(2)).await;
        node.seen.take();
        node.l2.on(Ops::SET).fail();
        assert_eq!(node.get_or_set("k", Source::slow(ms(5)).gives(2_u32)).await.unwrap(), 1);
        pass(ms(10)).await;
        let failed = |e: &EventKind<'_>| matches!(e, EventKind::L2Failed { operation: "set", .. });
        assert!(node.seen.count(failed) >= 1);
        node.l2.calm();
        node.set("k", 3_u32).await.unwrap();
        assert_eq!(fresh(&node, "k").await, Some(3));
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_fall_back_on_their_stale_values_and_back_off() {
    let node = patient(&World::new()).await;
    node.set("a", 1_u32).await.unwrap();
    node.set("b", 2_u32).await.unwrap();
    pass(secs(11)).await;
    let source = Source::new();
    let failing = |source: &Source| {
        let source = source.clone();
        move |_: bentocache::ManyContext| {
            let source = source.clone();
            async move {
                source.run().await;
                Err::<Vec<(String, u32)>, _>(crate::races::Down(4))
            }
        }
    };
    let both = || ["a", "b"];
    let values = node.get_or_set_many(both(), failing(&source)).await.unwrap();
    assert_eq!(values, [Some(1), Some(2)]);
    let values = node.get_or_set_many(both(), failing(&source)).await.unwrap();
    assert_eq!((values, source.runs()), (vec![Some(1), Some(2)], 1));
    // One without a stale value fails the call.
    assert_eq!(down(node.get_or_set_many(["a", "c"], failing(&source)).await), 4);
}

#[tokio::test(start_paused = true)]
async fn a_second_tier_that_fails_leaves_the_stale_value_of_the_first() {
    let node = patient(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(11)).await;
    node.l2.cut();
    assert_eq!(get_stale(&node, "k").await, Some(1));
    assert_eq!(node.get_or_set("k", Source::new().fails(1)).await.unwrap(), 1);
    // The backoff applies here, whatever L2 contains.
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    assert_eq!(source.runs(), 0);
}
