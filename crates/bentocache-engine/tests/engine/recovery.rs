//! An L2 that fails, hangs and comes back: timeouts, the breaker, and the repetition of
//! what failed.

use crate::common::{Node, World, get, get_stale, ms, pass, secs, settle};
use crate::races::{Source, fresh, go};
use bentocache::driver::{BusDriver, ErrorKind, Topic};
use bentocache::{Error, EventKind, RecoveryMode, Store};
use bentocache_engine::wire::message::{self, Kind, Sender};
use bentocache_testkit::{ChaosL2, MapL2, Ops};
use tokio::time::Instant;

/// A node without a breaker, so that failures reach the driver one by one.
async fn plain(world: &World) -> Node {
    world.node_where(|s| s.l2_circuit_breaker("off", 1)).await
}

fn is_queued(event: &EventKind<'_>) -> bool {
    matches!(event, EventKind::RecoveryQueued { .. })
}

fn is_dropped(event: &EventKind<'_>) -> bool {
    matches!(event, EventKind::RecoveryDropped { .. })
}

// ---- What failed is repeated ----

#[tokio::test(start_paused = true)]
async fn a_set_that_failed_is_stored_when_the_second_tier_is_back() {
    let world = World::new();
    let node = plain(&world).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).ttl("1h").grace("1h").tags(["t"]).await.unwrap();
    assert_eq!((get(&node, "k").await, node.document("k")), (Some(1), None));
    assert_eq!(node.seen.count(is_queued), 1);
    pass(secs(60)).await;
    node.l2.calm();
    pass(secs(45)).await;
    let document = node.document("k").unwrap();
    assert_eq!((document["value"].clone(), document["tags"].clone()), (1.into(), ["t"].into()));
    // Its life is what is left of it.
    let left = node.remaining("k").unwrap();
    assert!(left < secs(7_200 - 60) && left > secs(7_200 - 200), "{left:?}");
    assert_eq!(node.seen.count(|e| matches!(e, EventKind::RecoveryDone { queued: 0 })), 1);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_change_is_repeated_and_announced() {
    for change in crate::races::Change::ALL {
        let world = World::new();
        let (node, other) = (plain(&world).await, world.node().await);
        node.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
        settle().await;
        assert_eq!(fresh(&other.namespace("n"), "k").await, Some(1));
        pass(ms(1)).await;
        node.l2.on(Ops::WRITES).fail();
        change.of(&node).await;
        assert_eq!(fresh(&node.namespace("n"), "k").await, change.leaves(), "{change:?}");
        pass(secs(1)).await;
        node.l2.calm();
        pass(secs(5)).await;
        for node in [&node, &other, &world.node().await] {
            assert_eq!(fresh(&node.namespace("n"), "k").await, change.leaves(), "{change:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_factorys_value_that_failed_to_be_stored_is_never_stored_later() {
    let world = World::new();
    let node = plain(&world).await;
    node.l2.on(Ops::WRITES).fail();
    assert_eq!(crate::common::fill(&node, "k", 1).await, 1);
    let many = node.get_or_set_many(["a", "b"], |_| async {
        Ok::<_, Error>([("a".to_owned(), 2_u32), ("b".to_owned(), 3)])
    });
    many.await.unwrap();
    node.l2.calm();
    pass(secs(60)).await;
    // Another node may have invalidated it meanwhile, and a deletion leaves nothing to tell.
    assert!(node.map.is_empty(), "{:?}", node.map.all_keys());
    // All nodes are to have the same: here it is stale at most.
    assert_eq!((get(&node, "k").await, get(&node, "a").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn it_is_tried_again_every_two_seconds_with_growing_pauses() {
    let node = plain(&World::new()).await;
    settle().await;
    node.l2.on(Ops::SET).fail();
    node.set("k", 1_u32).ttl("1d").await.unwrap();
    node.l2.reset_calls();
    let sets = || node.l2.on(Ops::SET).calls();
    pass(ms(1_900)).await;
    assert_eq!(sets(), 0);
    pass(ms(700)).await;
    assert_eq!(sets(), 1);
    pass(secs(60)).await;
    let after_a_minute = sets();
    assert!((12..=24).contains(&after_a_minute), "{after_a_minute}");
    pass(secs(600)).await;
    // The pause never exceeds 5 seconds.
    let later = sets() - after_a_minute;
    assert!((150..=210).contains(&later), "{later}");
}

#[tokio::test(start_paused = true)]
async fn it_is_tried_at_once_when_the_driver_reports_a_reconnection() {
    let world = World::new();
    let node = world.node_where(|s| s.recovery(100, "1h").l2_circuit_breaker("off", 1)).await;
    node.l2.cut();
    node.set_forever("k", 1_u32).await.unwrap();
    pass(secs(600)).await;
    assert_eq!(node.document("k"), None);
    node.l2.restore();
    settle().await;
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn the_latest_change_of_a_key_is_the_one_that_is_repeated() {
    let world = World::new();
    let node = plain(&world).await;
    node.l2.on(Ops::WRITES).fail();
    for i in 0..10_u32 {
        node.set("k", i).await.unwrap();
    }
    node.set("gone", 1_u32).await.unwrap();
    node.delete("gone").await.unwrap();
    node.delete("back").await.unwrap();
    node.set("back", 2_u32).await.unwrap();
    node.l2.calm();
    node.l2.reset_calls();
    pass(secs(5)).await;
    assert_eq!(node.document("k").unwrap()["value"], 9);
    assert_eq!(node.document("gone"), None);
    assert_eq!(node.document("back").unwrap()["value"], 2);
    assert_eq!(node.l2.on(Ops::SET).calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_later_change_that_succeeds_ends_the_wait_of_an_earlier_one() {
    let world = World::new();
    let node = plain(&world).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("set", 1_u32).await.unwrap();
    node.set("deleted", 1_u32).await.unwrap();
    node.set("cleared", 1_u32).await.unwrap();
    node.l2.calm();
    pass(ms(1)).await;
    node.set("set", 2_u32).await.unwrap();
    node.delete("deleted").await.unwrap();
    pass(secs(10)).await;
    assert_eq!(node.document("set").unwrap()["value"], 2);
    assert_eq!(node.document("deleted"), None);

    node.l2.on(Ops::SET).fail();
    node.set("cleared", 1_u32).await.unwrap();
    node.l2.calm();
    node.clear().await.unwrap();
    pass(secs(10)).await;
    assert!(world.l2.is_empty());
    assert_eq!(get(&node, "cleared").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_clear_that_failed_spares_what_was_set_after_it() {
    let world = World::new();
    let node = plain(&world).await;
    node.set("old", 1_u32).await.unwrap();
    pass(ms(1)).await;
    node.l2.on(Ops::CLEAR).fail();
    node.clear().await.unwrap();
    assert_eq!(get(&node, "old").await, None);
    pass(ms(1)).await;
    node.set("new", 2_u32).await.unwrap();
    assert_eq!(get(&node, "new").await, Some(2));
    node.l2.calm();
    pass(secs(10)).await;
    assert_eq!(world.l2.all_keys(), ["bentocache:new"]);
    assert_eq!((get(&node, "old").await, get(&node, "new").await), (None, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn what_a_late_clear_takes_from_others_is_not_kept_here() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    node.l2.on(Ops::CLEAR).fail();
    node.clear().await.unwrap();
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    pass(ms(1)).await;
    other.set("k", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&node, "k").await, Some(2), "the newer of the two");
    node.l2.calm();
    pass(secs(10)).await;
    assert_eq!(get(&node, "k").await, fresh_elsewhere(&world).await);
    assert_eq!(get(&other, "k").await, fresh_elsewhere(&world).await);
}

#[tokio::test(start_paused = true)]
async fn until_then_this_node_reads_as_if_it_had_been_repeated() {
    let world = World::new();
    let node = world.node_where(|s| s.l2_circuit_breaker("off", 1).l1_ttl("1ms")).await;
    for key in ["deleted", "expired", "set", "cleared:k"] {
        node.set(key, 1_u32).ttl("1h").await.unwrap();
    }
    pass(ms(5)).await;
    node.l2.on(Ops::WRITES).fail();
    node.delete("deleted").await.unwrap();
    node.expire("expired").await.unwrap();
    node.set("set", 2_u32).await.unwrap();
    node.namespace("cleared").clear().await.unwrap();
    pass(ms(5)).await;
    let values = node.get_many(["deleted", "expired", "set", "cleared:k"]).await.unwrap();
    assert_eq!(values, [None, None, Some(2), None]);
    for (key, value) in [("deleted", None), ("expired", None), ("set", Some(2))] {
        pass(ms(5)).await;
        assert_eq!(get(&node, key).await, value, "{key}");
        assert_eq!(node.has(key).await.unwrap(), value.is_some(), "{key}");
    }
}

// ---- What is newer wins ----

#[tokio::test(start_paused = true)]
async fn something_newer_in_the_second_tier_wins_and_corrects_this_node() {
    for remove in [false, true] {
        let world = World::without_bus();
        let (node, other) = (plain(&world).await, world.node().await);
        node.l2.on(Ops::WRITES).fail();
        if remove {
            node.delete("k").await.unwrap();
        } else {
            node.set("k", 1_u32).await.unwrap();
        }
        pass(ms(10)).await;
        other.set("k", 2_u32).await.unwrap();
        node.l2.calm();
        pass(secs(5)).await;
        assert_eq!(other.document("k").unwrap()["value"], 2);
        assert_eq!(get(&node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn something_older_in_the_second_tier_is_replaced() {
    let world = World::without_bus();
    let (node, other) = (plain(&world).await, world.node().await);
    other.set("k", 2_u32).await.unwrap();
    other.set("gone", 2_u32).await.unwrap();
    pass(ms(10)).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    node.delete("gone").await.unwrap();
    node.l2.calm();
    pass(secs(5)).await;
    assert_eq!(other.document("k").unwrap()["value"], 1);
    assert_eq!(other.document("gone"), None);
}

#[tokio::test(start_paused = true)]
async fn an_older_expiry_does_not_make_something_newer_stale() {
    let world = World::without_bus();
    let (node, other) = (plain(&world).await, world.node().await);
    node.set("k", 1_u32).grace("1h").await.unwrap();
    node.l2.on(Ops::WRITES).fail();
    node.expire("k").await.unwrap();
    pass(ms(10)).await;
    other.set("k", 2_u32).await.unwrap();
    node.l2.calm();
    pass(secs(5)).await;
    assert_eq!((get(&node, "k").await, get(&other, "k").await), (Some(2), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_message_about_a_key_beats_an_older_change_of_it_that_waits() {
    for remove in [false, true] {
        let world = World::new();
        let (node, other) = (plain(&world).await, world.node().await);
        node.l2.on(Ops::WRITES).fail();
        if remove {
            node.delete("k").await.unwrap();
        } else {
            node.set("k", 1_u32).await.unwrap();
        }
        pass(ms(10)).await;
        other.set("k", 2_u32).await.unwrap();
        settle().await;
        assert_eq!(get(&node, "k").await, Some(2), "remove: {remove}");
        other.delete("k").await.unwrap();
        settle().await;
        assert_eq!(get(&node, "k").await, None, "remove: {remove}");
        node.l2.calm();
        pass(secs(10)).await;
        assert_eq!(node.document("k"), None, "remove: {remove}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_while_an_older_one_is_repeated_is_not_overwritten() {
    let world = World::new();
    let l2 = crate::races::Holding::new(&world.l2);
    let wrapped = ChaosL2::new(l2.clone());
    let chaos = wrapped.chaos();
    let node = world.node_where(|s| s.l2(wrapped)).await;
    chaos.on(Ops::SET).fail_next(1);
    node.set("k", 1_u32).await.unwrap();
    let hold = l2.hold_next(Ops::SET);
    hold.reached().await;
    pass(ms(1)).await;
    node.set("k", 2_u32).await.unwrap();
    hold.release();
    pass(secs(10)).await;
    assert_eq!(get(&node, "k").await, fresh_elsewhere(&world).await);
    assert_ne!(fresh_elsewhere(&world).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_message_while_a_write_is_repeated_counts_as_one_after_it() {
    for kind in [Kind::Delete, Kind::Expire] {
        let world = World::new();
        let l2 = crate::races::Holding::new(&world.l2);
        let wrapped = ChaosL2::new(l2.clone());
        let chaos = wrapped.chaos();
        let node = world.node_where(|s| s.l2(wrapped)).await;
        chaos.on(Ops::SET).fail_next(1);
        node.set("k", 1_u32).await.unwrap();
        let hold = l2.hold_next(Ops::SET);
        hold.reached().await;
        for bytes in message::encode(&Sender::random(), kind, "bentocache", &["k"]) {
            let topic = Topic::new("bentocache.notifications:s", "bentocache:");
            world.bus.publish(topic, bytes).await.unwrap();
        }
        crate::races::calm().await;
        hold.release();
        pass(secs(10)).await;
        assert_eq!(fresh_elsewhere(&world).await, None, "{kind:?}");
        assert_eq!(fresh(&node, "k").await, None, "{kind:?}");
    }
}

/// What a new node finds.
async fn fresh_elsewhere(world: &World) -> Option<u32> {
    let node = world.node().await;
    fresh(&node, "k").await
}

// ---- The queue ----

#[tokio::test(start_paused = true)]
async fn what_has_expired_meanwhile_is_dropped() {
    let node = plain(&World::new()).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("short", 1_u32).ttl("10s").await.unwrap();
    node.set("long", 2_u32).ttl("1h").await.unwrap();
    pass(secs(20)).await;
    node.l2.calm();
    node.l2.reset_calls();
    pass(secs(40)).await;
    assert_eq!(node.l2.on(Ops::SET).calls(), 1);
    assert_eq!((node.document("short"), node.map.len()), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_its_oldest_and_says_so() {
    let node = World::new().node_where(|s| s.recovery(3, "1s").l2_circuit_breaker("off", 1)).await;
    node.l2.on(Ops::WRITES).fail();
    for i in 0..5_u32 {
        node.set(format!("k{i}"), i).await.unwrap();
    }
    assert_eq!(node.seen.count(is_dropped), 2);
    node.l2.calm();
    pass(secs(10)).await;
    assert_eq!(node.map.all_keys(), ["bentocache:k2", "bentocache:k3", "bentocache:k4"]);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_changes_wait_and_all_are_repeated() {
    let node = World::new().node_where(|s| s.l2_circuit_breaker("1s", 5)).await;
    node.l2.cut();
    for i in 0..10_000_u32 {
        node.set(format!("k{i}"), i).await.unwrap();
    }
    assert_eq!(node.seen.count(is_dropped), 0);
    node.l2.restore();
    pass(secs(60)).await;
    assert_eq!(node.map.len(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn a_size_of_0_keeps_nothing() {
    let node = World::new().node_where(|s| s.recovery(0, "1s").l2_circuit_breaker("off", 1)).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(node.seen.count(is_dropped), 1);
    node.l2.calm();
    pass(secs(10)).await;
    assert!(node.map.is_empty());
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_stored_is_an_error_and_blocks_nothing() {
    let world = World::new();
    let node = world.node_where(|s| s.l2(MapL2::new().max_value(200))).await;
    let error = node.set("big", "x".repeat(300)).await.unwrap_err();
    assert!(matches!(&error, Error::L2 { source, .. } if source.kind() == ErrorKind::TooLarge));
    node.set("small", 1_u32).await.unwrap();
    pass(secs(10)).await;
    assert_eq!(get(&node, "small").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn disconnecting_tries_once_more() {
    let world = World::new();
    let node = plain(&world).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    node.l2.calm();
    node.disconnect().await.unwrap();
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

// ---- Suppressed or not ----

#[tokio::test(start_paused = true)]
async fn with_a_first_tier_failures_are_suppressed_by_default_and_without_one_they_are_errors() {
    let both = plain(&World::new()).await;
    both.l2.cut();
    both.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&both, "k").await, Some(1));
    assert_eq!(get(&both, "x").await, None);
    assert!(!both.has("x").await.unwrap());
    both.delete("k").await.unwrap();
    both.expire("k").await.unwrap();
    both.clear().await.unwrap();
    assert_eq!(crate::common::fill(&both, "y", 2).await, 2);

    let node = plain(&World::only_l2()).await;
    node.l2.cut();
    let is_l2 = |error: Error| matches!(error, Error::L2 { .. });
    assert!(is_l2(node.set("k", 1_u32).await.unwrap_err()));
    assert!(is_l2(node.get::<u32>("k").await.unwrap_err()));
    assert!(is_l2(node.get_many::<u32>(["k"]).await.unwrap_err()));
    assert!(is_l2(node.has("k").await.unwrap_err()));
    assert!(is_l2(node.delete("k").await.unwrap_err()));
    assert!(is_l2(node.expire("e").await.unwrap_err()));
    assert!(is_l2(node.pull::<u32>("p").await.unwrap_err()));
    assert!(is_l2(node.get_or_set("k", Source::new().gives(1_u32)).await.unwrap_err()));
    let call = node.get_or_set("k", Source::new().gives(1_u32)).suppress_l2_errors(true);
    assert_eq!(call.await.unwrap(), 1);
    assert!(is_l2(node.clear().await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn ten_waiters_share_one_failure_of_the_second_tier() {
    let node = plain(&World::only_l2()).await;
    node.l2.on(Ops::GET).hold();
    let calls: Vec<_> =
        (0..10).map(|_| go(node.get_or_set("k", Source::new().gives(1_u32)))).collect();
    node.l2.held(1).await;
    node.l2.on(Ops::GET).fail();
    node.l2.release();
    for call in calls {
        assert!(matches!(call.await.unwrap(), Err(Error::L2 { .. })));
    }
    assert_eq!(node.l2.on(Ops::GET).calls(), 1);
}

// ---- Timeouts ----

#[tokio::test(start_paused = true)]
async fn a_hung_second_tier_costs_a_second_per_call() {
    let node = World::new().node().await;
    node.l2.hang();
    let took = async |work: &dyn Fn(&Node) -> crate::races::Work<()>, at_most: u64| {
        pass(secs(5)).await;
        let began = Instant::now();
        work(&node).await.unwrap();
        let took = began.elapsed();
        assert!(took <= secs(at_most), "{took:?}");
    };
    macro_rules! calls {
        ($($at_most:literal: $call:expr;)*) => {$(
            took(&|node: &Node| { let call = $call(node); Box::pin(async move { drop(call.await); Ok(()) }) }, $at_most).await;
        )*};
    }
    use std::future::IntoFuture;
    calls! {
        1: |n: &Node| n.get::<u32>("k").into_future();
        1: |n: &Node| n.get_many::<u32>(["k", "l"]).into_future();
        1: |n: &Node| n.has("k").into_future();
        1: |n: &Node| n.set("k", 1_u32).into_future();
        1: |n: &Node| n.set_many([("k", 1_u32), ("l", 1)]).into_future();
        1: |n: &Node| n.delete("k").into_future();
        2: |n: &Node| n.expire("k").into_future();
        1: |n: &Node| n.pull::<u32>("k").into_future();
        2: |n: &Node| n.delete_by_tag(["a", "b"]).into_future();
        2: |n: &Node| n.get_or_set("fill", Source::new().gives(1_u32)).into_future();
        3: |n: &Node| n.get_or_set("tagged", Source::new().gives(1_u32)).tags(["x"]).into_future();
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_failure_of_the_second_tier() {
    let node = World::only_l2().node_where(|s| s.l2_timeout("none", "300ms")).await;
    node.l2.hang();
    let began = Instant::now();
    let error = node.get::<u32>("k").await.unwrap_err();
    assert!(matches!(&error, Error::L2 { source, .. } if source.kind() == ErrorKind::Timeout));
    assert!(error.is_timeout());
    assert_eq!(began.elapsed(), ms(300));
    let error = node.get::<u32>("k").l2_timeout("none", "20ms").await.unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(began.elapsed(), ms(320));
    // A hard limit that is off waits.
    let waits = go(node.get::<u32>("k").l2_timeout("none", "none"));
    pass(secs(100)).await;
    node.l2.calm();
    assert_eq!(waits.await.unwrap().unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn the_soft_limit_holds_when_a_stale_value_could_be_served() {
    let node = World::new()
        .node_where(|s| s.l2_timeout("50ms", "800ms").grace("1h").ttl("1s").timeout("none"))
        .await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(2)).await;
    node.l2.on(Ops::READS).hang();
    let began = Instant::now();
    assert_eq!(node.get::<u32>("k").await.unwrap(), Some(1));
    assert_eq!(began.elapsed(), ms(50));
    // Not for callers without grace, and not without a stale value.
    assert_eq!(node.get::<u32>("k").grace("off").await.unwrap(), None);
    assert_eq!(began.elapsed(), ms(850));
    assert_eq!(node.get::<u32>("x").await.unwrap(), None);
    assert_eq!(began.elapsed(), ms(1_650));
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 2);
    assert_eq!((began.elapsed(), source.runs()), (ms(1_700), 1));
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_repeated() {
    let world = World::new();
    let (node, other) = (plain(&world).await, world.node().await);
    node.l2.on(Ops::SET).fail_late();
    node.set("k", 1_u32).await.unwrap();
    assert_eq!(node.document("k").unwrap()["value"], 1);
    pass(ms(5)).await;
    other.set("k", 2_u32).await.unwrap();
    settle().await;
    node.l2.calm();
    pass(secs(10)).await;
    for node in [&node, &other] {
        assert_eq!(get(node, "k").await, Some(2));
    }
}

// ---- The breaker ----

#[tokio::test(start_paused = true)]
async fn after_five_failures_in_a_row_the_second_tier_is_left_alone_for_a_second() {
    let node = World::new().node().await;
    node.l2.on(Ops::GET).fail();
    for _ in 0..4 {
        assert_eq!(get(&node, "k").await, None);
    }
    // A success starts the count again.
    node.set("x", 1_u32).await.unwrap();
    for _ in 0..5 {
        assert_eq!(get(&node, "k").await, None);
    }
    node.l2.reset_calls();
    for _ in 0..100 {
        assert_eq!(get(&node, "k").await, None);
        node.set("k2", 1_u32).await.unwrap();
    }
    assert_eq!(node.l2.calls(), 0);
    let mut seen = node.seen.texts();
    seen.retain(|text| text.starts_with("breaker"));
    assert_eq!(seen, ["breaker opened"]);
    pass(ms(999)).await;
    assert_eq!((get(&node, "k").await, node.l2.calls()), (None, 0));
    pass(ms(2)).await;
    // It still fails: another second.
    assert_eq!((get(&node, "k").await, node.l2.calls()), (None, 1));
    assert_eq!((get(&node, "k").await, node.l2.calls()), (None, 1));
    node.l2.calm();
    pass(ms(1_001)).await;
    assert_eq!(get(&node, "k").await, None);
    pass(ms(10)).await;
    assert!(node.seen.texts().contains(&"breaker closed".to_owned()));
    // What was set meanwhile is there at once.
    assert_eq!(node.document("k2").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn half_open_one_call_at_a_time_tries() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("1s", 2)).await;
    node.l2.on(Ops::GET).fail();
    for _ in 0..2 {
        node.get::<u32>("k").await.unwrap_err();
    }
    pass(ms(1_001)).await;
    node.l2.calm();
    node.l2.reset_calls();
    node.l2.on(Ops::GET).hold();
    let probe = go(node.get::<u32>("k"));
    node.l2.held(1).await;
    for _ in 0..20 {
        let error = node.get::<u32>("k").await.unwrap_err();
        let Error::L2 { source, .. } = error else { panic!("{error:?}") };
        assert_eq!(source.kind(), ErrorKind::Unavailable);
    }
    assert_eq!(node.l2.calls(), 1);
    node.l2.release();
    assert_eq!(probe.await.unwrap().unwrap(), None);
    assert_eq!(node.get::<u32>("k").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_lets_the_next_one_try() {
    let node = World::only_l2().node_where(|s| s.l2_circuit_breaker("1s", 1)).await;
    node.l2.on(Ops::GET).fail();
    node.get::<u32>("k").await.unwrap_err();
    pass(ms(1_001)).await;
    node.l2.calm();
    node.l2.on(Ops::GET).hold();
    let probe = go(node.get::<u32>("k"));
    node.l2.held(1).await;
    probe.abort();
    settle().await;
    node.l2.release();
    assert_eq!(node.get::<u32>("k").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn all_handles_of_a_store_share_one_breaker() {
    let node = World::new().node_where(|s| s.l2_circuit_breaker("1m", 3)).await;
    node.l2.cut();
    for name in ["a", "b", "c"] {
        assert_eq!(get(&node.namespace(name), "k").await, None);
    }
    node.l2.restore();
    node.l2.reset_calls();
    assert_eq!(get(&node.namespace("d"), "k").await, None);
    assert_eq!(get(&node, "k").await, None);
    assert_eq!(node.l2.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn with_the_breaker_open_a_write_is_queued_or_an_error_and_never_a_lie() {
    let open = |s: Store| s.l2_circuit_breaker("1s", 1).recovery_mode(RecoveryMode::LastWrite);
    let alone = World::only_l2().node_where(open).await;
    alone.l2.on(Ops::GET).fail_next(1);
    alone.get::<u32>("k").await.unwrap_err();
    assert!(matches!(alone.set("k", 1_u32).await, Err(Error::L2 { .. })));
    assert!(matches!(alone.delete("k").await, Err(Error::L2 { .. })));
    alone.set("k", 2_u32).suppress_l2_errors(true).await.unwrap();
    assert!(alone.map.is_empty());
    pass(secs(10)).await;
    assert_eq!(alone.document("k").unwrap()["value"], 2);

    let both = World::new().node_where(open).await;
    both.l2.on(Ops::GET).fail_next(1);
    assert_eq!(get(&both, "k").await, None);
    both.set("k", 3_u32).await.unwrap();
    assert!(both.map.is_empty());
    pass(secs(10)).await;
    assert_eq!(both.document("k").unwrap()["value"], 3);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_refuses_a_value_opens_no_breaker() {
    let node = World::new()
        .node_where(|s| s.l2(MapL2::new().max_value(200)).l2_circuit_breaker("1h", 1))
        .await;
    for _ in 0..10 {
        node.set("big", "x".repeat(300)).await.unwrap_err();
    }
    node.set("small", 1_u32).await.unwrap();
    assert!(!node.seen.texts().contains(&"breaker opened".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn with_the_breaker_open_stale_values_are_served_and_factories_run_once() {
    let node = World::new()
        .node_where(|s| s.l2_circuit_breaker("1h", 1).grace("1h").ttl("1s").timeout("none"))
        .await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(2)).await;
    node.l2.cut();
    assert_eq!(get_stale(&node, "k").await, Some(1));
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_tier_that_cannot_be_reached_at_the_start_does_not_keep_the_cache_from_starting() {
    let world = World::new();
    let l2 = ChaosL2::new(world.l2.clone());
    let chaos = l2.chaos();
    chaos.cut();
    let node = world.node_where(|s| s.l2(l2)).await;
    node.set_forever("k", 1_u32).await.unwrap();
    assert_eq!(get(&node, "k").await, Some(1));
    chaos.restore();
    pass(secs(10)).await;
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

/// A value that JSON has no form for.
type Odd = std::collections::BTreeMap<(u8, u8), u8>;

#[tokio::test(start_paused = true)]
async fn a_fill_that_can_never_be_stored_leaves_nothing_older() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    node.set("k", Odd::new()).ttl("1h").await.unwrap();
    settle().await;
    assert_eq!(other.get("k").await.unwrap(), Some(Odd::new()));
    let value = Odd::from([((1, 2), 3)]);
    let produced = node.get_or_set("k", Source::new().gives(value.clone())).force_fresh(true);
    assert_eq!(produced.ttl("10s").await.unwrap(), value);
    settle().await;
    assert_eq!(node.get("k").await.unwrap(), Some(value));
    assert_eq!(other.get::<Odd>("k").await.unwrap(), None);
    pass(secs(11)).await;
    assert_eq!(node.get::<Odd>("k").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn fills_that_can_never_be_stored_do_not_push_each_other_out() {
    let mut world = World::new();
    world.l2 = MapL2::new().max_value(200);
    let (a, b) = (world.node().await, world.node().await);
    let source = Source::new();
    for _ in 0..5 {
        for node in [&a, &b] {
            let value = node.get_or_set("large", source.gives("x".repeat(1_000)));
            assert_eq!(value.await.unwrap().len(), 1_000);
            let odd = node.get_or_set("odd", source.gives(Odd::from([((1, 2), 3)])));
            assert_eq!(odd.await.unwrap().len(), 1);
            pass(secs(5)).await;
        }
    }
    assert_eq!(source.runs(), 4, "once per key and node");
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_can_never_be_stored_does_not_remove_a_newer_set() {
    let mut world = World::new();
    world.l2 = MapL2::new().max_value(200);
    let node = plain(&world).await;
    node.l2.on(Ops::SET).hold();
    let fill = go(node.get_or_set("k", Source::new().gives("x".repeat(1_000))));
    node.l2.held(1).await;
    node.set_many([("k", "new".to_owned()), ("l", "new".to_owned())]).await.unwrap();
    node.l2.release();
    assert_eq!(fill.await.unwrap().unwrap().len(), 1_000);
    pass(secs(30)).await;
    for node in [&node, &world.node().await] {
        assert_eq!(node.get::<String>("k").await.unwrap().as_deref(), Some("new"));
    }
}
