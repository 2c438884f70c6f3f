//! Early refresh: a value near its end is served and refreshed once in the background.

use crate::common::{Node, World, ms, pass, secs};
use crate::races::{Source, calm, fresh, go};
use bentocache::Context;
use tokio::time::Instant;

/// A node that refreshes in the last fifth of an entry's life.
async fn eager(world: &World) -> Node {
    world.node_where(|s| s.ttl("100s").early_refresh(0.2)).await
}

#[tokio::test(start_paused = true)]
async fn an_entry_near_its_end_is_served_and_refreshed_once_in_the_background() {
    for world in [World::only_l1(), World::new()] {
        let node = eager(&world).await;
        node.set("k", 1_u32).await.unwrap();
        let source = Source::slow(secs(5));
        pass(ms(79_000)).await;
        assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
        calm().await;
        assert_eq!(source.runs(), 0);
        pass(ms(1_001)).await;
        let began = Instant::now();
        for _ in 0..10 {
            assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
        }
        assert_eq!(began.elapsed(), ms(0));
        pass(secs(4)).await;
        assert_eq!(node.get_or_set("k", source.gives(3_u32)).await.unwrap(), 1);
        pass(ms(1_001)).await;
        assert_eq!((fresh(&node, "k").await, source.runs()), (Some(2), 1));
        // It has its full life again.
        pass(secs(70)).await;
        assert_eq!(node.get_or_set("k", source.gives(4_u32)).await.unwrap(), 2);
        calm().await;
        assert_eq!(source.runs(), 1);
        if node.document("k").is_some() {
            assert_eq!(node.document("k").unwrap()["value"], 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_with_a_second_tier_only_refreshes_ahead_too() {
    let node = eager(&World::only_l2()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(90)).await;
    let source = Source::slow(secs(1));
    let began = Instant::now();
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    assert_eq!(began.elapsed(), ms(0));
    pass(secs(2)).await;
    assert_eq!((fresh(&node, "k").await, source.runs()), (Some(2), 1));
}

#[tokio::test(start_paused = true)]
async fn an_entry_found_in_the_second_tier_near_its_end_is_refreshed_too() {
    let world = World::new();
    world.node().await.set("k", 1_u32).ttl("100s").await.unwrap();
    pass(secs(90)).await;
    let node = eager(&world).await;
    let source = Source::slow(secs(1));
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    pass(secs(2)).await;
    assert_eq!((fresh(&node, "k").await, source.runs()), (Some(2), 1));
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_first_tier_brings_no_refresh_forward() {
    let world = World::new();
    let node = world.node_where(|s| s.ttl("100s").l1_ttl("10s").early_refresh(0.2)).await;
    let source = Source::new();
    node.set("k", 1_u32).await.unwrap();
    for _ in 0..7 {
        assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
        calm().await;
        pass(secs(11)).await;
    }
    assert_eq!(source.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_call_goes_before_that_of_the_store() {
    let node = eager(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(60)).await;
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).early_refresh(0.5).await.unwrap(), 1);
    calm().await;
    assert_eq!((fresh(&node, "k").await, source.runs()), (Some(2), 1));
    pass(secs(90)).await;
    assert_eq!(node.get_or_set("k", source.gives(3_u32)).early_refresh(0.0).await.unwrap(), 2);
    calm().await;
    assert_eq!(source.runs(), 1);
    assert!(node.get_or_set("k", source.gives(3_u32)).early_refresh(1.0).await.is_err());
    assert!(node.get_or_set("k", source.gives(3_u32)).early_refresh(f32::NAN).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_lasts_for_ever_is_never_refreshed() {
    let node = eager(&World::new()).await;
    node.set_forever("k", 1_u32).await.unwrap();
    pass(secs(50_000)).await;
    let source = Source::new();
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    calm().await;
    assert_eq!(source.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_leaves_the_value_and_is_not_repeated_on_every_call() {
    for grace in ["1h", "off"] {
        let node = World::new()
            .node_where(|s| s.ttl("100s").early_refresh(0.5).grace(grace).grace_backoff("10s"))
            .await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(60)).await;
        let source = Source::new();
        for _ in 0..10 {
            assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
            calm().await;
        }
        assert_eq!(source.runs(), 1, "grace {grace}");
        pass(ms(10_001)).await;
        assert_eq!(node.get_or_set("k", source.fails(1)).await.unwrap(), 1);
        calm().await;
        assert_eq!(source.runs(), 2, "grace {grace}");
        // The entry's life is unchanged.
        pass(ms(29_900)).await;
        assert_eq!(fresh(&node, "k").await, Some(1));
        pass(ms(200)).await;
        assert_eq!(fresh(&node, "k").await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_sees_the_present_value() {
    let node = eager(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(90)).await;
    let more =
        |cx: Context<u32>| async move { Ok::<_, crate::races::Down>(cx.stale().unwrap() + 10) };
    assert_eq!(node.get_or_set("k", more).await.unwrap(), 1);
    calm().await;
    assert_eq!(fresh(&node, "k").await, Some(11));
}

#[tokio::test(start_paused = true)]
async fn those_who_come_after_the_end_join_the_refresh() {
    let node = eager(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(99)).await;
    let source = Source::slow(secs(5));
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    pass(secs(2)).await;
    let late: Vec<_> = (0..10).map(|_| go(node.get_or_set("k", source.gives(3_u32)))).collect();
    for call in late {
        assert_eq!(call.await.unwrap().unwrap(), 2);
    }
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_does_not_overwrite_what_was_set_meanwhile() {
    let node = eager(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(90)).await;
    let source = Source::held();
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    source.begun(1).await;
    node.set("k", 3_u32).await.unwrap();
    source.release();
    calm().await;
    assert_eq!(fresh(&node, "k").await, Some(3));
    assert_eq!(node.document("k").unwrap()["value"], 3);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_of_what_was_just_refreshed_is_dropped() {
    let node = eager(&World::new()).await;
    node.set("k", 1_u32).await.unwrap();
    pass(secs(90)).await;
    let source = Source::new();
    // Two see the old entry before the first refresh begins.
    assert_eq!(node.get_or_set("k", source.gives(2_u32)).await.unwrap(), 1);
    assert_eq!(node.get_or_set("k", source.gives(3_u32)).await.unwrap(), 1);
    calm().await;
    assert_eq!(node.get_or_set("k", source.gives(4_u32)).await.unwrap(), 2);
    calm().await;
    assert_eq!(source.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_skips_is_not_repeated_on_every_call() {
    for world in [World::only_l1(), World::new()] {
        let node = world.node_where(|s| s.ttl("100s").early_refresh(0.2).grace_backoff("5s")).await;
        node.set("k", 1_u32).await.unwrap();
        pass(secs(81)).await;
        let source = Source::new();
        let skips = || {
            let source = source.clone();
            |cx: Context<u32>| async move {
                source.run().await;
                cx.skip()
            }
        };
        for runs in [1, 1, 1] {
            assert_eq!(node.get_or_set("k", skips()).await.unwrap(), 1);
            calm().await;
            assert_eq!(source.runs(), runs);
        }
        pass(ms(5_001)).await;
        assert_eq!(node.get_or_set("k", skips()).await.unwrap(), 1);
        calm().await;
        assert_eq!(source.runs(), 2);
    }
}
