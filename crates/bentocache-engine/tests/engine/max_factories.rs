//! `max_factories`: how many factories of a store run at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::common::{Node, Runs, World, get, get_stale, leap, ms, pass, secs, settle};
use bentocache::{BentoCache, Cache, Error, Memory, Store};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

async fn node(most: usize) -> Node {
    World::only_l1().node_where(|store| store.max_factories(most)).await
}

/// Counts the factories that run, and the most that ever did.
#[derive(Clone, Default)]
struct Gauge(Arc<(AtomicUsize, AtomicUsize)>);

impl Gauge {
    async fn run(&self, time: Duration) {
        let _running = self.enter();
        pass(time).await;
    }

    fn enter(&self) -> Running {
        let now = self.0.0.fetch_add(1, SeqCst) + 1;
        self.0.1.fetch_max(now, SeqCst);
        Running(self.clone())
    }

    fn now(&self) -> usize {
        self.0.0.load(SeqCst)
    }

    fn most(&self) -> usize {
        self.0.1.load(SeqCst)
    }
}

struct Running(Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, SeqCst);
    }
}

type Call = JoinHandle<Result<u32, Error>>;

/// A call whose factory takes that long.
fn call(cache: &Cache, key: &str, gauge: &Gauge, time: Duration) -> Call {
    let (cache, key, gauge) = (cache.clone(), key.to_owned(), gauge.clone());
    tokio::spawn(async move {
        let factory = move |_| async move {
            gauge.run(time).await;
            Ok::<_, Error>(1_u32)
        };
        cache.get_or_set(key, factory).await
    })
}

/// Holds a place until the sender is used or dropped.
async fn occupy(cache: &Cache, key: &str) -> (oneshot::Sender<()>, Call) {
    let (end, gate) = oneshot::channel::<()>();
    let (cache, key) = (cache.clone(), key.to_owned());
    let call = tokio::spawn(async move {
        let factory = |_| async move {
            let _ = gate.await;
            Ok::<_, Error>(7_u32)
        };
        cache.get_or_set(key, factory).await
    });
    settle().await;
    (end, call)
}

fn one(
    value: u32,
) -> impl FnOnce(bentocache::Context<u32>) -> std::future::Ready<Result<u32, Error>> {
    move |_| std::future::ready(Ok(value))
}

#[tokio::test(start_paused = true)]
async fn no_more_factories_run_than_that() {
    for (most, took) in [(1, 1_000), (3, 400), (10, 100), (usize::MAX, 100)] {
        let (node, gauge, start) = (node(most).await, Gauge::default(), Instant::now());
        let calls: Vec<_> =
            (0..10).map(|at| call(&node, &format!("k{at}"), &gauge, ms(100))).collect();
        settle().await;
        assert_eq!(gauge.now(), most.min(10));
        assert_eq!(node.stats().factories_waiting, 10 - most.min(10));
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap(), 1);
        }
        assert_eq!(gauge.most(), most.min(10));
        assert_eq!(start.elapsed().as_millis() / 100 * 100, took);
        assert_eq!(node.stats().factories_waiting, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn hits_and_followers_need_no_place() {
    let node = node(1).await;
    node.set("hit", 5_u32).await.unwrap();
    let (end, first) = occupy(&node, "k").await;
    assert_eq!(node.get_or_set("hit", one(1)).await.unwrap(), 5);
    let follower = call(&node, "k", &Gauge::default(), ms(1));
    settle().await;
    assert_eq!(node.stats().factories_waiting, 0);
    end.send(()).unwrap();
    assert_eq!([first.await.unwrap().unwrap(), follower.await.unwrap().unwrap()], [7; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_factory_for_many_keys_takes_one_place_and_waits_for_it() {
    let node = node(1).await;
    let (end, first) = occupy(&node, "k").await;
    let runs = Runs::new();
    let (cache, counted) = (node.cache.clone(), runs.clone());
    let many = tokio::spawn(async move {
        let factory = move |cx: bentocache::ManyContext| {
            counted.count();
            let values: Vec<_> = cx.keys().iter().map(|key| (key.clone(), 2_u32)).collect();
            std::future::ready(Ok::<_, Error>(values))
        };
        cache.get_or_set_many(["a", "b", "c"], factory).await
    });
    settle().await;
    assert_eq!((runs.so_far(), node.stats().factories_waiting), (0, 1));
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(many.await.unwrap().unwrap(), [Some(2); 3]);
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_scoped_factory_takes_a_place_and_waits_for_it() {
    let node = node(1).await;
    let (end, first) = occupy(&node, "k").await;
    let scoped = node.get_or_set_scoped("s", one(2)).hard_timeout("1s").await;
    assert!(matches!(scoped, Err(Error::HardTimeout { .. })), "{scoped:?}");
    assert_eq!(node.stats().factories_waiting, 0, "it waits no longer");
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(node.get_or_set_scoped("s", one(2)).await.unwrap(), 2);
    // A scoped factory that is dropped gives its place back.
    let hangs = node.get_or_set_scoped("h", |_| std::future::pending::<Result<u32, Error>>());
    assert!(tokio::time::timeout(secs(1), hangs).await.is_err());
    assert_eq!(node.get_or_set("n", one(3)).hard_timeout("1s").await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_in_the_background_takes_a_place() {
    let node = node(1).await;
    node.set_many([("soft", 1_u32), ("early", 1)]).ttl("10s").grace("1h").await.unwrap();
    leap(secs(9)).await;
    let (end, first) = occupy(&node, "k").await;
    assert_eq!(node.get_or_set("early", one(2)).early_refresh(0.5).await.unwrap(), 1);
    leap(secs(2)).await;
    assert_eq!(node.get_or_set("soft", one(2)).grace("1h").await.unwrap(), 1);
    settle().await;
    assert_eq!(node.stats().factories_waiting, 2);
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
    settle().await;
    assert_eq!([get(&node, "early").await, get(&node, "soft").await], [Some(2); 2]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_the_hard_timeout_and_the_factory_runs_later() {
    let node = node(1).await;
    let (end, first) = occupy(&node, "k").await;
    let start = Instant::now();
    let result = node.get_or_set("w", one(2)).hard_timeout("2s").await;
    assert!(matches!(result, Err(Error::HardTimeout { .. })), "{result:?}");
    assert_eq!(start.elapsed().as_secs(), 2);
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
    settle().await;
    assert_eq!(get(&node, "w").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_a_stale_value_after_the_soft_timeout() {
    let node = node(1).await;
    node.set("w", 1_u32).ttl("1s").grace("1h").await.unwrap();
    leap(secs(2)).await;
    let (_end, _first) = occupy(&node, "k").await;
    let start = Instant::now();
    let result = node.get_or_set("w", one(2)).grace("1h").timeout("500ms").hard_timeout("9s").await;
    assert_eq!(result.unwrap(), 1);
    assert_eq!(start.elapsed().as_millis() / 100, 5);
}

/// Another flight would only wait behind the first.
#[tokio::test(start_paused = true)]
async fn a_flight_that_waits_for_a_place_is_not_replaced_after_the_lock_timeout() {
    let node = node(1).await;
    node.set("stale", 1_u32).ttl("1s").grace("1h").await.unwrap();
    leap(secs(2)).await;
    let (end, first) = occupy(&node, "k").await;
    let runs = Runs::new();
    let request = |key: &str| {
        let (cache, runs, key) = (node.cache.clone(), runs.clone(), key.to_owned());
        tokio::spawn(async move {
            let factory = move |_| async move {
                runs.count();
                Ok::<_, Error>(2_u32)
            };
            cache.get_or_set(key, factory).grace("1h").timeout("none").lock_timeout("1s").await
        })
    };
    let leader = request("w");
    let stale_leader = request("stale");
    settle().await;
    let (follower, stale_follower) = (request("w"), request("stale"));
    let start = Instant::now();
    let result = follower.await.unwrap();
    assert!(matches!(result, Err(Error::LockTimeout { .. })), "{result:?}");
    assert_eq!(stale_follower.await.unwrap().unwrap(), 1);
    assert_eq!(start.elapsed().as_secs(), 1);
    pass(secs(10)).await;
    assert_eq!(node.stats().factories_waiting, 2);
    // One that is served at once finds a flight that has waited for long.
    let served = node.get_or_set("stale", one(3)).grace("1h").lock_timeout("1s").await;
    assert_eq!((served.unwrap(), node.stats().factories_waiting), (1, 2));
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!([leader.await.unwrap().unwrap(), stale_leader.await.unwrap().unwrap()], [2; 2]);
    settle().await;
    assert_eq!(runs.so_far(), 2);
    assert_eq!([get(&node, "w").await, get(&node, "stale").await], [Some(2); 2]);
}

#[tokio::test(start_paused = true)]
async fn the_factory_timeout_counts_from_the_start_of_the_factory() {
    let node = node(1).await;
    let gauge = Gauge::default();
    let calls: Vec<_> = (0..3)
        .map(|at| {
            let (cache, gauge) = (node.cache.clone(), gauge.clone());
            tokio::spawn(async move {
                let factory = move |_| async move {
                    gauge.run(ms(900)).await;
                    Ok::<_, Error>(1_u32)
                };
                cache.get_or_set(format!("k{at}"), factory).factory_timeout("1s").await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 1);
    }
    let time = node.stats().factory_time;
    assert!(time < secs(3), "the time of a factory has no wait: {time:?}");
}

#[tokio::test(start_paused = true)]
async fn every_end_of_a_factory_gives_the_place_back() {
    let node = node(1).await;
    let next = async |at: u32| {
        let result = node.get_or_set(format!("next{at}"), one(at)).hard_timeout("1s").await;
        assert_eq!(result.unwrap(), at);
    };
    let panics =
        node.get_or_set("panics", |_| async { panic!("on purpose") as Result<u32, Error> });
    assert!(panics.await.is_err());
    next(1).await;
    fn at_once(_: bentocache::Context<u32>) -> std::future::Ready<Result<u32, Error>> {
        panic!("before the first await")
    }
    assert!(node.get_or_set("at once", at_once).await.is_err());
    next(2).await;
    assert!(node.get_or_set("fails", |_| async { Err::<u32, _>("down") }).await.is_err());
    next(3).await;
    let skips = node.get_or_set("skips", |cx| async move { cx.skip::<u32>() });
    assert!(skips.await.is_err());
    next(4).await;
    let hangs = node.get_or_set("hangs", |_| std::future::pending::<Result<u32, Error>>());
    assert!(hangs.factory_timeout("1s").await.is_err());
    next(5).await;
    // A place that was handed to a caller that is gone.
    let (end, first) = occupy(&node, "k").await;
    let dropped = tokio::time::timeout(ms(10), node.get_or_set_scoped("d", one(1))).await;
    assert!(dropped.is_err());
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
    next(6).await;
}

fn nested(
    cache: Cache,
    depth: u32,
) -> futures_core::future::BoxFuture<'static, Result<u32, Error>> {
    Box::pin(async move {
        let inner = cache.clone();
        let factory = move |_| async move {
            match depth {
                0 => Ok(0),
                depth => nested(inner, depth - 1).await.map(|below| below + 1),
            }
        };
        cache.get_or_set(format!("depth{depth}"), factory).await
    })
}

#[tokio::test(start_paused = true)]
async fn calls_inside_of_a_factory_need_no_place() {
    let node = node(1).await;
    let result = tokio::time::timeout(secs(60), nested((**node).clone(), 5)).await;
    assert_eq!(result.expect("it hangs").unwrap(), 5);
    // With many keys, and on a thread of a blocking factory.
    let cache = node.cache.clone();
    let many = node.get_or_set("outer", move |_| async move {
        let factory = |cx: bentocache::ManyContext| {
            let values: Vec<_> = cx.keys().iter().map(|key| (key.clone(), 2_u32)).collect();
            std::future::ready(Ok::<_, Error>(values))
        };
        let values = cache.get_or_set_many(["a", "b"], factory).await?;
        Ok::<u32, Error>(values.into_iter().flatten().sum())
    });
    assert_eq!(tokio::time::timeout(secs(60), many).await.expect("it hangs").unwrap(), 4_u32);
}

#[tokio::test(start_paused = true)]
async fn a_factory_may_wait_for_a_flight_that_waits_for_a_place() {
    let node = node(1).await;
    let (go, gate) = oneshot::channel::<()>();
    let cache = node.cache.clone();
    let holder = tokio::spawn(async move {
        let inner = cache.clone();
        let factory = move |_| async move {
            gate.await.unwrap();
            inner.get_or_set("queued", one(9)).await
        };
        cache.get_or_set("holder", factory).await
    });
    settle().await;
    let queued = call(&node, "queued", &Gauge::default(), ms(10));
    let other = call(&node, "other", &Gauge::default(), ms(10));
    settle().await;
    assert_eq!(node.stats().factories_waiting, 2);
    go.send(()).unwrap();
    let result = tokio::time::timeout(secs(60), holder).await.expect("it hangs");
    assert_eq!(result.unwrap().unwrap(), 1);
    assert_eq!([queued.await.unwrap().unwrap(), other.await.unwrap().unwrap()], [1; 2]);
}

async fn two_stores(a: Option<usize>, b: Option<usize>) -> BentoCache {
    let store = |most: Option<usize>| {
        let store = Store::new().l1(Memory::new());
        match most {
            Some(most) => store.max_factories(most),
            None => store,
        }
    };
    let builder = BentoCache::builder().clock(bentocache::TokioTime::new());
    builder.default_store("a").store("a", store(a)).store("b", store(b)).build().await.unwrap()
}

/// A factory of each store holds the only place there and calls the other store.
#[tokio::test(start_paused = true)]
async fn factories_of_two_stores_that_call_each_other_do_not_hang() {
    let cache = two_stores(Some(1), Some(1)).await;
    let start = |own: &str, other: &str, key: &str, wanted: &str| {
        let (own, other) = (cache.store(own).unwrap().clone(), cache.store(other).unwrap().clone());
        let (key, wanted) = (key.to_owned(), wanted.to_owned());
        tokio::spawn(async move {
            let factory = move |_| async move {
                pass(ms(10)).await;
                other.get_or_set(wanted, one(3)).await
            };
            own.get_or_set(key, factory).await
        })
    };
    let (x, w) = (start("a", "b", "x", "y"), start("b", "a", "w", "z"));
    settle().await;
    // Both wait for a place before the factories want them.
    let (b, a) = (cache.store("b").unwrap().clone(), cache.store("a").unwrap().clone());
    let (y, z) = (call(&b, "y", &Gauge::default(), ms(1)), call(&a, "z", &Gauge::default(), ms(1)));
    for call in [x, w, y, z] {
        let result = tokio::time::timeout(secs(60), call).await.expect("it hangs");
        assert_eq!(result.unwrap().unwrap(), 1);
    }
}

/// A factory without a place does not pass the limit of another store.
#[tokio::test(start_paused = true)]
async fn factories_of_a_store_without_a_limit_respect_that_of_another() {
    let cache = two_stores(None, Some(2)).await;
    let gauge = Gauge::default();
    let calls: Vec<_> = (0..8)
        .map(|at| {
            let (a, b) = (cache.store("a").unwrap().clone(), cache.store("b").unwrap().clone());
            let gauge = gauge.clone();
            tokio::spawn(async move {
                let factory = move |_| async move {
                    call(&b, &format!("b{at}"), &gauge, ms(10)).await.unwrap()
                };
                a.get_or_set(format!("a{at}"), factory).await
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(gauge.most(), 2);
    let direct = Gauge::default();
    let calls: Vec<_> = (10..18)
        .map(|at| {
            let (a, b) = (cache.store("a").unwrap().clone(), cache.store("b").unwrap().clone());
            let gauge = direct.clone();
            tokio::spawn(async move {
                let factory = move |_| async move {
                    let inner = move |_| async move {
                        gauge.run(ms(10)).await;
                        Ok::<_, Error>(1_u32)
                    };
                    b.get_or_set(format!("b{at}"), inner).await
                };
                a.get_or_set(format!("a{at}"), factory).await
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(direct.most(), 2);
}

/// `b/holder` has the place of `b`. `a/middle`, in a store without a limit, waits for `b/last`, which
/// waits for that place. Then the holder waits for `a/middle`.
#[tokio::test(start_paused = true)]
async fn a_place_is_lent_through_flights_that_run_already() {
    let cache = two_stores(None, Some(1)).await;
    let (a, b) = (cache.store("a").unwrap().clone(), cache.store("b").unwrap().clone());
    let (go, gate) = oneshot::channel::<()>();
    let (own, other) = (b.clone(), a.clone());
    let holder = tokio::spawn(async move {
        let factory = move |_| async move {
            gate.await.unwrap();
            other.get_or_set("middle", one(9)).await
        };
        own.get_or_set("holder", factory).await
    });
    settle().await;
    let (own, other) = (a.clone(), b.clone());
    let middle = tokio::spawn(async move {
        let again = other.clone();
        let factory = move |_| async move {
            other.get_or_set("last", one(4)).await?;
            // A later call of a flight that is needed needs no place either.
            again.get_or_set("later", one(5)).await
        };
        own.get_or_set("middle", factory).await
    });
    settle().await;
    assert_eq!(b.stats().factories_waiting, 1);
    go.send(()).unwrap();
    let result = tokio::time::timeout(secs(60), holder).await.expect("it hangs");
    assert_eq!([result.unwrap().unwrap(), middle.await.unwrap().unwrap()], [5; 2]);
    assert_eq!(b.stats().factories_waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn each_store_has_its_own_places() {
    let store = || Store::new().l1(Memory::new());
    let builder = BentoCache::builder().max_factories(1).default_store("a");
    let cache = builder.store("a", store()).store("b", store()).build().await.unwrap();
    let (end, first) = occupy(&cache.store("a").unwrap(), "k").await;
    let other = cache.store("b").unwrap().get_or_set("k", one(2)).hard_timeout("1s").await;
    assert_eq!(other.unwrap(), 2);
    assert!(cache.get_or_set("w", one(2)).hard_timeout("1s").await.is_err());
    end.send(()).unwrap();
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn zero_is_rejected() {
    let store = Store::new().l1(Memory::new()).max_factories(0);
    let error = BentoCache::builder().store("m", store).build().await.unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "max_factories", .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_value_of_l2_needs_no_place() {
    let world = World::new();
    let (a, b) = (world.node_where(|store| store.max_factories(1)).await, world.node().await);
    b.set("k", 1_u32).await.unwrap();
    let (_end, _first) = occupy(&a, "busy").await;
    assert_eq!(a.get_or_set("k", one(2)).hard_timeout("1s").await.unwrap(), 1);
    assert_eq!(get_stale(&a, "k").await, Some(1));
}

/// A place is for factories that run, and a lease is for flights that have a place.
#[tokio::test(start_paused = true)]
async fn a_flight_has_no_place_without_a_lease_and_no_lease_without_a_place() {
    let (world, lock) = (World::new(), bentocache_testkit::MapLock::new());
    let own = |store: Store| store.lock(lock.clone()).max_factories(1);
    let (a, b) = (world.node_where(own).await, world.node_where(own).await);
    let (end_b, first_b) = occupy(&b, "shared").await;
    let shared = call(&a, "shared", &Gauge::default(), ms(1));
    settle().await;
    // `a` waits for the value of `b`, and still has its place.
    assert_eq!(a.get_or_set("free", one(2)).hard_timeout("1s").await.unwrap(), 2);
    let (end_a, first_a) = occupy(&a, "busy").await;
    let queued = call(&a, "queued", &Gauge::default(), ms(1));
    settle().await;
    assert!(a.stats().factories_waiting >= 1);
    assert_eq!(lock.holder("bentocache:queued"), None);
    end_b.send(()).unwrap();
    assert_eq!(first_b.await.unwrap().unwrap(), 7);
    // Not even `a`, which has no place, keeps `b` from producing the value.
    assert_eq!(b.get_or_set("queued", one(3)).hard_timeout("1s").await.unwrap(), 3);
    end_a.send(()).unwrap();
    first_a.await.unwrap().unwrap();
    assert_eq!([shared.await.unwrap().unwrap(), queued.await.unwrap().unwrap()], [7, 3]);
}
