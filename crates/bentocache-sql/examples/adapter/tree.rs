// The adapter. What would be SQL is in the comments, in that of PostgreSQL. (No `//!` here: the
// guide and the tests include this file.)

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bentocache_driver::DriverError;
use bentocache_sql::{DatabaseAdapter, Row, TableName};
use bytes::Bytes;

/// The value and the end of a row.
type Cells = (Bytes, Option<i64>);

/// A table. A real adapter has a pool here, and remembers the name that `open_table` gets.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    rows: Arc<Mutex<BTreeMap<String, Cells>>>,
}

impl Tree {
    /// Holding it is what a transaction is elsewhere.
    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Cells>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `expires_at is null or expires_at > $now`
fn is_live((_, end): &Cells, now: i64) -> bool {
    end.is_none_or(|end| now < end)
}

impl DatabaseAdapter for Tree {
    fn name(&self) -> &'static str {
        "tree"
    }

    async fn open_table(&self, _table: &TableName, _create: bool) -> Result<(), DriverError> {
        // create table if not exists cache (key text collate "C" primary key,
        //     value bytea not null, expires_at bigint)
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        // select key, value from cache where key in ($1, …) and (live)
        let rows = self.rows();
        let found = keys.iter().filter_map(|key| {
            let row = rows.get(*key).filter(|row| is_live(row, now))?;
            Some(((*key).to_owned(), row.0.clone()))
        });
        Ok(found.collect())
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
        // insert into cache values ($1, $2, $3), … on conflict (key) do update
        //     set value = excluded.value, expires_at = excluded.expires_at
        let new = rows.iter().map(|row| (row.key.to_owned(), (row.value.clone(), row.expires_at)));
        self.rows().extend(new);
        Ok(())
    }

    async fn insert(&self, row: Row<'_>, now: i64) -> Result<bool, DriverError> {
        // insert into cache as t values ($1, $2, $3) on conflict (key) do update
        //     set value = excluded.value, expires_at = excluded.expires_at
        //     where t.expires_at <= $now
        let mut rows = self.rows();
        let is_free = rows.get(row.key).is_none_or(|there| !is_live(there, now));
        if is_free {
            rows.insert(row.key.to_owned(), (row.value, row.expires_at));
        }
        Ok(is_free)
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        now: i64,
    ) -> Result<bool, DriverError> {
        // update cache set value = $1 where key = $2 and value = $3 and (live)
        let mut rows = self.rows();
        let row = rows.get_mut(key).filter(|row| is_live(row, now) && row.0 == expected);
        Ok(row.map(|row| row.0 = value).is_some())
    }

    async fn touch(
        &self,
        key: &str,
        expires_at: Option<i64>,
        now: i64,
    ) -> Result<bool, DriverError> {
        // update cache set expires_at = $1 where key = $2 and (live)
        let mut rows = self.rows();
        let row = rows.get_mut(key).filter(|row| is_live(row, now));
        Ok(row.map(|row| row.1 = expires_at).is_some())
    }

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
        // delete from cache where key in ($1, …) and (live), and count;
        // when some are left: delete from cache where key in ($1, …)
        let mut rows = self.rows();
        let gone = keys.iter().filter_map(|key| rows.remove(*key));
        Ok(gone.filter(|row| is_live(row, now)).count() as u64)
    }

    async fn delete_if(&self, key: &str, value: &[u8], now: i64) -> Result<bool, DriverError> {
        // delete from cache where key = $1 and value = $2 and (live)
        let mut rows = self.rows();
        let is_it = rows.get(key).is_some_and(|row| is_live(row, now) && row.0 == value);
        Ok(is_it && rows.remove(key).is_some())
    }

    async fn pull(&self, key: &str, now: i64) -> Result<Option<Bytes>, DriverError> {
        // delete from cache where key = $1 and (live) returning value
        let row = self.rows().remove(key).filter(|row| is_live(row, now));
        Ok(row.map(|(value, _)| value))
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        // delete from cache where key >= $1 and key < $2, with bentocache_sql::after_prefix
        self.rows().retain(|key, _| !key.starts_with(prefix));
        Ok(())
    }

    async fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> Result<Vec<String>, DriverError> {
        // select key from cache where key >= $1 and key < $2 and key > $3 and (live)
        //     order by key limit $4
        let rows = self.rows();
        let within = rows.iter().filter(|(key, row)| {
            key.starts_with(prefix)
                && after.is_none_or(|after| key.as_str() > after)
                && is_live(row, now)
        });
        Ok(within.take(limit).map(|(key, _)| key.clone()).collect())
    }

    async fn prune(&self, now: i64) -> Result<u64, DriverError> {
        // delete from cache where expires_at <= $now
        let mut rows = self.rows();
        let before = rows.len();
        rows.retain(|_, row| is_live(row, now));
        Ok((before - rows.len()) as u64)
    }
}
