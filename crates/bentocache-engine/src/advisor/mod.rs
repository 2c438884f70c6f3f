//! The advisor: configurations that work and are probably wrong.
//!
//! - [`setup`]: the findings about a configuration, when it is built
//! - this file: the list of a store, to which other rooms add what they see at run time

pub(crate) mod setup;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use bentocache_driver::Finding;

use crate::sync::Mutex;

/// A configuration that works and is probably wrong; see [`Cache::advice`](crate::Cache::advice).
///
/// ```
/// # use bentocache::{BentoCache, InProcessBus, Memory, Store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), bentocache::Error> {
/// let store = Store::new().l1(Memory::new()).stale_if(|error| error.is_timeout());
/// let cache = BentoCache::builder().store("m", store).build().await?;
/// let advice = cache.advice();
/// assert_eq!((&*advice[0].store, advice[0].code), ("m", "stale-if-without-grace"));
/// println!("{}", advice[0]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Advice {
    /// The name of the store.
    pub store: Arc<str>,
    /// A stable name, by which [`silence_advice`](crate::Store::silence_advice) knows it.
    pub code: &'static str,
    /// What is probably wrong.
    pub problem: Cow<'static, str>,
    /// What to write instead.
    pub instead: Cow<'static, str>,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, code, problem, instead } = self;
        write!(f, "store {store:?}: {problem}; {instead} [{code}]")
    }
}

/// A finding at run time that costs something to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    LargeValues,
    TagOfOtherScope,
}

impl Search {
    const ALL: [Self; 2] = [Self::LargeValues, Self::TagOfOtherScope];

    fn code(self) -> &'static str {
        match self {
            Self::LargeValues => "large-values",
            Self::TagOfOtherScope => "tag-of-other-scope",
        }
    }

    /// How often to look. After that, the cache is probably used as it should be.
    fn budget(self) -> u32 {
        match self {
            Self::LargeValues => 1 << 20,
            Self::TagOfOtherScope => 1_000,
        }
    }
}

/// The advice about one store.
pub(crate) struct Advisor {
    store: Arc<str>,
    silenced: Vec<String>,
    found: Mutex<Vec<Finding>>,
    /// How often each search may still look, by [`Search`].
    searches: [AtomicU32; Search::ALL.len()],
}

impl Advisor {
    pub(crate) fn new(store: Arc<str>, silenced: Vec<String>, is_enabled: bool) -> Self {
        let budget = |search: Search| {
            let is_wanted = is_enabled && !silenced.iter().any(|code| code == search.code());
            AtomicU32::new(if is_wanted { search.budget() } else { 0 })
        };
        let searches = Search::ALL.map(budget);
        Self { store, silenced, found: Mutex::default(), searches }
    }

    /// Adds a finding to the list and logs it, unless it is silenced or known.
    pub(crate) fn report(&self, finding: Finding) {
        if self.is_silenced(finding.code) {
            return;
        }
        {
            let mut found = self.found.lock();
            if found.iter().any(|known| known.code == finding.code) {
                return;
            }
            found.push(finding.clone());
        }
        let Finding { code, problem, instead, .. } = finding;
        tracing::warn!(store = %self.store, code, "{problem}; {instead}");
    }

    pub(crate) fn is_silenced(&self, code: &str) -> bool {
        self.silenced.iter().any(|silenced| silenced == code)
    }

    /// Whether to look for this now. Returns the number of looks that remain.
    pub(crate) fn searches(&self, search: Search) -> Option<u32> {
        let budget = &self.searches[search as usize];
        // Two threads may take the same look, which does no harm.
        let left = budget.load(Relaxed).checked_sub(1)?;
        budget.store(left, Relaxed);
        Some(left)
    }

    /// Adds what a search has found, and ends it.
    pub(crate) fn found(
        &self,
        search: Search,
        problem: impl Into<Cow<'static, str>>,
        instead: &'static str,
    ) {
        self.searches[search as usize].store(0, Relaxed);
        self.report(Finding::new(search.code(), problem, instead));
    }

    /// A search can find nothing.
    pub(crate) fn give_up(&self, search: Search) {
        self.searches[search as usize].store(0, Relaxed);
    }

    pub(crate) fn advice(&self) -> Vec<Advice> {
        let of = |Finding { code, problem, instead, .. }: Finding| Advice {
            store: self.store.clone(),
            code,
            problem,
            instead,
        };
        self.found.lock().iter().cloned().map(of).collect()
    }
}
