//! The pools of applications.

use std::future::Future;
use std::ops::DerefMut;

use bentocache_sql::Failure;

/// A pool of connections `C` of diesel-async. It is implemented for pools of deadpool and bb8; for
/// another pool, implement it on a type of your own.
pub trait Pool<C>: Clone + Send + Sync + 'static {
    /// A connection that returns to the pool when it is dropped.
    type Connection: DerefMut<Target = C> + Send + 'static;

    /// Waits for a connection. The future may be dropped at any `await`.
    ///
    /// # Errors
    /// If there is none.
    fn connection(&self) -> impl Future<Output = Result<Self::Connection, Failure>> + Send;

    /// The largest number of connections, of which the cache's writes hold at most half. Default:
    /// unknown.
    fn max_connections(&self) -> Option<usize> {
        None
    }
}

#[cfg(feature = "deadpool")]
mod of_deadpool {
    use bentocache_driver::ErrorKind;
    use bentocache_sql::Failure;
    use diesel_async::pooled_connection::AsyncDieselConnectionManager as Manager;
    use diesel_async::pooled_connection::deadpool::{Object, Pool, PoolError};

    use crate::failure;

    impl<C> super::Pool<C> for Pool<C>
    where
        C: Send + 'static,
        Manager<C>: deadpool::managed::Manager<Type = C, Error = diesel_async::pooled_connection::PoolError>,
    {
        type Connection = Object<C>;

        async fn connection(&self) -> Result<Object<C>, Failure> {
            self.get().await.map_err(|error| match error {
                PoolError::Timeout(_) => failure::pool_timed_out(),
                PoolError::Closed => failure::pool_closed(),
                PoolError::Backend(error) => failure::connect(&error),
                // Texts of the pool, which contain no data.
                error => Failure::new(ErrorKind::Config, error.to_string()),
            })
        }

        fn max_connections(&self) -> Option<usize> {
            Some(self.status().max_size)
        }
    }
}

#[cfg(feature = "bb8")]
mod of_bb8 {
    use bb8::RunError;
    use bentocache_sql::Failure;
    use diesel_async::pooled_connection::AsyncDieselConnectionManager as Manager;
    use diesel_async::pooled_connection::bb8::Pool;

    use crate::failure;

    impl<C> super::Pool<C> for Pool<C>
    where
        C: Send + 'static,
        Manager<C>: bb8::ManageConnection<
                Connection = C,
                Error = diesel_async::pooled_connection::PoolError,
            >,
    {
        type Connection = bb8::PooledConnection<'static, Manager<C>>;

        async fn connection(&self) -> Result<Self::Connection, Failure> {
            // The pool would try until its timeout without telling the reason.
            if self.state().connections == 0 {
                let first = self.dedicated_connection().await;
                drop(first.map_err(|error| failure::connect(&error))?);
            }
            // In a task of its own: a connection dropped in the middle of its ping would return to
            // the pool and give its next user the answer to the ping.
            let pool = self.clone();
            let connecting = tokio::spawn(async move { pool.get_owned().await });
            match connecting.await {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(RunError::TimedOut)) => Err(failure::pool_timed_out()),
                Ok(Err(RunError::User(error))) => Err(failure::connect(&error)),
                Err(error) => Err(failure::no_answer(Some(&error))),
            }
        }

        fn max_connections(&self) -> Option<usize> {
            usize::try_from(self.config().max_size).ok()
        }
    }
}
