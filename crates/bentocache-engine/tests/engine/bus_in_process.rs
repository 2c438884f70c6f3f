//! The in-process bus, by the suite that every bus driver passes.

use bentocache::InProcessBus;
use bentocache::driver::{BusDriver, BusEvent, ErrorKind, Topic};
use bytes::Bytes;
use futures_core::Stream;
use std::future::poll_fn;
use std::pin::Pin;

bentocache_testkit::bus_suite! {
    open = {
        let bus = InProcessBus::new();
        async move || bus.clone()
    },
    without = [link],
}

async fn next(stream: &mut Pin<Box<dyn Stream<Item = BusEvent> + Send>>) -> Option<BusEvent> {
    poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

/// A subscriber that falls too far behind misses messages, and gets a report: the gap rule applies
/// from there.
#[tokio::test]
async fn a_subscriber_that_lags_is_told() {
    let bus = InProcessBus::new();
    let topic = Topic::new("c", "");
    let mut stream = bus.subscribe(topic).await.unwrap();
    for i in 0..20_000_u32 {
        bus.publish(topic, Bytes::copy_from_slice(&i.to_be_bytes())).await.unwrap();
    }
    assert!(matches!(next(&mut stream).await, Some(BusEvent::Lost)));
    assert!(matches!(next(&mut stream).await, Some(BusEvent::Restored)));
    let mut last = None;
    for _ in 0..16_384 {
        match next(&mut stream).await {
            Some(BusEvent::Message(message)) => last = Some(message),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(last.unwrap(), 19_999_u32.to_be_bytes()[..], "the newest are kept");
}

#[tokio::test]
async fn disconnect_ends_what_one_clone_has_and_no_other() {
    let bus = InProcessBus::new();
    let topic = Topic::new("c", "");
    let clone = bus.clone();
    let mut ended = clone.subscribe(topic).await.unwrap();
    let mut other = bus.subscribe(topic).await.unwrap();
    clone.disconnect().await.unwrap();
    assert!(next(&mut ended).await.is_none());
    let error = clone.publish(topic, Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(clone.subscribe(topic).await.is_err());
    bus.publish(topic, Bytes::from_static(b"m")).await.unwrap();
    assert!(matches!(next(&mut other).await, Some(BusEvent::Message(_))));
}
