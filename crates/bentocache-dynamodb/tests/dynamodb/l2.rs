//! What every second tier must do.

use crate::common::{driver, server, table};

bentocache_testkit::l2_suite! {
    open = {
        let table = table().await;
        async move || driver(&server().url(), &table)
    },
    without = [long_keys, large_values],
}
