//! A random run: many calls on few keys in three processes, and random faults. Then it is judged.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use testservers::{FaultProxy, RedisServer};

use super::fleet::{AGREED_AFTER, Fleet, Outcome};
use super::history::{History, Step, Trouble};
use super::node::now;
use super::stored;

const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
const LASTING: Duration = Duration::from_secs(15);
const CLIENTS: usize = 6;

async fn pause(random: &mut fastrand::Rng, from: u64, to: u64) {
    tokio::time::sleep(Duration::from_millis(random.u64(from..to))).await;
}

/// A random request; `value` is one that nobody has used. While it is calm, nothing is changed.
fn request(random: &mut fastrand::Rng, value: u32, is_calm: bool) -> String {
    let key = KEYS[random.usize(..KEYS.len())];
    match random.u32(..if is_calm { 27 } else { 40 }) {
        0..=17 => format!("get {key}"),
        18..=26 => format!("get_or_set {key} {value} {} #t", random.u32(..20)),
        27..=34 => format!("set {key} {value} #t"),
        35 | 36 => format!("delete {key}"),
        37 => format!("expire {key}"),
        38 => "delete_by_tag #t".to_owned(),
        _ => "clear".to_owned(),
    }
}

/// Breaks something for a while.
async fn fault(
    random: &mut fastrand::Rng,
    server: &RedisServer,
    l2: &FaultProxy,
    buses: &[FaultProxy],
) -> (&'static str, bool) {
    let which = random.u32(..10);
    let bus = &buses[random.usize(..buses.len())];
    match which {
        0 => {
            server.kill();
            pause(random, 0, 700).await;
            server.restart();
            ("a crash", false)
        }
        1 => {
            server.freeze();
            pause(random, 50, 1_200).await;
            server.thaw();
            ("a freeze", false)
        }
        2 => {
            l2.refuse().await.unwrap();
            pause(random, 0, 700).await;
            l2.pass().await.unwrap();
            ("refusal", false)
        }
        3..=5 => {
            bus.refuse().await.unwrap();
            pause(random, 0, 1_000).await;
            bus.pass().await.unwrap();
            ("a bus cut off", true)
        }
        6 => {
            server.cli(&["client", "kill", "type", "pubsub"]);
            ("all subscriptions cut", true)
        }
        7 => {
            server.config("maxmemory", "1");
            pause(random, 50, 700).await;
            server.config("maxmemory", "0");
            ("no memory", false)
        }
        _ => {
            server.cli(&["replicaof", "127.0.0.1", "1"]);
            pause(random, 50, 700).await;
            server.cli(&["replicaof", "no", "one"]);
            ("read-only", false)
        }
    }
}

pub(crate) async fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let server = RedisServer::start();
    let l2 = FaultProxy::start(server.addr()).await.unwrap();
    let (mut buses, mut at) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let bus = FaultProxy::start(server.addr()).await.unwrap();
        // Nodes agree on what factories bring only if they tell each other.
        let url = |proxy: &FaultProxy| format!("redis://{}", proxy.addr());
        at.push((url(&l2), format!("{} announce", url(&bus))));
        buses.push(bus);
    }
    let fleet = Fleet::start(vec![&server], &at).await;
    let (steps, next) = (Mutex::new(Vec::new()), AtomicU32::new(1));
    let is_calm = AtomicBool::new(false);
    let start = Instant::now();
    let client = |mut random: fastrand::Rng| {
        let (fleet, steps, next, is_calm) = (&fleet, &steps, &next, &is_calm);
        async move {
            while start.elapsed() < LASTING {
                let node = random.usize(..3);
                let request = request(&mut random, next.fetch_add(1, SeqCst), is_calm.load(SeqCst));
                let answer = fleet.nodes[node].call(&request).await;
                steps.lock().unwrap().push(Step { node, request, answer });
                // Ages are compared in milliseconds.
                pause(&mut random, 2, 25).await;
            }
        }
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| client(random.fork())).collect();
    let troubles = async {
        let mut troubles = Vec::new();
        while start.elapsed() < LASTING {
            pause(&mut random, 100, 700).await;
            let begun = now();
            let (name, bus_only) = fault(&mut random, &server, &l2, &buses).await;
            troubles.push(Trouble { name, bus_only, begun, ended: now() });
            // Then what is read is what was missed.
            is_calm.store(true, SeqCst);
            pause(&mut random, 1_200, 2_000).await;
            is_calm.store(false, SeqCst);
        }
        troubles
    };
    let (troubles, _) = tokio::join!(troubles, futures_util::future::join_all(clients));

    let by = Instant::now() + AGREED_AFTER;
    for key in KEYS {
        let found = fleet.agree(key, by, |_| true).await;
        if let Outcome::Fresh(value) = found {
            assert_eq!(stored(&server, key), Some(value), "seed {seed}, {key}");
        }
    }
    let news = fleet.nodes.iter().map(super::fleet::Node::news).collect();
    let history = History { steps: steps.into_inner().unwrap(), troubles, news };
    let (judged, wrong) = history.judge();
    assert!(wrong.is_none(), "seed {seed}: {}", wrong.unwrap_or_default());
    assert!(judged > 300, "too few: {judged}");
    fleet.is_as_before().await;
}
