//! The connection for commands: one, multiplexed, and replaced when it is lost.
//!
//! A task per connection opens it, pings it, and opens it again with growing pauses for as long
//! as the driver lives. Calls that come while the first attempt after a loss is under way wait for
//! it; after that they fail at once with its reason until an attempt succeeds, so that a dead
//! server costs no time. The task also asks the sentinels anew each time, which a plain
//! reconnecting connection cannot do.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bentocache_core::{DriverError, Link, LinkStream};
use futures_util::{StreamExt, future, stream};
use redis::aio::{ConnectionLike, ConnectionManager, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cluster;
use crate::connect::{Connect, Given, Options, Target};
use crate::error::{self, Failure, Place};

/// How long a connection must have lived to be replaced because its server became a replica.
const SETTLED: Duration = Duration::from_secs(1);

/// A connection of one of the kinds.
#[derive(Clone)]
pub(crate) enum Conn {
    Node(MultiplexedConnection),
    Manager(ConnectionManager),
    Cluster(ClusterConnection),
}

/// What a call does: the end of the sentence "cannot …", and whether a second time does no harm.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) doing: &'static str,
    pub(crate) repeats: bool,
}

impl Call {
    pub(crate) const fn once(doing: &'static str) -> Self {
        Self { doing, repeats: false }
    }

    /// A call that is made again if the connection turns out to be dead.
    pub(crate) const fn again(doing: &'static str) -> Self {
        Self { doing, repeats: true }
    }
}

#[derive(Clone)]
enum State {
    /// The first attempt is under way.
    Opening,
    Up {
        conn: Conn,
        id: u64,
        since: Instant,
    },
    /// The last attempt failed; others follow.
    Down(Arc<Failure>),
    Closed,
}

/// The connection of a driver, made when it is first needed.
pub(crate) struct Line {
    connect: Connect,
    place: Place,
    /// Any node of a cluster will do: for messages, which go everywhere.
    any_node: bool,
    open: OnceLock<Open>,
}

struct Open {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
}

struct Shared {
    target: Target,
    place: Place,
    options: Options,
    any_node: bool,
    state: watch::Sender<State>,
    /// A call had no answer: ping now.
    doubt: Notify,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Line {
    pub(crate) fn new(connect: Connect) -> Self {
        let place = connect.place();
        Self { connect, place, any_node: false, open: OnceLock::new() }
    }

    pub(crate) fn to_any_node(connect: Connect) -> Self {
        Self { any_node: true, ..Self::new(connect) }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn connect(&self) -> &Connect {
        &self.connect
    }

    /// Understands the settings, and starts the task when there is none.
    fn open(&self, options: &Options) -> Result<&Open, DriverError> {
        if let Some(open) = self.open.get() {
            return Ok(open);
        }
        let target = self.connect.target(options)?;
        Ok(self.open.get_or_init(|| {
            let state = match &target {
                Target::Given(given) => up(given.clone().into(), 0),
                _ => State::Opening,
            };
            let has_task = !matches!(target, Target::Given(_));
            let shared = Arc::new(Shared {
                target,
                place: self.place.clone(),
                options: options.clone(),
                any_node: self.any_node,
                state: watch::Sender::new(state),
                doubt: Notify::new(),
            });
            let task = has_task.then(|| tokio::spawn(keep(Arc::clone(&shared))));
            Open { shared, task }
        }))
    }

    /// Waits for the outcome of the first attempt. What an operator would have to repair fails
    /// the build.
    pub(crate) async fn ready(&self, options: &Options) -> Result<(), DriverError> {
        self.open(options)?.shared.conn("connect").await.map(drop).map_err(error::at_build)
    }

    /// Waits for a connection; returns a number that changes when it is replaced.
    pub(crate) async fn connected(
        &self,
        options: &Options,
        doing: &'static str,
    ) -> Result<u64, DriverError> {
        Ok(self.open(options)?.shared.conn(doing).await?.1)
    }

    pub(crate) async fn cluster(
        &self,
        options: &Options,
        doing: &'static str,
    ) -> Result<Option<ClusterConnection>, DriverError> {
        match self.open(options)?.shared.conn(doing).await? {
            (Conn::Cluster(cluster), _) => Ok(Some(cluster)),
            _ => Ok(None),
        }
    }

    /// Sends one command.
    pub(crate) async fn query(
        &self,
        options: &Options,
        call: Call,
        cmd: &Cmd,
    ) -> Result<Value, DriverError> {
        self.try_query(options, call, cmd)
            .await?
            .map_err(|error| self.place().failed(call.doing, &error))
    }

    /// The same, with the error of the server as it is.
    pub(crate) async fn try_query(
        &self,
        options: &Options,
        call: Call,
        cmd: &Cmd,
    ) -> Result<RedisResult<Value>, DriverError> {
        let shared = &self.open(options)?.shared;
        shared.run(call, |mut conn| async move { cmd.query_async(&mut conn).await }).await
    }

    /// Sends many commands in one round trip, each to where it belongs.
    pub(crate) async fn query_all(
        &self,
        options: &Options,
        call: Call,
        cmds: Vec<Cmd>,
    ) -> Result<Vec<Value>, DriverError> {
        let shared = &self.open(options)?.shared;
        let answers = if shared.target.is_cluster() {
            let cmds = &cmds;
            shared
                .run(call, |conn| async move {
                    let each = cmds.iter().map(|cmd| {
                        let mut conn = conn.clone();
                        async move { cmd.query_async(&mut conn).await }
                    });
                    future::try_join_all(each).await
                })
                .await?
        } else {
            let mut pipeline = Pipeline::with_capacity(cmds.len());
            for cmd in cmds {
                pipeline.add_command(cmd);
            }
            let pipeline = &pipeline;
            shared
                .run(call, |mut conn| async move { pipeline.query_async(&mut conn).await })
                .await?
        };
        answers.map_err(|error| self.place().failed(call.doing, &error))
    }

    /// Sends many commands to the one server in one round trip; each has an answer of its own.
    pub(crate) async fn query_each(
        &self,
        options: &Options,
        call: Call,
        cmds: Vec<Cmd>,
    ) -> Result<Vec<RedisResult<Value>>, DriverError> {
        let shared = &self.open(options)?.shared;
        let expected = cmds.len();
        let mut pipeline = Pipeline::with_capacity(expected);
        pipeline.ignore_errors();
        for cmd in cmds {
            pipeline.add_command(cmd);
        }
        let pipeline = &pipeline;
        let answers = shared.run(call, |mut conn| async move {
            let answers: Vec<RedisResult<Value>> = pipeline.query_async(&mut conn).await?;
            // A server that has become a replica refuses all of them.
            let refusal = answers.iter().filter_map(|answer| answer.as_ref().err());
            match refusal.into_iter().find(|error| error::is_demoted(error)) {
                Some(error) => Err(error.clone()),
                None => Ok(answers),
            }
        });
        let answers = answers.await?.map_err(|error| self.place().failed(call.doing, &error))?;
        if answers.len() == expected { Ok(answers) } else { Err(self.place().odd(call.doing)) }
    }

    /// The connection to the one server, and a number that changes when it is replaced.
    pub(crate) async fn node(
        &self,
        options: &Options,
        doing: &'static str,
    ) -> Result<Option<(MultiplexedConnection, u64)>, DriverError> {
        match self.open(options)?.shared.conn(doing).await? {
            (Conn::Node(conn), id) => Ok(Some((conn, id))),
            _ => Ok(None),
        }
    }

    /// Returns when the connection of that number is not the one any more.
    pub(crate) async fn replaced(&self, id: u64) {
        if let Some(open) = self.open.get() {
            open.shared.replaced(id).await;
        }
    }

    /// Reports losses and returns of the connection. A cluster has several, and a connection of
    /// the application's own reports to nobody.
    pub(crate) fn link(&self, options: &Options) -> Option<LinkStream> {
        let shared = &self.open(options).ok()?.shared;
        if shared.target.is_cluster() || matches!(shared.target, Target::Given(_)) {
            return None;
        }
        let state = shared.state.subscribe();
        let changes =
            stream::unfold((state, None, Vec::new()), |(mut state, last, mut due)| async move {
                let mut last: Option<u64> = last;
                loop {
                    if let Some(link) = due.pop() {
                        return Some((link, (state, last, due)));
                    }
                    let now = match &*state.borrow_and_update() {
                        State::Up { id, .. } => Ok(*id),
                        State::Opening => Err(false),
                        State::Down(_) => Err(true),
                        State::Closed => return None,
                    };
                    // The last one of `due` is the first to be reported.
                    match (last, now) {
                        (None, Ok(id)) => {
                            due.push(Link::Restored);
                            last = Some(id);
                        }
                        (Some(before), Ok(id)) if before != id => {
                            due.extend([Link::Restored, Link::Lost]);
                            last = Some(id);
                        }
                        (Some(_), Err(_)) => {
                            due.push(Link::Lost);
                            last = None;
                        }
                        _ => state.changed().await.ok()?,
                    }
                }
            });
        Some(changes.boxed())
    }

    pub(crate) fn close(&self) {
        if let Some(open) = self.open.get() {
            open.shared.state.send_replace(State::Closed);
            if let Some(task) = &open.task {
                task.abort();
            }
        }
    }

    /// The cluster that this line leads to, if it does.
    pub(crate) fn target(&self, options: &Options) -> Result<&Target, DriverError> {
        Ok(&self.open(options)?.shared.target)
    }
}

/// Has the connection pinged at once when a call ends without an answer, be it that its caller
/// does not wait any longer.
struct Patience<'a> {
    doubt: &'a Notify,
    is_over: bool,
}

impl Patience<'_> {
    fn had_answer(mut self, had_one: bool) {
        self.is_over = !had_one;
    }
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.is_over {
            self.doubt.notify_one();
        }
    }
}

fn up(conn: Conn, id: u64) -> State {
    State::Up { conn, id, since: Instant::now() }
}

impl Shared {
    async fn conn(&self, doing: &'static str) -> Result<(Conn, u64), DriverError> {
        if let Some(found) = conn_of(&self.state.borrow(), doing) {
            return found;
        }
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, State::Opening)).await;
        match state {
            Ok(state) => conn_of(&state, doing).unwrap_or_else(|| Err(error::closed())),
            Err(_) => Err(error::closed()),
        }
    }

    async fn run<T, Answer: Future<Output = RedisResult<T>>>(
        &self,
        call: Call,
        ask: impl Fn(Conn) -> Answer,
    ) -> Result<RedisResult<T>, DriverError> {
        let mut is_last = !call.repeats;
        loop {
            let (conn, id) = self.conn(call.doing).await?;
            let patience = Patience { doubt: &self.doubt, is_over: true };
            let answer = timeout(self.options.timeout, ask(conn)).await;
            patience.had_answer(answer.is_ok());
            match answer {
                Ok(Err(error)) if error::is_lost(&error) => {
                    // A connection to a cluster has lost one of many, which it repairs itself.
                    if !self.target.is_cluster() || self.any_node {
                        self.replace(id, Duration::ZERO);
                    }
                    if is_last {
                        return Ok(Err(error));
                    }
                    is_last = true;
                }
                Ok(answer) => {
                    if answer.as_ref().is_err_and(error::is_demoted) && !self.target.is_cluster() {
                        self.replace(id, SETTLED);
                    }
                    return Ok(answer);
                }
                Err(_) => return Err(self.place.late(call.doing, self.options.timeout)),
            }
        }
    }

    /// Has that connection replaced, unless it is younger or was given.
    fn replace(&self, old: u64, min_age: Duration) {
        let is_given = matches!(self.target, Target::Given(_));
        self.state.send_if_modified(|state| match state {
            State::Up { id, since, .. }
                if *id == old && since.elapsed() >= min_age && !is_given =>
            {
                *state = State::Opening;
                true
            }
            _ => false,
        });
    }

    async fn dial(&self, attempt: usize) -> RedisResult<Conn> {
        if let (Target::Cluster(cluster), false) = (&self.target, self.any_node) {
            return cluster.connection().await.map(Conn::Cluster);
        }
        let client = self.target.node(attempt).await?;
        let config = Target::options_for_node(self.options.connect_timeout);
        let mut conn = client.get_multiplexed_async_connection_with_config(&config).await?;
        if let Target::Cluster(cluster) = &self.target {
            cluster.remember(&cluster::nodes(&client, &mut conn).await?.all);
        }
        Ok(Conn::Node(conn))
    }

    async fn replaced(&self, id: u64) {
        let mut state = self.state.subscribe();
        let is_other = |state: &State| !matches!(state, State::Up { id: now, .. } if *now == id);
        let _ = state.wait_for(is_other).await;
    }

    /// Returns when the connection must be replaced.
    ///
    /// The one to a cluster is pinged too, at any of its nodes: the client's task can come to a
    /// standstill for good, when many calls are redirected at once in a failover (redis 1.8.1).
    async fn watch(&self, mut conn: Conn, id: u64) {
        let pings = async {
            loop {
                let _ = timeout(self.options.ping_interval, self.doubt.notified()).await;
                let ping = redis::cmd("PING");
                let ping = ping.query_async::<Value>(&mut conn);
                match timeout(self.options.timeout, ping).await {
                    // A server that is loading or forbids it answers all the same.
                    Ok(Err(error)) if !error::is_lost(&error) && !error.is_timeout() => {}
                    Ok(Ok(_)) => {}
                    _ => return,
                }
            }
        };
        tokio::select! {
            () = self.replaced(id) => {}
            () = pings => self.replace(id, Duration::ZERO),
        }
    }
}

fn conn_of(state: &State, doing: &str) -> Option<Result<(Conn, u64), DriverError>> {
    match state {
        State::Up { conn, id, .. } => Some(Ok((conn.clone(), *id))),
        State::Down(failure) => Some(Err(failure.error(doing))),
        State::Closed => Some(Err(error::closed())),
        State::Opening => None,
    }
}

/// The task that keeps the connection, until it is aborted.
async fn keep(shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    for id in 1.. {
        let limit = shared.options.connect_timeout;
        let failure = match timeout(limit, shared.dial(backoff.attempt())).await {
            Ok(Ok(conn)) => {
                backoff = Backoff::after(&backoff);
                if !shared.publish(up(conn.clone(), id)) {
                    return;
                }
                shared.watch(conn, id).await;
                continue;
            }
            Ok(Err(error)) => shared.place.failure(&error),
            Err(_) => shared.place.no_connection(limit),
        };
        tracing::debug!(reason = %failure, "no connection to redis");
        if !shared.publish(State::Down(Arc::new(failure))) {
            return;
        }
        backoff.pause().await;
    }
}

impl Shared {
    /// Whether the line is still open.
    fn publish(&self, next: State) -> bool {
        self.state.send_if_modified(|state| {
            let is_open = !matches!(state, State::Closed);
            if is_open {
                *state = next;
            }
            is_open
        })
    }
}

/// Pauses between attempts: growing, and jittered so that processes do not come all at once.
#[derive(Default)]
pub(crate) struct Backoff {
    attempt: usize,
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    /// A fresh start that goes on with the next server.
    pub(crate) fn after(other: &Self) -> Self {
        Self { attempt: other.attempt + 1, failures: 0 }
    }

    /// Counts the servers that were tried.
    pub(crate) fn attempt(&self) -> usize {
        self.attempt
    }

    pub(crate) async fn pause(&mut self) {
        let longest = (Self::FIRST * 2_u32.pow(self.failures.min(6))).min(Self::LONGEST);
        self.attempt += 1;
        self.failures += 1;
        tokio::time::sleep(longest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

impl From<Given> for Conn {
    fn from(given: Given) -> Self {
        match given {
            Given::Multiplexed(conn) => Self::Node(conn),
            Given::Manager(conn) => Self::Manager(conn),
            Given::Cluster(conn) => Self::Cluster(conn),
        }
    }
}

impl ConnectionLike for Conn {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Node(conn) => conn.req_packed_command(cmd),
            Self::Manager(conn) => conn.req_packed_command(cmd),
            Self::Cluster(conn) => conn.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Node(conn) => conn.req_packed_commands(pipeline, offset, count),
            Self::Manager(conn) => conn.req_packed_commands(pipeline, offset, count),
            Self::Cluster(conn) => conn.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Node(conn) => conn.get_db(),
            Self::Manager(conn) => conn.get_db(),
            Self::Cluster(conn) => conn.get_db(),
        }
    }
}
