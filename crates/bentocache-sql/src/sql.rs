//! The adapter for the databases whose SQL is known.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bentocache_core::{DriverError, ErrorKind};
use bytes::Bytes;

use crate::columns::{self, Columns};
use crate::statement::{PRUNED_AT_ONCE, Table};
use crate::{
    Database, DatabaseAdapter, Dialect, Failure, Limits, Param, Row, Statement, TableName,
    after_prefix,
};

/// For how long a statement that lost against another one is repeated. PostgreSQL takes a second
/// to find a deadlock.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause before it is.
const PAUSE: Duration = Duration::from_millis(30);

/// PostgreSQL, MySQL or SQLite through some library.
///
/// It finds out what the table looks like when it is opened: its own, with values as bytes, or
/// the one that the Node library makes, with values as text and expiries as timestamps. Statements
/// that lose against another one, by a deadlock for instance, are repeated.
#[derive(Debug)]
pub struct SqlAdapter<D> {
    database: D,
    table: OnceLock<Table>,
}

impl<D: Database> SqlAdapter<D> {
    /// An adapter over that database.
    pub fn new(database: D) -> Self {
        Self { database, table: OnceLock::new() }
    }

    fn dialect(&self) -> Dialect {
        self.database.dialect()
    }

    fn table(&self) -> Result<&Table, DriverError> {
        self.table.get().ok_or_else(|| {
            let message = format!("{}: the table was not opened yet", self.dialect().name());
            DriverError::new(ErrorKind::Config, message)
        })
    }

    async fn execute(&self, doing: &str, statement: &Statement<'_>) -> Result<u64, DriverError> {
        self.repeat(doing, || self.database.execute(statement)).await
    }

    async fn query(
        &self,
        doing: &str,
        statement: &Statement<'_>,
    ) -> Result<Vec<(String, Bytes)>, DriverError> {
        let rows = self.repeat(doing, || self.database.query(statement)).await?;
        // A key that is not UTF-8 is none of ours.
        let row = |(key, value)| Some((String::from_utf8(key).ok()?, Bytes::from(value)));
        Ok(rows.into_iter().filter_map(row).collect())
    }

    /// Repeats what lost against another statement. Each was undone as a whole.
    async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        doing: &str,
        mut call: impl FnMut() -> F,
    ) -> Result<T, DriverError> {
        let start = Instant::now();
        loop {
            match call().await {
                Err(failure) if failure.is_conflict() && start.elapsed() < PATIENCE => {
                    tokio::time::sleep(PAUSE.mul_f64(fastrand::f64())).await;
                }
                answer => return answer.map_err(|why| why.error(self.dialect().name(), doing)),
            }
        }
    }

    /// What the table looks like, if there is one.
    async fn look(&self, table: &TableName) -> Result<Option<Columns>, DriverError> {
        let dialect = self.dialect();
        let (sql, names) = columns::query(dialect, table);
        let params = names.iter().map(|name| Param::Text(name)).collect();
        let statement = Statement { sql: sql.into(), params, is_reused: false, is_single: false };
        let answer = self.query("look at the table", &statement).await?;
        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let answer: Vec<_> = answer.into_iter().map(|(name, kind)| (name, text(kind))).collect();
        let packet = match dialect {
            Dialect::MySql => self.packet().await?,
            Dialect::Postgres | Dialect::Sqlite => None,
        };
        Columns::of(dialect, table, &answer, packet)
    }

    /// The largest packet that a MySQL server takes.
    async fn packet(&self) -> Result<Option<usize>, DriverError> {
        let sql = "select cast('' as binary), cast(@@max_allowed_packet as binary)";
        let statement =
            Statement { sql: sql.into(), params: Vec::new(), is_reused: false, is_single: false };
        let answer = self.query("ask for the largest packet", &statement).await?;
        let size = answer.first().and_then(|(_, size)| std::str::from_utf8(size).ok());
        Ok(size.and_then(|size| size.parse().ok()))
    }

    async fn create(&self, table: &TableName) -> Result<(), DriverError> {
        for sql in self.dialect().create(table) {
            let create = Statement {
                sql: sql.into(),
                params: Vec::new(),
                is_reused: false,
                is_single: false,
            };
            self.execute("create the table", &create).await?;
        }
        Ok(())
    }
}

impl<D: Database> DatabaseAdapter for SqlAdapter<D> {
    fn name(&self) -> &'static str {
        self.dialect().name()
    }

    fn limits(&self) -> Limits {
        self.table.get().map(|table| table.columns.limits).unwrap_or_default()
    }

    async fn open_table(&self, table: &TableName, create: bool) -> Result<(), DriverError> {
        let mut columns = self.look(table).await?;
        if columns.is_none() && create {
            self.create(table).await?;
            columns = self.look(table).await?;
        }
        let columns = columns.ok_or_else(|| {
            let name = self.dialect().name();
            let message = format!(
                "{name}: there is no table {table}; create it as the guide says, or leave \
                 auto_create_table on"
            );
            DriverError::new(ErrorKind::Config, message)
        })?;
        self.table.get_or_init(|| Table::new(self.dialect(), table, columns));
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        self.query("get", &self.table()?.get(keys, now)).await
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
        self.execute("set", &self.table()?.set(rows)?).await.map(drop)
    }

    async fn insert(&self, row: Row<'_>, now: i64) -> Result<bool, DriverError> {
        let row = [row];
        let mut inserted = 0;
        for statement in self.table()?.insert(&row, now)? {
            inserted = self.execute("insert", &statement).await?;
        }
        Ok(inserted > 0)
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        now: i64,
    ) -> Result<bool, DriverError> {
        let update = self.table()?.update(key, expected, &value, now)?;
        Ok(self.execute("update", &update).await? > 0)
    }

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
        let table = self.table()?;
        let deleted = self.execute("delete", &table.delete(keys, Some(now))).await?;
        if usize::try_from(deleted).is_ok_and(|deleted| deleted < keys.len()) {
            // The others have expired by our clock, but not by everybody's.
            self.execute("delete", &table.delete(keys, None)).await?;
        }
        Ok(deleted)
    }

    async fn delete_if(&self, key: &str, value: &[u8], now: i64) -> Result<bool, DriverError> {
        let table = self.table()?;
        if !table.can_be_there(value) {
            return Ok(false);
        }
        Ok(self.execute("delete", &table.delete_if(key, value, now)).await? > 0)
    }

    async fn pull(&self, key: &str, now: i64) -> Result<Option<Bytes>, DriverError> {
        let table = self.table()?;
        if self.dialect() != Dialect::MySql {
            let pulled = self.query("pull", &table.pull(key, now)).await?;
            return Ok(pulled.into_iter().next().map(|(_, value)| value));
        }
        loop {
            let found = self.query("pull", &table.get(&[key], now)).await?;
            let Some((_, value)) = found.into_iter().next() else { return Ok(None) };
            // Who deletes it has it. If it was another, there may be a newer value.
            if self.execute("pull", &table.delete_if(key, &value, now)).await? > 0 {
                return Ok(Some(value));
            }
        }
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let end = after_prefix(prefix);
        self.execute("clear", &self.table()?.clear(prefix, end.as_deref())).await.map(drop)
    }

    async fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> Result<Vec<String>, DriverError> {
        let end = after_prefix(prefix);
        let keys = self.table()?.keys(prefix, end.as_deref(), after, limit, now);
        let found = self.query("list the keys", &keys).await?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }

    async fn prune(&self, now: i64) -> Result<u64, DriverError> {
        let mut pruned = 0;
        loop {
            let rows = self.execute("prune", &self.table()?.prune(now)).await?;
            pruned += rows;
            if rows < PRUNED_AT_ONCE {
                return Ok(pruned);
            }
        }
    }

    async fn disconnect(&self) -> Result<(), DriverError> {
        self.database.close().await;
        Ok(())
    }
}
