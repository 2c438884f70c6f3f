//! The cases for a bus of messages, [`BusDriver`]. Run them all with
//! [`bus_suite!`](crate::bus_suite).
//!
//! A bus may deliver a message twice. The suite does not fit buses that watch keys instead of
//! messages.
//!
//! Names for `without`:
//!
//! - `order`: messages of one publisher arrive in the order of publication;
//! - `link`: the bus has a server that can become unreachable;
//! - `runtimes`: the bus works on another Tokio runtime after the runtime of its first call has
//!   ended.
//!
//! Each case takes the closure that opens drivers, and panics if the driver violates the rule.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, BusStream, ErrorKind, Topic};
use bytes::Bytes;

use super::{Fault, FaultyLink, HOSTILE, all_fail_for_now, all_work_again, next};
use crate::runtimes::{Calls, outlives};
use crate::unique;

/// Runs the suite for a bus; see [`suite`](crate::suite) for how to call it.
#[macro_export]
macro_rules! bus_suite {
    ($($input:tt)*) => {
        $crate::__suite! {
            bus
            [
                reaches_every_subscriber,
                channels_are_separate,
                hostile_channels,
                keeps_order: order,
                any_bytes,
                empty_message,
                message_of_512_kib,
                burst,
                slow_subscriber,
                concurrent_publishers,
                subscription_is_live,
                no_subscriber,
                dropped_subscriber,
                abandoned_calls,
                disconnect_ends_streams,
                errors_after_disconnect_are_closed,
            ]
            [
                a_lost_link_is_reported,
                nothing_is_published_over_a_lost_link,
                a_link_that_is_back_is_reported,
                a_link_that_is_back_works,
                a_server_that_is_gone_is_a_transient_failure,
            ]
            $($input)*
        }
    };
}

/// The time limit for a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// A channel name that only this case uses.
fn channel() -> String {
    unique("kit.")
}

fn topic(channel: &str) -> Topic<'_> {
    Topic::new(channel, "kit")
}

async fn publish<D: BusDriver>(bus: &D, channel: &str, message: impl Into<Bytes>) {
    let result = bus.publish(topic(channel), message.into()).await;
    result.unwrap_or_else(|error| panic!("publish to {channel:?}: {error}"));
}

async fn subscribe<D: BusDriver>(bus: &D, channel: &str) -> Listener {
    let stream = bus.subscribe(topic(channel)).await;
    let stream = stream.unwrap_or_else(|error| panic!("subscribe to {channel:?}: {error}"));
    Listener { stream, is_lost: false, was_lost: false }
}

/// A subscription that records reports about its link.
struct Listener {
    stream: BusStream,
    is_lost: bool,
    was_lost: bool,
}

impl Listener {
    /// The next message, if one arrives within this time.
    async fn message(&mut self, patience: Duration) -> Option<Bytes> {
        let message = async {
            loop {
                match next(&mut self.stream).await.expect("the stream has ended") {
                    BusEvent::Message(message) => return message,
                    BusEvent::Lost => {
                        self.is_lost = true;
                        self.was_lost = true;
                    }
                    BusEvent::Restored => self.is_lost = false,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(patience, message).await.ok()
    }

    /// Waits for this message; repetitions of `earlier` ones may arrive before.
    async fn hears_after(&mut self, wanted: &[u8], earlier: &[&[u8]]) {
        while let Some(message) = self.message(PATIENCE).await {
            if message == wanted {
                return;
            }
            assert!(
                earlier.iter().any(|earlier| message == *earlier),
                "a message nobody published here: {} bytes, {:?}",
                message.len(),
                message.slice(..message.len().min(40)),
            );
        }
        panic!("a message of {} bytes has not arrived", wanted.len());
    }

    async fn hears(&mut self, wanted: &[u8]) {
        self.hears_after(wanted, &[]).await;
    }

    /// Reads until all numbers have arrived or no more come, and returns the missing ones.
    async fn numbers(&mut self, wanted: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let mut missing: BTreeSet<u32> = wanted.into_iter().collect();
        while !missing.is_empty() {
            let Some(message) = self.message(PATIENCE).await else { break };
            missing.remove(&number(&message));
        }
        missing
    }
}

fn number(message: &[u8]) -> u32 {
    let text = std::str::from_utf8(message).expect("the text that was published");
    text.parse().expect("the number that was published")
}

/// The list of missing abilities uses names that the suite knows. A bus does not declare abilities,
/// so there is nothing to compare.
pub async fn declares_what_it_lacks<D: BusDriver>(open: impl AsyncFn() -> D, declared: &[&str]) {
    let bus = open().await;
    assert!(!bus.name().is_empty(), "a driver has a name");
    for name in declared {
        let is_known = ["order", "link", "runtimes"].contains(name);
        assert!(
            is_known,
            "`without = [{name}]`: this suite knows only `order`, `link`, `runtimes`"
        );
    }
}

/// A message reaches every subscriber at least once, on every instance, including the publisher's.
pub async fn reaches_every_subscriber<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listeners = [
        subscribe(&one, &channel).await,
        subscribe(&one, &channel).await,
        subscribe(&two, &channel).await,
    ];
    publish(&one, &channel, "from one").await;
    for listener in &mut listeners {
        listener.hears(b"from one").await;
    }
    publish(&two, &channel, "from two").await;
    for listener in &mut listeners {
        listener.hears_after(b"from two", &[b"from one"]).await;
    }
}

/// Messages stay in their channel.
pub async fn channels_are_separate<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let bus = open().await;
    let names = ["", ":a", ":a:b", ".a", ".A", ".*", ".>", "*", "?", "[a]", "/a"]
        .map(|end| format!("{channel}{end}"));
    let mut listeners = Vec::new();
    for name in &names {
        listeners.push(subscribe(&bus, name).await);
    }
    for name in &names {
        publish(&bus, name, name.clone()).await;
    }
    for (name, listener) in names.iter().zip(&mut listeners) {
        listener.hears(name.as_bytes()).await;
        // A message of a wrong channel would arrive before this one.
        publish(&bus, name, "end").await;
        listener.hears_after(b"end", &[name.as_bytes()]).await;
    }
}

/// Channel names may contain any character, and stay distinct.
pub async fn hostile_channels<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let bus = open().await;
    let names = HOSTILE.iter().map(|end| format!("{channel}{end}"));
    let names: Vec<String> = names.chain([format!("bentocache.notifications:{channel}")]).collect();
    let mut listeners = Vec::new();
    for name in &names {
        listeners.push(subscribe(&bus, name).await);
    }
    for name in &names {
        publish(&bus, name, name.clone()).await;
    }
    for (name, listener) in names.iter().zip(&mut listeners) {
        listener.hears(name.as_bytes()).await;
    }
}

/// Messages of one publisher arrive in order; a repeated one may come late.
pub async fn keeps_order<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listener = subscribe(&two, &channel).await;
    for at in 0..500_u32 {
        publish(&one, &channel, at.to_string()).await;
    }
    let mut expected = 0;
    while expected < 500 {
        let message = listener.message(PATIENCE).await;
        let at = number(&message.unwrap_or_else(|| panic!("message {expected} is missing")));
        assert!(at <= expected, "message {at} came before {expected}");
        expected += u32::from(at == expected);
    }
}

/// Messages are bytes of any kind.
pub async fn any_bytes<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listener = subscribe(&two, &channel).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let messages: [&[u8]; 5] = [&every_byte, b"\0", b"\xff\xfe", b" a\r\n", b"'\"\\"];
    for (at, message) in messages.iter().enumerate() {
        publish(&one, &channel, message.to_vec()).await;
        listener.hears_after(message, &messages[..at]).await;
    }
}

/// A message of no bytes is a message.
pub async fn empty_message<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listener = subscribe(&two, &channel).await;
    publish(&one, &channel, "").await;
    listener.hears(b"").await;
    publish(&one, &channel, "1").await;
    listener.hears_after(b"1", &[b""]).await;
}

/// The largest message of the contract arrives complete, and so do later ones.
pub async fn message_of_512_kib<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listener = subscribe(&two, &channel).await;
    let large: Vec<u8> =
        (0..512 * 1024_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    publish(&one, &channel, large.clone()).await;
    listener.hears(&large).await;
    publish(&one, &channel, "small").await;
    listener.hears_after(b"small", &[&large]).await;
}

/// All of 10,000 consecutive messages arrive, or the loss is reported.
pub async fn burst<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listener = subscribe(&two, &channel).await;
    let publisher = async {
        for at in 0..10_000_u32 {
            publish(&one, &channel, at.to_string()).await;
        }
    };
    let ((), missing) = tokio::join!(publisher, listener.numbers(0..10_000));
    all_or_lost(&mut listener, &missing).await;
    is_heard_again(&one, &channel, &mut listener).await;
}

/// The same if the subscriber does not read meanwhile; and the publisher does not wait for it.
pub async fn slow_subscriber<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut listener = subscribe(&two, &channel).await;
    let mut other = subscribe(&two, &channel).await;
    let publisher = async {
        for at in 0..10_000_u32 {
            publish(&one, &channel, at.to_string()).await;
        }
    };
    let published = tokio::time::timeout(Duration::from_secs(60), publisher).await;
    assert!(published.is_ok(), "a subscriber that does not read holds up the publisher");
    for listener in [&mut listener, &mut other] {
        let missing = listener.numbers(0..10_000).await;
        all_or_lost(listener, &missing).await;
        is_heard_again(&one, &channel, listener).await;
    }
}

async fn all_or_lost(listener: &mut Listener, missing: &BTreeSet<u32>) {
    if missing.is_empty() {
        return;
    }
    assert!(listener.was_lost, "{} messages are missing, and no Lost was reported", missing.len());
    assert!(!listener.is_lost, "Lost was reported, but no Restored after it");
}

/// New messages arrive, whatever happened before.
async fn is_heard_again<D: BusDriver>(bus: &D, channel: &str, listener: &mut Listener) {
    publish(bus, channel, "end").await;
    while let Some(message) = listener.message(PATIENCE).await {
        if message == "end" {
            return;
        }
    }
    panic!("no message arrives any more");
}

/// All messages of eight concurrent publishers arrive.
pub async fn concurrent_publishers<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [std::sync::Arc::new(open().await), std::sync::Arc::new(open().await)];
    let mut listener = subscribe(&*two, &channel).await;
    let tasks: Vec<_> = (0..8_u32)
        .map(|task| {
            let bus = if task % 2 == 0 { one.clone() } else { two.clone() };
            let channel = channel.clone();
            tokio::spawn(async move {
                for at in 0..100 {
                    publish(&*bus, &channel, (task * 100 + at).to_string()).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let missing = listener.numbers(0..800).await;
    assert!(missing.is_empty(), "{} of 800 messages are missing", missing.len());
}

/// Messages that are published after `subscribe` has returned arrive.
pub async fn subscription_is_live<D: BusDriver>(open: impl AsyncFn() -> D) {
    let [one, two] = [open().await, open().await];
    for round in 0..30 {
        let channel = channel();
        let mut listener = subscribe(&one, &channel).await;
        publish(&two, &channel, "1").await;
        let message = listener.message(PATIENCE).await;
        assert_eq!(message.as_deref(), Some(&b"1"[..]), "round {round}");
    }
}

/// Publishing without subscribers is no error, and nothing is kept for later subscribers.
pub async fn no_subscriber<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let bus = open().await;
    publish(&bus, &channel, "to nobody").await;
    let mut listener = subscribe(&bus, &channel).await;
    publish(&bus, &channel, "1").await;
    listener.hears(b"1").await;
}

/// A dropped subscriber harms neither the publisher nor other or later subscribers.
pub async fn dropped_subscriber<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let [gone, gone_too] = [subscribe(&one, &channel).await, subscribe(&two, &channel).await];
    let mut stays = subscribe(&two, &channel).await;
    publish(&one, &channel, "0").await;
    drop(gone);
    drop(gone_too);
    for at in 1..200_u32 {
        publish(&one, &channel, at.to_string()).await;
    }
    let missing = stays.numbers(0..200).await;
    assert!(missing.is_empty(), "{} of 200 messages are missing", missing.len());
    let mut later = subscribe(&one, &channel).await;
    publish(&two, &channel, "200").await;
    assert!(later.numbers(200..=200).await.is_empty(), "a later subscriber hears nothing");
    assert!(stays.numbers(200..=200).await.is_empty(), "an earlier subscriber hears no more");
}

/// Calls may be dropped at any await.
pub async fn abandoned_calls<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let bus = open().await;
    let mut listener = subscribe(&bus, &channel).await;
    for round in 0..50_u64 {
        let patience = Duration::from_micros(round * 23);
        let _ = tokio::time::timeout(patience, async {
            let _ = bus.subscribe(topic(&channel)).await;
            let _ = bus.publish(topic(&channel), Bytes::from_static(b"abandoned")).await;
        })
        .await;
    }
    publish(&bus, &channel, "1").await;
    listener.hears_after(b"1", &[b"abandoned"]).await;
    let mut later = subscribe(&bus, &channel).await;
    publish(&bus, &channel, "2").await;
    later.hears_after(b"2", &[b"abandoned", b"1"]).await;
}

/// After `disconnect`, open streams end, calls return, and other instances still work.
pub async fn disconnect_ends_streams<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let [one, two] = [open().await, open().await];
    let mut ends = subscribe(&one, &channel).await;
    let mut stays = subscribe(&two, &channel).await;
    one.disconnect().await.expect("disconnect");
    let end = async { while next(&mut ends.stream).await.is_some() {} };
    let ended = tokio::time::timeout(PATIENCE, end).await;
    assert!(ended.is_ok(), "a stream goes on after disconnect");
    let calls = async {
        let _ = one.publish(topic(&channel), Bytes::from_static(b"late")).await;
        let _ = one.subscribe(topic(&channel)).await;
        let _ = one.disconnect().await;
    };
    let answered = tokio::time::timeout(PATIENCE, calls).await;
    assert!(answered.is_ok(), "a call after disconnect hangs");
    publish(&two, &channel, "1").await;
    stays.hears_after(b"1", &[b"late"]).await;
}

/// A call after `disconnect` fails permanently: a transient error would be retried.
pub async fn errors_after_disconnect_are_closed<D: BusDriver>(open: impl AsyncFn() -> D) {
    let channel = channel();
    let bus = open().await;
    publish(&bus, &channel, "before").await;
    bus.disconnect().await.expect("disconnect");
    let published = bus.publish(topic(&channel), Bytes::from_static(b"late")).await;
    let subscribed = bus.subscribe(topic(&channel)).await.map(drop);
    for (call, result) in [("publish", published), ("subscribe", subscribed)] {
        if let Err(error) = result {
            let kind = error.kind();
            assert_eq!(kind, ErrorKind::Closed, "{call} after disconnect: {error}");
        }
    }
}

// ---- A link that is lost ----

/// The time limit for the report of a loss, and of a return.
const REPORTED: Duration = Duration::from_secs(20);

impl Listener {
    /// Waits for this report; messages may arrive before.
    async fn is_told(&mut self, wanted: &BusEvent) -> bool {
        let told = async {
            loop {
                let event = next(&mut self.stream).await.expect("the stream has ended");
                if event == *wanted {
                    return;
                }
            }
        };
        tokio::time::timeout(REPORTED, told).await.is_ok()
    }
}

/// A subscription soon reports a lost link, whether the connection was closed or has become silent.
pub async fn a_lost_link_is_reported<D: BusDriver, L: FaultyLink>(
    open: impl AsyncFn() -> D,
    linked: impl AsyncFn() -> (D, L),
) {
    let _ = open;
    for fault in Fault::ALL {
        let (bus, link) = linked().await;
        let mut listener = subscribe(&bus, &channel()).await;
        fault.befalls(&link).await;
        let is_told = listener.is_told(&BusEvent::Lost).await;
        assert!(is_told, "{fault:?} of the link, and no Lost within {REPORTED:?}");
    }
}

/// While the link is lost, no message counts as published.
pub async fn nothing_is_published_over_a_lost_link<D: BusDriver, L: FaultyLink>(
    open: impl AsyncFn() -> D,
    linked: impl AsyncFn() -> (D, L),
) {
    let _ = open;
    for fault in Fault::ALL {
        let channel = channel();
        let (bus, link) = linked().await;
        publish(&bus, &channel, "before").await;
        fault.befalls(&link).await;
        let publish = bus.publish(topic(&channel), Bytes::from_static(b"lost"));
        if let Ok(published) = tokio::time::timeout(REPORTED, publish).await {
            let error = published.expect_err("published over a lost link");
            assert!(error.is_transient(), "a lost link is no reason to give up: {error}");
        }
    }
}

/// After the link is back, that is reported once messages arrive again, including those of other
/// publishers.
pub async fn a_link_that_is_back_is_reported<D: BusDriver, L: FaultyLink>(
    open: impl AsyncFn() -> D,
    linked: impl AsyncFn() -> (D, L),
) {
    let other = open().await;
    for fault in Fault::ALL {
        let channel = channel();
        let (bus, link) = linked().await;
        let mut listener = subscribe(&bus, &channel).await;
        for round in 0..3 {
            fault.befalls(&link).await;
            assert!(listener.is_told(&BusEvent::Lost).await, "{fault:?}, round {round}: no Lost");
            link.restore().await;
            let is_told = listener.is_told(&BusEvent::Restored).await;
            assert!(is_told, "{fault:?}, round {round}: no Restored within {REPORTED:?}");
            // Published after the report, so it must arrive.
            let message = format!("{fault:?} {round}");
            publish(&other, &channel, message.clone()).await;
            let heard = async {
                while listener.message(PATIENCE).await.expect("no message after Restored")
                    != message
                {}
            };
            heard.await;
        }
    }
}

/// Messages pass both ways again over a restored link, and new subscriptions succeed.
pub async fn a_link_that_is_back_works<D: BusDriver, L: FaultyLink>(
    open: impl AsyncFn() -> D,
    linked: impl AsyncFn() -> (D, L),
) {
    let other = open().await;
    for fault in Fault::ALL {
        let channel = channel();
        let (bus, link) = linked().await;
        let mut listener = subscribe(&bus, &channel).await;
        let mut elsewhere = subscribe(&other, &channel).await;
        fault.befalls(&link).await;
        assert!(listener.is_told(&BusEvent::Lost).await, "{fault:?}: no Lost");
        link.restore().await;
        // Messages before that may be missed.
        assert!(listener.is_told(&BusEvent::Restored).await, "{fault:?}: no Restored");
        let start = Instant::now();
        while let Err(error) = bus.publish(topic(&channel), Bytes::from_static(b"again")).await {
            assert!(start.elapsed() < REPORTED, "{fault:?}: publish still fails: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for listener in [&mut listener, &mut elsewhere] {
            let message = listener.message(PATIENCE).await;
            assert_eq!(message.as_deref(), Some(&b"again"[..]), "{fault:?}");
        }
        let mut later = subscribe(&bus, &channel).await;
        publish(&other, &channel, "later").await;
        later.hears_after(b"later", &[b"again"]).await;
    }
}

/// While the server is gone, every call fails in time with an error that says so; once the server
/// is back, the bus works, whether it was used before or not.
pub async fn a_server_that_is_gone_is_a_transient_failure<D: BusDriver, L: FaultyLink>(
    open: impl AsyncFn() -> D,
    linked: impl AsyncFn() -> (D, L),
) {
    let _ = open;
    for fault in Fault::ALL {
        for is_used in [false, true] {
            let situation = format!("{fault:?}, used before: {is_used}");
            let (channel, (bus, link)) = (channel(), linked().await);
            if is_used {
                publish(&bus, &channel, "before").await;
            }
            fault.befalls(&link).await;
            all_fail_for_now(calls(&bus, &channel), &situation).await;
            link.restore().await;
            all_work_again(&bus, &channel, calls, &situation).await;
        }
    }
}

// ---- A second runtime ----

/// Without a runtime, every call that needs one is [`ErrorKind::Closed`]; on a runtime that has
/// ended none panics or hangs; on the next one every call works, and a subscription receives
/// messages.
///
/// `open` runs on the first runtime, and the resources that it returns with the driver are kept.
pub fn outlives_its_runtime<D: BusDriver, K>(open: impl AsyncFnOnce() -> (D, K)) {
    let channel = channel();
    outlives(open, &channel, calls, async |bus| {
        let mut listener = subscribe(bus, &channel).await;
        publish(bus, &channel, "heard").await;
        listener.hears_after(b"heard", &[b"1"]).await;
    });
}

fn calls<'a, D: BusDriver>(bus: &'a D, channel: &'a str) -> Calls<'a> {
    vec![
        ("publish", Box::pin(bus.publish(topic(channel), Bytes::from_static(b"1")))),
        ("subscribe", Box::pin(async { bus.subscribe(topic(channel)).await.map(drop) })),
    ]
}
