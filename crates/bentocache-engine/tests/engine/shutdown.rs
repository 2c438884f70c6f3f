//! The end of a cache: disconnecting ends its work within a bound, and dropping the last handle
//! leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::common::{World, get, ms, pass, secs, settle};
use crate::races::{Source, calm, fresh, go};
use bentocache::{BentoCache, Cache, Context, Error, Memory, Store, TokioTime};
use bentocache_testkit::{MapBus, Ops};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How many tasks there are.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Tells when it is dropped.
struct Token(Arc<AtomicBool>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A factory that never ends, and whether it was dropped.
fn endless()
-> (impl FnOnce(Context<u32>) -> crate::races::Work<u32> + Send + 'static, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let token = Token(dropped.clone());
    let factory = move |_: Context<u32>| -> crate::races::Work<u32> {
        Box::pin(async move {
            let _token = token;
            std::future::pending().await
        })
    };
    (factory, dropped)
}

#[tokio::test(start_paused = true)]
async fn after_disconnect_every_call_says_that_the_cache_is_closed() {
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        let node = world.node().await;
        node.set("k", 1_u32).await.unwrap();
        node.disconnect().await.unwrap();
        let names = node.namespace("n");
        let closed = |error: Error| assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        closed(node.get::<u32>("k").await.unwrap_err());
        closed(node.get_many::<u32>(["k"]).await.unwrap_err());
        closed(node.get_or_set("k", Source::new().gives(1_u32)).await.unwrap_err());
        closed(
            node.get_or_set_many(["k"], |_| async { Ok::<[(String, u32); 0], Error>([]) })
                .await
                .unwrap_err(),
        );
        closed(node.has("k").await.unwrap_err());
        closed(node.missing("k").await.unwrap_err());
        closed(node.set("k", 1_u32).await.unwrap_err());
        closed(node.delete("k").await.unwrap_err());
        closed(node.expire("k").await.unwrap_err());
        closed(node.pull::<u32>("k").await.unwrap_err());
        closed(node.delete_by_tag(["t"]).await.unwrap_err());
        closed(node.clear().await.unwrap_err());
        closed(node.prune().await.unwrap_err());
        closed(names.get::<u32>("k").await.unwrap_err());
        closed(node.disconnect().await.unwrap_err());
        node.disconnect_all().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn disconnect_lets_work_finish_that_finishes_soon() {
    let node = World::new().node().await;
    let call = go(node.get_or_set("k", Source::slow(secs(3)).gives(1_u32)));
    calm().await;
    let began = Instant::now();
    node.disconnect().await.unwrap();
    assert_eq!(began.elapsed(), secs(3));
    assert_eq!(call.await.unwrap().unwrap(), 1);
    assert_eq!(node.document("k").unwrap()["value"], 1);
}

#[tokio::test(start_paused = true)]
async fn disconnect_waits_for_changes_under_way_whether_their_callers_do_or_not() {
    for caller_stays in [true, false] {
        let node = World::new().node().await;
        node.l2.on(Ops::SET).slow(ms(500));
        let call = go(node.set("k", 1_u32));
        calm().await;
        if !caller_stays {
            call.abort();
            calm().await;
        }
        let began = Instant::now();
        node.disconnect().await.unwrap();
        assert_eq!(began.elapsed(), ms(500));
        assert_eq!(node.document("k").unwrap()["value"], 1, "caller stays: {caller_stays}");
    }
}

#[tokio::test(start_paused = true)]
async fn disconnect_abandons_work_that_does_not_end() {
    let node = World::new().node().await;
    let (factory, dropped) = endless();
    let call = go(node.get_or_set("k", factory));
    calm().await;
    let waiter = go(node.get_or_set("k", Source::new().gives(1_u32)));
    calm().await;
    let began = Instant::now();
    node.disconnect().await.unwrap();
    assert!(began.elapsed() <= secs(10), "{:?}", began.elapsed());
    for call in [call, waiter] {
        let ended = call.await.unwrap();
        assert!(matches!(ended, Err(Error::Abandoned { .. } | Error::Closed { .. })), "{ended:?}");
    }
    assert!(dropped.load(SeqCst));
}

#[tokio::test(start_paused = true)]
async fn disconnect_is_bounded_when_everything_hangs() {
    let node = World::new().node().await;
    node.l2.hang();
    node.bus.hang();
    node.set("k", 1_u32).await.unwrap();
    let began = Instant::now();
    drop(node.disconnect().await);
    assert!(began.elapsed() <= secs(30), "{:?}", began.elapsed());
    assert!(matches!(node.get::<u32>("k").await, Err(Error::Closed { .. })));
}

#[tokio::test(start_paused = true)]
async fn disconnect_publishes_and_stores_what_waits_once_more() {
    let world = World::new();
    let (a, b) = (world.node_where(|s| s.l2_circuit_breaker("off", 1)).await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    a.l2.on(Ops::WRITES).fail();
    a.bus.on(Ops::PUBLISH).fail();
    pass(ms(1)).await;
    a.set("k", 2_u32).await.unwrap();
    a.delete("l").await.unwrap();
    pass(ms(100)).await;
    a.l2.calm();
    a.bus.calm();
    a.disconnect().await.unwrap();
    settle().await;
    assert_eq!(b.document("k").unwrap()["value"], 2);
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn what_was_just_said_is_published_before_the_end() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(1));
    pass(ms(1)).await;
    a.set("k", 2_u32).await.unwrap();
    a.disconnect().await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn disconnect_closes_the_drivers_and_leaves_no_task() {
    let before = tasks();
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        let node = world.node().await;
        node.set("k", 1_u32).tags(["t"]).await.unwrap();
        node.get_or_set("l", Source::new().gives(1_u32)).await.unwrap();
        node.disconnect().await.unwrap();
        calm().await;
        assert_eq!(tasks(), before);
        let both = node.l2.on(Ops::DISCONNECT).calls() + node.bus.on(Ops::DISCONNECT).calls();
        assert!(both <= 2);
    }
    let node = World::new().node().await;
    node.disconnect().await.unwrap();
    assert_eq!(node.l2.on(Ops::DISCONNECT).calls(), 1);
    assert_eq!(node.bus.on(Ops::DISCONNECT).calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_everything() {
    let before = tasks();
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        let node = world.node_where(|s| s.grace("1h").l2_circuit_breaker("off", 1)).await;
        node.set("k", 1_u32).ttl("1s").tags(["t"]).await.unwrap();
        pass(secs(2)).await;
        // A background factory, a change that waits, a message that waits.
        let (factory, dropped) = endless();
        assert_eq!(node.get_or_set("k", factory).await.unwrap(), 1);
        calm().await;
        node.l2.cut();
        node.bus.cut();
        drop(node.set("l", 1_u32).await);
        calm().await;
        drop(node);
        calm().await;
        assert!(dropped.load(SeqCst));
        assert_eq!(tasks(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn any_handle_keeps_it_alive() {
    let before = tasks();
    let world = World::new();
    let node = world.node().await;
    let names = node.namespace("n");
    let typed = names.typed::<u32>();
    drop(node);
    drop(names);
    calm().await;
    assert!(tasks() > before);
    typed.set("k", 1).await.unwrap();
    assert_eq!(typed.get("k").await.unwrap(), Some(1));
    // So does a call under way.
    let call = go(typed.get_or_set("l", Source::slow(secs(1)).gives(2_u32)));
    calm().await;
    drop(typed);
    assert_eq!(call.await.unwrap().unwrap(), 2);
    calm().await;
    assert_eq!(tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_keeps_it_alive_whatever_it_does() {
    type Begins = fn(&Cache) -> JoinHandle<()>;
    fn begun<R: IntoFuture<Output: Send, IntoFuture: Send + 'static>>(call: R) -> JoinHandle<()> {
        let call = call.into_future();
        tokio::spawn(async move { drop(call.await) })
    }
    let calls: [Begins; 11] = [
        |cache| begun(cache.get::<u32>("k")),
        |cache| begun(cache.get_many::<u32>(["k"])),
        |cache| begun(cache.get_or_set("k", Source::new().gives(2_u32))),
        |cache| begun(cache.has("k")),
        |cache| begun(cache.missing("k")),
        |cache| begun(cache.set("k", 2_u32)),
        |cache| begun(cache.pull::<u32>("k")),
        |cache| begun(cache.delete("k")),
        |cache| begun(cache.expire("k")),
        |cache| begun(cache.delete_by_tag(["t"])),
        |cache| begun(cache.clear()),
    ];
    for (i, begin) in calls.into_iter().enumerate() {
        for world in [World::new(), World::only_l2()] {
            let before = tasks();
            let node = world.node().await;
            node.set("k", 1_u32).skip_l1_write(true).await.unwrap();
            node.l2.on(Ops::ALL).hold();
            let call = begin(&node.cache);
            calm().await;
            let (during, l2) = (tasks(), node.l2.clone());
            drop(node);
            calm().await;
            assert!(!call.is_finished(), "call {i} did not reach L2");
            assert_eq!(tasks(), during, "call {i} did not keep the store alive");
            l2.release();
            l2.calm();
            call.await.unwrap();
            calm().await;
            assert_eq!(tasks(), before, "call {i} left something behind");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_ends_with_the_cache() {
    let bus = MapBus::new();
    let store = || Store::new().l1(Memory::new()).bus(bus.clone());
    let open = async || {
        BentoCache::builder().clock(TokioTime::new()).store("s", store()).build().await.unwrap()
    };
    let channel = "bentocache.notifications:s";
    let (a, b) = (open().await, open().await);
    assert_eq!(bus.subscribers(channel), 2);
    drop(a);
    calm().await;
    assert_eq!(bus.subscribers(channel), 1);
    b.disconnect().await.unwrap();
    calm().await;
    assert_eq!(bus.subscribers(channel), 0);
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_disconnects_its_own_cache_ends() {
    let node = World::new().node().await;
    let cache = node.cache.clone();
    let call = go(node.get_or_set("k", move |_: Context<u32>| async move {
        cache.disconnect().await?;
        Ok::<_, Error>(1)
    }));
    let ended = tokio::time::timeout(secs(60), call).await.expect("it hangs").unwrap();
    assert!(
        matches!(ended, Ok(1) | Err(Error::Abandoned { .. } | Error::Closed { .. })),
        "{ended:?}"
    );
    assert!(matches!(node.get::<u32>("k").await, Err(Error::Closed { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_disconnect_leaves_the_cache_closed_and_nothing_running() {
    let before = tasks();
    let node = World::new().node().await;
    let (factory, dropped) = endless();
    let call = go(node.get_or_set("k", factory));
    calm().await;
    drop(tokio::time::timeout(ms(10), node.disconnect()).await);
    assert!(matches!(node.get::<u32>("k").await, Err(Error::Closed { .. })));
    drop(node);
    calm().await;
    drop(call.await.unwrap());
    assert!(dropped.load(SeqCst));
    assert_eq!(tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn one_store_ends_without_the_others() {
    let memory = || Store::new().l1(Memory::new());
    let cache = BentoCache::builder()
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let b = cache.store("b").unwrap();
    cache.set("k", 1_u32).await.unwrap();
    b.disconnect().await.unwrap();
    assert_eq!(fresh(&cache, "k").await, Some(1));
    assert!(matches!(b.get::<u32>("k").await, Err(Error::Closed { .. })));
    cache.disconnect_all().await.unwrap();
    assert!(matches!(cache.get::<u32>("k").await, Err(Error::Closed { .. })));
}

#[test]
fn a_runtime_that_ends_takes_the_work_with_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (factory, dropped) = endless();
    let cache = runtime.block_on(async {
        let node = World::new().node().await;
        let call = go(node.get_or_set("k", factory));
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(call);
        node.cache.clone()
    });
    drop(runtime);
    assert!(dropped.load(SeqCst));
    // The handle outlived its runtime: dropping it must not panic.
    drop(cache);
}

#[test]
fn a_call_on_another_runtime_ends_when_that_of_the_cache_is_gone() {
    let own =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cache = own.block_on(async { World::only_l1().node().await.cache.clone() });
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // It works from there,
    assert_eq!(other.block_on(crate::common::fill(&cache, "k", 1)), 1);
    let call = cache.get_or_set("l", endless().0);
    let mut call = Box::pin(std::future::IntoFuture::into_future(call));
    other.block_on(async {
        let begun = tokio::time::timeout(Duration::from_millis(20), call.as_mut()).await;
        assert!(begun.is_err());
    });
    drop(own);
    // and ends with an error, not never.
    let ended = other.block_on(async { tokio::time::timeout(secs(10), call).await });
    assert!(matches!(ended, Ok(Err(Error::Abandoned { .. }))), "{ended:?}");
}
