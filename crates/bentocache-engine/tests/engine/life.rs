//! The life of an entry: ttl, grace, backoff, the limit of L1, jitter, promotion and
//! refreshes ahead of expiry.

use std::time::Duration;

use crate::common::{Node, Runs, World, fail, get, get_stale, leap, ms, pass, secs, settle};
use bentocache::{Context, Error};
use bentocache_testkit::Ops;

const HOUR: u64 = 3_600;

/// A node with both tiers, for entries of 10 s with a grace of 20 s and a backoff of 2 s.
async fn graced(world: &World) -> Node {
    world.node_where(|s| s.ttl("10s").grace("20s").grace_backoff("2s").timeout("1s")).await
}

/// A factory that fails and counts its runs.
fn failing(
    runs: &Runs,
) -> impl FnOnce(Context<u32>) -> std::future::Ready<Result<u32, String>> + use<> {
    let runs = runs.clone();
    move |_| {
        runs.count();
        std::future::ready(Err("the source is down".to_owned()))
    }
}

// ttl

#[tokio::test(start_paused = true)]
async fn a_value_is_fresh_for_its_ttl_and_no_longer() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).ttl("10s").await.unwrap();
        pass(ms(9_990)).await;
        assert_eq!(get(&node, "k").await, Some(1));
        pass(ms(20)).await;
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(get_stale(&node, "k").await, None, "there was no grace when it was written");
    }
}

#[tokio::test(start_paused = true)]
async fn forever_means_no_end_in_any_tier() {
    let world = World::new();
    let node = world.node_where(|s| s.grace("1h")).await;
    node.set("k", 1_u32).ttl("forever").await.unwrap();
    assert_eq!(node.remaining("k"), Some(Duration::MAX));
    leap(secs(1_000 * 24 * HOUR)).await;
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(get(&*world.node().await, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_or_less_stores_nothing_and_deletes_what_is_there() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        for ttl in ["0", "0s", "-1", "-5m", "-0.5"] {
            node.set("k", 1_u32).await.unwrap();
            node.l2.reset_calls();
            node.set("k", 2_u32).ttl(ttl).await.unwrap();
            assert_eq!(node.l2.on(Ops::SET).calls(), 0, "nothing is stored, not even for no time");
            assert_eq!(get(&node, "k").await, None, "{ttl}");
            assert_eq!(node.document("k"), None);
        }
        node.set("k", 1_u32).await.unwrap();
        node.set("k", 2_u32).ttl(Duration::ZERO).await.unwrap();
        assert_eq!(get_stale(&node, "k").await, None);
        node.set_many([("k", 1_u32), ("l", 1_u32)]).ttl(Duration::ZERO).await.unwrap();
        assert_eq!(get(&node, "l").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_with_a_ttl_of_zero_is_asked_every_time_and_deletes_what_is_there() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 9_u32).await.unwrap();
        node.l2.reset_calls();
        let runs = Runs::new();
        for run in 1..=3 {
            let runs = runs.clone();
            let produce = move |cx: Context<u32>| async move {
                cx.ttl("0");
                Ok::<_, Error>(runs.count() as u32)
            };
            let value = node.get_or_set("k", produce).force_fresh(run == 1).await.unwrap();
            assert_eq!(value, run);
        }
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(node.document("k"), None);
        let value = node.get_or_set("k", |_| async { Ok::<_, Error>(7) }).ttl("-1s").await.unwrap();
        assert_eq!(value, 7);
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(node.l2.on(Ops::SET).calls(), 0, "nothing is stored, not even for no time");
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_with_a_ttl_of_zero_reaches_the_other_nodes() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    a.set("k", 2_u32).ttl("0").await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_ttl_below_a_millisecond_is_not_zero() {
    let node = World::new().node().await;
    node.set("k", 1_u32).ttl(Duration::from_nanos(1)).await.unwrap();
    assert_eq!(get(&node, "k").await, Some(1));
    node.set("k", 1_u32).ttl("1500.5").await.unwrap();
    assert_eq!(node.life("k").0, Some(1_501));
}

// grace

#[tokio::test(start_paused = true)]
async fn a_grace_never_shortens_a_ttl() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.ttl("1h").grace("10m")).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(11 * 60)).await;
        assert_eq!(get(&node, "k").await, Some(1));
        pass(secs(48 * 60)).await;
        assert_eq!(get(&node, "k").await, Some(1), "after 59 minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_lives_for_its_ttl_and_its_grace_in_every_tier() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.ttl("10s").grace("20s")).await;
        node.set("k", 1_u32).await.unwrap();
        if node.remaining("k").is_some() {
            assert_eq!(node.remaining("k"), Some(secs(30)));
        }
        pass(ms(29_990)).await;
        assert_eq!(get_stale(&node, "k").await, Some(1));
        pass(ms(20)).await;
        assert_eq!(get_stale(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_served_only_to_a_call_with_grace_on() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node().await;
        node.set("k", 1_u32).ttl("10s").grace("20s").await.unwrap();
        pass(secs(15)).await;
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(get_stale(&node, "k").await, Some(1));
        assert_eq!(node.get_many::<u32>(["k"]).grace("1s").await.unwrap(), [Some(1)]);
        assert!(matches!(fail(&node, "k").await, Err(Error::Factory { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn the_grace_of_a_factory_holds_for_what_it_produced() {
    let node = World::new().node().await;
    let produce = |cx: Context<u32>| async move {
        cx.ttl("10s").grace("20s");
        Ok::<_, Error>(1)
    };
    node.get_or_set("k", produce).await.unwrap();
    pass(secs(29)).await;
    assert_eq!(get_stale(&node, "k").await, Some(1));
    pass(secs(2)).await;
    assert_eq!(get_stale(&node, "k").await, None);
}

/// With both tiers stale, the newest of the two counts, whichever it is in.
#[tokio::test(start_paused = true)]
async fn the_newest_stale_entry_of_the_two_tiers_is_served() {
    let world = World::without_bus();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("old in l1", 1_u32).await.unwrap();
    pass(secs(1)).await;
    b.set("old in l1", 2_u32).await.unwrap();
    a.set("old in l2", 1_u32).await.unwrap();
    pass(secs(1)).await;
    a.set("old in l2", 2_u32).skip_l2_write(true).await.unwrap();
    pass(secs(12)).await;
    assert_eq!(get(&a, "old in l1").await, Some(2));
    assert_eq!(get(&a, "old in l2").await, Some(2));
}

// backoff

/// In Node the backoff was added to the old expiry: an entry expired 390 ms ago with a backoff of
/// 100 ms called the failing factory 3 times in 3.
#[tokio::test(start_paused = true)]
async fn the_backoff_counts_from_now() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = graced(&world).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(15)).await;
        let runs = Runs::new();
        for _ in 0..3 {
            assert_eq!(node.get_or_set("k", failing(&runs)).await.unwrap(), 1);
            pass(ms(600)).await;
        }
        assert_eq!(runs.so_far(), 1);
        assert_eq!(node.get::<u32>("k").grace("off").await.unwrap(), Some(1), "it counts as fresh");
        pass(ms(400)).await;
        assert_eq!(node.get_or_set("k", failing(&runs)).await.unwrap(), 1);
        assert_eq!(runs.so_far(), 2, "after the backoff the source is asked again");
    }
}

/// In Node a failure in the background had no backoff at all: 5 calls, 5 runs.
#[tokio::test(start_paused = true)]
async fn a_background_failure_backs_off_too() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = world.node_where(|s| s.ttl("10s").grace("1h").grace_backoff("2s")).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(15)).await;
        let runs = Runs::new();
        for _ in 0..5 {
            assert_eq!(node.get_or_set("k", failing(&runs)).await.unwrap(), 1);
            pass(ms(100)).await;
        }
        assert_eq!(runs.so_far(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_backoff_is_10_seconds_by_default() {
    let node = World::new().node_where(|s| s.ttl("10s").grace("1h")).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    let runs = Runs::new();
    node.get_or_set("k", failing(&runs)).await.unwrap();
    pass(ms(9_900)).await;
    node.get_or_set("k", failing(&runs)).await.unwrap();
    assert_eq!(runs.so_far(), 1);
    pass(ms(200)).await;
    node.get_or_set("k", failing(&runs)).await.unwrap();
    settle().await;
    assert_eq!(runs.so_far(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_factory_never_serves_stale_past_the_end_that_was_fixed_at_first() {
    for world in [World::new(), World::only_l1(), World::only_l2()] {
        let node = graced(&world).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(11)).await;
        for _ in 0..36 {
            assert_eq!(fail(&node, "k").await.unwrap(), 1);
            pass(ms(500)).await;
        }
        // 29 s are over, and the last failure was just now.
        pass(ms(1_100)).await;
        assert!(fail(&node, "k").await.is_err(), "30 s after it was produced");
        assert_eq!(get_stale(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn the_backoff_reaches_every_tier_the_entry_lives_in() {
    let world = World::new();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    assert_eq!(fail(&a, "k").await.unwrap(), 1);
    assert_eq!(a.remaining("k"), Some(secs(15)), "the physical end stays");
    let runs = Runs::new();
    assert_eq!(b.get_or_set("k", failing(&runs)).await.unwrap(), 1);
    assert_eq!(runs.so_far(), 0, "another node finds it fresh");
    a.seen.take();
    assert_eq!(a.get::<u32>("k").grace("off").await.unwrap(), Some(1));
    assert_eq!(a.seen.reads(), ["hit l1 k"]);
}

/// A stale entry that was only in L2 is then also in L1.
#[tokio::test(start_paused = true)]
async fn the_backoff_of_an_entry_from_the_second_tier_spares_both_the_source_and_that_tier() {
    let world = World::new();
    graced(&world).await.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    let node = graced(&world).await;
    assert_eq!(fail(&node, "k").await.unwrap(), 1);
    node.l2.reset_calls();
    assert_eq!(fail(&node, "k").await.unwrap(), 1);
    assert_eq!(node.l2.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_grace_there_is_no_backoff() {
    let node = World::new().node_where(|s| s.grace_backoff("1h")).await;
    let runs = Runs::new();
    for _ in 0..3 {
        assert!(node.get_or_set("k", failing(&runs)).await.is_err());
    }
    assert_eq!(runs.so_far(), 3);
}

// l1_ttl

#[tokio::test(start_paused = true)]
async fn the_l1_ttl_limits_how_long_the_first_tier_is_relied_on() {
    let world = World::without_bus();
    let (a, b) = (world.node_where(|s| s.l1_ttl("2s")).await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    pass(ms(1_900)).await;
    assert_eq!(get(&a, "k").await, Some(1));
    assert_eq!(a.l2.on(Ops::READS).calls(), 0);
    b.set("k", 2_u32).await.unwrap();
    pass(ms(200)).await;
    assert_eq!(get(&a, "k").await, Some(2), "after 2 s it looks at L2");
}

#[tokio::test(start_paused = true)]
async fn an_entry_checked_after_the_l1_ttl_is_good_for_another_while() {
    let node = World::new().node_where(|s| s.ttl("1m").l1_ttl("2s")).await;
    node.set("k", 1_u32).await.unwrap();
    for round in 1..=5 {
        pass(ms(2_100)).await;
        for _ in 0..3 {
            assert_eq!(get(&node, "k").await, Some(1));
        }
        assert_eq!(node.l2.on(Ops::READS).calls(), round);
    }
    pass(secs(50)).await;
    assert_eq!(get(&node, "k").await, None, "its ttl counts all the same");
}

#[tokio::test(start_paused = true)]
async fn the_l1_ttl_never_prolongs_a_ttl() {
    let node = World::new().node_where(|s| s.ttl("2s").l1_ttl("1h")).await;
    node.set("k", 1_u32).await.unwrap();
    pass(ms(2_100)).await;
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn an_l1_ttl_of_zero_makes_every_read_look_at_the_second_tier() {
    let node = World::new().node_where(|s| s.ttl("1m").l1_ttl("0")).await;
    node.set("k", 1_u32).await.unwrap();
    for round in 1..=3 {
        assert_eq!(get(&node, "k").await, Some(1), "round {round}");
        assert_eq!(node.fill("k", 9).await, 1);
        assert!(node.has("k").await.unwrap());
    }
    assert_eq!(node.l2.on(Ops::READS).calls(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_factory_can_set_the_l1_ttl() {
    let node = World::new().node_where(|s| s.ttl("1m")).await;
    let produce = |cx: Context<u32>| async move {
        cx.l1_ttl("2s");
        Ok::<_, Error>(1)
    };
    node.get_or_set("k", produce).await.unwrap();
    pass(ms(1_900)).await;
    node.seen.take();
    get(&node, "k").await;
    pass(ms(200)).await;
    get(&node, "k").await;
    assert_eq!(node.seen.reads(), ["hit l1 k", "hit l2 k"]);
}

// jitter

#[tokio::test(start_paused = true)]
async fn jitter_adds_up_to_that_much_and_spreads() {
    let node = World::new().node_where(|s| s.ttl("10s").jitter("5s")).await;
    let mut lives = std::collections::BTreeSet::new();
    for _ in 0..200 {
        node.set("k", 1_u32).await.unwrap();
        let life = node.life("k").0.unwrap();
        assert!((10_000..=15_000).contains(&life), "{life}");
        lives.insert(life);
    }
    assert!(lives.len() > 50, "{lives:?}");
    let produced = |_| async { Ok::<_, Error>(1) };
    node.get_or_set("filled", produced).jitter("0").await.unwrap();
    assert_eq!(node.life("filled").0, Some(10_000));
}

#[tokio::test(start_paused = true)]
async fn entries_of_one_call_are_jittered_one_by_one() {
    let node = World::new().node_where(|s| s.ttl("10s").jitter("5s")).await;
    node.set_many((0..50).map(|i| (i.to_string(), 1_u32))).await.unwrap();
    let lives: std::collections::BTreeSet<_> =
        (0..50).map(|i| node.life(&i.to_string()).0).collect();
    assert!(lives.len() > 10, "{lives:?}");
}

#[tokio::test(start_paused = true)]
async fn the_backoff_has_no_jitter() {
    for _ in 0..10 {
        let world = World::new();
        let node = world
            .node_where(|s| {
                s.ttl("10s").grace("20h").grace_backoff("2s").timeout("1s").jitter("1h")
            })
            .await;
        node.set("k", 1_u32).jitter("0").await.unwrap();
        pass(secs(15)).await;
        assert_eq!(fail(&node, "k").await.unwrap(), 1);
        pass(ms(2_010)).await;
        assert_eq!(node.get::<u32>("k").grace("off").await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_never_ends_what_is_forever() {
    let node = World::new().node_where(|s| s.jitter("1h")).await;
    node.set_forever("k", 1_u32).await.unwrap();
    assert_eq!(node.life("k"), (None, None));
}

// promotion

#[tokio::test(start_paused = true)]
async fn promotion_keeps_the_remaining_life_and_not_the_default_ttl() {
    let world = World::without_bus();
    let a = world.node().await;
    for ttl in ["1s", "1h"] {
        let b = world.node_where(|s| s.ttl(ttl)).await;
        a.set("k", 1_u32).ttl("10s").await.unwrap();
        pass(secs(4)).await;
        assert_eq!(get(&b, "k").await, Some(1));
        pass(ms(5_900)).await;
        b.seen.take();
        assert_eq!(get(&b, "k").await, Some(1));
        assert_eq!(b.seen.reads(), ["hit l1 k"]);
        pass(ms(200)).await;
        assert_eq!(get(&b, "k").await, None);
        assert_eq!(get_stale(&b, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn promotion_keeps_what_is_left_of_the_grace() {
    let world = World::without_bus();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).ttl("10s").grace("20s").await.unwrap();
    pass(secs(9)).await;
    assert_eq!(get(&b, "k").await, Some(1));
    world.l2.take("bentocache:k").unwrap();
    pass(secs(20)).await;
    assert_eq!(get_stale(&b, "k").await, Some(1), "after 29 s");
    pass(secs(2)).await;
    assert_eq!(get_stale(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn promotion_keeps_the_time_of_creation() {
    let world = World::without_bus();
    let (a, b) = (graced(&world).await, graced(&world).await);
    a.set("k", 1_u32).await.unwrap();
    pass(secs(5)).await;
    assert_eq!(get(&b, "k").await, Some(1));
    // Newer than the entry, older than its promotion: must win when both are stale.
    a.set("k", 2_u32).ttl("1s").await.unwrap();
    pass(secs(6)).await;
    assert_eq!(get(&b, "k").await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn promotion_keeps_the_tags() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).tags(["t"]).await.unwrap();
    assert_eq!(get(&b, "k").await, Some(1));
    pass(ms(10)).await;
    a.delete_by_tag(["t"]).await.unwrap();
    settle().await;
    assert_eq!(get(&b, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn promotion_obeys_the_l1_ttl() {
    let world = World::without_bus();
    world.node().await.set("k", 1_u32).await.unwrap();
    let node = world.node().await;
    node.get::<u32>("k").l1_ttl("2s").await.unwrap();
    pass(ms(2_100)).await;
    node.seen.take();
    get(&node, "k").await;
    assert_eq!(node.seen.reads(), ["hit l2 k"]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_entry_is_not_promoted_as_fresh() {
    let world = World::without_bus();
    graced(&world).await.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    let node = graced(&world).await;
    assert_eq!(get(&node, "k").await, Some(1));
    assert_eq!(node.get::<u32>("k").grace("off").await.unwrap(), None);
}

// early refresh

/// A factory that gives the number of its run.
fn counting(
    runs: &Runs,
) -> impl FnOnce(Context<u32>) -> std::future::Ready<Result<u32, Error>> + use<> {
    let runs = runs.clone();
    move |_| std::future::ready(Ok(runs.count() as u32))
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_serves_the_value_and_refreshes_in_the_background_once() {
    for world in [World::new(), World::only_l1()] {
        let node = world.node_where(|s| s.ttl("100s").early_refresh(0.2)).await;
        let runs = Runs::new();
        let ask = || node.get_or_set("k", counting(&runs));
        assert_eq!(ask().await.unwrap(), 1);
        pass(secs(79)).await;
        assert_eq!(ask().await.unwrap(), 1);
        settle().await;
        assert_eq!(runs.so_far(), 1, "21 % are left");
        pass(ms(1_100)).await;
        for _ in 0..10 {
            assert_eq!(ask().await.unwrap(), 1, "the present value is served");
        }
        settle().await;
        assert_eq!(runs.so_far(), 2, "refreshed once");
        assert_eq!(ask().await.unwrap(), 2);
        pass(secs(79)).await;
        assert_eq!(ask().await.unwrap(), 2, "for a whole ttl again");
        assert_eq!(runs.so_far(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn the_share_of_an_early_refresh_is_one_of_the_ttl_and_not_of_the_l1_ttl() {
    let node = World::new().node_where(|s| s.ttl("100s").l1_ttl("10s").early_refresh(0.2)).await;
    let runs = Runs::new();
    for _ in 0..15 {
        assert_eq!(node.get_or_set("k", counting(&runs)).await.unwrap(), 1);
        settle().await;
        pass(secs(5)).await;
    }
    assert_eq!(runs.so_far(), 1, "75 s of 100 s are over");
    pass(secs(6)).await;
    node.get_or_set("k", counting(&runs)).await.unwrap();
    settle().await;
    node.get_or_set("k", counting(&runs)).await.unwrap();
    settle().await;
    assert_eq!(runs.so_far(), 2, "81 s of 100 s are over");
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_works_without_a_first_tier() {
    let node = World::only_l2().node_where(|s| s.ttl("100s").early_refresh(0.2)).await;
    let runs = Runs::new();
    assert_eq!(node.get_or_set("k", counting(&runs)).await.unwrap(), 1);
    pass(secs(81)).await;
    assert_eq!(node.get_or_set("k", counting(&runs)).await.unwrap(), 1);
    settle().await;
    assert_eq!(runs.so_far(), 2);
    assert_eq!(node.get_or_set("k", counting(&runs)).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_that_fails_keeps_the_value_and_backs_off() {
    let node = World::new()
        .node_where(|s| s.ttl("100s").early_refresh(0.2).grace("1h").grace_backoff("5s"))
        .await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(81)).await;
    let runs = Runs::new();
    for _ in 0..4 {
        assert_eq!(node.get_or_set("k", failing(&runs)).await.unwrap(), 1);
        settle().await;
    }
    assert_eq!(runs.so_far(), 1);
    pass(secs(6)).await;
    assert_eq!(node.get_or_set("k", failing(&runs)).await.unwrap(), 1);
    settle().await;
    assert_eq!(runs.so_far(), 2);
    assert_eq!(
        node.get::<u32>("k").grace("off").await.unwrap(),
        Some(1),
        "it is fresh all the while"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_forever_is_never_refreshed_early() {
    let node = World::new().node_where(|s| s.ttl("forever").early_refresh(0.9)).await;
    let runs = Runs::new();
    for _ in 0..3 {
        assert_eq!(node.get_or_set("k", counting(&runs)).await.unwrap(), 1);
        leap(secs(1_000 * HOUR)).await;
    }
    assert_eq!(runs.so_far(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_knows_the_present_value() {
    let node = World::new().node_where(|s| s.ttl("100s").early_refresh(0.5)).await;
    node.set("k", 41_u32).await.unwrap();
    pass(secs(60)).await;
    let produce = |cx: Context<u32>| async move { Ok::<_, Error>(*cx.stale().unwrap() + 1) };
    assert_eq!(node.get_or_set("k", produce).await.unwrap(), 41);
    settle().await;
    assert_eq!(get(&node, "k").await, Some(42));
}

// tags: how long what is known of them is kept

#[tokio::test(start_paused = true)]
async fn a_tagged_entry_lives_at_most_for_the_tag_ttl_and_its_marker_a_day_longer() {
    let node = World::new().node_where(|s| s.grace("1d")).await;
    let day = 24 * HOUR;
    node.set("long", 1_u32).ttl("40d").tags(["t"]).await.unwrap();
    node.set_forever("forever", 1_u32).tags(["t"]).await.unwrap();
    node.set("short", 1_u32).ttl("1d").tags(["t"]).await.unwrap();
    node.set_forever("untagged", 1_u32).await.unwrap();
    assert_eq!(node.remaining("long"), Some(secs(30 * day)));
    assert_eq!(node.remaining("forever"), Some(secs(30 * day)));
    assert_eq!(node.remaining("short"), Some(secs(2 * day)));
    assert_eq!(node.remaining("untagged"), Some(Duration::MAX));
    node.delete_by_tag(["t"]).await.unwrap();
    assert!(node.remaining("___bc:t:t").unwrap() >= secs(31 * day));
    leap(secs(30 * day - 10)).await;
    for key in ["long", "forever", "short"] {
        assert_eq!(node.get::<u32>(key).grace("off").await.unwrap(), None, "{key}");
    }
}

/// A marker that expired before the entries brought them back in another library.
#[tokio::test(start_paused = true)]
async fn an_entry_invalidated_by_its_tag_never_comes_back() {
    let world = World::new();
    let node = world.node_where(|s| s.tag_ttl("10s")).await;
    node.set_forever("k", 1_u32).tags(["t"]).await.unwrap();
    pass(secs(1)).await;
    node.delete_by_tag(["t"]).await.unwrap();
    let other = world.node_where(|s| s.tag_ttl("10s")).await;
    for _ in 0..50 {
        assert_eq!(get(&node, "k").await, None);
        assert_eq!(get(&other, "k").await, None);
        pass(secs(3_600)).await;
    }
}
