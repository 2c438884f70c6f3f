//! The keys that operations accept.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::num::NonZero;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use compact_str::{CompactString, ToCompactString};

/// A type that every operation accepts as a key: texts, integers, `Uuid` (feature `uuid`), and
/// tuples of these, whose parts are joined by `:`.
///
/// ```
/// # use bentocache::{BentoCache, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// let id = 42_u64;
/// cache.set(("user", id), "ann".to_owned()).await?;
/// assert_eq!(cache.get("user:42").await?, Some("ann".to_owned()));
///
/// cache.set(id, "a number alone is a key too".to_owned()).await?;
/// assert!(cache.has("42").await?);
/// # Ok(()) }
/// ```
///
/// Implement it for the ids of your application:
///
/// ```
/// use bentocache::{IntoKey, KeyText};
///
/// #[derive(Clone, Copy)]
/// struct UserId(u64);
///
/// impl IntoKey for UserId {
///     fn into_key<'a>(self) -> KeyText<'a> {
///         ("user", self.0).into_key()
///     }
/// }
/// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
/// cache.delete(UserId(42)).await?;
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a cache key: pass a text, an integer, or a tuple of these",
    label = "not a cache key",
    note = "`(\"user\", 42)` is the key `user:42`; `Uuid` needs the feature `uuid` of `bentocache`",
    note = "for a type of your own, implement `IntoKey`, or pass `value.to_string()`"
)]
pub trait IntoKey {
    /// The text of the key.
    fn into_key<'a>(self) -> KeyText<'a>
    where
        Self: 'a;
}

/// The text of a key: borrowed, or built without an allocation if it has at most 24 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyText<'a>(Text<'a>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Text<'a> {
    Borrowed(&'a str),
    Built(CompactString),
}

impl KeyText<'_> {
    /// The text.
    ///
    /// ```
    /// use bentocache::IntoKey;
    ///
    /// assert_eq!(("user", 42).into_key().as_str(), "user:42");
    /// ```
    #[inline]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Text::Borrowed(text) => text,
            Text::Built(text) => text,
        }
    }

    pub(super) fn into_string(self) -> String {
        match self.0 {
            Text::Borrowed(text) => text.to_owned(),
            Text::Built(text) => text.into_string(),
        }
    }
}

impl Deref for KeyText<'_> {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for KeyText<'_> {
    #[inline]
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'a> From<&'a str> for KeyText<'a> {
    #[inline]
    fn from(text: &'a str) -> Self {
        Self(Text::Borrowed(text))
    }
}

impl From<String> for KeyText<'_> {
    #[inline]
    fn from(text: String) -> Self {
        Self(Text::Built(text.into()))
    }
}

impl IntoKey for KeyText<'_> {
    #[inline]
    fn into_key<'a>(self) -> KeyText<'a>
    where
        Self: 'a,
    {
        self
    }
}

macro_rules! borrowed_texts {
    ($($type:ty),*) => {$(
        impl IntoKey for &$type {
            #[inline]
            fn into_key<'a>(self) -> KeyText<'a>
            where
                Self: 'a,
            {
                let text: &str = self;
                text.into()
            }
        }
    )*};
}
borrowed_texts!(str, &str, String, &String, Box<str>, Arc<str>, Rc<str>, Cow<'_, str>, KeyText<'_>);

macro_rules! owned_texts {
    ($($type:ty),*) => {$(
        impl IntoKey for $type {
            #[inline]
            fn into_key<'a>(self) -> KeyText<'a> where Self: 'a {
                KeyText(Text::Built(CompactString::from(&*self)))
            }
        }
    )*};
}
owned_texts!(Box<str>, Arc<str>, Rc<str>);

impl IntoKey for String {
    #[inline]
    fn into_key<'a>(self) -> KeyText<'a>
    where
        Self: 'a,
    {
        self.into()
    }
}

impl IntoKey for Cow<'_, str> {
    #[inline]
    fn into_key<'a>(self) -> KeyText<'a>
    where
        Self: 'a,
    {
        match self {
            Cow::Borrowed(text) => text.into(),
            Cow::Owned(text) => text.into(),
        }
    }
}

macro_rules! displayed {
    ($($type:ty),*) => {$(
        impl IntoKey for $type {
            #[inline]
            fn into_key<'a>(self) -> KeyText<'a> where Self: 'a {
                KeyText(Text::Built(self.to_compact_string()))
            }
        }

        impl IntoKey for &$type {
            #[inline]
            fn into_key<'a>(self) -> KeyText<'a> where Self: 'a {
                KeyText(Text::Built(self.to_compact_string()))
            }
        }
    )*};
}
displayed!(u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize);
displayed!(NonZero<u8>, NonZero<u16>, NonZero<u32>, NonZero<u64>, NonZero<u128>, NonZero<usize>);
displayed!(NonZero<i8>, NonZero<i16>, NonZero<i32>, NonZero<i64>, NonZero<i128>, NonZero<isize>);
displayed!(char);

#[cfg(feature = "uuid")]
#[cfg_attr(docsrs, doc(cfg(feature = "uuid")))]
mod of_uuid {
    use super::{CompactString, IntoKey, KeyText, Text};

    /// With hyphens, in lower case.
    impl IntoKey for uuid::Uuid {
        fn into_key<'a>(self) -> KeyText<'a>
        where
            Self: 'a,
        {
            let mut buffer = uuid::Uuid::encode_buffer();
            let text: &str = self.hyphenated().encode_lower(&mut buffer);
            KeyText(Text::Built(CompactString::new(text)))
        }
    }

    /// With hyphens, in lower case.
    impl IntoKey for &uuid::Uuid {
        fn into_key<'a>(self) -> KeyText<'a>
        where
            Self: 'a,
        {
            (*self).into_key()
        }
    }
}

macro_rules! tuples {
    ($(($first:ident $($rest:ident)+))*) => {$(
        impl<$first: IntoKey, $($rest: IntoKey),+> IntoKey for ($first, $($rest),+) {
            #[inline]
            fn into_key<'a>(self) -> KeyText<'a> where Self: 'a {
                #[allow(non_snake_case, reason = "one name for a type and its value")]
                let ($first, $($rest),+) = self;
                let mut key = CompactString::new($first.into_key().as_str());
                $(
                    // Writing to a text in memory cannot fail.
                    let _ = write!(key, ":{}", $rest.into_key().as_str());
                )+
                KeyText(Text::Built(key))
            }
        }
    )*};
}
tuples!((A B) (A B C) (A B C D) (A B C D E) (A B C D E F));

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is(key: impl IntoKey, text: &str) {
        assert_eq!(key.into_key().as_str(), text);
    }

    #[test]
    fn texts_are_keys_owned_and_borrowed() {
        let (owned, shared, cow) = ("k".to_owned(), Arc::<str>::from("k"), Cow::from("k"));
        is("k", "k");
        is(&owned, "k");
        [&owned].iter().for_each(|key| is(*key, "k"));
        ["k"].iter().for_each(|key| is(key, "k"));
        is(&shared, "k");
        is(&cow, "k");
        is(Box::<str>::from("k"), "k");
        is(Rc::<str>::from("k"), "k");
        is((shared, cow), "k:k");
        is(owned, "k");
    }

    #[test]
    fn integers_and_tuples_are_keys() {
        is(0_u8, "0");
        is(i128::MIN, "-170141183460469231731687303715884105728");
        is(NonZero::new(7_u64).unwrap(), "7");
        [-5].iter().for_each(|key| is(key, "-5"));
        is(("user", 42), "user:42");
        is(("a", "b", 'c', 4, "é", String::new()), "a:b:c:4:é:");
        is((("a", 1), ("b", 2)), "a:1:b:2");
    }

    #[cfg(feature = "uuid")]
    #[test]
    fn a_uuid_is_a_key_with_hyphens() {
        let id = uuid::Uuid::from_u128(0x_6F45_3812_0000_4000_8000_0000_0000_00AB);
        is(("user", &id), "user:6f453812-0000-4000-8000-0000000000ab");
        is(id, "6f453812-0000-4000-8000-0000000000ab");
    }

    #[test]
    fn a_borrowed_text_is_not_copied() {
        let text = "a text that is longer than the room for built keys";
        assert!(std::ptr::eq(text.into_key().as_str(), text));
    }
}
