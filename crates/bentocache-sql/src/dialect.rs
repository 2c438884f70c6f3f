//! The supported SQL databases.

use bentocache_driver::ErrorKind;

use crate::{Failure, Statement, TableName};

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

/// The longest key, in bytes, of a table that the driver creates if the index has a limit.
/// PostgreSQL allows about 2,700 bytes and InnoDB 3,072; this is 512 characters of four bytes.
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

    /// A statement with the limit of [`Statement::LIMIT`](crate::Statement::LIMIT) in its text, if
    /// the database supports that. Only MariaDB reads the text between `/*M!` and `*/`; the
    /// settings end with the statement, and a stricter setting of the session has precedence.
    pub(crate) fn limited(self, sql: String, is_long: bool) -> String {
        if self != Self::MySql {
            return sql;
        }
        let limit = Statement::LIMIT.as_secs();
        let least = |name| format!("{name} = least(@@{name}, {limit})");
        let settings = if is_long {
            [least("lock_wait_timeout"), least("innodb_lock_wait_timeout")].join(", ")
        } else {
            // 0 means no limit.
            let name = "max_statement_time";
            format!("{name} = if(@@{name} between 0.001 and {limit}, @@{name}, {limit})")
        };
        format!("/*M!100500 set statement {settings} for */ {sql}")
    }

    /// The statements that create the table and its index, one after the other. Each does nothing
    /// if another process was faster.
    pub(crate) fn create(self, table: &TableName) -> Vec<String> {
        let name = self.quoted(table);
        match self {
            // Even `if not exists` fails if two sessions run it at once. So the statement takes a
            // lock, which ends with it. The lock's number is random.
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
            // Bytes, because text ignores trailing spaces.
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

    /// The meaning of a database error, by its code: the SQLSTATE of PostgreSQL, the error number
    /// of MySQL, the result code of SQLite.
    ///
    /// The message of the database is quoted only if it cannot contain keys or values.
    pub fn failure(self, code: &str, message: &str) -> Failure {
        match self {
            Self::Postgres => postgres(code, message),
            Self::MySql => mysql(code, message),
            Self::Sqlite => sqlite(code, message),
        }
    }
}

const MISSING: &str = "create the table as the guide says, or leave auto_create_table on";
const CONNECTIONS: &str = "raise the server's limit, or let the pools have fewer connections";
const LOGIN: &str = "correct the user and the password of the pool, or let an administrator allow \
                     this login";
const RIGHTS: &str = "let an administrator grant the right to the application's user";
const READ_ONLY: &str = "use the address of the primary server, or make the server writable";
const NO_ROOM: &str = "free some space, or raise the limit; reads and deletes may still succeed";
const POOLER: &str = "a pooler in transaction mode, such as PgBouncer, keeps no prepared \
                      statements: use transaction_pooling() of the adapter, or a pooler in session \
                      mode";

/// The database's code and text, with advice. A text that may contain data is left out.
struct Said<'a> {
    code: &'a str,
    message: Option<&'a str>,
}

impl Said<'_> {
    fn plain(&self) -> String {
        let Self { code, message } = self;
        match message {
            Some(message) => {
                let message: String = message.chars().take(200).collect();
                format!("the database says {code}: {message}")
            }
            None => format!("the database says {code}"),
        }
    }

    fn is(&self, kind: ErrorKind) -> Failure {
        Failure::new(kind, self.plain())
    }

    fn with(&self, kind: ErrorKind, advice: &str) -> Failure {
        Failure::new(kind, format!("{}; {advice}", self.plain()))
    }

    fn read_only(&self) -> Failure {
        Failure::read_only(format!("{}; {READ_ONLY}", self.plain()))
    }
}

fn postgres(code: &str, message: &str) -> Failure {
    use ErrorKind::{Denied, Full, Timeout, TooLarge, Unavailable};
    // Classes 22 and 23 are about data.
    let has_data = code.starts_with("22") || code.starts_with("23");
    let said = Said { code, message: (!has_data).then_some(message) };
    match code {
        "40001" | "40P01" => Failure::conflict(said.plain()),
        "42P01" => Failure::missing_table(format!("{}; {MISSING}", said.plain())),
        "3F000" => said.with(Denied, "create the schema, or name another one with table_name"),
        "3D000" => said.with(Denied, "create the database, or name another one in the pool's URL"),
        "42501" => said.with(Denied, RIGHTS),
        "25006" => said.read_only(),
        "22001" | "54000" => {
            Failure::new(TooLarge, format!("beyond a limit of the server ({code})"))
        }
        "57014" | "55P03" => said.is(Timeout),
        "53300" => said.with(Unavailable, CONNECTIONS),
        "0A000" if message.contains("cached plan") => Failure::stale_plan(said.plain()),
        "42P05" | "26000" | "08P01" => Failure::mixed_up(format!("{}; {POOLER}", said.plain())),
        _ if code.starts_with("53") => said.with(Full, NO_ROOM),
        _ if code.starts_with("28") => said.with(Denied, LOGIN),
        _ if code.starts_with("42") => said.with(
            Denied,
            "the table has been changed: give it the columns that the guide shows, or drop it",
        ),
        _ => said.is(Unavailable),
    }
}

fn mysql(code: &str, message: &str) -> Failure {
    use ErrorKind::{Denied, Full, Timeout, TooLarge, Unavailable};
    let has_data = matches!(code, "1062" | "1064" | "1264" | "1292" | "1366");
    let said = Said { code, message: (!has_data).then_some(message) };
    match code {
        // A deadlock; a row that changed under MariaDB's snapshot isolation.
        "1213" | "1020" => Failure::conflict(said.plain()),
        "1146" | "1051" => Failure::missing_table(format!("{}; {MISSING}", said.plain())),
        "1049" => said.with(Denied, "create the database, or name another one in the pool's URL"),
        // Login errors: unknown user, host not allowed, locked, expired, missing plugin.
        "1045" | "1130" | "1251" | "1524" | "1698" | "1820" | "1862" | "3118" | "4151" => {
            said.with(Denied, LOGIN)
        }
        "1044" | "1142" | "1143" | "1227" | "1370" => said.with(Denied, RIGHTS),
        "1290" | "1792" | "1836" => said.read_only(),
        "1054" => said.with(
            Denied,
            "the table has been changed: give it the columns that the guide shows, or drop it",
        ),
        "1071" => said.with(
            Denied,
            "the server's index pages are too small for keys of 2,048 bytes: create the table as \
             the guide says, with a shorter varbinary as its key",
        ),
        "1021" | "1037" | "1038" | "1041" | "1114" => said.with(Full, NO_ROOM),
        // The system's error code is in the text: 28 means no space, 122 quota exceeded.
        "1005" | "1026" | "1030" if ["28", "122"].iter().any(|errno| has_errno(message, errno)) => {
            said.with(Full, NO_ROOM)
        }
        "1153" => Failure::new(
            TooLarge,
            "more than the server takes at once; raise its max_allowed_packet, and restart the \
             application",
        ),
        "1406" | "1118" => Failure::new(TooLarge, format!("beyond a limit of the server ({code})")),
        "1205" | "1969" | "3024" => said.is(Timeout),
        "1040" | "1203" | "1226" => said.with(Unavailable, CONNECTIONS),
        "1461" => said.with(
            Unavailable,
            "raise the server's max_prepared_stmt_count, or let the pools have fewer connections \
             or a smaller statement cache",
        ),
        "1615" => Failure::stale_plan(said.plain()),
        "1243" => said.with(
            Unavailable,
            "a proxy that shares connections, such as ProxySQL, keeps no prepared statements: let \
             it support them, or connect to the server",
        ),
        _ => said.is(Unavailable),
    }
}

/// Whether a text such as `Got error 28 from storage engine` contains this number.
fn has_errno(message: &str, errno: &str) -> bool {
    message.split(|c: char| !c.is_ascii_digit()).any(|number| number == errno)
}

fn sqlite(code: &str, message: &str) -> Failure {
    use ErrorKind::{Denied, Full, TooLarge, Unavailable};
    let said = Said { code, message: Some(message) };
    // The low byte is the kind; the other bytes give details.
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        1 if message.contains("no such table") => {
            Failure::missing_table(format!("{}; {MISSING}", said.plain()))
        }
        5 => Failure::conflict(
            "the file is locked by another writer; give the connections a longer busy timeout",
        ),
        6 => Failure::conflict(said.plain()),
        3 | 8 | 14 | 23 => said.with(
            Denied,
            "let this process's user read and write the file and its directory, or choose another \
             file",
        ),
        26 => said.with(Denied, "the file is no SQLite database: choose another one"),
        11 => {
            said.with(Denied, "stop the processes that use the file, and delete it: it is a cache")
        }
        7 | 13 => said.with(Full, NO_ROOM),
        17 => Failure::stale_plan(said.plain()),
        18 => Failure::new(TooLarge, "beyond a limit of SQLite"),
        _ => said.is(Unavailable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        use Dialect::{MySql, Postgres, Sqlite};
        for (dialect, kind, codes) in [
            (Postgres, ErrorKind::Unavailable, "40P01 57P01 53300 42P05 26000 08P01"),
            (Postgres, ErrorKind::Timeout, "57014 55P03"),
            (Postgres, ErrorKind::Denied, "28P01 28000 3D000 3F000 42P01 42501 42703 25006"),
            (Postgres, ErrorKind::Full, "53100 53200"),
            (Postgres, ErrorKind::TooLarge, "54000"),
            (MySql, ErrorKind::Unavailable, "1213 1040 1203 1461 1243"),
            (MySql, ErrorKind::Timeout, "1205 1969"),
            (
                MySql,
                ErrorKind::Denied,
                "1044 1045 1049 1130 1142 1143 1146 1227 1698 1290 1792 1836 1054 1071",
            ),
            (MySql, ErrorKind::Full, "1021 1114"),
            (MySql, ErrorKind::TooLarge, "1153 1406"),
            (Sqlite, ErrorKind::Unavailable, "5 10"),
            (Sqlite, ErrorKind::Denied, "8 1032 14 26 11"),
            (Sqlite, ErrorKind::Full, "13 7"),
            (Sqlite, ErrorKind::TooLarge, "18"),
        ] {
            for code in codes.split(' ') {
                let error = dialect.failure(code, "said").error(dialect.name(), "get");
                assert_eq!(error.kind(), kind, "{dialect:?} {code}: {error}");
                assert!(error.to_string().starts_with(dialect.name()), "{error}");
            }
        }
        let full = MySql.failure("1030", "Got error 28 \"No space left\" from storage engine");
        assert_eq!(full.error("mysql", "set").kind(), ErrorKind::Full);
        let other = MySql.failure("1030", "Got error 128 from storage engine");
        assert_eq!(other.error("mysql", "set").kind(), ErrorKind::Unavailable);
        assert!(Postgres.failure("40001", "").is_conflict());
        assert!(MySql.failure("1213", "").is_conflict());
        assert!(Sqlite.failure("517", "").is_conflict());
        assert!(Postgres.failure("42P01", "").is_missing_table());
        assert!(MySql.failure("1146", "").is_missing_table());
        assert!(Sqlite.failure("1", "no such table: cache").is_missing_table());
        let plan = Postgres.failure("0A000", "cached plan must not change result type");
        assert!(plan.is_stale_plan());
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
