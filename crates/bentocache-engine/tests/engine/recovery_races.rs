//! An L2 that fails while several nodes change the same keys: what is repeated late brings
//! nothing back, and in the end all nodes agree with L2. Each test is a history that
//! `model.rs` has found.

use crate::common::{Node, World, fill, get, ms, pass, secs, settle};
use crate::races::{Holding, Source, calm, fresh, go};
use bentocache::driver::{BusDriver, Topic};
use bentocache_engine::wire::message::{self, Kind, Sender};
use bentocache_testkit::{Chaos, ChaosL2, Ops};

/// A node without a breaker, so that failures reach the driver one by one.
async fn plain(world: &World) -> Node {
    world.node_where(|s| s.l2_circuit_breaker("off", 1)).await
}

/// The same, with calls of L2 that can be held one by one, and that can fail.
async fn held(world: &World) -> (Node, Holding, Chaos) {
    let holding = Holding::new(&world.l2);
    let l2 = ChaosL2::new(holding.clone());
    let chaos = l2.chaos();
    let node = world.node_where(|s| s.l2(l2).l2_circuit_breaker("off", 1)).await;
    (node, holding, chaos)
}

/// What a new node finds.
async fn elsewhere(world: &World) -> Option<u32> {
    let node = world.node().await;
    fresh(&node, "k").await
}

/// Waits until the key is in L2, and not much longer.
async fn stored(node: &Node) {
    while node.document("k").is_none() {
        pass(ms(10)).await;
    }
}

/// Nodes learn of a change of the tag `t` and must read it again.
async fn rumour(world: &World) {
    for bytes in message::encode(&Sender::random(), Kind::Set, "bentocache", &["___bc:t:t"]) {
        let topic = Topic::new("bentocache.notifications:s", "bentocache:");
        world.bus.publish(topic, bytes).await.unwrap();
    }
    settle().await;
}

// ---- Changes that wait ----

#[tokio::test(start_paused = true)]
async fn a_fill_that_makes_a_deletion_that_waits_needless_is_announced() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    other.set("k", 1_u32).await.unwrap();
    settle().await;
    node.l2.on(Ops::DELETE).fail();
    node.delete("k").await.unwrap();
    settle().await;
    // The deletion has been told, but not done.
    assert_eq!(fresh(&other, "k").await, Some(1));
    node.l2.calm();
    assert_eq!(fill(&node, "k", 2).await, 2);
    settle().await;
    assert_eq!(fresh(&other, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_fails_beside_a_later_change_lets_nothing_older_be_found() {
    let world = World::new();
    let node = plain(&world).await;
    node.set("k", 1_u32).await.unwrap();
    pass(ms(1)).await;
    node.l2.on(Ops::SET).hold();
    let set = go(node.set("k", 2_u32));
    node.l2.on(Ops::SET).held(1).await;
    node.l2.on(Ops::DELETE).hold();
    let delete = go(node.delete("k"));
    node.l2.on(Ops::DELETE).held(1).await;
    node.l2.on(Ops::SET).fail();
    node.l2.on(Ops::SET).release();
    set.await.unwrap().unwrap();
    // The deletion has not reached L2 yet.
    assert_ne!(fresh(&node, "k").await, Some(1));
    node.l2.calm();
    node.l2.release();
    delete.await.unwrap().unwrap();
    pass(secs(10)).await;
    assert_eq!(fresh(&node, "k").await, None);
    assert_eq!(elsewhere(&world).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_expiry_reaches_what_was_stored_elsewhere_since_a_change_that_waits() {
    for remove in [false, true] {
        let world = World::new();
        let node = world.node_where(|s| s.l2_circuit_breaker("off", 1).grace("1h")).await;
        let other = plain(&world).await;
        node.l2.on(Ops::WRITES).fail();
        if remove {
            node.delete("k").await.unwrap();
        } else {
            node.set("k", 1_u32).await.unwrap();
        }
        pass(ms(1)).await;
        // It has not heard of that.
        node.bus.on(Ops::DELIVER).hold();
        other.set("k", 2_u32).await.unwrap();
        settle().await;
        node.expire("k").await.unwrap();
        node.l2.calm();
        node.bus.release();
        pass(secs(10)).await;
        for node in [&node, &other, &world.node().await] {
            assert_eq!(fresh(node, "k").await, None, "remove: {remove}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_has_expired_while_it_waited_does_not_leave_what_it_was_to_replace() {
    let world = World::new();
    let node = plain(&world).await;
    node.set("k", 1_u32).ttl("1h").await.unwrap();
    pass(ms(1)).await;
    node.l2.on(Ops::SET).fail();
    node.set("k", 2_u32).ttl("1s").await.unwrap();
    pass(secs(10)).await;
    node.l2.calm();
    pass(secs(60)).await;
    assert_eq!((elsewhere(&world).await, get(&node, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_taken_back_at_once_is_taken_back_later() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    let source = Source::held();
    let call = go(node.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    pass(ms(1)).await;
    other.bus.on(Ops::PUBLISH).hold();
    other.delete("k").await.unwrap();
    source.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    // Now it learns of the deletion, and cannot read L2.
    node.l2.on(Ops::GET).fail();
    other.bus.release();
    settle().await;
    node.l2.calm();
    pass(secs(10)).await;
    for node in [&node, &other, &world.node().await] {
        assert_eq!(fresh(node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_begins_to_wait_during_a_clear_is_not_forgotten_with_it() {
    let world = World::new();
    let (node, holding, chaos) = held(&world).await;
    let set = holding.hold_next(Ops::SET);
    let call = go(node.get_or_set("k", Source::new().gives(1_u32)));
    set.reached().await;
    let cleared = holding.hold_next_after(Ops::CLEAR);
    let clear = go(node.clear());
    cleared.reached().await;
    // The value is stored behind the clear, and to take it back fails.
    chaos.on(Ops::DELETE_IF).fail_next(1);
    set.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    cleared.release();
    clear.await.unwrap().unwrap();
    pass(secs(10)).await;
    assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (None, None));
}

// ---- Writes that are repeated ----

#[tokio::test(start_paused = true)]
async fn a_write_that_is_repeated_behind_a_deletion_elsewhere_is_taken_back_when_that_is_heard_of()
{
    for expire in [false, true] {
        let world = World::new();
        let (node, other) = (plain(&world).await, plain(&world).await);
        node.l2.on(Ops::SET).fail();
        node.set("k", 1_u32).await.unwrap();
        pass(ms(1)).await;
        other.bus.on(Ops::PUBLISH).hold();
        if expire {
            other.expire("k").await.unwrap();
        } else {
            other.delete("k").await.unwrap();
        }
        node.l2.calm();
        stored(&node).await;
        other.bus.release();
        pass(secs(1)).await;
        for node in [&node, &other, &world.node().await] {
            assert_eq!(fresh(node, "k").await, None, "expire: {expire}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_stored_over_a_newer_one_is_not_repeated() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    let source = Source::held();
    let call = go(node.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    pass(ms(1)).await;
    other.bus.on(Ops::PUBLISH).hold();
    other.set("k", 2_u32).await.unwrap();
    // It is stored, and the node does not know.
    node.l2.on(Ops::SET).fail_late();
    source.release();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    assert_eq!(node.document("k").unwrap()["value"], 1);
    node.l2.calm();
    other.bus.release();
    pass(secs(10)).await;
    for node in [&node, &other, &world.node().await] {
        assert_ne!(fresh(node, "k").await, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_sets_that_wait_in_two_nodes_the_later_one_is_kept() {
    for earlier_first in [false, true] {
        let world = World::new();
        let (node, other) = (plain(&world).await, plain(&world).await);
        node.l2.on(Ops::SET).fail();
        other.l2.on(Ops::SET).fail();
        node.set("k", 1_u32).await.unwrap();
        pass(ms(1)).await;
        other.set("k", 2_u32).await.unwrap();
        let (first, second) = if earlier_first { (&node, &other) } else { (&other, &node) };
        first.l2.calm();
        stored(first).await;
        settle().await;
        second.l2.calm();
        pass(secs(10)).await;
        for node in [&node, &other, &world.node().await] {
            assert_eq!(fresh(node, "k").await, Some(2), "earlier first: {earlier_first}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_sets_that_were_stored_without_an_answer_the_later_one_stays() {
    for later_first in [false, true] {
        let world = World::new();
        let (node, other) = (plain(&world).await, plain(&world).await);
        // As with a server that stands still: both seem to fail, and both are stored.
        node.l2.on(Ops::SET).fail_late();
        other.l2.on(Ops::SET).fail_late();
        node.bus.on(Ops::PUBLISH).hold();
        node.set("k", 1_u32).await.unwrap();
        pass(ms(1)).await;
        other.set("k", 2_u32).await.unwrap();
        // So each has heard of the other's while its own waits.
        node.bus.release();
        node.bus.calm();
        settle().await;
        let (first, second) = if later_first { (&other, &node) } else { (&node, &other) };
        first.l2.calm();
        pass(secs(10)).await;
        second.l2.calm();
        pass(secs(60)).await;
        for node in [&node, &other, &world.node().await] {
            assert_eq!(fresh(node, "k").await, Some(2), "later first: {later_first}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_behind_a_late_clear_does_not_outlive_a_newer_one_that_the_clear_took() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    node.l2.on(Ops::CLEAR).fail();
    node.clear().await.unwrap();
    node.set("k", 1_u32).await.unwrap();
    settle().await;
    other.bus.on(Ops::PUBLISH).hold();
    other.set("k", 2_u32).await.unwrap();
    node.l2.calm();
    while node.document("k").unwrap()["value"] != 1 {
        pass(ms(10)).await;
        stored(&node).await;
    }
    other.bus.release();
    pass(secs(1)).await;
    for node in [&node, &other, &world.node().await] {
        assert_ne!(fresh(node, "k").await, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_repeated_behind_a_deletion_here_is_never_seen_again() {
    for slow in [false, true] {
        let world = World::new();
        let (node, holding, chaos) = held(&world).await;
        chaos.on(Ops::SET).fail_next(1);
        node.set("k", 1_u32).await.unwrap();
        let set = holding.hold_next(Ops::SET);
        set.reached().await;
        pass(ms(1)).await;
        // It is deleted, and then the repetition stores it.
        let deleted = slow.then(|| holding.hold_next_after(Ops::DELETE));
        let delete = go(node.delete("k"));
        if let Some(deleted) = &deleted {
            deleted.reached().await;
        }
        calm().await;
        let removal = holding.hold_next(Ops::DELETE_IF);
        set.release();
        removal.reached().await;
        if let Some(deleted) = &deleted {
            deleted.release();
        }
        delete.await.unwrap().unwrap();
        assert_eq!(node.document("k").unwrap()["value"], 1);
        assert_eq!(fresh(&node, "k").await, None, "slow: {slow}");
        removal.release();
        pass(secs(10)).await;
        assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (None, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_repeated_behind_two_clears_is_removed_again() {
    let world = World::new();
    let (node, holding, chaos) = held(&world).await;
    chaos.on(Ops::SET).fail_next(1);
    node.set("k", 1_u32).await.unwrap();
    let set = holding.hold_next(Ops::SET);
    set.reached().await;
    // The first one takes the write's place in the queue, and the second one the first one's.
    chaos.on(Ops::CLEAR).fail_next(1);
    node.clear().await.unwrap();
    node.clear().await.unwrap();
    set.release();
    pass(secs(10)).await;
    assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn an_expiry_reaches_an_older_write_that_was_repeated_since_it_looked() {
    let world = World::without_bus();
    // It repeats before the call of the other one is given up.
    let node = world.node_where(|s| s.recovery(10, "100ms")).await;
    let (other, holding, _) = held(&world).await;
    node.set("k", 1_u32).await.unwrap();
    pass(ms(1)).await;
    node.l2.on(Ops::SET).fail();
    node.set("k", 2_u32).await.unwrap();
    pass(ms(1)).await;
    let look = holding.hold_next_after(Ops::GET);
    let expire = go(other.expire("k"));
    look.reached().await;
    node.l2.calm();
    pass(ms(500)).await;
    assert_eq!(node.document("k").unwrap()["value"], 2);
    look.release();
    expire.await.unwrap().unwrap();
    assert_eq!(elsewhere(&world).await, None);
}

// ---- Readers ----

#[tokio::test(start_paused = true)]
async fn a_reader_does_not_put_what_it_found_over_what_a_factory_has_stored_since() {
    let world = World::new();
    let other = world.node().await;
    other.set("k", 1_u32).await.unwrap();
    settle().await;
    let (node, holding, chaos) = held(&world).await;
    let found = holding.hold_next_after(Ops::GET);
    let reader = go(node.get::<u32>("k"));
    found.reached().await;
    // The factory runs because its own look fails.
    chaos.on(Ops::GET).fail_next(1);
    let set = holding.hold_next(Ops::SET);
    let call = go(node.get_or_set("k", Source::new().gives(2_u32)));
    set.reached().await;
    found.release();
    assert_eq!(reader.await.unwrap().unwrap(), Some(1));
    set.release();
    assert_eq!(call.await.unwrap().unwrap(), 2);
    assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (Some(2), Some(2)));
}

// ---- Tags ----

#[tokio::test(start_paused = true)]
async fn who_joins_a_look_that_began_before_its_tag_was_invalidated_takes_nothing_from_it() {
    let world = World::new();
    let (node, holding, _) = held(&world).await;
    node.delete_by_tag(["t"]).await.unwrap();
    node.set("k", 1_u32).tags(["t"]).await.unwrap();
    rumour(&world).await;
    // The call finds `k` valid, and is still looking for the other key.
    let marker = holding.hold_next(Ops::GET_MANY);
    let factory = |_| async { Ok::<_, bentocache::Error>([("l".to_owned(), 3_u32)]) };
    let many = go(node.get_or_set_many(["k", "l"], factory));
    marker.reached().await;
    let look = holding.hold_next(Ops::GET);
    marker.release();
    look.reached().await;
    pass(ms(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    let follower = go(node.get_or_set("k", Source::new().gives(2_u32)));
    calm().await;
    look.release();
    assert_eq!(many.await.unwrap().unwrap(), [Some(1), Some(3)]);
    assert_eq!(follower.await.unwrap().unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_marker_that_a_clear_has_taken_makes_nothing_valid_again() {
    for elsewhere in [false, true] {
        let world = World::new();
        let (node, other) = (world.node().await, world.node().await);
        other.set("k", 1_u32).tags(["t"]).await.unwrap();
        settle().await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        if elsewhere {
            other.delete_by_tag(["t"]).await.unwrap();
        } else {
            node.delete_by_tag(["t"]).await.unwrap();
        }
        rumour(&world).await;
        // Everything is cleared, which this node has not heard of yet.
        node.bus.on(Ops::DELIVER).hold();
        other.clear().await.unwrap();
        settle().await;
        assert_eq!(fresh(&node, "k").await, None, "elsewhere: {elsewhere}");
        node.bus.release();
        settle().await;
        assert_eq!(fresh(&node, "k").await, None, "elsewhere: {elsewhere}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_that_is_repeated_twice_spares_younger_markers() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    node.l2.on(Ops::CLEAR).fail();
    node.clear().await.unwrap();
    pass(ms(1)).await;
    other.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    node.set("k", 1_u32).tags(["t"]).await.unwrap();
    // It clears, and does not know.
    node.l2.on(Ops::CLEAR).fail_late();
    pass(secs(4)).await;
    assert_eq!(node.document("k"), None);
    node.l2.calm();
    pass(secs(60)).await;
    assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn of_two_invalidations_at_once_the_later_one_stays_when_the_earlier_one_waits() {
    let world = World::new();
    let (node, holding, _) = held(&world).await;
    let earlier = holding.hold_next(Ops::SET);
    let first = go(node.delete_by_tag(["t"]));
    earlier.reached().await;
    pass(ms(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    // L2 does not answer the first one in time.
    first.await.unwrap().unwrap();
    node.set("k", 1_u32).tags(["t"]).await.unwrap();
    assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (Some(1), Some(1)));
    pass(secs(10)).await;
    assert_eq!((elsewhere(&world).await, fresh(&node, "k").await), (Some(1), Some(1)));
}

/// Until a whole batch is repeated, a write of it that was dropped is still in the queue, where a
/// reader finds it.
#[tokio::test(start_paused = true)]
async fn a_write_that_is_dropped_is_not_kept_by_who_reads_it_at_that_moment() {
    let world = World::new();
    let (node, other) = (plain(&world).await, plain(&world).await);
    other.set("b", 1_u32).await.unwrap();
    settle().await;
    node.l2.fail();
    node.set("a", 1_u32).await.unwrap();
    node.delete("b").await.unwrap();
    // It may have missed that another process deleted the key.
    node.bus.cut();
    settle().await;
    node.bus.restore();
    node.l2.on(Ops::DELETE_IF).hold();
    node.l2.calm();
    node.l2.held(1).await;
    pass(ms(100)).await;
    let _ = fresh(&node, "a").await;
    node.l2.release();
    pass(secs(10)).await;
    assert_eq!(node.document("a"), None);
    assert_eq!(fresh(&node, "a").await, None);
}
