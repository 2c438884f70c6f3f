//! Flights: one run of a factory per key and node at a time, shared by all callers, and unharmed by
//! callers that leave.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::common::{World, ms, pass, secs};
use crate::races::{Source, calm, down, go};
use bentocache::{BentoCache, Error, FactoryPanic, Failure, Memory, Store, TokioTime};
use bentocache_testkit::Ops;
use tokio::task::JoinSet;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn all_who_ask_at_once_share_one_run() {
    let node = World::new().node().await;
    let source = Source::slow(ms(50));
    let mut calls = JoinSet::new();
    for _ in 0..1_000 {
        calls.spawn(node.get_or_set("k", source.gives(7_u32)).into_future());
    }
    let began = Instant::now();
    for result in calls.join_all().await {
        assert_eq!(result.unwrap(), 7);
    }
    assert_eq!((source.runs(), began.elapsed()), (1, ms(50)));
}

#[tokio::test(start_paused = true)]
async fn ten_waiters_on_a_failing_factory_share_one_run_and_one_error() {
    let node = World::only_l1().node().await;
    let source = Source::slow(ms(30));
    let calls: Vec<_> = (0..10).map(|i| go(node.get_or_set("k", source.fails(i)))).collect();
    let began = Instant::now();
    let mut errors = Vec::new();
    for call in calls {
        match call.await.unwrap() {
            Err(Error::Factory { key, source }) => errors.push((key, source)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((source.runs(), began.elapsed()), (1, ms(30)));
    assert!(errors.iter().all(|(key, error)| **key == *"k" && Arc::ptr_eq(error, &errors[0].1)));
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_error_comes_back_to_all_through_its_type() {
    let node = World::only_l1().node().await;
    let source = Source::held();
    let (first, second) =
        (go(node.get_or_set("k", source.fails(42))), go(node.get_or_set("k", source.fails(43))));
    source.begun(1).await;
    source.release();
    assert_eq!((down(first.await.unwrap()), down(second.await.unwrap())), (42, 42));
}

#[tokio::test(start_paused = true)]
async fn two_factories_of_one_key_never_run_at_once() {
    let node = World::new().node().await;
    let source = Source::slow(ms(7));
    let mut calls = JoinSet::new();
    // Some fail, some are dropped, some come when the flight is just over.
    for i in 0..300_u64 {
        let cache = node.cache.clone();
        let source = source.clone();
        calls.spawn(async move {
            pass(ms(i)).await;
            if i % 3 == 0 {
                drop(cache.get_or_set("k", source.gives(1_u32)).ttl("2ms").await);
            } else {
                let call = cache.get_or_set("k", source.fails(1));
                drop(tokio::time::timeout(ms(i % 11), call).await);
            }
        });
    }
    calls.join_all().await;
    assert!(source.runs() > 20, "{}", source.runs());
    assert_eq!(source.most_at_once(), 1);
}

#[tokio::test(start_paused = true)]
async fn ten_forced_refreshes_at_once_run_one_factory() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    let source = Source::slow(ms(20));
    let calls: Vec<_> = (0..10)
        .map(|i| go(node.get_or_set("k", source.gives(100 + i)).force_fresh(true)))
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 100);
    }
    assert_eq!(source.runs(), 1);
    assert_eq!(crate::common::get(&node, "k").await, Some(100));
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_does_not_take_what_a_plain_flight_found() {
    let world = World::new();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    let source = Source::new();
    node.l2.on(Ops::GET).hold();
    let plain = go(node.get_or_set("k", source.gives(2_u32)));
    node.l2.held(1).await;
    let forced = go(node.get_or_set("k", source.gives(3_u32)).force_fresh(true));
    calm().await;
    node.l2.release();
    assert_eq!(plain.await.unwrap().unwrap(), 1);
    assert_eq!(forced.await.unwrap().unwrap(), 3);
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_after_a_hard_timeout_joins_the_run_that_goes_on() {
    let node = World::new().node().await;
    let source = Source::held();
    let gave_up = node.get_or_set("k", source.gives(1_u32)).hard_timeout("10ms").await;
    assert!(matches!(gave_up, Err(Error::HardTimeout { .. })), "{gave_up:?}");
    let next = go(node.get_or_set("k", source.gives(2_u32)));
    calm().await;
    assert_eq!(source.runs(), 1);
    source.release();
    assert_eq!(next.await.unwrap().unwrap(), 1);
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_handle_asks_a_full_key_has_one_flight() {
    let node = World::new().node().await;
    let source = Source::held();
    let mut calls = vec![
        go(node.get_or_set("a:b:k", source.gives(1_u32))),
        go(node.namespace("a").namespace("b").get_or_set("k", source.gives(2_u32))),
        go(node.namespace("a").typed::<u32>().get_or_set("b:k", source.gives(3))),
        go(node.store("s").unwrap().get_or_set("a:b:k", source.gives(4_u32))),
    ];
    // A new handle for each request, as web handlers make them.
    for i in 0..10 {
        calls.push(go(node.namespace("a:b").get_or_set("k", source.gives(10_u32 + i))));
    }
    calm().await;
    source.release();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 1);
    }
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn stores_do_not_share_flights_and_neither_do_keys() {
    let memory = || Store::new().l1(Memory::new());
    let cache = BentoCache::builder()
        .clock(TokioTime::new())
        .store("a", memory())
        .store("b", memory())
        .default_store("a")
        .build()
        .await
        .unwrap();
    let (hung, source) = (Source::held(), Source::new());
    let _hung = go(cache.get_or_set("k", hung.gives(0_u32)));
    hung.begun(1).await;
    let b = cache.store("b").unwrap();
    assert_eq!(b.get_or_set("k", source.gives(1_u32)).await.unwrap(), 1);
    assert_eq!(cache.get_or_set("K", source.gives(2_u32)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_first_caller_harms_no_waiter_and_leaves_one_run() {
    for drop_after_begin in [false, true] {
        let node = World::new().node().await;
        let source = Source::held();
        let first = go(node.get_or_set("k", source.gives(1_u32)));
        if drop_after_begin {
            source.begun(1).await;
        } else {
            calm().await;
        }
        let waiters: Vec<_> =
            (0..10).map(|_| go(node.get_or_set("k", source.gives(2_u32)))).collect();
        calm().await;
        first.abort();
        calm().await;
        source.release();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap(), 1);
        }
        assert_eq!(source.runs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_dropped_while_the_second_tier_is_read_harms_nobody() {
    let node = World::new().node().await;
    let source = Source::new();
    node.l2.on(Ops::GET).hold();
    let first = go(node.get_or_set("k", source.gives(1_u32)));
    node.l2.held(1).await;
    let waiter = go(node.get_or_set("k", source.gives(2_u32)));
    calm().await;
    first.abort();
    calm().await;
    node.l2.release();
    assert_eq!(waiter.await.unwrap().unwrap(), 1);
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_run_goes_on_and_is_stored_when_every_caller_is_dropped() {
    let node = World::new().node().await;
    let source = Source::held();
    let calls: Vec<_> = (0..3).map(|_| go(node.get_or_set("k", source.gives(1_u32)))).collect();
    source.begun(1).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    calm().await;
    source.release();
    calm().await;
    assert_eq!(crate::common::get(&node, "k").await, Some(1));
    assert_eq!(node.document("k").unwrap()["value"], 1);
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_leaves_the_others_their_value() {
    let node = World::only_l1().node().await;
    let source = Source::held();
    let first = go(node.get_or_set("k", source.gives(1_u32)));
    source.begun(1).await;
    let dropped = go(node.get_or_set("k", source.gives(2_u32)));
    let stays = go(node.get_or_set("k", source.gives(3_u32)));
    calm().await;
    dropped.abort();
    calm().await;
    source.release();
    assert_eq!((first.await.unwrap().unwrap(), stays.await.unwrap().unwrap()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_never_polled_again_holds_nobody_up() {
    let node = World::new().node().await;
    let source = Source::new();
    let mut lazy = Box::pin(node.get_or_set("k", source.gives(1_u32)).into_future());
    let first_poll = std::future::poll_fn(|cx| Poll::Ready(lazy.as_mut().poll(cx))).await;
    assert!(first_poll.is_pending());
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    assert_eq!((lazy.await.unwrap(), source.runs()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_never_awaited_does_nothing() {
    let node = World::new().node().await;
    let source = Source::new();
    drop(node.get_or_set("k", source.gives(1_u32)));
    drop(node.get_or_set("k", source.gives(1_u32)).into_future());
    calm().await;
    assert_eq!(source.runs(), 0);
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 2);
}

/// A factory that panics where it is told to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Panics {
    BeforeItsFuture,
    AtItsFirstPoll,
    AfterAnAwait,
    InADrop,
    WithoutText,
}

fn panics(
    at: Panics,
    source: Source,
) -> impl FnOnce(bentocache::Context<u32>) -> crate::races::Work<u32> + Send + 'static {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("boom");
        }
    }
    move |_| {
        assert!(at != Panics::BeforeItsFuture, "boom");
        Box::pin(async move {
            assert!(at != Panics::AtItsFirstPoll, "boom");
            source.run().await;
            assert!(at != Panics::AfterAnAwait, "boom");
            if at == Panics::WithoutText {
                std::panic::panic_any(7);
            }
            let _bomb = Bomb;
            Ok(1)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_the_error_of_all_and_the_key_works_again_at_once() {
    for at in [
        Panics::BeforeItsFuture,
        Panics::AtItsFirstPoll,
        Panics::AfterAnAwait,
        Panics::InADrop,
        Panics::WithoutText,
    ] {
        let node = World::new().node().await;
        let source = Source::held();
        let calls: Vec<_> =
            (0..5).map(|_| go(node.get_or_set("k", panics(at, source.clone())))).collect();
        calm().await;
        source.release();
        for call in calls {
            let error = call.await.unwrap().unwrap_err();
            assert!(matches!(&error, Error::Factory { .. }), "{at:?}: {error:?}");
            let panic = error.factory::<FactoryPanic>().expect("a panic");
            assert_eq!(panic.to_string().contains("boom"), at != Panics::WithoutText, "{at:?}");
        }
        assert_eq!(node.get_or_set("k", Source::new().gives(5_u32)).await.unwrap(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panicking_factory_of_many_keys_is_the_error_of_each() {
    let node = World::new().node().await;
    let many = go(node.get_or_set_many(["a", "b"], |_| async {
        if true {
            panic!("boom");
        }
        Ok::<Vec<(String, u32)>, Error>(Vec::new())
    }));
    let error = many.await.unwrap().unwrap_err();
    assert!(error.factory::<FactoryPanic>().is_some(), "{error:?}");
    assert_eq!(crate::common::fill(&node, "b", 2).await, 2);
}

/// A value that panics when it is encoded.
#[derive(Debug, Clone, serde::Deserialize)]
struct Explosive;

impl serde::Serialize for Explosive {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("boom");
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_panics_when_it_is_stored_fails_its_callers_and_nothing_else() {
    let node = World::new().node().await;
    let source = Source::held();
    let calls: Vec<_> = (0..5).map(|_| go(node.get_or_set("k", source.gives(Explosive)))).collect();
    source.begun(1).await;
    source.release();
    for call in calls {
        // Its value or an error, but an end.
        let ended = tokio::time::timeout(secs(60), call).await.expect("it hangs").unwrap();
        assert!(!matches!(ended, Err(Error::Closed { .. })), "{ended:?}");
    }
    let many = go(node.get_or_set_many(["k", "l"], |cx| async move {
        let of = |key: &String| (key.clone(), Explosive);
        Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
    }));
    tokio::time::timeout(secs(60), many).await.expect("it hangs").unwrap().map(drop).ok();
    node.delete("k").await.unwrap();
    assert_eq!(crate::common::fill(&node, "k", 5).await, 5);
    assert_eq!(crate::common::fill(&node, "l", 6).await, 6);
}

/// Counts how often a future is polled.
struct Counted<F>(Pin<Box<F>>, Arc<AtomicUsize>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, SeqCst);
        self.0.as_mut().poll(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_are_woken_a_few_times_each() {
    const WAITERS: usize = 10_000;
    let node = World::new().node().await;
    let source = Source::held();
    let polls = Arc::new(AtomicUsize::new(0));
    let mut calls = JoinSet::new();
    for i in 0..WAITERS {
        // Half of them have timeouts.
        let call = node.get_or_set("k", source.gives(7_u32));
        let call = if i % 2 == 0 { call.hard_timeout("1h").lock_timeout("2h") } else { call };
        calls.spawn(Counted(Box::pin(call.into_future()), polls.clone()));
    }
    source.begun(1).await;
    pass(secs(60)).await;
    source.release();
    for result in calls.join_all().await {
        assert_eq!(result.unwrap(), 7);
    }
    assert_eq!(source.runs(), 1);
    let polls = polls.load(SeqCst);
    assert!(polls <= 4 * WAITERS, "{polls} polls");
}

#[tokio::test(start_paused = true)]
async fn a_stored_null_is_a_value_and_is_produced_once() {
    let node = World::new().node().await;
    let source = Source::new();
    for _ in 0..3 {
        let none = node.get_or_set("k", source.gives(None::<u32>)).await.unwrap();
        assert_eq!(none, None);
    }
    assert_eq!(source.runs(), 1);
    assert_eq!(node.get::<Option<u32>>("k").await.unwrap(), Some(None));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_of_a_type_that_fits_gets_the_value_converted() {
    let node = World::only_l1().node().await;
    let source = Source::held();
    let narrow = go(node.get_or_set("k", source.gives(7_u8)));
    source.begun(1).await;
    let wide = go(node.get_or_set("k", source.gives(8_u64)));
    calm().await;
    source.release();
    assert_eq!((narrow.await.unwrap().unwrap(), wide.await.unwrap().unwrap()), (7, 7));
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiters_of_a_type_that_does_not_fit_share_one_run_of_their_own() {
    for world in [World::only_l1(), World::new()] {
        let node = world.node().await;
        let (numbers, texts) = (Source::held(), Source::slow(ms(10)));
        let number = go(node.get_or_set("k", numbers.gives(7_u32)));
        numbers.begun(1).await;
        let waiters: Vec<_> =
            (0..10).map(|_| go(node.get_or_set("k", texts.gives("seven".to_owned())))).collect();
        calm().await;
        numbers.release();
        assert_eq!(number.await.unwrap().unwrap(), 7);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap(), "seven");
        }
        assert_eq!((texts.runs(), texts.most_at_once()), (1, 1));
        assert_eq!(node.get::<String>("k").await.unwrap().as_deref(), Some("seven"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_asked_for_as_another_type_is_a_miss_and_is_produced_again() {
    for world in [World::only_l1(), World::only_l2(), World::new()] {
        let node = world.node().await;
        node.set("k", 7_u32).await.unwrap();
        assert_eq!(node.get::<String>("k").await.unwrap(), None);
        let source = Source::new();
        let text = node.get_or_set("k", source.gives("seven".to_owned())).await.unwrap();
        assert_eq!((text.as_str(), source.runs()), ("seven", 1));
        assert_eq!(node.get::<String>("k").await.unwrap().as_deref(), Some("seven"));
        assert_eq!(node.get::<u32>("k").await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_cannot_be_decoded_is_produced_again() {
    let world = World::new();
    for bytes in ["", "not json", "[1]", "{}", r#"{"value":"text"}"#, "\u{b3}"] {
        let node = world.node().await;
        world.l2.put("bentocache:k", bytes.to_owned(), None);
        assert_eq!(node.get::<u32>("k").await.unwrap(), None, "{bytes}");
        assert!(!node.has("k").await.unwrap() || bytes.contains("value"), "{bytes}");
        assert_eq!(crate::common::fill(&node, "k", 5).await, 5, "{bytes}");
        assert_eq!(node.document("k").unwrap()["value"], 5);
        node.delete("k").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn many_and_single_calls_share_their_flights() {
    let node = World::new().node().await;
    let source = Source::held();
    let single = go(node.get_or_set("b", source.gives(20_u32)));
    source.begun(1).await;
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let many = {
        let (asked, source) = (asked.clone(), source.clone());
        go(node.get_or_set_many(["a", "b", "c", "a"], move |cx| {
            asked.lock().unwrap().push(cx.keys().to_vec());
            let source = source.clone();
            async move {
                source.run().await;
                let of = |key: &String| (key.clone(), 100_u32);
                Ok::<_, Error>(cx.keys().iter().map(of).collect::<Vec<_>>())
            }
        }))
    };
    source.begun(2).await;
    let late = go(node.get_or_set("c", source.gives(30_u32)));
    calm().await;
    source.release();
    assert_eq!(single.await.unwrap().unwrap(), 20);
    assert_eq!(many.await.unwrap().unwrap(), [Some(100), Some(20), Some(100), Some(100)]);
    assert_eq!(late.await.unwrap().unwrap(), 100);
    assert_eq!(*asked.lock().unwrap(), [["a", "c"]]);
    assert_eq!(source.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_factory_of_many_keys_may_leave_some_out() {
    let node = World::new().node().await;
    let values = node
        .get_or_set_many(["a", "b"], |_| async { Ok::<_, Error>([("a".to_owned(), 1_u32)]) })
        .await
        .unwrap();
    assert_eq!(values, [Some(1), None]);
    assert!(node.missing("b").await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn skip_gives_nothing_to_anyone_and_stores_nothing() {
    let node = World::new().node().await;
    let source = Source::held();
    let skip = || {
        let source = source.clone();
        move |cx: bentocache::Context<u32>| async move {
            source.run().await;
            cx.skip::<u32>()
        }
    };
    let first = go(node.get_or_set("k", skip()));
    source.begun(1).await;
    let waiter = go(node.get_or_set("k", skip()));
    let optional = go(node.get_or_set("k", skip()).optional());
    calm().await;
    source.release();
    assert!(first.await.unwrap().unwrap_err().is_skipped());
    assert!(waiter.await.unwrap().unwrap_err().is_skipped());
    assert_eq!(optional.await.unwrap().unwrap(), None);
    assert_eq!(source.runs(), 1);
    assert_eq!(node.get::<u32>("k").await.unwrap(), None);
    assert!(node.map.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_with_callers_leaving_at_any_time_one_factory_runs_at_once() {
    let cache =
        BentoCache::builder().store("s", Store::new().l1(Memory::new())).build().await.unwrap();
    let source = Source::slow(Duration::from_micros(300));
    let mut calls = JoinSet::new();
    for i in 0..16_u32 {
        let (cache, source) = (cache.clone(), source.clone());
        calls.spawn(async move {
            for round in 0..60_u32 {
                let call = cache.get_or_set("k", source.gives(round)).ttl("1ms");
                if (i + round) % 3 == 0 {
                    let patience = Duration::from_micros(u64::from(round) * 20);
                    drop(tokio::time::timeout(patience, call.into_future()).await);
                } else {
                    assert!(call.await.unwrap() < 60);
                }
                if round % 7 == i % 7 {
                    cache.delete("k").await.unwrap();
                }
            }
        });
    }
    calls.join_all().await;
    assert_eq!(source.most_at_once(), 1);
    assert!(source.runs() >= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_with_ten_callers_each_run_once_per_key() {
    let node = World::new().node_with(|b| b, |s| s).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let mut calls = JoinSet::new();
    for i in 0..10_000_u32 {
        let runs = runs.clone();
        let key = i % 1_000;
        calls.spawn(
            node.get_or_set(format!("k{key}"), move |_| async move {
                runs.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, Failure>(key)
            })
            .into_future(),
        );
    }
    let mut sum = 0_u64;
    for result in calls.join_all().await {
        sum += u64::from(result.unwrap());
    }
    assert_eq!(sum, 10 * (0..1_000).sum::<u64>());
    assert_eq!(runs.load(SeqCst), 1_000);
}
