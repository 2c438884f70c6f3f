//! The lock between processes (behaviour, section 10): of all nodes, one runs the factory.

use std::collections::HashMap;
use std::time::Duration;

use crate::common::{Node, Runs, World, fail, get, ms, pass, secs, settle};
use bentocache::driver::LockDriver;
use bentocache::{Error, EventKind, ManyContext};
use bentocache_testkit::{Chaos, ChaosLock, MapLock, Ops};
use tokio::time::Instant;

struct Locked {
    world: World,
    lock: MapLock,
}

impl Locked {
    fn new() -> Self {
        Self { world: World::new(), lock: MapLock::new() }
    }

    async fn node(&self) -> (Node, Chaos) {
        let lock = ChaosLock::new(self.lock.clone());
        let chaos = lock.chaos();
        let options = |s: bentocache::Store| s.lock(lock).lock_lease("1s").grace("1h");
        (self.world.node_where(options).await, chaos)
    }

    fn holder(&self) -> Option<String> {
        self.lock.holder("bentocache:k")
    }
}

/// `get_or_set` of `k` in a task, with a slow factory.
fn slowly(
    node: &Node,
    value: u32,
    takes: Duration,
    runs: &Runs,
) -> tokio::task::JoinHandle<Result<u32, Error>> {
    let (cache, runs) = (node.cache.clone(), runs.clone());
    tokio::spawn(async move {
        let factory = move |_| async move {
            runs.count();
            pass(takes).await;
            Ok::<_, Error>(value)
        };
        cache.get_or_set("k", factory).await
    })
}

#[tokio::test(start_paused = true)]
async fn of_all_nodes_one_runs_the_factory_and_the_others_read_what_it_stored() {
    let locked = Locked::new();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(locked.node().await.0);
    }
    let runs = Runs::new();
    let calls: Vec<_> =
        (0_u32..).zip(&nodes).map(|(i, node)| slowly(node, i, ms(300), &runs)).collect();
    let mut values = Vec::new();
    for call in calls {
        values.push(call.await.unwrap().unwrap());
    }
    assert_eq!(runs.so_far(), 1);
    assert_eq!(values, [values[0]; 4]);
    settle().await;
    assert_eq!(locked.holder(), None, "it was given back");
}

#[tokio::test(start_paused = true)]
async fn the_others_have_the_value_soon_after_it_was_stored() {
    let locked = Locked::new();
    let ((one, _), (two, _)) = (locked.node().await, locked.node().await);
    let runs = Runs::new();
    let start = Instant::now();
    let (first, second) = (slowly(&one, 1, secs(5), &runs), slowly(&two, 2, secs(5), &runs));
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert!(start.elapsed() < ms(5_200), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_gets_the_lease_looks_again_before_it_runs_its_factory() {
    let locked = Locked::new();
    let ((one, chaos), (two, _)) = (locked.node().await, locked.node().await);
    let runs = Runs::new();
    chaos.on(Ops::ACQUIRE).hold();
    let first = slowly(&one, 1, Duration::ZERO, &runs);
    while chaos.held_now() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(slowly(&two, 2, Duration::ZERO, &runs).await.unwrap().unwrap(), 2);
    while locked.holder().is_some() {
        tokio::task::yield_now().await;
    }
    chaos.release();
    assert_eq!(first.await.unwrap().unwrap(), 2);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_for_as_long_as_the_factory_runs() {
    let locked = Locked::new();
    let ((one, _), (two, _)) = (locked.node().await, locked.node().await);
    let runs = Runs::new();
    let first = slowly(&one, 1, secs(20), &runs);
    settle().await;
    let second = slowly(&two, 2, secs(1), &runs);
    assert_eq!((first.await.unwrap().unwrap(), second.await.unwrap().unwrap()), (1, 1));
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_when_the_factory_fails() {
    let locked = Locked::new();
    let (node, _) = locked.node().await;
    fail(&node, "k").await.unwrap_err();
    settle().await;
    assert_eq!(locked.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_when_the_factory_panics() {
    let locked = Locked::new();
    let (node, _) = locked.node().await;
    let factory = |cx: bentocache::Context<u32>| async move {
        assert_ne!(cx.key(), "k", "boom");
        Ok::<_, Error>(1)
    };
    node.get_or_set("k", factory).await.unwrap_err();
    settle().await;
    assert_eq!(locked.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_when_the_caller_is_gone_and_the_factory_has_ended() {
    let locked = Locked::new();
    let (node, _) = locked.node().await;
    let call = slowly(&node, 1, ms(300), &Runs::new());
    pass(ms(100)).await;
    call.abort();
    pass(ms(100)).await;
    assert!(locked.holder().is_some(), "the factory goes on");
    pass(ms(200)).await;
    assert_eq!(locked.holder(), None);
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_before_disconnect_returns() {
    let locked = Locked::new();
    let (node, _) = locked.node().await;
    let call = slowly(&node, 1, ms(300), &Runs::new());
    pass(ms(100)).await;
    node.disconnect().await.unwrap();
    assert_eq!(locked.holder(), None);
    drop(call.await);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_died_is_waited_for_no_longer_than_its_lease() {
    let locked = Locked::new();
    let (node, _) = locked.node().await;
    assert!(locked.lock.acquire("bentocache:k", "the dead", secs(1)).await.unwrap());
    let start = Instant::now();
    assert_eq!(node.fill("k", 1).await, 1);
    assert!((ms(1_000)..ms(1_200)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn when_the_lock_fails_each_node_goes_on_alone() {
    let locked = Locked::new();
    let (node, chaos) = locked.node().await;
    chaos.fail();
    assert_eq!(node.fill("k", 1).await, 1);
    assert_eq!(node.seen.count(|kind| matches!(kind, EventKind::LockFailed { .. })), 1);
    // And is not asked again for a while.
    let calls = chaos.on(Ops::ACQUIRE).calls();
    assert_eq!(node.fill("other", 2).await, 2);
    assert_eq!(chaos.on(Ops::ACQUIRE).calls(), calls);
    chaos.calm();
    pass(secs(2)).await;
    assert_eq!(node.fill("third", 3).await, 3);
    assert_eq!(chaos.on(Ops::ACQUIRE).calls(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_or_a_release_that_fails_is_a_failure_of_the_lock() {
    for failing in [Ops::RENEW, Ops::RELEASE] {
        let locked = Locked::new();
        let (node, chaos) = locked.node().await;
        chaos.on(failing).fail_next(1);
        assert_eq!(slowly(&node, 1, ms(500), &Runs::new()).await.unwrap().unwrap(), 1);
        settle().await;
        assert_eq!(node.seen.count(|kind| matches!(kind, EventKind::LockFailed { .. })), 1);
        let calls = chaos.on(Ops::ACQUIRE).calls();
        assert_eq!(node.fill("other", 2).await, 2);
        assert_eq!(chaos.on(Ops::ACQUIRE).calls(), calls, "left alone for a while");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_hangs_delays_one_factory_by_half_a_second() {
    let locked = Locked::new();
    let (node, chaos) = locked.node().await;
    chaos.hang();
    let start = Instant::now();
    assert_eq!(node.fill("k", 1).await, 1);
    assert_eq!(node.fill("other", 2).await, 2);
    assert!(start.elapsed() <= ms(510), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_by_a_call_that_lost_its_answer_is_given_back() {
    let locked = Locked::new();
    let (node, chaos) = locked.node().await;
    chaos.on(Ops::ACQUIRE).fail_late();
    assert_eq!(node.fill("k", 1).await, 1);
    settle().await;
    assert_eq!(locked.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_while_another_node_is_at_it() {
    let locked = Locked::new();
    let ((one, _), (two, _)) = (locked.node().await, locked.node().await);
    one.set("k", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    let runs = Runs::new();
    let start = Instant::now();
    assert_eq!(slowly(&one, 2, secs(5), &runs).await.unwrap().unwrap(), 1);
    assert_eq!(slowly(&two, 3, secs(5), &runs).await.unwrap().unwrap(), 1);
    assert!(start.elapsed() < ms(100), "{:?}", start.elapsed());
    pass(secs(6)).await;
    assert_eq!((get(&one, "k").await, get(&two, "k").await, runs.so_far()), (Some(2), Some(2), 1));
}

#[tokio::test(start_paused = true)]
async fn after_the_lock_timeout_a_node_runs_its_own_factory() {
    let locked = Locked::new();
    let ((one, _), (two, _)) = (locked.node().await, locked.node().await);
    let runs = Runs::new();
    let first = slowly(&one, 1, secs(30), &runs);
    settle().await;
    let start = Instant::now();
    let own = two.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) }).lock_timeout("2s");
    assert_eq!(own.await.unwrap(), 2);
    assert!((ms(1_900)..ms(2_300)).contains(&start.elapsed()), "{:?}", start.elapsed());
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_ahead_of_expiry_is_left_to_the_node_that_is_at_it() {
    let locked = Locked::new();
    let ((one, _), (two, _)) = (locked.node().await, locked.node().await);
    one.set("k", 1_u32).ttl("10s").await.unwrap();
    assert_eq!(get(&two, "k").await, Some(1));
    pass(secs(9)).await;
    let runs = Runs::new();
    for node in [&one, &two] {
        let runs = runs.clone();
        let factory = move |_| async move {
            runs.count();
            pass(ms(100)).await;
            Ok::<_, Error>(2_u32)
        };
        assert_eq!(node.get_or_set("k", factory).early_refresh(0.5).await.unwrap(), 1);
    }
    pass(secs(1)).await;
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_forced_fresh_value_needs_no_lease() {
    let locked = Locked::new();
    let ((one, _), (two, chaos)) = (locked.node().await, locked.node().await);
    let first = slowly(&one, 1, secs(5), &Runs::new());
    settle().await;
    let own = two.get_or_set("k", |_| async { Ok::<_, Error>(2_u32) }).force_fresh(true);
    assert_eq!(own.await.unwrap(), 2);
    assert_eq!(chaos.on(Ops::ACQUIRE).calls(), 0);
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn many_keys_are_produced_once_by_all_nodes_together() {
    let locked = Locked::new();
    let ((one, _), (two, _)) = (locked.node().await, locked.node().await);
    let runs = Runs::new();
    let all = |node: &Node, value: u32, keys: [&'static str; 3]| {
        let (cache, runs) = (node.cache.clone(), runs.clone());
        tokio::spawn(async move {
            let factory = move |cx: ManyContext| {
                let runs = runs.clone();
                async move {
                    let mut values = HashMap::new();
                    for key in cx.keys() {
                        runs.count();
                        values.insert(key.clone(), value);
                    }
                    pass(ms(300)).await;
                    Ok::<_, Error>(values)
                }
            };
            cache.get_or_set_many(keys, factory).await.unwrap()
        })
    };
    let first = all(&one, 1, ["a", "b", "c"]);
    settle().await;
    let second = all(&two, 2, ["b", "c", "d"]);
    assert_eq!(first.await.unwrap(), [Some(1), Some(1), Some(1)]);
    assert_eq!(second.await.unwrap(), [Some(1), Some(1), Some(2)]);
    assert_eq!(runs.so_far(), 4, "each key once");
}

#[tokio::test(start_paused = true)]
async fn a_call_for_many_keys_that_gets_a_lease_looks_again_before_it_runs_its_factory() {
    let locked = Locked::new();
    let ((one, chaos), (two, _)) = (locked.node().await, locked.node().await);
    let runs = Runs::new();
    chaos.on(Ops::ACQUIRE).hold();
    let cache = one.cache.clone();
    let first = tokio::spawn(async move {
        let unwanted =
            |_: ManyContext| async { Err::<HashMap<String, u32>, _>("the source was called") };
        cache.get_or_set_many(["k"], unwanted).await
    });
    while chaos.held_now() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(slowly(&two, 2, Duration::ZERO, &runs).await.unwrap().unwrap(), 2);
    while locked.holder().is_some() {
        tokio::task::yield_now().await;
    }
    chaos.release();
    assert_eq!(first.await.unwrap().unwrap(), [Some(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_too_short_or_endless_is_refused_with_the_limits() {
    for lease in ["10ms", "2 days", "forever"] {
        let store = bentocache::Store::new().l1(bentocache::Memory::new()).lock_lease(lease);
        let error = bentocache::BentoCache::builder().store("s", store).build().await.unwrap_err();
        assert!(error.to_string().contains("100 ms to a day"), "{error}");
    }
}
