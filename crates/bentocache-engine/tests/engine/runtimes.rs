//! The limits of a caller run where the caller is: also when the cache's runtime is busy, or when
//! nobody drives it.

// Tests may unwrap: the panic shows the failed call.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use crate::common::ms;
use bentocache::driver::ErrorKind;
use bentocache::{BentoCache, Error, Memory, Result, Store};
use bentocache_testkit::{Chaos, ChaosL2, MapL2, Ops};
use tokio::runtime::{Builder, Runtime};

/// A cache whose runtime does nothing until this is dropped.
struct Stuck {
    bento: BentoCache,
    l2: Chaos,
    /// None for a runtime that has threads of its own.
    release: Option<Arc<Barrier>>,
    _runtime: Runtime,
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release.wait();
        }
    }
}

fn store(with_l2: bool) -> (Store, Chaos) {
    let l2 = ChaosL2::new(MapL2::new());
    let chaos = l2.chaos();
    let store = Store::new().l1(Memory::new()).grace("1h").suppress_l2_errors(false);
    (if with_l2 { store.l2(l2) } else { store }, chaos)
}

/// One whose only worker is blocked.
fn busy(with_l2: bool) -> Stuck {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (store, l2) = store(with_l2);
    let bento = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    let (reached, release) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (here, until) = (reached.clone(), release.clone());
    runtime.spawn(async move {
        here.wait();
        until.wait();
    });
    reached.wait();
    Stuck { bento, l2, release: Some(release), _runtime: runtime }
}

/// A runtime that is not driven.
fn idle(with_l2: bool) -> Stuck {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (store, l2) = store(with_l2);
    let bento = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    Stuck { bento, l2, release: None, _runtime: runtime }
}

/// What the call returns. It must end long before the cache's runtime does anything again.
fn ends<T>(call: impl Future<Output = T>) -> T {
    let healthy = Builder::new_current_thread().enable_all().build().unwrap();
    healthy.block_on(async {
        tokio::time::timeout(Duration::from_secs(20), call).await.expect("it hangs")
    })
}

/// The same on a thread without a runtime.
fn ends_on_a_thread<T: Send + 'static>(
    stuck: &Stuck,
    call: impl FnOnce(BentoCache) -> T + Send + 'static,
) -> T {
    let (done, result) = mpsc::channel();
    let bento = stuck.bento.clone();
    std::thread::spawn(move || done.send(call(bento)));
    result.recv_timeout(Duration::from_secs(20)).expect("it hangs")
}

async fn one() -> Result<u32> {
    Ok(1)
}

/// `k` = 7, stale.
async fn set_stale(bento: &BentoCache) {
    bento.set("k", 7_u32).ttl("1ms").await.unwrap();
    tokio::time::sleep(ms(20)).await;
}

fn is_hard_timeout<T: std::fmt::Debug>(result: Result<T>) {
    assert!(matches!(result, Err(Error::HardTimeout { .. })), "{result:?}");
}

fn is_l2_timeout<T: std::fmt::Debug>(result: Result<T>) {
    let is_one = |error: &Error| matches!(error, Error::L2 { source, .. } if source.kind() == ErrorKind::Timeout);
    assert!(result.as_ref().is_err_and(is_one), "{result:?}");
}

#[test]
fn a_hard_timeout_passes_while_the_caches_runtime_is_stuck() {
    for stuck in [busy(false), busy(true), idle(false), idle(true)] {
        let bento = &stuck.bento;
        ends(async {
            is_hard_timeout(bento.get_or_set("a", |_| one()).hard_timeout("50ms").await);
            // A caller that joins a hanging flight, and one that replaces it.
            is_hard_timeout(bento.get_or_set("a", |_| one()).hard_timeout("50ms").await);
            let call = bento.get_or_set("a", |_| one()).lock_timeout("20ms");
            is_hard_timeout(call.hard_timeout("50ms").await);
            let none = async || Ok::<Vec<(String, u32)>, Error>(Vec::new());
            let many = bento.get_or_set_many(["a", "b"], move |_| none());
            is_hard_timeout(many.hard_timeout("50ms").await);
        });
    }
}

#[test]
fn soft_and_lock_timeouts_pass_while_the_caches_runtime_is_stuck() {
    for stuck in [busy(false), idle(false)] {
        let bento = &stuck.bento;
        ends(async {
            set_stale(bento).await;
            assert_eq!(bento.get_or_set("k", |_| one()).timeout("50ms").await.unwrap(), 7);
            let call = bento.get_or_set("k", |_| one()).timeout("none").lock_timeout("50ms");
            assert_eq!(call.await.unwrap(), 7);
        });
    }
}

#[test]
fn the_limit_of_a_call_of_the_second_tier_passes_while_the_caches_runtime_is_stuck() {
    for stuck in [busy(true), idle(true)] {
        let bento = &stuck.bento;
        stuck.l2.on(Ops::ALL).hang();
        ends(async {
            is_l2_timeout(bento.get::<u32>("k").l2_timeout("none", "50ms").await);
            is_l2_timeout(bento.set("k", 1_u32).l2_timeout("none", "50ms").await);
            is_l2_timeout(bento.delete("k").l2_timeout("none", "50ms").await);
        });
    }
}

#[test]
fn a_blocking_call_on_a_plain_thread_has_its_limits_while_the_caches_runtime_is_stuck() {
    for stuck in [busy(true), idle(true)] {
        stuck.l2.on(Ops::ALL).hang();
        ends_on_a_thread(&stuck, |bento| {
            let (cache, inner) = (bento.blocking(), &bento);
            let hard = |key| inner.get_or_set(key, |_| one()).hard_timeout("50ms");
            is_hard_timeout(cache.wait(hard("a")));
            is_l2_timeout(cache.wait(inner.get::<u32>("k").l2_timeout("none", "50ms")));
            is_l2_timeout(cache.wait(inner.set("k", 1_u32).l2_timeout("none", "50ms")));
            is_l2_timeout(cache.wait(inner.delete("k").l2_timeout("none", "50ms")));
        });
    }
    for stuck in [busy(false), idle(false)] {
        ends_on_a_thread(&stuck, |bento| {
            let cache = bento.blocking();
            cache.wait(bento.set("k", 7_u32).ttl("1ms")).unwrap();
            std::thread::sleep(ms(20));
            let soft = cache.wait(bento.get_or_set("k", |_| one()).timeout("50ms"));
            assert_eq!(soft.unwrap(), 7);
        });
    }
}

#[test]
fn a_blocking_call_inside_of_another_runtime_has_its_limits_too() {
    let stuck = busy(true);
    stuck.l2.on(Ops::ALL).hang();
    let call = |bento: &BentoCache| {
        let cache = bento.blocking();
        is_hard_timeout(cache.wait(bento.get_or_set("a", |_| one()).hard_timeout("50ms")));
        is_l2_timeout(cache.wait(bento.get::<u32>("k").l2_timeout("none", "50ms")));
    };
    let worker = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    worker.block_on(async { call(&stuck.bento) });
    let single = Builder::new_current_thread().enable_all().build().unwrap();
    let bento = stuck.bento.clone();
    single
        .block_on(async move { tokio::task::spawn_blocking(move || call(&bento)).await })
        .unwrap();
}

#[test]
fn a_call_in_a_runtime_without_timers_uses_those_of_the_cache() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (store, _) = store(true);
    let bento = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    let timeless = Builder::new_current_thread().build().unwrap();
    let hangs = |_| std::future::pending::<Result<u32>>();
    for _ in 0..2 {
        is_hard_timeout(
            timeless.block_on(bento.get_or_set("k", hangs).hard_timeout("50ms").into_future()),
        );
    }
}

/// A change whose blocking caller gives it up goes on in a task, with its limit.
#[test]
fn a_change_that_a_blocking_caller_gives_up_keeps_its_limit() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (store, l2) = store(true);
    let bento = runtime.block_on(BentoCache::builder().store("s", store).build()).unwrap();
    l2.on(Ops::WRITES).hang();
    let cache = bento.blocking();
    let given_up = cache.wait(async {
        let mut change =
            std::pin::pin!(bento.set("k", 1_u32).l2_timeout("none", "100ms").into_future());
        std::future::poll_fn(|cx| {
            assert!(change.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(Ok(()))
        })
        .await
    });
    given_up.unwrap();
    // It has ended, so that nothing is left to wait for.
    let began = std::time::Instant::now();
    let _ = cache.disconnect();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn factories_run_on_the_runtime_that_the_builder_names() {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let work =
        Builder::new_multi_thread().worker_threads(1).thread_name("factories").build().unwrap();
    let store = Store::new().l1(bentocache::Memory::new());
    let builder = BentoCache::builder().store("s", store);
    let bento = runtime.block_on(builder.factory_runtime(work.handle().clone()).build()).unwrap();
    let thread =
        |_| async { Ok::<_, bentocache::Error>(std::thread::current().name().map(str::to_owned)) };
    let ran_on = runtime.block_on(bento.get_or_set("k", thread).into_future()).unwrap();
    assert_eq!(ran_on.as_deref(), Some("factories"));
    // Without it, callers that wait get an error instead of waiting for ever.
    work.shutdown_background();
    let late = runtime.block_on(bento.get_or_set("l", thread).hard_timeout("5s").into_future());
    assert!(matches!(late, Err(bentocache::Error::Abandoned { .. })), "{late:?}");
}
