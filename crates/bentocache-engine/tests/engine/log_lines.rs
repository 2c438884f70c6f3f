//! The log at debug and trace: each operation leaves a line with its outcome.

use std::sync::{Arc, Mutex};

use crate::common::{World, get, get_stale, ms, pass, secs, settle};
use crate::logs::Log;
use bentocache::{BentoCache, Cache, Context, Error, ManyContext, Memory, Store};
use bentocache_testkit::Ops;

/// The lines that `run` leaves, without those of L2 calls and of the bus.
async fn lines_of<R>(log: &Log, run: impl AsyncFnOnce() -> R) -> Vec<String> {
    settle().await;
    log.take();
    run().await;
    settle().await;
    let lines = log.lines();
    lines.into_iter().filter(|line| !line.contains("L2 call") && !line.contains("bus ")).collect()
}

/// Whether exactly these lines were logged. Of each line only the level, the message and the fields
/// that are given are compared.
#[track_caller]
fn assert_lines(lines: &[String], wanted: &[&str]) {
    let is_like = |line: &String, wanted: &str| {
        let (start, fields) = wanted.split_once(" | ").unwrap_or((wanted, ""));
        let (level, message) = start.split_once(' ').unwrap();
        line.starts_with(&format!("[{level}] message={message} store=s"))
            && fields.split(", ").all(|field| line.contains(field))
    };
    let alike = lines.iter().zip(wanted).all(|(line, wanted)| is_like(line, wanted));
    assert!(lines.len() == wanted.len() && alike, "{lines:#?} are not {wanted:#?}");
}

const KEY: &str = "key=\"bentocache:k\"";

#[tokio::test(start_paused = true)]
async fn a_read_logs_a_hit_with_its_tier_or_a_miss() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let world = World::new();
    let node = world.node_where(|s| s.log_keys(true)).await;
    node.set("k", 1_u32).ttl("10s").grace("1h").await.unwrap();
    let other = world.node_where(|s| s.log_keys(true)).await;
    let hit = |tier, graced| format!("DEBUG hit | {KEY}, tier=\"{tier}\", graced={graced}");
    let miss = format!("DEBUG miss | {KEY}");
    let read = async || get(&other, "k").await;
    assert_lines(&lines_of(&log, read).await, &[&hit("l2", false)]);
    assert_lines(&lines_of(&log, read).await, &[&hit("l1", false)]);
    let many = async || other.get_many::<u32>(["k", "none"]).await.unwrap();
    assert_lines(&lines_of(&log, many).await, &[&hit("l1", false), "DEBUG miss | none"]);
    pass(secs(11)).await;
    assert_lines(&lines_of(&log, read).await, &[&miss]);
    let stale = async || get_stale(&other, "k").await;
    assert_lines(&lines_of(&log, stale).await, &[&hit("l1", true)]);
}

#[tokio::test(start_paused = true)]
async fn each_change_logs_its_outcome() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let node = World::new().node_where(|s| s.log_keys(true)).await;
    let one = |message| format!("DEBUG {message} | {KEY}");
    let lines = lines_of(&log, async || node.set("k", 1_u32).await.unwrap()).await;
    assert_lines(&lines, &[&one("written")]);
    let both = [("k", 1_u32), ("l", 2)];
    let lines = lines_of(&log, async || node.set_many(both).await.unwrap()).await;
    assert_lines(&lines, &[&one("written"), "DEBUG written | bentocache:l"]);
    let lines = lines_of(&log, async || node.has("k").await.unwrap()).await;
    assert_lines(&lines, &[&format!("DEBUG looked for | {KEY}, fresh=true")]);
    let lines = lines_of(&log, async || node.expire("k").await.unwrap()).await;
    assert_lines(&lines, &[&one("expired")]);
    let lines = lines_of(&log, async || node.missing("k").await.unwrap()).await;
    assert_lines(&lines, &[&format!("DEBUG looked for | {KEY}, fresh=false")]);
    let lines = lines_of(&log, async || node.delete("k").await.unwrap()).await;
    assert_lines(&lines, &[&one("deleted")]);
    node.set("k", 1_u32).await.unwrap();
    let lines = lines_of(&log, async || node.pull::<u32>("k").await.unwrap()).await;
    assert_lines(&lines, &[&one("deleted"), &one("hit")]);
    let lines = lines_of(&log, async || node.delete_by_tag(["t"]).await.unwrap()).await;
    assert_lines(&lines, &["DEBUG tag invalidated | tag=\"t\""]);
    let lines = lines_of(&log, async || node.namespace("n").clear().await.unwrap()).await;
    assert_lines(&lines, &["DEBUG cleared | namespace=\"n\""]);
    let lines = lines_of(&log, async || node.prune().await.unwrap()).await;
    assert_lines(&lines, &["DEBUG pruned | removed=0"]);
    let lines = lines_of(&log, async || {
        node.invalidate().keys(["k"]).tags(["t"]).namespace("n").await.unwrap();
    })
    .await;
    assert_eq!(lines.len(), 3, "{lines:#?}");
    let lines = lines_of(&log, async || node.disconnect().await.unwrap()).await;
    assert_lines(&lines, &["DEBUG disconnected"]);
}

#[tokio::test(start_paused = true)]
async fn a_factory_logs_its_start_its_end_and_its_time() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let node = World::new().node_where(|s| s.log_keys(true).grace("1h").timeout("1s")).await;
    let slow = |_: Context<u32>| async {
        pass(ms(300)).await;
        Ok::<_, Error>(1)
    };
    let run = async || node.get_or_set("k", slow).ttl("10s").await.unwrap();
    let lines = lines_of(&log, run).await;
    let (started, written) = (format!("DEBUG factory started | {KEY}, keys=1"), KEY);
    let succeeded = format!("DEBUG factory succeeded | {KEY}, background=false, took=300");
    let (written, miss) = (format!("DEBUG written | {written}"), format!("DEBUG miss | {KEY}"));
    assert_lines(&lines, &[&started, &succeeded, &written, &miss]);
    pass(secs(11)).await;

    let fails = |_: Context<u32>| async { Err::<u32, _>("down") };
    let lines = lines_of(&log, async || node.get_or_set("k", fails).await.unwrap()).await;
    let failed = format!("WARN a factory failed | {KEY}, took=0, error=down");
    let graced = format!("DEBUG hit | {KEY}, graced=true");
    assert_lines(&lines, &[&started, &failed, &graced]);
    pass(secs(11)).await;

    let slower = |_: Context<u32>| async {
        pass(secs(3)).await;
        Ok::<_, Error>(1)
    };
    let lines = lines_of(&log, async || {
        node.get_or_set("k", slower).await.unwrap();
        pass(secs(3)).await;
    })
    .await;
    let timeout = format!("DEBUG factory timeout | {KEY}, hard=false");
    let succeeded = format!("DEBUG factory succeeded | {KEY}, background=true, took=3");
    assert_lines(&lines, &[&started, &timeout, &graced, &succeeded, &written]);

    let skips = |cx: Context<u32>| async move { cx.skip() };
    let lines = lines_of(&log, async || node.get_or_set("l", skips).optional().await).await;
    let skipped = ["DEBUG factory started", "DEBUG factory skipped | gone=false", "DEBUG miss"];
    assert_lines(&lines, &skipped);
    let none = |_: ManyContext| async { Ok::<Vec<(String, u32)>, Error>(Vec::new()) };
    let lines = lines_of(&log, async || node.get_or_set_many(["l"], none).await.unwrap()).await;
    assert_lines(&lines, &["DEBUG factory started", "DEBUG factory skipped", "DEBUG miss"]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_joins_a_flight_is_in_the_log() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let node = World::only_l1().node().await;
    let slow = |_: Context<u32>| async {
        pass(secs(1)).await;
        Ok::<_, Error>(1)
    };
    let lines = lines_of(&log, async || {
        tokio::join!(node.get_or_set("k", slow), node.get_or_set("k", slow))
    })
    .await;
    let of = |message: &str| lines.iter().filter(|line| line.contains(message)).count();
    assert_eq!((of("factory started"), of("flight joined"), of("miss")), (1, 1, 2), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn messages_of_the_bus_and_calls_of_l2_are_in_the_log() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let world = World::new();
    let (node, _other) = (world.node().await, world.node().await);
    settle().await;
    log.take();
    node.set_many([("k", 1_u32), ("l", 2)]).await.unwrap();
    settle().await;
    let lines = log.lines();
    let has = |wanted: &[&str]| {
        lines.iter().any(|line| wanted.iter().all(|wanted| line.contains(wanted)))
    };
    assert!(has(&["[DEBUG] message=bus message sent", "kind=\"set\"", "keys=2"]), "{lines:#?}");
    assert!(has(&["[DEBUG] message=bus message received", "kind=\"set\"", "keys=2"]), "{lines:#?}");
    assert!(
        has(&["[TRACE] message=L2 call", "operation=\"set\"", "took=", "ok=true"]),
        "{lines:#?}"
    );
    node.l2.on(Ops::ALL).fail();
    node.delete("k").await.unwrap();
    settle().await;
    let lines = log.lines();
    let has = |wanted: &str| lines.iter().any(|line| line.contains(wanted));
    assert!(has("[DEBUG] message=change queued store=s queued=1"), "{lines:#?}");
    node.l2.calm();
    pass(secs(5)).await;
    let lines = log.lines();
    let has = |wanted: &str| lines.iter().any(|line| line.contains(wanted));
    assert!(has("[DEBUG] message=queued change done store=s queued=0"), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_logs_its_error() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let mut world = World::new();
    world.l2 = world.l2.max_key(60);
    let node = world.node_where(|s| s.suppress_l2_errors(false)).await;
    let lines = lines_of(&log, async || node.get::<u32>("").await.unwrap_err()).await;
    assert_lines(&lines, &["DEBUG call failed | operation=\"get\", error="]);
    let lines = lines_of(&log, async || node.set("k", 1_u32).ttl("soon").await.unwrap_err()).await;
    assert_lines(&lines, &["DEBUG call failed | operation=\"set\", soon"]);
    // The tag is part of the error's text, and as secret as a key.
    let tag = "secret".repeat(20);
    let lines = lines_of(&log, async || node.set("k", 1_u32).tags([tag]).await.unwrap_err()).await;
    assert_lines(&lines, &["DEBUG call failed | operation=\"set\", error=\"(hidden)\""]);
}

#[tokio::test(start_paused = true)]
async fn a_store_logs_its_drivers_when_it_opens() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let _node = World::new().node_where(|s| s.prefix("shop")).await;
    let lines = log.lines();
    let opened = lines.iter().find(|line| line.contains("store opened")).unwrap();
    for field in ["prefix=\"shop\"", "enabled=true", "l1=\"memory\"", "l2=", "bus="] {
        assert!(opened.contains(field), "{field} in {opened}");
    }
}

/// The log may be turned on while the cache runs: a hit does not ask for it, so another operation
/// must have noticed.
#[tokio::test(start_paused = true)]
async fn hits_are_logged_from_the_next_other_operation_on_and_no_longer_than_the_log_is_read() {
    // Without an observer, which a node of a world has.
    let store = Store::new().l1(Memory::new());
    let node = BentoCache::builder().store("s", store).build().await.unwrap();
    node.set("k", 1_u32).await.unwrap();
    let log = Log::default();
    let guard = tracing::subscriber::set_default(log.clone());
    get(&node, "k").await;
    get(&node, "none").await;
    log.take();
    get(&node, "k").await;
    assert_eq!(log.lines().len(), 1);
    drop(guard);
    get(&node, "k").await;
    let _guard = tracing::subscriber::set_default(log.clone());
    get(&node, "k").await;
    assert_eq!(log.lines(), [""; 0], "the hit without a log has turned it off");
    // Or the sweep of L1 notices.
    pass(secs(61)).await;
    get(&node, "k").await;
    assert!(log.lines().iter().any(|line| line.contains("hit")));
}

/// Runs every operation, with kiwis as keys, tags and namespaces, and walnuts as values.
async fn everything(cache: &Cache) {
    let cache = cache.namespace("kiwi");
    let walnut = || "walnut".to_owned();
    cache.set("kiwi", walnut()).tags(["kiwi"]).await.unwrap();
    cache.set_many([("kiwi1", walnut()), ("kiwi2", walnut())]).await.unwrap();
    cache.get::<String>("kiwi").await.unwrap();
    cache.get_many::<String>(["kiwi", "kiwi3"]).await.unwrap();
    let makes = move |_: Context<String>| async move { Ok::<_, Error>("walnut".to_owned()) };
    cache.get_or_set("kiwi4", makes).await.unwrap();
    cache.get_or_set_scoped("kiwi5", makes).await.unwrap();
    let (text, skips) = (Arc::new(Mutex::new(0)), |cx: Context<String>| async move { cx.skip() });
    cache.get_or_set("kiwi6", skips).optional().await.unwrap();
    cache.local::<Arc<Mutex<u8>>>().set("kiwi7", text).await.unwrap();
    cache.has("kiwi").await.unwrap();
    cache.expire_many(["kiwi", "kiwi1"]).await.unwrap();
    cache.pull::<String>("kiwi2").await.unwrap();
    cache.delete("kiwi").await.unwrap();
    cache.delete_by_tag(["kiwi"]).await.unwrap();
    cache.invalidate().keys(["kiwi"]).tags(["kiwi"]).namespace("kiwi").await.unwrap();
    cache.set("kiwi", walnut()).ttl("kiwi").await.unwrap_err();
    cache.clear().await.unwrap();
    cache.prune().await.unwrap();
    cache.disconnect().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_operation_logs_a_key_unless_asked_for_and_none_logs_a_value() {
    for log_keys in [false, true] {
        let log = Log::default();
        let _guard = tracing::subscriber::set_default(log.clone());
        let world = World::new();
        let (node, other) = (
            world.node_where(|s| s.log_keys(log_keys)).await,
            world.node_where(|s| s.log_keys(log_keys)).await,
        );
        everything(&node).await;
        settle().await;
        drop(other);
        let text = log.take();
        assert!(text.contains("hit") && text.contains("bus message received"), "{text}");
        assert!(!text.contains("walnut"), "{text}");
        // The text of the bad ttl is an option, not a key.
        let leaks = text.lines().any(|line| line.contains("kiwi") && !line.contains("`ttl`"));
        assert_eq!(leaks, log_keys, "{text}");
    }
}
