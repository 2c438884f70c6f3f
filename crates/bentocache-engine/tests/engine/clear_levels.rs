//! `clear` in an L2 that cannot find its keys by prefix: hidden tags do it there.

use std::sync::{Arc, Mutex};

use crate::common::{Node, World, fail, fill, get, get_stale, ms, pass, secs, settle};
use bentocache::{BentoCache, Error, Memory, Store, TokioTime};
use bentocache_testkit::{MapL2, Ops};

fn world() -> World {
    World::new().without_clear()
}

/// With and without a bus, with and without an L1.
fn worlds() -> [World; 3] {
    [world(), World::without_bus().without_clear(), World::only_l2().without_clear()]
}

/// Long enough for every node to know, also without a bus.
async fn known() {
    pass(secs(2)).await;
}

/// The values that a newly started node reads.
async fn elsewhere(world: &World, key: &str) -> Option<u32> {
    get_stale(&world.node().await.cache, key).await
}

/// The keys of markers and buckets in L2.
fn metadata(world: &World) -> Vec<String> {
    world.l2.all_keys().into_iter().filter(|key| key.contains("___bc:")).collect()
}

// ---- What is cleared is gone ----

#[tokio::test(start_paused = true)]
async fn no_grace_brings_back_what_was_cleared() {
    for world in worlds() {
        let (a, b) = (world.node().await, world.node().await);
        for node in [&a, &b] {
            node.set("k", 1_u32).grace("1h").await.unwrap();
            assert_eq!(get(node, "k").await, Some(1));
        }
        a.clear().await.unwrap();
        known().await;
        for node in [&a, &b, &world.node().await] {
            assert_eq!(get_stale(node, "k").await, None);
            assert!(!node.has("k").await.unwrap());
            assert_eq!(node.get_many::<u32>(["k"]).grace("1h").await.unwrap(), [None]);
            assert_eq!(node.pull::<u32>("k").grace("1h").await.unwrap(), None);
        }
    }
}

/// A failing factory cannot fall back to a value that was cleared, and no caller gets it.
#[tokio::test(start_paused = true)]
async fn a_factory_after_a_clear_finds_nothing_stale() {
    let world = world();
    let (a, b) =
        (world.node_where(|s| s.grace("1h")).await, world.node_where(|s| s.grace("1h")).await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    a.clear().await.unwrap();
    settle().await;
    for node in [&a, &b] {
        assert!(fail(node, "k").await.is_err());
    }
    let seen = Arc::new(Mutex::new(None));
    let noted = seen.clone();
    let value = b.get_or_set("k", move |cx| async move {
        *noted.lock().unwrap() = Some(cx.stale().copied());
        Ok::<u32, Error>(2)
    });
    assert_eq!(value.await.unwrap(), 2);
    assert_eq!(*seen.lock().unwrap(), Some(None));
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_after_a_clear_stays() {
    for world in worlds() {
        let (a, b) = (world.node().await, world.node().await);
        for round in 0..5_u32 {
            a.set("n:k", round).await.unwrap();
            a.namespace("n").clear().await.unwrap();
            a.set("n:k", round + 100).await.unwrap();
            known().await;
            for node in [&a, &b] {
                assert_eq!(get(node, "n:k").await, Some(round + 100));
            }
            b.clear().await.unwrap();
            known().await;
            assert_eq!(fill(&b, "n:k", round + 200).await, round + 200);
            known().await;
            assert_eq!(get(&a, "n:k").await, Some(round + 200));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_level_is_cleared_with_all_below_it_and_nothing_else() {
    for world in worlds() {
        let node = world.node().await;
        let keys = ["k", "a", "a:k", "a:b", "a:b:k", "a:b:c:k", "a:bc:k", "ab:k", "b:a:k", "a::k"];
        let cleared: [(&str, &[&str]); 4] = [
            ("a:b:c", &["a:b:c:k"]),
            ("a:b", &["a:b:k", "a:b:c:k"]),
            ("a", &["a:k", "a:b", "a:b:k", "a:b:c:k", "a:bc:k", "a::k"]),
            ("", &keys),
        ];
        for (namespace, gone) in cleared {
            for key in keys {
                node.set(key, 1_u32).await.unwrap();
            }
            node.namespace(namespace).clear().await.unwrap();
            for key in keys {
                let expected = (!gone.contains(&key)).then_some(1);
                assert_eq!(get(&node, key).await, expected, "{key:?} after {namespace:?}");
                let found = elsewhere(&world, key).await;
                assert_eq!(found, expected, "{key:?} after {namespace:?}, on a new node");
            }
        }
    }
}

/// Keys with very many parts have as many tags as others. Deeper levels are cleared with their
/// eighth level.
#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_too_deep_is_cleared_with_the_last_level_that_has_a_tag() {
    let world = world();
    let node = world.node().await;
    let deep = ":".repeat(5_000);
    node.set(&*deep, 1_u32).await.unwrap();
    let (left, right) = ("1:2:3:4:5:6:7:l:k", "1:2:3:4:5:6:7:r:k");
    for key in [left, right, "1:2:3:4:5:6:k"] {
        node.set(key, 1_u32).await.unwrap();
    }
    node.namespace("1:2:3:4:5:6:7:l").clear().await.unwrap();
    settle().await;
    assert_eq!(elsewhere(&world, left).await, None);
    assert_eq!(elsewhere(&world, right).await, None, "it costs a miss");
    assert_eq!(elsewhere(&world, "1:2:3:4:5:6:k").await, Some(1));
    assert_eq!(get(&node, &deep).await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn other_prefixes_in_the_same_store_are_untouched() {
    let world = world();
    let one = world.node_where(|s| s.prefix("app")).await;
    let other = world.node_where(|s| s.prefix("app2")).await;
    let none = world.node_where(|s| s.prefix("")).await;
    for node in [&one, &other, &none] {
        node.set("k", 1_u32).await.unwrap();
    }
    one.clear().await.unwrap();
    known().await;
    assert_eq!(get(&one, "k").await, None);
    assert_eq!(get(&other, "k").await, Some(1));
    none.clear().await.unwrap();
    known().await;
    assert_eq!(get(&none, "k").await, None);
    assert_eq!(get(&other, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn clear_all_clears_every_store() {
    let map = MapL2::new().without_clear();
    let store = |prefix: &str| Store::new().l2(map.clone()).l1(Memory::new()).prefix(prefix);
    let bento = BentoCache::builder()
        .clock(TokioTime::new())
        .store("a", store("a"))
        .store("b", store("b"))
        .default_store("a")
        .build()
        .await
        .unwrap();
    for name in ["a", "b"] {
        bento.store(name).unwrap().set("k", 1_u32).await.unwrap();
    }
    bento.clear_all().await.unwrap();
    for name in ["a", "b"] {
        assert_eq!(get(&bento.store(name).unwrap(), "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_on_its_way_is_cleared_too() {
    let world = world();
    let (a, b) = (world.node().await, world.node().await);
    let call = tokio::spawn({
        let cache = a.cache.clone();
        async move {
            let slow = |_| async {
                pass(secs(1)).await;
                Ok::<u32, Error>(1)
            };
            cache.get_or_set("k", slow).await
        }
    });
    pass(ms(500)).await;
    b.clear().await.unwrap();
    assert_eq!(call.await.unwrap().unwrap(), 1);
    settle().await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(get(node, "k").await, None);
    }
}

/// A stale value counts as fresh for a while if its factory fails. A clear that its process learns
/// of between the check of the value and the factory has precedence.
#[tokio::test(start_paused = true)]
async fn a_backoff_does_not_take_back_a_clear() {
    let world = World::without_bus().without_clear();
    let graced = |s: Store| s.grace("1h").grace_backoff("10m").suppress_l2_errors(true);
    let (a, b) = (world.node_where(graced).await, world.node().await);
    a.set("k", 1_u32).ttl("500ms").await.unwrap();
    pass(ms(600)).await;
    b.clear().await.unwrap();
    // The state of the level is trusted for one second, which ends during the check.
    pass(ms(390)).await;
    a.l2.on(Ops::GET).slow(ms(20));
    a.l2.on(Ops::GET).fail_next(1);
    assert!(fail(&a, "k").await.is_err());
    a.l2.calm();
    for node in [&a, &b] {
        assert_eq!(get_stale(node, "k").await, None);
    }
}

// ---- Beside it ----

#[tokio::test(start_paused = true)]
async fn tags_of_the_application_work_beside_the_hidden_ones() {
    for world in worlds() {
        let (a, b) = (world.node().await, world.node().await);
        a.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
        a.namespace("n").set("l", 1_u32).tags(["u"]).grace("1h").await.unwrap();
        assert_eq!(get(&b, "n:k").await, Some(1));
        b.namespace("n").expire_by_tag(["u"]).await.unwrap();
        known().await;
        for node in [&a, &b] {
            assert_eq!(get(node, "n:k").await, Some(1));
            assert_eq!(get(node, "n:l").await, None);
            assert_eq!(get_stale(node, "n:l").await, Some(1), "a tag leaves it stale");
        }
        a.namespace("n").clear().await.unwrap();
        known().await;
        for node in [&a, &b] {
            assert_eq!(get_stale(node, "n:k").await, None);
            assert_eq!(get_stale(node, "n:l").await, None, "a clear leaves nothing");
        }
        a.namespace("n").set("k", 2_u32).tags(["t"]).await.unwrap();
        known().await;
        assert_eq!(get(&b, "n:k").await, Some(2));
        b.namespace("n").delete_by_tag(["t"]).await.unwrap();
        known().await;
        assert_eq!(get(&a, "n:k").await, None);
    }
}

/// A factory adds tags, and many keys are produced together.
#[tokio::test(start_paused = true)]
async fn what_factories_produce_has_the_levels_of_each_key() {
    let world = world();
    let node = world.node().await;
    let produce = |cx: bentocache::ManyContext| async move {
        cx.tags(["t"]);
        Ok::<_, Error>(cx.keys().iter().map(|key| (key.clone(), 1_u32)).collect::<Vec<_>>())
    };
    let keys = ["a:k", "b:k", "k"];
    node.get_or_set_many(keys, produce).await.unwrap();
    node.namespace("a").clear().await.unwrap();
    settle().await;
    let new = world.node().await;
    assert_eq!(new.get_many::<u32>(keys).await.unwrap(), [None, Some(1), Some(1)]);
    new.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(new.get_many::<u32>(keys).await.unwrap(), [None; 3]);
}

#[tokio::test(start_paused = true)]
async fn nothing_shows_that_there_are_hidden_tags() {
    let world = world();
    let node = world.node().await;
    node.namespace("n").set("k", 1_u32).await.unwrap();
    let document = node.document("n:k").unwrap();
    assert_eq!(document["levels"].as_array().unwrap().len(), 2);
    assert!(document.get("tags").is_none() && document.get("tagScope").is_none());
    node.namespace("n").clear().await.unwrap();
    settle().await;
    let texts = node.seen.texts();
    assert!(texts.contains(&"cleared n".to_owned()), "{texts:?}");
    assert!(!texts.iter().any(|text| text.contains("tag ") || text.contains("___bc")), "{texts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_second_tier_that_can_clear_pays_nothing() {
    let world = World::new();
    let node = world.node().await;
    node.set("n:k", 1_u32).await.unwrap();
    assert_eq!(node.l2.calls(), 1);
    assert!(node.document("n:k").unwrap().get("levels").is_none());
    node.clear().await.unwrap();
    assert_eq!((node.l2.calls(), node.l2.on(Ops::CLEAR).calls()), (2, 1));
}

/// The number of namespaces does not matter, except for cleared ones.
#[tokio::test(start_paused = true)]
async fn the_metadata_do_not_grow_with_the_namespaces() {
    let world = world();
    let node = world.node().await;
    node.set_many((0..3_000_u32).map(|i| (format!("user:{i}:name"), i))).await.unwrap();
    let before = metadata(&world).len();
    assert!((900..=1_024).contains(&before), "{before}");
    node.namespace("user:7").clear().await.unwrap();
    assert_eq!(metadata(&world).len(), before + 1);
    assert_eq!(elsewhere(&world, "user:7:name").await, None);
    assert_eq!(elsewhere(&world, "user:8:name").await, Some(8));
}

/// All unknown states of a call's keys are read in one round trip.
#[tokio::test(start_paused = true)]
async fn a_cold_node_takes_one_more_round_trip_and_a_warm_one_none() {
    let world = world();
    world.node().await.set_many([("a:k", 1_u32), ("b:c:k", 2)]).await.unwrap();
    let node = world.node().await;
    assert_eq!(node.get_many::<u32>(["a:k", "b:c:k"]).await.unwrap(), [Some(1), Some(2)]);
    assert_eq!(node.l2.calls(), 2);
    node.set("b:c:k", 3_u32).await.unwrap();
    assert_eq!(node.l2.calls(), 3);
    assert_eq!(get(&node, "b:c:k").await, Some(3));
    assert_eq!(node.l2.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_looks_like_the_marker_of_a_level_is_refused() {
    let node = world().node().await;
    for key in ["___bc:c:efd01f60ba992926", "n:___bc:c:x"] {
        assert!(matches!(node.set(key, 1_u32).await, Err(Error::InvalidKey { .. })), "{key}");
    }
    // A tag may have any name.
    node.set("k", 1_u32).tags(["___bc:c:efd01f60ba992926"]).await.unwrap();
    node.clear().await.unwrap();
    node.set("k", 2_u32).tags(["___bc:c:efd01f60ba992926"]).await.unwrap();
    assert_eq!(get(&node, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_prefix_that_leaves_no_room_for_markers_fails_the_build() {
    let built = |most: usize, prefix: &'static str| async move {
        let map = MapL2::new().without_clear().max_key(most);
        BentoCache::builder().store("s", Store::new().l2(map).prefix(prefix)).build().await
    };
    assert!(built(34, "ten-bytes").await.is_ok());
    let error = built(33, "ten-bytes").await.err().unwrap().to_string();
    for part in ["\"s\"", "33 bytes", "34 bytes", "1 bytes shorter"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn entries_of_the_node_library_are_cleared_by_their_age() {
    for world in worlds() {
        entries_of_node_are_cleared(world).await;
    }
}

async fn entries_of_node_are_cleared(world: World) {
    let node = world.node().await;
    let put = |created_at: u64| {
        let document = format!(r#"{{"value":1,"createdAt":{created_at}}}"#);
        world.l2.put("bentocache:n:k", document, None);
    };
    let now = || {
        use bentocache::TimeSource;
        world.clock.epoch_ms()
    };
    put(now());
    assert_eq!(get(&node, "n:k").await, Some(1));
    pass(ms(10)).await;
    let before = now();
    pass(ms(10)).await;
    node.namespace("n").clear().await.unwrap();
    assert_eq!(get_stale(&node, "n:k").await, None);
    put(before);
    assert_eq!(get_stale(&node, "n:k").await, None);
    pass(ms(10)).await;
    put(now());
    assert_eq!(get(&node, "n:k").await, Some(1));
}

/// The levels survive every change of a document: an expiry, a backoff.
#[tokio::test(start_paused = true)]
async fn a_value_that_was_expired_is_cleared_all_the_same() {
    let world = world();
    let (a, b) =
        (world.node_where(|s| s.grace("1h")).await, world.node_where(|s| s.grace("1h")).await);
    for key in ["expired", "failed"] {
        a.set(key, 1_u32).ttl("1s").await.unwrap();
    }
    a.expire("expired").await.unwrap();
    pass(secs(2)).await;
    assert_eq!(fail(&a, "failed").await.unwrap(), 1);
    settle().await;
    assert_eq!(get(&b, "failed").await, Some(1), "after a backoff it is fresh for a while");
    assert_eq!(get_stale(&b, "expired").await, Some(1));
    b.clear().await.unwrap();
    settle().await;
    for key in ["expired", "failed"] {
        assert_eq!(get_stale(&a, key).await, None, "{key}");
        assert_eq!(elsewhere(&world, key).await, None, "{key}");
    }
}

// ---- What is lost, and what fails ----

#[tokio::test(start_paused = true)]
async fn lost_metadata_bring_nothing_back() {
    for what in ["___bc:c:", "___bc:b:", "___bc:"] {
        let world = world();
        let (a, b) = (world.node().await, world.node().await);
        a.set("n:k", 1_u32).grace("1h").await.unwrap();
        assert_eq!(get(&b, "n:k").await, Some(1));
        a.namespace("n").clear().await.unwrap();
        for key in metadata(&world).iter().filter(|key| key.contains(what)) {
            world.l2.take(key);
        }
        settle().await;
        assert_eq!(elsewhere(&world, "n:k").await, None, "{what}");
        for node in [&a, &b] {
            assert_eq!(get_stale(node, "n:k").await, None, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_during_an_outage_is_made_up_for() {
    for world in worlds() {
        let suppressed = |s: Store| s.suppress_l2_errors(true).grace("1h");
        let (a, b) = (world.node_where(suppressed).await, world.node_where(suppressed).await);
        a.set("n:k", 1_u32).await.unwrap();
        a.set("k", 1_u32).await.unwrap();
        known().await;
        a.l2.cut();
        a.namespace("n").clear().await.unwrap();
        assert_eq!(get_stale(&a, "n:k").await, None, "as it will be");
        pass(secs(3)).await;
        a.set("n:k", 2_u32).await.unwrap();
        a.l2.restore();
        pass(secs(10)).await;
        for node in [&a, &b, &world.node().await] {
            assert_ne!(get_stale(node, "n:k").await, Some(1));
            assert_eq!(get(node, "k").await, Some(1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clear_that_fails_is_an_error_where_that_is_wished_and_the_first_tier_is_empty() {
    let node = world().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.fail();
    let error = node.clear().suppress_l2_errors(false).await.unwrap_err();
    assert!(matches!(error, Error::L2 { operation: "clear", .. }), "{error:?}");
    assert_eq!(get_stale(&node, "k").await, None);
}

/// A full server refuses markers. Without marker and bucket the state of the namespace is unknown.
#[tokio::test(start_paused = true)]
async fn a_clear_of_a_full_server_counts() {
    let world = world();
    let (a, b) = (world.node().await, world.node().await);
    a.set("n:k", 1_u32).grace("1h").await.unwrap();
    assert_eq!(get(&b, "n:k").await, Some(1));
    let writes = Ops::SET | Ops::SET_MANY | Ops::UPDATE;
    a.l2.on(writes).fail_with(bentocache::driver::ErrorKind::Full);
    a.namespace("n").clear().await.unwrap();
    settle().await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(get_stale(node, "n:k").await, None);
    }
}

/// Otherwise everything would be unknown in an outage.
#[tokio::test(start_paused = true)]
async fn a_namespace_that_was_never_read_is_usable_during_an_outage() {
    let world = world();
    let node = world.node().await;
    node.set("warm:k", 1_u32).await.unwrap();
    node.l2.cut();
    node.set("cold:k", 2_u32).await.unwrap();
    assert_eq!(fill(&node, "colder:k", 3).await, 3);
    for _ in 0..20 {
        pass(secs(1)).await;
        assert_eq!(get(&node, "warm:k").await, Some(1));
        assert_eq!(get(&node, "cold:k").await, Some(2));
        assert_eq!(get(&node, "colder:k").await, Some(3));
    }
    node.namespace("cold").clear().await.unwrap();
    assert_eq!(get_stale(&node, "cold:k").await, None);
    assert_eq!(get(&node, "warm:k").await, Some(1));
}

/// Values set by such a node are valid for all nodes, if they are younger than what the bucket
/// could hide.
#[tokio::test(start_paused = true)]
async fn a_set_during_an_outage_counts_after_it() {
    let world = world();
    let (a, b) = (world.node().await, world.node().await);
    b.set("n:other", 1_u32).await.unwrap();
    pass(ms(10)).await;
    a.l2.cut();
    a.set("n:k", 1_u32).await.unwrap();
    pass(secs(20)).await;
    a.l2.restore();
    pass(secs(5)).await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(get(node, "n:k").await, Some(1));
    }
    b.namespace("n").clear().await.unwrap();
    settle().await;
    for node in [&a, &b, &world.node().await] {
        assert_eq!(get_stale(node, "n:k").await, None);
    }
}

/// Another node clears meanwhile, which this node does not learn.
#[tokio::test(start_paused = true)]
async fn a_clear_by_another_node_during_the_outage_is_seen_after_it() {
    for world in [world(), World::without_bus().without_clear()] {
        let (a, b) = (world.node_where(|s| s.grace("1h")).await, world.node().await);
        a.set("n:k", 1_u32).await.unwrap();
        a.l2.cut();
        a.bus.cut();
        a.set("n:late", 1_u32).await.unwrap();
        pass(secs(1)).await;
        b.namespace("n").clear().await.unwrap();
        pass(secs(5)).await;
        assert_eq!(get(&a, "n:k").await, Some(1), "it cannot know");
        a.l2.restore();
        a.bus.restore();
        pass(secs(10)).await;
        for node in [&a, &b, &world.node().await] {
            assert_eq!(get_stale(node, "n:k").await, None);
            assert_eq!(get_stale(node, "n:late").await, None);
        }
    }
}

/// More deletions than the queue holds become a clear of their namespace.
#[tokio::test(start_paused = true)]
async fn too_many_invalidations_become_a_clear_and_none_is_lost() {
    let world = world();
    let (a, b) = (world.node_where(|s| s.recovery(10, "1s")).await, world.node().await);
    let keys: Vec<String> = (0..50).map(|i| format!("n:k{i}")).collect();
    for key in &keys {
        b.set(key, 1_u32).await.unwrap();
    }
    b.set("other:k", 1_u32).await.unwrap();
    settle().await;
    a.l2.cut();
    for key in &keys {
        a.namespace("n").delete(&key[2..]).await.unwrap();
    }
    a.l2.restore();
    pass(secs(5)).await;
    for node in [&a, &b, &world.node().await] {
        for key in &keys {
            assert_eq!(get_stale(node, key).await, None, "{key}");
        }
        assert_eq!(get(node, "other:k").await, Some(1));
    }
}

/// Queued clears are not dropped for queued values.
#[tokio::test(start_paused = true)]
async fn a_full_queue_keeps_its_clears() {
    let world = world();
    let (a, b) = (world.node_where(|s| s.recovery(6, "1s")).await, world.node().await);
    for namespace in ["a", "b", "c"] {
        b.namespace(namespace).set("k", 1_u32).await.unwrap();
    }
    settle().await;
    a.l2.cut();
    for namespace in ["a", "b"] {
        a.namespace(namespace).clear().await.unwrap();
    }
    for i in 0..50_u32 {
        a.set(format!("d:{i}"), i).await.unwrap();
    }
    a.l2.restore();
    pass(secs(5)).await;
    let node = world.node().await;
    let found = node.get_many::<u32>(["a:k", "b:k", "c:k"]).await.unwrap();
    assert_eq!(found, [None, None, Some(1)]);
}

async fn with_codec(codec: bentocache::Codec) {
    let world = world();
    let node: Node = world.node_where(|s| s.codec(codec)).await;
    let long = "long ".repeat(1_000);
    node.set("n:k", long.clone()).await.unwrap();
    let anew = world.node_where(|s| s.codec(codec)).await;
    assert_eq!(anew.get::<String>("n:k").await.unwrap().as_deref(), Some(&*long));
    node.namespace("n").clear().await.unwrap();
    settle().await;
    let anew = world.node_where(|s| s.codec(codec)).await;
    assert_eq!(anew.get::<String>("n:k").grace("1h").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn every_codec_keeps_the_levels() {
    with_codec(bentocache::Codec::json()).await;
    #[cfg(feature = "lz4")]
    with_codec(bentocache::Codec::json().compress_above(10)).await;
    #[cfg(feature = "msgpack")]
    with_codec(bentocache::Codec::message_pack()).await;
}

/// A marker must outlive what it clears.
#[tokio::test(start_paused = true)]
async fn nothing_lives_longer_than_the_marker_of_a_clear() {
    let node = world().node_where(|s| s.tag_ttl("10d").grace("100d")).await;
    node.set_forever("k", 1_u32).await.unwrap();
    let day = 24 * 60 * 60;
    assert_eq!(node.remaining("k"), Some(secs(10 * day)));
    node.clear().await.unwrap();
    let marker = node.map.all_keys().into_iter().find(|key| key.contains("___bc:c:")).unwrap();
    assert_eq!(node.map.remaining(&marker), Some(secs(11 * day)));
}
