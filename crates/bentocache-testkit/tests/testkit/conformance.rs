//! The kit's own drivers pass the kit's suites, wrapped and unwrapped.

use std::sync::LazyLock;

use bentocache_testkit::{ChaosBus, ChaosL1, ChaosL2, ChaosLock, MapBus, MapL1, MapL2, MapLock};

bentocache_testkit::l2_suite! {
    open = {
        let store = MapL2::new();
        async move || store.clone()
    },
    without = [link],
}

bentocache_testkit::l2_suite! {
    mod l2_under_chaos;
    open = {
        let store = ChaosL2::new(MapL2::new());
        async move || ChaosL2::new(store.inner().clone())
    },
    link = async || {
        let store = ChaosL2::new(MapL2::new());
        let link = store.chaos();
        (store, link)
    },
}

bentocache_testkit::l2_suite! {
    mod l2_with_limits;
    open = {
        let store = MapL2::new().max_key(600).max_value(2 << 20);
        async move || store.clone()
    },
    without = [long_keys, large_values, link],
}

bentocache_testkit::l2_suite! {
    mod l2_without_clear;
    open = {
        let store = MapL2::new().without_clear();
        async move || store.clone()
    },
    without = [clear, link],
}

bentocache_testkit::l1_suite! {
    open = async || MapL1::new(),
    without = [weight],
}

bentocache_testkit::l1_suite! {
    mod l1_under_chaos;
    open = async || ChaosL1::new(MapL1::new()),
    without = [weight],
}

bentocache_testkit::bus_suite! {
    open = {
        let bus = MapBus::new();
        async move || bus.clone()
    },
    without = [link],
}

bentocache_testkit::bus_suite! {
    mod bus_under_chaos;
    open = async || ChaosBus::new(shared_bus().clone()),
    link = async || {
        let bus = ChaosBus::new(shared_bus().clone());
        let link = bus.chaos();
        (bus, link)
    },
}

/// What all drivers of [`bus_under_chaos`] share; each case has channels of its own.
fn shared_bus() -> &'static MapBus {
    static BUS: LazyLock<MapBus> = LazyLock::new(MapBus::new);
    &BUS
}

bentocache_testkit::lock_suite! {
    open = {
        let lock = MapLock::new();
        async move || lock.clone()
    },
}

bentocache_testkit::lock_suite! {
    mod lock_under_chaos;
    open = {
        let lock = MapLock::new();
        async move || ChaosLock::new(lock.clone())
    },
}
