//! A store in memory, in place of the client library of your store. Delete it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// The server cannot be reached.
    Connection(String),
    /// The login, or the right to do this.
    Denied(String),
}

/// A value, and its end in milliseconds since the epoch.
type Row = (Vec<u8>, Option<u64>);

/// A connection. Clones lead to the same server.
#[derive(Debug, Clone, Default)]
pub struct Client {
    rows: Arc<Mutex<BTreeMap<String, Row>>>,
}

impl Client {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server answers.
    pub async fn ping(&self) -> Result<(), ClientError> {
        Ok(())
    }

    /// The row of a key.
    pub async fn get(&self, key: &str) -> Result<Option<Row>, ClientError> {
        Ok(self.rows().get(key).cloned())
    }

    /// Writes a row.
    pub async fn put(&self, key: &str, value: &[u8], end: Option<u64>) -> Result<(), ClientError> {
        self.rows().insert(key.to_owned(), (value.to_vec(), end));
        Ok(())
    }

    /// Changes a row in one step: `change` gets the row and returns the new one.
    pub async fn change<R>(
        &self,
        key: &str,
        change: impl FnOnce(Option<Row>) -> (Option<Row>, R),
    ) -> Result<R, ClientError> {
        let mut rows = self.rows();
        let (row, result) = change(rows.remove(key));
        if let Some(row) = row {
            rows.insert(key.to_owned(), row);
        }
        Ok(result)
    }

    /// A page of rows in the order of their keys: those with this prefix, after this key.
    pub async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Row)>, ClientError> {
        let rows = self.rows();
        let found = rows.iter().filter(|(key, _)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
        });
        Ok(found.take(limit).map(|(key, row)| (key.clone(), row.clone())).collect())
    }

    /// Deletes the rows with this prefix.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<(), ClientError> {
        self.rows().retain(|key, _| !key.starts_with(prefix));
        Ok(())
    }

    /// Deletes the rows that ended by this time, and returns their number.
    pub async fn delete_ended(&self, now: u64) -> Result<u64, ClientError> {
        let mut rows = self.rows();
        let before = rows.len();
        rows.retain(|_, (_, end)| end.is_none_or(|end| end > now));
        Ok((before - rows.len()) as u64)
    }
}
