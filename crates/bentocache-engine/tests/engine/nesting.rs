//! Factories that ask the cache: other keys never deadlock, their own key is an error.

use std::sync::Arc;

use crate::common::{Node, World, ms, secs};
use crate::races::{Source, calm, go};
use bentocache::{BentoCache, BoxError, Cache, Context, Error, Memory, Store, TokioTime};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// A deadlock would otherwise hang the test.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(secs(3_600), work).await.expect("a deadlock")
}

/// Whether `Reentrant` is among the causes of the error.
fn is_reentrant(error: &Error) -> bool {
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .any(|cause| matches!(cause.downcast_ref::<Error>(), Some(Error::Reentrant { .. })))
}

#[tokio::test(start_paused = true)]
async fn a_factory_may_ask_for_other_keys_to_any_depth() {
    fn deep(cache: Cache, depth: u32) -> crate::races::Work<u32> {
        Box::pin(async move {
            if depth == 0 {
                return Ok(0);
            }
            let inner = cache.clone();
            let call = cache.get_or_set(format!("k{depth}"), move |_| deep(inner, depth - 1));
            Ok(call.await.unwrap() + 1)
        })
    }
    let node = World::new().node().await;
    assert_eq!(soon(deep((**node).clone(), 50)).await.unwrap(), 50);
    assert_eq!(crate::common::get(&node, "k1").await, Some(0));
    assert_eq!(crate::common::get(&node, "k50").await, Some(49));
}

#[tokio::test(start_paused = true)]
async fn nested_flights_never_wait_for_a_lock_that_keys_share() {
    // Many keys at once, each asking for another: with striped locks some would meet.
    let node = World::only_l1().node().await;
    let mut calls = JoinSet::new();
    for i in 0..2_000_u32 {
        let inner = node.cache.clone();
        calls.spawn(
            node.get_or_set(format!("outer{i}"), move |_: Context<u32>| async move {
                tokio::task::yield_now().await;
                let source = Source::slow(ms(1));
                inner.get_or_set(format!("inner{}", i % 97), source.gives(i % 97)).await
            })
            .into_future(),
        );
    }
    let sum: u64 = soon(calls.join_all()).await.into_iter().map(|r| u64::from(r.unwrap())).sum();
    assert_eq!(sum, (0..2_000_u64).map(|i| i % 97).sum::<u64>());
}

/// A call for `k` whose factory asks for `k`, by a handle that `again` makes.
async fn asks_for_itself(node: &Node, again: impl FnOnce(&BentoCache) -> (Cache, String)) -> Error {
    let (handle, key) = again(&node.cache);
    let call = node.get_or_set("n:k", move |_: Context<u32>| async move {
        handle.get_or_set(key, |_| async { Ok::<u32, Error>(1) }).await
    });
    soon(call.into_future()).await.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_asks_for_its_own_key_gets_an_error_instead_of_hanging() {
    for world in [World::only_l1(), World::new()] {
        let node = world.node().await;
        let error = asks_for_itself(&node, |cache| ((**cache).clone(), "n:k".into())).await;
        let inner = error.factory::<Error>().expect("the inner call's error");
        assert!(matches!(inner, Error::Reentrant { .. }), "{inner:?}");
        assert_eq!(inner.key(), Some("n:k"));
        // The key works again.
        assert_eq!(crate::common::fill(&node, "n:k", 5).await, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn its_own_key_is_recognised_through_any_handle_and_any_option() {
    let node = World::new().node().await;
    let error = asks_for_itself(&node, |cache| (cache.namespace("n"), "k".into())).await;
    assert!(is_reentrant(&error), "{error:?}");
    let error = asks_for_itself(&node, |cache| (cache.store("s").unwrap(), "n:k".into())).await;
    assert!(is_reentrant(&error), "{error:?}");

    for force in [false, true] {
        let inner = node.cache.clone();
        let call = node.get_or_set("k", move |_: Context<u32>| async move {
            let again = inner.get_or_set("k", |_| async { Ok::<u32, Error>(1) });
            again.force_fresh(force).grace("1h").timeout("0s").lock_timeout("1s").await
        });
        assert!(is_reentrant(&soon(call.into_future()).await.unwrap_err()));
    }
    let inner = node.cache.clone();
    let call = node.get_or_set("k", move |_: Context<Vec<Option<u32>>>| async move {
        inner.get_or_set_many(["a", "k"], |_| async { Ok::<[(String, u32); 0], Error>([]) }).await
    });
    assert!(is_reentrant(&soon(call.into_future()).await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn its_own_key_is_recognised_further_down() {
    let node = World::new().node().await;
    let (one, two) = (node.cache.clone(), node.cache.clone());
    let call = node.get_or_set("a", move |_: Context<u32>| async move {
        one.get_or_set("b", move |_: Context<u32>| async move {
            two.get_or_set("a", |_| async { Ok::<u32, Error>(1) }).await
        })
        .await
    });
    let error = soon(call.into_future()).await.unwrap_err();
    assert!(is_reentrant(&error), "{error:?}");
    assert_eq!(
        crate::common::fill(&node, "a", 1).await + crate::common::fill(&node, "b", 2).await,
        3
    );
}

#[tokio::test(start_paused = true)]
async fn its_own_key_is_recognised_among_many() {
    let node = World::new().node().await;
    let inner = node.cache.clone();
    let many = node.get_or_set_many(["a", "b"], move |_| {
        let inner = inner.clone();
        async move {
            let b = inner.get_or_set("b", |_| async { Ok::<u32, Error>(1) }).await?;
            Ok::<_, Error>([("a".to_owned(), b)])
        }
    });
    let error = soon(many.into_future()).await.unwrap_err();
    assert!(is_reentrant(&error), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_same_key_of_another_store_is_another_key() {
    let memory = || Store::new().l1(Memory::new());
    let cache = BentoCache::builder()
        .clock(TokioTime::new())
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let b = cache.store("b").unwrap();
    let call = cache.get_or_set("k", move |_: Context<u32>| async move {
        b.get_or_set("k", |_| async { Ok::<u32, Error>(7) }).await
    });
    assert_eq!(soon(call.into_future()).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_factory_may_get_set_and_delete_its_own_key() {
    let node = World::new().node().await;
    let inner = node.cache.clone();
    let call = node.get_or_set("k", move |_: Context<u32>| async move {
        assert_eq!(inner.get::<u32>("k").await?, None);
        inner.set("k", 5_u32).await?;
        assert_eq!(inner.get::<u32>("k").await?, Some(5));
        inner.get_or_set("k", |_| async { Ok::<u32, Error>(6) }).await
    });
    // What it set itself is newer than what it began to produce.
    assert_eq!(soon(call.into_future()).await.unwrap(), 5);
    assert_eq!(crate::common::get(&node, "k").await, Some(5));
}

/// Asks for `own` with a factory that, when all are there, asks for `other`.
fn crossing(
    cache: &Cache,
    own: &'static str,
    other: &'static str,
    all: &Arc<Barrier>,
) -> tokio::task::JoinHandle<Result<u32, Error>> {
    let (inner, all) = (cache.clone(), all.clone());
    go(cache.get_or_set(own, move |_: Context<u32>| async move {
        all.wait().await;
        inner.get_or_set(other, |_| async { Ok::<u32, Error>(100) }).await.map(|v| v + 1)
    }))
}

#[tokio::test(start_paused = true)]
async fn two_factories_that_wait_for_each_other_both_end() {
    for world in [World::only_l1(), World::new()] {
        let node = world.node().await;
        let both = Arc::new(Barrier::new(2));
        let (a, b) = (crossing(&node, "a", "b", &both), crossing(&node, "b", "a", &both));
        let (a, b) = soon(async { (a.await.unwrap(), b.await.unwrap()) }).await;
        let (a, b) = (a.unwrap(), b.unwrap());
        // One of them ran the other's factory itself: 101, and the other waited for that: 102.
        let mut values = [a, b];
        values.sort_unstable();
        assert_eq!(values, [101, 102]);
        assert_eq!(crate::common::fill(&node, "a", 0).await, a);
    }
}

#[tokio::test(start_paused = true)]
async fn a_circle_of_five_ends_too() {
    let node = World::new().node().await;
    let keys = ["a", "b", "c", "d", "e"];
    let all = Arc::new(Barrier::new(5));
    let calls: Vec<_> = (0..5).map(|i| crossing(&node, keys[i], keys[(i + 1) % 5], &all)).collect();
    for call in calls {
        assert!(soon(call).await.unwrap().unwrap() > 100);
    }
}

#[tokio::test(start_paused = true)]
async fn circles_through_many_keys_end_too() {
    let node = World::new().node().await;
    let both = Arc::new(Barrier::new(2));
    let crossing = |own: [&'static str; 2], other: [&'static str; 2]| {
        let (inner, both) = (node.cache.clone(), both.clone());
        go(node.get_or_set_many(own, move |cx| {
            let (inner, both) = (inner.clone(), both.clone());
            async move {
                both.wait().await;
                let of = |cx: bentocache::ManyContext| async move {
                    let of = |key: &String| (key.clone(), 7_u32);
                    Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
                };
                inner.get_or_set_many(other, of).await?;
                of(cx).await
            }
        }))
    };
    let (one, two) = (crossing(["a", "b"], ["c", "d"]), crossing(["c", "d"], ["a", "b"]));
    for call in [one, two] {
        assert_eq!(soon(call).await.unwrap().unwrap(), [Some(7), Some(7)]);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_many_keys_in_opposite_orders_do_not_wait_for_each_other_in_a_circle() {
    let node = World::new().node().await;
    let mut calls = JoinSet::new();
    for i in 0..100_u32 {
        let mut keys = vec!["a", "b", "c", "d"];
        keys.rotate_left(i as usize % 4);
        if i % 2 == 0 {
            keys.reverse();
        }
        calls.spawn(
            node.get_or_set_many(keys, |cx| async move {
                tokio::time::sleep(ms(3)).await;
                let of = |key: &String| (key.clone(), 7_u32);
                Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
            })
            .ttl("2ms")
            .into_future(),
        );
        tokio::time::sleep(ms(1)).await;
    }
    for result in soon(calls.join_all()).await {
        assert_eq!(result.unwrap(), [Some(7); 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn two_stale_keys_that_refresh_each_other_in_the_background_both_end() {
    let node = World::new().node_where(|s| s.grace("1h").ttl("1s")).await;
    node.set("a", 1_u32).await.unwrap();
    node.set("b", 2_u32).await.unwrap();
    crate::common::pass(secs(2)).await;
    let both = Arc::new(Barrier::new(2));
    let (a, b) = (crossing(&node, "a", "b", &both), crossing(&node, "b", "a", &both));
    assert_eq!((a.await.unwrap().unwrap(), b.await.unwrap().unwrap()), (1, 2));
    crate::common::pass(secs(1)).await;
    // Each was served the other's stale value at once.
    assert_eq!(node.document("a").unwrap()["value"], 3);
    assert_eq!(node.document("b").unwrap()["value"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_nested_call_whose_outer_callers_are_gone_still_ends() {
    let node = World::new().node().await;
    let source = Source::held();
    let (inner, factory) = (node.cache.clone(), source.gives(1_u32));
    let outer = go(node.get_or_set("outer", move |_: Context<u32>| async move {
        inner.get_or_set("inner", factory).await
    }));
    source.begun(1).await;
    outer.abort();
    calm().await;
    source.release();
    calm().await;
    assert_eq!(crate::common::get(&node, "outer").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_inner_failure_is_found_through_the_outer_error() {
    let node = World::new().node().await;
    let inner = node.cache.clone();
    let call = node.get_or_set("outer", move |_: Context<u32>| async move {
        Ok::<u32, BoxError>(inner.get_or_set("inner", Source::new().fails(4)).await?)
    });
    assert_eq!(crate::races::down(call.await), 4);
}

/// `a` asks for `b`, `c` for `b`, and `b` for `a`, which closes a circle: so it runs a factory of
/// its own for `a`. That one asks for `c`, which waits for `b`, which waits for it.
async fn closes_a_second_circle(many: bool) {
    let node = World::only_l1().node().await;
    let (cache, begun) = (node.cache.clone(), Arc::new(Barrier::new(3)));
    let asks = |key: &'static str, inner: Cache, then: &'static str| {
        let begun = begun.clone();
        node.get_or_set(key, move |_: Context<u32>| async move {
            begun.wait().await;
            calm().await;
            inner.get_or_set(then, |_| async { Ok::<u32, Error>(1) }).await
        })
    };
    let (a, c) = (asks("a", (*cache).clone(), "b"), asks("c", (*cache).clone(), "b"));
    let b = {
        let (begun, cache) = (begun.clone(), cache.clone());
        node.get_or_set("b", move |_: Context<u32>| async move {
            begun.wait().await;
            // The others wait for this one by now.
            calm().await;
            calm().await;
            let inner = cache.clone();
            let ask_c =
                async move || inner.get_or_set("c", |_| async { Ok::<u32, Error>(2) }).await;
            if many {
                let produce = move |_| {
                    let ask_c = ask_c.clone();
                    async move { Ok::<_, Error>([("a".to_owned(), ask_c().await?)]) }
                };
                let found = cache.get_or_set_many(["a"], produce).await?;
                return Ok(found[0].unwrap_or(0));
            }
            cache.get_or_set("a", move |_| async move { ask_c().await }).await
        })
    };
    let all = async { tokio::join!(a.into_future(), b.into_future(), c.into_future()) };
    let (a, b, c) = soon(all).await;
    assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), (2, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_factory_run_to_get_out_of_a_circle_closes_no_other() {
    closes_a_second_circle(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_factory_run_for_many_keys_to_get_out_of_a_circle_closes_no_other() {
    closes_a_second_circle(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_nets_of_nested_calls_end_on_many_threads() {
    fn ask(cache: Cache, keys: Vec<u32>) -> crate::races::Work<u32> {
        Box::pin(async move {
            let Some((first, rest)) = keys.split_first() else { return Ok(1) };
            let (inner, rest) = (cache.clone(), rest.to_vec());
            let call = cache.get_or_set(format!("k{first}"), move |_| ask(inner, rest));
            // A key met again further up is an error, never a wait without an end.
            Ok(call.ttl("1ms").await.unwrap_or(0))
        })
    }
    let cache =
        BentoCache::builder().store("s", Store::new().l1(Memory::new())).build().await.unwrap();
    let mut calls = JoinSet::new();
    for i in 0..400_u32 {
        let keys = (0..5).map(|j| (i * 31 + j * (7 + i % 5)) % 6).collect();
        calls.spawn(ask((*cache).clone(), keys));
    }
    let ended = tokio::time::timeout(secs(30), calls.join_all()).await.expect("a deadlock");
    assert_eq!(ended.len(), 400);
}
