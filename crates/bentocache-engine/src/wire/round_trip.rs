//! Reads the first encoded value of each type back. A type whose `Deserialize` cannot read the
//! output of its `Serialize` would be stored and never found.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::BoxError;
use super::codec::{Codec, Format};
use super::document::{Document, Meta};

/// The types that were read back, with their formats.
static KNOWN: LazyLock<Mutex<HashSet<(TypeId, u8)>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The subset of them that this thread has used, so that encoding needs no lock.
    static SEEN: RefCell<HashSet<(TypeId, u8)>> = RefCell::default();
}

/// A value of this type, which cannot be stored.
#[derive(Debug)]
struct Unstorable {
    type_name: &'static str,
    is_written: bool,
    source: BoxError,
}

impl fmt::Display for Unstorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { type_name, source, .. } = self;
        if self.is_written {
            write!(f, "a value of type `{type_name}` cannot be read back once written: {source}")
        } else {
            write!(f, "a value of type `{type_name}` cannot be written: {source}")
        }
    }
}

impl Error for Unstorable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// As [`Document::encode`]; the first value of each type and format is read back.
///
/// # Errors
///
/// If the value cannot be encoded, or the first value cannot be decoded. Types that failed are
/// checked again with each value.
pub(crate) fn encode<T>(codec: Codec, meta: &Meta, value: &T) -> Result<Bytes, BoxError>
where
    T: Serialize + DeserializeOwned + 'static,
{
    let unstorable = |is_written| {
        let type_name = std::any::type_name::<T>();
        move |source| BoxError::from(Unstorable { type_name, is_written, source })
    };
    let bytes = Document::encode(codec, meta, value).map_err(unstorable(false))?;
    if !is_known::<T>(codec.format()) {
        Document::parse(&bytes)
            .map_err(BoxError::from)
            .and_then(|document| document.value::<T>())
            .map_err(unstorable(true))?;
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(id::<T>(codec.format()));
    }
    Ok(bytes)
}

fn id<T: 'static>(format: Format) -> (TypeId, u8) {
    (TypeId::of::<T>(), format.id())
}

fn is_known<T: 'static>(format: Format) -> bool {
    let id = id::<T>(format);
    SEEN.with_borrow_mut(|seen| {
        let is_known = seen.contains(&id)
            || KNOWN.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
        if is_known {
            seen.insert(id);
        }
        is_known
    })
}
