//! `touch` and `touch_many`: another life for what is there.

use crate::common::{Node, World, get, get_stale, leap, ms, pass, secs, settle};
use crate::races::{Change, Source, fresh, go};
use bentocache::{Error, EventKind, TagScope};
use bentocache_testkit::Ops;

fn all_tiers() -> [World; 4] {
    [World::new(), World::without_bus(), World::only_l1(), World::only_l2()]
}

// ---- What it gives ----

#[tokio::test(start_paused = true)]
async fn a_touched_value_has_the_new_ttl_from_now_in_every_tier() {
    for world in all_tiers() {
        let (node, other) = (world.node().await, world.node().await);
        node.set("k", 1_u32).ttl("10m").await.unwrap();
        pass(secs(9 * 60)).await;
        assert!(node.touch("k").ttl("20m").await.unwrap());
        if node.document("k").is_some() {
            assert_eq!(node.remaining("k"), Some(secs(20 * 60)));
        }
        pass(secs(20 * 60 - 1)).await;
        assert_eq!(get(&node, "k").await, Some(1));
        if node.document("k").is_some() {
            assert_eq!(get(&other, "k").await, Some(1));
        }
        pass(secs(2)).await;
        assert_eq!(get_stale(&node, "k").await, None);
        assert_eq!(get_stale(&other, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_can_shorten_and_end_a_life_and_can_make_it_endless() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let (node, other) = (world.node().await, world.node().await);
        for (key, ttl) in [("k", "1h"), ("forever", "forever")] {
            node.set(key, 1_u32).ttl(ttl).await.unwrap();
            assert_eq!(get(&other, key).await.is_some(), node.document(key).is_some());
            assert!(node.touch(key).ttl("1m").await.unwrap());
            if node.document(key).is_some() {
                assert_eq!(node.remaining(key), Some(secs(60)));
            }
            pass(secs(61)).await;
            assert_eq!((get_stale(&node, key).await, get(&other, key).await), (None, None));
        }
        node.set("k", 2_u32).ttl("1m").await.unwrap();
        assert!(node.touch("k").ttl("forever").await.unwrap());
        leap(secs(400 * 86_400)).await;
        assert_eq!(get(&node, "k").await, Some(2));
        if node.document("k").is_some() {
            assert_eq!(get(&other, "k").await, Some(2));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_gives_a_new_grace_too() {
    for world in all_tiers() {
        let (node, other) = (world.node().await, world.node().await);
        node.set("k", 1_u32).ttl("1m").grace("1m").await.unwrap();
        assert!(node.touch("k").ttl("1m").grace("1h").await.unwrap());
        pass(secs(30 * 60)).await;
        assert_eq!((fresh(&node, "k").await, get_stale(&node, "k").await), (None, Some(1)));
        if node.document("k").is_some() {
            assert_eq!(get_stale(&other, "k").await, Some(1));
        }
        pass(secs(31 * 60 + 1)).await;
        assert_eq!((get_stale(&node, "k").await, get_stale(&other, "k").await), (None, None));
        // And grace off takes it away.
        node.set("k", 1_u32).ttl("1m").grace("1h").await.unwrap();
        assert!(node.touch("k").ttl("1m").await.unwrap());
        node.expire("k").await.unwrap();
        assert_eq!((get_stale(&node, "k").await, get_stale(&other, "k").await), (None, None));
    }
}

#[tokio::test(start_paused = true)]
async fn value_age_and_tags_stay() {
    for world in [World::new(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).ttl("10m").tags(["t", "u"]).await.unwrap();
        pass(secs(60)).await;
        let before = node.document("k").unwrap();
        assert!(node.touch("k").ttl("20m").grace("1m").await.unwrap());
        let after = node.document("k").unwrap();
        for field in ["value", "tags", "tagMarkers", "tagBuckets", "tagScope", "createdAt"] {
            assert_eq!(after[field], before[field], "{field}");
        }
        let span =
            |field: &str| after[field].as_u64().unwrap() - before["createdAt"].as_u64().unwrap();
        assert_eq!((span("logicalExpiration"), span("staleUntil")), (21 * 60_000, 22 * 60_000));
        assert_eq!(span("touchedAt"), 60_000);
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_l1_ttl_and_tag_ttl_apply() {
    let world = World::new();
    let node = world.node_where(|s| s.tag_ttl("1h")).await;
    let mut lives = std::collections::BTreeSet::new();
    for i in 0..20 {
        let key = format!("k{i}");
        node.set(&*key, 1_u32).await.unwrap();
        assert!(node.touch(&*key).ttl("10m").jitter("5m").await.unwrap());
        let left = node.remaining(&key).unwrap();
        assert!((secs(600)..=secs(900)).contains(&left), "{left:?}");
        lives.insert(left);
    }
    assert!(lives.len() > 1, "all have the same jitter");
    node.set("t", 1_u32).tags(["t"]).await.unwrap();
    assert!(node.touch("t").ttl("2h").grace("2h").await.unwrap());
    assert_eq!(node.remaining("t"), Some(secs(3_600)));
    pass(secs(3_601)).await;
    assert_eq!(get_stale(&node, "t").await, None);

    node.set("l", 1_u32).ttl("1h").await.unwrap();
    assert!(node.touch("l").ttl("1h").l1_ttl("1m").await.unwrap());
    node.seen.take();
    get(&node, "l").await;
    pass(secs(61)).await;
    get(&node, "l").await;
    assert_eq!(node.seen.reads(), ["hit l1 l", "hit l2 l"]);
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_deletes() {
    for world in all_tiers() {
        let node = world.node().await;
        node.set("k", 1_u32).await.unwrap();
        assert_eq!(node.touch_many(["k", "none"]).ttl(secs(0)).await.unwrap(), [true, false]);
        assert_eq!((get(&node, "k").await, node.document("k")), (None, None));
    }
}

/// The share of `early_refresh` is one of the new ttl, not of the time since the value was made.
#[tokio::test(start_paused = true)]
async fn an_early_refresh_counts_from_the_touch_on_every_node() {
    let world = World::new();
    let (node, other) = (world.node().await, world.node().await);
    node.set("k", 1_u32).ttl("10h").await.unwrap();
    pass(secs(9 * 3_600)).await;
    assert!(node.touch("k").ttl("10m").await.unwrap());
    settle().await;
    for (minutes, refreshes) in [(5, 0), (4, 1)] {
        pass(secs(minutes * 60)).await;
        for node in [&node, &other] {
            let source = Source::new();
            let call = node.get_or_set("k", source.gives(1_u32)).early_refresh(0.2).ttl("10m");
            call.skip_l2_write(true).skip_l1_write(true).await.unwrap();
            settle().await;
            assert_eq!(source.runs(), refreshes, "after {minutes} more minutes");
        }
    }
}

// ---- What is not there ----

#[tokio::test(start_paused = true)]
async fn what_is_not_fresh_is_not_touched() {
    for world in all_tiers() {
        let node = world.node_where(|s| s.ttl("1m").grace("1h")).await;
        let other = world.node_where(|s| s.ttl("1m").grace("1h")).await;
        for key in ["by its ttl", "by a call", "by its tag", "deleted"] {
            node.set(key, 1_u32).tags(["t"]).await.unwrap();
            match key {
                "by its ttl" => pass(secs(61)).await,
                "by a call" => node.expire(key).await.unwrap(),
                "by its tag" => node.expire_by_tag(["t"]).await.unwrap(),
                _ => drop(node.delete(key).await.unwrap()),
            }
            // Without a bus the state of a tag is believed for a second.
            pass(secs(2)).await;
            assert!(!node.touch(key).ttl("1h").await.unwrap(), "{key}");
            assert!(!other.touch(key).ttl("1h").await.unwrap(), "{key}");
            assert_eq!(fresh(&node, key).await, None, "{key}");
            assert_eq!(fresh(&other, key).await, None, "{key}");
            // What was stale is stale, for as long as before.
            let stale = (key != "deleted").then_some(1);
            assert_eq!(get_stale(&node, key).await, stale, "{key}");
        }
        assert!(!node.touch("none").await.unwrap());
        assert_eq!(get_stale(&node, "none").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_touched_value_is_invalidated_by_its_tag_on_every_node() {
    for world in [World::new(), World::only_l2(), World::new().without_clear()] {
        let (node, other) = (world.node().await, world.node().await);
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        pass(secs(1)).await;
        assert!(node.touch("k").ttl("1h").await.unwrap());
        settle().await;
        assert_eq!(get(&other, "k").await, Some(1));
        other.delete_by_tag(["t"]).await.unwrap();
        // Without a bus a state is believed for a second.
        pass(secs(2)).await;
        for node in [&node, &other, &world.node().await] {
            assert_eq!(get(node, "k").await, None);
            assert!(!node.touch("k").ttl("1h").await.unwrap());
            assert_eq!(get(node, "k").await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_after_a_clear_brings_nothing_back() {
    for world in [World::new(), World::new().without_clear(), World::only_l1()] {
        let node = world.node().await;
        node.namespace("n").set("k", 1_u32).await.unwrap();
        node.clear().await.unwrap();
        assert!(!node.namespace("n").touch("k").ttl("1h").await.unwrap());
        assert_eq!(get_stale(&node, "n:k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_told_apart_in_their_order() {
    for world in all_tiers() {
        let node = world.node().await;
        node.set_many([("a", 1_u32), ("b", 2), ("c", 3)]).await.unwrap();
        node.expire("b").await.unwrap();
        let keys = ["none", "c", "b", "a"];
        assert_eq!(node.touch_many(keys).ttl("2h").await.unwrap(), [false, true, false, true]);
        assert_eq!(node.touch_many(Vec::<String>::new()).await.unwrap(), Vec::<bool>::new());
        pass(secs(3_600)).await;
        assert_eq!(node.get_many::<u32>(keys).await.unwrap(), [None, Some(3), None, Some(1)]);
        let many: Vec<String> = (0..100).map(|i| format!("m{i}")).collect();
        node.set_many(many.iter().map(|key| (key.as_str(), 1_u32))).await.unwrap();
        assert_eq!(node.touch_many(&many).await.unwrap(), [true; 100]);
    }
}

/// L1 may have what L2 has lost: nothing vouches for it.
#[tokio::test(start_paused = true)]
async fn what_the_second_tier_does_not_have_is_not_touched() {
    let world = World::new();
    let node = world.node().await;
    node.set("k", 1_u32).await.unwrap();
    world.l2.take("bentocache:k").unwrap();
    assert!(!node.touch("k").ttl("2h").await.unwrap());
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_document_are_not_touched() {
    let world = World::new();
    let node = world.node().await;
    for bytes in ["", "{", "[1]", "null", "\u{b3}"] {
        world.l2.put("bentocache:k", bytes.to_owned(), None);
        assert!(!node.touch("k").ttl("1h").await.unwrap(), "{bytes:?}");
        assert_eq!(world.l2.peek("bentocache:k").unwrap(), bytes, "{bytes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bad_keys_and_options_are_errors() {
    let node = World::new().node().await;
    assert!(matches!(node.touch("").await, Err(Error::InvalidKey { .. })));
    assert!(matches!(node.touch("___bc:t:x").await, Err(Error::InvalidKey { .. })));
    assert!(matches!(node.touch("k").ttl("soon").await, Err(Error::InvalidOption { .. })));
    let off = World::new().node_with(|builder| builder.enabled(false), |s| s).await;
    assert!(!off.touch("k").await.unwrap());
    assert_eq!(off.touch_many(["a", "b"]).await.unwrap(), [false, false]);
    node.disconnect().await.unwrap();
    assert!(matches!(node.touch("k").await, Err(Error::Closed { .. })));
}

// ---- Other nodes, and other handles ----

#[tokio::test(start_paused = true)]
async fn a_touch_is_announced_as_set_and_other_nodes_have_the_new_life() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).ttl("1m").await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    settle().await;
    a.seen.take();
    assert!(a.touch("k").ttl("1h").await.unwrap());
    settle().await;
    assert_eq!(a.seen.texts(), ["touched k", "published 1"]);
    b.seen.take();
    for _ in 0..2 {
        assert_eq!(get(&b, "k").await, Some(1));
    }
    assert_eq!(b.seen.reads(), ["hit l2 k", "hit l1 k"]);
    pass(secs(3_590)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(1), Some(1)));
    assert_eq!(a.stats().touches, 1);
    // A shorter life too.
    assert!(a.touch("k").ttl("5s").await.unwrap());
    settle().await;
    pass(secs(5)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (None, None));
    a.seen.take();
    a.set("k", 1_u32).skip_bus_notify(true).await.unwrap();
    assert!(a.touch("k").skip_bus_notify(true).await.unwrap());
    assert!(!a.touch("none").await.unwrap());
    settle().await;
    assert_eq!(a.seen.count(|event| matches!(event, EventKind::BusPublished { .. })), 0);
}

#[tokio::test(start_paused = true)]
async fn every_handle_has_it() {
    let world = World::new();
    let node = world.node_where(|s| s.tag_scope(TagScope::STORE)).await;
    let names = node.namespace("n");
    names.set("k", 1_u32).ttl("1m").await.unwrap();
    assert!(node.touch("n:k").ttl("1h").await.unwrap());
    assert!(names.typed::<u32>().touch("k").ttl("1h").await.unwrap());
    assert_eq!(names.typed::<u32>().touch_many(["k", "x"]).await.unwrap(), [true, false]);
    let jobs = node.local::<&'static str>();
    jobs.set("j", "job").ttl("1m").await.unwrap();
    assert!(jobs.touch("j").ttl("1h").await.unwrap());
    assert_eq!(jobs.touch_many(["x", "j"]).ttl("1h").await.unwrap(), [false, true]);
    pass(secs(1_000)).await;
    assert_eq!(jobs.get("j").await.unwrap(), Some("job"));
    assert_eq!(node.l2.on(Ops::TOUCH).calls(), 2);
}

// ---- Races ----

/// Holds the compare-and-swap of a touch by `a`, runs `meanwhile`, and returns the touch's result.
async fn while_touching<F: Future<Output = ()>>(
    a: &Node,
    ttl: &'static str,
    meanwhile: impl FnOnce() -> F,
) -> bool {
    a.l2.on(Ops::UPDATE).hold();
    let touch = go(a.touch("k").ttl(ttl));
    a.l2.on(Ops::UPDATE).held(1).await;
    meanwhile().await;
    a.l2.on(Ops::UPDATE).release();
    touch.await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn whatever_invalidates_a_key_while_it_is_touched_wins() {
    for ttl in ["1s", "10h"] {
        for change in Change::ALL {
            for is_elsewhere in [false, true] {
                let world = World::new();
                let (a, b) = (world.node().await, world.node().await);
                a.namespace("n").set("k", 1_u32).ttl("1h").tags(["t"]).await.unwrap();
                settle().await;
                assert_eq!(get(&b, "n:k").await, Some(1));
                pass(ms(10)).await;
                a.l2.on(Ops::UPDATE).hold();
                let touch = go(a.namespace("n").touch("k").ttl(ttl));
                a.l2.on(Ops::UPDATE).held(1).await;
                let changing = if is_elsewhere { &b } else { &a };
                let changing = changing.cache.clone();
                let changed = tokio::spawn(async move { change.of(&changing).await });
                settle().await;
                a.l2.on(Ops::UPDATE).release();
                changed.await.unwrap();
                let is_there = touch.await.unwrap().unwrap();
                // An invalidation of a tag changes no document.
                let may_be = change.leaves().is_some() || matches!(change, Change::Tag);
                assert!(may_be || !is_there, "{change:?} {is_elsewhere} {ttl}");
                settle().await;
                for node in [&a, &b, &world.node().await] {
                    let found = fresh(&node.namespace("n"), "k").await;
                    assert_eq!(found, change.leaves(), "{change:?} {is_elsewhere} {ttl}");
                }
                if change.leaves().is_some() {
                    // The new value has its whole life.
                    pass(secs(25 * 60)).await;
                    for node in [&a, &b, &world.node().await] {
                        let found = fresh(&node.namespace("n"), "k").await;
                        assert_eq!(found, change.leaves(), "{change:?} {is_elsewhere} {ttl}");
                    }
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_set_while_an_older_one_is_touched_keeps_its_expiry() {
    for (ttl, left) in [("1m", 3_600), ("2h", 3_600)] {
        // Before the compare-and-swap.
        let world = World::new();
        let (a, b) = (world.node().await, world.node().await);
        a.set("k", 1_u32).ttl("30m").await.unwrap();
        pass(ms(10)).await;
        assert!(
            while_touching(&a, ttl, || async { b.set("k", 2_u32).ttl("1h").await.unwrap() }).await
        );
        assert_eq!(a.remaining("k"), Some(secs(left)), "{ttl}");
        // Before the longer expiry.
        a.set("k", 1_u32).ttl("30m").await.unwrap();
        a.l2.on(Ops::TOUCH).hold();
        let touch = go(a.touch("k").ttl("45m"));
        a.l2.on(Ops::TOUCH).held(1).await;
        pass(ms(10)).await;
        b.set("k", 4_u32).ttl("1h").await.unwrap();
        a.l2.on(Ops::TOUCH).release();
        assert!(touch.await.unwrap().unwrap());
        assert_eq!(a.remaining("k"), Some(secs(3_600)));
        // Between the compare-and-swap and the shorter expiry.
        a.set("k", 1_u32).ttl("30m").await.unwrap();
        a.l2.on(Ops::TOUCH).hold();
        let touch = go(a.touch("k").ttl("1m"));
        a.l2.on(Ops::TOUCH).held(1).await;
        b.set("k", 3_u32).ttl("1h").await.unwrap();
        a.l2.on(Ops::TOUCH).release();
        assert!(touch.await.unwrap().unwrap());
        assert_eq!(a.remaining("k"), Some(secs(3_600)));
        settle().await;
        assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(3), Some(3)));
    }
}

/// Two touches at once: both succeed, and both tiers agree afterwards.
#[tokio::test(start_paused = true)]
async fn two_touches_at_once_agree() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).ttl("30m").await.unwrap();
    settle().await;
    assert!(
        while_touching(&a, "1h", || async { assert!(b.touch("k").ttl("2h").await.unwrap()) }).await
    );
    settle().await;
    pass(secs(3_590)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(1), Some(1)));
    let document = a.document("k").unwrap();
    let end = document["logicalExpiration"].as_u64().unwrap();
    pass(secs(20)).await;
    let is_fresh = end > document["createdAt"].as_u64().unwrap() + 3_620_000;
    assert_eq!(get(&a, "k").await.is_some(), is_fresh);
    assert_eq!(get(&b, "k").await.is_some(), is_fresh);
}

/// The process ends, or L2 fails, between the two steps.
#[tokio::test(start_paused = true)]
async fn half_a_touch_serves_nothing_for_longer_than_its_document_says() {
    let world = World::new();
    let a = world.node_where(|s| s.suppress_l2_errors(false)).await;
    a.set("k", 1_u32).ttl("1m").await.unwrap();
    a.l2.on(Ops::UPDATE).fail();
    assert!(matches!(a.touch("k").ttl("1h").await, Err(Error::L2 { .. })));
    assert_eq!(a.remaining("k"), Some(secs(3_600)));
    assert_eq!(get(&a, "k").await, Some(1));
    pass(secs(61)).await;
    for node in [&a, &world.node().await] {
        assert_eq!(get(node, "k").await, None);
    }
    // A shorter life: the document has it already.
    a.l2.calm();
    a.set("k", 2_u32).ttl("1h").await.unwrap();
    a.l2.on(Ops::TOUCH).fail();
    assert!(matches!(a.touch("k").ttl("1m").await, Err(Error::L2 { .. })));
    pass(secs(61)).await;
    for node in [&a, &world.node().await] {
        assert_eq!(get(node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_under_way_does_not_bring_the_longer_life_back() {
    for world in [World::new(), World::without_bus()] {
        let a = world.node().await;
        a.set("k", 1_u32).ttl("1h").skip_l1_write(true).await.unwrap();
        // The reader reads two keys with another call than the touch.
        a.l2.on(Ops::GET_MANY).hold_after();
        let read = go(a.get_many::<u32>(["k", "none"]));
        a.l2.on(Ops::GET_MANY).held(1).await;
        assert!(a.touch("k").ttl("1m").await.unwrap());
        a.l2.on(Ops::GET_MANY).release();
        assert_eq!(read.await.unwrap().unwrap(), [Some(1), None]);
        pass(secs(61)).await;
        assert_eq!(get(&a, "k").await, None);
    }
}

/// A longer life does not take the right to store from a factory under way.
#[tokio::test(start_paused = true)]
async fn a_factory_under_way_stores_its_value_after_a_touch() {
    let world = World::new();
    let a = world.node().await;
    a.set("k", 1_u32).ttl("10m").await.unwrap();
    let source = Source::held();
    let call = go(a.get_or_set("k", source.gives(2_u32)).force_fresh(true).ttl("10m"));
    source.begun(1).await;
    assert!(a.touch("k").ttl("20m").await.unwrap());
    source.release();
    assert_eq!(call.await.unwrap().unwrap(), 2);
    assert_eq!((get(&a, "k").await, get(&*world.node().await, "k").await), (Some(2), Some(2)));
}

/// A factory's value was stored over an invalidation whose message is late, and was touched
/// meanwhile: it is taken back all the same.
#[tokio::test(start_paused = true)]
async fn a_touched_value_is_taken_back_when_its_late_invalidation_arrives() {
    for (touching, change) in
        [("its own node", "delete"), ("another node", "delete"), ("its own node", "set")]
    {
        let world = World::new();
        let (a, b, c) = (world.node().await, world.node().await, world.node().await);
        let source = Source::held();
        let call = go(a.get_or_set("k", source.gives(1_u32)));
        source.begun(1).await;
        a.bus.on(Ops::DELIVER).slow(secs(1));
        c.bus.on(Ops::DELIVER).slow(secs(1));
        if change == "set" {
            b.set("k", 2_u32).await.unwrap();
        } else {
            b.delete("k").await.unwrap();
        }
        source.release();
        assert_eq!(call.await.unwrap().unwrap(), 1);
        let toucher = if touching == "its own node" { &a } else { &c };
        assert!(toucher.touch("k").ttl("1h").await.unwrap());
        pass(secs(3)).await;
        assert_eq!(a.document("k"), None, "{touching}");
        assert_eq!((get(&a, "k").await, get(&c, "k").await), (None, None), "{touching}");
    }
}

/// The message of the `set` of the touched value itself takes nothing away.
#[tokio::test(start_paused = true)]
async fn a_touch_before_the_message_of_the_set_arrives_loses_nothing() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    b.bus.on(Ops::DELIVER).slow(secs(1));
    a.set("k", 1_u32).await.unwrap();
    assert!(b.touch("k").ttl("1h").await.unwrap());
    pass(secs(3)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_touch_whose_caller_is_dropped_is_made_all_the_same() {
    let world = World::new();
    let a = world.node().await;
    a.set("k", 1_u32).ttl("1m").await.unwrap();
    a.l2.on(Ops::UPDATE).hold();
    let mut touch = Box::pin(a.touch("k").ttl("1h").into_future());
    let polled = tokio::time::timeout(ms(10), &mut touch).await;
    assert!(polled.is_err());
    drop(touch);
    a.l2.on(Ops::UPDATE).release();
    settle().await;
    pass(secs(61)).await;
    assert_eq!((get(&a, "k").await, get(&*world.node().await, "k").await), (Some(1), Some(1)));
}

// ---- Outages ----

/// A node without a breaker, so that failures reach the driver one by one.
async fn plain(world: &World) -> Node {
    world.node_where(|s| s.l2_circuit_breaker("off", 1)).await
}

#[tokio::test(start_paused = true)]
async fn a_touch_during_an_outage_is_repeated_and_announced() {
    for ops in [Ops::ALL, Ops::GET, Ops::UPDATE, Ops::TOUCH] {
        let world = World::new();
        let (a, b) = (plain(&world).await, world.node().await);
        a.set("k", 1_u32).ttl("10m").await.unwrap();
        settle().await;
        get(&b, "k").await;
        a.l2.on(ops).fail();
        assert!(a.touch("k").ttl("1h").await.unwrap(), "{ops:?}");
        assert_eq!(get(&a, "k").await, Some(1));
        a.l2.calm();
        pass(secs(6)).await;
        let left = a.remaining("k").unwrap();
        assert!(left > secs(3_590) && left <= secs(3_600), "{ops:?}: {left:?}");
        pass(secs(3_500)).await;
        assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(1), Some(1)), "{ops:?}");
        pass(secs(100)).await;
        assert_eq!((get(&a, "k").await, get(&b, "k").await), (None, None), "{ops:?}");
    }
}

/// A touch that nobody acknowledged is an error.
#[tokio::test(start_paused = true)]
async fn a_touch_that_neither_tier_nor_queue_takes_is_an_error() {
    let world = World::new();
    // Not suppressed.
    let a = world.node_where(|s| s.suppress_l2_errors(false)).await;
    a.set("k", 1_u32).await.unwrap();
    a.l2.fail();
    assert!(matches!(a.touch("k").await, Err(Error::L2 { operation: "touch", .. })));
    assert!(matches!(a.touch_many(["k", "l"]).await, Err(Error::L2 { .. } | Error::Keys { .. })));
    // L1 does not know whether there is something.
    let b = plain(&world).await;
    b.l2.fail();
    assert!(matches!(b.touch("k").await, Err(Error::L2 { .. })));
    // The queue takes nothing.
    let c = world.node_where(|s| s.recovery(0, "2s")).await;
    assert_eq!(get(&c, "k").await, Some(1));
    c.l2.fail();
    assert!(matches!(c.touch("k").ttl("1h").await, Err(Error::L2 { .. })));
    // There is no L1.
    let d = World::only_l2().node().await;
    d.set("k", 1_u32).await.unwrap();
    d.l2.fail();
    assert!(matches!(d.touch("k").await, Err(Error::L2 { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_waits_is_touched_in_the_queue() {
    let world = World::new();
    let a = plain(&world).await;
    a.l2.on(Ops::WRITES).fail();
    a.set("k", 1_u32).ttl("10m").await.unwrap();
    assert!(a.touch("k").ttl("1h").await.unwrap());
    a.l2.calm();
    pass(secs(6)).await;
    let left = a.remaining("k").unwrap();
    assert!(left > secs(3_590) && left <= secs(3_600), "{left:?}");
    pass(secs(3_500)).await;
    assert_eq!((get(&a, "k").await, get(&*world.node().await, "k").await), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_touch_that_waits_loses_to_every_other_change() {
    for change in Change::ALL {
        for is_elsewhere in [false, true] {
            for is_later in [false, true] {
                let world = World::new();
                let (a, b) = (plain(&world).await, world.node().await);
                a.namespace("n").set("k", 1_u32).ttl("1h").tags(["t"]).await.unwrap();
                settle().await;
                let node = if is_elsewhere { &b } else { &a };
                a.l2.fail();
                assert!(a.namespace("n").touch("k").ttl("10h").await.unwrap());
                pass(ms(10)).await;
                if is_later {
                    a.l2.calm();
                }
                change.of(node).await;
                a.l2.calm();
                pass(secs(10)).await;
                for node in [&a, &b, &world.node().await] {
                    let found = fresh(&node.namespace("n"), "k").await;
                    assert_eq!(found, change.leaves(), "{change:?} {is_elsewhere} {is_later}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_that_waits_makes_nothing_fresh_that_was_expired_meanwhile() {
    let world = World::new();
    let (a, b) = (plain(&world).await, world.node().await);
    a.set("k", 1_u32).ttl("1h").grace("1h").await.unwrap();
    a.l2.fail();
    assert!(a.touch("k").ttl("10h").grace("1h").await.unwrap());
    pass(ms(10)).await;
    b.expire("k").await.unwrap();
    a.l2.calm();
    pass(secs(10)).await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!((fresh(node, "k").await, get_stale(node, "k").await), (None, Some(1)));
    }
}

/// While a touch waits, the document that it is for may end, or be gone.
#[tokio::test(start_paused = true)]
async fn a_touch_that_waits_too_long_brings_nothing_back() {
    let world = World::new();
    let a = plain(&world).await;
    a.set("k", 1_u32).ttl("10s").await.unwrap();
    a.l2.fail();
    assert!(a.touch("k").ttl("1h").await.unwrap());
    pass(secs(20)).await;
    assert_eq!(get(&a, "k").await, Some(1));
    a.l2.calm();
    pass(secs(6)).await;
    assert_eq!((a.document("k"), get(&a, "k").await), (None, None));
    let seen = a.seen.texts();
    assert!(seen.contains(&"dropped 0".to_owned()), "{seen:?}");
}

/// Without the bus nobody hears of it, but no node keeps what is over.
#[tokio::test(start_paused = true)]
async fn a_store_with_one_tier_and_a_bus_works() {
    let world = World::only_l1();
    let a = world.node().await;
    a.set("k", 1_u32).ttl("1m").await.unwrap();
    assert!(a.touch("k").ttl("1h").await.unwrap());
    pass(secs(100)).await;
    assert_eq!(get(&a, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn l2_ttl_limits_the_new_life_too() {
    let world = World::new();
    let node = world.node_where(|s| s.ttl("1h").l2_ttl("1m")).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(30)).await;
    assert!(node.touch("k").await.unwrap());
    assert_eq!(node.remaining("k"), Some(secs(60)));
    let document = node.document("k").unwrap();
    let end = document["staleUntil"].as_u64().unwrap();
    assert_eq!(end - document["touchedAt"].as_u64().unwrap(), 60_000);
    assert!(node.touch("k").l2_ttl("none").await.unwrap());
    assert_eq!(node.remaining("k"), Some(secs(3_600)));
}
