//! What is different with the servers that diesel-async connects to.

use std::future::Future;

use bentocache_sql::{Dialect, Statement};
use diesel_async::AsyncConnection;

/// A connection to a server that can be told to end a statement.
pub(crate) trait Server: AsyncConnection {
    const DIALECT: Dialect;

    /// What it takes to cancel what runs on this connection.
    type Canceller: Send + 'static;

    fn canceller(&self) -> Self::Canceller;

    /// Ends the statement on the server, as its connection may be closed and it still waits for a lock.
    fn cancel(canceller: Self::Canceller) -> impl Future<Output = ()> + Send;

    /// What begins the transaction that a statement needs, if it needs one.
    fn begin(statement: &Statement<'_>, is_behind_pooler: bool) -> Option<&'static str>;
}

#[cfg(feature = "postgres")]
impl Server for diesel_async::AsyncPgConnection {
    const DIALECT: Dialect = Dialect::Postgres;

    type Canceller = tokio_postgres::CancelToken;

    fn canceller(&self) -> Self::Canceller {
        self.cancel_token()
    }

    /// Without TLS, which the request needs none of; a URL that insists on TLS prevents it.
    async fn cancel(canceller: Self::Canceller) {
        let _ = canceller.cancel_query(tokio_postgres::NoTls).await;
    }

    /// A long statement may be at work and is not cancelled, so it must not wait for a lock either.
    fn begin(statement: &Statement<'_>, is_behind_pooler: bool) -> Option<&'static str> {
        match (statement.is_long, is_behind_pooler) {
            (true, _) => Some("begin; set local lock_timeout = 10000"),
            (false, true) => Some("begin; set local statement_timeout = 10000"),
            (false, false) => None,
        }
    }
}

#[cfg(feature = "mysql")]
impl Server for diesel_async::AsyncMysqlConnection {
    const DIALECT: Dialect = Dialect::MySql;

    type Canceller = ();

    fn canceller(&self) -> Self::Canceller {}

    /// The statements say themselves how long MariaDB may take for them.
    async fn cancel((): Self::Canceller) {}

    fn begin(_: &Statement<'_>, _: bool) -> Option<&'static str> {
        None
    }
}
