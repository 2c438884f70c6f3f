//! The values that can be cached, and their form in L1.

use std::any::Any;

use bentocache_driver::{Entry, Value};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BoxError;
use crate::wire::codec::{self, Codec, Format};
use crate::wire::document::Document;

/// A type that can be cached: any owned type that serde can write and read.
///
/// `Clone` runs on every hit, while a part of L1 is locked for reading: it must be fast and must
/// not call the cache. Keep large values in an `Arc`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be cached: a value must be owned, and needs `Clone`, `Serialize` and \
               `Deserialize`",
    label = "not a value for the cache",
    note = "for a type of your own: `#[derive(Clone, serde::Serialize, serde::Deserialize)]`",
    note = "for a borrowed value, store an owned one: `\"text\".to_owned()`, `slice.to_vec()`",
    note = "for a type parameter `T`, add the bound `T: bentocache::CacheValue`",
    note = "a value that serde cannot write stays in this process: `cache.local::<T>()`"
)]
pub trait CacheValue: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> CacheValue for T {}

/// A type that a factory can return as its error: every `std::error::Error`, and what converts into
/// a boxed one, such as `anyhow::Error`, [`Failure`](crate::Failure), `String` and `&str`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a factory",
    label = "does not implement `std::error::Error + Send + Sync`",
    note = "for a type of your own, implement `std::error::Error`, for example with `thiserror`",
    note = "or return `bentocache::Failure`, `anyhow::Error`, `String` or `&str`"
)]
pub trait FactoryError: Into<BoxError> + 'static {}

#[diagnostic::do_not_recommend]
impl<E: Into<BoxError> + 'static> FactoryError for E {}

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

/// A value that a snapshot has brought back, until it is read: encoded, because its type is not
/// known.
pub(crate) struct Unread {
    format: Format,
    payload: Bytes,
}

impl Unread {
    pub(crate) fn new(document: &Document) -> Self {
        Self { format: document.format(), payload: document.shared_payload() }
    }

    /// The value of an entry, if it is one that was not read yet.
    pub(crate) fn of(entry: &Entry) -> Option<&Self> {
        let value: &dyn Any = entry.value();
        value.downcast_ref()
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    pub(crate) fn payload(&self) -> &Bytes {
        &self.payload
    }
}

impl Value for Unread {
    fn encode(&self, codec: u8, out: &mut Vec<u8>) -> Result<(), BoxError> {
        if codec != self.format.id() {
            return Err("the value was stored by another codec and was not read since".into());
        }
        out.extend_from_slice(&self.payload);
        Ok(())
    }
}

/// The value of an entry as another type, converted with the codec.
pub(crate) fn convert<T: CacheValue>(entry: &Entry, codec: Codec) -> Result<T, BoxError> {
    if let Some(unread) = Unread::of(entry) {
        return codec::decode_value(unread.format, &unread.payload);
    }
    let mut bytes = Vec::new();
    entry.value().encode(codec.format().id(), &mut bytes)?;
    codec::decode_value(codec.format(), &bytes)
}
