//! Clusters whose servers are killed.
#![allow(clippy::unwrap_used)]

mod common;

use bentocache_core::{BusDriver, BusEvent, BusStream};
use bentocache_nats::NatsBus;
use bentocache_testkit::server::NatsCluster;
use bentocache_testkit::unique;
use common::{in_time, lost, next, restored, topic};

/// What one publishes, both hear, whatever came before.
async fn hear_each_other(buses: &mut [(NatsBus, BusStream); 2]) {
    for from in 0..2 {
        let text = unique("works");
        let bus = &buses[from].0;
        in_time(async || bus.publish(topic(), text.clone().into()).await).await;
        for (_, stream) in &mut *buses {
            while next(stream).await != BusEvent::Message(text.clone().into()) {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bus_goes_on_when_its_server_is_killed() {
    let cluster = NatsCluster::start(3);
    let [one, two, three] = cluster.nodes() else { panic!("three nodes") };
    // One server is named; the others are found.
    let open = async |url: String| {
        let bus = NatsBus::new(url);
        let stream = bus.subscribe(topic()).await.unwrap();
        (bus, stream)
    };
    let mut buses = [open(one.url()).await, open(two.url()).await];
    hear_each_other(&mut buses).await;

    one.kill();
    lost(&mut buses[0].1).await;
    restored(&mut buses[0].1).await;
    hear_each_other(&mut buses).await;

    // Back again, it is the last one that is left.
    one.restart();
    cluster.wait_until_agreed();
    two.kill();
    three.kill();
    for (_, stream) in &mut buses {
        while next(stream).await != BusEvent::Restored {}
    }
    hear_each_other(&mut buses).await;
}
