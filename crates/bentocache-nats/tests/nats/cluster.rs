//! Clusters whose servers are killed.

use std::time::{Duration, Instant};

use bentocache_driver::{BusDriver, BusEvent, BusStream};
use bentocache_nats::NatsBus;
use bentocache_testkit::unique;
use testservers::{FaultProxy, NatsCluster};
use tokio::time::timeout;

use crate::common::{PATIENCE, in_time, next, restored, topic};

/// What one publishes, both hear: at the latest when their servers know of each other's
/// subscriptions, so it is published again until then.
async fn hear_each_other(buses: &mut [(NatsBus, BusStream); 2]) {
    for from in 0..2 {
        let start = Instant::now();
        while !both_hear(buses, from).await {
            assert!(start.elapsed() < PATIENCE, "not heard by both");
        }
    }
}

async fn both_hear(buses: &mut [(NatsBus, BusStream); 2], from: usize) -> bool {
    let text = unique("works");
    let bus = &buses[from].0;
    in_time(async || bus.publish(topic(), text.clone().into()).await).await;
    for (_, stream) in buses {
        let heard = async { while next(stream).await != BusEvent::Message(text.clone().into()) {} };
        if timeout(Duration::from_secs(1), heard).await.is_err() {
            return false;
        }
    }
    true
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
    let stream = &mut buses[0].1;
    while next(stream).await != BusEvent::Lost {}
    restored(stream).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn what_other_servers_send_before_they_know_of_a_subscription_is_in_doubt() {
    let cluster = NatsCluster::start(2);
    let [one, two] = cluster.nodes() else { panic!("two nodes") };
    let proxy = FaultProxy::start(one.addr()).await.unwrap();
    let bus = NatsBus::new(format!("nats://{}", proxy.addr()))
        .options(async_nats::ConnectOptions::ignore_discovered_servers);
    let other = NatsBus::new(two.url());
    let mut stream = bus.subscribe(topic()).await.unwrap();
    for round in 0..3 {
        // This one may be missed; what comes after the report must not.
        other.publish(topic(), "early".into()).await.unwrap();
        while next(&mut stream).await != BusEvent::AllChanged {}
        let text = round.to_string();
        other.publish(topic(), text.clone().into()).await.unwrap();
        assert_eq!(next(&mut stream).await, BusEvent::Message(text.into()));
        proxy.cut();
        while next(&mut stream).await != BusEvent::Lost {}
        while next(&mut stream).await != BusEvent::Restored {}
    }
}
