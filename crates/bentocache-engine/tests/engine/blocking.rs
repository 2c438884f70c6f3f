//! The cache for synchronous code.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Runs, World, get, settle};
use bentocache::file::File;
use bentocache::{BentoCache, Blocking, Context, Error, FactoryPanic, InProcessBus, Memory, Store};
use bentocache_testkit::MapL2;
use tokio::runtime::Runtime;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn two_tier(runtime: &Runtime) -> Blocking {
    let store = Store::new().l1(Memory::new()).l2(MapL2::new()).bus(InProcessBus::new());
    let cache = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    cache.blocking()
}

/// Every operation, on the thread of the test.
fn every_operation(cache: &Blocking) {
    cache.clear().unwrap();
    assert_eq!(cache.get::<u32>("k").unwrap(), None);
    cache.set("k", 1_u32).unwrap();
    assert_eq!(cache.get("k").unwrap(), Some(1_u32));
    cache.set_many([("a", 1_u32), ("b", 2)]).unwrap();
    assert_eq!(cache.get_many::<u32>(["b", "none", "a"]).unwrap(), [Some(2), None, Some(1)]);
    cache.set_forever("f", 1_u32).unwrap();
    assert!(cache.has("k").unwrap() && cache.missing("none").unwrap());
    let produce = |cx: &Context<u32>| Ok::<_, Error>(cx.key().len() as u32);
    assert_eq!(cache.get_or_set("four", produce).unwrap(), 4);
    assert_eq!(cache.get_or_set_forever("seven77", produce).unwrap(), 7);
    assert_eq!(cache.pull::<u32>("four").unwrap(), Some(4));
    assert!(cache.delete("k").unwrap());
    assert_eq!(cache.delete_many(["a", "b", "none"]).unwrap(), 2);
    assert!(cache.touch("f").unwrap() && !cache.touch("none").unwrap());
    assert_eq!(cache.touch_many(["none", "f"]).unwrap(), [false, true]);
    cache.expire("f").unwrap();
    assert!(!cache.has("f").unwrap());
    cache.wait(cache.inner().set("t", 1_u32).tags(["x"]).ttl("5m")).unwrap();
    cache.delete_by_tag(["x"]).unwrap();
    assert_eq!(cache.get::<u32>("t").unwrap(), None);
    let users = cache.namespace("users");
    users.set("1", 1_u32).unwrap();
    assert_eq!(cache.get("users:1").unwrap(), Some(1_u32));
    users.clear().unwrap();
    assert!(cache.missing("users:1").unwrap());
    cache.prune().unwrap();
}

#[test]
fn every_operation_works_on_a_thread_outside_of_any_runtime() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    every_operation(&cache);
    std::thread::scope(|scope| {
        scope.spawn(|| every_operation(&cache));
    });
    cache.disconnect().unwrap();
    assert!(matches!(cache.get::<u32>("k"), Err(Error::Closed { .. })));
}

/// Such as the file driver, whose work is on tokio's threads, and the drivers of servers.
#[test]
fn drivers_that_need_the_runtime_work_on_a_thread_outside_of_it() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let store = Store::new().l1(Memory::new()).l2(File::new(dir.path())).bus(InProcessBus::new());
    let cache = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    every_operation(&cache.blocking());
    cache.blocking().set("k", 1_u32).unwrap();
    cache.blocking().disconnect().unwrap();
}

#[test]
fn every_operation_works_on_a_worker_and_on_a_blocking_thread() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    runtime.block_on(async {
        let worker = cache.clone();
        tokio::spawn(async move { every_operation(&worker) }).await.unwrap();
        let blocking = cache.clone();
        tokio::task::spawn_blocking(move || every_operation(&blocking)).await.unwrap();
        every_operation(&cache);
    });
}

#[test]
fn another_runtime_may_call_it_too() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    let other = self::runtime();
    other.block_on(async move { every_operation(&cache) });
}

#[tokio::test]
async fn a_blocking_thread_of_a_single_threaded_runtime_works() {
    let store = Store::new().l1(Memory::new()).l2(MapL2::new());
    let cache = BentoCache::builder().store("s", store).build().await.unwrap().blocking();
    tokio::task::spawn_blocking(move || every_operation(&cache)).await.unwrap();
}

#[tokio::test]
async fn a_thread_that_drives_a_single_threaded_runtime_gets_an_error_instead_of_a_deadlock() {
    let node = World::new().node().await;
    let cache = node.blocking();
    let produce = |_: &Context<u32>| Ok::<_, Error>(1);
    assert!(matches!(cache.get_or_set("k", produce), Err(Error::BlockingInAsync)));
    let text = Error::BlockingInAsync.to_string();
    assert!(text.contains("spawn_blocking") && text.contains(".await"), "{text}");
    // Always, not only if it would really have to wait.
    node.set("k", 1_u32).await.unwrap();
    assert!(matches!(cache.get::<u32>("k"), Err(Error::BlockingInAsync)));
}

#[tokio::test]
async fn a_refused_blocking_call_changes_nothing() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.hold();
    let cache = node.blocking();
    assert!(matches!(cache.set("k", 2_u32), Err(Error::BlockingInAsync)));
    assert!(matches!(cache.delete("k"), Err(Error::BlockingInAsync)));
    assert!(matches!(cache.expire("k"), Err(Error::BlockingInAsync)));
    assert!(matches!(cache.clear(), Err(Error::BlockingInAsync)));
    node.l2.release();
    settle().await;
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

#[test]
fn threads_share_the_run_of_a_factory() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    let (runs, barrier) = (Runs::new(), Arc::new(std::sync::Barrier::new(8)));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (cache, runs, barrier) = (cache.clone(), runs.clone(), barrier.clone());
            scope.spawn(move || {
                barrier.wait();
                let slow = move |_: &Context<u32>| {
                    runs.count();
                    std::thread::sleep(Duration::from_millis(50));
                    Ok::<_, Error>(7)
                };
                assert_eq!(cache.get_or_set("k", slow).unwrap(), 7);
            });
        }
    });
    assert_eq!(runs.so_far(), 1);
}

/// More blocking factories than the runtime has workers.
#[test]
fn factories_that_block_do_not_stop_the_runtime() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    let all_at_once = Arc::new(std::sync::Barrier::new(6));
    std::thread::scope(|scope| {
        for i in 0..6_u32 {
            let (cache, all_at_once) = (cache.clone(), all_at_once.clone());
            scope.spawn(move || {
                let blocks = move |_: &Context<u32>| {
                    all_at_once.wait();
                    Ok::<_, Error>(i)
                };
                assert_eq!(cache.get_or_set(i.to_string(), blocks).unwrap(), i);
            });
        }
    });
}

#[test]
fn errors_and_panics_of_a_factory_come_back() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    let fails = |_: &Context<u32>| Err(std::io::Error::other("disk"));
    let error = cache.get_or_set("k", fails).unwrap_err();
    assert_eq!(error.factory::<std::io::Error>().unwrap().to_string(), "disk");
    let panics = |_: &Context<u32>| -> Result<u32, Error> { panic!("boom") };
    let error = cache.get_or_set("k", panics).unwrap_err();
    assert!(error.factory::<FactoryPanic>().unwrap().to_string().contains("boom"));
    assert_eq!(cache.get_or_set("k", |_: &Context<u32>| Ok::<_, Error>(1)).unwrap(), 1);
}

#[test]
fn a_factory_may_use_the_cache_for_other_keys() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    let inner = cache.clone();
    let nested = move |_: &Context<u32>| {
        inner.set("side", 1_u32)?;
        let other = inner.get_or_set("other", |_: &Context<u32>| Ok::<_, Error>(20))?;
        Ok::<_, Error>(other + 1)
    };
    assert_eq!(cache.get_or_set("k", nested).unwrap(), 21);
    assert_eq!(cache.get("side").unwrap(), Some(1_u32));
}

/// On the same key it would wait for itself.
#[test]
fn a_blocking_factory_that_asks_for_its_own_key_gets_an_error() {
    let runtime = runtime();
    let cache = two_tier(&runtime);
    let inner = cache.clone();
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let nested =
            move |_: &Context<u32>| inner.get_or_set("k", |_: &Context<u32>| Ok::<_, Error>(1));
        drop(done.send(cache.get_or_set("k", nested)));
    });
    let result = result.recv_timeout(Duration::from_secs(20)).expect("it does not hang");
    let error = result.unwrap_err();
    assert!(matches!(error.factory::<Error>(), Some(Error::Reentrant { .. })), "{error:?}");
    drop(runtime);
}
