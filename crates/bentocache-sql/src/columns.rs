//! The layout of the table: the driver's own, or the one that the Node library created.

use bentocache_driver::{DriverError, ErrorKind};

use crate::dialect::MAX_KEY;
use crate::{Dialect, Limits, TableName};

/// The largest value in bytes if the database sets no lower limit. A value is in memory several
/// times on its way.
const MAX_VALUE: usize = 256 << 20;
/// The size of a statement without the value.
const PACKET_OVERHEAD: usize = 64 << 10;

/// The type of the key column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Text,
    /// In MySQL, whose text has collations.
    Bytes,
}

/// The type of the value column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    Bytes,
    Text,
}

/// The type of the expiry column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Milliseconds since 1970.
    Millis,
    /// A point in time, with this many digits after the second.
    Instant { digits: u32 },
    /// A date and time in UTC, with this many digits after the second.
    Utc { digits: u32 },
}

/// The types of the columns, and their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Columns {
    pub(crate) keys: Keys,
    pub(crate) values: Values,
    pub(crate) ends: Ends,
    pub(crate) limits: Limits,
}

/// The query that lists names and types of the columns, with its parameters.
pub(crate) fn query(dialect: Dialect, table: &TableName) -> (String, Vec<String>) {
    match dialect {
        Dialect::Postgres => (
            "select attname::text, convert_to(format_type(atttypid, atttypmod), 'UTF8') \
             from pg_attribute \
             where attrelid = to_regclass($1) and attnum > 0 and not attisdropped"
                .to_owned(),
            vec![dialect.quoted(table)],
        ),
        Dialect::MySql => {
            let schema = if table.schema().is_some() { "?" } else { "database()" };
            let sql = format!(
                "select cast(column_name as binary), \
                 cast(concat(column_type, ' ', column_key) as binary) \
                 from information_schema.columns \
                 where table_schema = {schema} and table_name = ?"
            );
            (sql, table.schema().into_iter().chain([table.table()]).map(str::to_owned).collect())
        }
        Dialect::Sqlite => {
            let schema = if table.schema().is_some() { ", ?" } else { "" };
            let sql = format!("select name, cast(type as blob) from pragma_table_info(?{schema})");
            let names = [table.table()].into_iter().chain(table.schema());
            (sql, names.map(str::to_owned).collect())
        }
    }
}

impl Columns {
    /// Decodes the answer to [`query`]; `None` if there is no such table. `packet` is the largest
    /// packet that a MySQL server accepts.
    pub(crate) fn of(
        dialect: Dialect,
        table: &TableName,
        answer: &[(String, String)],
        packet: Option<usize>,
    ) -> Result<Option<Self>, DriverError> {
        if answer.is_empty() {
            return Ok(None);
        }
        let unusable = |what: String| {
            let name = dialect.name();
            let message = format!(
                "{name}: the table {table} is no cache table: {what}; \
                 choose another one with table_name, and it is created"
            );
            DriverError::new(ErrorKind::Denied, message)
        };
        let column = |name: &str| {
            let found = answer.iter().find(|(column, _)| column == name);
            let found = found.map(|(_, kind)| kind.trim().to_ascii_lowercase());
            found.ok_or_else(|| unusable(format!("it has no column `{name}`")))
        };
        let odd =
            |name: &str, kind: &str| unusable(format!("its column `{name}` has the type `{kind}`"));
        let (key, value, end) = (column("key")?, column("value")?, column("expires_at")?);
        let mut limits = Limits::default();
        let keys = keys(dialect, &key, &mut limits).ok_or_else(|| odd("key", &key))?;
        let values = values(dialect, &value, &mut limits).ok_or_else(|| odd("value", &value))?;
        let ends = ends(dialect, &end).ok_or_else(|| odd("expires_at", &end))?;
        if let Some(packet) = packet {
            // An update also sends the expected value.
            let most = packet.saturating_sub(PACKET_OVERHEAD) / 2;
            limits.max_value = limits.max_value.map(|limit| limit.min(most));
            limits.batch_bytes = limits.batch_bytes.min(most);
        }
        Ok(Some(Self { keys, values, ends, limits }))
    }

    /// The end as the column can store it: no row expires early, and no end exceeds the type.
    pub(crate) fn storable(&self, dialect: Dialect, end: Option<i64>) -> Option<i64> {
        /// The largest `timestamp` of MySQL, in January 2038.
        const LAST: i64 = i32::MAX as i64 * 1_000;
        let step = match self.ends {
            Ends::Millis => 1,
            Ends::Instant { digits } | Ends::Utc { digits } => {
                10_i64.pow(3_u32.saturating_sub(digits))
            }
        };
        let end = end?;
        let end = end.checked_add((step - end.rem_euclid(step)) % step)?;
        let is_short = dialect == Dialect::MySql && matches!(self.ends, Ends::Instant { .. });
        (!is_short || end < LAST).then_some(end)
    }
}

fn keys(dialect: Dialect, kind: &str, limits: &mut Limits) -> Option<Keys> {
    let starts = |start: &str| kind.starts_with(start);
    match dialect {
        Dialect::Postgres if kind == "text" || starts("character varying") => {
            *limits = limits.with_max_key(MAX_KEY).without_nul();
            limits.max_key_chars = number(kind);
            Some(Keys::Text)
        }
        // Without a unique key, a key could have two rows.
        Dialect::MySql if !kind.ends_with(" pri") && !kind.ends_with(" uni") => None,
        Dialect::MySql if starts("varbinary") => {
            limits.max_key = number(kind);
            Some(Keys::Bytes)
        }
        Dialect::MySql if starts("varchar") => {
            limits.max_key_chars = number(kind);
            Some(Keys::Text)
        }
        Dialect::Sqlite if kind.contains("text") || kind.contains("char") => Some(Keys::Text),
        _ => None,
    }
}

fn values(dialect: Dialect, kind: &str, limits: &mut Limits) -> Option<Values> {
    limits.max_value = Some(MAX_VALUE);
    let first = kind.split(' ').next().unwrap_or_default();
    match dialect {
        Dialect::Postgres => match kind {
            "bytea" => Some(Values::Bytes),
            "text" => Some(Values::Text),
            _ => None,
        },
        Dialect::MySql => {
            let size = match first {
                "blob" | "text" => (1 << 16) - 1,
                "mediumblob" | "mediumtext" => (1 << 24) - 1,
                "longblob" | "longtext" => MAX_VALUE,
                _ => return None,
            };
            limits.max_value = Some(size);
            Some(if first.ends_with("blob") { Values::Bytes } else { Values::Text })
        }
        Dialect::Sqlite if kind.contains("blob") => Some(Values::Bytes),
        Dialect::Sqlite if kind.contains("text") || kind.contains("char") => Some(Values::Text),
        Dialect::Sqlite => None,
    }
}

fn ends(dialect: Dialect, kind: &str) -> Option<Ends> {
    if dialect == Dialect::Sqlite || kind.starts_with("bigint") {
        return Some(Ends::Millis);
    }
    let digits = |default| number(kind).and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
    match dialect {
        Dialect::Postgres if kind.starts_with("timestamp") => {
            let digits = digits(6);
            let has_zone = kind.ends_with("with time zone");
            Some(if has_zone { Ends::Instant { digits } } else { Ends::Utc { digits } })
        }
        Dialect::MySql if kind.starts_with("timestamp") => {
            Some(Ends::Instant { digits: digits(0) })
        }
        Dialect::MySql if kind.starts_with("datetime") => Some(Ends::Utc { digits: digits(0) }),
        _ => None,
    }
}

/// The number in `varchar(255)`.
fn number(kind: &str) -> Option<usize> {
    let (_, rest) = kind.split_once('(')?;
    rest.split([')', ',']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dialect: Dialect, types: [&str; 3]) -> Result<Columns, DriverError> {
        let names = ["key", "value", "expires_at"];
        let answer: Vec<_> =
            names.into_iter().zip(types).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
        let table = TableName::new("t").unwrap();
        Columns::of(dialect, &table, &answer, Some(1 << 24)).map(Option::unwrap)
    }

    #[test]
    fn ours_and_that_of_node_are_known() {
        let seen = |dialect, types| {
            let columns = of(dialect, types).unwrap();
            (columns.keys, columns.values, columns.ends)
        };
        use Dialect::{MySql, Postgres, Sqlite};
        let zone = "timestamp with time zone";
        for (dialect, types, expected) in [
            (Postgres, ["text", "bytea", "bigint"], (Keys::Text, Values::Bytes, Ends::Millis)),
            (
                Postgres,
                ["character varying(255)", "text", zone],
                (Keys::Text, Values::Text, Ends::Instant { digits: 6 }),
            ),
            (
                MySql,
                ["varbinary(2048) PRI", "longblob ", "bigint(20) MUL"],
                (Keys::Bytes, Values::Bytes, Ends::Millis),
            ),
            (
                MySql,
                ["varchar(255) PRI", "longtext ", "timestamp "],
                (Keys::Text, Values::Text, Ends::Instant { digits: 0 }),
            ),
            (
                MySql,
                ["varchar(255) PRI", "text ", "datetime(3) "],
                (Keys::Text, Values::Text, Ends::Utc { digits: 3 }),
            ),
            (Sqlite, ["TEXT", "BLOB", "BIGINT"], (Keys::Text, Values::Bytes, Ends::Millis)),
            (
                Sqlite,
                ["varchar(255)", "text", "datetime"],
                (Keys::Text, Values::Text, Ends::Millis),
            ),
        ] {
            assert_eq!(seen(dialect, types), expected, "{dialect:?} {types:?}");
        }
    }

    #[test]
    fn other_tables_are_refused() {
        use Dialect::{MySql, Postgres, Sqlite};
        for (dialect, types) in [
            (Postgres, ["uuid", "bytea", "bigint"]),
            (Postgres, ["text", "jsonb", "bigint"]),
            (Postgres, ["text", "bytea", "integer"]),
            (MySql, ["varchar(255) ", "longtext ", "timestamp "]),
            (MySql, ["varchar(255) PRI", "json ", "timestamp "]),
            (Sqlite, ["integer", "blob", "bigint"]),
        ] {
            let error = of(dialect, types).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.to_string().contains("table_name"), "{error}");
        }
        let answer = [("key".to_owned(), "text".to_owned())];
        let table = TableName::new("users").unwrap();
        let error = Columns::of(Postgres, &table, &answer, None).unwrap_err();
        assert!(error.to_string().contains("no column `value`"), "{error}");
    }

    #[test]
    fn limits_follow_the_types() {
        let limits = |dialect, types| of(dialect, types).unwrap().limits;
        let ours = limits(Dialect::MySql, ["varbinary(2048) PRI", "longblob ", "bigint "]);
        assert_eq!((ours.max_key, ours.max_value), (Some(2_048), Some((1 << 23) - (1 << 15))));
        let node = limits(Dialect::MySql, ["varchar(255) PRI", "text ", "timestamp "]);
        assert_eq!((node.max_key_chars, node.max_value), (Some(255), Some(65_535)));
    }

    #[test]
    fn ends_are_rounded_up_and_kept_within_the_type() {
        let node = of(Dialect::MySql, ["varchar(255) PRI", "text ", "timestamp "]).unwrap();
        let storable = |end| node.storable(Dialect::MySql, end);
        assert_eq!(storable(None), None);
        assert_eq!(storable(Some(5_000)), Some(5_000));
        assert_eq!(storable(Some(5_001)), Some(6_000));
        assert_eq!(storable(Some(i64::from(i32::MAX) * 1_000)), None);
        assert_eq!(storable(Some(i64::MAX)), None);
        let ours = of(Dialect::Sqlite, ["text", "blob", "bigint"]).unwrap();
        assert_eq!(ours.storable(Dialect::Sqlite, Some(5_001)), Some(5_001));
    }
}
