//! `l2_write_in_background`: `set` and fills return when L1 has the value; L2 gets it afterwards.

use crate::common::{Node, World, fill, get, get_stale, ms, pass, secs, settle};
use crate::races::{Source, go};
use bentocache::{Error, Memory, Store};
use bentocache_testkit::Ops;
use tokio::time::Instant;

async fn node(world: &World) -> Node {
    world.node_where(|s| s.l2_write_in_background(true)).await
}

/// What L2 has under the key.
fn stored(node: &Node, key: &str) -> Option<u64> {
    node.document(key).and_then(|document| document["value"].as_u64())
}

#[tokio::test(start_paused = true)]
async fn set_and_fills_return_before_l2_has_the_value() {
    for world in [World::new(), World::without_bus(), World::only_l2()] {
        let (a, b) = (node(&world).await, world.node().await);
        a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
        let began = Instant::now();
        a.set("set", 1_u32).await.unwrap();
        a.set_many([("many", 2_u32), ("more", 3)]).await.unwrap();
        assert_eq!(fill(&a, "fill", 4).await, 4);
        assert!(began.elapsed() < ms(1), "{:?}", began.elapsed());
        assert_eq!(a.stats().writes, 4);
        assert!(a.stats().l2.unwrap().background_writes > 0);
        for (key, value) in [("set", 1), ("many", 2), ("more", 3), ("fill", 4)] {
            assert_eq!(stored(&a, key), None);
            assert_eq!(get(&a, key).await, Some(value));
        }
        pass(ms(400)).await;
        for (key, value) in [("set", 1), ("many", 2), ("more", 3), ("fill", 4)] {
            assert_eq!(get(&b, key).await, Some(value));
        }
        assert_eq!(a.stats().l2.unwrap().background_writes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_option_a_set_waits_for_l2() {
    let a = World::new().node().await;
    a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
    let began = Instant::now();
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(began.elapsed(), ms(300));
}

#[tokio::test(start_paused = true)]
async fn a_read_never_sees_anything_older_than_this_process_wrote() {
    for world in [World::new(), World::only_l2()] {
        let a = node(&world).await;
        a.set("k", 1_u32).l2_write_in_background(false).await.unwrap();
        a.l2.on(Ops::SET).hold();
        for value in 2..5_u32 {
            a.set("k", value).await.unwrap();
            assert_eq!(get(&a, "k").await, Some(value));
            assert_eq!(a.get::<u32>("k").skip_l1_read(true).await.unwrap(), Some(value));
            assert_eq!(a.get_many::<u32>(["x", "k"]).await.unwrap(), [None, Some(value)]);
            assert!(a.has("k").await.unwrap());
            assert_eq!(stored(&a, "k"), Some(1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn writes_of_a_key_reach_l2_in_their_order() {
    let a = node(&World::new()).await;
    a.l2.on(Ops::SET).hold();
    for value in 1..4_u32 {
        a.set("k", value).await.unwrap();
        a.l2.on(Ops::SET).held(1).await;
    }
    let made = a.get_or_set("k", |_| async { Ok::<_, Error>(4_u32) });
    made.force_fresh(true).await.unwrap();
    // The second value is needless once there is a third.
    for value in [1, 3, 4] {
        a.l2.on(Ops::SET).held(1).await;
        assert_eq!(a.l2.held_now(), 1, "one write of a key at a time");
        a.l2.release_one();
        settle().await;
        assert_eq!(stored(&a, "k"), Some(value));
    }
    assert_eq!(get(&a, "k").await, Some(4));
    assert_eq!(a.l2.on(Ops::SET).calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_value_of_a_factory_that_was_invalidated_while_it_waited_is_not_written() {
    let world = World::new();
    let (a, b) = (node(&world).await, world.node().await);
    a.l2.on(Ops::SET).hold();
    a.set("k", 1_u32).await.unwrap();
    a.l2.on(Ops::SET).held(1).await;
    let made = a.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) });
    made.force_fresh(true).await.unwrap();
    b.delete("k").await.unwrap();
    settle().await;
    a.l2.calm();
    a.l2.release();
    pass(secs(5)).await;
    assert_eq!(a.l2.on(Ops::SET).calls(), 1);
    assert_eq!((get(&a, "k").await, get(&b, "k").await, stored(&a, "k")), (None, None, None));
}

#[tokio::test(start_paused = true)]
async fn a_later_invalidation_comes_after_the_write() {
    for how in ["delete", "expire", "pull", "clear", "invalidate", "touch", "add"] {
        for world in [World::new(), World::new().without_clear(), World::only_l2()] {
            let (a, b) = (node(&world).await, world.node().await);
            a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
            a.set("k", 1_u32).grace("1h").await.unwrap();
            match how {
                "delete" => assert!(a.delete("k").await.unwrap()),
                "expire" => a.expire("k").await.unwrap(),
                "pull" => assert_eq!(a.pull("k").await.unwrap(), Some(1_u32)),
                "clear" => a.clear().await.unwrap(),
                "touch" => assert!(a.touch("k").ttl("1s").grace("off").await.unwrap()),
                "add" => assert!(!a.add("k", 2_u32).skip_l1_read(true).await.unwrap()),
                _ => a.invalidate().keys(["k"]).await.unwrap(),
            }
            pass(secs(2)).await;
            if how == "add" {
                assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(1), Some(1)));
                continue;
            }
            let left = (how == "expire").then_some(1);
            for node in [&a, &b] {
                assert_eq!(
                    (get(node, "k").await, get_stale(node, "k").await),
                    (None, left),
                    "{how}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_behind_a_write_that_hangs_stays_within_its_limit() {
    let a = node(&World::new()).await;
    a.l2.hang();
    a.set("k", 1_u32).await.unwrap();
    a.set("k", 2_u32).await.unwrap();
    pass(ms(500)).await;
    let began = Instant::now();
    a.delete("k").await.unwrap();
    assert_eq!(began.elapsed(), secs(1));
    a.l2.calm();
    pass(secs(10)).await;
    assert_eq!((stored(&a, "k"), get(&a, "k").await), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_fails_waits_in_the_recovery_queue() {
    for down in ["fails", "hangs"] {
        let world = World::new();
        let (a, b) = (node(&world).await, world.node().await);
        if down == "fails" {
            a.l2.fail();
        } else {
            a.l2.hang();
        }
        a.set("k", 1_u32).await.unwrap();
        pass(secs(2)).await;
        let l2 = a.stats().l2.unwrap();
        assert_eq!((l2.background_writes, l2.recovery_length), (0, 1), "{down}");
        assert_eq!(get(&a, "k").await, Some(1));
        a.l2.calm();
        pass(secs(10)).await;
        assert_eq!(get(&b, "k").await, Some(1), "{down}");
    }
}

/// The message arrives before the write is sent, or while it is under way.
#[tokio::test(start_paused = true)]
async fn a_change_by_another_node_is_not_undone() {
    for late in [false, true] {
        for how in ["delete", "set", "expire", "clear"] {
            let world = World::new();
            let (a, b) = (node(&world).await, world.node().await);
            a.l2.on(Ops::SET).hold();
            if !late {
                // The line of the key: the next write has not been sent.
                a.set("k", 1_u32).await.unwrap();
            }
            a.set("k", 2_u32).grace("1h").await.unwrap();
            a.l2.on(Ops::SET).held(1).await;
            pass(ms(10)).await;
            match how {
                "delete" => drop(b.delete("k").await.unwrap()),
                "expire" => b.expire("k").await.unwrap(),
                "clear" => b.clear().await.unwrap(),
                _ => b.set("k", 9_u32).await.unwrap(),
            }
            settle().await;
            a.l2.calm();
            a.l2.release();
            pass(secs(5)).await;
            let new = world.node().await;
            let found = get(&new, "k").await;
            // Of two sets at the same time, the one that L2 gets last stays.
            assert_eq!(found.is_some(), how == "set", "{how}, late: {late}");
            for node in [&a, &b] {
                assert_eq!(get(node, "k").await, found, "{how}, late: {late}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fill_does_not_come_back_after_an_invalidation() {
    let world = World::new();
    let (a, b) = (node(&world).await, world.node().await);
    a.l2.on(Ops::SET).hold();
    fill(&a, "k", 1).await;
    a.l2.on(Ops::SET).held(1).await;
    b.delete("k").await.unwrap();
    settle().await;
    a.l2.calm();
    a.l2.release();
    pass(secs(5)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await, stored(&a, "k")), (None, None, None));
}

#[tokio::test(start_paused = true)]
async fn other_nodes_hear_of_a_set_when_l2_has_it() {
    let world = World::new();
    let (a, b) = (node(&world).await, world.node().await);
    b.set("k", 1_u32).await.unwrap();
    settle().await;
    a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
    a.set("k", 2_u32).await.unwrap();
    pass(ms(100)).await;
    assert_eq!(get(&b, "k").await, Some(1));
    pass(ms(300)).await;
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn flush_and_disconnect_wait_for_the_writes() {
    for flush in [true, false] {
        let world = World::new();
        let (a, b) = (node(&world).await, world.node().await);
        a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
        for key in ["a", "b", "c"] {
            a.set(key, 1_u32).await.unwrap();
        }
        fill(&a, "d", 1).await;
        if flush {
            a.flush().await.unwrap();
        } else {
            a.disconnect().await.unwrap();
        }
        for key in ["a", "b", "c", "d"] {
            assert_eq!(get(&b, key).await, Some(1), "{key}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn flush_says_what_did_not_arrive_and_tries_once_more() {
    let a = node(&World::new()).await;
    a.l2.fail();
    a.set("k", 1_u32).await.unwrap();
    let error = a.flush().await.unwrap_err();
    assert!(matches!(error, Error::Unflushed { changes: 1, messages: 0 }), "{error}");
    a.l2.calm();
    pass(secs(2)).await;
    a.flush().await.unwrap();
    assert_eq!(stored(&a, "k"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn disconnect_counts_writes_that_it_had_to_give_up() {
    let a = World::new()
        .node_where(|s| s.l2_write_in_background(true).l2_timeout("none", "none"))
        .await;
    a.l2.hang();
    a.set("k", 1_u32).await.unwrap();
    let error = a.disconnect().await.unwrap_err();
    assert!(matches!(error, Error::Unflushed { changes: 1, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_room_in_the_queue_a_set_waits_for_l2() {
    for limit in ["count", "bytes"] {
        let a = World::new()
            .node_where(|s| match limit {
                "count" => s.l2_write_in_background(true).recovery(2, "2s"),
                _ => s.l2_write_in_background(true).recovery_max_bytes("1kb"),
            })
            .await;
        a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
        let began = Instant::now();
        let value = "x".repeat(300);
        a.set("a", value.clone()).await.unwrap();
        a.set("b", value.clone()).await.unwrap();
        assert!(began.elapsed() < ms(1));
        a.set("c", value).await.unwrap();
        assert_eq!(began.elapsed(), ms(300), "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_encoded_is_still_an_error() {
    let a = node(&World::new()).await;
    assert!(matches!(a.set("k", f64::NAN).await.unwrap_err(), Error::Encode { .. }));
}

#[tokio::test(start_paused = true)]
async fn with_a_lock_a_fill_waits_for_l2_because_other_nodes_do() {
    let world = World::new();
    let locks = bentocache_testkit::MapLock::default();
    let options = |s: Store| s.l2_write_in_background(true).lock(locks.clone());
    let (a, b) = (world.node_where(options).await, world.node_where(options).await);
    let source = Source::held();
    let first = go(a.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    let second = go(b.get_or_set("k", source.gives(2_u32)));
    pass(ms(50)).await;
    a.l2.on(Ops::SET | Ops::SET_MANY).slow(ms(300));
    source.release();
    assert_eq!(first.await.unwrap().unwrap(), 1);
    assert_eq!(second.await.unwrap().unwrap(), 1);
    assert_eq!(source.runs(), 1);
}

#[tokio::test]
async fn a_cache_without_l2_and_a_disabled_one_have_nothing_to_flush() {
    for enabled in [true, false] {
        let store = Store::new().l1(Memory::new()).l2_write_in_background(true).enabled(enabled);
        let cache = bentocache::BentoCache::builder().store("s", store).build().await.unwrap();
        cache.set("k", 1_u32).await.unwrap();
        cache.flush().await.unwrap();
        cache.flush_all().await.unwrap();
    }
}
