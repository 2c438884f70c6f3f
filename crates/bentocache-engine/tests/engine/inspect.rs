//! `inspect`: what is known of one entry.

use crate::common::{World, get, pass, secs, settle};
#[cfg(all(feature = "lz4", feature = "msgpack"))]
use bentocache::Codec;
use bentocache::{EntryState, Error};
use bentocache_testkit::Ops;

#[tokio::test(start_paused = true)]
async fn it_tells_the_tiers_the_times_and_the_size() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", "value".to_owned()).ttl("10s").l1_ttl("2s").grace("20s").await.unwrap();
    let found = a.inspect("k").await.unwrap();
    assert!(found.is_there() && !found.is_change_waiting);
    let (l1, l2) = (found.l1.unwrap(), found.l2.unwrap());
    let created_at = a.document("k").unwrap()["createdAt"].as_u64().unwrap();
    assert_eq!([l1.created_at, l2.created_at], [created_at; 2]);
    assert_eq!([l1.state, l2.state], [EntryState::Fresh; 2]);
    assert_eq!(l1.fresh_until, Some(created_at + 2_000));
    assert_eq!(l2.fresh_until, Some(created_at + 10_000));
    assert_eq!([l1.stale_until, l2.stale_until], [Some(created_at + 30_000); 2]);
    assert_eq!((l1.size, l1.codec), (Some(7), None));
    let stored = a.map.peek("bentocache:k").unwrap().len() as u64;
    assert_eq!((l2.size, l2.codec), (Some(stored), Some("json")));
    assert!(!l2.is_compressed && !l2.is_encrypted);
    let there = b.inspect("k").await.unwrap();
    assert!(there.l1.is_none() && there.l2.is_some(), "it changes nothing");
    assert!(b.inspect("k").await.unwrap().l1.is_none());
    assert!(!a.inspect("other").await.unwrap().is_there());
}

#[tokio::test(start_paused = true)]
async fn it_tells_the_state() {
    let node = World::new().node().await;
    let states = async |key: &str| {
        let found = node.inspect(key).await.unwrap();
        [found.l1.map(|entry| entry.state), found.l2.map(|entry| entry.state)]
    };
    node.set("k", 1_u32).ttl("10s").grace("20s").await.unwrap();
    node.set("forever", 1_u32).ttl("forever").await.unwrap();
    let forever = node.inspect("forever").await.unwrap().l2.unwrap();
    assert_eq!((forever.fresh_until, forever.stale_until), (None, None));
    pass(secs(10)).await;
    assert_eq!(states("k").await, [Some(EntryState::Stale); 2]);
    node.set("expired", 1_u32).grace("1h").await.unwrap();
    node.expire("expired").await.unwrap();
    assert_eq!(states("expired").await, [Some(EntryState::Stale); 2]);
    assert_eq!(node.inspect("expired").await.unwrap().l1.unwrap().fresh_until, Some(0));
    node.bus.cut();
    node.bus.restore();
    settle().await;
    assert_eq!(states("forever").await, [Some(EntryState::Unverified), Some(EntryState::Fresh)]);
    pass(secs(25)).await;
    let [l1, l2] = states("k").await;
    assert!(matches!(l1, None | Some(EntryState::Dead)) && l2.is_none());
    node.map.put("bentocache:foreign", &b"no entry"[..], None);
    let foreign = node.inspect("foreign").await.unwrap().l2.unwrap();
    assert_eq!((foreign.state, foreign.size), (EntryState::Unreadable, Some(8)));
}

#[tokio::test(start_paused = true)]
async fn it_tells_of_each_tag_whether_the_entry_is_valid_under_it() {
    for world in [World::new(), World::new().without_clear(), World::only_l1()] {
        let node = world.node().await;
        let users = node.namespace("users");
        users.set("k", 1_u32).grace("1h").tags(["a", "b"]).await.unwrap();
        let tags = async || {
            let found = users.inspect("k").await.unwrap();
            let entry = found.l2.or(found.l1).unwrap();
            let tags = entry.tags.into_iter().map(|tag| (tag.name, tag.is_valid));
            (entry.state, tags.collect::<Vec<_>>())
        };
        let tag = |name: &str, valid| (name.to_owned(), Some(valid));
        assert_eq!(tags().await, (EntryState::Fresh, vec![tag("a", true), tag("b", true)]));
        users.expire_by_tag(["b"]).await.unwrap();
        assert_eq!(tags().await, (EntryState::Stale, vec![tag("a", true), tag("b", false)]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_cannot_be_read_is_unknown() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("k", 1_u32).tags(["t"]).await.unwrap();
    b.l2.on(Ops::GET_MANY).fail();
    let entry = b.inspect("k").await.unwrap().l2.unwrap();
    assert_eq!((entry.state, entry.tags[0].is_valid), (EntryState::Stale, None));
}

#[cfg(all(feature = "lz4", feature = "msgpack"))]
#[tokio::test(start_paused = true)]
async fn it_tells_the_encoding() {
    let codec = Codec::message_pack().compress_above(100);
    let node = World::new().node_where(|store| store.codec(codec)).await;
    node.set("small", "x".to_owned()).await.unwrap();
    node.set("large", "x".repeat(10_000)).await.unwrap();
    let small = node.inspect("small").await.unwrap().l2.unwrap();
    assert_eq!((small.codec, small.is_compressed), (Some("msgpack"), false));
    let found = node.inspect("large").await.unwrap();
    let (l1, l2) = (found.l1.unwrap(), found.l2.unwrap());
    assert_eq!((l2.codec, l2.is_compressed), (Some("msgpack"), true));
    assert!(l2.size.unwrap() < 1_000 && l1.size.unwrap() > 10_000);
}

#[tokio::test(start_paused = true)]
async fn it_counts_as_no_read() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.seen.take();
    node.inspect("k").await.unwrap();
    node.inspect("none").await.unwrap();
    assert_eq!((node.stats().reads(), node.seen.reads()), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_l2_is_an_error_and_l1_can_be_inspected() {
    let node = World::new().node().await;
    node.set("k", 1_u32).await.unwrap();
    node.l2.fail();
    assert!(matches!(node.inspect("k").await, Err(Error::L2 { operation: "inspect", .. })));
    let found = node.inspect("k").skip_l2_read(true).await.unwrap();
    assert!(found.l1.is_some() && found.l2.is_none());
    node.delete("k").await.unwrap();
    let found = node.inspect("k").skip_l2_read(true).await.unwrap();
    assert!(found.is_change_waiting && !found.is_there());
    node.l2.calm();
    assert!(node.inspect("k").await.unwrap().l2.is_none(), "as this process reads it");
    pass(secs(5)).await;
    assert!(!node.inspect("k").await.unwrap().is_change_waiting);
    assert_eq!(get(&node, "k").await, None);
    assert!(matches!(node.inspect("").await, Err(Error::InvalidKey { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_printed_and_every_handle_has_it() {
    let node = World::new().node().await;
    node.set("k", 1_u32).tags(["t"]).await.unwrap();
    let json = serde_json::to_value(node.inspect("k").await.unwrap()).unwrap();
    assert_eq!((&json["key"], &json["l2"]["state"]), (&"k".into(), &"fresh".into()));
    assert_eq!(json["l1"]["tags"][0]["is_valid"], true);
    assert!(node.typed::<u32>().inspect("k").await.unwrap().is_there());
    let local = node.local::<std::time::Instant>();
    local.set("l", std::time::Instant::now()).await.unwrap();
    let entry = local.inspect("l").await.unwrap().l1.unwrap();
    assert_eq!((entry.size, entry.state), (None, EntryState::Fresh));
    let blocking = node.cache.blocking();
    let found = tokio::task::spawn_blocking(move || blocking.inspect("k").unwrap());
    assert!(found.await.unwrap().is_there());
    let off = World::new().node_where(|store| store.enabled(false)).await;
    assert!(!off.inspect("k").await.unwrap().is_there());
}
