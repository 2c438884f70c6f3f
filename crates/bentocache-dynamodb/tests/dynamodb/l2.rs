//! What every L2 must do.

use std::time::Duration;

use testservers::FaultProxy;

use crate::common::{driver, server, table};

bentocache_testkit::l2_suite! {
    open = {
        let table = table().await;
        async move || driver(&server().url(), &table)
    },
    link = async || {
        let table = table().await;
        let proxy = FaultProxy::start(server().addr()).await.unwrap();
        let driver = driver(&format!("http://{}", proxy.addr()), &table);
        (driver.timeout(Duration::from_secs(2)), proxy)
    },
    without = [long_keys, large_values],
}
