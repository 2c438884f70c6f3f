//! What every L2 must do.

use bentocache_file::File;

bentocache_testkit::l2_suite! {
    open = {
        let directory = tempfile::tempdir().expect("a directory for the test");
        async move || File::new(directory.path())
    },
    without = [link],
}
