//! A driver that outlives the Tokio runtime that it was first used on.

use bentocache_testkit::l2_outlives_its_runtime;

use crate::common::{driver, server, table};

#[test]
fn a_driver_outlives_its_runtime() {
    let table = tokio::runtime::Runtime::new().unwrap().block_on(table());
    l2_outlives_its_runtime(|| driver(&server().url(), &table));
}
