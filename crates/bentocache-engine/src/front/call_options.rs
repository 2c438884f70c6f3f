//! The options of one call, and the setters of requests.

use std::borrow::Cow;

use bentocache_driver::NEVER;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::front::cache::Cache;
use crate::options::{Hook, Hooks, Policy, Setting};

/// The options of one call, in the order in which they were set. A hit inspects them one by one,
/// because few matter there; a miss merges them into a policy. Up to four need no allocation. If
/// there are none, the compiler knows it, and a hit inspects nothing.
#[derive(Default)]
pub(super) struct CallOptions<'a>(Option<SmallVec<[CallOption<'a>; 4]>>);

pub(super) enum CallOption<'a> {
    Setting(Setting),
    Tag(Cow<'a, str>),
    Hook(Hook),
    /// No expiry, whatever ttl is set.
    Forever,
    Bad(Box<Error>),
}

impl<'a> CallOptions<'a> {
    pub(super) fn push(&mut self, change: CallOption<'a>) {
        self.0.get_or_insert_default().push(change);
    }

    #[inline(always)]
    pub(super) fn all(&self) -> &[CallOption<'a>] {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn set(&mut self, setting: Result<Setting>) {
        self.push(match setting {
            Ok(setting) => CallOption::Setting(setting),
            Err(error) => CallOption::Bad(Box::new(error)),
        });
    }

    /// The first error, which the call returns.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(changes) = &mut self.0 else { return Ok(()) };
        let Some(at) = changes.iter().position(|change| matches!(change, CallOption::Bad(_)))
        else {
            return Ok(());
        };
        match changes.swap_remove(at) {
            CallOption::Bad(error) => Err(*error),
            _ => Ok(()),
        }
    }

    /// The options that matter on a hit: whether a hit is allowed, and the share of the ttl at
    /// which to refresh early.
    #[inline(always)]
    pub(super) fn on_hit(&self, policy: &Policy) -> (bool, f32) {
        let (mut may_hit, mut early_refresh) = (true, policy.early_refresh);
        for change in self.all() {
            match change {
                CallOption::Setting(
                    Setting::ForceFresh(true) | Setting::SkipL1Read(true) | Setting::L1Ttl(0),
                ) => may_hit = false,
                CallOption::Setting(Setting::EarlyRefresh(at)) => early_refresh = *at,
                CallOption::Bad(_) => return (false, 0.0),
                _ => {}
            }
        }
        (may_hit, early_refresh)
    }

    pub(super) fn policy(&self, cache: &Cache, only_l1: bool) -> Policy {
        let mut policy = *cache.engine.policy();
        let mut forever = false;
        for change in self.all() {
            match change {
                CallOption::Setting(setting) => setting.apply(&mut policy),
                CallOption::Forever => forever = true,
                CallOption::Tag(_) | CallOption::Hook(_) | CallOption::Bad(_) => {}
            }
        }
        if forever {
            policy.ttl = NEVER;
        }
        policy.skip_l2_read |= only_l1;
        policy.skip_l2_write |= only_l1;
        policy
    }

    pub(super) fn tags(&self) -> Vec<String> {
        let tag = |change: &CallOption<'a>| match change {
            CallOption::Tag(tag) => Some(tag.clone().into_owned()),
            _ => None,
        };
        self.all().iter().filter_map(tag).collect()
    }

    pub(super) fn hook(&mut self, hook: Hook) {
        self.push(CallOption::Hook(hook));
    }

    /// The hooks of the call, else those of the store.
    pub(super) fn hooks(&self, cache: &Cache) -> Hooks {
        let mut hooks = Hooks::default();
        for change in self.all() {
            if let CallOption::Hook(hook) = change {
                hooks.set(hook.clone());
            }
        }
        hooks.or(cache.engine.hooks())
    }
}

/// The setters that several operations share.
macro_rules! setters {
    (@one on_factory_error) => { $crate::options::hook_setter!(on_factory_error); };
    (@one stale_if) => { $crate::options::hook_setter!(stale_if); };
    (@one expected_errors) => { $crate::options::hook_setter!(expected_errors); };
    (@one tags) => {
        /// Adds tags, by which values can be invalidated together.
        ///
        /// ```
        /// # async fn example(cache: &bentocache::Cache) -> Result<(), bentocache::Error> {
        /// cache.set("user:42", 7).tags(["users", "team:1"]).await?;
        /// # Ok(()) }
        /// ```
        pub fn tags<S: Into<std::borrow::Cow<'a, str>>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
            tags.into_iter().for_each(|tag| self.options.push($crate::front::call_options::CallOption::Tag(tag.into())));
            self
        }
    };
    (@one $name:ident) => { $crate::options::option_row!(owned_setter $name); };
    ($($name:ident)*) => { $($crate::front::call_options::setters!(@one $name);)* };
}
pub(super) use setters;
