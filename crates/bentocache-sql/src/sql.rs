//! The adapter for databases with a known SQL dialect.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bentocache_driver::kit::Backoff;
use bentocache_driver::{DriverError, ErrorKind};
use bytes::Bytes;

use crate::columns::{self, Columns};
use crate::statement::{PRUNED_AT_ONCE, Table};
use crate::{
    Database, DatabaseAdapter, Dialect, Failure, Limits, Param, Row, Rows, Statement, TableName,
    after_prefix,
};

/// How long a statement that lost a conflict is repeated. PostgreSQL needs a second to find a
/// deadlock.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause before a repetition.
const PAUSE: Duration = Duration::from_millis(30);
/// The number of rows that the first eviction deletes when the database is full.
const EVICTED: u64 = 32;
/// How often a statement is prepared again: every connection of a pool may have prepared it.
const STALE_CONNECTIONS: u32 = 16;

/// PostgreSQL, MySQL or SQLite through a library.
///
/// When it opens the table it detects the layout: its own, with values as bytes, or the one of the
/// Node library, with values as text and expiries as timestamps. It repeats a statement that loses
/// a conflict, such as a deadlock. It creates a dropped table again, unless that is switched off.
#[derive(Debug)]
pub struct SqlAdapter<D> {
    database: D,
    opened: RwLock<Option<Opened>>,
}

/// The table, and the parameters to open it again.
#[derive(Debug, Clone)]
struct Opened {
    /// `None` from the drop of the table until it exists again.
    table: Option<Arc<Table>>,
    limits: Limits,
    name: TableName,
    create: bool,
}

impl<D: Database> SqlAdapter<D> {
    /// An adapter over this database.
    pub fn new(database: D) -> Self {
        Self { database, opened: RwLock::new(None) }
    }

    fn dialect(&self) -> Dialect {
        self.database.dialect()
    }

    fn opened(&self) -> Option<Opened> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, opened: Opened) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
    }

    /// The table as last opened; opens it if it was dropped since.
    async fn table(&self) -> Result<Arc<Table>, DriverError> {
        match self.opened() {
            Some(Opened { table: Some(table), .. }) => Ok(table),
            Some(Opened { name, create, .. }) => self.open(&name, create).await,
            None => {
                let message = format!("{}: the table was not opened yet", self.dialect().name());
                Err(DriverError::new(ErrorKind::Config, message))
            }
        }
    }

    async fn execute(&self, doing: &str, statement: &Statement<'_>) -> Result<u64, DriverError> {
        self.repeat(doing, || self.database.execute(statement)).await
    }

    /// Runs a statement that stores rows. If the database is full and evicts, the oldest rows are
    /// deleted, each time more of them, until there is room or nothing is left to delete.
    async fn store(&self, doing: &str, statement: &Statement<'_>) -> Result<u64, DriverError> {
        let mut rows = EVICTED;
        loop {
            match self.execute(doing, statement).await {
                Err(full) if full.kind() == ErrorKind::Full && self.database.evicts() => {
                    let evict = self.table().await?;
                    let evict = evict.evict(rows);
                    if self.execute("delete the oldest rows", &evict).await? == 0 {
                        return Err(full);
                    }
                    rows *= 2;
                }
                done => return done,
            }
        }
    }

    async fn query(
        &self,
        doing: &str,
        statement: &Statement<'_>,
    ) -> Result<Vec<(String, Bytes)>, DriverError> {
        Ok(texts(self.repeat(doing, || self.database.query(statement)).await?))
    }

    /// Runs a statement on the open table. If the table was dropped, it is created again, and the
    /// statement is repeated if it fits the new table.
    async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        doing: &str,
        mut call: impl FnMut() -> F,
    ) -> Result<T, DriverError> {
        let failure = match self.attempt(&mut call).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        let told = |failure: Failure| failure.error(self.dialect().name(), doing);
        if !failure.is_missing_table() {
            return Err(told(failure));
        }
        let Some(opened) = self.opened() else { return Err(told(failure)) };
        self.remember(Opened { table: None, ..opened.clone() });
        let Opened { table, name, create, .. } = opened;
        if !create {
            return Err(told(failure));
        }
        tracing::warn!(table = %name, "the cache table was dropped; creating it again");
        let again = self.open(&name, create).await?;
        // A statement fits the columns of one table only.
        if table.is_none_or(|table| table.columns != again.columns) {
            return Err(told(failure));
        }
        self.attempt(&mut call).await.map_err(told)
    }

    /// Repeats a statement that lost a conflict or must be prepared again. The database rolled it
    /// back completely.
    async fn attempt<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        call: &mut impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let mut backoff = Backoff::new(PAUSE, PAUSE);
        let mut stale = 0;
        loop {
            match call().await {
                Err(failure) if failure.is_conflict() && start.elapsed() < PATIENCE => {
                    backoff.pause().await;
                }
                Err(failure) if failure.is_stale_plan() && stale < STALE_CONNECTIONS => stale += 1,
                answer => return answer,
            }
        }
    }

    /// Finds the table, or creates it.
    async fn open(&self, name: &TableName, create: bool) -> Result<Arc<Table>, DriverError> {
        let mut columns = self.look(name).await?;
        if columns.is_none() && create {
            self.create(name).await?;
            columns = self.look(name).await?;
        }
        let dialect = self.dialect();
        let columns = columns.ok_or_else(|| {
            let message = format!(
                "{}: there is no table {name}; create it as the guide says, or leave \
                 auto_create_table on",
                dialect.name()
            );
            DriverError::new(ErrorKind::Denied, message)
        })?;
        let table = Arc::new(Table::new(dialect, name, columns));
        let (name, limits) = (name.clone(), columns.limits);
        self.remember(Opened { table: Some(Arc::clone(&table)), limits, name, create });
        Ok(table)
    }

    /// Runs one of the statements that open the table.
    async fn run<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        doing: &str,
        mut call: impl FnMut() -> F,
    ) -> Result<T, DriverError> {
        let answer = self.attempt(&mut call).await;
        answer.map_err(|failure| failure.error(self.dialect().name(), doing))
    }

    /// The layout of the table, if it exists.
    async fn look(&self, table: &TableName) -> Result<Option<Columns>, DriverError> {
        let dialect = self.dialect();
        let (sql, names) = columns::query(dialect, table);
        let params = names.iter().map(|name| Param::Text(name)).collect();
        let look = Statement::once(sql, params);
        let doing = format!("look at the table {table}");
        let answer = texts(self.run(&doing, || self.database.query(&look)).await?);
        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let answer: Vec<_> = answer.into_iter().map(|(name, kind)| (name, text(kind))).collect();
        let packet = match dialect {
            Dialect::MySql => self.packet().await?,
            Dialect::Postgres | Dialect::Sqlite => None,
        };
        Columns::of(dialect, table, &answer, packet)
    }

    /// The largest packet that a MySQL server accepts.
    async fn packet(&self) -> Result<Option<usize>, DriverError> {
        let sql = "select cast('' as binary), cast(@@max_allowed_packet as binary)";
        let ask = Statement::once(sql, Vec::new());
        let doing = "ask for the largest packet";
        let answer = texts(self.run(doing, || self.database.query(&ask)).await?);
        let size = answer.first().and_then(|(_, size)| std::str::from_utf8(size).ok());
        Ok(size.and_then(|size| size.parse().ok()))
    }

    async fn create(&self, table: &TableName) -> Result<(), DriverError> {
        let doing = format!("create the table {table}");
        for sql in self.dialect().create(table) {
            let create = Statement::once(sql, Vec::new());
            self.run(&doing, || self.database.execute(&create)).await?;
        }
        Ok(())
    }
}

/// A key that is not UTF-8 does not belong to the cache.
fn texts(rows: Rows) -> Vec<(String, Bytes)> {
    let row = |(key, value)| Some((String::from_utf8(key).ok()?, Bytes::from(value)));
    rows.into_iter().filter_map(row).collect()
}

impl<D: Database> DatabaseAdapter for SqlAdapter<D> {
    fn name(&self) -> &'static str {
        self.dialect().name()
    }

    fn is_local(&self) -> bool {
        self.dialect() == Dialect::Sqlite
    }

    fn trouble(&self) -> Option<String> {
        self.database.trouble()
    }

    fn limits(&self) -> Limits {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.as_ref().map(|opened| opened.limits).unwrap_or_default()
    }

    async fn open_table(&self, table: &TableName, create: bool) -> Result<(), DriverError> {
        self.open(table, create).await.map(drop)
    }

    async fn check_rights(&self) -> Result<(), DriverError> {
        let table = self.table().await?;
        for write in table.empty_writes() {
            self.execute(&format!("write to the table {}", table.shown()), &write).await?;
        }
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        self.query("get", &self.table().await?.get(keys, now)).await
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
        self.store("set", &self.table().await?.set(rows)?).await.map(drop)
    }

    async fn insert(&self, row: Row<'_>, now: i64) -> Result<bool, DriverError> {
        let row = [row];
        let mut inserted = 0;
        for statement in self.table().await?.insert(&row, now)? {
            inserted = self.store("insert", &statement).await?;
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
        let table = self.table().await?;
        let update = table.update(key, expected, &value, now)?;
        Ok(self.store("update", &update).await? > 0)
    }

    async fn touch(
        &self,
        key: &str,
        expires_at: Option<i64>,
        now: i64,
    ) -> Result<bool, DriverError> {
        let table = self.table().await?;
        if self.execute("touch", &table.touch(key, expires_at, now)).await? > 0 {
            return Ok(true);
        }
        // MySQL may count only rows that have changed, and this row may have had this end before.
        let is_sure = self.dialect() != Dialect::MySql;
        Ok(!is_sure && !self.query("touch", &table.get(&[key], now)).await?.is_empty())
    }

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
        let table = self.table().await?;
        let deleted = self.execute("delete", &table.delete(keys, Some(now))).await?;
        if usize::try_from(deleted).is_ok_and(|deleted| deleted < keys.len()) {
            // The others have expired by this process's clock, but maybe not by the clocks of
            // others.
            self.execute("delete", &table.delete(keys, None)).await?;
        }
        Ok(deleted)
    }

    async fn delete_if(&self, key: &str, value: &[u8], now: i64) -> Result<bool, DriverError> {
        let table = self.table().await?;
        if !table.can_be_there(value) {
            return Ok(false);
        }
        Ok(self.execute("delete", &table.delete_if(key, value, now)).await? > 0)
    }

    async fn pull(&self, key: &str, now: i64) -> Result<Option<Bytes>, DriverError> {
        let table = self.table().await?;
        if self.dialect() != Dialect::MySql {
            let pulled = self.query("pull", &table.pull(key, now)).await?;
            return Ok(pulled.into_iter().next().map(|(_, value)| value));
        }
        loop {
            let found = self.query("pull", &table.get(&[key], now)).await?;
            let Some((_, value)) = found.into_iter().next() else { return Ok(None) };
            // The process that deletes the row gets the value. If another one did, there may be a
            // newer value.
            if self.execute("pull", &table.delete_if(key, &value, now)).await? > 0 {
                return Ok(Some(value));
            }
        }
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let end = after_prefix(prefix);
        self.execute("clear", &self.table().await?.clear(prefix, end.as_deref())).await.map(drop)
    }

    async fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> Result<Vec<String>, DriverError> {
        let end = after_prefix(prefix);
        let table = self.table().await?;
        let keys = table.keys(prefix, end.as_deref(), after, limit, now);
        let found = self.query("list the keys", &keys).await?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }

    async fn prune(&self, now: i64) -> Result<u64, DriverError> {
        let mut pruned = 0;
        loop {
            let rows = self.execute("prune", &self.table().await?.prune(now)).await?;
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
