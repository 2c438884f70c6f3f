//! Rejects values that a format would write in such a way that they read back as something else.
//!
//! JSON writes `null` for a number that is not finite. Both formats write `Some(x)` as `x`, so that
//! `Some(None)` and `Some(())` become `null` and read back as `None`. A serializer in front of the
//! format's own serializer detects both before they are written. It has almost no state, and the
//! compiler inlines it.

use std::fmt;

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

/// The serializer of a format. `JSON` is whether the format is JSON.
pub(super) struct Faithful<S, const JSON: bool> {
    inner: S,
    /// Whether the next value is the content of a `Some`.
    in_some: bool,
}

impl<S, const JSON: bool> Faithful<S, JSON> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, in_some: false }
    }
}

/// A part of a value, which is checked in the same way.
struct Part<'a, T: ?Sized, const JSON: bool> {
    value: &'a T,
    in_some: bool,
}

impl<'a, T: ?Sized, const JSON: bool> Part<'a, T, JSON> {
    fn new(value: &'a T) -> Self {
        Self { value, in_some: false }
    }
}

impl<T: Serialize + ?Sized, const JSON: bool> Serialize for Part<'_, T, JSON> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Faithful::<S, JSON> { inner: serializer, in_some: self.in_some })
    }
}

#[cold]
fn not_finite<E: Error>() -> E {
    E::custom(
        "a number that is not finite (NaN or an infinity) has no form in JSON; store it as an \
         `Option` or a text, or use another codec",
    )
}

#[cold]
fn empty_some<E: Error>() -> E {
    E::custom(
        "an `Option` that holds a `None` or a `()` would be read back as `None`; use an enum or a \
         `bool` instead",
    )
}

macro_rules! pass_on {
    ($($name:ident: $type:ty),* $(,)?) => {
        $(
            #[inline]
            fn $name(self, value: $type) -> Result<S::Ok, S::Error> {
                self.inner.$name(value)
            }
        )*
    };
}

impl<S: Serializer, const JSON: bool> Serializer for Faithful<S, JSON> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Parts<S::SerializeSeq, JSON>;
    type SerializeTuple = Parts<S::SerializeTuple, JSON>;
    type SerializeTupleStruct = Parts<S::SerializeTupleStruct, JSON>;
    type SerializeTupleVariant = Parts<S::SerializeTupleVariant, JSON>;
    type SerializeMap = Parts<S::SerializeMap, JSON>;
    type SerializeStruct = Parts<S::SerializeStruct, JSON>;
    type SerializeStructVariant = Parts<S::SerializeStructVariant, JSON>;

    pass_on! {
        serialize_bool: bool,
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_i128: i128,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
        serialize_u128: u128,
        serialize_char: char,
        serialize_str: &str,
        serialize_bytes: &[u8],
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        if JSON && !value.is_finite() { Err(not_finite()) } else { self.inner.serialize_f32(value) }
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        if JSON && !value.is_finite() { Err(not_finite()) } else { self.inner.serialize_f64(value) }
    }

    #[inline]
    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        if self.in_some { Err(empty_some()) } else { self.inner.serialize_none() }
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.serialize_some(&Part::<T, JSON> { value, in_some: true })
    }

    #[inline]
    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        if self.in_some { Err(empty_some()) } else { self.inner.serialize_unit() }
    }

    #[inline]
    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        // MessagePack represents it as an empty list.
        let is_empty = JSON && self.in_some;
        if is_empty { Err(empty_some()) } else { self.inner.serialize_unit_struct(name) }
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit_variant(name, index, variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        // Written as the value inside.
        let part = Part::<T, JSON> { value, in_some: self.in_some };
        self.inner.serialize_newtype_struct(name, &part)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let part = Part::<T, JSON>::new(value);
        self.inner.serialize_newtype_variant(name, index, variant, &part)
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.inner.serialize_seq(len).map(Parts)
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.inner.serialize_tuple(len).map(Parts)
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.inner.serialize_tuple_struct(name, len).map(Parts)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.inner.serialize_tuple_variant(name, index, variant, len).map(Parts)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.inner.serialize_map(len).map(Parts)
    }

    #[inline]
    fn serialize_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        self.inner.serialize_struct(name, len).map(Parts)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.inner.serialize_struct_variant(name, index, variant, len).map(Parts)
    }

    #[inline]
    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// The serializer of the parts of a compound value.
pub(super) struct Parts<S, const JSON: bool>(S);

macro_rules! parts {
    ($($trait:ident: $method:ident),* $(,)?) => {
        $(
            impl<S: $trait, const JSON: bool> $trait for Parts<S, JSON> {
                type Ok = S::Ok;
                type Error = S::Error;

                #[inline]
                fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                    self.0.$method(&Part::<T, JSON>::new(value))
                }

                #[inline]
                fn end(self) -> Result<S::Ok, S::Error> {
                    self.0.end()
                }
            }
        )*
    };
}

parts! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
}

macro_rules! fields {
    ($($trait:ident),* $(,)?) => {
        $(
            impl<S: $trait, const JSON: bool> $trait for Parts<S, JSON> {
                type Ok = S::Ok;
                type Error = S::Error;

                #[inline]
                fn serialize_field<T: Serialize + ?Sized>(
                    &mut self,
                    key: &'static str,
                    value: &T,
                ) -> Result<(), S::Error> {
                    self.0.serialize_field(key, &Part::<T, JSON>::new(value))
                }

                #[inline]
                fn skip_field(&mut self, key: &'static str) -> Result<(), S::Error> {
                    self.0.skip_field(key)
                }

                #[inline]
                fn end(self) -> Result<S::Ok, S::Error> {
                    self.0.end()
                }
            }
        )*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl<S: SerializeMap, const JSON: bool> SerializeMap for Parts<S, JSON> {
    type Ok = S::Ok;
    type Error = S::Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(&Part::<T, JSON>::new(key))
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Part::<T, JSON>::new(value))
    }

    #[inline]
    fn serialize_entry<K, V>(&mut self, key: &K, value: &V) -> Result<(), S::Error>
    where
        K: Serialize + ?Sized,
        V: Serialize + ?Sized,
    {
        self.0.serialize_entry(&Part::<K, JSON>::new(key), &Part::<V, JSON>::new(value))
    }

    #[inline]
    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}
