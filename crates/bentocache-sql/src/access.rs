//! The adapter with its open table and its limits.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bentocache_driver::{DriverError, ErrorKind, OptionErrors};
use tokio::sync::OnceCell;

use crate::{DatabaseAdapter, Limits, TableName};

/// The options that the driver's setters change.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) table_name: String,
    pub(crate) auto_create_table: bool,
    pub(crate) max_value: Option<usize>,
    pub(crate) errors: OptionErrors,
}

/// State that the driver, its key listings and its background task share.
pub(crate) struct Access<A> {
    pub(crate) adapter: Arc<A>,
    pub(crate) options: Arc<Options>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_open: OnceCell<()>,
    is_closed: AtomicBool,
    /// The number of failed attempts to open the table, and the last error.
    failed: Mutex<(u64, Option<DriverError>)>,
}

impl State {
    fn failures(&self) -> (u64, Option<DriverError>) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, error: &DriverError) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = (failed.0 + 1, Some(error.clone()));
    }
}

impl<A> Clone for Access<A> {
    fn clone(&self) -> Self {
        Self {
            adapter: Arc::clone(&self.adapter),
            options: Arc::clone(&self.options),
            state: Arc::clone(&self.state),
        }
    }
}

impl<A: DatabaseAdapter> Access<A> {
    pub(crate) fn new(adapter: A) -> Self {
        let options = Options {
            table_name: "bentocache".to_owned(),
            auto_create_table: true,
            max_value: None,
            errors: OptionErrors::default(),
        };
        Self { adapter: Arc::new(adapter), options: Arc::new(options), state: Arc::default() }
    }

    /// The options, for the setters.
    pub(crate) fn options_mut(&mut self) -> &mut Options {
        Arc::make_mut(&mut self.options)
    }

    /// The adapter with its table. One caller opens the table; if that fails, it fails for all
    /// callers that waited: one attempt after the other would wait many times as long for a dead
    /// server.
    pub(crate) async fn open(&self) -> Result<&A, DriverError> {
        if self.state.is_closed.load(Relaxed) {
            return Err(self.error(ErrorKind::Closed, "the driver was disconnected"));
        }
        if self.state.is_open.initialized() {
            return Ok(&self.adapter);
        }
        let (before, _) = self.state.failures();
        let open = async {
            if let (now, Some(error)) = self.state.failures()
                && now != before
            {
                return Err(error);
            }
            self.options.errors.check(self.adapter.name())?;
            let table = TableName::new(&self.options.table_name)
                .map_err(|wrong| self.error(wrong.kind(), &wrong.to_string()))?;
            let opened = self.adapter.open_table(&table, self.options.auto_create_table).await;
            opened.inspect_err(|error| self.state.note(error))
        };
        self.state.is_open.get_or_try_init(|| open).await?;
        Ok(&self.adapter)
    }

    /// Refuses further calls; returns whether it was open before.
    pub(crate) fn close(&self) -> bool {
        !self.state.is_closed.swap(true, Relaxed)
    }

    pub(crate) fn error(&self, kind: ErrorKind, message: &str) -> DriverError {
        DriverError::new(kind, format!("{}: {message}", self.adapter.name()))
    }

    pub(crate) fn limits(&self) -> Limits {
        let mut limits = self.adapter.limits();
        if let Some(bytes) = self.options.max_value {
            limits.max_value = Some(limits.max_value.map_or(bytes, |most| most.min(bytes)));
        }
        limits
    }

    /// Refuses keys and values that cannot be stored.
    pub(crate) fn check(&self, key: &str, value: &[u8]) -> Result<(), DriverError> {
        let limits = self.limits();
        let over = |what: &str, size: usize, limit: usize, unit: &str| {
            let message = format!("a {what} of {size} {unit}; the limit is {limit} {unit}");
            Err(self.error(ErrorKind::TooLarge, &message))
        };
        if let Some(limit) = limits.max_key.filter(|limit| key.len() > *limit) {
            return over("key", key.len(), limit, "bytes");
        }
        let size = key.chars().count();
        if let Some(limit) = limits.max_key_chars.filter(|limit| size > *limit) {
            return over("key", size, limit, "characters");
        }
        if let Some(limit) = limits.max_value.filter(|limit| value.len() > *limit) {
            return over("value", value.len(), limit, "bytes");
        }
        if !self.takes_characters_of(key) {
            return Err(self.error(
                ErrorKind::Refused,
                "a key with the character NUL, which the database does not take in text; \
                 leave it out of the key",
            ));
        }
        Ok(())
    }

    /// Whether the table can contain this key. Looking up a key that it cannot contain is no error.
    pub(crate) fn can_hold(&self, key: &str) -> bool {
        let limits = self.limits();
        limits.max_key.is_none_or(|limit| key.len() <= limit)
            && limits.max_key_chars.is_none_or(|limit| key.chars().count() <= limit)
            && self.takes_characters_of(key)
    }

    pub(crate) fn takes_characters_of(&self, text: &str) -> bool {
        !text.contains('\0') || self.limits().takes_nul
    }

    pub(crate) fn can_be_there(&self, value: &[u8]) -> bool {
        self.limits().max_value.is_none_or(|limit| value.len() <= limit)
    }

    /// The keys that the table can contain, each once, in ascending order.
    pub(crate) fn distinct<'k>(&self, keys: &[&'k str]) -> Vec<&'k str> {
        let mut keys: Vec<&str> = keys.iter().copied().filter(|key| self.can_hold(key)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}
