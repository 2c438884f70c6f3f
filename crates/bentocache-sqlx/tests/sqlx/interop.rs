//! A Node process with npm `bentocache` 1.6.1 and this library on one table, which Node has made.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use bentocache::driver::L2Driver;
use bentocache::{BentoCache, Store};
use bentocache_sqlx::{mysql, postgres};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::common::{self, PATIENCE, becomes, mysql_pool, pg_pool, table};

/// What the installed directory depends on.
const FILES: [(&str, &str); 3] = [
    ("package.json", include_str!("node/package.json")),
    ("package-lock.json", include_str!("node/package-lock.json")),
    ("peer.mjs", include_str!("node/peer.mjs")),
];

/// A directory with our `peer.mjs` and its packages, which the first test to need it fills.
static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut hasher = DefaultHasher::new();
    FILES.hash(&mut hasher);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = target.join(format!("sql-peer-{:016x}", hasher.finish()));
    if !directory.exists() {
        // Complete as soon as it is there; of two programs at once the second one wins nothing.
        let unfinished = directory.with_extension(std::process::id().to_string());
        install(&unfinished);
        if fs::rename(&unfinished, &directory).is_err() {
            fs::remove_dir_all(&unfinished).unwrap();
        }
    }
    directory
});

fn install(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for (name, text) in FILES {
        fs::write(directory.join(name), text).unwrap();
    }
    let npm = std::process::Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .expect("the program `npm` is missing: install Debian's package `npm`");
    let said = String::from_utf8_lossy(&npm.stderr);
    assert!(npm.status.success(), "`npm ci` failed; it needs a package registry once:\n{said}");
}

/// A running `peer.mjs`. It ends with its standard input, so also when the test is killed.
struct Node {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(client: &str, url: &str, table: &str) -> Self {
        let mut process = Command::new("node")
            .arg(INSTALLED.join("peer.mjs"))
            .args([client, url, table])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program `node` is missing: install Debian's package `nodejs`");
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, input, output }
    }

    async fn run(&mut self, op: &str, namespace: Option<&str>, options: Value) -> Value {
        let line = json!([op, namespace, options]).to_string() + "\n";
        self.input.write_all(line.as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        let answer = answer.expect("Node does not answer").unwrap().expect("Node has ended");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer.get("error").is_none(), "{op} {options}: {answer}");
        answer["result"].clone()
    }

    async fn get(&mut self, key: &str) -> Value {
        self.run("get", None, json!({ "key": key })).await
    }

    async fn set(&mut self, key: &str, value: Value) {
        self.run("set", None, json!({ "key": key, "value": value })).await;
    }
}

async fn rust(driver: impl L2Driver) -> BentoCache {
    let store = Store::new().l2(driver);
    BentoCache::builder().ttl("10m").store("main", store).build().await.unwrap()
}

async fn share_a_table(mut node: Node, open: impl AsyncFn() -> BentoCache) {
    let value = json!({ "name": "Ada é 🍱", "tags": [1, 2.5, null, "\u{0}"] });
    // Node makes the table with its first call.
    node.set("from node", value.clone()).await;
    let rust = open().await;
    assert_eq!(rust.get::<Value>("from node").await.unwrap(), Some(value.clone()));
    rust.set("from rust", value.clone()).await.unwrap();
    assert_eq!(node.get("from rust").await, value);
    // Each over the other's.
    rust.set("from node", 1).await.unwrap();
    assert_eq!(node.get("from node").await, json!(1));
    node.set("from rust", json!(2)).await;
    assert_eq!(rust.get::<u32>("from rust").await.unwrap(), Some(2));
    assert_eq!(node.run("getOrSet", None, json!({ "key": "from node", "value": 9 })).await, 1);
    let factory = |_| async { Ok::<_, std::io::Error>(9) };
    assert_eq!(rust.get_or_set("from rust", factory).await.unwrap(), 2);

    // Deleted, pulled and expired by the other.
    rust.delete("from node").await.unwrap();
    assert_eq!(node.get("from node").await, Value::Null);
    assert_eq!(node.run("pull", None, json!({ "key": "from rust" })).await, 2);
    assert_eq!(rust.get::<u32>("from rust").await.unwrap(), None);
    rust.set("short", 1).ttl("1s").await.unwrap();
    node.run("set", None, json!({ "key": "short too", "value": 1, "ttl": "1s" })).await;
    becomes("the end of a value by Rust", async || node_is_empty(&rust, "short").await).await;
    assert_eq!(node.get("short").await, Value::Null);
    becomes("the end of a value by Node", async || node_is_empty(&rust, "short too").await).await;

    // Tags and namespaces.
    let tagged = json!({ "key": "t", "value": 1, "tags": ["x"] });
    node.run("set", None, tagged).await;
    assert_eq!(rust.get::<u32>("t").await.unwrap(), Some(1));
    // Node's entries know the time only.
    tokio::time::sleep(Duration::from_millis(5)).await;
    rust.delete_by_tag(["x"]).await.unwrap();
    assert_eq!(node.get("t").await, Value::Null);
    rust.namespace("users").set("a", 1).await.unwrap();
    rust.namespace("usersAbc").set("a", 2).await.unwrap();
    assert_eq!(node.run("get", Some("users"), json!({ "key": "a" })).await, 1);
    node.run("clear", Some("users"), json!({})).await;
    assert_eq!(rust.namespace("users").get::<u32>("a").await.unwrap(), None);
    assert_eq!(rust.namespace("usersAbc").get::<u32>("a").await.unwrap(), Some(2));
    rust.clear().await.unwrap();
    assert_eq!(node.run("get", Some("usersAbc"), json!({ "key": "a" })).await, Value::Null);

    mixed_traffic(&mut node, &rust).await;
}

async fn node_is_empty(rust: &BentoCache, key: &str) -> bool {
    rust.get::<u32>(key).await.unwrap().is_none()
}

/// Both write and read the same keys at once; nobody sees anything that was not written.
async fn mixed_traffic(node: &mut Node, rust: &BentoCache) {
    let ours = async {
        for round in 0..150_u32 {
            let key = format!("k{}", round % 5);
            rust.set(&key, format!("{key} by rust")).await.unwrap();
            let found = rust.get::<String>(&key).await.unwrap();
            assert!(found.is_none_or(|value| value.starts_with(&key)));
            if round % 10 == 0 {
                rust.delete(&key).await.unwrap();
            }
        }
    };
    let theirs = async {
        for round in 0..150_u32 {
            let key = format!("k{}", round % 5);
            node.set(&key, json!(format!("{key} by node"))).await;
            let found = node.get(&key).await;
            assert!(found.as_str().is_none_or(|value| value.starts_with(&key)), "{found}");
            if round % 10 == 5 {
                node.run("delete", None, json!({ "key": key })).await;
            }
        }
    };
    tokio::join!(ours, theirs);
    for at in 0..5 {
        let key = format!("k{at}");
        let found = rust.get::<Value>(&key).await.unwrap().unwrap_or_default();
        assert_eq!(node.get(&key).await, found);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_and_rust_share_a_table_of_postgres() {
    let (url, table) = (common::postgres().url(), table());
    let node = Node::start("pg", &url, &table);
    share_a_table(node, async || rust(postgres(pg_pool(&url)).table_name(&table)).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_and_rust_share_a_table_of_mariadb() {
    let (url, table) = (common::mariadb().url(), table());
    let node = Node::start("mysql2", &url, &table);
    share_a_table(node, async || rust(mysql(mysql_pool(&url)).table_name(&table)).await).await;
}
