//! An adapter for Microsoft SQL Server through tiberius: the code of `docs/sql-adapter.md`. CI compiles
//! it; no server was available to run it.

use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};

use bentocache_driver::{DriverError, ErrorKind};
use bentocache_sql::{DatabaseAdapter, Limits, Row, TableName, after_prefix};
use bytes::Bytes;
use tiberius::{Client, Config, Query};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt as _};

type Connection = Client<Compat<TcpStream>>;

/// A pool of connections, and the name of the table.
pub struct SqlServer {
    config: Config,
    idle: Mutex<Vec<Connection>>,
    table: OnceLock<String>,
}

/// A parameter.
#[derive(Clone, Copy)]
enum Param<'a> {
    Bytes(&'a [u8]),
    Int(Option<i64>),
}

/// Not expired at `@P1`, which is `now` in every statement that reads.
const LIVE: &str = "(expires_at is null or expires_at > @P1)";

impl SqlServer {
    /// An adapter for the server of this configuration. Use it as
    /// `DatabaseDriver::new(SqlServer::new(config))`.
    pub fn new(config: Config) -> Self {
        Self { config, idle: Mutex::default(), table: OnceLock::new() }
    }

    fn table(&self) -> &str {
        self.table.get().map_or("dbo.cache", String::as_str)
    }

    async fn connection(&self) -> Result<Connection, tiberius::error::Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(connection) = idle {
            return Ok(connection);
        }
        let socket = TcpStream::connect(self.config.get_addr()).await?;
        socket.set_nodelay(true)?;
        Client::connect(self.config.clone(), socket.compat_write()).await
    }

    /// A connection is idle again when its answer was read. If the call is dropped before, the
    /// connection is closed, and with it the statement ends.
    fn give_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Runs a statement; returns the rows that it affected.
    async fn execute(&self, sql: &str, params: &[Param<'_>]) -> Result<u64, DriverError> {
        // A statement that lost to a deadlock has done nothing, and may be repeated.
        for _ in 0..3 {
            let mut connection = self.connection().await.map_err(|error| failed(&error))?;
            match query(sql, params).execute(&mut connection).await {
                Ok(done) => {
                    self.give_back(connection);
                    return Ok(done.total());
                }
                Err(error) if error.is_deadlock() => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(DriverError::new(ErrorKind::Unavailable, "sql server: deadlocks, three times"))
    }

    /// Runs a statement; returns the rows of its answer.
    async fn query(
        &self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<tiberius::Row>, DriverError> {
        for _ in 0..3 {
            let mut connection = self.connection().await.map_err(|error| failed(&error))?;
            let rows = match query(sql, params).query(&mut connection).await {
                Ok(answer) => answer.into_first_result().await,
                Err(error) => Err(error),
            };
            match rows {
                Ok(rows) => {
                    self.give_back(connection);
                    return Ok(rows);
                }
                Err(error) if error.is_deadlock() => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(DriverError::new(ErrorKind::Unavailable, "sql server: deadlocks, three times"))
    }
}

fn query<'a>(sql: &'a str, params: &[Param<'a>]) -> Query<'a> {
    let mut query = Query::new(sql);
    for param in params {
        match *param {
            Param::Bytes(bytes) => query.bind(bytes),
            Param::Int(number) => query.bind(number),
        }
    }
    query
}

/// The numbers are those of `sys.messages`.
fn failed(error: &tiberius::error::Error) -> DriverError {
    let kind = match error.code() {
        // A login, a right, a database or a table that an operator has to repair.
        Some(229 | 230 | 262 | 916 | 4060 | 18_456 | 208) => ErrorKind::Denied,
        Some(1_101 | 1_105 | 9_002) => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    };
    // The text of a server may quote keys, so only its number is in the error.
    let text = error.code().map_or_else(
        || "sql server: the connection failed".to_owned(),
        |code| format!("sql server: error {code}"),
    );
    DriverError::new(kind, text)
}

/// `@P2, @P3, …`
fn places(count: usize) -> String {
    let mut places = String::new();
    for i in 0..count {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(places, "{comma}@P{}", i + 2);
    }
    places
}

/// `now`, and then the keys.
fn with_keys<'a>(now: i64, keys: &[&'a str]) -> Vec<Param<'a>> {
    let keys = keys.iter().map(|key| Param::Bytes(key.as_bytes()));
    std::iter::once(Param::Int(Some(now))).chain(keys).collect()
}

impl DatabaseAdapter for SqlServer {
    fn name(&self) -> &'static str {
        "sql server"
    }

    fn limits(&self) -> Limits {
        // A primary key has at most 900 bytes, a statement 2,100 parameters. Comparisons of bytes
        // ignore zeros at the end.
        Limits::default().with_max_key(900).with_batch(600).without_nul()
    }

    async fn open_table(&self, table: &TableName, create: bool) -> Result<(), DriverError> {
        let name = format!("[{}].[{}]", table.schema().unwrap_or("dbo"), table.table());
        if create {
            // Error 2714 says that another process has created it.
            let sql = format!(
                "if object_id(N'{name}', N'U') is null begin try create table {name} (
                   [key] varbinary(900) not null primary key,
                   [value] varbinary(max) not null,
                   expires_at bigint null index cache_expires_at
                 ) end try begin catch if error_number() <> 2714 throw end catch"
            );
            self.execute(&sql, &[]).await?;
        }
        self.query(&format!("select top (0) [key], [value], expires_at from {name}"), &[]).await?;
        self.table.get_or_init(|| name);
        Ok(())
    }

    async fn get(&self, keys: &[&str], now: i64) -> Result<Vec<(String, Bytes)>, DriverError> {
        let (table, places) = (self.table(), places(keys.len()));
        let sql =
            format!("select [key], [value] from {table} where [key] in ({places}) and {LIVE}");
        let rows = self.query(&sql, &with_keys(now, keys)).await?;
        let found = rows.iter().filter_map(|row| {
            let key = String::from_utf8(row.get::<&[u8], _>(0)?.to_vec()).ok()?;
            Some((key, Bytes::copy_from_slice(row.get(1)?)))
        });
        Ok(found.collect())
    }

    async fn set(&self, rows: &[Row<'_>]) -> Result<(), DriverError> {
        let (mut values, mut params) = (Vec::new(), Vec::new());
        for row in rows {
            let n = params.len();
            values.push(format!("(@P{}, @P{}, @P{})", n + 1, n + 2, n + 3));
            params.push(Param::Bytes(row.key.as_bytes()));
            params.push(Param::Bytes(&row.value));
            params.push(Param::Int(row.expires_at));
        }
        // With holdlock, or two of them could insert the same key.
        let sql = format!(
            "merge {} with (holdlock) as t
             using (values {}) as s (k, v, e) on t.[key] = s.k
             when matched then update set [value] = s.v, expires_at = s.e
             when not matched then insert ([key], [value], expires_at) values (s.k, s.v, s.e);",
            self.table(),
            values.join(", ")
        );
        self.execute(&sql, &params).await.map(drop)
    }

    async fn insert(&self, row: Row<'_>, now: i64) -> Result<bool, DriverError> {
        let sql = format!(
            "merge {} with (holdlock) as t
             using (values (@P2, @P3, @P4)) as s (k, v, e) on t.[key] = s.k
             when matched and t.expires_at <= @P1 then
               update set [value] = s.v, expires_at = s.e
             when not matched then insert ([key], [value], expires_at) values (s.k, s.v, s.e);",
            self.table()
        );
        let params = [
            Param::Int(Some(now)),
            Param::Bytes(row.key.as_bytes()),
            Param::Bytes(&row.value),
            Param::Int(row.expires_at),
        ];
        Ok(self.execute(&sql, &params).await? > 0)
    }

    async fn update(
        &self,
        key: &str,
        expected: &[u8],
        value: Bytes,
        now: i64,
    ) -> Result<bool, DriverError> {
        // Zeros at the end count in this comparison only with the length.
        let sql = format!(
            "update {} set [value] = @P4
             where [key] = @P2 and [value] = @P3 and datalength([value]) = datalength(@P3) and {LIVE}",
            self.table()
        );
        let params = [
            Param::Int(Some(now)),
            Param::Bytes(key.as_bytes()),
            Param::Bytes(expected),
            Param::Bytes(&value),
        ];
        Ok(self.execute(&sql, &params).await? > 0)
    }

    async fn delete(&self, keys: &[&str], now: i64) -> Result<u64, DriverError> {
        let (table, places) = (self.table(), places(keys.len()));
        let sql = format!(
            "delete from {table}
             output case when deleted.expires_at is null or deleted.expires_at > @P1
               then 1 else 0 end
             where [key] in ({places})"
        );
        let rows = self.query(&sql, &with_keys(now, keys)).await?;
        Ok(rows.iter().filter(|row| row.get::<i32, _>(0) == Some(1)).count() as u64)
    }

    async fn delete_if(&self, key: &str, value: &[u8], now: i64) -> Result<bool, DriverError> {
        let sql = format!(
            "delete from {}
             where [key] = @P2 and [value] = @P3 and datalength([value]) = datalength(@P3) and {LIVE}",
            self.table()
        );
        let params = [Param::Int(Some(now)), Param::Bytes(key.as_bytes()), Param::Bytes(value)];
        Ok(self.execute(&sql, &params).await? > 0)
    }

    async fn pull(&self, key: &str, now: i64) -> Result<Option<Bytes>, DriverError> {
        let sql = format!(
            "delete from {} output deleted.[value] where [key] = @P2 and {LIVE}",
            self.table()
        );
        let rows = self.query(&sql, &with_keys(now, &[key])).await?;
        Ok(rows.first().and_then(|row| row.get::<&[u8], _>(0)).map(Bytes::copy_from_slice))
    }

    async fn clear(&self, prefix: &str) -> Result<(), DriverError> {
        let end = after_prefix(prefix);
        let mut params = vec![Param::Bytes(prefix.as_bytes())];
        let mut sql = format!("delete from {} where [key] >= @P1", self.table());
        if let Some(end) = &end {
            sql += " and [key] < @P2";
            params.push(Param::Bytes(end.as_bytes()));
        }
        self.execute(&sql, &params).await.map(drop)
    }

    async fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: i64,
    ) -> Result<Vec<String>, DriverError> {
        let end = after_prefix(prefix);
        let mut params = with_keys(now, &[prefix]);
        let mut sql = format!(
            "select top ({limit}) [key] from {} where [key] >= @P2 and {LIVE}",
            self.table()
        );
        for (bound, sign) in [(end.as_deref(), "<"), (after, ">")] {
            if let Some(bound) = bound {
                params.push(Param::Bytes(bound.as_bytes()));
                let _ = write!(sql, " and [key] {sign} @P{}", params.len());
            }
        }
        sql += " order by [key]";
        let rows = self.query(&sql, &params).await?;
        let key = |row: &tiberius::Row| String::from_utf8(row.get::<&[u8], _>(0)?.to_vec()).ok();
        Ok(rows.iter().filter_map(key).collect())
    }

    async fn prune(&self, now: i64) -> Result<u64, DriverError> {
        const ROWS: u64 = 5_000;
        let sql = format!("delete top ({ROWS}) from {} where expires_at <= @P1", self.table());
        let mut pruned = 0;
        loop {
            let rows = self.execute(&sql, &[Param::Int(Some(now))]).await?;
            pruned += rows;
            if rows < ROWS {
                return Ok(pruned);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    /// What the guide shows is what is compiled here.
    #[test]
    fn the_guide_quotes_this_file() {
        let guide = include_str!("../../../docs/sql-adapter.md");
        let (_, section) = guide.split_once("## Microsoft SQL Server").unwrap_or_default();
        let (section, _) = section.split_once("\n## ").unwrap_or_default();
        let quotes: Vec<&str> = section
            .split("```rust,ignore\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect();
        assert!(!quotes.is_empty());
        for quote in quotes {
            assert!(include_str!("lib.rs").contains(quote), "not in the file:\n{quote}");
        }
    }

    #[test]
    fn parameters_are_numbered_after_now() {
        assert_eq!(super::places(3), "@P2, @P3, @P4");
    }
}
