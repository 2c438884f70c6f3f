//! Statements over the pools.

use std::fmt;
use std::marker::PhantomData;

/// A pool of connections `C`, for [`SqlAdapter`](bentocache::sql::SqlAdapter).
pub struct Diesel<C, P> {
    pool: P,
    connection: PhantomData<fn() -> C>,
}

impl<C, P> Diesel<C, P> {
    /// Over a pool of the application's, which stays open when the cache is disconnected.
    pub fn new(pool: P) -> Self {
        Self { pool, connection: PhantomData }
    }
}

impl<C, P> fmt::Debug for Diesel<C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the pool: there may be a password in its URL.
        f.debug_struct("Diesel").finish_non_exhaustive()
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
mod over_async {
    use std::time::Duration;

    use bentocache_sql::{Database, Dialect, Failure, Rows, Statement};
    use diesel::QueryResult;
    use diesel_async::methods::{ExecuteDsl, LoadQuery};
    use diesel_async::{AsyncConnection, RunQueryDsl, TransactionManager};
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::Diesel;
    use crate::Pool;
    use crate::failure::{failure, no_answer};
    use crate::statement::Owned;

    /// How long a statement may go on that nobody waits for any more. After that its connection is
    /// given up, as a server that does not answer would hold it for good.
    const ABANDONED: Duration = Duration::from_secs(10);

    /// What is wanted of a statement.
    #[derive(Clone, Copy)]
    enum Wanted {
        Count,
        Rows,
    }

    /// Runs a statement in a task of its own: a connection whose call was dropped half way would
    /// give its next caller the answer to this one.
    async fn run<C, P>(
        dialect: Dialect,
        pool: &P,
        statement: &Statement<'_>,
        wanted: Wanted,
    ) -> Result<(usize, Rows), Failure>
    where
        C: AsyncConnection + 'static,
        P: Pool<C>,
        Owned: ExecuteDsl<C> + for<'q> LoadQuery<'q, C, (Vec<u8>, Vec<u8>)>,
    {
        let (mut answer, answered) = oneshot::channel();
        let (pool, statement) = (pool.clone(), Owned::from(statement));
        let running = tokio::spawn(async move {
            let connection = tokio::select! {
                connection = pool.connection() => connection,
                () = answer.closed() => return,
            };
            let mut connection = match connection {
                Ok(connection) => connection,
                Err(failure) => {
                    let _ = answer.send(Err(failure));
                    return;
                }
            };
            let outcome = tokio::select! {
                outcome = on(&mut *connection, statement, wanted) => Some(outcome),
                () = async { answer.closed().await; sleep(ABANDONED).await } => None,
            };
            match outcome {
                Some(outcome) => {
                    let outcome = outcome.map_err(|error| failure(dialect, &error));
                    let is_useless = |failure: &Failure| {
                        // Its other statements are stale as well; or a new one may lead to a
                        // server that takes writes.
                        failure.is_stale_plan() || failure.is_read_only()
                    };
                    if outcome.as_ref().is_err_and(is_useless) {
                        C::TransactionManager::transaction_manager_status_mut(&mut connection)
                            .set_in_error();
                    }
                    drop(connection);
                    let _ = answer.send(outcome);
                }
                // No pool takes such a connection back.
                None => C::TransactionManager::transaction_manager_status_mut(&mut connection)
                    .set_in_error(),
            }
        });
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer(running.await.err().as_ref())),
        }
    }

    async fn on<C>(
        connection: &mut C,
        statement: Owned,
        wanted: Wanted,
    ) -> QueryResult<(usize, Rows)>
    where
        C: AsyncConnection,
        Owned: ExecuteDsl<C> + for<'q> LoadQuery<'q, C, (Vec<u8>, Vec<u8>)>,
    {
        match wanted {
            Wanted::Count => Ok((statement.execute(connection).await?, Rows::new())),
            Wanted::Rows => Ok((0, statement.load(connection).await?)),
        }
    }

    macro_rules! database {
        ($feature:literal, $connection:ident, $dialect:ident) => {
            #[cfg(feature = $feature)]
            impl<P: Pool<diesel_async::$connection>> Database
                for Diesel<diesel_async::$connection, P>
            {
                fn dialect(&self) -> Dialect {
                    Dialect::$dialect
                }

                async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
                    let ran = run(Dialect::$dialect, &self.pool, statement, Wanted::Count).await?;
                    Ok(ran.0 as u64)
                }

                async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
                    let ran = run(Dialect::$dialect, &self.pool, statement, Wanted::Rows).await?;
                    Ok(ran.1)
                }
            }
        };
    }

    database!("postgres", AsyncPgConnection, Postgres);
    database!("mysql", AsyncMysqlConnection, MySql);
}

#[cfg(feature = "sqlite")]
mod over_threads {
    use std::time::Duration;

    use bentocache_sql::{Database, Dialect, Failure, Rows, Statement};
    use diesel::r2d2::{ConnectionManager, Pool, PooledConnection};
    use diesel::{QueryResult, RunQueryDsl, SqliteConnection};
    use tokio::time::{Instant, sleep};

    use super::Diesel;
    use crate::failure::{failure, no_answer, not_connected};
    use crate::statement::Owned;

    type Sqlite = ConnectionManager<SqliteConnection>;

    /// The pause before the pool is asked for a connection again.
    const PAUSE: Duration = Duration::from_millis(10);
    /// Of so many questions, one makes the pool open a connection.
    const OPEN: u32 = 8;

    /// Waits for a connection without a thread: those of Tokio are the application's, too, and r2d2
    /// would hold one for half a minute.
    async fn connection(pool: &Pool<Sqlite>) -> Result<PooledConnection<Sqlite>, Failure> {
        let deadline = Instant::now() + pool.connection_timeout();
        let mut said = String::new();
        for attempt in 0_u32.. {
            let asked = pool.clone();
            let asking = tokio::task::spawn_blocking(move || {
                let found = asked.try_get();
                // Only this makes the pool open a connection, and says why it could not.
                let opens = found.is_none() && attempt.is_multiple_of(OPEN);
                if opens { asked.get_timeout(Duration::ZERO).map(Some) } else { Ok(found) }
            });
            match asking.await.map_err(|error| no_answer(Some(&error)))? {
                Ok(Some(connection)) => return Ok(connection),
                Ok(None) => {}
                Err(error) => said = error.to_string(),
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(PAUSE).await;
        }
        Err(not_connected(&said))
    }

    impl Diesel<SqliteConnection, Pool<Sqlite>> {
        /// Runs a statement where it may block. As many do as the pool has connections.
        async fn run<T: Send + 'static>(
            &self,
            statement: &Statement<'_>,
            call: impl FnOnce(Owned, &mut SqliteConnection) -> QueryResult<T> + Send + 'static,
        ) -> Result<T, Failure> {
            let mut connection = connection(&self.pool).await?;
            let statement = Owned::from(statement);
            let running = tokio::task::spawn_blocking(move || {
                call(statement, &mut connection).map_err(|error| failure(Dialect::Sqlite, &error))
            });
            running.await.unwrap_or_else(|error| Err(no_answer(Some(&error))))
        }
    }

    impl Database for Diesel<SqliteConnection, Pool<Sqlite>> {
        fn dialect(&self) -> Dialect {
            Dialect::Sqlite
        }

        async fn execute(&self, statement: &Statement<'_>) -> Result<u64, Failure> {
            let count = self.run(statement, RunQueryDsl::execute).await?;
            Ok(count as u64)
        }

        async fn query(&self, statement: &Statement<'_>) -> Result<Rows, Failure> {
            self.run(statement, RunQueryDsl::load).await
        }
    }
}
