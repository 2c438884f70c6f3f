//! The argument of a factory.

use std::sync::Arc;

use bentocache_driver::Validators;

use crate::engine::Key;
use crate::error::{Error, Failure, Mark, Result};
use crate::options::{Policy, Setting, option_setters};
use crate::sync::Mutex;

/// The decisions of a factory about the values that it produces, which override the options of the
/// call. An invalid time is the error of all callers that wait for the factory.
macro_rules! decisions {
    () => {
        option_setters! { shared_setter:
            ttl l1_ttl l2_ttl grace skip_l1_write skip_l2_write skip_l2_read skip_bus_notify
        }

        /// Adds tags to those of the call.
        pub fn tags<S: Into<String>>(&self, tags: impl IntoIterator<Item = S>) -> &Self {
            self.overrides.add_tags(tags.into_iter().map(Into::into));
            self
        }
    };
}

/// The argument of a factory of [`get_or_set`](crate::Cache::get_or_set). It has the stale value,
/// if there is one, and setters that decide how the new value is stored.
///
/// ```
/// # use bentocache::{BentoCache, Failure, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), bentocache::Error> {
/// # let store = Store::new().l1(Memory::new());
/// # let cache = BentoCache::builder().store("m", store).build().await?;
/// let user = cache
///     .get_or_set("user:42", |cx| async move {
///         let name = "guest".to_owned();          // from a database, say
///         if name.is_empty() {
///             return cx.skip();                   // nothing to store
///         }
///         if name == "guest" {
///             cx.ttl("5s").tags(["guests"]);      // depends on what was found
///         }
///         Ok::<_, Failure>(name)
///     })
///     .await?;
/// # assert_eq!(user, "guest");
/// # Ok(()) }
/// ```
pub struct Context<T> {
    key: Key,
    stale: Option<T>,
    /// Of the stale value.
    validators: Validators,
    overrides: Arc<Overrides>,
}

impl<T> Context<T> {
    pub(super) fn new(key: Key, stale: Option<(T, Validators)>, overrides: Arc<Overrides>) -> Self {
        let (stale, validators) = stale.unzip();
        Self { key, stale, validators: validators.unwrap_or_default(), overrides }
    }

    /// The same context for another form of the value.
    #[inline(always)]
    pub(crate) fn map<U>(self, form: impl FnOnce(T) -> U) -> Context<U> {
        let Self { key, stale, validators, overrides } = self;
        Context { key, stale: stale.map(form), validators, overrides }
    }

    /// The key, as the caller gave it.
    pub fn key(&self) -> &str {
        self.key.name()
    }

    /// The value that the new one will replace: an expired value within its grace, or the current
    /// value when the call forces a fresh value or refreshes early.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let page = cache.get_or_set("page", |cx| async move {
    ///     // The old value helps to produce the new one, such as by its ETag.
    ///     let old: Option<&String> = cx.stale();
    ///     Ok::<_, std::io::Error>(format!("{} bytes before", old.map_or(0, String::len)))
    /// });
    /// page.grace("1d").await?;
    /// # Ok(()) }
    /// ```
    pub fn stale(&self) -> Option<&T> {
        self.stale.as_ref()
    }

    /// The entity tag that was stored with the stale value, for a conditional request (HTTP:
    /// `If-None-Match`).
    ///
    /// ```
    /// # struct Response { is_modified: bool, etag: String, body: String }
    /// # async fn request(_: Option<&str>) -> Result<Response, std::io::Error> {
    /// #     Ok(Response { is_modified: true, etag: String::new(), body: String::new() })
    /// # }
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let page = cache.get_or_set("page", |cx| async move {
    ///     let response = request(cx.stale_etag()).await?;
    ///     if !response.is_modified {
    ///         return cx.not_modified();
    ///     }
    ///     cx.etag(response.etag);
    ///     Ok(response.body)
    /// });
    /// page.grace("1d").await?;
    /// # Ok(()) }
    /// ```
    pub fn stale_etag(&self) -> Option<&str> {
        self.validators.etag.as_deref()
    }

    /// The time of the last change that was stored with the stale value, for a conditional request
    /// (HTTP: `If-Modified-Since`).
    pub fn stale_last_modified(&self) -> Option<&str> {
        self.validators.last_modified.as_deref()
    }

    /// Stores the source's entity tag with the value, for [`stale_etag`](Self::stale_etag) of a
    /// later factory.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let page = cache.get_or_set("page", |cx| async move {
    ///     cx.etag("\"33a64df5\"").last_modified("Tue, 22 Feb 2022 20:20:20 GMT");
    ///     Ok::<_, std::io::Error>("a page".to_owned())
    /// });
    /// page.await?;
    /// # Ok(()) }
    /// ```
    pub fn etag(&self, etag: impl Into<Box<str>>) -> &Self {
        self.overrides.0.lock().validators.etag = Some(etag.into());
        self
    }

    /// Stores the time of the value's last change at the source, in the source's own form; see
    /// [`etag`](Self::etag).
    pub fn last_modified(&self, time: impl Into<Box<str>>) -> &Self {
        self.overrides.0.lock().validators.last_modified = Some(time.into());
        self
    }

    decisions!();

    /// Ends the factory without a value: nothing is stored, no stale value is served, and every
    /// waiting caller gets [`Error::Skipped`], or `None` from
    /// [`optional`](crate::request::GetOrSet::optional). Return the result from the factory.
    ///
    /// # Errors
    /// Always.
    pub fn skip<U>(&self) -> Result<U, Failure> {
        Err(Failure::marked(Mark::Skip))
    }

    /// Ends the factory because the source has no value under the key any more: the stale value is
    /// removed in every tier and on all nodes, unless the key was changed since the factory began.
    /// Every waiting caller gets [`Error::Gone`], or `None` from
    /// [`optional`](crate::request::GetOrSet::optional). Return the result from the factory.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let user: Option<String> = cache
    ///     .get_or_set("user:42", |cx| async move {
    ///         let row: Option<String> = None; // the answer of the database
    ///         match row {
    ///             Some(name) => Ok(name),
    ///             None => cx.gone(),
    ///         }
    ///     })
    ///     .grace("6h")
    ///     .optional()
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Always.
    pub fn gone<U>(&self) -> Result<U, Failure> {
        Err(Failure::marked(Mark::Gone))
    }

    /// Fails the factory with this message or error: a stale value is served if there is one.
    /// Return the result from the factory.
    ///
    /// # Errors
    /// Always.
    pub fn fail<U>(&self, cause: impl Into<crate::error::BoxError>) -> Result<U, Failure> {
        Err(Failure::new(cause))
    }

    /// Confirms that the stale value is still valid: it is stored as a new value, with its entity
    /// tag and the time of its last change where the factory set no others. Return the result from
    /// the factory.
    ///
    /// ```
    /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
    /// let page = cache.get_or_set("page", |cx| async move {
    ///     let is_modified = false; // the server's answer
    ///     if !is_modified && cx.stale().is_some() {
    ///         return cx.not_modified();
    ///     }
    ///     Ok("a new page".to_owned())
    /// });
    /// page.grace("1d").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If there is no stale value.
    pub fn not_modified(&self) -> Result<T, Failure>
    where
        T: Clone,
    {
        let missing = || Failure::new("not modified, but there is no stale value");
        let value = self.stale.clone().ok_or_else(missing)?;
        self.overrides.0.lock().kept = self.validators.clone();
        Ok(value)
    }
}

/// The argument of a factory of [`get_or_set_many`](crate::Cache::get_or_set_many). It has the keys
/// to produce, and setters that decide how their values are stored.
pub struct ManyContext {
    keys: Vec<String>,
    overrides: Arc<Overrides>,
}

impl ManyContext {
    pub(super) fn new(keys: Vec<String>, overrides: Arc<Overrides>) -> Self {
        Self { keys, overrides }
    }

    /// The missing keys, without duplicates, as the caller gave them.
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    decisions!();

    /// Fails the factory with this message or error: stale values are served where there are any.
    /// Return the result from the factory.
    ///
    /// # Errors
    /// Always.
    pub fn fail<U>(&self, cause: impl Into<crate::error::BoxError>) -> Result<U, Failure> {
        Err(Failure::new(cause))
    }
}

/// The decisions of one factory run.
#[derive(Default)]
pub(super) struct Overrides(Mutex<Decided>);

#[derive(Default)]
struct Decided {
    settings: Vec<Setting>,
    tags: Vec<String>,
    validators: Validators,
    /// The validators of the stale value, if the factory said that it was not modified.
    kept: Validators,
    /// The first invalid text.
    error: Option<Error>,
}

impl Overrides {
    fn set(&self, setting: Result<Setting>) {
        let decided = &mut *self.0.lock();
        match setting {
            Ok(setting) => decided.settings.push(setting),
            Err(error) => drop(decided.error.get_or_insert(error)),
        }
    }

    fn add_tags(&self, tags: impl Iterator<Item = String>) {
        self.0.lock().tags.extend(tags);
    }

    /// The policy for storing the value, the tags added, and the validators.
    pub(super) fn apply(
        &self,
        mut policy: Policy,
    ) -> Result<(Policy, Vec<String>, Option<Validators>)> {
        let Decided { settings, tags, validators, kept, error } =
            std::mem::take(&mut *self.0.lock());
        settings.iter().for_each(|setting| setting.apply(&mut policy));
        let validators = Some(validators.or(kept)).filter(|validators| !validators.is_empty());
        error.map_or(Ok((policy, tags, validators)), Err)
    }
}
