//! The databases that the SQL is there for.

use bentocache_core::ErrorKind;

use crate::{Failure, TableName};

/// A database, with its own SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// PostgreSQL 12 or later.
    Postgres,
    /// MySQL 8 or later, MariaDB 10.5 or later.
    MySql,
    /// SQLite 3.35 or later.
    Sqlite,
}

/// The longest key of a table that we create where the index sets a limit, in bytes. PostgreSQL
/// takes about 2,700, InnoDB 3,072; these are 512 characters of the longest kind.
pub(crate) const MAX_KEY: usize = 2_048;

impl Dialect {
    /// A short name for errors and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
            Self::Sqlite => "sqlite",
        }
    }

    pub(crate) fn quoted(self, table: &TableName) -> String {
        let part = |name: &str| self.column(name);
        match table.schema() {
            Some(schema) => format!("{}.{}", part(schema), part(table.table())),
            None => part(table.table()),
        }
    }

    pub(crate) fn column(self, name: &str) -> String {
        match self {
            Self::MySql => format!("`{name}`"),
            Self::Postgres | Self::Sqlite => format!("\"{name}\""),
        }
    }

    /// What creates the table and its index, one statement after the other, each of which does
    /// nothing when another process was faster.
    pub(crate) fn create(self, table: &TableName) -> Vec<String> {
        let name = self.quoted(table);
        match self {
            // Even `if not exists` fails when two do it at once: hence the lock, which ends with
            // the statement. Its number is chosen at random.
            Self::Postgres => vec![format!(
                r#"do $$ begin
  perform pg_advisory_xact_lock(422827095151);
  if to_regclass('{name}') is null then
    create table {name} (
      "key" text collate "C" primary key,
      "value" bytea not null,
      "expires_at" bigint
    );
    create index on {name} ("expires_at");
  end if;
end $$"#
            )],
            // Bytes, because text would ignore spaces at the end.
            Self::MySql => vec![format!(
                "create table if not exists {name} (
  `key` varbinary({MAX_KEY}) not null primary key,
  `value` longblob not null,
  `expires_at` bigint null,
  index (`expires_at`)
) engine=InnoDB row_format=dynamic"
            )],
            Self::Sqlite => {
                let (schema, table) = (table.schema(), table.table());
                let schema = schema.map(|schema| format!("\"{schema}\".")).unwrap_or_default();
                vec![
                    format!(
                        r#"create table if not exists {name} (
  "key" text not null primary key,
  "value" blob not null,
  "expires_at" bigint
)"#
                    ),
                    format!(
                        r#"create index if not exists {schema}"{table}_expires_at" on "{table}" ("expires_at")"#
                    ),
                ]
            }
        }
    }

    /// The reason of an error that the database reports, by its code: the SQLSTATE of PostgreSQL,
    /// the number of an error of MySQL, the result code of SQLite.
    ///
    /// What the database says is repeated only where it cannot hold keys or values.
    pub fn failure(self, code: &str, message: &str) -> Failure {
        match self {
            Self::Postgres => postgres(code, message),
            Self::MySql => mysql(code, message),
            Self::Sqlite => sqlite(code, message),
        }
    }
}

const MISSING: &str = "the table is missing; it is created when the cache is built, unless \
                       auto_create_table is off";

fn said(code: &str, message: &str) -> String {
    let message: String = message.chars().take(200).collect();
    format!("the database says {code}: {message}")
}

fn postgres(code: &str, message: &str) -> Failure {
    use ErrorKind::{Config, Timeout, TooLarge, Unavailable};
    let plain = || said(code, message);
    match code {
        "40001" | "40P01" => Failure::conflict(plain()),
        "42P01" => Failure::new(Config, MISSING),
        "42501" => Failure::new(
            Config,
            format!("{}; let an administrator grant the right to the application's user", plain()),
        ),
        "22001" | "54000" => {
            Failure::new(TooLarge, format!("beyond a limit of the server ({code})"))
        }
        "57014" => Failure::new(Timeout, plain()),
        "53300" => Failure::new(
            Unavailable,
            format!("{}; raise its max_connections, or let the pools have fewer", plain()),
        ),
        "25006" => {
            Failure::new(Unavailable, format!("{}; use the address of the primary server", plain()))
        }
        _ if code.starts_with("28") || code.starts_with("3D") || code.starts_with("42") => {
            Failure::new(Config, plain())
        }
        // About data: the text may hold some of it.
        _ if code.starts_with("22") || code.starts_with("23") => {
            Failure::new(Unavailable, format!("the database says {code}"))
        }
        _ => Failure::new(Unavailable, plain()),
    }
}

fn mysql(code: &str, message: &str) -> Failure {
    use ErrorKind::{Config, Timeout, TooLarge, Unavailable};
    let plain = || said(code, message);
    match code {
        // A deadlock; a row that changed under MariaDB's snapshot isolation.
        "1213" | "1020" => Failure::conflict(plain()),
        "1146" => Failure::new(Config, MISSING),
        "1044" | "1045" | "1049" | "1142" | "1143" | "1227" | "1698" => {
            Failure::new(Config, plain())
        }
        "1153" => Failure::new(
            TooLarge,
            "more than the server takes at once; raise its max_allowed_packet and build the \
             cache anew",
        ),
        "1406" | "1118" | "1071" => {
            Failure::new(TooLarge, format!("beyond a limit of the server ({code})"))
        }
        "1205" | "1969" | "3024" => Failure::new(Timeout, plain()),
        "1040" => Failure::new(
            Unavailable,
            format!("{}; raise its max_connections, or let the pools have fewer", plain()),
        ),
        // About data: the text may hold some of it.
        "1062" | "1064" | "1264" | "1292" | "1366" => {
            Failure::new(Unavailable, format!("the database says {code}"))
        }
        _ => Failure::new(Unavailable, plain()),
    }
}

fn sqlite(code: &str, message: &str) -> Failure {
    use ErrorKind::{Config, TooLarge, Unavailable};
    let plain = || said(code, message);
    // The low byte is the kind, the others say more.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        1 if message.contains("no such table") => Failure::new(Config, MISSING),
        5 => Failure::conflict(
            "the file is locked by another writer; give the connections a longer busy timeout",
        ),
        6 => Failure::conflict(plain()),
        8 | 14 | 23 | 26 => Failure::new(
            Config,
            format!("{}; is it the right file, and may the process write there?", plain()),
        ),
        11 => {
            Failure::new(Unavailable, format!("{}; delete the file, it is only a cache", plain()))
        }
        13 => Failure::new(Unavailable, format!("{}; free some space", plain())),
        18 => Failure::new(TooLarge, "beyond a limit of SQLite"),
        _ => Failure::new(Unavailable, plain()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        use Dialect::{MySql, Postgres, Sqlite};
        for (dialect, code, kind) in [
            (Postgres, "40P01", ErrorKind::Unavailable),
            (Postgres, "57P01", ErrorKind::Unavailable),
            (Postgres, "53300", ErrorKind::Unavailable),
            (Postgres, "57014", ErrorKind::Timeout),
            (Postgres, "28P01", ErrorKind::Config),
            (Postgres, "3D000", ErrorKind::Config),
            (Postgres, "42501", ErrorKind::Config),
            (Postgres, "54000", ErrorKind::TooLarge),
            (MySql, "1213", ErrorKind::Unavailable),
            (MySql, "1205", ErrorKind::Timeout),
            (MySql, "1045", ErrorKind::Config),
            (MySql, "1153", ErrorKind::TooLarge),
            (Sqlite, "5", ErrorKind::Unavailable),
            (Sqlite, "14", ErrorKind::Config),
            (Sqlite, "18", ErrorKind::TooLarge),
        ] {
            let error = dialect.failure(code, "said").error(dialect.name(), "get");
            assert_eq!(error.kind(), kind, "{dialect:?} {code}: {error}");
            assert!(error.to_string().starts_with(dialect.name()), "{error}");
        }
        assert!(Postgres.failure("40001", "").is_conflict());
        assert!(MySql.failure("1213", "").is_conflict());
        assert!(Sqlite.failure("517", "").is_conflict());
    }

    #[test]
    fn data_is_not_repeated() {
        for (dialect, code) in
            [(Dialect::Postgres, "22P02"), (Dialect::Postgres, "23505"), (Dialect::MySql, "1062")]
        {
            let error = dialect.failure(code, "Duplicate entry 'secret'").error("x", "set");
            assert!(!error.to_string().contains("secret"), "{error}");
            assert!(error.to_string().contains(code), "{error}");
        }
    }

    #[test]
    fn tables_are_quoted() {
        let table = TableName::new("app.cache").unwrap();
        assert_eq!(Dialect::Postgres.quoted(&table), "\"app\".\"cache\"");
        assert_eq!(Dialect::MySql.quoted(&table), "`app`.`cache`");
    }
}
