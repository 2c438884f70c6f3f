//! A driver that outlives the Tokio runtime that it was first used on.

mod common;

use bentocache_file::File;
use bentocache_testkit::l2_outlives_its_runtime;
use common::temporary;

#[test]
fn a_driver_outlives_its_runtime() {
    let (directory, _) = temporary();
    l2_outlives_its_runtime(|| File::new(directory.path()));
}
