//! A client of the application, which ends with its runtime.

use bentocache_driver::{BusDriver, ErrorKind};
use bentocache_nats::NatsBus;
use tokio::runtime::Runtime;

use crate::common::{server, topic};

#[test]
fn a_client_that_ended_with_its_runtime_is_closed() {
    let first = Runtime::new().unwrap();
    let bus = first.block_on(async {
        let bus = NatsBus::from_client(async_nats::connect(server().url()).await.unwrap());
        bus.publish(topic(), "1".into()).await.unwrap();
        bus
    });
    drop(first);
    let error = Runtime::new().unwrap().block_on(bus.publish(topic(), "2".into())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    assert!(error.to_string().contains("make a client on a running runtime"), "{error}");
}
