//! Namespaces: handles that prefix keys.

use crate::common::{Runs, World, fill, get, ms, pass, settle};

fn worlds() -> [World; 4] {
    [World::new(), World::only_l1(), World::only_l2(), World::new().without_clear()]
}

#[tokio::test(start_paused = true)]
async fn a_namespace_prefixes_its_keys_and_is_readable_from_outside() {
    for world in worlds() {
        let node = world.node().await;
        let users = node.namespace("users");
        users.set("1", 1_u32).await.unwrap();
        assert_eq!(get(&users, "1").await, Some(1));
        assert_eq!(get(&node, "users:1").await, Some(1));
        assert_eq!(get(&node, "1").await, None);
        node.set("users:2", 2_u32).await.unwrap();
        assert_eq!(get(&users, "2").await, Some(2));
        assert_eq!(get(&node.namespace("posts"), "1").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn namespaces_nest() {
    let world = World::new();
    let node = world.node().await;
    node.namespace("a").namespace("b").set("k", 1_u32).await.unwrap();
    assert_eq!(world.l2.all_keys(), ["bentocache:a:b:k"]);
    assert_eq!(get(&node.namespace("a:b"), "k").await, Some(1));
    assert_eq!(get(&node.namespace("a"), "b:k").await, Some(1));
    assert_eq!(get(&node, "a:b:k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn trailing_colons_are_trimmed_and_an_empty_name_is_the_parent() {
    let world = World::new();
    let node = world.node().await;
    node.namespace("a:").set("k", 1_u32).await.unwrap();
    node.namespace("").set("k", 2_u32).await.unwrap();
    node.namespace("a").namespace(":").set("l", 3_u32).await.unwrap();
    assert_eq!(world.l2.all_keys(), ["bentocache:a:k", "bentocache:a:l", "bentocache:k"]);
}

#[tokio::test(start_paused = true)]
async fn every_operation_acts_inside_its_namespace_only() {
    for world in worlds() {
        let node = world.node().await;
        let (a, b) = (node.namespace("a"), node.namespace("b"));
        for cache in [&a, &b, &node] {
            cache.set_many([("k", 1_u32), ("l", 2), ("m", 3)]).await.unwrap();
        }
        assert!(a.delete("k").await.unwrap());
        a.expire("l").await.unwrap();
        assert_eq!(a.pull::<u32>("m").await.unwrap(), Some(3));
        let keys = ["k", "l", "m"];
        assert_eq!(a.get_many::<u32>(keys).await.unwrap(), [None; 3]);
        for cache in [&b, &node] {
            assert_eq!(cache.get_many::<u32>(keys).await.unwrap(), [Some(1), Some(2), Some(3)]);
        }
        assert!(a.missing("k").await.unwrap() && b.has("k").await.unwrap());
        assert_eq!(b.delete_many(keys).await.unwrap(), 3);
        assert_eq!(fill(&b, "k", 9).await, 9);
        assert_eq!(get(&node, "k").await, Some(1));
    }
}

/// A tag of one namespace is another tag in another one.
#[tokio::test(start_paused = true)]
async fn tags_belong_to_their_namespace() {
    for world in worlds() {
        let node = world.node().await;
        let (a, b) = (node.namespace("a"), node.namespace("b"));
        for cache in [&a, &b, &node] {
            cache.set("k", 1_u32).tags(["t"]).await.unwrap();
        }
        a.delete_by_tag(["t"]).await.unwrap();
        assert_eq!(get(&a, "k").await, None);
        assert_eq!(get(&b, "k").await, Some(1));
        assert_eq!(get(&node, "k").await, Some(1));
        assert_eq!(get(&node, "a:k").await, None, "seen from outside it is the same entry");
    }
}

/// A message about a tag reaches an entry that was read through another handle.
#[tokio::test(start_paused = true)]
async fn a_tag_invalidated_through_one_handle_counts_for_entries_read_through_another() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.namespace("users").set("k", 1_u32).tags(["t"]).await.unwrap();
    assert_eq!(get(&b, "users:k").await, Some(1));
    pass(ms(10)).await;
    a.namespace("users").delete_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "users:k").await, None);
}

/// L1 is shared by all handles: what one of them put there must be right for the others.
#[tokio::test(start_paused = true)]
async fn an_entry_read_from_outside_still_listens_to_its_own_tags() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.namespace("users").set("k", 1_u32).tags(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "users:k").await, Some(1));
    a.namespace("users").delete_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get(&b.namespace("users"), "k").await, None);
}

/// In Node every handle had its own locks: ten factories for ten handles.
#[tokio::test(start_paused = true)]
async fn handles_share_flights() {
    let node = World::new().node().await;
    let runs = Runs::new();
    let mut callers = tokio::task::JoinSet::new();
    for i in 0..12 {
        let (cache, runs) = (node.cache.clone(), runs.clone());
        callers.spawn(async move {
            let produce = move |_| async move {
                runs.count();
                pass(ms(100)).await;
                Ok::<u32, bentocache::Error>(7)
            };
            match i % 3 {
                0 => cache.get_or_set("a:b:k", produce).await,
                1 => cache.namespace("a").get_or_set("b:k", produce).await,
                _ => cache.namespace("a:b").get_or_set("k", produce).await,
            }
        });
    }
    for value in callers.join_all().await {
        assert_eq!(value.unwrap(), 7);
    }
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_factory_sees_the_key_as_its_caller_gave_it() {
    let node = World::new().node().await;
    let key = |cx: bentocache::Context<String>| async move {
        Ok::<_, bentocache::Error>(cx.key().to_owned())
    };
    assert_eq!(node.namespace("a").get_or_set("k", key).await.unwrap(), "k");
    assert_eq!(node.get_or_set("a:l", key).await.unwrap(), "a:l");
}

#[tokio::test(start_paused = true)]
async fn events_and_errors_show_the_namespace_but_not_the_prefix() {
    let node = World::new().node().await;
    let users = node.namespace("users");
    users.set("1", 1_u32).await.unwrap();
    get(&users, "1").await;
    get(&users, "2").await;
    users.clear().await.unwrap();
    node.clear().await.unwrap();
    let mut texts = node.seen.texts();
    texts.retain(|text| !text.starts_with("published"));
    let wanted = ["written users:1", "hit l1 users:1", "miss users:2", "cleared users", "cleared "];
    assert_eq!(texts, wanted);
    let error = crate::common::fail(&users, "3").await.unwrap_err();
    assert_eq!(error.key(), Some("users:3"));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_of_a_dropped_cache_goes_on_working() {
    let node = World::new().node().await;
    let users = node.namespace("users");
    let crate::common::Node { cache, .. } = node;
    drop(cache);
    users.set("1", 1_u32).await.unwrap();
    assert_eq!(get(&users, "1").await, Some(1));
    assert_eq!(fill(&users, "2", 2).await, 2);
}
