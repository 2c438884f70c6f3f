//! What an error of Diesel means.

use bentocache_core::ErrorKind;
use bentocache_sql::{Dialect, Failure};
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error};

const LOST: &str = "the connection was lost or could not be made";

/// What the databases say, and the code that goes with it, which Diesel does not pass on.
const POSTGRES: &[(&str, &str)] = &[
    ("deadlock detected", "40P01"),
    ("permission denied", "42501"),
    ("canceling statement", "57014"),
    ("too many clients", "53300"),
    ("remaining connection slots", "53300"),
    ("index row", "54000"),
    ("authentication failed", "28P01"),
    ("does not exist", "42P01"),
];
const MYSQL: &[(&str, &str)] = &[
    ("Deadlock found", "1213"),
    ("Record has changed since last read", "1020"),
    ("Lock wait timeout", "1205"),
    ("max_allowed_packet", "1153"),
    ("Too many connections", "1040"),
    ("Access denied", "1045"),
    ("command denied", "1142"),
    ("Unknown database", "1049"),
    ("Data too long", "1406"),
    ("doesn't exist", "1146"),
];
const SQLITE: &[(&str, &str)] = &[
    ("database is locked", "5"),
    ("table is locked", "6"),
    ("readonly database", "8"),
    ("malformed", "11"),
    ("disk is full", "13"),
    ("unable to open", "14"),
    ("too big", "18"),
    ("not a database", "26"),
    ("no such table", "1"),
];

/// The reason of a failed statement.
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
        // Of the library: none of them has data in it.
        error => Failure::new(ErrorKind::Unavailable, error.to_string()),
    }
}

fn by_message(dialect: Dialect, message: &str) -> Failure {
    let known = match dialect {
        Dialect::Postgres => POSTGRES,
        Dialect::MySql => MYSQL,
        _ => SQLITE,
    };
    match known.iter().find(|(words, _)| message.contains(words)) {
        Some((_, code)) => dialect.failure(code, message),
        None => Failure::new(
            ErrorKind::Unavailable,
            format!("the database says: {}", without_data(message)),
        ),
    }
}

/// What follows a quotation mark or a colon may be data.
fn without_data(message: &str) -> String {
    let start = message.split(['\'', '"', ':']).next().unwrap_or_default().trim_end();
    start.chars().take(200).collect()
}

/// Why a pool could not connect.
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
        // What the server says, among other things that the libraries do not tell from it.
        ConnectionError::CouldntSetupConfiguration(Error::DatabaseError(_, said)) => {
            refused(said.message())
        }
        ConnectionError::BadConnection(said) => refused(said),
        _ => Failure::new(ErrorKind::Unavailable, LOST),
    }
}

/// Whether the settings are wrong, or the server is.
fn refused(said: &str) -> Failure {
    for (words, advice) in [
        ("authentication failed", "the server does not take the user or the password"),
        ("Access denied", "the server does not take the user or the password"),
        ("does not exist", "the server has no such database or user"),
        ("Unknown database", "the server has no such database"),
    ] {
        if said.contains(words) {
            return Failure::new(ErrorKind::Config, advice);
        }
    }
    for words in ["too many clients", "remaining connection slots", "Too many connections"] {
        if said.contains(words) {
            let advice = "the server has too many connections; raise its max_connections, or let \
                          the pools have fewer";
            return Failure::new(ErrorKind::Unavailable, advice);
        }
    }
    Failure::new(ErrorKind::Unavailable, LOST)
}

pub(crate) fn no_answer() -> Failure {
    Failure::new(ErrorKind::Unavailable, "the call ended with the runtime, or has panicked")
}

pub(crate) fn pool_timed_out() -> Failure {
    Failure::new(
        ErrorKind::Timeout,
        "no connection within the timeout of the pool: the server does not answer, or all \
         connections are in use; look at the server, let the pool have more connections, or hold \
         them for a shorter time",
    )
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
            (Postgres, "relation \"bentocache\" does not exist", ErrorKind::Config),
            (Postgres, "permission denied for table bentocache", ErrorKind::Config),
            (Postgres, "canceling statement due to statement timeout", ErrorKind::Timeout),
            (MySql, "Table 'test.bentocache' doesn't exist", ErrorKind::Config),
            (MySql, "Got a packet bigger than 'max_allowed_packet' bytes", ErrorKind::TooLarge),
            (Sqlite, "no such table: bentocache", ErrorKind::Config),
            (Sqlite, "string or blob too big", ErrorKind::TooLarge),
        ] {
            let error = said(dialect, message).error(dialect.name(), "get");
            assert_eq!(error.kind(), kind, "{message}: {error}");
        }
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
