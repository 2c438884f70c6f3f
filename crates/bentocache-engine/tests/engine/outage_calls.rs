//! What one call costs and says in an outage: one budget, skipped calls, one bad value of many, and
//! tags that L2 cannot hold.

use crate::common::{Node, World, fill, get, ms, pass, secs};
use crate::races::Source;
use bentocache::{Context, Error, EventKind, Store};
use bentocache_testkit::{ChaosL2, MapL2};
use tokio::time::Instant;

type Call<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

// ---- A call costs no more than it must ----

#[tokio::test(start_paused = true)]
async fn a_call_has_one_budget_however_many_calls_of_the_driver_it_needs() {
    let world = World::new();
    let a = world.node_where(|s| s.l2_circuit_breaker("off", 1).grace("1h")).await;
    for key in ["k", "l"] {
        a.set(key, 1_u32).tags(["t", "u"]).await.unwrap();
    }
    let changes: [(&str, Box<dyn Fn(Node) -> Call<Node>>); 7] = [
        (
            "delete",
            Box::new(|n| {
                Box::pin(async {
                    let _ = n.delete("k").await.unwrap();
                    n
                })
            }),
        ),
        (
            "delete_many",
            Box::new(|n| {
                Box::pin(async {
                    let _ = n.delete_many(["k", "l"]).await.unwrap();
                    n
                })
            }),
        ),
        (
            "expire_many",
            Box::new(|n| {
                Box::pin(async {
                    n.expire_many(["k", "l"]).await.unwrap();
                    n
                })
            }),
        ),
        (
            "pull",
            Box::new(|n| {
                Box::pin(async {
                    let _ = n.pull::<u32>("k").await.unwrap();
                    n
                })
            }),
        ),
        (
            "tags",
            Box::new(|n| {
                Box::pin(async {
                    n.delete_by_tag(["t", "u"]).await.unwrap();
                    n
                })
            }),
        ),
        (
            "set",
            Box::new(|n| {
                Box::pin(async {
                    n.set("k", 1_u32).tags(["v", "w"]).await.unwrap();
                    n
                })
            }),
        ),
        (
            "get_or_set",
            Box::new(|n| {
                Box::pin(async {
                    fill(&n, "new", 1).await;
                    n
                })
            }),
        ),
    ];
    let mut node = a;
    for (name, change) in &changes {
        node.l2.hang();
        let start = Instant::now();
        node = change(node).await;
        let took = start.elapsed();
        // A factory stands between a look and a write: these are two.
        let most = if *name == "get_or_set" { ms(2_010) } else { ms(1_010) };
        assert!(took >= secs(1) && took <= most, "{name}: {took:?}");
        node.l2.calm();
        pass(secs(30)).await;
    }
}

/// Nothing is known of the tags of the call, of those that the factory adds, and of the hidden ones of a
/// store that cannot clear.
#[tokio::test(start_paused = true)]
async fn a_cold_get_or_set_has_one_budget_before_its_factory_and_one_after_it() {
    for (world, is_many) in [
        (World::new(), false),
        (World::new(), true),
        (World::new().without_clear(), false),
        (World::new().without_clear(), true),
    ] {
        for (given, added) in [(None, None), (Some("t"), None), (None, Some("u"))] {
            let node = world.node_where(|s| s.l2_circuit_breaker("off", 1)).await;
            node.l2.hang();
            let start = Instant::now();
            let begun = std::sync::Arc::new(std::sync::Mutex::new(None));
            let begins = begun.clone();
            if is_many {
                let factory = move |cx: bentocache::ManyContext| {
                    *begins.lock().unwrap() = Some(start.elapsed());
                    cx.tags(added);
                    async { Ok::<_, Error>([("k".to_owned(), 1_u32), ("n:k".to_owned(), 1)]) }
                };
                let found = node.get_or_set_many(["k", "n:k"], factory).tags(given).await;
                assert_eq!(found.unwrap(), [Some(1); 2]);
            } else {
                let factory = move |cx: Context<u32>| {
                    *begins.lock().unwrap() = Some(start.elapsed());
                    cx.tags(added);
                    async { Ok::<_, Error>(1) }
                };
                assert_eq!(node.get_or_set("n:k", factory).tags(given).await.unwrap(), 1);
            }
            let took = [begun.lock().unwrap().unwrap(), start.elapsed()];
            let case = format!("many: {is_many}, {given:?}, {added:?}: {took:?}");
            assert!(took[0] >= secs(1) && took[0] <= ms(1_010), "{case}");
            assert!(took[1] >= secs(2) && took[1] <= ms(2_010), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_the_breaker_stops_are_skipped_and_not_failed() {
    let world = World::new();
    let a = world.node_where(|s| s.l2_circuit_breaker("1h", 5)).await;
    a.l2.cut();
    for _ in 0..1_000 {
        let _ = get(&a, "k").await;
    }
    let events = a.seen.take();
    let count = |is_so: fn(&EventKind<'_>) -> bool| {
        events.iter().filter(|event| is_so(&event.kind)).count()
    };
    assert_eq!(count(|e| matches!(e, EventKind::L2Failed { .. })), 5);
    assert_eq!(count(|e| matches!(e, EventKind::L2Skipped { operation: "get" })), 995);
}

// ---- One bad element ----

#[tokio::test(start_paused = true)]
async fn one_bad_value_of_many_costs_the_others_nothing() {
    let world = World::new();
    let node = world.node_where(|s| s.l2(ChaosL2::new(MapL2::new().max_value(200)))).await;
    let big = || "x".repeat(300);
    node.set("b", "old".to_owned()).await.unwrap();
    let values = [("a", "1".to_owned()), ("b", big()), ("c", "3".to_owned())];
    let error = node.set_many(values).await.unwrap_err();
    let Error::Keys { failed, of: 3 } = &error else { panic!("{error:?}") };
    assert_eq!(failed.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), ["b"]);
    assert!(
        error.to_string().contains("1 of 3 keys") && error.to_string().contains("200"),
        "{error}"
    );
    pass(secs(5)).await;
    let found: Vec<Option<String>> = node.get_many(["a", "b", "c"]).await.unwrap();
    assert_eq!(found, [Some("1".to_owned()), None, Some("3".to_owned())], "no old value either");

    let factory = move |_| async move {
        Ok::<_, Error>([("d".to_owned(), "4".to_owned()), ("e".to_owned(), big())])
    };
    let found = node.get_or_set_many(["d", "e"], factory).await.unwrap();
    assert_eq!(found, [Some("4".to_owned()), Some(big())]);
    let found: Option<String> = node.get("d").await.unwrap();
    assert_eq!(found.as_deref(), Some("4"));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_the_second_tier_refuses_reaches_the_caller_of_a_factory() {
    let l2 = ChaosL2::new(MapL2::new().max_value(200));
    let node = World::only_l2().node_where(|s: Store| s.l2(l2)).await;
    let value = node.get_or_set("k", |_| async { Ok::<_, Error>("x".repeat(300)) }).await;
    assert_eq!(value.unwrap().len(), 300);
}

// ---- Tags that L2 cannot hold ----

#[tokio::test(start_paused = true)]
async fn a_tag_that_could_never_be_invalidated_is_refused_where_it_is_given() {
    let l2 = || ChaosL2::new(MapL2::new().max_key(60));
    let node = World::new().node_where(|s| s.l2(l2())).await;
    let tag = "t".repeat(50);
    let is_refusal = |error: &Error| {
        matches!(error, Error::TagTooLong { most: 60, .. }) && error.to_string().contains("60")
    };
    assert!(is_refusal(&node.set("k", 1_u32).tags([&tag]).await.unwrap_err()));
    let source = Source::new();
    let call = node.get_or_set("k", source.gives(1_u32)).tags([&tag]);
    assert!(is_refusal(&call.await.unwrap_err()));
    let many = |_| async { Ok::<_, Error>([("k".to_owned(), 1_u32)]) };
    let many = node.get_or_set_many(["k"], many).tags([&tag]);
    assert!(is_refusal(&many.await.unwrap_err()));
    assert_eq!((source.runs(), get(&node, "k").await), (0, None));
    // A tag that a factory gives: its caller gets the value, which is stored nowhere.
    let factory = move |cx: Context<u32>| async move {
        cx.tags([tag]);
        Ok::<_, Error>(2)
    };
    assert_eq!(node.get_or_set("k", factory).await.unwrap(), 2);
    assert_eq!(get(&node, "k").await, None);
}
