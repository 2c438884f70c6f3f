//! `local`: values without serde, in L1 only, with everything else as for other values.

use std::sync::Arc;

use crate::common::{Runs, World, fill, get, ms, pass, secs, settle};
use bentocache::{Context, Error, Local, Memory, Source};
use bentocache_testkit::Ops;

/// Not serializable.
#[derive(Clone)]
struct Template(Arc<dyn Fn(u32) -> u32 + Send + Sync>);

fn adds(number: u32) -> Template {
    Template(Arc::new(move |to| to + number))
}

async fn result(local: &Local<Template>, key: &str) -> Option<u32> {
    local.get(key).await.unwrap().map(|template| (template.0)(1))
}

#[tokio::test(start_paused = true)]
async fn a_local_value_never_reaches_l2() {
    let node = World::new().node().await;
    let local = node.local::<Template>();
    local.set("a", adds(1)).await.unwrap();
    local.set_many([("b", adds(2)), ("c", adds(3))]).await.unwrap();
    local.set_forever("d", adds(4)).await.unwrap();
    let template = local.get_or_set("e", |_| async { Ok::<_, Error>(adds(5)) }).await.unwrap();
    assert_eq!((template.0)(1), 6);
    let many = |_| async { Ok::<_, Error>([("f", adds(6))]) };
    let found = local.get_or_set_many(["a", "f"], many).await.unwrap();
    assert_eq!(found.iter().flatten().map(|template| (template.0)(1)).collect::<Vec<_>>(), [2, 7]);
    for (key, value) in [("a", 2), ("b", 3), ("c", 4), ("d", 5), ("e", 6), ("f", 7)] {
        assert_eq!(result(&local, key).await, Some(value), "{key}");
        assert!(local.has(key).await.unwrap());
    }
    assert_eq!(local.pull("b").await.unwrap().map(|template| (template.0)(1)), Some(3));
    assert!(local.missing("b").await.unwrap());
    assert!(local.delete("a").await.unwrap());
    assert_eq!(local.delete_many(["c", "x"]).await.unwrap(), 1);
    local.expire("d").await.unwrap();
    assert_eq!(result(&local, "d").await, None);
    assert_eq!(node.l2.on(Ops::ALL).calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_key_share_a_factory_and_the_ttl_and_grace_hold() {
    for world in [World::new(), World::only_l1()] {
        let node = world.node_where(|s| s.grace("1h").timeout("none").grace_backoff("0s")).await;
        let (local, runs) = (node.local::<Template>(), Runs::new());
        let calls = (0..10).map(|_| {
            let (local, runs) = (local.clone(), runs.clone());
            tokio::spawn(async move {
                let factory = move |_| async move {
                    pass(ms(50)).await;
                    Ok::<_, Error>(adds(u32::try_from(runs.count()).unwrap()))
                };
                local.get_or_set("k", factory).ttl("10s").await.map(|template| (template.0)(1))
            })
        });
        for call in calls.collect::<Vec<_>>() {
            assert_eq!(call.await.unwrap().unwrap(), 2);
        }
        pass(secs(11)).await;
        let stale = local.get_or_set("k", |cx: Context<Template>| async move {
            assert_eq!(cx.stale().map(|template| (template.0)(1)), Some(2));
            cx.fail("down")
        });
        let (template, source) = stale.with_source().await.unwrap();
        assert_eq!(((template.0)(1), source), (2, Source::Stale));
        let same = local.get_or_set("k", |cx: Context<Template>| async move { cx.not_modified() });
        assert_eq!((same.await.unwrap().0)(1), 2);
        assert_eq!(runs.so_far(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_bus_and_tags_invalidate_local_values_on_every_node() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (on_a, on_b) = (a.local::<Template>(), b.local::<Template>());
    for invalidation in 0..5 {
        on_b.set("k", adds(1)).tags(["t"]).skip_bus_notify(true).await.unwrap();
        assert_eq!(result(&on_b, "k").await, Some(2));
        match invalidation {
            0 => drop(on_a.delete("k").await.unwrap()),
            1 => drop(a.delete("k").await.unwrap()),
            2 => on_a.delete_by_tag(["t"]).await.unwrap(),
            3 => on_a.clear().await.unwrap(),
            _ => on_a.set("k", adds(9)).await.unwrap(),
        }
        settle().await;
        assert_eq!(result(&on_b, "k").await, None, "invalidation {invalidation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_read_as_another_kind_of_value_is_a_miss() {
    let node = World::new().node().await;
    let local = node.local::<Template>();
    local.set("k", adds(1)).await.unwrap();
    assert_eq!(get(&node, "k").await, None);
    assert_eq!(node.local::<String>().get("k").await.unwrap(), None);
    assert_eq!(result(&local, "k").await, Some(2));
    fill(&node, "k", 7).await;
    assert_eq!(result(&local, "k").await, None);
    let again = local.get_or_set("k", |_| async { Ok::<_, Error>(adds(2)) }).await.unwrap();
    assert_eq!((again.0)(1), 3);
}

#[tokio::test(start_paused = true)]
async fn a_local_value_has_a_weight_for_the_limits_of_l1() {
    let store = bentocache::Store::new().l1(Memory::new().max_size("64kb"));
    let cache = bentocache::BentoCache::builder().store("s", store).build().await.unwrap();
    let local = cache.local::<[u64; 128]>();
    for i in 0..1_000_u64 {
        local.set(i, [i; 128]).await.unwrap();
    }
    let mut kept = 0;
    for i in 0..1_000_u64 {
        kept += usize::from(local.has(i).await.unwrap());
    }
    // 64 kB has room for at most 64 values of 1 kB.
    assert!((20..=64).contains(&kept), "{kept}");
}

#[tokio::test(start_paused = true)]
async fn a_gap_of_the_bus_makes_local_values_stale_because_nothing_can_confirm_them() {
    let node = World::new().node().await;
    let local = node.local::<Template>();
    local.set("k", adds(1)).await.unwrap();
    node.bus.cut();
    settle().await;
    assert_eq!(result(&local, "k").await, Some(2));
    node.bus.restore();
    pass(secs(10)).await;
    assert_eq!(result(&local, "k").await, None);
}
