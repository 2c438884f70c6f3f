//! The values that can be cached, and their form in L1.

use std::any::Any;

use bentocache_driver::{Entry, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BoxError;
use crate::wire::codec::{self, Codec, Format};

/// A type that can be cached: any owned type that serde can write and read.
///
/// `Clone` runs on every hit, while a part of L1 is locked for reading: it must be fast and must
/// not call the cache. Keep large values in an `Arc`.
pub trait CacheValue: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> CacheValue for T {}

/// A value as L1 holds it: decoded.
pub(crate) struct Held<T>(pub(crate) T);

impl<T: CacheValue> Value for Held<T> {
    fn encode(&self, codec: u8, out: &mut Vec<u8>) -> Result<(), BoxError> {
        let format = Format::from_id(codec).ok_or("unknown codec")?;
        codec::encode_value(format, &self.0, out)
    }
}

/// The value of an entry, if it has this type.
#[inline]
pub(crate) fn value_of<T: CacheValue>(entry: &Entry) -> Option<&T> {
    let value: &dyn Any = entry.value();
    value.downcast_ref().map(|Held(value)| value)
}

/// The value of an entry as another type, converted with the codec.
pub(crate) fn convert<T: CacheValue>(entry: &Entry, codec: Codec) -> Result<T, BoxError> {
    let mut bytes = Vec::new();
    entry.value().encode(codec.format().id(), &mut bytes)?;
    codec::decode_value(codec.format(), &bytes)
}
