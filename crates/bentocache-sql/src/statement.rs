//! The SQL statements, by database and table layout.

use std::sync::Arc;

use bentocache_driver::{DriverError, ErrorKind};

use crate::columns::{Columns, Ends, Keys, Values};
use crate::{Dialect, Param, Row, Statement, TableName};

/// The most rows that one statement prunes.
pub(crate) const PRUNED_AT_ONCE: u64 = 5_000;

/// A table with a known layout.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) dialect: Dialect,
    pub(crate) columns: Columns,
    shown: String,
    name: String,
    key: String,
    value: String,
    end: String,
    /// The statement that gets one key, the most frequent one.
    get_one: Arc<str>,
}

impl Table {
    pub(crate) fn new(dialect: Dialect, table: &TableName, columns: Columns) -> Self {
        let mut table = Self {
            dialect,
            columns,
            shown: table.to_string(),
            name: dialect.quoted(table),
            key: dialect.column("key"),
            value: dialect.column("value"),
            end: dialect.column("expires_at"),
            get_one: Arc::default(),
        };
        table.get_one = table.get_all(&[""], 0).sql;
        table
    }

    /// The table's name in errors.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Statements that need the rights for every kind of write, and change nothing.
    pub(crate) fn empty_writes(&self) -> [Statement<'static>; 2] {
        let (name, key, value, end) = (&self.name, &self.key, &self.value, &self.end);
        let alias = if self.dialect == Dialect::MySql { "" } else { " as t" };
        let on_conflict = match self.dialect {
            Dialect::MySql => format!("on duplicate key update {value} = values({value})"),
            Dialect::Postgres | Dialect::Sqlite => {
                format!("on conflict ({key}) do update set {value} = excluded.{value}")
            }
        };
        let upsert = format!(
            "insert into {name}{alias} ({key}, {value}, {end}) \
             select {key}, {value}, {end} from {name} where 1 = 0 {on_conflict}"
        );
        let delete = format!("delete from {name} where 1 = 0");
        let limited = |sql| self.dialect.limited(sql, false);
        [upsert, delete].map(|sql| Statement::once(limited(sql), Vec::new()))
    }

    fn write<'a>(&'a self, text: &str) -> Writer<'a> {
        Writer { table: self, sql: text.to_owned(), params: Vec::new() }
    }

    /// The key expression that compares byte by byte.
    fn exact_key(&self) -> String {
        let key = &self.key;
        match (self.dialect, self.columns.keys) {
            (Dialect::Postgres, _) => format!(r#"{key} collate "C""#),
            (Dialect::MySql, Keys::Text) => format!("cast(convert({key} using utf8mb4) as binary)"),
            _ => key.clone(),
        }
    }

    /// The value as bytes.
    fn value_bytes(&self) -> String {
        let value = &self.value;
        match (self.dialect, self.columns.values) {
            (Dialect::Postgres, Values::Text) => {
                format!("convert_to(coalesce({value}, ''), 'UTF8')")
            }
            (Dialect::MySql, Values::Text) => {
                format!("cast(convert(coalesce({value}, '') using utf8mb4) as binary)")
            }
            // Also bytes: the Node library writes text into any column.
            (Dialect::Sqlite, _) => format!("cast(coalesce({value}, '') as blob)"),
            (_, Values::Bytes) => value.clone(),
        }
    }

    /// Whether a collation that the driver did not choose makes different keys equal.
    fn has_loose_keys(&self) -> bool {
        self.dialect == Dialect::MySql && self.columns.keys == Keys::Text
    }

    /// A value in the type of the column.
    fn value_param<'v>(&self, value: &'v [u8]) -> Result<Param<'v>, DriverError> {
        if self.columns.values == Values::Bytes {
            return Ok(Param::Bytes(value));
        }
        let takes_nul = self.dialect != Dialect::Postgres;
        let text = std::str::from_utf8(value).ok().filter(|text| takes_nul || !text.contains('\0'));
        text.map(Param::Text).ok_or_else(|| {
            let (name, table) = (self.dialect.name(), &self.shown);
            let message = format!(
                "{name}: the column `value` of the table {table} is text, as the Node library \
                 makes it, and the value is not; use the JSON codec, or another table, which is \
                 then made for bytes"
            );
            DriverError::new(ErrorKind::Refused, message)
        })
    }

    /// Whether the table can contain this value.
    pub(crate) fn can_be_there(&self, value: &[u8]) -> bool {
        self.value_param(value).is_ok()
    }

    pub(crate) fn get<'a>(&'a self, keys: &[&'a str], now: i64) -> Statement<'a> {
        let [key] = keys else { return self.get_all(keys, now) };
        if self.has_loose_keys() {
            return self.get_all(keys, now);
        }
        let key = match self.columns.keys {
            Keys::Text => Param::Text(key),
            Keys::Bytes => Param::Bytes(key.as_bytes()),
        };
        let (sql, params) = (Arc::clone(&self.get_one), vec![key, Param::Int(Some(now))]);
        let is_write = false;
        Statement { is_single: true, is_write, ..Statement::new(sql, params, true) }
    }

    fn get_all<'a>(&'a self, keys: &[&'a str], now: i64) -> Statement<'a> {
        let (key, value) = (self.key_out(), self.value_bytes());
        let mut get = self.write(&format!("select {key}, {value} from {}", self.name));
        // Padded to a power of two, so that there are few texts to prepare.
        let padded = keys.len().next_power_of_two();
        let last = keys.last().copied();
        let keys: Vec<_> =
            keys.iter().copied().chain(last.into_iter().cycle()).take(padded).collect();
        get.push(" where ").keys(&keys).push(" and ").live(now);
        get.done(true)
    }

    /// The key as the first column of the answer.
    fn key_out(&self) -> String {
        if self.has_loose_keys() { self.exact_key() } else { self.key.clone() }
    }

    pub(crate) fn set<'a>(&'a self, rows: &'a [Row<'a>]) -> Result<Statement<'a>, DriverError> {
        if self.dialect == Dialect::Sqlite {
            // A rewritten row becomes the youngest.
            return Ok(self.insert_into("insert or replace", rows)?.done(rows.len() == 1));
        }
        let mut set = self.insert_into("insert", rows)?;
        let (key, value, end) = (&self.key, &self.value, &self.end);
        set.push(&match self.dialect {
            Dialect::MySql => {
                // A key that the collation treats as equal must not stay.
                let same = if self.has_loose_keys() { format!("{key} = values({key}), ") } else { String::new() };
                format!(
                    " on duplicate key update {same}{value} = values({value}), {end} = values({end})"
                )
            }
            _ => format!(
                " on conflict ({key}) do update set {value} = excluded.{value}, \
                 {end} = excluded.{end}"
            ),
        });
        Ok(set.done(rows.len() == 1))
    }

    fn insert_into<'a>(
        &'a self,
        verb: &str,
        rows: &'a [Row<'a>],
    ) -> Result<Writer<'a>, DriverError> {
        let (key, value, end) = (&self.key, &self.value, &self.end);
        let alias = if self.dialect == Dialect::MySql { "" } else { " as t" };
        let mut insert = self
            .write(&format!("{verb} into {}{alias} ({key}, {value}, {end}) values ", self.name));
        for (at, row) in rows.iter().enumerate() {
            insert.push(if at == 0 { "(" } else { ", (" });
            insert.key(row.key).push(", ").param(self.value_param(&row.value)?).push(", ");
            insert.time(self.columns.storable(self.dialect, row.expires_at)).push(")");
        }
        Ok(insert)
    }

    /// The statements in order; the last one inserts one row or none.
    pub(crate) fn insert<'a>(
        &'a self,
        row: &'a [Row<'a>; 1],
        now: i64,
    ) -> Result<Vec<Statement<'a>>, DriverError> {
        if self.dialect != Dialect::MySql {
            let mut insert = self.insert_into("insert", row)?;
            let (key, value, end) = (&self.key, &self.value, &self.end);
            insert.push(&format!(
                " on conflict ({key}) do update set {value} = excluded.{value}, \
                 {end} = excluded.{end} where t.{end} <= "
            ));
            insert.time(Some(now));
            return Ok(vec![insert.done(true)]);
        }
        // The row count of an upsert does not distinguish an insert from a match.
        let key = row[0].key;
        let mut expired = self.write(&format!("delete from {} where ", self.name));
        if self.has_loose_keys() {
            // Also deletes a row that only blocks this key.
            expired.push(&format!("{} = ", self.key)).param(Param::Text(key)).push(" and (");
            expired.push(&format!("{} <> ", self.exact_key())).param(Param::Bytes(key.as_bytes()));
            expired.push(" or ").expired(now).push(")");
        } else {
            expired.keys(&[key]).push(" and ").expired(now);
        }
        let insert = self.insert_into("insert ignore", row)?;
        Ok(vec![expired.done(true), insert.done(true)])
    }

    pub(crate) fn update<'a>(
        &'a self,
        key: &'a str,
        expected: &'a [u8],
        value: &'a [u8],
        now: i64,
    ) -> Result<Statement<'a>, DriverError> {
        let mut update = self.write(&format!("update {} set {} = ", self.name, self.value));
        update.param(self.value_param(value)?).push(" where ");
        update.keys(&[key]).push(" and ").has_value(expected).push(" and ").live(now);
        Ok(update.done(true))
    }

    pub(crate) fn touch<'a>(
        &'a self,
        key: &'a str,
        expires_at: Option<i64>,
        now: i64,
    ) -> Statement<'a> {
        let mut touch = self.write(&format!("update {} set {} = ", self.name, self.end));
        touch.time(self.columns.storable(self.dialect, expires_at)).push(" where ");
        touch.keys(&[key]).push(" and ").live(now);
        touch.done(true)
    }

    /// Deletes the unexpired rows, or all rows.
    pub(crate) fn delete<'a>(&'a self, keys: &[&'a str], now: Option<i64>) -> Statement<'a> {
        let mut delete = self.write("");
        delete.delete_in_order(keys.len() > 1, |delete| {
            delete.keys(keys);
            if let Some(now) = now {
                delete.push(" and ").live(now);
            }
        });
        delete.done(keys.len() == 1)
    }

    pub(crate) fn delete_if<'a>(
        &'a self,
        key: &'a str,
        value: &'a [u8],
        now: i64,
    ) -> Statement<'a> {
        let mut delete = self.write(&format!("delete from {} where ", self.name));
        delete.keys(&[key]).push(" and ").has_value(value).push(" and ").live(now);
        delete.done(true)
    }

    /// Not for MySQL, which cannot return deleted rows.
    pub(crate) fn pull<'a>(&'a self, key: &'a str, now: i64) -> Statement<'a> {
        let mut pull = self.write(&format!("delete from {} where ", self.name));
        pull.keys(&[key]).push(" and ").live(now);
        pull.push(&format!(" returning {}, {}", self.key_out(), self.value_bytes()));
        pull.done(true)
    }

    pub(crate) fn clear<'a>(&'a self, prefix: &'a str, end: Option<&'a str>) -> Statement<'a> {
        let mut clear = self.write("");
        clear.delete_in_order(true, |clear| {
            clear.within(prefix, end);
        });
        clear.done_long()
    }

    pub(crate) fn prune(&self, now: i64) -> Statement<'_> {
        let (name, key) = (&self.name, &self.key);
        let mut prune = self.write(&format!("delete from {name} where "));
        if self.dialect == Dialect::MySql {
            prune.expired(now).push(&format!(" limit {PRUNED_AT_ONCE}"));
        } else {
            // The row must still be expired: it may have been set in the meantime.
            prune.expired(now).push(&format!(" and {key} in (select {key} from {name} where "));
            prune.expired(now).push(&format!(" limit {PRUNED_AT_ONCE}"));
            // A process that writes it now has found that the row is gone.
            let skip =
                if self.dialect == Dialect::Postgres { " for update skip locked" } else { "" };
            prune.push(skip).push(")");
        }
        prune.done_long()
    }

    /// Deletes the oldest rows. SQLite numbers rows in the order of their insertion.
    pub(crate) fn evict(&self, rows: u64) -> Statement<'_> {
        let name = &self.name;
        let sql = format!(
            "with oldest as (select rowid from {name} order by rowid limit {rows}) \
             delete from {name} where rowid in oldest"
        );
        Statement::once(sql, Vec::new())
    }

    pub(crate) fn keys<'a>(
        &'a self,
        prefix: &'a str,
        end: Option<&'a str>,
        after: Option<&'a str>,
        limit: usize,
        now: i64,
    ) -> Statement<'a> {
        let nothing = match self.dialect {
            Dialect::Postgres => "''::bytea",
            Dialect::MySql => "cast('' as binary)",
            Dialect::Sqlite => "x''",
        };
        let exact = self.exact_key();
        let mut keys =
            self.write(&format!("select {}, {nothing} from {} where ", self.key_out(), self.name));
        keys.within(prefix, end).push(" and ").live(now);
        if let Some(after) = after {
            keys.push(&format!(" and {exact} > ")).exact(after);
        }
        keys.push(&format!(" order by {exact} limit {limit}"));
        keys.done_long()
    }
}

/// A statement under construction.
struct Writer<'a> {
    table: &'a Table,
    sql: String,
    params: Vec<Param<'a>>,
}

impl<'a> Writer<'a> {
    fn done(self, is_reused: bool) -> Statement<'a> {
        let is_write = !self.sql.starts_with("select");
        let sql = self.table.dialect.limited(self.sql, false);
        Statement { is_write, ..Statement::new(Arc::from(sql), self.params, is_reused) }
    }

    /// A statement that scans many rows.
    fn done_long(self) -> Statement<'a> {
        let is_write = !self.sql.starts_with("select");
        let sql = self.table.dialect.limited(self.sql, true);
        let done = Statement::new(Arc::from(sql), self.params, false);
        Statement { is_write, is_long: true, ..done }
    }

    fn push(&mut self, sql: &str) -> &mut Self {
        self.sql.push_str(sql);
        self
    }

    fn param(&mut self, param: Param<'a>) -> &mut Self {
        self.params.push(param);
        match self.table.dialect {
            Dialect::Postgres => {
                let number = self.params.len();
                self.push(&format!("${number}"))
            }
            Dialect::MySql | Dialect::Sqlite => self.push("?"),
        }
    }

    /// Deletes the rows that match a condition. PostgreSQL locks rows in the order in which it
    /// finds them; against a batch of writes, which is in key order, that could deadlock.
    fn delete_in_order(&mut self, are_many: bool, condition: impl FnOnce(&mut Self)) {
        let table = self.table;
        self.push(&format!("delete from {} where ", table.name));
        if table.dialect != Dialect::Postgres || !are_many {
            return condition(self);
        }
        self.push(&format!("{0} in (select {0} from {1} where ", table.key, table.name));
        condition(self);
        self.push(&format!(" order by {} for update)", table.exact_key()));
    }

    /// A key in its stored type.
    fn key(&mut self, key: &'a str) -> &mut Self {
        match self.table.columns.keys {
            Keys::Text => self.param(Param::Text(key)),
            Keys::Bytes => self.param(Param::Bytes(key.as_bytes())),
        }
    }

    /// A key to compare with `exact_key`.
    fn exact(&mut self, key: &'a str) -> &mut Self {
        match self.table.dialect {
            Dialect::MySql => self.param(Param::Bytes(key.as_bytes())),
            Dialect::Postgres | Dialect::Sqlite => self.param(Param::Text(key)),
        }
    }

    /// The condition that the key is one of these keys.
    fn keys(&mut self, keys: &[&'a str]) -> &mut Self {
        let table = self.table;
        self.list(&table.key, keys, Self::key);
        if table.has_loose_keys() {
            // The first condition uses the index, the second one is exact.
            self.push(" and ").list(&table.exact_key(), keys, Self::exact);
        }
        self
    }

    fn list(
        &mut self,
        column: &str,
        keys: &[&'a str],
        write: impl for<'w> Fn(&'w mut Self, &'a str) -> &'w mut Self,
    ) {
        self.push(column).push(" in (");
        for (at, key) in keys.iter().enumerate() {
            if at > 0 {
                self.push(", ");
            }
            write(self, key);
        }
        self.push(")");
    }

    /// The condition that the key starts with the prefix.
    fn within(&mut self, prefix: &'a str, end: Option<&'a str>) -> &mut Self {
        let exact = self.table.exact_key();
        self.push(&format!("{exact} >= ")).exact(prefix);
        if let Some(end) = end {
            self.push(&format!(" and {exact} < ")).exact(end);
        }
        self
    }

    fn has_value(&mut self, value: &'a [u8]) -> &mut Self {
        // Compares bytes, so that no collation takes part.
        let column = self.table.value_bytes();
        self.push(&format!("{column} = ")).param(Param::Bytes(value))
    }

    fn live(&mut self, now: i64) -> &mut Self {
        let end = &self.table.end;
        self.push(&format!("({end} is null or {end} > ")).time(Some(now)).push(")")
    }

    fn expired(&mut self, now: i64) -> &mut Self {
        self.push(&format!("{} <= ", self.table.end)).time(Some(now))
    }

    /// A time in the type of the column.
    fn time(&mut self, millis: Option<i64>) -> &mut Self {
        let (before, after) = match (self.table.dialect, self.table.columns.ends) {
            (_, Ends::Millis) | (Dialect::Sqlite, _) => ("", ""),
            (Dialect::Postgres, Ends::Instant { .. }) => ("to_timestamp(", "::bigint / 1000.0)"),
            (Dialect::Postgres, Ends::Utc { .. }) => {
                ("(to_timestamp(", "::bigint / 1000.0) at time zone 'UTC')")
            }
            (Dialect::MySql, Ends::Instant { .. }) => ("from_unixtime(", " / 1000)"),
            (Dialect::MySql, Ends::Utc { .. }) => {
                ("timestampadd(microsecond, ", " * 1000, '1970-01-01 00:00:00')")
            }
        };
        self.push(before).param(Param::Int(millis)).push(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(dialect: Dialect, types: [&str; 3]) -> Table {
        let name = TableName::new("cache").unwrap();
        let answer: Vec<_> = ["key", "value", "expires_at"]
            .into_iter()
            .zip(types)
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        let columns = Columns::of(dialect, &name, &answer, None).unwrap().unwrap();
        Table::new(dialect, &name, columns)
    }

    fn ours() -> Table {
        table_of(Dialect::Postgres, ["text", "bytea", "bigint"])
    }

    fn node() -> Table {
        table_of(Dialect::MySql, ["varchar(255) PRI", "longtext ", "timestamp "])
    }

    #[test]
    fn data_is_never_in_the_text() {
        let evil = "'; drop table cache; -- \" ` $1 ? %_";
        for table in [ours(), node(), table_of(Dialect::Sqlite, ["text", "blob", "bigint"])] {
            let row = [Row { key: evil, value: evil.into(), expires_at: Some(7) }];
            let mut all = vec![
                table.get(&[evil], 5),
                table.get(&[evil, evil], 5),
                table.set(&row).unwrap(),
                table.update(evil, evil.as_bytes(), evil.as_bytes(), 5).unwrap(),
                table.touch(evil, Some(7), 5),
                table.delete(&[evil], Some(5)),
                table.delete_if(evil, evil.as_bytes(), 5),
                table.pull(evil, 5),
                table.clear(evil, Some(evil)),
                table.keys(evil, Some(evil), Some(evil), 3, 5),
                table.prune(5),
            ];
            all.extend(table.insert(&row, 5).unwrap());
            for statement in all {
                let sql = &statement.sql;
                assert!(!sql.contains("drop"), "{sql}");
                let mark = if table.dialect == Dialect::Postgres { '$' } else { '?' };
                assert_eq!(sql.matches(mark).count(), statement.params.len(), "{sql}");
            }
        }
    }

    #[test]
    fn texts_are_few() {
        let table = ours();
        let keys: Vec<String> = (0..5).map(|at| format!("k{at}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let five = table.get(&keys, 1);
        assert_eq!(five.sql, table.get(&[&keys[..], &keys[..2]].concat(), 1).sql);
        assert_eq!(five.params.len(), 9);
        let one = table.get(&keys[..1], 1);
        assert_eq!(one.sql, table.get_all(&keys[..1], 1).sql);
        assert_eq!(one.params.len(), table.get_all(&keys[..1], 1).params.len());
    }

    #[test]
    fn texts_for_mariadb_have_a_limit_and_writes_are_told_from_reads() {
        let table = node();
        let row = [Row { key: "k", value: "v".into(), expires_at: None }];
        let starts = |statement: &Statement<'_>, words: &str| {
            assert!(statement.sql.starts_with(words), "{}", statement.sql);
        };
        let short = "/*M!100500 set statement max_statement_time = if(";
        for read in [table.get(&["a"], 1), table.get(&["a", "b"], 1)] {
            starts(&read, short);
            assert!(!read.is_write && !read.is_long, "{}", read.sql);
        }
        for write in [table.set(&row).unwrap(), table.delete(&["a"], None)] {
            starts(&write, short);
            assert!(write.is_write && !write.is_long, "{}", write.sql);
        }
        for long in [table.clear("a", None), table.prune(1), table.keys("a", None, None, 1, 1)] {
            starts(&long, "/*M!100500 set statement lock_wait_timeout = least(");
            assert!(long.is_long, "{}", long.sql);
            assert_eq!(long.is_write, long.sql.contains(" delete from "), "{}", long.sql);
        }
        starts(&ours().get(&["a"], 1), "select");
        let sqlite = table_of(Dialect::Sqlite, ["text", "blob", "bigint"]);
        starts(&sqlite.prune(1), "delete");
    }

    #[test]
    fn text_columns_take_text_only() {
        let table = node();
        let row = [Row { key: "k", value: vec![0xb3, 1].into(), expires_at: None }];
        let error = table.set(&row).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("JSON codec"), "{error}");
        assert!(!table.can_be_there(&[0xff]));
        assert!(ours().can_be_there(&[0xff]));
    }
}
