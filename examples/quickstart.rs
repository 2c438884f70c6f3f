//! A tour of Bentocache. Run it, then read it from top to bottom:
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! It needs no server. With `--features sqlite`, L2 is a SQLite file instead of a directory, which needs
//! a C compiler. The data set is the 118 chemical elements (`elements.csv`). It stands for your
//! database, which is slow and sometimes down, as [`Source`] below.
//!
//! Every number in the output is measured in this run, and every line with an `ok` is a claim that
//! was checked. A claim that does not hold is printed as `FAILED`, and the program exits with 1.

// The output is for people.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[cfg(not(feature = "sqlite"))]
use bentocache::file::File;
#[cfg(feature = "sqlite")]
use bentocache::sqlx::SqliteDriver;
use bentocache::{BentoCache, Cache, Error, Event, EventKind, InProcessBus, Memory, Observer};
use bentocache::{Store, Tier};
use examples::{count, time};
use serde::{Deserialize, Serialize};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::sleep;

type Result<T, E = Box<dyn StdError + Send + Sync>> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let started = Instant::now();
    let directory = tempfile::tempdir()?;
    let mut tour = Tour::start(directory.path()).await?;

    a_miss_an_l2_hit_an_l1_hit(&mut tour).await?;
    ten_thousand_callers(&mut tour).await?;
    the_source_goes_down(&mut tour).await?;
    the_source_is_slow(&mut tour).await?;
    a_tag_is_invalidated(&mut tour).await?;
    two_nodes_and_a_bus(&mut tour).await?;

    tour.end(started).await
}

/// The state of all steps: a source, and two nodes that share an L2 and a bus.
///
/// A node is the cache of one process of your service. Here both are in one process; they share
/// only the directory and the bus.
struct Tour {
    directory: PathBuf,
    source: Source,
    a: Node,
    b: Node,
    claims: Claims,
}

struct Node {
    cache: BentoCache,
    /// Counts of the events of the cache.
    seen: Seen,
}

impl Tour {
    async fn start(directory: &Path) -> Result<Self> {
        println!("Bentocache: a tour with the 118 chemical elements.");
        println!("Two nodes, A and B. Each has an in-process tier (L1); they share a second");
        println!("tier (L2), files in a temporary directory, and a bus.");
        let bus = InProcessBus::new();
        Ok(Self {
            directory: directory.to_owned(),
            source: Source::open()?,
            a: open_node(directory, Some(&bus)).await?,
            b: open_node(directory, Some(&bus)).await?,
            claims: Claims::default(),
        })
    }

    async fn end(self, started: Instant) -> Result<ExitCode> {
        let Self { source, a, b, claims, .. } = self;
        println!("\nThe whole tour");
        println!("  {:<8}{:>10}{:>10}{:>10}{:>10}", "", "L1 hits", "L2 hits", "stale", "misses");
        for (name, node) in [("node A", &a), ("node B", &b)] {
            let [l1, l2, stale, misses] = node.seen.counts().map(count);
            println!("  {name:<8}{l1:>10}{l2:>10}{stale:>10}{misses:>10}");
        }
        a.cache.disconnect_all().await?;
        b.cache.disconnect_all().await?;
        let (asked, took) = (count(source.calls()), time(started.elapsed()));
        println!("  The source was asked {asked} times. The tour took {took}.");
        Ok(claims.verdict())
    }
}

#[cfg(not(feature = "sqlite"))]
fn second_tier(directory: &Path) -> File {
    File::new(directory)
}

#[cfg(feature = "sqlite")]
fn second_tier(directory: &Path) -> SqliteDriver {
    bentocache::sqlx::open_sqlite(directory.join("cache.sqlite"))
}

/// Builds a cache. This is the whole setup.
async fn open_node(directory: &Path, bus: Option<&InProcessBus>) -> Result<Node> {
    let memory = Memory::new().max_items(100_000);
    let mut store = Store::new().l1(memory).l2(second_tier(directory));
    if let Some(bus) = bus {
        store = store.bus(bus.clone());
    }
    let seen = Seen::default();
    let cache = BentoCache::builder()
        .ttl("10m") // how long a value is fresh
        .store("elements", store)
        .observer(seen.clone())
        .build()
        .await?;
    Ok(Node { cache, seen })
}

// ------------------------------------------------------------------------------------------------

async fn a_miss_an_l2_hit_an_l1_hit(tour: &mut Tour) -> Result<()> {
    headline(
        "1. A miss, an L2 hit, an L1 hit",
        "Gold is in no tier yet, so node A calls the source, which takes 50 ms. The answer is
         stored in A's memory and in L2. Node B finds it in L2 and copies it into its own
         memory, where every later call finds it.",
    );
    tour.source.answers_in(Duration::from_millis(50));
    let Tour { source, a, b, claims, .. } = tour;

    let miss = measure(a, source, element(&a.cache, source, "Au")).await?;
    let l2 = measure(b, source, element(&b.cache, source, "Au")).await?;
    let l1 = measure(b, source, element(&b.cache, source, "Au")).await?;

    columns(&["", "answered by", "time", "source calls", "mass"]);
    miss.row("A asks for gold");
    l2.row("B asks for gold");
    l1.row("B asks again");

    // A single call is too short to measure.
    const TIMES: u32 = 100_000;
    let started = Instant::now();
    for _ in 0..TIMES {
        element(&b.cache, source, "Au").await?;
    }
    let each = started.elapsed() / TIMES;
    row(&["B asks 100,000 times more", "L1", &format!("{} each", time(each)), "0", ""]);

    claims.check("the first call was a miss, with exactly one source call", {
        miss.from == "source" && miss.source_calls == 1
    });
    claims.check("B's first call was an L2 hit, its second an L1 hit, without the source", {
        l2.from == "L2" && l1.from == "L1" && l2.source_calls + l1.source_calls == 0
    });
    claims.check("all 100,000 others were L1 hits", b.seen.counts()[0] == 100_001);
    claims.check("all got the same answer", miss.value == l2.value && l2.value == l1.value);
    Ok(())
}

/// The central call: the value from the cache, or else from the source.
///
/// The closure is the *factory*. It runs only if the key has no fresh value.
async fn element(cache: &Cache, source: &Source, symbol: &str) -> Result<Element, Error> {
    let (source, wanted) = (source.clone(), symbol.to_owned());
    cache.get_or_set(symbol, |_| async move { source.element(&wanted).await }).await
}

// ------------------------------------------------------------------------------------------------

async fn ten_thousand_callers(tour: &mut Tour) -> Result<()> {
    const CALLERS: usize = 10_000;
    headline(
        "2. Ten thousand callers at once on one cold key",
        "10,000 tasks wait at a barrier, then all read iron from node A. It is in no tier, and the
         source takes 500 ms. Without a cache, or with a simple one, the source would get 10,000
         calls: a stampede. Here one call runs, and all the others wait for its answer.",
    );
    tour.source.answers_in(Duration::from_millis(500));
    let Tour { source, a, claims, .. } = tour;
    let (calls_before, [.., misses_before]) = (source.calls(), a.seen.counts());

    let barrier = Arc::new(Barrier::new(CALLERS + 1));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (cache, source, barrier) = (a.cache.clone(), source.clone(), barrier.clone());
        callers.spawn(async move {
            barrier.wait().await;
            element(&cache, &source, "Fe").await
        });
    }
    barrier.wait().await;
    let started = Instant::now();
    let answers: Vec<Element> =
        callers.join_all().await.into_iter().collect::<Result<_, Error>>()?;
    let took = started.elapsed();
    let source_calls = source.calls() - calls_before;
    // A hit would be a caller that came after the answer. There must be none, or the test is void.
    let waited = a.seen.counts()[3] - misses_before;

    columns(&["", "callers", "time for all", "source calls"]);
    let (callers, calls) = (count(waited), count(source_calls));
    row(&["waited for the one source call", &callers, &time(took), &calls]);

    claims.check("all 10,000 callers were there before the answer", waited == CALLERS as u64);
    claims.check("the source was asked exactly once", source_calls == 1);
    claims.check("all got the same answer", answers.iter().all(|answer| *answer == answers[0]));
    Ok(())
}

// ------------------------------------------------------------------------------------------------

async fn the_source_goes_down(tour: &mut Tour) -> Result<()> {
    headline(
        "3. The source goes down",
        "Copper is fresh for 200 ms (ttl), and may be served stale for another hour (grace). It
         becomes stale, and the source goes down. Callers get the stale value instead of an
         error. After the failure the source is not called for 500 ms (grace_backoff). Silver
         was never read, so there is no stale value to serve.",
    );
    tour.source.answers_in(Duration::from_millis(50));
    let Tour { source, a, claims, .. } = tour;

    let fresh = measure(a, source, copper(&a.cache, source)).await?;
    sleep(Duration::from_millis(250)).await; // now it is stale
    source.goes_down();
    let stale = measure(a, source, copper(&a.cache, source)).await?;
    let backoff = measure(a, source, copper(&a.cache, source)).await?;
    let (calls_before, started) = (source.calls(), Instant::now());
    let silver = element(&a.cache, source, "Ag").await;
    let (silver_calls, silver_took) = (source.calls() - calls_before, started.elapsed());
    source.comes_back();
    sleep(Duration::from_millis(550)).await; // the backoff is over
    let back = measure(a, source, copper(&a.cache, source)).await?;

    columns(&["", "answered by", "time", "source calls", "answer no."]);
    fresh.row_with_answer("first call");
    stale.row_with_answer("stale, source down");
    backoff.row_with_answer("again, within the backoff");
    let error = silver.as_ref().err().and_then(Error::factory::<SourceError>);
    row(&["silver, source down", "an error", &time(silver_took), &count(silver_calls), ""]);
    back.row_with_answer("source back, backoff over");

    claims.check("the stale value was served, after one failed source call", {
        stale.from == "stale" && stale.source_calls == 1 && stale.value == fresh.value
    });
    claims.check("within the backoff the source was not called", {
        backoff.source_calls == 0 && backoff.value == fresh.value
    });
    claims.check("a key without a value is an error, with the source's own error inside", {
        matches!(error, Some(SourceError::Down))
    });
    claims.check("once the source was back, a new value came", {
        back.from == "source" && back.value.answer > fresh.value.answer
    });
    Ok(())
}

/// Options are set on the call. An option that is not set is inherited from the store or the cache.
async fn copper(cache: &Cache, source: &Source) -> Result<Element, Error> {
    let source = source.clone();
    cache
        .get_or_set("Cu", |_| async move { source.element("Cu").await })
        .ttl("200ms")
        .grace("1h")
        .grace_backoff("500ms")
        .timeout("none") // wait for the source, however long it takes; see the next step
        .await
}

// ------------------------------------------------------------------------------------------------

async fn the_source_is_slow(tour: &mut Tour) -> Result<()> {
    headline(
        "4. A slow source, cut by the soft timeout",
        "Zinc is stale, and the source now takes a whole second. Callers wait for it for 100 ms
         (timeout), then get the stale value. The source call continues in the background, and
         later callers get its answer.",
    );
    tour.source.answers_in(Duration::from_millis(50));
    let Tour { source, a, claims, .. } = tour;

    let fresh = measure(a, source, zinc(&a.cache, source)).await?;
    sleep(Duration::from_millis(550)).await; // now it is stale
    source.answers_in(Duration::from_secs(1));
    let cut = measure(a, source, zinc(&a.cache, source)).await?;
    sleep(Duration::from_millis(1_000)).await; // the source has answered by now
    let later = measure(a, source, zinc(&a.cache, source)).await?;

    columns(&["", "answered by", "time", "source calls", "answer no."]);
    fresh.row_with_answer("first call");
    cut.row_with_answer("stale, source takes 1 s");
    later.row_with_answer("one second later");

    claims.check("the caller had the stale value after 100 ms, not after a second", {
        let near = Duration::from_millis(99)..Duration::from_millis(500);
        cut.from == "stale" && cut.value == fresh.value && near.contains(&cut.took)
    });
    claims.check("the late answer was stored, and the source was called only once", {
        later.from == "L1"
            && later.value.answer == fresh.value.answer + 1
            && cut.source_calls + later.source_calls == 1
    });
    Ok(())
}

async fn zinc(cache: &Cache, source: &Source) -> Result<Element, Error> {
    let source = source.clone();
    cache
        .get_or_set("Zn", |_| async move { source.element("Zn").await })
        .ttl("500ms")
        .grace("1h")
        .timeout("100ms")
        .await
}

// ------------------------------------------------------------------------------------------------

async fn a_tag_is_invalidated(tour: &mut Tour) -> Result<()> {
    headline(
        "5. A tag is invalidated",
        "All 118 elements are stored in the cache, each tagged with its group of the periodic
         table. Node B reads them, so both nodes have all in memory. Then A invalidates group 18,
         the noble gases. The cost does not depend on the number of values with the tag.",
    );
    tour.source.answers_in(Duration::from_millis(20));
    let Tour { source, a, b, claims, .. } = tour;
    // A namespace is a handle that prepends its name to every key.
    let (on_a, on_b) = (a.cache.namespace("periodic"), b.cache.namespace("periodic"));

    let started = Instant::now();
    let mut loads = JoinSet::new();
    for element in source.all() {
        let (cache, source) = (on_a.clone(), source.clone());
        loads.spawn(async move { tagged(&cache, &source, &element).await });
    }
    loads.join_all().await.into_iter().collect::<Result<Vec<_>, Error>>()?;
    let loaded = started.elapsed();
    let symbols: Vec<String> = source.all().map(|element| element.symbol).collect();
    let read: Vec<Option<Element>> = on_b.get_many(&symbols).await?;
    let before = (fresh(&on_a, &symbols).await?, fresh(&on_b, &symbols).await?);

    let started = Instant::now();
    on_a.delete_by_tag(["group:18"]).await?;
    let invalidated = started.elapsed();
    let heard = wait_until(|| async { Ok(!on_b.has("He").await?) }).await?;
    let after = (fresh(&on_a, &symbols).await?, fresh(&on_b, &symbols).await?);

    columns(&["", "time", "fresh on A", "fresh on B"]);
    let shown = |(a, b): (usize, usize)| (a.to_string(), b.to_string());
    let ((a_before, b_before), (a_after, b_after)) = (shown(before), shown(after));
    row(&["118 elements loaded", &time(loaded), &a_before, &b_before]);
    row(&["group 18 invalidated on A", &time(invalidated), &a_after, ""]);
    row(&["... and received by B", &format!("+ {}", time(heard)), "", &b_after]);

    claims.check("before, both nodes had all 118 elements", {
        read.iter().all(Option::is_some) && before == (118, 118)
    });
    let noble = source.all().filter(|element| element.group == Some(18)).count();
    claims.check("after, the 7 noble gases were gone on both, the other 111 were not", {
        noble == 7 && after == (111, 111)
    });
    Ok(())
}

async fn tagged(cache: &Cache, source: &Source, element: &Element) -> Result<Element, Error> {
    let (source, wanted) = (source.clone(), element.symbol.clone());
    let tag = element.group.map(|group| format!("group:{group}"));
    cache
        .get_or_set(&*element.symbol, |_| async move { source.element(&wanted).await })
        .tags(tag)
        .await
}

async fn fresh(cache: &Cache, symbols: &[String]) -> Result<usize, Error> {
    let mut fresh = 0;
    for symbol in symbols {
        fresh += usize::from(cache.has(symbol).await?);
    }
    Ok(fresh)
}

// ------------------------------------------------------------------------------------------------

async fn two_nodes_and_a_bus(tour: &mut Tour) -> Result<()> {
    headline(
        "6. A second node, invalidated by the bus",
        "Nodes A, B and C have mercury in memory. A stores a corrected value. B is on the bus: a
         message invalidates its copy, and it reads the new value from L2. C is a third node,
         without a bus: it keeps serving the old value until the ttl ends.",
    );
    tour.source.answers_in(Duration::from_millis(50));
    let c = open_node(&tour.directory, None).await?;
    let Tour { source, a, b, claims, .. } = tour;
    for node in [&*a, &*b, &c] {
        element(&node.cache, source, "Hg").await?;
    }

    let old = element(&a.cache, source, "Hg").await?;
    let corrected = Element { mass: 200.592, ..old.clone() };
    let started = Instant::now();
    a.cache.set("Hg", corrected.clone()).await?;
    let stored = started.elapsed();
    let heard = wait_until(|| async {
        let found = element(&b.cache, source, "Hg").await?;
        Ok(found == corrected)
    })
    .await?;
    let on_b = measure(b, source, element(&b.cache, source, "Hg")).await?;
    let on_c = measure(&c, source, element(&c.cache, source, "Hg")).await?;

    columns(&["", "answered by", "time", "source calls", "mass"]);
    row(&["A stores a corrected mass", "", &time(stored), "0", &corrected.mass.to_string()]);
    row(&["B receives a message", "", &format!("+ {}", time(heard)), "0", ""]);
    on_b.row("B asks for mercury");
    on_c.row("C, without a bus, asks");

    claims.check("B had the corrected value within a second", {
        on_b.value == corrected && heard < Duration::from_secs(1)
    });
    claims.check("C, without a bus, still had the old one", on_c.value == old);
    c.cache.disconnect_all().await?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------
// The source, counters and output. Only `Seen` below is about the cache.

/// The cached value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Element {
    number: u8,
    symbol: String,
    name: String,
    mass: f64,
    /// The column of the periodic table; the lanthanides and actinides have none.
    group: Option<u8>,
    /// Answers of the source are numbered, to distinguish a stale value from a new one.
    answer: u64,
}

/// A database that is slow or down on demand.
#[derive(Clone)]
struct Source(Arc<Database>);

struct Database {
    elements: HashMap<String, Element>,
    calls: AtomicU64,
    delay_ms: AtomicU64,
    is_down: AtomicBool,
}

impl Source {
    fn open() -> Result<Self> {
        let mut elements = HashMap::new();
        for line in include_str!("elements.csv").lines().skip(1) {
            let [number, symbol, name, mass, _period, group] =
                line.split(',').collect::<Vec<_>>()[..]
            else {
                return Err(format!("not an element: {line}").into());
            };
            let element = Element {
                number: number.parse()?,
                symbol: symbol.to_owned(),
                name: name.to_owned(),
                mass: mass.parse()?,
                group: if group.is_empty() { None } else { Some(group.parse()?) },
                answer: 0,
            };
            elements.insert(symbol.to_owned(), element);
        }
        let (calls, delay_ms, is_down) = Default::default();
        Ok(Self(Arc::new(Database { elements, calls, delay_ms, is_down })))
    }

    /// Queries the database for an element: counted, slow, and an error while it is down.
    async fn element(&self, symbol: &str) -> Result<Element, SourceError> {
        let answer = self.0.calls.fetch_add(1, SeqCst) + 1;
        sleep(Duration::from_millis(self.0.delay_ms.load(SeqCst))).await;
        if self.0.is_down.load(SeqCst) {
            return Err(SourceError::Down);
        }
        let element = self.0.elements.get(symbol).ok_or(SourceError::NoSuchElement)?;
        Ok(Element { answer, ..element.clone() })
    }

    fn all(&self) -> impl Iterator<Item = Element> {
        self.0.elements.values().cloned()
    }

    fn calls(&self) -> u64 {
        self.0.calls.load(SeqCst)
    }

    fn answers_in(&self, delay: Duration) {
        self.0.delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    fn goes_down(&self) {
        self.0.is_down.store(true, SeqCst);
    }

    fn comes_back(&self) {
        self.0.is_down.store(false, SeqCst);
    }
}

#[derive(Debug)]
enum SourceError {
    Down,
    NoSuchElement,
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "the database is down",
            Self::NoSuchElement => "there is no such element",
        })
    }
}

impl StdError for SourceError {}

/// Counts events of a cache: every read is one hit or one miss, and a hit has the tier.
#[derive(Clone, Default)]
struct Seen(Arc<[AtomicU64; 4]>);

/// The indexes of [`Seen`].
const ANSWERED_BY: [&str; 4] = ["L1", "L2", "stale", "source"];

impl Observer for Seen {
    fn observe(&self, event: &Event<'_>) {
        let place = match event.kind {
            EventKind::Hit { graced: true, .. } => 2,
            EventKind::Hit { tier: Tier::L1, .. } => 0,
            EventKind::Hit { tier: Tier::L2, .. } => 1,
            EventKind::Miss { .. } => 3,
            _ => return,
        };
        self.0[place].fetch_add(1, SeqCst);
    }
}

impl Seen {
    /// L1 hits, L2 hits, stale values served, misses.
    fn counts(&self) -> [u64; 4] {
        std::array::from_fn(|place| self.0[place].load(SeqCst))
    }
}

/// One call, measured.
struct Measured {
    value: Element,
    /// Where the value was found, from the events of the cache.
    from: &'static str,
    took: Duration,
    source_calls: u64,
}

async fn measure(
    node: &Node,
    source: &Source,
    call: impl Future<Output = Result<Element, Error>>,
) -> Result<Measured> {
    let (seen_before, calls_before) = (node.seen.counts(), source.calls());
    let started = Instant::now();
    let value = call.await?;
    let took = started.elapsed();
    let seen = node.seen.counts();
    let place = (0..4).find(|&place| seen[place] > seen_before[place]);
    let from = place.map_or("nobody", |place| ANSWERED_BY[place]);
    Ok(Measured { value, from, took, source_calls: source.calls() - calls_before })
}

impl Measured {
    fn row(&self, what: &str) {
        self.row_with(what, &self.value.mass.to_string());
    }

    fn row_with_answer(&self, what: &str) {
        self.row_with(what, &self.value.answer.to_string());
    }

    fn row_with(&self, what: &str, last: &str) {
        row(&[what, self.from, &time(self.took), &self.source_calls.to_string(), last]);
    }
}

/// Waits until the condition holds, two seconds at most, and returns how long that took.
async fn wait_until<F>(mut is_so: impl FnMut() -> F) -> Result<Duration>
where
    F: Future<Output = Result<bool, Error>>,
{
    let started = Instant::now();
    while !is_so().await? && started.elapsed() < Duration::from_secs(2) {
        tokio::task::yield_now().await;
    }
    Ok(started.elapsed())
}

#[derive(Default)]
struct Claims {
    held: u32,
    failed: u32,
}

impl Claims {
    fn check(&mut self, claim: &str, holds: bool) {
        if holds {
            self.held += 1;
            println!("  ok: {claim}");
        } else {
            self.failed += 1;
            println!("  FAILED: {claim}");
        }
    }

    fn verdict(&self) -> ExitCode {
        let Self { held, failed } = self;
        println!("  {held} of {} claims hold.", held + failed);
        if *failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn headline(title: &str, text: &str) {
    println!("\n{title}");
    for line in text.lines() {
        println!("  {}", line.trim_start());
    }
}

fn columns(names: &[&str]) {
    println!();
    row(names);
}

fn row(cells: &[&str]) {
    print!("  {:<34}", cells[0]);
    for cell in &cells[1..] {
        print!("{cell:>16}");
    }
    println!();
}
