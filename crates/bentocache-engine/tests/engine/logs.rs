//! Logs and traces: keys only when asked for, values never.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use crate::common::{World, pass, secs, settle};
use bentocache::driver::{BusDriver, BusStream, DriverError, Topic};
use bentocache::{BentoCache, Context, Error, ManyContext, Memory, Store};
use bentocache_testkit::{ChaosBus, MapL2, Ops};
use bytes::Bytes;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// All that is logged, as one text.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<String>>);

impl Log {
    fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Log {
    /// The log lines for an operator.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let text = self.take();
        let is_warning = |line: &&str| line.contains("[WARN]") || line.contains("[ERROR]");
        text.lines().filter(is_warning).map(str::to_owned).collect()
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("bentocache")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut Fields(&mut self.0.lock().unwrap()));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = self.0.lock().unwrap();
        write!(text, "[{}]", event.metadata().level()).unwrap();
        event.record(&mut Fields(&mut text));
        text.push('\n');
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Everything that logs something. The keys and tags are kiwis, the values walnuts.
async fn much_goes_wrong(log_keys: bool) {
    let mut world = World::new();
    world.l2 = MapL2::new().max_value(2_000).max_key(60);
    let node = world.node_where(|s| s.grace("1h").log_keys(log_keys)).await;
    let cache = node.namespace("kiwi");
    let fails = |_: Context<u32>| async { Err::<u32, _>("down") };
    cache.get_or_set("kiwi", fails).await.unwrap_err();
    let all_fail = |_: ManyContext| async { Err::<Vec<(String, u32)>, _>("down") };
    cache.get_or_set_many(["kiwi"], all_fail).await.unwrap_err();
    let panics = |_: Context<u32>| async { panic!("down") as Result<u32, Error> };
    cache.get_or_set("kiwi", panics).await.unwrap_err();
    cache.set("kiwi", "walnut".to_owned()).tags(["kiwi"]).await.unwrap();
    assert_eq!(cache.get::<u32>("kiwi").await.unwrap(), None);
    cache.delete_by_tag(["kiwi"]).await.unwrap();
    cache.set("kiwi".repeat(30), 1_u32).await.unwrap_err();
    cache.set("kiwi", "walnut".repeat(1_000)).await.unwrap_err();
    let odd = || BTreeMap::from([(("walnut".to_owned(), 1_u8), 1_u8)]);
    cache.set("kiwi", odd()).await.unwrap_err();
    cache.get_or_set("kiwi", move |_| async move { Ok::<_, Error>(odd()) }).await.unwrap();
    for rotten in [b"walnut".as_slice(), br#"{"value":"walnut"}"#, b"\xb3walnut"] {
        node.map.put("bentocache:kiwi:rotten", rotten.to_owned(), None);
        assert_eq!(cache.get::<u32>("rotten").await.unwrap(), None);
        cache.has("rotten").await.unwrap();
    }
    node.l2.on(Ops::ALL).fail();
    cache.set("kiwi", 1_u32).await.unwrap();
    cache.get::<u32>("other kiwi").await.unwrap();
    cache.expire("kiwi").await.unwrap();
    cache.delete("kiwi").await.unwrap();
    cache.clear().await.unwrap();
    node.bus.cut();
    settle().await;
    node.bus.restore();
    node.l2.calm();
    pass(secs(30)).await;
    node.disconnect().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_key_and_no_value_is_in_a_log() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    much_goes_wrong(false).await;
    let text = log.take();
    for wanted in ["down", "cannot be decoded", "cannot be encoded", "the bus is", "(hidden)"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let leak = text.lines().find(|line| line.contains("kiwi") || line.contains("walnut"));
    assert_eq!(leak, None);
}

#[tokio::test(start_paused = true)]
async fn keys_are_in_the_logs_when_asked_for() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    much_goes_wrong(true).await;
    let text = log.take();
    assert!(text.contains("bentocache:kiwi:kiwi") && !text.contains("walnut"), "{text}");
}

/// The fields of each span, and which spans were entered.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<(Vec<String>, BTreeSet<String>)>>);

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("bentocache")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = String::new();
        span.record(&mut Fields(&mut fields));
        let (spans, _) = &mut *self.0.lock().unwrap();
        spans.push(fields);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        let (spans, entered) = &mut *self.0.lock().unwrap();
        entered.insert(spans[span.into_u64() as usize - 1].clone());
    }

    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn every_call_is_in_a_span_that_names_operation_and_store() {
    let spans = Spans::default();
    let _guard = tracing::subscriber::set_default(spans.clone());
    let node = World::new().node().await;
    let one = |_: Context<u32>| async { Ok::<_, Error>(1) };
    let none = |_: ManyContext| async { Ok::<Vec<(String, u32)>, Error>(Vec::new()) };
    node.get::<u32>("k").await.unwrap();
    node.get_many::<u32>(["k"]).await.unwrap();
    node.get_or_set("k", one).await.unwrap();
    node.get_or_set_many(["l"], none).await.unwrap();
    node.set("k", 1_u32).await.unwrap();
    node.has("k").await.unwrap();
    node.missing("k").await.unwrap();
    node.expire("k").await.unwrap();
    node.pull::<u32>("k").await.unwrap();
    node.delete("k").await.unwrap();
    node.delete_many(["k"]).await.unwrap();
    node.delete_by_tag(["t"]).await.unwrap();
    node.clear().await.unwrap();
    let (_, entered) = &*spans.0.lock().unwrap();
    for operation in [
        "get",
        "get_many",
        "get_or_set",
        "get_or_set_many",
        "set",
        "has",
        "missing",
        "expire",
        "pull",
        "delete",
        "delete_many",
        "delete_by_tag",
        "clear",
    ] {
        let fields = format!(" operation={operation:?} store=s");
        assert!(entered.iter().any(|span| span.starts_with(&fields)), "{fields} in {entered:?}");
    }
}

/// An outage is logged when it begins, when its kind changes and when it ends, not for each call.
#[tokio::test(start_paused = true)]
async fn an_outage_is_told_by_a_few_lines_however_many_calls_it_meets() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let node = World::new().node_where(|s| s.recovery(1_500, "1s")).await;
    log.take();
    node.l2.cut();
    node.bus.cut();
    for i in 0..2_000_u32 {
        node.get::<u32>("k").await.unwrap();
        node.set(format!("k{i}"), i).await.unwrap();
        node.delete(format!("l{i}")).await.unwrap();
        pass(std::time::Duration::from_millis(5)).await;
    }
    let text = log.warnings();
    assert!((1..=12).contains(&text.len()), "{} lines: {text:#?}", text.len());
    assert!(text.iter().any(|line| line.contains("L2 failed")), "{text:#?}");
    assert!(text.iter().any(|line| line.contains("left alone")), "{text:#?}");
    // Messages were missed, so none of the sets is stored: that is one line.
    node.l2.restore();
    node.bus.restore();
    pass(secs(30)).await;
    let text = log.warnings();
    assert!(text.len() <= 3, "{text:#?}");
    assert!(text.iter().any(|line| line.contains(" sets=")), "{text:#?}");
}

/// A bus that never answers, and knows why.
struct Deaf;

impl BusDriver for Deaf {
    fn name(&self) -> &'static str {
        "deaf"
    }

    async fn publish(&self, _: Topic<'_>, _: Bytes) -> Result<(), DriverError> {
        std::future::pending().await
    }

    async fn subscribe(&self, _: Topic<'_>) -> Result<BusStream, DriverError> {
        std::future::pending().await
    }

    fn trouble(&self) -> Option<String> {
        Some("the cable is cut; mend it".to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_of_the_bus_that_is_cut_says_what_it_was_waiting_for() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    // By a wrapper, which must pass it on.
    let store = Store::new().l1(Memory::new()).bus(ChaosBus::new(Deaf));
    let cache = BentoCache::builder().ttl("10m").store("main", store).build().await.unwrap();
    let says_why = |doing: &str, text: &[String]| {
        let lines = text.iter().filter(|line| line.contains(doing));
        lines.clone().count() > 0
            && lines
                .clone()
                .all(|line| line.contains("no answer within 1s: the cable is cut; mend it"))
    };
    let text = log.warnings();
    assert!(says_why("subscribing to the bus failed", &text), "{text:#?}");
    cache.set("k", 1_u32).await.unwrap();
    pass(secs(3)).await;
    let text = log.warnings();
    assert!(says_why("publishing to the bus failed", &text), "{text:#?}");
}

/// A value that L1 refuses is in L2, so the `set` succeeds: only the log says why it is slow.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_logged_once_for_each_group_of_keys_and_names_size_limit_and_option() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let store = Store::new().l1(Memory::new().max_entry_size("1kb")).l2(MapL2::new());
    let cache = BentoCache::builder().store("main", store).build().await.unwrap();
    for key in ["page:1", "page:2", "page:3", "photo:1", "page:4"] {
        cache.set(key, "x".repeat(2_000)).await.unwrap();
    }
    let lines = log.warnings();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    // A little more than the value: the document of L2, the key and the overhead.
    for wanted in [" size=22", " limit=1024", " option=\"max_entry_size\"", " store=main"] {
        assert!(lines[0].contains(wanted), "{wanted} in {}", lines[0]);
    }
    assert!(lines[1].contains("count=4"), "{}", lines[1]);
}
