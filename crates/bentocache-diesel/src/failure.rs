//! The meaning of Diesel's errors.

use bentocache_driver::ErrorKind;
use bentocache_sql::{Dialect, Failure};
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error};
use tokio::task::JoinError;

const LOST: &str = "the connection was lost or could not be made";

/// Words of a database's message, and the error code for them, because Diesel does not pass the
/// code on. The first entry whose words all occur is used.
type Known = &'static [(&'static [&'static str], &'static str)];

const POSTGRES: Known = &[
    (&["deadlock detected"], "40P01"),
    (&["permission denied"], "42501"),
    (&["must be owner"], "42501"),
    (&["read-only transaction"], "25006"),
    (&["canceling statement"], "57014"),
    (&["too many clients"], "53300"),
    (&["too many connections"], "53300"),
    (&["remaining connection slots"], "53300"),
    (&["No space left on device"], "53100"),
    (&["out of memory"], "53200"),
    (&["index row"], "54000"),
    (&["cached plan must not change"], "0A000"),
    (&["prepared statement", "already exists"], "42P05"),
    (&["prepared statement", "does not exist"], "26000"),
    (&["authentication failed"], "28P01"),
    (&["no pg_hba.conf entry"], "28000"),
    (&["role \"", "does not exist"], "28000"),
    (&["database \"", "does not exist"], "3D000"),
    (&["schema \"", "does not exist"], "3F000"),
    (&["column \"", "does not exist"], "42703"),
    (&["does not exist"], "42P01"),
];
const MYSQL: Known = &[
    (&["Deadlock found"], "1213"),
    (&["Record has changed since last read"], "1020"),
    (&["Lock wait timeout"], "1205"),
    (&["max_statement_time exceeded"], "1969"),
    (&["max_allowed_packet"], "1153"),
    (&["Too many connections"], "1040"),
    (&["max_user_connections"], "1203"),
    (&["max_prepared_stmt_count"], "1461"),
    (&["re-prepared"], "1615"),
    (&["read-only option"], "1290"),
    (&["READ ONLY transaction"], "1792"),
    (&["read only mode"], "1836"),
    (&["Disk full"], "1021"),
    (&["The table '", "is full"], "1114"),
    (&["from storage engine"], "1030"),
    (&["Access denied; you need"], "1227"),
    (&["Access denied", "to database"], "1044"),
    (&["Access denied"], "1045"),
    (&["is not allowed to connect"], "1130"),
    (&["command denied"], "1142"),
    (&["Unknown database"], "1049"),
    (&["Unknown column"], "1054"),
    (&["Specified key was too long"], "1071"),
    (&["Data too long"], "1406"),
    (&["doesn't exist"], "1146"),
];
const SQLITE: Known = &[
    (&["database is locked"], "5"),
    (&["table is locked"], "6"),
    (&["readonly database"], "8"),
    (&["malformed"], "11"),
    (&["disk is full"], "13"),
    (&["unable to open"], "14"),
    (&["too big"], "18"),
    (&["not a database"], "26"),
    (&["no such table"], "1"),
];

/// The failure of a statement.
pub(crate) fn failure(dialect: Dialect, error: &Error) -> Failure {
    use DatabaseErrorKind::{
        ClosedConnection, ReadOnlyTransaction, SerializationFailure, UnableToSendCommand,
    };
    match error {
        Error::DatabaseError(UnableToSendCommand | ClosedConnection, _) => {
            Failure::new(ErrorKind::Unavailable, LOST)
        }
        Error::DatabaseError(SerializationFailure, said) if dialect == Dialect::Postgres => {
            dialect.failure("40001", said.message())
        }
        Error::DatabaseError(ReadOnlyTransaction, said) if dialect == Dialect::Postgres => {
            dialect.failure("25006", said.message())
        }
        Error::DatabaseError(_, said) => by_message(dialect, said.message()),
        // Texts of the library, which contain no data.
        error => Failure::new(ErrorKind::Unavailable, error.to_string()),
    }
}

fn by_message(dialect: Dialect, message: &str) -> Failure {
    let known = match dialect {
        Dialect::Postgres => POSTGRES,
        Dialect::MySql => MYSQL,
        _ => SQLITE,
    };
    let is_said = |words: &&[&str]| words.iter().all(|word| message.contains(word));
    match known.iter().find(|(words, _)| is_said(words)) {
        Some((_, code)) => dialect.failure(code, message),
        None => Failure::new(
            ErrorKind::Unavailable,
            format!("the database says: {}", without_data(message)),
        ),
    }
}

/// Text after a quotation mark or a colon may be data.
fn without_data(message: &str) -> String {
    let start = message.split(['\'', '"', ':']).next().unwrap_or_default().trim_end();
    start.chars().take(200).collect()
}

/// The reason why a pool could not connect.
#[cfg(any(feature = "deadpool", feature = "bb8"))]
pub(crate) fn connect(error: &diesel_async::pooled_connection::PoolError) -> Failure {
    use diesel_async::pooled_connection::PoolError::{ConnectionError, QueryError};
    match error {
        ConnectionError(error) => connection(error),
        QueryError(_) => Failure::new(ErrorKind::Unavailable, LOST),
    }
}

fn connection(error: &ConnectionError) -> Failure {
    match error {
        ConnectionError::InvalidConnectionUrl(_) | ConnectionError::InvalidCString(_) => {
            Failure::new(ErrorKind::Config, "the URL of the pool's connections cannot be used")
        }
        // The server's message and other errors, which the libraries do not distinguish.
        ConnectionError::CouldntSetupConfiguration(Error::DatabaseError(_, said)) => {
            if said.message().contains("prepared statement") {
                return by_message(Dialect::Postgres, said.message());
            }
            refused(said.message())
        }
        ConnectionError::BadConnection(said) => refused(said),
        _ => Failure::new(ErrorKind::Unavailable, LOST),
    }
}

/// The reason why a server refused a connection. Its text is not quoted, because the database is
/// not known here.
fn refused(said: &str) -> Failure {
    const LOGIN: &str = "the server refuses the login; correct the user and the password of the \
                         pool, or let an administrator allow this login";
    for (words, advice) in [
        ("authentication failed", LOGIN),
        ("Access denied", LOGIN),
        ("no pg_hba.conf entry", LOGIN),
        ("is not allowed to connect", LOGIN),
        (
            "does not exist",
            "the server has no such database or user; create it, or correct the URL",
        ),
        ("Unknown database", "the server has no such database; create it, or correct the URL"),
    ] {
        if said.contains(words) {
            return Failure::new(ErrorKind::Denied, advice);
        }
    }
    for words in [
        "too many clients",
        "too many connections",
        "remaining connection slots",
        "Too many connections",
        "max_user_connections",
    ] {
        if said.contains(words) {
            let advice = "the server has too many connections; raise its limit, or let the pools \
                          have fewer";
            return Failure::new(ErrorKind::Unavailable, advice);
        }
    }
    Failure::new(ErrorKind::Unavailable, LOST)
}

/// The reason why the task of a call ended without an answer.
pub(crate) fn no_answer(error: Option<&JoinError>) -> Failure {
    if error.is_some_and(JoinError::is_panic) {
        let reason = "the call has panicked; please report what the panic said";
        return Failure::new(ErrorKind::Unavailable, reason);
    }
    Failure::new(
        ErrorKind::Closed,
        "the Tokio runtime of this call is shut down; call it from a task of a running runtime",
    )
}

pub(crate) const NO_CONNECTION: &str = "no connection within the timeout of the pool: the server does not answer, or all connections \
     are in use; look at the server, let the pool have more connections, or hold them for a \
     shorter time";

/// The reason why a started statement is not finished yet.
pub(crate) const NOT_DONE: &str = "the statement has begun, and the database has not finished it: look for a lock on the table, \
     an overloaded server, or a network that has fallen silent";

pub(crate) fn pool_timed_out() -> Failure {
    Failure::new(ErrorKind::Timeout, NO_CONNECTION)
}

/// The reason why r2d2 has no connection to SQLite: its last error, if any.
#[cfg(feature = "sqlite")]
pub(crate) fn not_connected(said: &str) -> Failure {
    let is_known =
        SQLITE.iter().any(|(words, _)| words.iter().all(|word| lower(said).contains(word)));
    if is_known { by_message(Dialect::Sqlite, &lower(said)) } else { pool_timed_out() }
}

#[cfg(feature = "sqlite")]
fn lower(said: &str) -> String {
    said.to_ascii_lowercase()
}

#[cfg(feature = "deadpool")]
pub(crate) fn pool_closed() -> Failure {
    Failure::new(ErrorKind::Closed, "the application has closed its pool")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(dialect: Dialect, message: &str) -> Failure {
        let kind = DatabaseErrorKind::Unknown;
        failure(dialect, &Error::DatabaseError(kind, Box::new(message.to_owned())))
    }

    #[test]
    fn messages_have_the_meaning_of_their_codes() {
        use Dialect::{MySql, Postgres, Sqlite};
        for (dialect, message) in [
            (Postgres, "deadlock detected"),
            (MySql, "Deadlock found when trying to get lock; try restarting transaction"),
            (Sqlite, "database is locked"),
        ] {
            assert!(said(dialect, message).is_conflict(), "{message}");
        }
        for (dialect, message, kind) in [
            (Postgres, "relation \"bentocache\" does not exist", ErrorKind::Denied),
            (Postgres, "schema \"app\" does not exist", ErrorKind::Denied),
            (Postgres, "permission denied for table bentocache", ErrorKind::Denied),
            (Postgres, "cannot execute INSERT in a read-only transaction", ErrorKind::Denied),
            (Postgres, "could not extend file: No space left on device", ErrorKind::Full),
            (Postgres, "prepared statement \"s1\" already exists", ErrorKind::Unavailable),
            (Postgres, "canceling statement due to statement timeout", ErrorKind::Timeout),
            (MySql, "Table 'test.bentocache' doesn't exist", ErrorKind::Denied),
            (MySql, "INSERT command denied to user 'a'@'b' for table 'c'", ErrorKind::Denied),
            (MySql, "The MariaDB server is running with the --read-only option", ErrorKind::Denied),
            (MySql, "The table 'bentocache' is full", ErrorKind::Full),
            (MySql, "Specified key was too long; max key length is 767 bytes", ErrorKind::Denied),
            (MySql, "Got a packet bigger than 'max_allowed_packet' bytes", ErrorKind::TooLarge),
            (Sqlite, "no such table: bentocache", ErrorKind::Denied),
            (Sqlite, "attempt to write a readonly database", ErrorKind::Denied),
            (Sqlite, "database or disk is full", ErrorKind::Full),
            (Sqlite, "string or blob too big", ErrorKind::TooLarge),
        ] {
            let error = said(dialect, message).error(dialect.name(), "get");
            assert_eq!(error.kind(), kind, "{message}: {error}");
        }
    }

    #[test]
    fn refused_connections_say_who_has_to_act() {
        for (said, kind) in [
            ("password authentication failed for user \"a\"", ErrorKind::Denied),
            ("no pg_hba.conf entry for host \"h\"", ErrorKind::Denied),
            ("database \"d\" does not exist", ErrorKind::Denied),
            ("Access denied for user 'a'@'b' (using password: YES)", ErrorKind::Denied),
            ("Unknown database 'd'", ErrorKind::Denied),
            ("sorry, too many clients already", ErrorKind::Unavailable),
            ("Too many connections", ErrorKind::Unavailable),
            ("connection reset by peer", ErrorKind::Unavailable),
        ] {
            let error = refused(said).error("x", "get");
            assert_eq!(error.kind(), kind, "{said}: {error}");
        }
        assert!(said(Dialect::Postgres, "cached plan must not change result type").is_stale_plan());
        assert!(said(Dialect::Postgres, "relation \"a\" does not exist").is_missing_table());
    }

    #[test]
    fn data_and_passwords_are_not_repeated() {
        for message in ["Incorrect value: 'secret'", "invalid \"secret\"", "wrong: secret"] {
            let error = said(Dialect::MySql, message).error("mysql", "set").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let url = ConnectionError::InvalidConnectionUrl("mysql://u:secret@h".into());
        let error = connection(&url).error("mysql", "get");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
