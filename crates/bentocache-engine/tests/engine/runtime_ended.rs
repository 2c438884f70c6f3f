//! A cache that outlives the runtime that built it, such as a static one in two tests.

// Tests may unwrap: the panic shows the failed call.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::fmt::Debug;
use std::sync::mpsc;
use std::time::Duration;

use bentocache::file::File;
use bentocache::{
    BentoCache, ClosedReason, Context, Error, InProcessBus, ManyContext, Memory, Result, Store,
};
use bentocache_testkit::{ChaosL2, MapL2, MapLock, Ops};
use tokio::runtime::{Builder, Runtime};

fn runtimes() -> [Runtime; 2] {
    [
        Builder::new_current_thread().enable_all().build().unwrap(),
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
    ]
}

fn stores(dir: &tempfile::TempDir) -> [Store; 4] {
    let both = || Store::new().l1(Memory::new());
    [
        both(),
        both().l2(MapL2::new()).bus(InProcessBus::new()).lock(MapLock::new()),
        both().l2(File::new(dir.path())),
        Store::new().l2(MapL2::new()),
    ]
}

fn build(runtime: &Runtime, store: Store) -> BentoCache {
    runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap()
}

fn ended<T: Debug>(operation: &str, result: Result<T>) {
    let is_it = matches!(result, Err(Error::Closed { reason: ClosedReason::RuntimeEnded }));
    assert!(is_it, "{operation}: {result:?}");
    let text = result.unwrap_err().to_string();
    assert!(text.contains("the tokio runtime that built this cache has ended"), "{text}");
}

/// Every operation that is no hit.
async fn every_operation(cache: &BentoCache) {
    let one = |_: Context<u32>| async { Ok::<_, Error>(1_u32) };
    let many = |_: ManyContext| async { Ok::<_, Error>([("a".to_owned(), 1_u32)]) };
    ended("get", cache.get::<u32>("x").await);
    ended("get_many", cache.get_many::<u32>(["x"]).await);
    ended("get_or_set", cache.get_or_set("x", one).await);
    ended("optional", cache.get_or_set("x", one).optional().await);
    ended("get_or_set_forever", cache.get_or_set_forever("x", one).await);
    ended("force_fresh", cache.get_or_set("hit", one).force_fresh(true).await);
    ended("get_or_set_many", cache.get_or_set_many(["x"], many).await);
    ended("set", cache.set("x", 1_u32).await);
    ended("set_many", cache.set_many([("x", 1_u32)]).await);
    ended("set_forever", cache.set_forever("x", 1_u32).await);
    ended("has", cache.has("x").await);
    ended("missing", cache.missing("x").await);
    ended("pull", cache.pull::<u32>("x").await);
    ended("delete", cache.delete("x").await);
    ended("delete_many", cache.delete_many(["x"]).await);
    ended("delete_by_tag", cache.delete_by_tag(["x"]).await);
    ended("expire", cache.expire("x").await);
    ended("expire_many", cache.expire_many(["x"]).await);
    ended("clear", cache.clear().await);
    ended("clear_all", cache.clear_all().await);
    ended("prune", cache.prune().await);
    ended("typed", cache.typed::<u32>().get("x").await);
    ended("disconnect", cache.disconnect().await);
    ended("disconnect_all", cache.disconnect_all().await);
}

#[test]
fn every_operation_of_a_cache_that_outlives_its_runtime_is_an_error_and_a_hit_still_works() {
    let dir = tempfile::tempdir().unwrap();
    for at in 0..2 {
        for store in stores(&dir) {
            let runtime = runtimes().into_iter().nth(at).unwrap();
            let cache = build(&runtime, store);
            runtime.block_on(async { cache.set("hit", 7_u32).await }).unwrap();
            drop(runtime);
            for other in runtimes() {
                other.block_on(every_operation(&cache));
                let hit = other.block_on(cache.get::<u32>("hit").into_future());
                assert!(matches!(hit, Ok(Some(7)) | Err(Error::Closed { .. })), "{hit:?}");
            }
            drop(cache);
        }
    }
}

#[test]
fn a_hit_needs_no_runtime() {
    let [runtime, other] = runtimes();
    let cache = build(&runtime, Store::new().l1(Memory::new()).l2(MapL2::new()).early_refresh(0.5));
    runtime.block_on(cache.set("k", 7_u32).into_future()).unwrap();
    runtime.block_on(cache.set("due", 8_u32).ttl("2s").into_future()).unwrap();
    std::thread::sleep(Duration::from_millis(1_100));
    drop(runtime);
    other.block_on(async {
        assert_eq!(cache.get("k").await.unwrap(), Some(7_u32));
        let one = |_: Context<u32>| async { Ok::<_, Error>(1_u32) };
        assert_eq!(cache.get_or_set("k", one).await.unwrap(), 7);
        // Nothing refreshes it, and that is all.
        assert_eq!(cache.get_or_set("due", one).await.unwrap(), 8);
    });
    assert_eq!(cache.blocking().get::<u32>("k").unwrap(), Some(7));
}

#[test]
fn a_blocking_handle_that_outlives_the_runtime_gets_errors_too() {
    for runtime in runtimes() {
        let cache = build(&runtime, Store::new().l1(Memory::new()).l2(MapL2::new()));
        drop(runtime);
        let blocking = cache.blocking();
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || {
            ended("get", blocking.get::<u32>("x"));
            ended("get_or_set", blocking.get_or_set("x", |_| Ok::<_, Error>(1_u32)));
            ended("set", blocking.set("x", 1_u32));
            ended("delete", blocking.delete("x"));
            ended("clear", blocking.clear());
            ended("prune", blocking.prune());
            ended("disconnect", blocking.disconnect());
            done.send(())
        });
        result.recv_timeout(Duration::from_secs(20)).expect("neither a panic nor a hang");
    }
}

#[test]
fn a_call_that_waits_when_the_runtime_ends_gets_an_error() {
    for runtime in runtimes() {
        let cache = build(&runtime, Store::new().l1(Memory::new()));
        let other = Builder::new_current_thread().enable_all().build().unwrap();
        let result = other.block_on(async {
            let (begun, begins) = tokio::sync::oneshot::channel();
            let call = cache.get_or_set("k", |_| async move {
                let _ = begun.send(());
                std::future::pending::<Result<u32>>().await
            });
            let end = async {
                let drive = async move {
                    tokio::task::spawn_blocking(move || {
                        // A single-threaded runtime runs the factory only while it is driven.
                        runtime.block_on(begins).unwrap();
                        drop(runtime);
                    })
                    .await
                };
                drive.await.unwrap();
            };
            let waited = tokio::time::timeout(Duration::from_secs(20), async {
                tokio::join!(call.into_future(), end).0
            });
            waited.await.expect("it hangs")
        });
        assert!(
            matches!(
                result,
                Err(Error::Abandoned { .. } | Error::Closed { reason: ClosedReason::RuntimeEnded })
            ),
            "{result:?}"
        );
    }
}

/// Its limits are set in the cache's runtime, for want of another.
#[test]
fn a_caller_without_timers_whose_second_tier_hangs_gets_an_error_when_the_runtime_ends() {
    for runtime in runtimes() {
        let l2 = ChaosL2::new(MapL2::new());
        let chaos = l2.chaos();
        let cache = build(&runtime, Store::new().l2(l2).l2_timeout("none", "10s"));
        chaos.on(Ops::GET).hang();
        let (done, result) = mpsc::channel();
        let caller = cache.clone();
        let thread = std::thread::spawn(move || {
            let timeless = Builder::new_current_thread().build().unwrap();
            done.send(timeless.block_on(caller.get::<u32>("k").into_future()))
        });
        while chaos.calls() == 0 {
            std::thread::yield_now();
        }
        drop(runtime);
        let result = result.recv_timeout(Duration::from_secs(5)).expect("it hangs");
        assert!(result.is_err(), "{result:?}");
        thread.join().unwrap().unwrap();
    }
}

/// The task is dropped at once then, with the last handle in it.
#[test]
fn a_change_whose_last_handle_goes_with_it_does_not_hang() {
    for runtime in runtimes() {
        let l2 = ChaosL2::new(MapL2::new());
        let chaos = l2.chaos();
        let cache = build(&runtime, Store::new().l2(l2).l2_timeout("none", "none"));
        chaos.on(Ops::SET).hang();
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || {
            let other = Builder::new_current_thread().enable_all().build().unwrap();
            let mut set = cache.set("k", 1_u32).into_future();
            let begun = other.block_on(async {
                std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(std::pin::Pin::new(&mut set).poll(cx).is_pending())
                })
                .await
            });
            drop(runtime);
            drop(cache);
            drop(set);
            done.send(begun)
        });
        assert!(result.recv_timeout(Duration::from_secs(20)).expect("it hangs"));
    }
}

#[test]
fn calls_while_the_runtime_ends_neither_panic_nor_hang() {
    for round in 0..40 {
        for runtime in runtimes() {
            let store = Store::new().l1(Memory::new()).l2(MapL2::new()).bus(InProcessBus::new());
            let cache = build(&runtime, store);
            let (done, result) = mpsc::channel();
            let caller = std::thread::spawn(move || {
                let other = Builder::new_current_thread().enable_all().build().unwrap();
                other.block_on(async {
                    for at in 0_u32.. {
                        let key = format!("{at}");
                        let one = |_: Context<u32>| async { Ok::<_, Error>(1_u32) };
                        let call = cache.get_or_set(&*key, one).hard_timeout("10s").await;
                        let set = cache.set(&*key, 2_u32).await;
                        if let (Err(error), Err(Error::Closed { .. })) = (&call, &set) {
                            let timely = !matches!(error, Error::HardTimeout { .. });
                            done.send(timely).unwrap();
                            return;
                        }
                    }
                });
            });
            match round % 2 {
                0 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(500)),
            }
            drop(runtime);
            assert!(result.recv_timeout(Duration::from_secs(20)).expect("a panic or a hang"));
            caller.join().unwrap();
        }
    }
}
