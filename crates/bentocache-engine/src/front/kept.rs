//! How the values of a handle are kept: in every tier, or in this process only.

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::engine::CacheValue;

/// How values of the type `T` are kept. The default of every request is [`Encoded`].
pub trait Kept<T>: private::Sealed + Send + Sync + 'static {
    /// A value as the engine has it.
    #[doc(hidden)]
    type Held: CacheValue;

    #[doc(hidden)]
    fn hold(value: T) -> Self::Held;

    #[doc(hidden)]
    fn value(held: Self::Held) -> T;

    /// Whether L2 is not asked.
    #[doc(hidden)]
    const ONLY_L1: bool;
}

mod private {
    pub trait Sealed {}
    impl Sealed for super::Encoded {}
    impl Sealed for super::InProcess {}
}

/// Values that serde can write: kept in both tiers.
#[derive(Debug, Clone, Copy)]
pub struct Encoded;

impl<T: CacheValue> Kept<T> for Encoded {
    type Held = T;

    #[inline(always)]
    fn hold(value: T) -> T {
        value
    }

    #[inline(always)]
    fn value(held: T) -> T {
        held
    }

    const ONLY_L1: bool = false;
}

/// Values that are never encoded: kept in L1 only; see [`Cache::local`](crate::Cache::local).
#[derive(Debug, Clone, Copy)]
pub struct InProcess;

impl<T: Clone + Send + Sync + 'static> Kept<T> for InProcess {
    type Held = Unencoded<T>;

    #[inline(always)]
    fn hold(value: T) -> Unencoded<T> {
        Unencoded(value)
    }

    #[inline(always)]
    fn value(held: Unencoded<T>) -> T {
        held.0
    }

    const ONLY_L1: bool = true;
}

/// A value without a stored form. Whoever reads its key as another type finds a value that cannot
/// be decoded, which is a miss.
#[doc(hidden)]
#[derive(Clone)]
pub struct Unencoded<T>(T);

const NO_FORM: &str = "a local value has no stored form";

impl<T> Serialize for Unencoded<T> {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom(NO_FORM))
    }
}

impl<'de, T> Deserialize<'de> for Unencoded<T> {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(NO_FORM))
    }
}
