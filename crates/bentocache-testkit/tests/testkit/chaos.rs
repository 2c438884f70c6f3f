//! Faults come and go as they were switched, and holds stop calls where they say.

use std::time::Duration;

use bentocache_driver::{
    BusDriver, BusEvent, BusStream, ErrorKind, L1Driver, L2Driver, Link, LockDriver, NEVER, Topic,
};
use bentocache_testkit::{
    Chaos, ChaosBus, ChaosL1, ChaosL2, ChaosLock, MapBus, MapL1, MapL2, MapLock, Ops, entry,
};
use bytes::Bytes;
use futures_core::Stream;
use tokio::time::{Instant, timeout};

type Store = ChaosL2<MapL2>;

fn store() -> (Store, Chaos) {
    let store = ChaosL2::new(MapL2::new());
    let chaos = store.chaos();
    (store, chaos)
}

async fn set(store: &Store) -> Result<(), ErrorKind> {
    store.set("a", Bytes::from_static(b"1"), None).await.map_err(|error| error.kind())
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx));
    timeout(Duration::from_secs(5), next).await.expect("an item in time")
}

/// What is there without waiting.
async fn now<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx));
    timeout(Duration::from_millis(50), next).await.ok().flatten()
}

#[tokio::test]
async fn fails_and_calms_down() {
    let (store, chaos) = store();
    chaos.fail();
    assert_eq!(set(&store).await, Err(ErrorKind::Unavailable));
    assert!(store.inner().is_empty(), "a failed call does nothing");
    chaos.fail_with(ErrorKind::Timeout);
    assert_eq!(set(&store).await, Err(ErrorKind::Timeout));
    chaos.calm();
    assert_eq!(set(&store).await, Ok(()));
    chaos.fail_late();
    assert!(store.delete(&["a"]).await.is_err());
    assert!(store.inner().is_empty(), "a call that fails late has done its work");
}

#[tokio::test]
async fn fails_the_next_calls_only() {
    let (store, chaos) = store();
    chaos.fail_next(2);
    assert!(set(&store).await.is_err());
    assert!(store.get("a").await.is_err());
    assert!(set(&store).await.is_ok());
}

#[tokio::test]
async fn fails_some_operations_only() {
    let (store, chaos) = store();
    chaos.on(Ops::WRITES).fail();
    assert!(set(&store).await.is_err());
    assert!(store.pull("a").await.is_err());
    assert_eq!(store.get("a").await.unwrap(), None);
    chaos.on(Ops::SET).calm();
    assert!(set(&store).await.is_ok());
    assert!(store.delete(&["a"]).await.is_err());
}

#[tokio::test]
async fn fails_by_chance_and_repeatably() {
    let (store, chaos) = store();
    let mut rows = Vec::new();
    for _ in 0..2 {
        chaos.fail_often(0.3, 7);
        let mut row = Vec::new();
        for _ in 0..1_000 {
            row.push(store.get("a").await.is_err());
        }
        rows.push(row);
    }
    assert_eq!(rows[0], rows[1]);
    let failures = rows[0].iter().filter(|failed| **failed).count();
    assert!((230..370).contains(&failures), "{failures} of 1,000");
    chaos.fail_often(0.0, 7);
    assert!(store.get("a").await.is_ok());
    chaos.fail_often(1.0, 7);
    assert!(store.get("a").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn slow_follows_a_paused_clock() {
    let (store, chaos) = store();
    chaos.slow(Duration::from_secs(3600));
    let start = Instant::now();
    set(&store).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 3600);
    chaos.fail();
    assert!(set(&store).await.is_err());
    assert_eq!(start.elapsed().as_secs(), 7200, "a slow failure");
}

#[tokio::test(start_paused = true)]
async fn hangs_until_switched() {
    let (store, chaos) = store();
    chaos.hang();
    let hour = Duration::from_secs(3600);
    assert!(timeout(hour, set(&store)).await.is_err());
    let call = tokio::spawn({
        let store = store.clone();
        async move { set(&store).await }
    });
    chaos.called(2).await;
    chaos.fail();
    assert_eq!(call.await.unwrap(), Err(ErrorKind::Unavailable));
    chaos.hang();
    let call = tokio::spawn({
        let store = store.clone();
        async move { set(&store).await }
    });
    chaos.called(3).await;
    assert!(store.inner().is_empty());
    chaos.calm();
    assert_eq!(call.await.unwrap(), Ok(()));
    assert_eq!(store.inner().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn holds_before_and_after_the_work() {
    let (store, chaos) = store();
    for (is_after, len) in [(false, 0), (true, 1)] {
        store.inner().take("a");
        if is_after {
            chaos.on(Ops::SET).hold_after();
        } else {
            chaos.on(Ops::SET).hold();
        }
        let call = tokio::spawn({
            let store = store.clone();
            async move { set(&store).await }
        });
        chaos.held(1).await;
        assert_eq!(store.inner().len(), len, "held after: {is_after}");
        assert!(store.get("b").await.is_ok(), "other operations go on");
        assert!(!call.is_finished());
        chaos.release();
        call.await.unwrap().unwrap();
        set(&store).await.unwrap();
    }
}

#[tokio::test]
async fn a_held_reader_keeps_what_it_read() {
    let (store, chaos) = store();
    set(&store).await.unwrap();
    chaos.on(Ops::GET).hold_after();
    let reader = tokio::spawn({
        let store = store.clone();
        async move { store.get("a").await.unwrap() }
    });
    chaos.on(Ops::GET).held(1).await;
    store.delete(&["a"]).await.unwrap();
    chaos.release();
    assert_eq!(reader.await.unwrap().as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn releases_one_by_one_and_forgets_the_abandoned() {
    let (store, chaos) = store();
    chaos.hold();
    assert!(!chaos.release_one());
    let spawn = |key: &'static str| {
        let store = store.clone();
        tokio::spawn(async move { store.set(key, Bytes::new(), None).await.unwrap() })
    };
    let first = spawn("first");
    chaos.held(1).await;
    let second = spawn("second");
    chaos.held(2).await;
    let third = spawn("third");
    chaos.held(3).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(chaos.held_now(), 2);
    assert!(chaos.release_one());
    second.await.unwrap();
    assert_eq!(store.inner().all_keys(), ["second"]);
    assert!(!third.is_finished());
    chaos.release();
    third.await.unwrap();
    assert_eq!(chaos.held_now(), 0);
}

#[tokio::test]
async fn counts_calls_by_operation() {
    let (store, chaos) = store();
    set(&store).await.unwrap();
    store.get_many(&["a", "b"]).await.unwrap();
    chaos.fail();
    let _ = store.get("a").await;
    assert_eq!(chaos.calls(), 3);
    assert_eq!(chaos.on(Ops::READS).calls(), 2);
    assert_eq!(chaos.on(Ops::GET_MANY).calls(), 1);
    assert_eq!(chaos.on(Ops::DELETE).calls(), 0);
    chaos.on(Ops::GET).reset_calls();
    assert_eq!(chaos.calls(), 2);
    chaos.reset_calls();
    assert_eq!(chaos.calls(), 0);
}

#[tokio::test]
async fn one_handle_for_several_drivers() {
    let chaos = Chaos::new();
    let node = |store: MapL2| ChaosL2::with(store, chaos.clone());
    let map = MapL2::new();
    let nodes = [node(map.clone()), node(map.clone())];
    let bus = ChaosBus::with(MapBus::new(), chaos.clone());
    chaos.fail();
    assert!(set(&nodes[0]).await.is_err() && set(&nodes[1]).await.is_err());
    assert!(bus.publish(Topic::new("c", ""), Bytes::new()).await.is_err());
    assert_eq!(chaos.calls(), 3);
}

#[tokio::test]
async fn a_failing_listing_is_an_error_item() {
    let (store, chaos) = store();
    set(&store).await.unwrap();
    chaos.on(Ops::KEYS).fail_next(1);
    let mut keys = store.keys("");
    assert!(next(&mut keys).await.unwrap().is_err());
    assert!(next(&mut keys).await.is_none());
    let mut keys = store.keys("");
    assert_eq!(next(&mut keys).await.unwrap().unwrap(), "a");
    assert!(next(&mut keys).await.is_none());
}

#[tokio::test]
async fn a_cut_store_fails_and_reports_its_link() {
    let (store, chaos) = store();
    let mut link = store.link().unwrap();
    chaos.cut();
    chaos.cut();
    assert!(set(&store).await.is_err());
    assert_eq!(next(&mut link).await, Some(Link::Lost));
    chaos.calm();
    assert!(set(&store).await.is_err(), "calm does not end a cut");
    chaos.restore();
    assert_eq!(next(&mut link).await, Some(Link::Restored));
    assert!(set(&store).await.is_ok());
    assert_eq!(now(&mut link).await, None);
}

fn message(text: &'static str) -> BusEvent {
    BusEvent::Message(Bytes::from_static(text.as_bytes()))
}

async fn bus() -> (MapBus, Chaos, BusStream) {
    let map = MapBus::new();
    let bus = ChaosBus::new(map.clone());
    let stream = bus.subscribe(Topic::new("c", "")).await.expect("a subscription");
    (map, bus.chaos(), stream)
}

#[tokio::test]
async fn a_cut_bus_loses_exactly_what_comes_meanwhile() {
    let (map, chaos, mut stream) = bus().await;
    // Nobody reads until the end, so that the cut must sort out what has arrived when. More than
    // 128 messages, because tokio's budget ends a run of ready polls there.
    for _ in 0..300 {
        map.send("c", "before");
    }
    chaos.cut();
    for _ in 0..300 {
        map.send("c", "meanwhile");
    }
    chaos.restore();
    map.send("c", "after");
    for _ in 0..300 {
        assert_eq!(next(&mut stream).await, Some(message("before")));
    }
    assert_eq!(next(&mut stream).await, Some(BusEvent::Lost));
    assert_eq!(next(&mut stream).await, Some(BusEvent::Restored));
    assert_eq!(next(&mut stream).await, Some(message("after")));
    assert_eq!(now(&mut stream).await, None);
}

#[tokio::test]
async fn a_cut_wakes_a_waiting_subscriber() {
    let (map, chaos, mut stream) = bus().await;
    let reader = tokio::spawn(async move {
        let mut events = Vec::new();
        for _ in 0..3 {
            events.push(next(&mut stream).await.unwrap());
        }
        events
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    chaos.cut();
    tokio::time::sleep(Duration::from_millis(20)).await;
    map.send("c", "meanwhile");
    tokio::time::sleep(Duration::from_millis(20)).await;
    chaos.restore();
    map.send("c", "after");
    let events = reader.await.unwrap();
    assert_eq!(events, [BusEvent::Lost, BusEvent::Restored, message("after")]);
}

#[tokio::test]
async fn a_cut_bus_takes_no_calls() {
    let map = MapBus::new();
    let bus = ChaosBus::new(map.clone());
    let topic = Topic::new("c", "");
    bus.chaos().cut();
    assert!(bus.publish(topic, Bytes::new()).await.is_err());
    assert!(bus.subscribe(topic).await.is_err());
    bus.chaos().restore();
    assert!(bus.subscribe(topic).await.is_ok());
}

#[tokio::test]
async fn messages_can_be_late_or_lost() {
    let (map, chaos, mut stream) = bus().await;
    let arrivals = chaos.on(Ops::DELIVER);
    arrivals.fail_next(1);
    map.send("c", "lost");
    map.send("c", "1");
    assert_eq!(next(&mut stream).await, Some(message("1")));
    arrivals.hold();
    map.send("c", "2");
    let reader = tokio::spawn(async move { (next(&mut stream).await, stream) });
    arrivals.held(1).await;
    assert!(!reader.is_finished());
    arrivals.release();
    let (event, mut stream) = reader.await.unwrap();
    assert_eq!(event, Some(message("2")));
    assert_eq!(arrivals.calls(), 3);
    map.send("c", "3");
    assert_eq!(next(&mut stream).await, Some(message("3")));
}

#[tokio::test(start_paused = true)]
async fn messages_can_be_slow() {
    let (map, chaos, mut stream) = bus().await;
    chaos.on(Ops::DELIVER).slow(Duration::from_secs(2));
    let start = Instant::now();
    map.send("c", "1");
    assert_eq!(next(&mut stream).await, Some(message("1")));
    assert_eq!(start.elapsed().as_secs(), 2);
}

#[tokio::test]
async fn a_first_tier_forgets_on_demand() {
    let tier = ChaosL1::new(MapL1::new());
    let chaos = tier.chaos();
    assert!(!tier.insert(entry("a", "1", NEVER), 0).refused);
    chaos.on(Ops::GET).fail();
    assert!(tier.get("a").is_none());
    chaos.calm();
    assert!(tier.get("a").is_some());
    chaos.on(Ops::INSERT).fail();
    let inserted = tier.insert(entry("a", "2", NEVER), 0);
    assert!(inserted.refused && inserted.replaced.is_some());
    assert!(tier.get("a").is_none());
    assert_eq!(chaos.on(Ops::INSERT | Ops::GET).calls(), 5);
}

#[tokio::test]
async fn a_lock_fails_on_demand() {
    let lock = ChaosLock::new(MapLock::new());
    let chaos = lock.chaos();
    let lease = Duration::from_secs(1);
    chaos.on(Ops::ACQUIRE).fail();
    assert!(lock.acquire("a", "t", lease).await.is_err());
    chaos.calm();
    assert!(lock.acquire("a", "t", lease).await.unwrap());
    assert_eq!(lock.inner().holder("a").as_deref(), Some("t"));
    chaos.on(Ops::RELEASE).fail();
    assert!(lock.release("a", "t").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_maps_follow_a_paused_clock() {
    let map = MapL2::new();
    let day = Duration::from_secs(86_400);
    map.put("a", "1", Some(day));
    map.put("b", "2", None);
    assert_eq!(map.remaining("a"), Some(day));
    assert_eq!(map.remaining("b"), Some(Duration::MAX));
    tokio::time::advance(day - Duration::from_millis(1)).await;
    assert_eq!(map.peek("a").as_deref(), Some(&b"1"[..]));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!((map.peek("a"), map.remaining("a"), map.take("a")), (None, None, None));
    assert_eq!(map.all_keys(), ["b"]);
    let lock = MapLock::new();
    assert!(lock.acquire("a", "t", day).await.unwrap());
    tokio::time::advance(day).await;
    assert!(lock.acquire("a", "u", day).await.unwrap());
}
