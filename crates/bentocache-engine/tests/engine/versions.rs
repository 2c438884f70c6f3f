//! `version(n)`: two deploys with different types share one L2.

use crate::common::{Node, World, fail, get, get_stale, ms, pass, secs, settle};
use crate::races::{Source, go};
use bentocache::{Cache, Context, Error};
use bentocache_testkit::Ops;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct New {
    first: String,
    last: String,
}

/// A node of the old deploy and one of the new deploy, with their handles.
async fn deploys(world: &World) -> [(Node, Cache); 2] {
    let (old, new) = (world.node().await, world.node().await);
    let handles = (old.namespace("users").version(1), new.namespace("users").version(2));
    [(old, handles.0), (new, handles.1)]
}

fn worlds() -> [World; 3] {
    [World::new(), World::new().without_clear(), World::only_l2()]
}

#[tokio::test(start_paused = true)]
async fn two_versions_in_turn_do_not_overwrite_each_other() {
    for world in worlds() {
        let [(_, old), (_, new)] = deploys(&world).await;
        let (of_old, of_new) = (Source::new(), Source::new());
        for _ in 0..5 {
            let value = of_old.gives(Old { name: "ann lee".into() });
            assert_eq!(old.get_or_set("42", value).await.unwrap().name, "ann lee");
            let value = of_new.gives(New { first: "ann".into(), last: "lee".into() });
            assert_eq!(new.get_or_set("42", value).await.unwrap().last, "lee");
        }
        assert_eq!((of_old.runs(), of_new.runs()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn version_1_has_the_plain_key() {
    let world = World::new();
    let [(_, old), (_, new)] = deploys(&world).await;
    let plain = world.node().await.namespace("users");
    plain.set("42", 1_u32).await.unwrap();
    settle().await;
    assert_eq!((get(&old, "42").await, get(&new, "42").await), (Some(1), None));
    old.set("42", 2_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&plain, "42").await, Some(2));
    assert!(world.l2.all_keys().contains(&"bentocache:users:42".to_owned()));
}

/// The ways to invalidate a key, and what stale readers may see after each.
async fn invalidate(how: &str, handle: &Cache) {
    match how {
        "delete" => drop(handle.delete("42").await.unwrap()),
        "delete_many" => drop(handle.delete_many(["42"]).await.unwrap()),
        "expire" => handle.expire("42").await.unwrap(),
        "pull" => drop(handle.pull::<u32>("42").await.unwrap()),
        "set" => handle.set("42", 9_u32).await.unwrap(),
        "set with a ttl of 0" => handle.set("42", 9_u32).ttl("0s").await.unwrap(),
        "set_many" => handle.set_many([("42", 9_u32)]).await.unwrap(),
        "force_fresh" => {
            let produced = handle.get_or_set("42", |_| async { Ok::<_, Error>(9_u32) });
            assert_eq!(produced.force_fresh(true).await.unwrap(), 9);
        }
        "gone" => {
            let gone = handle.get_or_set("42", |cx: Context<u32>| async move { cx.gone() });
            assert_eq!(gone.force_fresh(true).optional().await.unwrap(), None);
        }
        "invalidate" => handle.invalidate().keys(["42"]).await.unwrap(),
        "delete_by_tag" => handle.delete_by_tag(["t"]).await.unwrap(),
        "clear" => handle.clear().await.unwrap(),
        _ => unreachable!("{how}"),
    }
}

const WAYS: [&str; 12] = [
    "delete",
    "delete_many",
    "expire",
    "pull",
    "set",
    "set with a ttl of 0",
    "set_many",
    "force_fresh",
    "gone",
    "invalidate",
    "delete_by_tag",
    "clear",
];

#[tokio::test(start_paused = true)]
async fn what_one_deploy_invalidates_is_invalid_in_the_other() {
    for how in WAYS {
        for by_new in [true, false] {
            for world in worlds() {
                let deploys = deploys(&world).await;
                for (_, handle) in &deploys {
                    handle.set("43", 5_u32).await.unwrap();
                }
                // A value that a factory produced does not invalidate the other version.
                for (_, handle) in &deploys {
                    let made = handle.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) });
                    made.tags(["t"]).await.unwrap();
                }
                settle().await;
                let (one, other) = (&deploys[usize::from(by_new)], &deploys[usize::from(!by_new)]);
                assert_eq!(get(&other.1, "42").await, Some(1), "{how}");
                invalidate(how, &one.1).await;
                // Without a bus, a node knows a tag again after a second.
                pass(secs(2)).await;
                assert_eq!(get(&other.1, "42").await, None, "{how}, by the new deploy: {by_new}");
                // A node of the same version that starts afterwards.
                let later = world.node().await.namespace("users");
                let later = later.version(if by_new { 1 } else { 2 });
                assert_eq!(get(&later, "42").await, None, "{how}, by the new deploy: {by_new}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_value_of_the_other_version_is_stale_and_a_deleted_one_is_gone() {
    let world = World::new();
    for (how, left) in [("expire", Some(1)), ("delete", None), ("set", None)] {
        let old = world.node_where(|s| s.grace("1h")).await.namespace("users").version(1);
        let new = world.node_where(|s| s.grace("1h")).await.namespace("users").version(2);
        for handle in [&old, &new] {
            let made = handle.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) });
            made.await.unwrap();
        }
        invalidate(how, &new).await;
        settle().await;
        let fresh = old.get::<u32>("42").grace("off").await.unwrap();
        assert_eq!((fresh, get_stale(&old, "42").await), (None, left), "{how}");
        new.delete("42").await.unwrap();
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_handle_of_a_process_that_uses_versions_invalidates_them() {
    let world = World::new();
    let [(_, old), (node, new)] = deploys(&world).await;
    let outer: &Cache = &node;
    for handle in [outer.clone(), outer.namespace("users")] {
        for handle in [&old, &new] {
            handle.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
        }
        let key =
            if handle.get::<u32>("users:42").await.unwrap().is_some() { "users:42" } else { "42" };
        assert_eq!(get(&new, "42").await, Some(1));
        handle.delete(key).await.unwrap();
        settle().await;
        assert_eq!((get(&old, "42").await, get(&new, "42").await), (None, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_covers_the_namespaces_of_its_handle() {
    for world in worlds() {
        let (old, new) = (world.node().await.version(1), world.node().await.version(2));
        for handle in [&old, &new] {
            let eu = handle.namespace("eu");
            eu.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
        }
        new.namespace("eu").clear().await.unwrap();
        settle().await;
        assert_eq!(get(&new.namespace("eu"), "42").await, None);
        assert_eq!(get(&old.namespace("eu"), "42").await, None);
        old.namespace("eu").set("42", 2_u32).await.unwrap();
        new.namespace("eu").delete("42").await.unwrap();
        settle().await;
        assert_eq!(get(&old.namespace("eu"), "42").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_can_have_a_version_and_a_handle_another() {
    let world = World::new();
    let node = world.node_where(|s| s.version(2)).await;
    node.set("k", 1_u32).await.unwrap();
    let stored = world.l2.all_keys();
    assert_eq!(stored, ["bentocache:___bc:v:2:k"]);
    assert_eq!(get(&node.version(3), "k").await, None);
    assert_eq!(get(&node.version(2), "k").await, Some(1));
    assert_eq!(get(&node.version(3).version(2), "k").await, Some(1));
    node.delete("k").await.unwrap();
    assert!(world.l2.all_keys().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_delete_during_an_outage_reaches_the_other_version_afterwards() {
    let world = World::new();
    let [(_, old), (node, new)] = deploys(&world).await;
    for handle in [&old, &new] {
        handle.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
    }
    node.l2.on(Ops::DELETE).fail();
    new.delete("42").await.unwrap();
    node.l2.calm();
    pass(secs(10)).await;
    assert_eq!((get(&old, "42").await, get(&new, "42").await), (None, None));
    let later = world.node().await.namespace("users").version(1);
    assert_eq!(get(&later, "42").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_slow_factory_of_the_old_deploy_cannot_undo_a_delete_by_the_new_one() {
    let world = World::new();
    let [(_, old), (_, new)] = deploys(&world).await;
    let source = Source::held();
    let request = old.get_or_set("42", source.gives(1_u32));
    let reader = go(request);
    source.begun(1).await;
    new.delete("42").await.unwrap();
    settle().await;
    source.release();
    assert_eq!(reader.await.unwrap().unwrap(), 1);
    pass(ms(1)).await;
    assert_eq!(get(&old, "42").await, None);
}

#[tokio::test(start_paused = true)]
async fn counts_and_events_are_those_of_the_callers_keys() {
    let world = World::new();
    let [(_, old), (node, new)] = deploys(&world).await;
    for handle in [&old, &new] {
        handle.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
    }
    assert_eq!(new.delete_many(["42", "43"]).await.unwrap(), 1);
    assert_eq!(node.stats().deletes, 2);
    assert!(fail(&new, "42").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_handle_lists_the_keys_of_its_version() {
    for world in [World::new(), World::only_l1()] {
        let [(_, old), (_, new)] = deploys(&world).await;
        old.get_or_set("1", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
        new.get_or_set("2", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
        let mut listed = Vec::new();
        for handle in [&old, &new] {
            let mut keys = handle.keys("");
            while let Some(key) = keys.next().await {
                listed.push(key.unwrap());
            }
        }
        assert_eq!(listed, ["1", "2"]);
    }
}

#[tokio::test(start_paused = true)]
async fn add_invalidates_the_other_version() {
    let world = World::new();
    let [(_, old), (_, new)] = deploys(&world).await;
    old.get_or_set("42", |_| async { Ok::<_, Error>(1_u32) }).await.unwrap();
    assert!(new.add("42", 2_u32).await.unwrap());
    settle().await;
    assert_eq!((get(&old, "42").await, get(&new, "42").await), (None, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_looks_like_a_version_is_refused() {
    let node = World::new().node().await;
    for key in ["___bc:v:2:42", "users:___bc:v:2:42"] {
        let error = node.set(key, 1_u32).await.unwrap_err();
        assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
        assert!(error.to_string().contains("version"), "{error}");
    }
    node.set("x___bc:v:2", 1_u32).await.unwrap();
}
