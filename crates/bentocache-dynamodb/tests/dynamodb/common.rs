//! What the tests have in common.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use bentocache_dynamodb::DynamoDb;
use bentocache_testkit::unique;
use testservers::{Dynalite, npm_install};

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The directory with the emulator.
pub(crate) fn installed() -> &'static Path {
    static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
        npm_install(
            Path::new(env!("CARGO_TARGET_TMPDIR")),
            "dynalite",
            include_str!("dynalite/package.json"),
            include_str!("dynalite/package-lock.json"),
        )
    });
    &INSTALLED
}

/// An emulator that the tests share; those that break theirs start their own.
pub(crate) fn server() -> &'static Dynalite {
    static SERVER: LazyLock<Dynalite> =
        LazyLock::new(|| testservers::shared("dynalite", || Dynalite::start(installed())));
    &SERVER
}

/// A driver for that service and table.
pub(crate) fn driver(url: &str, table: &str) -> DynamoDb {
    DynamoDb::new()
        .endpoint(url)
        .region("eu-west-3")
        .credentials("an-id", "a-s3cret")
        .table(table)
        // A busy machine is no dead one.
        .timeout(PATIENCE)
}

/// The name of a new table on the shared emulator.
pub(crate) async fn table() -> String {
    let name = unique("cache-");
    driver(&server().url(), &name).create_table().await.unwrap();
    name
}

/// The library by itself, for what other programs do.
pub(crate) fn raw(url: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-3"))
        .endpoint_url(url)
        .credentials_provider(Credentials::new("an-id", "a-s3cret", None, None, "test"))
        .build();
    Client::from_conf(config)
}
