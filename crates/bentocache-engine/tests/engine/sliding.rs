//! `sliding`: a value that nobody reads for the idle time is gone.

use crate::common::{Node, World, fill, get, get_stale, leap, pass, secs, settle};
use crate::races::{Source, fresh, go};
use bentocache::Error;
use bentocache_testkit::Ops;

const IDLE: u64 = 40;

/// A node whose values slide.
async fn sliding(world: &World) -> Node {
    world.node_where(|s| s.ttl("1h").sliding("40s").l2_circuit_breaker("off", 1)).await
}

fn all_tiers() -> [World; 4] {
    [World::new(), World::without_bus(), World::only_l1(), World::only_l2()]
}

// ---- The promise ----

#[tokio::test(start_paused = true)]
async fn a_value_that_is_asked_for_in_time_stays_until_its_ttl() {
    for world in all_tiers() {
        for call in ["get", "get_many", "get_or_set"] {
            let node = sliding(&world).await;
            node.set("k", 1_u32).await.unwrap();
            for i in 0..119 {
                pass(secs(30)).await;
                let found = match call {
                    "get" => get(&node, "k").await,
                    "get_many" => node.get_many(["k", "none"]).await.unwrap()[0],
                    _ => Some(fill(&node, "k", 2).await),
                };
                assert_eq!(found, Some(1), "{call} {i}");
            }
            // The ttl is the upper limit.
            pass(secs(31)).await;
            assert_eq!(get_stale(&node, "k").await, None, "{call}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_nobody_asks_for_is_gone_everywhere() {
    for world in all_tiers() {
        let (a, b) = (sliding(&world).await, sliding(&world).await);
        a.set("k", 1_u32).grace("1h").await.unwrap();
        settle().await;
        get(&b, "k").await;
        pass(secs(9)).await;
        assert_eq!(get(&a, "k").await, Some(1));
        pass(secs(IDLE + IDLE / 4)).await;
        // Also under grace, and at once.
        for node in [&a, &b, &sliding(&world).await] {
            assert_eq!(get_stale(node, "k").await, None);
            assert!(!node.has("k").await.unwrap());
        }
        assert_eq!(a.document("k"), None);
    }
}

#[tokio::test(start_paused = true)]
async fn the_traffic_may_move_from_one_node_to_another() {
    for world in [World::new(), World::without_bus(), World::only_l2()] {
        let nodes = [sliding(&world).await, sliding(&world).await, sliding(&world).await];
        nodes[0].set("k", 1_u32).await.unwrap();
        settle().await;
        // Several reads by one node, and a pause of ¾ before each.
        for i in 0..100 {
            pass(secs(30)).await;
            assert_eq!(get(&nodes[i / 3 % 3], "k").await, Some(1), "read {i}");
        }
        // Nodes that heard nothing of it for long have it too.
        for node in &nodes {
            assert_eq!(get(node, "k").await, Some(1));
        }
        pass(secs(IDLE + IDLE / 4)).await;
        for node in &nodes {
            assert_eq!(get(node, "k").await, None);
        }
    }
}

/// The worst moments: a use just before L2 has to be told again, and then a pause.
#[tokio::test(start_paused = true)]
async fn uses_at_any_distance_up_to_three_quarters_keep_it() {
    for first in 1..=30 {
        for second in [1, 9, 10, 11, 29, 30] {
            let world = World::new();
            let (a, b) = (sliding(&world).await, sliding(&world).await);
            a.set("k", 1_u32).await.unwrap();
            settle().await;
            for (i, wait) in [first, second, 30, first, 30].into_iter().enumerate() {
                pass(secs(wait)).await;
                let node = if i % 2 == 0 { &a } else { &b };
                assert_eq!(get(node, "k").await, Some(1), "{first} {second}, {i}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn l2_is_told_at_most_once_in_a_quarter_of_the_idle_time() {
    for world in [World::new(), World::only_l2()] {
        let node = sliding(&world).await;
        node.set("k", 1_u32).await.unwrap();
        node.l2.reset_calls();
        for _ in 0..400 {
            pass(secs(1)).await;
            assert_eq!(get(&node, "k").await, Some(1));
        }
        let told = node.l2.on(Ops::TOUCH).calls();
        assert!((30..=41).contains(&told), "told {told} times in 400 s");
        assert_eq!(node.l2.on(Ops::SET).calls(), 0);
        // `has` is no use.
        for _ in 0..50 {
            pass(secs(1)).await;
            node.has("k").await.unwrap();
        }
        assert_eq!(get(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn the_expiry_in_l2_is_the_idle_time_but_not_more_than_what_is_left() {
    let world = World::new();
    let node = sliding(&world).await;
    node.set("k", 1_u32).ttl("60s").await.unwrap();
    assert_eq!(node.remaining("k"), Some(secs(IDLE)));
    pass(secs(30)).await;
    get(&node, "k").await;
    settle().await;
    // 30 s are left of the ttl.
    assert!(node.remaining("k").unwrap() <= secs(30), "{:?}", node.remaining("k"));
    node.set("k", 1_u32).ttl("10s").grace("5s").await.unwrap();
    assert_eq!(node.remaining("k"), Some(secs(15)));
    assert_eq!(node.document("k").unwrap()["idle"], 40_000);
    // Of the call, and off.
    node.set("k", 1_u32).sliding("20s").await.unwrap();
    assert_eq!(node.remaining("k"), Some(secs(20)));
    node.set("k", 1_u32).sliding("off").await.unwrap();
    assert_eq!(node.remaining("k"), Some(secs(3_600)));
    assert!(matches!(node.set("k", 1_u32).sliding("0s").await, Err(Error::InvalidOption { .. })));
}

/// What a node reads slides there too, whatever the options of that node are.
#[tokio::test(start_paused = true)]
async fn a_node_without_the_option_lets_the_value_slide() {
    for world in [World::new(), World::only_l2()] {
        let (a, b) = (sliding(&world).await, world.node().await);
        a.set("k", 1_u32).await.unwrap();
        for _ in 0..20 {
            pass(secs(30)).await;
            assert_eq!(get(&b, "k").await, Some(1));
        }
        pass(secs(IDLE + IDLE / 4)).await;
        assert_eq!((get(&a, "k").await, get(&b, "k").await), (None, None));
    }
}

// ---- Together with other options ----

#[tokio::test(start_paused = true)]
async fn an_invalidated_tag_wins_over_every_use() {
    for world in [World::new(), World::only_l1(), World::only_l2(), World::new().without_clear()] {
        let (a, b) = (sliding(&world).await, sliding(&world).await);
        a.set("k", 1_u32).tags(["t"]).grace("1h").await.unwrap();
        for _ in 0..5 {
            pass(secs(30)).await;
            assert_eq!(get(&a, "k").await, Some(1));
        }
        let other = if a.document("k").is_some() { &b } else { &a };
        other.expire_by_tag(["t"]).await.unwrap();
        pass(secs(2)).await;
        for _ in 0..5 {
            pass(secs(20)).await;
            for node in [&a, &b] {
                assert_eq!(fresh(node, "k").await, None);
            }
            // Stale, as long as somebody asks for it.
            assert_eq!(get_stale(&a, "k").await, Some(1));
        }
        pass(secs(IDLE + IDLE / 4)).await;
        assert_eq!(get_stale(&a, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_is_used_too_and_ends_with_its_grace() {
    for world in all_tiers() {
        let node = sliding(&world).await;
        node.set("k", 1_u32).ttl("1m").grace("2m").await.unwrap();
        for _ in 0..5 {
            pass(secs(30)).await;
            assert_eq!(get_stale(&node, "k").await, Some(1));
        }
        pass(secs(31)).await;
        assert_eq!(get_stale(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_l1_ttl_only_looks_at_l2_more_often() {
    let world = World::new();
    let node = sliding(&world).await;
    node.set("k", 1_u32).l1_ttl("5s").await.unwrap();
    for _ in 0..40 {
        pass(secs(30)).await;
        assert_eq!(node.get("k").l1_ttl("5s").await.unwrap(), Some(1_u32));
    }
    pass(secs(IDLE + IDLE / 4)).await;
    assert_eq!(get(&node, "k").await, None);
}

#[tokio::test(start_paused = true)]
async fn a_touch_keeps_the_idle_time_and_gives_a_new_ttl() {
    for world in all_tiers() {
        let node = sliding(&world).await;
        node.set("k", 1_u32).ttl("1m").await.unwrap();
        pass(secs(35)).await;
        assert!(node.touch("k").ttl("1h").await.unwrap());
        if node.document("k").is_some() {
            assert_eq!(node.remaining("k"), Some(secs(IDLE)));
        }
        for _ in 0..10 {
            pass(secs(30)).await;
            assert_eq!(get(&node, "k").await, Some(1));
        }
        pass(secs(IDLE + IDLE / 4)).await;
        assert!(!node.touch("k").await.unwrap());
        assert_eq!(get_stale(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_factory_may_not_outlive_the_idle_end_and_its_value_slides() {
    let world = World::new();
    let node = sliding(&world).await;
    let source = Source::new();
    for run in 1..=3 {
        let call = node.get_or_set("k", source.gives(7_u32));
        assert_eq!(call.await.unwrap(), 7);
        assert_eq!(source.runs(), run);
        pass(secs(30)).await;
        assert_eq!(fill(&node, "k", 8).await, 7);
        pass(secs(IDLE + IDLE / 4)).await;
    }
}

// ---- Races and failures ----

/// A `set` by another node while L2 is told of a use of the older value: it keeps its expiry.
#[tokio::test(start_paused = true)]
async fn a_value_that_is_set_while_l2_is_told_of_a_use_keeps_its_expiry() {
    let world = World::new();
    let (a, b) = (sliding(&world).await, world.node().await);
    a.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    a.l2.on(Ops::TOUCH).hold();
    assert_eq!(get(&a, "k").await, Some(1));
    a.l2.on(Ops::TOUCH).held(1).await;
    b.set("k", 2_u32).ttl("10m").await.unwrap();
    a.l2.on(Ops::TOUCH).release();
    settle().await;
    assert!(a.remaining("k").unwrap() > secs(590), "{:?}", a.remaining("k"));
    pass(secs(300)).await;
    assert_eq!((get(&a, "k").await, get(&b, "k").await), (Some(2), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_is_not_brought_back_by_a_use() {
    let world = World::new();
    let (a, b) = (sliding(&world).await, sliding(&world).await);
    a.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    a.l2.on(Ops::TOUCH).hold();
    get(&a, "k").await;
    a.l2.on(Ops::TOUCH).held(1).await;
    b.delete("k").await.unwrap();
    a.l2.on(Ops::TOUCH).release();
    settle().await;
    assert_eq!((a.document("k"), get(&a, "k").await, get(&b, "k").await), (None, None, None));
}

/// A use of which L2 could not be told is told of later.
#[tokio::test(start_paused = true)]
async fn a_use_that_l2_did_not_hear_of_is_repeated() {
    let world = World::new();
    let node = sliding(&world).await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.on(Ops::TOUCH).fail();
    for _ in 0..6 {
        pass(secs(5)).await;
        assert_eq!(get(&node, "k").await, Some(1));
    }
    settle().await;
    assert!(node.remaining("k").unwrap() <= secs(10));
    node.l2.calm();
    pass(secs(4)).await;
    assert_eq!(get(&node, "k").await, Some(1));
    settle().await;
    assert!(node.remaining("k").unwrap() > secs(35), "{:?}", node.remaining("k"));
}

/// Nobody waits for L2 to be told.
#[tokio::test(start_paused = true)]
async fn a_reader_does_not_wait_for_l2_to_be_told() {
    let world = World::new();
    let node = sliding(&world).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(15)).await;
    node.l2.on(Ops::TOUCH).hang();
    let read = go(node.get::<u32>("k"));
    assert_eq!(read.await.unwrap().unwrap(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_waits_is_stored_for_its_idle_time() {
    let world = World::new();
    let node = sliding(&world).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    node.l2.calm();
    pass(secs(6)).await;
    let left = node.remaining("k").unwrap();
    assert!(left <= secs(IDLE) && left > secs(30), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn an_expired_value_is_kept_no_longer_than_its_idle_time() {
    let world = World::new();
    let node = sliding(&world).await;
    node.set("k", 1_u32).grace("1h").await.unwrap();
    node.expire("k").await.unwrap();
    assert!(node.remaining("k").unwrap() <= secs(IDLE));
    leap(secs(IDLE + 1)).await;
    assert_eq!(get_stale(&node, "k").await, None);
}
