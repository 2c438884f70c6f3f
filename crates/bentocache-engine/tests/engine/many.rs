//! `get_many` and `get_or_set_many`. (`set_many`, `delete_many` and `expire_many` are in the files
//! of `set`, `delete` and `expire`.)

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::common::{World, get, get_stale, pass, secs, settle};
use bentocache::{Error, EventKind, Failure, ManyContext};
use bentocache_testkit::Ops;

/// Records which keys the factory was asked for, call by call, and gives each key's length times
/// ten.
#[derive(Clone, Default)]
struct Source(Arc<Mutex<Vec<Vec<String>>>>);

impl Source {
    fn factory(
        &self,
    ) -> impl Fn(ManyContext) -> std::future::Ready<Result<Vec<(String, u32)>, Error>>
    + Send
    + Sync
    + use<> {
        let asked = self.0.clone();
        move |cx| {
            let mut keys = cx.keys().to_vec();
            let values = keys.iter().map(|key| (key.clone(), key.len() as u32 * 10)).collect();
            keys.sort();
            asked.lock().unwrap().push(keys);
            std::future::ready(Ok(values))
        }
    }

    /// Takes a second.
    fn slow_factory(
        &self,
    ) -> impl Fn(
        ManyContext,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<(String, u32)>, Error>> + Send>>
    + Send
    + Sync
    + use<> {
        let produce = self.factory();
        move |cx| {
            let values = produce(cx);
            Box::pin(async {
                pass(secs(1)).await;
                values.await
            })
        }
    }

    fn asked(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn failing(_: ManyContext) -> std::future::Ready<Result<Vec<(String, u32)>, &'static str>> {
    std::future::ready(Err("the source is down"))
}

// get_many

#[tokio::test(start_paused = true)]
async fn results_are_in_the_callers_order_hits_and_misses_alike() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set_many([("a", 1_u32), ("b", 2), ("c", 3)]).await.unwrap();
        let keys = ["c", "none", "a", "b", "c", "nothing"];
        let values = node.get_many::<u32>(keys).await.unwrap();
        assert_eq!(values, [Some(3), None, Some(1), Some(2), Some(3), None]);
        assert_eq!(node.get_many::<u32>(Vec::<String>::new()).await.unwrap(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_tier_answers_what_it_can_and_one_round_trip_the_rest() {
    let world = World::new();
    world.node().await.set_many((0..50_u32).map(|i| (format!("k{i}"), i))).await.unwrap();
    let node = world.node().await;
    for i in 0..10 {
        get(&node, &format!("k{i}")).await;
    }
    node.l2.reset_calls();
    let values = node.get_many::<u32>((0..60).map(|i| format!("k{i}"))).await.unwrap();
    assert_eq!(values, (0..60).map(|i| (i < 50).then_some(i)).collect::<Vec<_>>());
    assert_eq!(node.l2.calls(), 1);
    assert_eq!(node.l2.on(Ops::GET_MANY).calls(), 1);
    node.l2.reset_calls();
    node.get_many::<u32>((0..50).map(|i| format!("k{i}"))).await.unwrap();
    assert_eq!(node.l2.calls(), 0, "all were promoted");
    node.get_many::<u32>(Vec::<String>::new()).await.unwrap();
    assert_eq!(node.l2.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn get_many_skips_reading_and_promoting_as_told() {
    let world = World::new();
    world.node().await.set_many([("a", 1_u32), ("b", 2)]).await.unwrap();
    let node = world.node().await;
    let none = node.get_many::<u32>(["a", "b"]).skip_l2_read(true).await.unwrap();
    assert_eq!((none, node.l2.calls()), (vec![None, None], 0));
    for _ in 0..2 {
        let both = node.get_many::<u32>(["a", "b"]).skip_l1_write(true).await.unwrap();
        assert_eq!(both, [Some(1), Some(2)]);
    }
    assert_eq!(node.l2.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn get_many_obeys_grace_and_tags() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("stale", 1_u32).ttl("1s").grace("1h").await.unwrap();
        node.set("tagged", 2_u32).grace("1h").tags(["t"]).await.unwrap();
        node.set("fresh", 3_u32).await.unwrap();
        pass(secs(2)).await;
        node.expire_by_tag(["t"]).await.unwrap();
        let keys = ["stale", "tagged", "fresh"];
        assert_eq!(node.get_many::<u32>(keys).await.unwrap(), [None, None, Some(3)]);
        let graced = node.get_many::<u32>(keys).grace("1h").await.unwrap();
        assert_eq!(graced, [Some(1), Some(2), Some(3)]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_unreadable_value_is_one_miss_among_the_others() {
    let world = World::new();
    let node = world.node().await;
    node.set_many([("a", 1_u32), ("c", 3)]).skip_l1_write(true).await.unwrap();
    world.l2.put("bentocache:b", "garbage", None);
    world.l2.put("bentocache:d", r#"{"value":"text"}"#, None);
    let values = node.get_many::<u32>(["a", "b", "c", "d"]).await.unwrap();
    assert_eq!(values, [Some(1), None, Some(3), None]);
}

#[tokio::test(start_paused = true)]
async fn get_many_has_one_hit_or_miss_per_key() {
    let node = World::new().node().await;
    node.set("l1", 1_u32).await.unwrap();
    node.set("l2", 1_u32).skip_l1_write(true).await.unwrap();
    node.set("stale", 1_u32).ttl("1s").grace("1h").await.unwrap();
    pass(secs(2)).await;
    node.seen.take();
    node.get_many::<u32>(["l1", "l2", "stale", "none"]).grace("1h").await.unwrap();
    assert_eq!(node.seen.reads(), ["hit l1 l1", "hit l2 l2", "graced l1 stale", "miss none"]);
}

// get_or_set_many

#[tokio::test(start_paused = true)]
async fn the_factory_gets_the_missing_keys_once_and_what_it_gives_is_stored() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let (node, source) = (world.node().await, Source::default());
        node.set("b", 7_u32).await.unwrap();
        let keys = ["ccc", "b", "a", "a", "ccc"];
        let values = node.get_or_set_many(keys, source.factory()).await.unwrap();
        assert_eq!(values, [Some(30), Some(7), Some(10), Some(10), Some(30)]);
        assert_eq!(source.asked(), [["a", "ccc"]]);
        let values = node.get_or_set_many(keys, source.factory()).await.unwrap();
        assert_eq!(values, [Some(30), Some(7), Some(10), Some(10), Some(30)]);
        assert_eq!(source.asked(), Vec::<Vec<String>>::new());
        assert_eq!(get(&node, "ccc").await, Some(30));
    }
}

#[tokio::test(start_paused = true)]
async fn many_keys_take_one_read_and_one_write_of_the_second_tier() {
    let (node, source) = (World::new().node().await, Source::default());
    let keys: Vec<_> = (0..100).map(|i| format!("k{i}")).collect();
    node.get_or_set_many(&keys, source.factory()).ttl("1h").await.unwrap();
    assert_eq!(node.l2.calls(), 2);
    assert_eq!(node.l2.on(Ops::GET_MANY | Ops::SET_MANY).calls(), 2);
    assert_eq!(node.life("k7").0, Some(3_600_000));
}

#[tokio::test(start_paused = true)]
async fn asking_for_nothing_asks_nobody() {
    let (node, source) = (World::new().node().await, Source::default());
    let none: Vec<String> = Vec::new();
    assert_eq!(node.get_or_set_many(&none, source.factory()).await.unwrap(), []);
    assert_eq!((source.asked().len(), node.l2.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_factory_leaves_out_is_none_and_not_stored() {
    let node = World::new().node().await;
    let partial = |_: ManyContext| async {
        Ok::<_, Error>([("a".to_owned(), 1_u32), ("not asked for".to_owned(), 9)])
    };
    let values = node.get_or_set_many(["a", "b"], partial).await.unwrap();
    assert_eq!(values, [Some(1), None]);
    assert_eq!(get(&node, "b").await, None);
    assert_eq!(get(&node, "not asked for").await, None);
}

#[tokio::test(start_paused = true)]
async fn the_keys_are_as_the_caller_gave_them_in_a_namespace_too() {
    let (node, source) = (World::new().node().await, Source::default());
    let users = node.namespace("users").namespace("eu");
    users.get_or_set_many(["1", "22"], source.factory()).await.unwrap();
    assert_eq!(source.asked(), [["1", "22"]]);
    assert_eq!(get(&node, "users:eu:22").await, Some(20));
}

#[tokio::test(start_paused = true)]
async fn the_factory_has_a_say_in_ttl_grace_and_tags() {
    let node = World::new().node().await;
    let produce = |cx: ManyContext| async move {
        cx.ttl("3m").grace("4m").tags(["t"]);
        Ok::<_, Error>([("a".to_owned(), 1_u32), ("b".to_owned(), 2)])
    };
    node.get_or_set_many(["a", "b"], produce).ttl("1m").await.unwrap();
    assert_eq!(node.life("a"), (Some(180_000), Some(420_000)));
    assert_eq!(node.life("b"), (Some(180_000), Some(420_000)));
    pass(secs(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    assert_eq!(node.get_many::<u32>(["a", "b"]).await.unwrap(), [None, None]);
    let nothing = |cx: ManyContext| async move {
        cx.ttl("0");
        Ok::<_, Error>([("c".to_owned(), 3_u32)])
    };
    assert_eq!(node.get_or_set_many(["c"], nothing).await.unwrap(), [Some(3)]);
    assert_eq!(get(&node, "c").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_failing_factory_serves_what_is_stale_and_else_is_the_error() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.grace("1h").timeout("1s")).await;
        node.set("stale", 1_u32).ttl("1s").await.unwrap();
        node.set("fresh", 2_u32).await.unwrap();
        pass(secs(2)).await;
        let values = node.get_or_set_many(["stale", "fresh"], failing).await.unwrap();
        assert_eq!(values, [Some(1), Some(2)]);
        let error = node.get_or_set_many(["fresh", "none"], failing).await.unwrap_err();
        assert!(matches!(error, Error::Factory { .. }), "{error:?}");
        assert_eq!(error.key(), Some("none"));
    }
}

#[tokio::test(start_paused = true)]
async fn one_failed_run_for_many_keys_calls_the_hook_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let hook = move |_: &Error| {
        counted.fetch_add(1, SeqCst);
    };
    let node = World::new().node_where(|s| s.on_factory_error(hook)).await;
    node.get_or_set_many(["a", "b", "c"], failing).await.unwrap_err();
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_backs_off_every_stale_key() {
    let node = World::new()
        .node_where(|s| s.ttl("1s").grace("1h").timeout("1s").grace_backoff("10s"))
        .await;
    node.set_many([("a", 1_u32), ("b", 2)]).await.unwrap();
    pass(secs(2)).await;
    node.get_or_set_many(["a", "b"], failing).await.unwrap();
    let source = Source::default();
    let values = node.get_or_set_many(["a", "b"], source.factory()).await.unwrap();
    assert_eq!(values, [Some(1), Some(2)]);
    assert_eq!(source.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn stale_values_are_served_at_once_and_refreshed_in_the_background() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let (node, source) =
            (world.node_where(|s| s.ttl("1s").grace("1h")).await, Source::default());
        node.set_many([("a", 1_u32), ("b", 2)]).await.unwrap();
        pass(secs(2)).await;
        let values = node.get_or_set_many(["a", "b"], source.slow_factory()).ttl("1h").await;
        assert_eq!(values.unwrap(), [Some(1), Some(2)]);
        pass(secs(2)).await;
        assert_eq!(node.get_many::<u32>(["a", "b"]).await.unwrap(), [Some(10), Some(10)]);
        assert_eq!(source.asked(), [["a", "b"]]);
    }
}

#[tokio::test(start_paused = true)]
async fn many_and_single_callers_share_flights() {
    let (node, source) = (World::new().node().await, Source::default());
    let slow = |_: bentocache::Context<u32>| async {
        pass(secs(1)).await;
        Ok::<_, Error>(7)
    };
    let (single, many) = tokio::join!(async { node.get_or_set("a", slow).await.unwrap() }, async {
        settle().await;
        node.get_or_set_many(["a", "b"], source.factory()).await.unwrap()
    });
    assert_eq!((single, many), (7, vec![Some(7), Some(10)]));
    assert_eq!(source.asked(), [["b"]]);
}

#[tokio::test(start_paused = true)]
async fn ten_callers_at_once_run_the_factory_once() {
    let (node, source) = (World::new().node().await, Source::default());
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (cache, source) = (node.cache.clone(), source.clone());
        callers.spawn(async move {
            cache.get_or_set_many(["a", "bb"], source.slow_factory()).await.unwrap()
        });
    }
    for values in callers.join_all().await {
        assert_eq!(values, [Some(10), Some(20)]);
    }
    assert_eq!(source.asked(), [["a", "bb"]]);
}

#[tokio::test(start_paused = true)]
async fn keys_in_another_order_never_wait_for_each_other() {
    let (node, source) = (World::new().node().await, Source::default());
    let mut callers = tokio::task::JoinSet::new();
    for i in 0..20 {
        let (cache, source) = (node.cache.clone(), source.clone());
        callers.spawn(async move {
            let mut keys = ["a", "bb", "ccc", "dddd"];
            keys.rotate_left(i % 4);
            if i % 2 == 0 {
                keys.reverse();
            }
            let values = cache.get_or_set_many(keys, source.slow_factory()).await.unwrap();
            for (key, value) in keys.iter().zip(values) {
                assert_eq!(value, Some(key.len() as u32 * 10));
            }
        });
    }
    callers.join_all().await;
    let asked: Vec<String> = source.asked().concat();
    assert_eq!(asked.len(), 4, "each key once: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn force_fresh_produces_every_key() {
    let (node, source) = (World::new().node().await, Source::default());
    node.set_many([("a", 1_u32), ("b", 2)]).await.unwrap();
    let values = node.get_or_set_many(["a", "b"], source.factory()).force_fresh(true).await;
    assert_eq!(values.unwrap(), [Some(10), Some(10)]);
    assert_eq!(source.asked(), [["a", "b"]]);
    assert_eq!(get(&node, "a").await, Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_skips_gives_none_and_no_stale_value() {
    let node = World::new().node_where(|s| s.grace("1h").timeout("1s")).await;
    node.set("a", 1_u32).ttl("1s").await.unwrap();
    pass(secs(2)).await;
    // `ManyContext` has no `skip` of its own: it leaves keys out.
    let nothing = |_: ManyContext| async { Ok::<_, Failure>(Vec::<(String, u32)>::new()) };
    assert_eq!(node.get_or_set_many(["a", "b"], nothing).await.unwrap(), [None, None]);
    assert_eq!(get_stale(&node, "a").await, Some(1), "nothing was changed");
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_panics_is_an_error_and_the_keys_work_again() {
    let (node, source) = (World::new().node().await, Source::default());
    let panics = |_: ManyContext| async {
        assert!(std::hint::black_box(false), "boom");
        Ok::<_, Error>(Vec::<(String, u32)>::new())
    };
    let error = node.get_or_set_many(["a", "b"], panics).await.unwrap_err();
    assert!(matches!(error, Error::Factory { .. }), "{error:?}");
    let values = node.get_or_set_many(["a", "b"], source.factory()).await.unwrap();
    assert_eq!(values, [Some(10), Some(10)]);
}

#[tokio::test(start_paused = true)]
async fn get_or_set_many_has_one_hit_or_miss_per_key() {
    let (node, source) = (World::new().node().await, Source::default());
    node.set("l1", 1_u32).await.unwrap();
    node.set("l2", 1_u32).skip_l1_write(true).await.unwrap();
    node.seen.take();
    node.get_or_set_many(["l1", "l2", "none", "none"], source.factory()).await.unwrap();
    let mut reads = node.seen.reads();
    reads.sort();
    assert_eq!(reads, ["hit l1 l1", "hit l2 l2", "miss none"]);
}

#[tokio::test(start_paused = true)]
async fn a_suppressed_l2_failure_leaves_it_to_the_factory() {
    let (node, source) = (World::new().node().await, Source::default());
    node.l2.fail();
    let values = node.get_or_set_many(["a", "bb"], source.factory()).await.unwrap();
    assert_eq!(values, [Some(10), Some(20)]);
    let strict = node.get_or_set_many(["c"], source.factory()).suppress_l2_errors(false).await;
    assert!(matches!(strict, Err(Error::L2 { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_off_asks_the_factory_for_each_key_once() {
    let node = World::new().node_where(|s| s.enabled(false)).await;
    let source = Source::default();
    let values = node.get_or_set_many(["a", "bb", "a"], source.factory()).await.unwrap();
    assert_eq!(values, [Some(10), Some(20), Some(10)]);
    assert_eq!(source.asked(), [["a", "bb"]]);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_another_type_left_is_produced_anew() {
    let (node, source) = (World::new().node().await, Source::default());
    node.set("a", "text".to_owned()).await.unwrap();
    let values = node.get_or_set_many(["a", "bb"], source.factory()).await.unwrap();
    assert_eq!(values, [Some(10), Some(20)]);
    assert_eq!(get(&node, "a").await, Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_value_of_another_type_is_one_miss() {
    let node = World::new().node().await;
    node.set("k", "text".to_owned()).await.unwrap();
    node.seen.take();
    assert_eq!(node.get_or_set_many(["k"], Source::default().factory()).await.unwrap(), [Some(10)]);
    assert_eq!(node.seen.reads(), ["miss k"]);
}

#[tokio::test(start_paused = true)]
async fn every_key_whose_caller_waits_is_produced_in_the_foreground() {
    let node = World::new().node().await;
    let background = |event: &EventKind<'_>| {
        matches!(
            event,
            EventKind::FactorySucceeded { background: true, .. }
                | EventKind::FactoryFailed { background: true, .. }
        )
    };
    node.get_or_set_many(["a", "b", "c"], Source::default().slow_factory()).await.unwrap();
    assert_eq!(node.seen.count(background), 0);
    node.get_or_set_many(["d", "e", "f"], |_| async {
        pass(secs(1)).await;
        Err::<Vec<(String, u32)>, _>("down")
    })
    .await
    .unwrap_err();
    assert_eq!(node.seen.count(background), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_one_miss_for_each_key() {
    let node = World::new().node().await;
    node.set("b", 1_u32).await.unwrap();
    node.seen.take();
    let down = |_| async { Err::<Vec<(String, u32)>, _>("down") };
    node.get_or_set_many(["a", "b", "c", "d"], down).await.unwrap_err();
    let mut reads = node.seen.reads();
    reads.sort();
    assert_eq!(reads, ["hit l1 b", "miss a", "miss c", "miss d"]);
}
