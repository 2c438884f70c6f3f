//! What is lost when changes that failed are repeated.

#![allow(clippy::unwrap_used)]

use crate::common::{World, get, ms, pass, secs};
use bentocache::{EventKind, RecoveryMode, Store};
use bentocache_testkit::Ops;

#[tokio::test(start_paused = true)]
async fn a_write_that_is_repeated_while_the_bus_comes_back_is_not_lost() {
    let world = World::new();
    let options =
        |store: Store| store.l2_circuit_breaker("off", 1).recovery_mode(RecoveryMode::LastWrite);
    let node = world.node_where(options).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    node.l2.calm();
    node.l2.on(Ops::WRITES).hold();
    // The first return of the link begins the repetition, the second one comes into it.
    for _ in 0..2 {
        node.bus.cut();
        pass(ms(10)).await;
        node.bus.restore();
        pass(ms(10)).await;
    }
    node.l2.on(Ops::WRITES).release();
    pass(secs(30)).await;
    assert_eq!(node.document("k").map(|document| document["value"].clone()), Some(1.into()));
    assert_eq!(get(&node, "k").await, Some(1));
}

#[tokio::test(start_paused = true)]
async fn the_last_of_two_writes_that_waited_is_not_taken_back() {
    let world = World::new();
    let node = || world.node_where(|store| store.recovery(100, "100ms"));
    let nodes = [node().await, node().await];
    for (value, node) in nodes.iter().enumerate() {
        node.l2.on(Ops::WRITES).fail();
        node.set("k", value).await.unwrap();
        pass(ms(5)).await;
    }
    // The one that wrote last is the first to repeat it.
    for node in nodes.iter().rev() {
        node.l2.calm();
        while node.map.peek("bentocache:k").is_none() {
            pass(ms(5)).await;
        }
    }
    pass(secs(30)).await;
    assert_eq!(nodes[0].document("k").map(|document| document["value"].clone()), Some(1.into()));
    for node in &nodes {
        assert_eq!(get(node, "k").await, Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn the_length_of_the_queue_is_told_when_a_later_change_succeeds() {
    let world = World::new();
    let node = world.node_where(|store| store.l2_circuit_breaker("off", 1)).await;
    node.l2.on(Ops::WRITES).fail();
    node.set("k", 1_u32).await.unwrap();
    node.l2.calm();
    node.set("k", 2_u32).await.unwrap();
    pass(secs(30)).await;
    let is_empty = |event: &EventKind<'_>| matches!(event, EventKind::RecoveryDone { queued: 0 });
    assert_eq!(node.seen.count(is_empty), 1);
}
