//! Logins, limits, beginnings and ends.

use crate::common::{PATIENCE, in_time, server, topic};
use bentocache::{BentoCache, Memory, Store};
use bentocache_driver::{BusDriver, DriverError, ErrorKind, Topic};
use bentocache_rabbitmq::RabbitMqBus;
use bentocache_testkit::unique;
use bytes::Bytes;
use testservers::{FaultProxy, RabbitMqServer, wait_for};

async fn refused(bus: &RabbitMqBus) -> DriverError {
    match bus.subscribe(topic()).await {
        Ok(_) => panic!("subscribed"),
        Err(error) => error,
    }
}

/// The number of exchanges of this channel.
fn exchanges(server: &RabbitMqServer, channel: &str) -> usize {
    server.ctl(&["list_exchanges", "name"]).lines().filter(|name| *name == channel).count()
}

/// The reason why a cache with this bus cannot be built.
async fn build(bus: RabbitMqBus) -> String {
    let store = Store::new().l1(Memory::new()).bus(bus);
    let built = BentoCache::builder().store("main", store).build().await;
    built.expect_err("a setting that an operator has to repair").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_node_of_a_cluster_is_tried() {
    let proxy = FaultProxy::start(server().addr()).await.unwrap();
    proxy.refuse().await.unwrap();
    let bus = RabbitMqBus::cluster([format!("amqp://{}", proxy.addr()), server().url()]);
    in_time(async || bus.publish(topic(), "1".into()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_say_so() {
    let at = |login: &str, host: &str| format!("amqp://{login}@{}/{host}", server().addr());
    let nobody = unique("nobody");
    server().ctl(&["add_user", &nobody, "pw"]);
    server().ctl(&["set_permissions", &nobody, "^$", "^$", "^$"]);
    for (url, kind, advice) in [
        ("http://nonsense".to_owned(), ErrorKind::Config, "write amqp://"),
        (at("guest:wr0ng", "%2f"), ErrorKind::Denied, "wrong user or password; correct"),
        (at("guest:guest", "nowhere"), ErrorKind::Denied, "virtual host"),
        (at(&format!("{nobody}:pw"), "%2f"), ErrorKind::Denied, "give the user the rights"),
    ] {
        let bus = RabbitMqBus::new(&url);
        let error = refused(&bus).await;
        assert_eq!(error.kind(), kind, "{url}: {error}");
        let built = build(bus).await;
        assert!(built.contains(advice), "{built}");
        let shown = format!("{error:?} {error} {built} {:?}", RabbitMqBus::new(&url));
        assert!(!shown.contains("wr0ng"), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_in_urls() {
    let user = unique("us@er");
    server().ctl(&["add_user", &user, "s3:cr@t"]);
    server().ctl(&["set_permissions", &user, "^(bentocache|amq.gen)", ".*", ".*"]);
    let login = user.replace('@', "%40") + ":s3%3Acr%40t";
    let bus = RabbitMqBus::new(format!("amqp://{login}@{}", server().addr()));
    bus.publish(topic(), "1".into()).await.unwrap();
    assert!(!format!("{bus:?}").contains("s3"), "{bus:?}");
    let forbidden = unique("forbidden");
    let error = bus.publish(Topic::new(&forbidden, ""), "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("rights"), "{error}");
    // The refusal has closed a channel, no more.
    bus.publish(topic(), "2".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_of_somebody_else_is_left_alone() {
    let bus = RabbitMqBus::new(server().url());
    let channel = unique("theirs");
    let declare = format!(
        "rabbit_exchange:declare(rabbit_misc:r(<<\"/\">>, exchange, <<\"{channel}\">>), direct, \
         true, false, false, [], <<\"test\">>)."
    );
    server().ctl(&["eval", &declare]);
    let error = bus.publish(Topic::new(&channel, ""), "1".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains(&channel), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_names_are_refused() {
    let bus = RabbitMqBus::new(server().url());
    let long = "a".repeat(256);
    let error = bus.publish(Topic::new(&long, ""), Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    bus.publish(topic(), Bytes::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_on_the_server() {
    let channel = unique("bentocache.notifications:");
    let topic = Topic::new(&channel, "");
    let bus = RabbitMqBus::new(server().url());
    let stream = bus.subscribe(topic).await.unwrap();
    assert_eq!(exchanges(server(), &channel), 1);
    drop(stream);
    wait_for("the exchange to end", || exchanges(server(), &channel) == 0);
    // With the driver, too, whose open streams end.
    let mut stream = bus.subscribe(topic).await.unwrap();
    drop(bus);
    let end = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx));
    assert_eq!(tokio::time::timeout(PATIENCE, end).await.expect("an end"), None);
    wait_for("the exchange to end", || exchanges(server(), &channel) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_after_disconnect_say_so() {
    let bus = RabbitMqBus::new(server().url());
    bus.publish(topic(), "1".into()).await.unwrap();
    bus.disconnect().await.unwrap();
    assert_eq!(bus.publish(topic(), "1".into()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(refused(&bus).await.kind(), ErrorKind::Closed);
    let unused = RabbitMqBus::new(server().url());
    unused.disconnect().await.unwrap();
    assert_eq!(refused(&unused).await.kind(), ErrorKind::Closed);
}
