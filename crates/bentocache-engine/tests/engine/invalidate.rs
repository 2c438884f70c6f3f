//! `invalidate`: keys, tags and namespaces in one call. `tag_scope`: tags of a namespace or of the
//! store.

use crate::common::{Node, World, get, secs, settle};
use bentocache::{BentoCache, Error, Memory, Store, TagScope};
use bentocache_testkit::Ops;
use tokio::time::Instant;

async fn filled(world: &World) -> (Node, Node) {
    let (a, b) = (world.node().await, world.node().await);
    a.set("key", 1_u32).await.unwrap();
    a.set("tagged", 2_u32).tags(["t"]).await.unwrap();
    a.namespace("n").set("k", 3_u32).await.unwrap();
    a.namespace("m").set("k", 4_u32).await.unwrap();
    a.set("other", 5_u32).await.unwrap();
    settle().await;
    for key in ["key", "tagged", "n:k", "m:k", "other"] {
        assert!(get(&b, key).await.is_some(), "{key}");
    }
    (a, b)
}

#[tokio::test(start_paused = true)]
async fn keys_tags_and_namespaces_are_invalidated_together_on_every_node() {
    for world in [World::new(), World::new().without_clear()] {
        let (a, b) = filled(&world).await;
        a.invalidate().keys(["key"]).tags(["t"]).namespace("n").namespace("m").await.unwrap();
        settle().await;
        for node in [&a, &b, &world.node().await] {
            for key in ["key", "tagged", "n:k", "m:k"] {
                assert_eq!(get(node, key).await, None, "{key}");
            }
            assert_eq!(get(node, "other").await, Some(5));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_parts_share_one_limit_when_l2_hangs() {
    let (a, _b) = filled(&World::new()).await;
    a.l2.hang();
    let began = Instant::now();
    let call = a.invalidate().keys(["key"]).tags(["t", "u", "v"]).l2_timeout("none", "2s");
    let error = call.suppress_l2_errors(false).await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(began.elapsed(), secs(2));
    assert_eq!(get(&a, "key").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_does_not_keep_the_others_from_their_work() {
    let (a, b) = filled(&World::new()).await;
    a.l2.on(Ops::DELETE).fail();
    let call = a.invalidate().keys(["key"]).tags(["t"]).namespace("n");
    call.suppress_l2_errors(false).await.unwrap_err();
    settle().await;
    assert_eq!((get(&b, "tagged").await, get(&b, "n:k").await), (None, None));
    assert_eq!(get(&a, "key").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_bad_key_is_refused_before_anything_happens() {
    let (a, _b) = filled(&World::new()).await;
    let error = a.invalidate().keys(["key", ""]).tags(["t"]).namespace("n").await.unwrap_err();
    assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
    for key in ["key", "tagged", "n:k"] {
        assert!(get(&a, key).await.is_some(), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_belongs_to_its_namespace_or_with_tag_scope_to_the_store() {
    for shares in [false, true] {
        for world in [World::new(), World::only_l1(), World::only_l2()] {
            let scope = if shares { TagScope::STORE } else { TagScope::NAMESPACE };
            let node = world.node_where(|s| s.tag_scope(scope)).await;
            let (n, m) = (node.namespace("n"), node.namespace("m"));
            n.set("set", 1_u32).tags(["t"]).await.unwrap();
            let made = n.get_or_set("made", |cx| async move {
                cx.tags(["t"]);
                Ok::<_, Error>(2_u32)
            });
            made.await.unwrap();
            m.delete_by_tag(["t"]).await.unwrap();
            settle().await;
            for key in ["set", "made"] {
                assert_eq!(get(&n, key).await.is_none(), shares, "{key}, store: {shares}");
            }
            n.set("set", 3_u32).tags(["t"]).await.unwrap();
            n.invalidate().tags(["t"]).await.unwrap();
            assert_eq!(get(&n, "set").await, None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_node_reads_the_scope_of_a_tag_from_the_entry() {
    let world = World::new();
    let a = world.node_where(|s| s.tag_scope("store")).await;
    let b = world.node_where(|s| s.tag_scope("store")).await;
    a.namespace("n").set("k", 1_u32).tags(["t"]).await.unwrap();
    assert_eq!(get(&b, "n:k").await, Some(1));
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "n:k").await, None);
    let c = world.node_where(|s| s.tag_scope("store")).await;
    assert_eq!(get(&c, "n:k").await, None);
}

#[tokio::test(start_paused = true)]
async fn another_word_for_a_tag_scope_is_refused() {
    let store = Store::new().l1(Memory::new()).tag_scope("everything");
    let error = BentoCache::builder().store("s", store).build().await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("tag_scope") && text.contains("everything"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_typed_handle_has_every_operation() {
    let node = World::new().node().await;
    let ages = node.typed::<u32>();
    ages.set_many([("a", 1), ("b", 2), ("c", 3), ("d", 4)]).tags(["t"]).await.unwrap();
    assert!(ages.has("a").await.unwrap() && ages.missing("x").await.unwrap());
    assert!(ages.delete("a").await.unwrap());
    assert_eq!(ages.delete_many(["b", "x"]).await.unwrap(), 1);
    ages.expire("c").await.unwrap();
    ages.expire_many(["d"]).await.unwrap();
    assert!(ages.missing("c").await.unwrap() && ages.missing("d").await.unwrap());
    ages.namespace("n").set("e", 5).tags(["t"]).await.unwrap();
    ages.namespace("n").delete_by_tag(["t"]).await.unwrap();
    assert_eq!(ages.get("n:e").await.unwrap(), None);
    ages.set("f", 6).await.unwrap();
    ages.invalidate().keys(["f"]).await.unwrap();
    assert!(ages.missing("f").await.unwrap());
    ages.set("g", 7).await.unwrap();
    ages.clear().await.unwrap();
    assert!(ages.missing("g").await.unwrap());
    ages.prune().await.unwrap();
}
