//! Outages: nothing that was invalidated comes back, no acknowledged invalidation is lost, and an
//! outage makes nothing worse than it must.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::common::{Node, World, fill, get, ms, pass, secs, settle};
use crate::races::{Change, Source, fresh, go};
use bentocache::driver::{
    BusDriver, BusStream, Capabilities, DriverError, ErrorKind, L2Driver, Topic, Write,
};
use bentocache::{Cache, Error, EventKind, RecoveryMode};
use bentocache_testkit::{ChaosL2, MapBus, MapL2, Ops};
use bytes::Bytes;

fn is_dropped(event: &EventKind<'_>) -> bool {
    matches!(event, EventKind::RecoveryDropped { .. })
}

/// A node without a breaker, so that failures reach the driver one by one.
async fn plain(world: &World) -> Node {
    world.node_where(|s| s.l2_circuit_breaker("off", 1)).await
}

/// Invalidations, by which a key is gone.
const INVALIDATIONS: [&str; 6] = ["delete", "delete_many", "expire", "pull", "clear", "tag"];

async fn invalidate(cache: &Cache, how: &str) {
    match how {
        "delete" => drop(cache.delete("k").await.unwrap()),
        "delete_many" => drop(cache.delete_many(["k", "l"]).await.unwrap()),
        "expire" => cache.expire("k").await.unwrap(),
        "pull" => drop(cache.pull::<u32>("k").await.unwrap()),
        "clear" => cache.clear().await.unwrap(),
        _ => cache.delete_by_tag(["t"]).await.unwrap(),
    }
}

// ---- Nothing comes back ----

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_during_an_outage_does_not_come_back() {
    for how in INVALIDATIONS {
        // Only there: a tag that cannot be read would make the values stale by itself.
        let tags = (how == "tag").then_some("t");
        for written in ["a fill", "a set", "a set over an older value"] {
            for l2_first in [false, true] {
                let world = World::new();
                let (a, b) = (world.node().await, world.node().await);
                if written == "a set over an older value" {
                    b.set("k", 1_u32).tags(tags).await.unwrap();
                    settle().await;
                }
                a.l2.cut();
                a.bus.cut();
                settle().await;
                if written == "a fill" {
                    let source = Source::new();
                    let call = a.get_or_set("k", source.gives(2_u32)).tags(tags);
                    assert_eq!(call.await.unwrap(), 2);
                } else {
                    a.set("k", 2_u32).tags(tags).await.unwrap();
                }
                pass(ms(10)).await;
                invalidate(&b, how).await;
                pass(secs(3)).await;
                for restore_l2 in [l2_first, !l2_first] {
                    if restore_l2 {
                        a.l2.restore();
                    } else {
                        a.bus.restore();
                    }
                    pass(ms(50)).await;
                }
                pass(secs(10)).await;
                for node in [&a, &b, &world.node().await] {
                    assert_eq!(fresh(node, "k").await, None, "{written}, {how}, {l2_first}");
                }
            }
        }
    }
}

/// What a factory of the first node brings while that node hears nothing, and the others invalidate.
async fn filled_in_a_gap(world: &World, nodes: [&Node; 2], how: &str, knows: bool) {
    let [a, b] = nodes;
    if knows {
        a.bus.cut();
    } else {
        a.bus.on(Ops::DELIVER).hang();
    }
    settle().await;
    let source = Source::held();
    let call = go(a.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    pass(ms(10)).await;
    match how {
        "set" => b.set("k", 2_u32).await.unwrap(),
        _ => invalidate(b, how).await,
    }
    pass(ms(10)).await;
    source.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    fill(a, "other", 1).await;
    pass(secs(20)).await;
    a.bus.cut();
    pass(ms(10)).await;
    let anew = world.node().await;
    assert_eq!(fresh(&anew, "k").await, Some(1), "{how}, {knows}");
}

#[tokio::test(start_paused = true)]
async fn what_a_factory_brought_while_its_node_heard_nothing_goes_if_it_was_invalidated() {
    for how in ["delete", "delete_many", "expire", "pull", "clear", "set"] {
        for knows in [false, true] {
            let world = World::new();
            let (a, b) = (world.node().await, world.node().await);
            filled_in_a_gap(&world, [&a, &b], how, knows).await;
            a.bus.calm();
            a.bus.restore();
            pass(secs(5)).await;
            for node in [&a, &b, &world.node().await] {
                assert_eq!(fresh(node, "k").await, None, "{how}, {knows}");
                // It is unknown which keys had the prefix when it was cleared.
                let other = (how != "clear").then_some(1);
                assert_eq!(fresh(node, "other").await, other, "it was not invalidated");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_last_is_asked_too_and_one_that_heard_answers_for_one_that_ended() {
    for ends in [false, true] {
        let world = World::new();
        let (a, b) = (world.node().await, world.node().await);
        let _c = if ends { Some(world.node().await) } else { None };
        filled_in_a_gap(&world, [&a, &b], "delete", true).await;
        if ends {
            b.cache.disconnect().await.unwrap();
        } else {
            b.bus.cut();
        }
        settle().await;
        a.bus.restore();
        pass(secs(60)).await;
        if !ends {
            b.bus.restore();
            pass(secs(5)).await;
        }
        for node in [&a, &world.node().await] {
            assert_eq!(fresh(node, "k").await, None, "{ends}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_dead_without_knowing_it_proves_nothing() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    // Neither messages nor a report of the loss arrive.
    a.bus.on(Ops::DELIVER).hang();
    a.l2.cut();
    a.set("k", 1_u32).await.unwrap();
    b.delete("k").await.unwrap();
    a.l2.restore();
    pass(secs(10)).await;
    for node in [&a, &b] {
        assert_eq!(fresh(node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_before_the_proof_counts() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    a.l2.cut();
    a.set("k", 1_u32).await.unwrap();
    pass(ms(1)).await;
    a.bus.on(Ops::DELIVER).hold();
    b.delete("k").await.unwrap();
    // The repetition has begun, and waits for the proof, which is behind the message.
    a.l2.restore();
    pass(ms(300)).await;
    a.bus.release();
    pass(secs(10)).await;
    for node in [&a, &b] {
        assert_eq!(fresh(node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_is_stored_where_the_bus_proves_that_nobody_deleted_the_key() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.l2.cut();
    a.set("k", 1_u32).await.unwrap();
    pass(secs(20)).await;
    a.l2.restore();
    pass(secs(5)).await;
    assert_eq!((fresh(&a, "k").await, fresh(&b, "k").await), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn without_a_bus_a_set_is_stored_only_over_an_older_value() {
    let world = World::without_bus();
    let (a, b) = (plain(&world).await, plain(&world).await);
    b.set("over", 1_u32).await.unwrap();
    b.set("expired", 1_u32).grace("1h").await.unwrap();
    pass(ms(10)).await;
    a.l2.cut();
    for key in ["over", "expired", "new"] {
        a.set(key, 2_u32).await.unwrap();
    }
    pass(ms(10)).await;
    b.expire("expired").await.unwrap();
    a.seen.take();
    a.l2.restore();
    pass(secs(10)).await;
    assert_eq!(a.seen.count(is_dropped), 2);
    let keys = ["over", "expired", "new"];
    let found: Vec<Option<u32>> = world.node().await.get_many(keys).await.unwrap();
    assert_eq!(found, [Some(2), None, None]);
    // What was dropped is gone here, too.
    let found: Vec<Option<u32>> = a.get_many(["over", "expired", "new"]).await.unwrap();
    assert_eq!(found, [Some(2), None, None]);
}

#[tokio::test(start_paused = true)]
async fn with_last_write_a_set_is_stored_in_any_case_but_never_a_fill() {
    let world = World::without_bus();
    let a = world.node_where(|s| s.recovery_mode(RecoveryMode::LastWrite)).await;
    a.l2.cut();
    a.set("set", 1_u32).await.unwrap();
    fill(&a, "fill", 2).await;
    a.l2.restore();
    pass(secs(10)).await;
    assert_eq!(world.l2.all_keys(), ["bentocache:set"]);
}

#[tokio::test(start_paused = true)]
async fn a_fill_without_an_answer_is_taken_back_if_messages_were_missed() {
    for gap in [false, true] {
        let world = World::new();
        let a = plain(&world).await;
        a.l2.on(Ops::SET).fail_late();
        assert_eq!(fill(&a, "k", 1).await, 1);
        if gap {
            a.bus.cut();
            settle().await;
            a.bus.restore();
        }
        a.l2.calm();
        pass(secs(10)).await;
        assert_eq!(a.document("k").is_some(), !gap, "gap: {gap}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_arrives_behind_an_invalidation_is_taken_back() {
    for how in ["delete", "clear"] {
        let world = World::new();
        let (a, b) = (plain(&world).await, plain(&world).await);
        a.l2.on(Ops::SET).fail_late();
        assert_eq!(fill(&a, "k", 1).await, 1);
        let document = world.l2.peek("bentocache:k").unwrap();
        pass(ms(1)).await;
        invalidate(&b, how).await;
        settle().await;
        // The packets were on their way.
        world.l2.put("bentocache:k", document, None);
        a.l2.calm();
        pass(secs(10)).await;
        assert_eq!(a.document("k"), None, "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_take_back_whose_answer_is_lost_leaves_no_node_with_what_it_hid() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    b.bus.on(Ops::DELIVER).hold();
    a.set("k", 1_u32).await.unwrap();
    b.l2.on(Ops::GET).fail_next(1);
    assert_eq!(fill(&b, "k", 2).await, 2, "over the value of the other node");
    b.l2.on(Ops::DELETE_IF).fail_late();
    b.bus.release();
    settle().await;
    assert_eq!(a.document("k"), None, "it was taken back");
    assert_eq!(get(&a, "k").await, Some(1), "which this node does not know yet");
    b.l2.calm();
    pass(secs(10)).await;
    assert_eq!((fresh(&a, "k").await, fresh(&b, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_fill_without_an_answer_is_remembered_also_where_an_older_change_waits() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    a.l2.on(Ops::GET | Ops::SET).fail();
    a.set("k", 1_u32).await.unwrap();
    pass(ms(1)).await;
    // The set that waits becomes a deletion, which is older than the fill.
    b.delete("k").await.unwrap();
    pass(ms(5)).await;
    let source = Source::held();
    let call = go(a.get_or_set("k", source.gives(2_u32)));
    source.begun(1).await;
    a.bus.on(Ops::DELIVER).hold();
    b.delete("k").await.unwrap();
    a.l2.on(Ops::SET).fail_late();
    source.release();
    assert_eq!(call.await.unwrap().unwrap(), 2);
    assert!(a.document("k").is_some(), "it was stored");
    a.bus.release();
    settle().await;
    a.l2.calm();
    pass(secs(10)).await;
    assert_eq!(a.document("k"), None);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_follows_a_take_back_reaches_the_value_of_the_same_millisecond() {
    let world = World::new();
    let a = plain(&world).await;
    a.l2.on(Ops::SET).fail_late();
    assert_eq!(fill(&a, "k", 1).await, 1);
    // The next value is to replace it, and no time has passed.
    a.l2.on(Ops::SET).fail();
    let source = Source::new();
    assert_eq!(a.get_or_set("k", source.gives(2_u32)).force_fresh(true).await.unwrap(), 2);
    assert!(a.document("k").is_some(), "the first value was stored, its answer was lost");
    a.l2.calm();
    pass(secs(10)).await;
    assert_eq!(a.document("k"), None);
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_that_is_told_late_is_made_once_more() {
    for how in ["delete", "expire", "clear"] {
        let world = World::new();
        let (a, b) = (plain(&world).await, plain(&world).await);
        let source = Source::held();
        let call = go(a.get_or_set("k", source.gives(1_u32)));
        source.begun(1).await;
        pass(ms(1)).await;
        b.bus.on(Ops::PUBLISH).fail();
        invalidate(&b, how).await;
        // The factory of another node stores its value over it, and forgets that.
        source.release();
        assert_eq!(call.await.unwrap().unwrap(), 1);
        pass(secs(4)).await;
        assert_eq!(fresh(&a, "k").await, Some(1), "it cannot know");
        b.bus.calm();
        pass(secs(6)).await;
        for node in [&a, &b, &world.node().await] {
            assert_eq!(fresh(node, "k").await, None, "{how}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_that_is_told_very_late_does_not_take_what_was_stored_since() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    b.bus.on(Ops::PUBLISH).fail();
    b.clear().await.unwrap();
    pass(secs(30)).await;
    a.set("k", 1_u32).await.unwrap();
    b.bus.calm();
    pass(secs(10)).await;
    assert_eq!(fresh(&world.node().await.cache, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_forced_value_that_was_not_stored_leaves_no_older_one_to_the_others() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    pass(ms(1)).await;
    a.l2.on(Ops::SET).fail();
    let source = Source::new();
    assert_eq!(a.get_or_set("k", source.gives(2_u32)).force_fresh(true).await.unwrap(), 2);
    pass(secs(5)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_told_late_stays_and_an_older_fill_over_it_does_not() {
    for is_overwritten in [false, true] {
        let world = World::new();
        let (a, b) = (plain(&world).await, plain(&world).await);
        let source = Source::held();
        let call = go(a.get_or_set("k", source.gives(1_u32)));
        source.begun(1).await;
        pass(ms(1)).await;
        b.bus.on(Ops::PUBLISH).fail();
        // L2 is slow.
        b.l2.on(Ops::SET).slow(ms(50));
        b.set("k", 2_u32).await.unwrap();
        if is_overwritten {
            source.release();
            assert_eq!(call.await.unwrap().unwrap(), 1);
        }
        pass(secs(8)).await;
        b.bus.calm();
        pass(secs(6)).await;
        let left = if is_overwritten { None } else { Some(2) };
        let anew = world.node().await;
        assert_eq!(fresh(&anew, "k").await, left, "{is_overwritten}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_in_the_place_of_an_expiry_that_waited_is_checked_when_that_is_done() {
    let world = World::new();
    let (a, b) = (plain(&world).await, plain(&world).await);
    b.set("k", 1_u32).await.unwrap();
    pass(ms(1)).await;
    a.l2.fail();
    a.expire("k").await.unwrap();
    pass(ms(1)).await;
    assert_eq!(fill(&a, "k", 2).await, 2);
    a.l2.calm();
    pass(secs(10)).await;
    assert_eq!((fresh(&a, "k").await, fresh(&b, "k").await), (None, None));
}

// ---- No invalidation is lost ----

#[tokio::test(start_paused = true)]
async fn what_an_operator_repairs_ends_no_change_that_waits() {
    for kind in [ErrorKind::Denied, ErrorKind::Full, ErrorKind::Config] {
        for change in Change::ALL {
            let world = World::new();
            let (a, b) = (plain(&world).await, plain(&world).await);
            let users = a.namespace("n");
            users.set("k", 1_u32).tags(["t"]).await.unwrap();
            settle().await;
            pass(ms(1)).await;
            a.l2.on(Ops::WRITES).fail_with(kind);
            change.of(&a).await;
            pass(secs(60)).await;
            a.l2.calm();
            pass(secs(5)).await;
            assert_eq!(a.seen.count(is_dropped), 0, "{kind:?}, {change:?}");
            for node in [&a, &b, &world.node().await] {
                let found = fresh(&node.namespace("n"), "k").await;
                assert_eq!(found, change.leaves(), "{kind:?}, {change:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_of_an_invalidation_is_an_error_of_the_call() {
    for kind in [ErrorKind::TooLarge, ErrorKind::Refused] {
        let world = World::new();
        let a = plain(&world).await;
        a.set("k", 1_u32).await.unwrap();
        a.l2.on(Ops::ALL).fail_with(kind);
        let is_refusal = |error: &Error| {
            matches!(error, Error::L2 { source, .. } if source.kind() == kind)
                && error.to_string().contains("chaos")
        };
        assert!(is_refusal(&a.delete("k").await.unwrap_err()));
        let error = a.delete_many(["k", "l"]).await.unwrap_err();
        let Error::Keys { failed, of: 2 } = &error else { panic!("{error:?}") };
        assert!(failed.len() == 2 && failed.iter().all(|(_, error)| is_refusal(error)));
        assert!(is_refusal(&a.expire("k").await.unwrap_err()));
        assert!(is_refusal(&a.pull::<u32>("k").await.unwrap_err()));
        assert!(is_refusal(&a.delete_by_tag(["t"]).await.unwrap_err()));
        assert!(is_refusal(&a.clear().await.unwrap_err()));
    }
    // A tag whose marker the driver cannot hold.
    let l2 = || ChaosL2::new(MapL2::new().max_key(60));
    let a = World::new().node_where(|s| s.l2(l2())).await;
    let error = a.delete_by_tag(["t".repeat(100)]).await.unwrap_err();
    assert!(error.to_string().contains("60"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_refused_for_good_later_is_given_up_and_that_is_told() {
    let world = World::new();
    let a = plain(&world).await;
    a.l2.on(Ops::SET).fail();
    a.set("k", 1_u32).await.unwrap();
    a.seen.take();
    a.l2.on(Ops::SET).fail_with(ErrorKind::TooLarge);
    pass(secs(5)).await;
    let told = a.seen.texts();
    assert!(told.contains(&"dropped 0".to_owned()), "{told:?}");
    assert!(!told.iter().any(|text| text.starts_with("done")), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_set_that_a_full_server_refuses_leaves_no_older_value_to_the_others() {
    for kind in [ErrorKind::Full, ErrorKind::Denied] {
        let world = World::new();
        let (a, b) = (plain(&world).await, plain(&world).await);
        a.set("k", 1_u32).await.unwrap();
        a.set_many([("l", 1_u32), ("m", 1)]).await.unwrap();
        settle().await;
        assert_eq!(b.get_many(["k", "l", "m"]).await.unwrap(), [Some(1), Some(1), Some(1)]);
        pass(ms(1)).await;
        a.l2.on(Ops::SET | Ops::SET_MANY).fail_with(kind);
        a.set("k", 2_u32).await.unwrap();
        a.set_many([("l", 2_u32), ("m", 2)]).await.unwrap();
        settle().await;
        let nothing: Vec<Option<u32>> = vec![None, None, None];
        assert_eq!(b.get_many(["k", "l", "m"]).await.unwrap(), nothing, "{kind:?}");
        assert_eq!(get(&a, "k").await, Some(2), "here it is known");
        // When there is room again, everybody gets the new one.
        a.l2.calm();
        pass(secs(5)).await;
        assert_eq!(b.get_many(["k", "l", "m"]).await.unwrap(), [Some(2), Some(2), Some(2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn disconnecting_says_what_did_not_reach_the_others() {
    let world = World::new();
    let a = plain(&world).await;
    a.set_many([("a", 1_u32), ("b", 2)]).await.unwrap();
    a.l2.on(Ops::WRITES).fail();
    a.bus.on(Ops::PUBLISH).fail();
    a.delete_many(["a", "b"]).await.unwrap();
    let error = a.disconnect().await.unwrap_err();
    let Error::Unflushed { changes: 2, messages: 2.. } = error else { panic!("{error:?}") };
    assert!(error.to_string().contains("2 changes"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn disconnecting_tries_until_its_time_is_over() {
    let world = World::new();
    let a = plain(&world).await;
    world.node().await.set("k", 1_u32).await.unwrap();
    a.l2.on(Ops::WRITES).fail();
    a.delete("k").await.unwrap();
    let cache = a.cache.clone();
    let bye = tokio::spawn(async move { cache.disconnect().await });
    pass(secs(2)).await;
    a.l2.calm();
    bye.await.unwrap().unwrap();
    assert!(world.l2.is_empty());
}

/// A bus that accepts only small messages.
struct Narrow {
    bus: MapBus,
    most: usize,
}

impl BusDriver for Narrow {
    fn name(&self) -> &'static str {
        "narrow"
    }
    async fn publish(&self, topic: Topic<'_>, message: Bytes) -> Result<(), DriverError> {
        if message.len() > self.most {
            return Err(DriverError::new(ErrorKind::TooLarge, "too large"));
        }
        self.bus.publish(topic, message).await
    }
    async fn subscribe(&self, topic: Topic<'_>) -> Result<BusStream, DriverError> {
        self.bus.subscribe(topic).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_for_the_bus_is_split_until_it_fits() {
    let (world, bus) = (World::new(), MapBus::new());
    let narrow = |most| Narrow { bus: bus.clone(), most };
    let a = world.node_where(|s| s.bus(narrow(200))).await;
    let b = world.node_where(|s| s.bus(narrow(200))).await;
    let mut keys: Vec<String> = (0..300).map(|i| format!("k{i}")).collect();
    // This one fits into no message: all of its namespace is cleared instead.
    keys.push("x".repeat(300));
    a.set_many(keys.iter().map(|key| (key, 1_u32))).await.unwrap();
    a.namespace("n").set("k", 1_u32).await.unwrap();
    settle().await;
    assert!(b.get_many::<u32>(&keys).await.unwrap().iter().all(Option::is_some));
    for i in 0..keys.len() {
        a.delete_many(&keys[i..=i]).await.unwrap();
    }
    settle().await;
    assert!(b.get_many::<u32>(&keys).await.unwrap().iter().all(Option::is_none));
    assert_eq!(a.seen.count(is_dropped), 0);
    assert_eq!(get(&b.namespace("n"), "k").await, Some(1));
}

// ---- Everything is right again soon ----

#[tokio::test(start_paused = true)]
async fn the_return_of_the_server_is_used_at_once_past_an_open_breaker() {
    let world = World::new();
    let a = world.node_where(|s| s.l2_circuit_breaker("1h", 1).recovery(100, "1h")).await;
    world.node().await.set("k", 1_u32).await.unwrap();
    a.l2.cut();
    a.delete("k").await.unwrap();
    let _ = get(&a, "other").await;
    pass(secs(60)).await;
    a.l2.restore();
    pass(ms(20)).await;
    assert!(world.l2.is_empty());
    assert!(a.seen.texts().contains(&"breaker closed".to_owned()));
    a.l2.reset_calls();
    let _ = get(&a, "other").await;
    assert_eq!(a.l2.calls(), 1, "it is closed");
}

#[tokio::test(start_paused = true)]
async fn without_a_report_everything_is_right_again_5_seconds_after_the_return() {
    for breaker in ["off", "1s"] {
        for outage in [1_u64, 10, 100, 600] {
            let world = World::new();
            let a = world.node_where(|s| s.l2_circuit_breaker(breaker, 5)).await;
            let b = world.node().await;
            for i in 0..200_u32 {
                b.set(format!("k{i}"), i).await.unwrap();
            }
            // No report: as a server that is read-only or full for a while.
            a.l2.fail();
            for i in 0..200_u32 {
                a.delete(format!("k{i}")).await.unwrap();
            }
            pass(secs(outage)).await;
            a.l2.calm();
            pass(secs(5)).await;
            assert!(world.l2.is_empty(), "{breaker} {outage}: {}", world.l2.len());
        }
    }
}

/// An L2 that never accepts the value of one key.
#[derive(Clone)]
struct Picky {
    map: MapL2,
    refused: Arc<AtomicUsize>,
    kind: ErrorKind,
}

impl Picky {
    fn refuse(&self, key: &str) -> Result<(), DriverError> {
        if key.ends_with("bad") {
            self.refused.fetch_add(1, SeqCst);
            return Err(DriverError::new(self.kind, "not this one"));
        }
        Ok(())
    }
}

impl L2Driver for Picky {
    fn name(&self) -> &'static str {
        "picky"
    }
    fn capabilities(&self) -> Capabilities {
        self.map.capabilities()
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, DriverError> {
        self.map.get(key).await
    }
    async fn set(&self, key: &str, value: Bytes, ttl: Option<Duration>) -> Result<(), DriverError> {
        self.refuse(key)?;
        self.map.set(key, value, ttl).await
    }
    async fn set_many(&self, writes: &[Write<'_>]) -> Result<(), DriverError> {
        writes.iter().try_for_each(|write| self.refuse(write.key))?;
        self.map.set_many(writes).await
    }
    async fn insert(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<bool, DriverError> {
        self.refuse(key)?;
        self.map.insert(key, value, ttl).await
    }
    async fn delete(&self, keys: &[&str]) -> Result<u64, DriverError> {
        self.map.delete(keys).await
    }
    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        self.map.clear(prefix).await
    }
}

async fn picky(world: &World, kind: ErrorKind) -> (Node, Picky, bentocache_testkit::Chaos) {
    let l2 = Picky { map: world.l2.clone(), refused: Arc::default(), kind };
    let wrapped = ChaosL2::new(l2.clone());
    let chaos = wrapped.chaos();
    let node = world.node_where(|s| s.l2(wrapped).l2_circuit_breaker("off", 1)).await;
    (node, l2, chaos)
}

#[tokio::test(start_paused = true)]
async fn one_change_that_always_fails_holds_up_no_other() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::Full] {
        let world = World::new();
        let (node, l2, chaos) = picky(&world, kind).await;
        chaos.cut();
        node.set("bad", 1_u32).await.unwrap();
        for i in 0..100_u32 {
            node.set(format!("k{i}"), i).await.unwrap();
        }
        chaos.restore();
        pass(secs(5)).await;
        assert_eq!(world.l2.len(), 100, "{kind:?}");
        let before = l2.refused.load(SeqCst);
        pass(secs(60)).await;
        let again = l2.refused.load(SeqCst) - before;
        assert!((10..=40).contains(&again), "{kind:?}: it is tried on, {again} times");
    }
}

#[tokio::test(start_paused = true)]
async fn invalidations_are_repeated_before_writes() {
    let world = World::new();
    let a = plain(&world).await;
    world.node().await.set("old", 1_u32).await.unwrap();
    a.l2.cut();
    for i in 0..1_000_u32 {
        a.set(format!("k{i}"), i).await.unwrap();
    }
    a.delete("old").await.unwrap();
    a.l2.on(Ops::ALL).slow(ms(10));
    a.l2.restore();
    pass(ms(100)).await;
    assert!(a.document("old").is_none());
    assert!(world.l2.len() < 500, "{}", world.l2.len());
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_bounded_by_its_size_and_writes_go_first() {
    let world = World::new();
    let a = world.node_where(|s| s.recovery_max_bytes("100kb")).await;
    world.node().await.set("old", 1_u32).await.unwrap();
    a.l2.cut();
    a.delete("old").await.unwrap();
    for i in 0..20_u32 {
        a.set(format!("k{i}"), "x".repeat(10_000)).await.unwrap();
    }
    let dropped = a.seen.count(is_dropped);
    assert!((10..=12).contains(&dropped), "{dropped}");
    a.l2.restore();
    pass(secs(5)).await;
    let kept = world.l2.all_keys();
    assert_eq!(kept.len(), 20 - dropped, "{kept:?}");
    assert!(kept.contains(&"bentocache:k19".to_owned()), "{kept:?}");
}

#[tokio::test(start_paused = true)]
async fn too_many_invalidations_become_a_clear_and_none_is_lost() {
    let world = World::new();
    let (a, b) = (world.node_where(|s| s.recovery(10, "1s")).await, world.node().await);
    for i in 0..50_u32 {
        b.namespace("n").set(format!("k{i}"), i).await.unwrap();
    }
    b.set("other", 1_u32).await.unwrap();
    settle().await;
    a.l2.cut();
    for i in 0..50_u32 {
        a.namespace("n").delete(format!("k{i}")).await.unwrap();
    }
    assert_eq!(a.seen.count(is_dropped), 0);
    a.l2.restore();
    pass(secs(5)).await;
    assert_eq!(world.l2.all_keys(), ["bentocache:other"]);
}

#[tokio::test(start_paused = true)]
async fn of_many_values_only_those_that_a_full_server_refuses_are_removed() {
    let world = World::new();
    let (node, _, chaos) = picky(&world, ErrorKind::Full).await;
    node.set_many([("bad", 1_u32), ("good", 1)]).await.unwrap();
    // One at a time, because the driver refuses the call for good.
    chaos.on(Ops::SET_MANY).fail_with(ErrorKind::TooLarge);
    node.set_many([("bad", 2_u32), ("good", 2)]).await.unwrap();
    settle().await;
    assert_eq!(world.l2.all_keys(), ["bentocache:good"]);
}
