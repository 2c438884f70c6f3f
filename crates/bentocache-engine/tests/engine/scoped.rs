//! `get_or_set_scoped`: the factory borrows, runs in its caller's future, and ends with it.

use std::sync::Arc;

use crate::common::{Node, Runs, World, get, ms, pass, secs, settle};
use bentocache::{Context, Error, Failure};
use bentocache_testkit::{ChaosLock, MapLock, Ops};
use tokio::sync::Notify;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn the_factory_borrows_and_its_value_is_stored_in_every_tier() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        let rows = [1_u32, 2, 3];
        let sum = |_| async { Ok::<_, Error>(rows.iter().sum::<u32>()) };
        assert_eq!(node.get_or_set_scoped("k", sum).await.unwrap(), 6);
        assert_eq!(get(&node, "k").await, Some(6));
        let never = |_| async { Err::<u32, _>(rows.len().to_string()) };
        assert_eq!(node.get_or_set_scoped("k", never).await.unwrap(), 6);
        let failed = node.get_or_set_scoped("other", never).await.unwrap_err();
        assert!(failed.to_string().contains('3'), "{failed}");
        let off = world.node_where(|s| s.enabled(false)).await;
        assert_eq!(off.get_or_set_scoped("k", sum).await.unwrap(), 6);
    }
}

/// A call whose factory takes 10 ms, in a task.
fn call(node: &Arc<Node>, value: u32, runs: &Runs) -> tokio::task::JoinHandle<Result<u32, Error>> {
    let (node, runs) = (node.clone(), runs.clone());
    tokio::spawn(async move {
        let runs = &runs;
        let factory = move |_: Context<u32>| async move {
            runs.count();
            pass(ms(10)).await;
            Ok::<_, Error>(value)
        };
        node.get_or_set_scoped("k", factory).tags(["t"]).await
    })
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_key_share_one_run_with_other_calls_too() {
    let node = Arc::new(World::new().node().await);
    let runs = Runs::new();
    let calls: Vec<_> = (0..10).map(|_| call(&node, 1, &runs)).collect();
    settle().await;
    let ordinary = node.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) }).await.unwrap();
    assert_eq!(ordinary, 1);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 1);
    }
    assert_eq!(runs.so_far(), 1);
}

/// Whatever the leader awaits when it is dropped, one of those who wait takes over.
#[tokio::test(start_paused = true)]
async fn if_the_leader_is_dropped_at_any_await_exactly_one_waiter_takes_over() {
    let mut took_over = 0;
    for dropped_after in 0..40 {
        let world = World::new();
        let node = Arc::new(world.node().await);
        // Every step in L2 is an await of its own.
        node.l2.slow(ms(3));
        let (first, others) = (Runs::new(), Runs::new());
        let leader = call(&node, 1, &first);
        tokio::task::yield_now().await;
        let waiters: Vec<_> = (0..100).map(|_| call(&node, 2, &others)).collect();
        pass(ms(dropped_after)).await;
        leader.abort();
        let mut values = Vec::new();
        for waiter in waiters {
            values.push(waiter.await.unwrap().unwrap());
        }
        assert_eq!(values, [values[0]; 100], "after {dropped_after} ms");
        assert!(others.so_far() <= 1, "{} runs after {dropped_after} ms", others.so_far());
        assert_eq!(others.so_far() == 1, values[0] == 2, "after {dropped_after} ms");
        took_over += others.so_far();
        node.l2.calm();
        pass(secs(1)).await;
        // Both tiers agree, also when the leader was dropped while its value was being stored.
        assert_eq!(get(&node, "k").await, Some(values[0]), "after {dropped_after} ms");
        assert_eq!(world.node().await.get("k").await.unwrap(), Some(values[0]));
    }
    assert!((10..40).contains(&took_over), "{took_over} of 40 leaders were dropped in time");
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_call_takes_over_from_a_dropped_scoped_one() {
    for many in [false, true] {
        let node = Arc::new(World::new().node().await);
        let leader = call(&node, 1, &Runs::new());
        settle().await;
        let waiter = tokio::spawn({
            let node = node.clone();
            async move {
                if many {
                    let factory = |_| async { Ok::<_, Error>([("k", 2_u32)]) };
                    return node.get_or_set_many(["k"], factory).await.map(|all| all[0]);
                }
                node.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) }).await.map(Some)
            }
        });
        settle().await;
        leader.abort();
        assert_eq!(waiter.await.unwrap().unwrap(), Some(2), "many: {many}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_is_stored_in_both_tiers_even_if_its_caller_is_dropped_then() {
    let world = World::new();
    let node = Arc::new(world.node().await);
    node.l2.on(Ops::SET).hold();
    let leader = tokio::spawn({
        let node = node.clone();
        async move { node.get_or_set_scoped("k", |_| async { Ok::<_, Error>(1_u32) }).await }
    });
    settle().await;
    assert_eq!(node.l2.on(Ops::SET).held_now(), 1, "it is being stored");
    leader.abort();
    settle().await;
    node.l2.on(Ops::SET).release();
    settle().await;
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(world.node().await.get("k").await.unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_hard_timeout_drops_the_factory_and_there_is_no_soft_timeout() {
    let node = World::new().node_where(|s| s.grace("1h").grace_backoff("0s")).await;
    let dropped = Notify::new();
    struct TellsDrop<'a>(&'a Notify);
    impl Drop for TellsDrop<'_> {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let hangs = |_| async {
        let _tells = TellsDrop(&dropped);
        std::future::pending::<Result<u32, Error>>().await
    };
    let began = Instant::now();
    let error = node.get_or_set_scoped("k", hangs).hard_timeout("2s").await.unwrap_err();
    assert!(matches!(error, Error::HardTimeout { .. }), "{error:?}");
    assert_eq!(began.elapsed(), secs(2));
    dropped.notified().await;

    // The default soft timeout is 0, but this caller waits for its factory.
    node.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let slow = |cx: Context<u32>| async move {
        assert_eq!(cx.stale(), Some(&1));
        pass(secs(1)).await;
        Ok::<_, Error>(2_u32)
    };
    assert_eq!(node.get_or_set_scoped("k", slow).await.unwrap(), 2);
    pass(secs(3_600)).await;
    // A failure still serves the stale value.
    let fails = |_| async { Err::<u32, _>("down") };
    assert_eq!(node.get_or_set_scoped("k", fails).await.unwrap(), 2);
    let gone = |cx: Context<u32>| async move { cx.gone::<u32>() };
    assert!(matches!(node.get_or_set_scoped("k", gone).await, Err(Error::Gone { .. })));
    assert_eq!(node.get::<u32>("k").grace("1h").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_over_in_a_closed_store() {
    let node = Arc::new(World::new().node().await);
    let leader = call(&node, 1, &Runs::new());
    tokio::task::yield_now().await;
    let others = Runs::new();
    let waiter = call(&node, 2, &others);
    pass(ms(2)).await;
    let closing = tokio::spawn({
        let node = node.clone();
        async move { node.disconnect().await }
    });
    pass(ms(2)).await;
    leader.abort();
    assert!(matches!(waiter.await.unwrap(), Err(Error::Closed { .. })));
    assert_eq!(others.so_far(), 0);
    closing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_same_key_from_inside_its_factory_is_an_error() {
    let node = World::new().node().await;
    let outer = node.get_or_set_scoped("k", |_| async {
        node.get_or_set_scoped("k", |_| async { Ok::<_, Error>(1_u32) }).await.map_err(Failure::new)
    });
    let error = outer.await.unwrap_err();
    assert!(matches!(error.factory::<Error>(), Some(Error::Reentrant { .. })), "{error:?}");
    let nested = node.get_or_set_scoped("a", |_| async {
        node.get_or_set_scoped("b", |_| async { Ok::<_, Error>(1_u32) }).await
    });
    assert_eq!(nested.await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_granted_to_a_dropped_caller_is_released() {
    let (world, locks) = (World::new(), MapLock::new());
    let lock = ChaosLock::new(locks.clone());
    let chaos = lock.chaos();
    let node = Arc::new(world.node_where(|s| s.lock(lock)).await);
    chaos.hold_after();
    let leader = call(&node, 1, &Runs::new());
    settle().await;
    assert!(locks.holder("bentocache:k").is_some(), "granted, but nobody knows yet");
    leader.abort();
    settle().await;
    chaos.calm();
    chaos.release();
    settle().await;
    assert_eq!(locks.holder("bentocache:k"), None);
}

#[test]
fn a_factory_of_a_blocking_call_borrows_and_runs_on_the_calling_thread() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cache = runtime.block_on(async {
        let store = bentocache::Store::new().l1(bentocache::Memory::new());
        bentocache::BentoCache::builder().store("s", store).build().await.unwrap().blocking()
    });
    let (rows, here) = ([1_u32, 2, 3], std::thread::current().id());
    let sum = |_: &Context<u32>| {
        assert_eq!(std::thread::current().id(), here);
        Ok::<_, Error>(rows.iter().sum::<u32>())
    };
    assert_eq!(cache.get_or_set_scoped("k", sum).unwrap(), 6);
    assert_eq!(cache.get("k").unwrap(), Some(6_u32));
}
