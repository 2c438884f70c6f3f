//! Object-safe twins of the driver traits. Every driver implements them automatically.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::{
    BusDriver, BusStream, Capabilities, DriverError, Finding, KeyStream, L2Driver, LinkStream,
    LockDriver, Topic, Write,
};

/// The boxed future of a driver call.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, DriverError>> + Send + 'a>>;

/// The object-safe form of [`L2Driver`].
#[allow(missing_docs)]
pub trait DynL2: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    fn capabilities(&self) -> Capabilities;
    fn connect(&self) -> Call<'_, ()>;
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<Bytes>>;
    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> Call<'a, Vec<Option<Bytes>>>;
    fn set<'a>(&'a self, key: &'a str, value: Bytes, ttl: Option<Duration>) -> Call<'a, ()>;
    fn set_many<'a>(&'a self, writes: &'a [Write<'a>]) -> Call<'a, ()>;
    fn delete<'a>(&'a self, keys: &'a [&'a str]) -> Call<'a, u64>;
    fn clear<'a>(&'a self, prefix: &'a str) -> Call<'a, ()>;
    fn clear_parts<'a>(&'a self, prefix: &'a str, parts: &'a [u32]) -> Call<'a, ()>;
    fn pull<'a>(&'a self, key: &'a str) -> Call<'a, Option<Bytes>>;
    fn update<'a>(
        &'a self,
        key: &'a str,
        expected: &'a [u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Call<'a, bool>;
    fn insert<'a>(&'a self, key: &'a str, value: Bytes, ttl: Option<Duration>) -> Call<'a, bool>;
    fn touch<'a>(&'a self, key: &'a str, ttl: Option<Duration>) -> Call<'a, bool>;
    fn delete_if<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Call<'a, bool>;
    fn prune(&self) -> Call<'_, u64>;
    fn keys(&self, prefix: &str) -> KeyStream;
    fn link(&self) -> Option<LinkStream>;
    fn part(&self, key: &str) -> Option<u32>;
    fn trouble(&self) -> Option<String>;
    fn identity(&self) -> Option<String>;
    fn findings(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>>;
    fn disconnect(&self) -> Call<'_, ()>;
}

impl<D: L2Driver> DynL2 for D {
    fn name(&self) -> &'static str {
        L2Driver::name(self)
    }
    fn capabilities(&self) -> Capabilities {
        L2Driver::capabilities(self)
    }
    fn connect(&self) -> Call<'_, ()> {
        Box::pin(L2Driver::connect(self))
    }
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<Bytes>> {
        Box::pin(L2Driver::get(self, key))
    }
    fn get_many<'a>(&'a self, keys: &'a [&'a str]) -> Call<'a, Vec<Option<Bytes>>> {
        Box::pin(L2Driver::get_many(self, keys))
    }
    fn set<'a>(&'a self, key: &'a str, value: Bytes, ttl: Option<Duration>) -> Call<'a, ()> {
        Box::pin(L2Driver::set(self, key, value, ttl))
    }
    fn set_many<'a>(&'a self, writes: &'a [Write<'a>]) -> Call<'a, ()> {
        Box::pin(L2Driver::set_many(self, writes))
    }
    fn delete<'a>(&'a self, keys: &'a [&'a str]) -> Call<'a, u64> {
        Box::pin(L2Driver::delete(self, keys))
    }
    fn clear<'a>(&'a self, prefix: &'a str) -> Call<'a, ()> {
        Box::pin(L2Driver::clear(self, prefix))
    }
    fn clear_parts<'a>(&'a self, prefix: &'a str, parts: &'a [u32]) -> Call<'a, ()> {
        Box::pin(L2Driver::clear_parts(self, prefix, parts))
    }
    fn pull<'a>(&'a self, key: &'a str) -> Call<'a, Option<Bytes>> {
        Box::pin(L2Driver::pull(self, key))
    }
    fn update<'a>(
        &'a self,
        key: &'a str,
        expected: &'a [u8],
        value: Bytes,
        remaining: Option<Duration>,
    ) -> Call<'a, bool> {
        Box::pin(L2Driver::update(self, key, expected, value, remaining))
    }
    fn insert<'a>(&'a self, key: &'a str, value: Bytes, ttl: Option<Duration>) -> Call<'a, bool> {
        Box::pin(L2Driver::insert(self, key, value, ttl))
    }
    fn touch<'a>(&'a self, key: &'a str, ttl: Option<Duration>) -> Call<'a, bool> {
        Box::pin(L2Driver::touch(self, key, ttl))
    }
    fn delete_if<'a>(&'a self, key: &'a str, value: &'a [u8]) -> Call<'a, bool> {
        Box::pin(L2Driver::delete_if(self, key, value))
    }
    fn prune(&self) -> Call<'_, u64> {
        Box::pin(L2Driver::prune(self))
    }
    fn keys(&self, prefix: &str) -> KeyStream {
        L2Driver::keys(self, prefix)
    }
    fn link(&self) -> Option<LinkStream> {
        L2Driver::link(self)
    }
    fn part(&self, key: &str) -> Option<u32> {
        L2Driver::part(self, key)
    }
    fn trouble(&self) -> Option<String> {
        L2Driver::trouble(self)
    }
    fn identity(&self) -> Option<String> {
        L2Driver::identity(self)
    }
    fn findings(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>> {
        Box::pin(L2Driver::findings(self))
    }
    fn disconnect(&self) -> Call<'_, ()> {
        Box::pin(L2Driver::disconnect(self))
    }
}

/// The object-safe form of [`BusDriver`].
#[allow(missing_docs)]
pub trait DynBus: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    fn publish<'a>(&'a self, topic: Topic<'a>, message: Bytes) -> Call<'a, ()>;
    fn subscribe<'a>(&'a self, topic: Topic<'a>) -> Call<'a, BusStream>;
    fn trouble(&self) -> Option<String>;
    fn disconnect(&self) -> Call<'_, ()>;
}

impl<D: BusDriver> DynBus for D {
    fn name(&self) -> &'static str {
        BusDriver::name(self)
    }
    fn publish<'a>(&'a self, topic: Topic<'a>, message: Bytes) -> Call<'a, ()> {
        Box::pin(BusDriver::publish(self, topic, message))
    }
    fn subscribe<'a>(&'a self, topic: Topic<'a>) -> Call<'a, BusStream> {
        Box::pin(BusDriver::subscribe(self, topic))
    }
    fn trouble(&self) -> Option<String> {
        BusDriver::trouble(self)
    }
    fn disconnect(&self) -> Call<'_, ()> {
        Box::pin(BusDriver::disconnect(self))
    }
}

/// The object-safe form of [`LockDriver`].
#[allow(missing_docs)]
pub trait DynLock: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    fn acquire<'a>(&'a self, key: &'a str, token: &'a str, lease: Duration) -> Call<'a, bool>;
    fn renew<'a>(&'a self, key: &'a str, token: &'a str, lease: Duration) -> Call<'a, bool>;
    fn release<'a>(&'a self, key: &'a str, token: &'a str) -> Call<'a, bool>;
    fn disconnect(&self) -> Call<'_, ()>;
}

impl<D: LockDriver> DynLock for D {
    fn name(&self) -> &'static str {
        LockDriver::name(self)
    }
    fn acquire<'a>(&'a self, key: &'a str, token: &'a str, lease: Duration) -> Call<'a, bool> {
        Box::pin(LockDriver::acquire(self, key, token, lease))
    }
    fn renew<'a>(&'a self, key: &'a str, token: &'a str, lease: Duration) -> Call<'a, bool> {
        Box::pin(LockDriver::renew(self, key, token, lease))
    }
    fn release<'a>(&'a self, key: &'a str, token: &'a str) -> Call<'a, bool> {
        Box::pin(LockDriver::release(self, key, token))
    }
    fn disconnect(&self) -> Call<'_, ()> {
        Box::pin(LockDriver::disconnect(self))
    }
}
