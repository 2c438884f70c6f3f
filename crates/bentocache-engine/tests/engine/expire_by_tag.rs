//! `expire_by_tag` leaves values stale, and `delete_by_tag` leaves nothing: in both tiers, on all
//! nodes, whatever fails meanwhile.

use crate::common::{Node, World, get_stale, ms, pass, secs, settle};
use crate::races::{Holding, Source, down, fresh, go};
use bentocache::driver::ErrorKind;
use bentocache::{BentoCache, Context, Error, EventKind, InProcessBus, Memory, Store};
use bentocache_testkit::Ops;
use serde_json::{Value, json};

const MARKER: &str = "___bc:t:t";

fn worlds() -> [World; 3] {
    [World::new(), World::without_bus(), World::only_l2()]
}

async fn set(node: &Node, key: &str, value: u32) {
    node.set(key, value).tags(["t"]).grace("1h").await.unwrap();
}

/// Time for messages, and for the end of the interval in which a tag is believed without a bus.
async fn known() {
    pass(ms(1_100)).await;
}

fn marker(node: &Node) -> (u64, Option<u64>) {
    let document = node.document(MARKER).unwrap();
    (document["value"].as_u64().unwrap(), document["hardAt"].as_u64())
}

#[tokio::test(start_paused = true)]
async fn grace_serves_what_was_expired_and_never_what_was_deleted() {
    for world in worlds() {
        let (a, b) = (world.node().await, world.node().await);
        for node in [&a, &b] {
            set(node, "k", 1).await;
            known().await;
            assert_eq!((fresh(&a, "k").await, fresh(&b, "k").await), (Some(1), Some(1)));
            a.expire_by_tag(["t"]).await.unwrap();
            known().await;
            // Also for a process that starts now.
            for node in [&a, &b, &world.node().await] {
                assert_eq!(fresh(node, "k").await, None);
                assert_eq!(get_stale(node, "k").await, Some(1));
                assert!(!node.has("k").await.unwrap());
                assert_eq!(node.get_many::<u32>(["k"]).grace("1h").await.unwrap(), [Some(1)]);
            }
            b.delete_by_tag(["t"]).await.unwrap();
            known().await;
            for node in [&a, &b, &world.node().await] {
                assert_eq!(get_stale(node, "k").await, None);
                assert!(!node.has("k").await.unwrap());
                assert_eq!(node.get_many::<u32>(["k"]).grace("1h").await.unwrap(), [None]);
                let call = node.get_or_set("k", Source::new().fails(4)).tags(["t"]).grace("1h");
                assert_eq!(down(call.await), 4);
                assert_eq!(node.pull::<u32>("k").grace("1h").await.unwrap(), None);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_store_without_l2_delete_leaves_nothing_and_expire_a_stale_value() {
    let node = World::only_l1().node().await;
    set(&node, "k", 1).await;
    node.expire_by_tag(["t"]).await.unwrap();
    assert_eq!((fresh(&node, "k").await, get_stale(&node, "k").await), (None, Some(1)));
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(get_stale(&node, "k").await, None);
    set(&node, "k", 2).await;
    assert_eq!(fresh(&node, "k").await, Some(2));
    node.expire_by_tag(["t"]).await.unwrap();
    assert_eq!((fresh(&node, "k").await, get_stale(&node, "k").await), (None, Some(2)));
    // A clear takes no tag's past with it.
    node.clear().await.unwrap();
    set(&node, "k", 3).await;
    node.expire_by_tag(["t"]).await.unwrap();
    assert_eq!(get_stale(&node, "k").await, Some(3));
}

#[tokio::test(start_paused = true)]
async fn nodes_without_l2_hear_which_of_both_it_was() {
    let bus = InProcessBus::new();
    let node = async || {
        let store = Store::new().l1(Memory::new()).bus(bus.clone()).grace("1h").timeout("none");
        BentoCache::builder().store("s", store).build().await.unwrap()
    };
    let (a, b) = (node().await, node().await);
    b.set("k", 1_u32).tags(["t"]).await.unwrap();
    a.expire_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!((fresh(&b, "k").await, get_stale(&b, "k").await), (None, Some(1)));
    a.delete_by_tag(["t"]).await.unwrap();
    a.expire_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get_stale(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_marker_tells_when_it_last_deleted() {
    for world in worlds() {
        let (a, b) = (world.node().await, world.node().await);
        a.expire_by_tag(["t"]).await.unwrap();
        let (expired_at, hard_at) = marker(&a);
        assert_eq!(hard_at, None);
        a.delete_by_tag(["t"]).await.unwrap();
        let (deleted_at, hard_at) = marker(&a);
        assert!(deleted_at > expired_at);
        assert_eq!(hard_at, Some(deleted_at));
        // Through a node that never heard of the tag, too.
        for node in [&a, &b] {
            known().await;
            node.expire_by_tag(["t"]).await.unwrap();
            assert!(marker(&a).0 > deleted_at);
            assert_eq!(marker(&a).1, Some(deleted_at), "an expire keeps the deletion");
        }
        b.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(marker(&a).1, Some(marker(&a).0));
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_and_then_expired_is_gone_and_a_later_value_is_stale() {
    for world in worlds() {
        let (a, b) = (world.node().await, world.node().await);
        set(&a, "old", 1).await;
        known().await;
        assert_eq!(fresh(&b, "old").await, Some(1));
        a.delete_by_tag(["t"]).await.unwrap();
        set(&a, "new", 2).await;
        known().await;
        assert_eq!(fresh(&b, "new").await, Some(2));
        b.expire_by_tag(["t"]).await.unwrap();
        known().await;
        for node in [&a, &b, &world.node().await] {
            assert_eq!(get_stale(node, "old").await, None);
            assert_eq!((fresh(node, "new").await, get_stale(node, "new").await), (None, Some(2)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_factory_gets_the_expired_value_and_not_the_deleted_one() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.grace("1h").timeout("none")).await;
        set(&node, "k", 1).await;
        node.expire_by_tag(["t"]).await.unwrap();
        let source = Source::new();
        let call = || node.get_or_set("k", source.fails(1)).tags(["t"]);
        assert_eq!(call().await.unwrap(), 1);
        // The backoff made it fresh. A deletion ends that.
        assert_eq!(fresh(&node, "k").await, Some(1));
        node.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(down(call().await), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_while_the_factory_runs_is_served_to_nobody() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.grace("1h").timeout("none")).await;
        set(&node, "k", 1).await;
        node.expire_by_tag(["t"]).await.unwrap();
        let source = Source::held();
        let call = go(node.get_or_set("k", source.fails(2)).tags(["t"]));
        source.begun(1).await;
        node.delete_by_tag(["t"]).await.unwrap();
        source.release();
        assert_eq!(down(call.await.unwrap()), 2);
        assert_eq!(get_stale(&node, "k").await, None, "no backoff brings it back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_factorys_own_tag_tells_expired_from_deleted_while_it_ran() {
    for world in [World::new(), World::without_bus(), World::only_l1(), World::only_l2()] {
        for deletes in [false, true] {
            let node = world.node_where(|s| s.grace("1h")).await;
            // A deletion of long ago.
            node.delete_by_tag(["t"]).await.unwrap();
            pass(secs(5)).await;
            let source = Source::held();
            let held = source.clone();
            let factory = move |cx: Context<u32>| async move {
                held.run().await;
                cx.tags(["t"]);
                Ok::<_, Error>(1_u32)
            };
            let call = go(node.get_or_set("k", factory));
            source.begun(1).await;
            pass(ms(5)).await;
            match deletes {
                true => node.delete_by_tag(["t"]).await.unwrap(),
                false => node.expire_by_tag(["t"]).await.unwrap(),
            }
            source.release();
            assert_eq!(call.await.unwrap().unwrap(), 1);
            assert_eq!(fresh(&node, "k").await, None);
            let left = if deletes { None } else { Some(1) };
            assert_eq!(get_stale(&node, "k").await, left);
            known().await;
            if world.l2.all_keys().len() > 1 {
                assert_eq!(get_stale(&*world.node().await, "k").await, left);
            }
        }
    }
}

// ---- Markers of the Node library ----

#[tokio::test(start_paused = true)]
async fn a_marker_of_the_node_library_expires() {
    let world = World::without_bus();
    let node = world.node().await;
    set(&node, "k", 1).await;
    known().await;
    let later = node.document("k").unwrap()["createdAt"].as_u64().unwrap() + 500;
    // As npm bentocache 1.6 stores it; see the fixtures.
    let theirs =
        json!({"value": later, "createdAt": later, "logicalExpiration": later + 1_000_000});
    world.l2.put(&format!("bentocache:{MARKER}"), theirs.to_string(), None);
    for node in [&node, &world.node().await] {
        assert_eq!((fresh(node, "k").await, get_stale(node, "k").await), (None, Some(1)));
    }
}

/// Node overwrites the marker, and with it the time of the deletion. The bucket still has it.
#[tokio::test(start_paused = true)]
async fn a_marker_of_the_node_library_brings_back_nothing_that_was_deleted() {
    let world = World::without_bus();
    let node = world.node().await;
    set(&node, "k", 1).await;
    known().await;
    node.delete_by_tag(["t"]).await.unwrap();
    let later = marker(&node).0 + 500;
    let theirs =
        json!({"value": later, "createdAt": later, "logicalExpiration": later + 1_000_000});
    world.l2.put(&format!("bentocache:{MARKER}"), theirs.to_string(), None);
    known().await;
    for node in [&node, &world.node().await] {
        assert_eq!(get_stale(node, "k").await, None);
    }
    node.expire_by_tag(["t"]).await.unwrap();
    assert!(marker(&node).1.is_some(), "and a later marker of ours has it again");
}

#[tokio::test(start_paused = true)]
async fn a_marker_that_lies_about_its_deletion_harms_nothing() {
    for hard_at in [json!(u64::MAX), json!(-5), json!("x"), json!([1]), Value::Null] {
        let world = World::without_bus();
        let node = world.node().await;
        set(&node, "k", 1).await;
        known().await;
        let now = node.document("k").unwrap()["createdAt"].as_u64().unwrap() + 500;
        let theirs = json!({"value": now, "createdAt": now, "hardAt": hard_at});
        world.l2.put(&format!("bentocache:{MARKER}"), theirs.to_string(), None);
        assert_eq!(fresh(&node, "k").await, None);
        node.delete_by_tag(["t"]).await.unwrap();
        set(&node, "k", 2).await;
        assert_eq!(fresh(&node, "k").await, Some(2), "{hard_at}");
    }
}

// ---- Outages ----

#[tokio::test(start_paused = true)]
async fn without_l2_a_deletion_counts_at_once_here_and_on_nodes_that_hear_of_it() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    set(&a, "k", 1).await;
    settle().await;
    assert_eq!(fresh(&b, "k").await, Some(1));
    a.l2.cut();
    b.l2.cut();
    a.expire_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get_stale(&a, "k").await, Some(1));
    assert_eq!(get_stale(&b, "k").await, Some(1));
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    for _ in 0..20 {
        assert_eq!(get_stale(&a, "k").await, None);
        assert_eq!(get_stale(&b, "k").await, None, "it was told of a change of the marker");
        pass(ms(700)).await;
    }
    a.l2.restore();
    b.l2.restore();
    pass(secs(10)).await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(get_stale(node, "k").await, None);
    }
}

/// Nobody knows whether the invalidation deleted, until its marker can be read.
#[tokio::test(start_paused = true)]
async fn a_value_of_an_outage_is_stale_although_its_tag_is_unknown() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    set(&b, "k", 1).await;
    settle().await;
    b.l2.cut();
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    set(&b, "k", 2).await;
    pass(secs(1)).await;
    assert_eq!((fresh(&b, "k").await, get_stale(&b, "k").await), (None, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_waits_for_l2_is_not_lost_to_a_later_expire() {
    for world in [World::new(), World::without_bus()] {
        let (a, b) = (world.node().await, world.node().await);
        set(&a, "k", 1).await;
        a.l2.cut();
        a.delete_by_tag(["t"]).await.unwrap();
        a.expire_by_tag(["t"]).await.unwrap();
        a.l2.restore();
        pass(secs(10)).await;
        let (at, hard_at) = marker(&a);
        assert!(hard_at.is_some_and(|hard_at| hard_at < at), "{hard_at:?} {at}");
        for node in [&a, &b, &world.node().await] {
            assert_eq!(get_stale(node, "k").await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_waits_for_l2_and_a_greater_marker_make_one_that_deletes() {
    for world in [World::new(), World::without_bus()] {
        let (a, b) = (world.node().await, world.node().await);
        set(&a, "k", 1).await;
        known().await;
        assert_eq!(fresh(&b, "k").await, Some(1));
        a.l2.cut();
        a.delete_by_tag(["t"]).await.unwrap();
        pass(ms(100)).await;
        // Later, and without knowledge of the deletion.
        b.expire_by_tag(["t"]).await.unwrap();
        assert_eq!(marker(&b).1, None);
        a.l2.restore();
        pass(secs(10)).await;
        assert_eq!(marker(&b).1, Some(marker(&b).0), "a marker above both");
        for node in [&a, &b, &world.node().await] {
            assert_eq!(get_stale(node, "k").await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expire_that_waits_for_l2_keeps_the_deletion_that_is_stored() {
    for world in [World::new(), World::without_bus()] {
        let (a, b) = (world.node().await, world.node().await);
        set(&b, "k", 1).await;
        a.l2.cut();
        b.delete_by_tag(["t"]).await.unwrap();
        let deleted_at = marker(&b).1;
        pass(ms(100)).await;
        a.expire_by_tag(["t"]).await.unwrap();
        a.l2.restore();
        pass(secs(10)).await;
        assert!(marker(&b).0 > deleted_at.unwrap());
        assert!(marker(&b).1 >= deleted_at);
        for node in [&a, &b, &world.node().await] {
            assert_eq!(get_stale(node, "k").await, None);
        }
    }
}

/// A server without room refuses markers and takes deletions.
#[tokio::test(start_paused = true)]
async fn a_full_l2_brings_back_nothing_that_was_deleted() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    set(&a, "k", 1).await;
    settle().await;
    assert_eq!(fresh(&b, "k").await, Some(1));
    a.l2.on(Ops::SET | Ops::SET_MANY | Ops::INSERT | Ops::UPDATE).fail_with(ErrorKind::Full);
    b.l2.on(Ops::SET | Ops::SET_MANY | Ops::INSERT | Ops::UPDATE).fail_with(ErrorKind::Full);
    a.delete_by_tag(["t"]).await.unwrap();
    known().await;
    assert_eq!(get_stale(&a, "k").await, None);
    assert_eq!(get_stale(&b, "k").await, None);
}

/// Both read the same marker; the older one is written last.
#[tokio::test(start_paused = true)]
async fn of_two_invalidations_at_once_the_deletion_counts() {
    let world = World::without_bus();
    let held = Holding::new(&world.l2);
    let store = Store::new().l1(Memory::new()).l2(held.clone()).grace("1h");
    let a = BentoCache::builder().clock(world.clock.clone()).store("s", store);
    let (a, b) = (a.build().await.unwrap(), world.node().await);
    set(&b, "k", 1).await;
    known().await;
    assert_eq!(fresh(&a, "k").await, Some(1));
    let hold = held.hold_next(Ops::SET);
    let expire = go(a.expire_by_tag(["t"]));
    hold.reached().await;
    b.delete_by_tag(["t"]).await.unwrap();
    hold.release();
    expire.await.unwrap().unwrap();
    assert_eq!(marker(&b).1, None, "the marker does not tell");
    known().await;
    assert_eq!(get_stale(&a, "k").await, None);
    assert_eq!(get_stale(&b, "k").await, None);
    assert_eq!(get_stale(&*world.node().await, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_deleted_is_not_served_as_stale_while_l2_fails() {
    let node = World::new().node().await;
    set(&node, "k", 1).await;
    assert_eq!(get_stale(&node, "k").await, Some(1));
    node.l2.on(Ops::SET | Ops::SET_MANY | Ops::UPDATE).hold();
    let delete = go(node.delete_by_tag(["t"]).l2_timeout("none", "60s"));
    settle().await;
    node.l2.on(Ops::READS).fail();
    assert_eq!(get_stale(&node, "k").await, None);
    node.l2.calm();
    node.l2.release();
    delete.await.unwrap().unwrap();
}

/// A clear that waits in the queue takes the markers; those that are younger are stored again.
#[tokio::test(start_paused = true)]
async fn a_late_clear_keeps_the_deletions_of_younger_markers() {
    let world = World::without_bus();
    let (a, b) = (world.node().await, world.node().await);
    set(&a, "k", 1).await;
    assert_eq!(get_stale(&a, "k").await, Some(1));
    a.l2.cut();
    a.clear().await.unwrap();
    pass(ms(100)).await;
    b.delete_by_tag(["t"]).await.unwrap();
    let deleted = marker(&b);
    a.l2.restore();
    pass(secs(10)).await;
    assert_eq!(marker(&b), deleted);
}

/// Without room for hidden tags of their own, both kinds work beside them.
#[tokio::test(start_paused = true)]
async fn both_work_where_l2_cannot_clear() {
    for world in [World::new().without_clear(), World::without_bus().without_clear()] {
        let (a, b) = (world.node().await, world.node().await);
        set(&a, "k", 1).await;
        known().await;
        assert_eq!(fresh(&b, "k").await, Some(1));
        b.expire_by_tag(["t"]).await.unwrap();
        known().await;
        for node in [&a, &b] {
            assert_eq!((fresh(node, "k").await, get_stale(node, "k").await), (None, Some(1)));
        }
        a.delete_by_tag(["t"]).await.unwrap();
        known().await;
        for node in [&a, &b] {
            assert_eq!(get_stale(node, "k").await, None);
        }
    }
}

// ---- Handles and events ----

#[tokio::test(start_paused = true)]
async fn every_handle_and_invalidate_can_expire_by_tag() {
    let node = World::new().node().await;
    let stale = async || {
        let is_stale = (fresh(&node, "k").await, get_stale(&node, "k").await) == (None, Some(1));
        set(&node, "k", 1).await;
        is_stale
    };
    set(&node, "k", 1).await;
    node.typed::<u32>().expire_by_tag(["t"]).await.unwrap();
    assert!(stale().await);
    node.local::<u32>().expire_by_tag(["t"]).await.unwrap();
    assert!(stale().await);
    node.invalidate().expire_tags(["t"]).await.unwrap();
    assert!(stale().await);
    node.expire_by_tag(["t", "t"]).await.unwrap();
    assert!(stale().await);
    // In both lists, it deletes.
    node.invalidate().tags(["t"]).expire_tags(["t", "u"]).await.unwrap();
    assert_eq!(get_stale(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn each_kind_has_its_event_and_both_are_counted() {
    let node = World::new().node().await;
    node.expire_by_tag(["a", "b", "a"]).await.unwrap();
    let events = node.seen.take();
    let expired = |e: &&bentocache::Event<'_>| matches!(e.kind, EventKind::TagExpired { .. });
    assert_eq!(events.iter().filter(expired).count(), 2);
    node.delete_by_tag(["a"]).await.unwrap();
    assert_eq!(node.seen.count(|e| matches!(e, EventKind::TagInvalidated { .. })), 1);
    assert_eq!(node.stats().tag_invalidations, 3);
}
