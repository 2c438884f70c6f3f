//! The place in a value where decoding failed, as a path of the type's own field names:
//! `address.lines[2]`.
//!
//! A deserializer around the format's own deserializer records it while the failure propagates.
//! Keys of maps may be secret, so only names that the type declares are recorded.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// The steps to the place of the failure, the last one first.
#[derive(Default)]
pub(super) struct Trail(RefCell<Vec<Step>>);

enum Step {
    Field(&'static str),
    Variant(&'static str),
    Item(usize),
    /// A value of a map, whose key is not shown.
    Value,
}

impl Trail {
    fn note<T, E>(&self, result: Result<T, E>, step: impl FnOnce() -> Step) -> Result<T, E> {
        if result.is_err() {
            self.0.borrow_mut().push(step());
        }
        result
    }

    /// Puts the place in front of the message.
    pub(super) fn before(&self, what: &str) -> String {
        if self.0.borrow().is_empty() { what.to_owned() } else { format!("at `{self}`: {what}") }
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.borrow().iter().rev().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            match step {
                Step::Field(name) | Step::Variant(name) => write!(f, "{dot}{name}")?,
                Step::Item(index) => write!(f, "[{index}]")?,
                Step::Value => f.write_str("[_]")?,
            }
        }
        Ok(())
    }
}

/// Names that a type declares, and the one that was read last.
#[derive(Clone, Copy, Default)]
struct Names<'t> {
    declared: &'static [&'static str],
    read: Option<&'t Cell<Option<&'static str>>>,
}

impl Names<'_> {
    fn note(&self, name: &str) {
        if let Some(read) = self.read {
            read.set(self.declared.iter().copied().find(|declared| *declared == name));
        }
    }
}

/// A wrapper of one of serde's traits that records the path.
pub(super) struct Watched<'t, X> {
    inner: X,
    trail: &'t Trail,
    names: Names<'t>,
}

impl<'t, X> Watched<'t, X> {
    pub(super) fn new(inner: X, trail: &'t Trail) -> Self {
        Self { inner, trail, names: Names::default() }
    }

    fn declaring(self, declared: &'static [&'static str]) -> Self {
        Self { names: Names { declared, ..self.names }, ..self }
    }
}

macro_rules! pass_on {
    ($($name:ident($($argument:ident: $type:ty),*)),* $(,)?) => {
        $(
            fn $name<V: Visitor<'de>>(self $(, $argument: $type)*, visitor: V)
                -> Result<V::Value, D::Error>
            {
                let watched = Watched { inner: visitor, trail: self.trail, names: self.names };
                self.inner.$name($($argument,)* watched)
            }
        )*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Watched<'_, D> {
    type Error = D::Error;

    pass_on! {
        deserialize_any(), deserialize_bool(), deserialize_i8(), deserialize_i16(),
        deserialize_i32(), deserialize_i64(), deserialize_i128(), deserialize_u8(),
        deserialize_u16(), deserialize_u32(), deserialize_u64(), deserialize_u128(),
        deserialize_f32(), deserialize_f64(), deserialize_char(), deserialize_str(),
        deserialize_string(), deserialize_bytes(), deserialize_byte_buf(), deserialize_option(),
        deserialize_unit(), deserialize_unit_struct(name: &'static str),
        deserialize_newtype_struct(name: &'static str), deserialize_seq(),
        deserialize_tuple(len: usize), deserialize_tuple_struct(name: &'static str, len: usize),
        deserialize_map(), deserialize_identifier(), deserialize_ignored_any(),
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watched = Watched::new(visitor, self.trail).declaring(fields);
        self.inner.deserialize_struct(name, fields, watched)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let watched = Watched::new(visitor, self.trail).declaring(variants);
        self.inner.deserialize_enum(name, variants, watched)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit {
    ($($name:ident: $type:ty),* $(,)?) => {
        $(
            fn $name<E: Error>(self, value: $type) -> Result<V::Value, E> {
                self.inner.$name(value)
            }
        )*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watched<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool: bool, visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64,
        visit_i128: i128, visit_u8: u8, visit_u16: u16, visit_u32: u32, visit_u64: u64,
        visit_u128: u128, visit_f32: f32, visit_f64: f64, visit_char: char, visit_bytes: &[u8],
        visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>,
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        self.names.note(value);
        self.inner.visit_str(value)
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        self.names.note(value);
        self.inner.visit_borrowed_str(value)
    }

    fn visit_string<E: Error>(self, value: String) -> Result<V::Value, E> {
        self.names.note(&value);
        self.inner.visit_string(value)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Watched::new(inner, self.trail))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Watched::new(inner, self.trail))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        let items = Items { seq, trail: self.trail, at: 0 };
        self.inner.visit_seq(items)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let key = Cell::new(None);
        let fields = Fields { map, trail: self.trail, declared: self.names.declared, key: &key };
        self.inner.visit_map(fields)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let names = self.names;
        self.inner.visit_enum(Watched { inner, trail: self.trail, names })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Watched<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        let Self { inner: seed, trail, names } = self;
        seed.deserialize(Watched { inner, trail, names })
    }
}

struct Items<'t, A> {
    seq: A,
    trail: &'t Trail,
    at: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let next = self.seq.next_element_seed(Watched::new(seed, self.trail));
        let next = self.trail.note(next, || Step::Item(self.at));
        self.at += 1;
        next
    }

    fn size_hint(&self) -> Option<usize> {
        self.seq.size_hint()
    }
}

struct Fields<'t, A> {
    map: A,
    trail: &'t Trail,
    declared: &'static [&'static str],
    key: &'t Cell<Option<&'static str>>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.key.set(None);
        let names = Names { declared: self.declared, read: Some(self.key) };
        self.map.next_key_seed(Watched { inner: seed, trail: self.trail, names })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let value = self.map.next_value_seed(Watched::new(seed, self.trail));
        self.trail.note(value, || self.key.get().map_or(Step::Value, Step::Field))
    }

    fn size_hint(&self) -> Option<usize> {
        self.map.size_hint()
    }
}

impl<'de, 't, A: EnumAccess<'de>> EnumAccess<'de> for Watched<'t, A> {
    type Error = A::Error;
    type Variant = Content<'t, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (trail, declared) = (self.trail, self.names.declared);
        let name = Cell::new(None);
        let names = Names { declared, read: Some(&name) };
        let (value, content) = self.inner.variant_seed(Watched { inner: seed, trail, names })?;
        Ok((value, Content { content, trail, variant: name.get() }))
    }
}

/// The content of an enum variant.
pub(super) struct Content<'t, A> {
    content: A,
    trail: &'t Trail,
    variant: Option<&'static str>,
}

impl<A> Content<'_, A> {
    fn note<T, E>(
        trail: &Trail,
        variant: Option<&'static str>,
        result: Result<T, E>,
    ) -> Result<T, E> {
        match variant {
            Some(variant) => trail.note(result, || Step::Variant(variant)),
            None => result,
        }
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Content<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        Self::note(self.trail, self.variant, self.content.unit_variant())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        let read = self.content.newtype_variant_seed(Watched::new(seed, self.trail));
        Self::note(self.trail, self.variant, read)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        let read = self.content.tuple_variant(len, Watched::new(visitor, self.trail));
        Self::note(self.trail, self.variant, read)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let watched = Watched::new(visitor, self.trail).declaring(fields);
        let read = self.content.struct_variant(fields, watched);
        Self::note(self.trail, self.variant, read)
    }
}
