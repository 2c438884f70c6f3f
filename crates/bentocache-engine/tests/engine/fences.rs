//! Invalidation never loses to a slow reader or a slow factory, on this node and across nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::common::{Node, World, ms, pass, secs, settle};
use crate::races::{Change, Holding, Source, calm, fresh, go};
use bentocache::{BentoCache, Cache, Error, ManyContext, Memory, Store};
use bentocache_testkit::{MapL2, Ops};
use tokio::task::{JoinHandle, JoinSet};

/// A node whose calls of L2 can be held one by one.
async fn node(world: &World) -> (Node, Holding) {
    let l2 = Holding::new(&world.l2);
    let node = world.node_where(|s| s.l2(l2.clone())).await;
    (node, l2)
}

/// What a new node finds.
async fn elsewhere(world: &World, key: &str) -> Option<u32> {
    let node = world.node().await;
    fresh(&node, key).await
}

/// The result of a read of `n:k` without grace.
async fn found(root: &Cache) -> Option<u32> {
    fresh(&root.namespace("n"), "k").await
}

/// What a new node finds under `n:k`.
async fn found_anew(world: &World) -> Option<u32> {
    let node = world.node().await;
    found(&node).await
}

/// The ways to read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Read {
    Get,
    GetMany,
    GetOrSet,
    GetOrSetMany,
}

impl Read {
    const ALL: [Self; 4] = [Self::Get, Self::GetMany, Self::GetOrSet, Self::GetOrSetMany];

    /// Starts to read `n:k`, with a factory for the tag `t` where there is one.
    fn start(self, root: &Cache, source: &Source) -> JoinHandle<Option<u32>> {
        let (names, source) = (root.namespace("n"), source.clone());
        tokio::spawn(async move {
            match self {
                Self::Get => names.get("k").await.unwrap(),
                Self::GetMany => names.get_many(["x", "k"]).await.unwrap()[1],
                Self::GetOrSet => {
                    Some(names.get_or_set("k", source.gives(9)).tags(["t"]).await.unwrap())
                }
                Self::GetOrSetMany => {
                    let factory = move |cx: ManyContext| {
                        let source = source.clone();
                        async move {
                            source.run().await;
                            let of = |key: &String| (key.clone(), 9_u32);
                            Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
                        }
                    };
                    names.get_or_set_many(["x", "k"], factory).tags(["t"]).await.unwrap()[1]
                }
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_read_before_a_change_on_this_node_is_not_kept_after_it() {
    for read in Read::ALL {
        for change in Change::ALL {
            let world = World::new();
            let names = world.node().await.namespace("n");
            names.set("k", 1_u32).tags(["t"]).await.unwrap();
            pass(ms(1)).await;
            let (node, l2) = node(&world).await;
            let hold = l2.hold_next_after(Ops::GET | Ops::GET_MANY);
            let reader = read.start(&node, &Source::new());
            hold.reached().await;
            change.of(&node).await;
            hold.release();
            // The caller still gets a value, unless nothing is known of its tag any more.
            let value = reader.await.unwrap();
            let unknown = matches!(change, Change::Tag | Change::Clear | Change::ClearNamespace);
            assert!(matches!(value, Some(1 | 2 | 9)) || unknown, "{value:?}");
            let left = found(&node).await;
            let expected = change.leaves();
            // The caller that found the tag invalidated has produced a new value.
            let anew = (change == Change::Tag && value == Some(9)).then_some(9);
            assert_eq!(left, expected.or(anew), "{read:?}, {change:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_read_before_a_message_of_another_node_is_not_kept_after_it() {
    for read in Read::ALL {
        for change in Change::ALL {
            let world = World::new();
            let other = world.node().await;
            other.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
            pass(ms(1)).await;
            let (node, l2) = node(&world).await;
            let hold = l2.hold_next_after(Ops::GET | Ops::GET_MANY);
            let reader = read.start(&node, &Source::new());
            hold.reached().await;
            change.of(&other).await;
            settle().await;
            hold.release();
            let value = reader.await.unwrap();
            let left = found(&node).await;
            let anew = (change == Change::Tag && value == Some(9)).then_some(9);
            assert_eq!(left, change.leaves().or(anew), "{read:?}, {change:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_began_before_a_change_on_this_node_stores_nothing_after_it() {
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        for read in [Read::GetOrSet, Read::GetOrSetMany] {
            for change in Change::ALL {
                let node = world.node().await;
                let source = Source::held();
                let call = read.start(&node, &source);
                source.begun(1).await;
                change.of(&node).await;
                source.release();
                assert_eq!(call.await.unwrap(), Some(9), "{read:?}, {change:?}");
                calm().await;
                assert_eq!(found(&node).await, change.leaves(), "{read:?}, {change:?}");
                let new = world.node().await;
                if node.document("n:k").is_some() {
                    assert_eq!(found(&new).await, change.leaves(), "{read:?}, {change:?}");
                }
                node.clear().await.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_began_before_a_message_stores_nothing_after_it() {
    for read in [Read::GetOrSet, Read::GetOrSetMany] {
        for change in Change::ALL {
            let world = World::new();
            let (node, other) = (world.node().await, world.node().await);
            let source = Source::held();
            let call = read.start(&node, &source);
            source.begun(1).await;
            change.of(&other).await;
            settle().await;
            source.release();
            assert_eq!(call.await.unwrap(), Some(9), "{read:?}, {change:?}");
            settle().await;
            for node in [&node, &other, &world.node().await] {
                assert_eq!(found(node).await, change.leaves(), "{read:?}, {change:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_background_factory_does_not_overwrite_what_was_changed_meanwhile() {
    for local in [true, false] {
        for change in Change::ALL {
            let world = World::new();
            let node = world.node_where(|s| s.grace("1h")).await;
            let other = world.node().await;
            node.namespace("n").set("k", 1_u32).ttl("1s").tags(["t"]).await.unwrap();
            pass(secs(2)).await;
            let source = Source::held();
            assert_eq!(Read::GetOrSet.start(&node, &source).await.unwrap(), Some(1));
            source.begun(1).await;
            change.of(if local { &node } else { &other }).await;
            settle().await;
            source.release();
            settle().await;
            for node in [&node, &other, &world.node().await] {
                let left = found(node).await;
                assert_eq!(left, change.leaves(), "local: {local}, {change:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_background_does_not_bring_back_what_was_changed_meanwhile() {
    for local in [true, false] {
        for change in Change::ALL {
            let world = World::new();
            let node = world.node_where(|s| s.grace("1h")).await;
            let other = world.node().await;
            let names = node.namespace("n");
            names.set("k", 1_u32).ttl("1s").tags(["t"]).await.unwrap();
            pass(secs(2)).await;
            let source = Source::held();
            assert_eq!(names.get_or_set("k", source.fails(1)).await.unwrap(), 1);
            source.begun(1).await;
            change.of(if local { &node } else { &other }).await;
            settle().await;
            source.release();
            settle().await;
            for node in [&node, &other, &world.node().await] {
                let left = found(node).await;
                assert_eq!(left, change.leaves(), "local: {local}, {change:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backoff_in_the_second_tier_does_not_overwrite_a_newer_value() {
    let world = World::new();
    let l2 = Holding::new(&world.l2);
    let node = world.node_where(|s| s.l2(l2.clone()).grace("1h").timeout("none")).await;
    let other = world.node().await;
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let source = Source::held();
    let call = go(node.get_or_set("k", source.fails(1)));
    source.begun(1).await;
    // The read of the backoff itself.
    let hold = l2.hold_next_after(Ops::GET);
    source.release();
    hold.reached().await;
    other.set("k", 2_u32).await.unwrap();
    settle().await;
    hold.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    assert_eq!(node.document("k").unwrap()["value"], 2);
    assert_eq!(fresh(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn callers_that_come_after_a_change_do_not_get_the_value_of_an_older_flight() {
    for change in Change::ALL {
        for local in [true, false] {
            let world = World::new();
            let (node, other) = (world.node().await, world.node().await);
            let names = node.namespace("n");
            let old = Source::held();
            let before = go(names.get_or_set("k", old.gives(1_u32)).tags(["t"]));
            old.begun(1).await;
            change.of(if local { &node } else { &other }).await;
            settle().await;
            let after = go(names.get_or_set("k", Source::new().gives(3_u32)).tags(["t"]));
            calm().await;
            old.release();
            assert_eq!(before.await.unwrap().unwrap(), 1);
            let expected = change.leaves().unwrap_or(3);
            assert_eq!(after.await.unwrap().unwrap(), expected, "local: {local}, {change:?}");
            assert_eq!(found(&node).await, Some(expected), "local: {local}, {change:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_after_a_change_do_not_get_the_values_of_an_older_flight() {
    for change in [Change::Delete, Change::Tag, Change::Clear] {
        let node = World::new().node().await;
        let old = Source::held();
        let before = Read::GetOrSetMany.start(&node, &old);
        old.begun(1).await;
        change.of(&node).await;
        let new = Source::new();
        let after = Read::GetOrSetMany.start(&node, &new);
        calm().await;
        old.release();
        assert_eq!(before.await.unwrap(), Some(9));
        assert_eq!(after.await.unwrap(), Some(9));
        assert!(new.runs() >= 1, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_after_invalidations_of_a_tag_in_one_millisecond_gets_a_new_value() {
    let node = World::new().node().await;
    let old = Source::held();
    let before = go(node.get_or_set("k", old.gives(1_u32)).tags(["t"]));
    old.begun(1).await;
    // The marker runs ahead of the clock.
    for _ in 0..5 {
        node.delete_by_tag(["t"]).await.unwrap();
    }
    let after = go(node.get_or_set("k", Source::new().gives(3_u32)).tags(["t"]));
    calm().await;
    old.release();
    assert_eq!((before.await.unwrap().unwrap(), after.await.unwrap().unwrap()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_caller_after_an_invalidation_by_a_node_with_a_fast_clock_gets_a_new_value() {
    let world = World::new();
    let skew = |b: bentocache::Builder| {
        b.clock(crate::races::Skewed(bentocache::TokioTime::new(), 3_600_000))
    };
    let (node, ahead) = (world.node().await, world.node_with(skew, |s| s).await);
    let old = Source::held();
    let before = go(node.get_or_set("k", old.gives(1_u32)).tags(["t"]));
    old.begun(1).await;
    ahead.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    let after = go(node.get_or_set("k", Source::new().gives(3_u32)).tags(["t"]));
    calm().await;
    old.release();
    assert_eq!((before.await.unwrap().unwrap(), after.await.unwrap().unwrap()), (1, 3));
    assert_eq!(fresh(&node, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_lands_in_the_second_tier_after_a_change_is_taken_back() {
    for after in [true, false] {
        for change in [Change::Delete, Change::Expire, Change::Clear, Change::Pull] {
            let world = World::new();
            let (node, l2) = node(&world).await;
            let hold = if after { l2.hold_next_after(Ops::SET) } else { l2.hold_next(Ops::SET) };
            let call = Read::GetOrSet.start(&node, &Source::new());
            hold.reached().await;
            change.of(&node).await;
            hold.release();
            assert_eq!(call.await.unwrap(), Some(9));
            settle().await;
            for node in [&node, &world.node().await] {
                assert_eq!(found(node).await, None, "after: {after}, {change:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_lands_on_a_newer_set_leaves_the_tiers_agreeing() {
    for after in [true, false] {
        let world = World::new();
        let (node, l2) = node(&world).await;
        let hold = if after { l2.hold_next_after(Ops::SET) } else { l2.hold_next(Ops::SET) };
        let call = Read::GetOrSet.start(&node, &Source::new());
        hold.reached().await;
        Change::Set.of(&node).await;
        hold.release();
        assert_eq!(call.await.unwrap(), Some(9));
        settle().await;
        let (here, there) = (found(&node).await, found_anew(&world).await);
        assert_ne!(there, Some(9));
        assert_eq!(here, there, "after: {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_failed_does_not_remove_a_newer_set() {
    let world = World::new();
    let node = world.node_where(|s| s.l2_circuit_breaker("off", 1)).await;
    node.l2.on(Ops::SET).hold();
    let call = go(node.get_or_set("k", Source::new().gives(1_u32)));
    node.l2.held(1).await;
    node.set_many([("k", 2_u32), ("l", 2)]).await.unwrap();
    pass(ms(1)).await;
    node.l2.on(Ops::SET).fail();
    node.l2.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    node.l2.calm();
    pass(secs(30)).await;
    assert_eq!(fresh(&node, "k").await, Some(2));
    assert_eq!(elsewhere(&world, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_slow_set_and_a_newer_one_leave_both_tiers_with_the_same_value() {
    for after in [true, false] {
        let world = World::new();
        let (node, l2) = node(&world).await;
        let hold = if after { l2.hold_next_after(Ops::SET) } else { l2.hold_next(Ops::SET) };
        let slow = go(node.set("k", 1_u32));
        hold.reached().await;
        pass(ms(1)).await;
        node.set("k", 2_u32).await.unwrap();
        hold.release();
        slow.await.unwrap().unwrap();
        assert_eq!(fresh(&node, "k").await, elsewhere(&world, "k").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_removal_and_a_newer_set_leave_both_tiers_with_the_same_value() {
    for change in [Change::Delete, Change::Clear, Change::Expire, Change::Pull] {
        for after in [true, false] {
            let world = World::new();
            let (node, l2) = node(&world).await;
            node.namespace("n").set("k", 1_u32).await.unwrap();
            pass(ms(1)).await;
            let ops = Ops::DELETE | Ops::CLEAR | Ops::UPDATE | Ops::DELETE_IF | Ops::PULL;
            let hold = if after { l2.hold_next_after(ops) } else { l2.hold_next(ops) };
            let slow = tokio::spawn({
                let cache = node.cache.clone();
                async move { change.of(&cache).await }
            });
            hold.reached().await;
            Change::Set.of(&node).await;
            hold.release();
            slow.await.unwrap();
            settle().await;
            let (here, there) = (found(&node).await, found_anew(&world).await);
            assert_eq!(here, there, "{change:?}, after: {after}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_read_while_a_change_is_under_way_is_not_kept_after_it() {
    for read in [Read::Get, Read::GetMany, Read::GetOrSet] {
        for change in Change::ALL {
            let world = World::new();
            let (node, l2) = node(&world).await;
            node.namespace("n").set("k", 1_u32).tags(["t"]).grace("1h").await.unwrap();
            pass(ms(1)).await;
            let hold = l2.hold_next(Ops::WRITES);
            let changing = tokio::spawn({
                let cache = node.cache.clone();
                async move { change.of(&cache).await }
            });
            hold.reached().await;
            // Still there in L2.
            let _ = read.start(&node, &Source::new()).await.unwrap();
            hold.release();
            changing.await.unwrap();
            let left = found(&node).await;
            assert!(left.is_none() || left == Some(2) || left == Some(9), "{read:?}, {change:?}");
            assert_ne!(left, Some(1));
            if matches!(change, Change::Delete | Change::DeleteMany | Change::Clear | Change::Pull)
                && read != Read::GetOrSet
            {
                let stale = crate::common::get_stale(&node.namespace("n"), "k").await;
                assert_eq!(stale, None, "{read:?}, {change:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_begins_during_a_change_and_ends_after_it_keeps_nothing() {
    for change in [Change::Clear, Change::Delete, Change::DeleteMany, Change::Pull] {
        let world = World::new();
        let (node, l2) = node(&world).await;
        let names = node.namespace("n");
        names.set("k", 1_u32).skip_l1_write(true).await.unwrap();
        let hold = l2.hold_next(Ops::CLEAR | Ops::DELETE | Ops::PULL);
        let changing = tokio::spawn({
            let cache = node.cache.clone();
            async move { change.of(&cache).await }
        });
        hold.reached().await;
        // It has the value, but has not returned yet.
        let read_hold = l2.hold_next_after(Ops::GET);
        let reading = go(names.get::<u32>("k"));
        read_hold.reached().await;
        hold.release();
        changing.await.unwrap();
        read_hold.release();
        assert_eq!(reading.await.unwrap().unwrap(), Some(1), "{change:?}");
        assert_eq!(found(&node).await, None, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_that_leaves_the_first_tier_alone_leaves_nothing_old_in_it() {
    let world = World::new();
    let (node, l2) = node(&world).await;
    node.set("k", 1_u32).await.unwrap();
    pass(ms(1)).await;
    let hold = l2.hold_next(Ops::SET);
    let set = go(node.set("k", 2_u32).skip_l1_write(true));
    hold.reached().await;
    assert_eq!(fresh(&node, "k").await, Some(1));
    hold.release();
    set.await.unwrap().unwrap();
    assert_eq!(fresh(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_that_leaves_the_first_tier_alone_leaves_nothing_old_in_it() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    let forced = node.get_or_set("k", Source::new().gives(2_u32)).force_fresh(true);
    assert_eq!(forced.skip_l1_write(true).await.unwrap(), 2);
    assert_eq!(fresh(&node, "k").await, Some(2));
}

/// A change that gets no answer fails after a second. One that began later has long succeeded.
#[tokio::test(start_paused = true)]
async fn a_change_that_fails_late_takes_nothing_from_a_newer_one() {
    for (slow, newer) in [
        (Change::Set, Change::Delete),
        (Change::Set, Change::Set),
        (Change::SetMany, Change::Pull),
        (Change::SetMany, Change::SetMany),
        (Change::Delete, Change::Set),
        (Change::Pull, Change::SetMany),
        (Change::DeleteMany, Change::Set),
    ] {
        let world = World::new();
        let (node, l2) = node(&world).await;
        let names = node.namespace("n");
        names.set("k", 1_u32).await.unwrap();
        pass(ms(1)).await;
        let held = l2.hold_next(Ops::WRITES);
        let slow_change = if slow.leaves().is_some() {
            go(names.set_many([("k", 1_u32), ("l", 1)]))
        } else {
            let root = node.cache.clone();
            go(async move {
                slow.of(&root).await;
                Ok(())
            })
        };
        held.reached().await;
        pass(ms(1)).await;
        newer.of(&node).await;
        slow_change.await.unwrap().unwrap();
        assert_eq!(found(&node).await, newer.leaves(), "{slow:?}, then {newer:?}");
        pass(secs(30)).await;
        assert_eq!(found(&node).await, newer.leaves(), "{slow:?}, then {newer:?}");
        assert_eq!(found_anew(&world).await, newer.leaves(), "{slow:?}, then {newer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_dropped_half_way_leaves_the_tiers_agreeing() {
    for after in [true, false] {
        for change in Change::ALL {
            let world = World::new();
            let (node, l2) = node(&world).await;
            node.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
            pass(ms(1)).await;
            let hold =
                if after { l2.hold_next_after(Ops::WRITES) } else { l2.hold_next(Ops::WRITES) };
            let changing = tokio::spawn({
                let cache = node.cache.clone();
                async move { change.of(&cache).await }
            });
            hold.reached().await;
            changing.abort();
            // The change goes on without its caller.
            hold.release();
            settle().await;
            let (here, there) = (found(&node).await, found_anew(&world).await);
            assert_eq!(here, there, "{change:?}, after: {after}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_checks_an_entry_does_not_undo_what_a_message_says() {
    for change in Change::ALL {
        let world = World::new();
        let (node, l2) = node(&world).await;
        let other = world.node().await;
        node.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
        pass(ms(1)).await;
        // Messages may have been missed: the entry must be checked.
        node.bus.cut();
        calm().await;
        node.bus.restore();
        calm().await;
        let hold = l2.hold_next_after(Ops::GET | Ops::GET_MANY);
        let reader = Read::Get.start(&node, &Source::new());
        hold.reached().await;
        change.of(&other).await;
        settle().await;
        hold.release();
        reader.await.unwrap();
        assert_eq!(found(&node).await, change.leaves(), "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_a_tag_is_not_overwritten_by_a_slow_look() {
    for local in [true, false] {
        let world = World::new();
        let other = world.node().await;
        other.set("k", 1_u32).tags(["t"]).await.unwrap();
        pass(ms(1)).await;
        let (node, l2) = node(&world).await;
        // The entry, then its marker.
        let entry = l2.hold_next(Ops::GET);
        let reader = go(node.get::<u32>("k"));
        entry.reached().await;
        let marker = l2.hold_next_after(Ops::GET | Ops::GET_MANY);
        entry.release();
        marker.reached().await;
        if local { &node } else { &other }.delete_by_tag(["t"]).await.unwrap();
        settle().await;
        marker.release();
        reader.await.unwrap().unwrap();
        for _ in 0..2 {
            assert_eq!(fresh(&node, "k").await, None, "local: {local}");
        }
    }
}

/// A node whose factory wrote 9 over `change` of another node, whose message is on its way.
async fn overwritten(world: &World, change: Change) -> (Node, Holding, Node) {
    let (node, l2) = node(world).await;
    let other = world.node().await;
    let source = Source::held();
    let call = Read::GetOrSet.start(&node, &source);
    source.begun(1).await;
    node.bus.on(Ops::DELIVER).hold();
    pass(ms(1)).await;
    change.of(&other).await;
    node.bus.held(1).await;
    source.release();
    assert_eq!(call.await.unwrap(), Some(9));
    assert_eq!(node.document("n:k").unwrap()["value"], 9);
    (node, l2, other)
}

#[tokio::test(start_paused = true)]
async fn a_value_of_our_own_that_overwrote_a_change_is_taken_back_when_its_message_comes() {
    for change in Change::ALL {
        let world = World::new();
        let (node, _, other) = overwritten(&world, change).await;
        pass(ms(1_900)).await;
        node.bus.release();
        settle().await;
        // Worst case: one extra run of a factory.
        if change != Change::Tag {
            assert!(node.document("n:k").is_none(), "{change:?}");
        }
        for node in [&node, &world.node().await] {
            assert_eq!(found(node).await, None, "{change:?}");
        }
        assert!(matches!(found(&other).await, None | Some(2)));
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_very_value_that_we_wrote_is_taken_back() {
    let world = World::new();
    let (node, _, other) = overwritten(&world, Change::Delete).await;
    other.namespace("n").set("k", 9_u32).await.unwrap();
    node.bus.release();
    settle().await;
    assert_eq!(node.document("n:k").unwrap()["value"], 9);
    assert_eq!(found(&node).await, Some(9));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_was_set_is_not_taken_back() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    other.set("k", 1_u32).await.unwrap();
    settle().await;
    node.bus.on(Ops::DELIVER).hold();
    other.delete("k").await.unwrap();
    node.bus.held(1).await;
    pass(ms(1)).await;
    node.set("k", 2_u32).await.unwrap();
    node.bus.release();
    settle().await;
    for node in [&node, &other, &world.node().await] {
        assert_eq!(fresh(node, "k").await, Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_longer_ago_is_not_taken_back() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    assert_eq!(crate::common::fill(&node, "k", 1).await, 1);
    pass(ms(2_100)).await;
    // A message that says so although nothing changed.
    world.l2.put("bentocache:other", "x", None);
    let bytes = world.l2.peek("bentocache:k").unwrap();
    other.expire("k").skip_l2_write(true).await.unwrap();
    settle().await;
    assert_eq!(world.l2.peek("bentocache:k").unwrap(), bytes);
    assert_eq!(fresh(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_read_while_a_value_is_taken_back_does_not_keep_it() {
    for ops in [Ops::GET, Ops::DELETE_IF] {
        let world = World::new();
        let (node, l2, _) = overwritten(&world, Change::Set).await;
        let hold = l2.hold_next(ops);
        node.bus.release();
        hold.reached().await;
        let _ = node.namespace("n").get::<u32>("k").await.unwrap();
        hold.release();
        settle().await;
        assert_eq!(found(&node).await, None, "{ops:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_third_node_does_not_keep_what_was_taken_back() {
    let world = World::new();
    let third = world.node().await;
    let (node, ..) = overwritten(&world, Change::Set).await;
    // It heard of the set, and then read what was written over it.
    settle().await;
    assert_eq!(found(&third).await, Some(9));
    node.bus.release();
    settle().await;
    assert_eq!(found(&node).await, None);
    assert_eq!(found(&third).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_no_read_goes_back_behind_a_finished_set() {
    for world in [World::only_l1(), World::new()] {
        let node = world.node_with(|b| b, |s| s).await;
        let written = Arc::new(AtomicU32::new(0));
        node.set("k", 0_u32).await.unwrap();
        let mut work = JoinSet::new();
        for _ in 0..4 {
            let (cache, written) = (node.cache.clone(), written.clone());
            work.spawn(async move {
                for i in 0..500 {
                    let least = written.load(SeqCst);
                    let value = match i % 3 {
                        0 => cache.get::<u32>("k").await.unwrap().unwrap(),
                        1 => cache.get_many::<u32>(["k"]).await.unwrap()[0].unwrap(),
                        _ => cache.get_or_set("k", Source::new().gives(0_u32)).await.unwrap(),
                    };
                    assert!(value >= least, "{value} after {least}");
                    tokio::task::yield_now().await;
                }
            });
        }
        for i in 1..=500_u32 {
            node.set("k", i).await.unwrap();
            written.store(i, SeqCst);
            tokio::task::yield_now().await;
        }
        while let Some(done) = work.join_next().await {
            done.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_a_source_changed_before_an_invalidation_is_seen_after_it() {
    let cache = BentoCache::builder()
        .store("s", Store::new().l1(Memory::new()).l2(MapL2::new()))
        .build()
        .await
        .unwrap();
    let (source, announced) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (cache, source, announced) = (cache.clone(), source.clone(), announced.clone());
        readers.spawn(async move {
            for _ in 0..400 {
                let least = announced.load(SeqCst);
                let source = source.clone();
                let call = cache.get_or_set("k", move |_| async move {
                    let value = source.load(SeqCst);
                    tokio::task::yield_now().await;
                    Ok::<_, Error>(value)
                });
                let value = call.tags(["t"]).await.unwrap();
                assert!(value >= least, "{value} after {least}");
                tokio::task::yield_now().await;
            }
        });
    }
    for i in 1..=300_u32 {
        source.store(i, SeqCst);
        match i % 4 {
            0 => drop(cache.delete("k").await.unwrap()),
            1 => cache.expire("k").await.unwrap(),
            2 => cache.delete_by_tag(["t"]).await.unwrap(),
            _ => cache.clear().await.unwrap(),
        }
        announced.store(i, SeqCst);
        tokio::task::yield_now().await;
    }
    while let Some(done) = readers.join_next().await {
        done.unwrap();
    }
}
