//! The differences between the servers of diesel-async.

use std::future::Future;

use bentocache_sql::{Dialect, Statement};
use diesel_async::AsyncConnection;

/// A connection to a server that can cancel a statement.
pub(crate) trait Server: AsyncConnection {
    const DIALECT: Dialect;

    /// The parameters to cancel the statement of this connection.
    type Canceller: Send + 'static;

    fn canceller(&self) -> Self::Canceller;

    /// Cancels the statement on the server, because after its connection is closed it could still
    /// wait for a lock.
    fn cancel(canceller: Self::Canceller) -> impl Future<Output = ()> + Send;

    /// The text that begins the transaction of a statement, if it needs one.
    fn begin(statement: &Statement<'_>, is_behind_pooler: bool) -> Option<&'static str>;
}

#[cfg(feature = "postgres")]
impl Server for diesel_async::AsyncPgConnection {
    const DIALECT: Dialect = Dialect::Postgres;

    type Canceller = tokio_postgres::CancelToken;

    fn canceller(&self) -> Self::Canceller {
        self.cancel_token()
    }

    /// Without TLS, because the request contains no data; a URL that insists on TLS prevents it.
    async fn cancel(canceller: Self::Canceller) {
        let _ = canceller.cancel_query(tokio_postgres::NoTls).await;
    }

    /// A long statement may be working and is not cancelled, so it must not wait for a lock either.
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

    /// The statements contain their time limit for MariaDB.
    async fn cancel((): Self::Canceller) {}

    fn begin(_: &Statement<'_>, _: bool) -> Option<&'static str> {
        None
    }
}
