//! The connection for commands: one multiplexed connection, which is replaced after a loss.
//!
//! A task ([`keep`](crate::keep)) opens it, and reopens it with growing pauses until the driver is
//! dropped. Calls during the first attempt after a loss wait for that attempt; later calls fail at
//! once with its reason until an attempt succeeds, so that a dead server costs no time.
//!
//! The task runs on the tokio runtime on which the driver was first used. After that runtime has
//! ended, the next call starts another task on its own runtime.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bentocache_driver::{DriverError, Link, LinkStream};
use futures_util::{StreamExt, future, stream};
use redis::aio::MultiplexedConnection;
use redis::cluster_async::ClusterConnection;
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::batch::{self, key_of};
use crate::conn::Conn;
use crate::connect::{Connect, Options, Servers, Settings, Target};
use crate::error::{self, Place};
use crate::fence::{self, ServerClock};
use crate::keep::{Keeper, keep};
use crate::shards::{Shard, Shards};
use crate::state::{Session, Shared, State, Trouble, up};

/// The age from which a connection may be replaced because of an answer of its server.
const SETTLED: Duration = Duration::from_secs(1);
/// A write without an answer for this long was not cancelled but is stuck: the connection is left
/// at once. Before that, a ping decides.
const STUCK: Duration = Duration::from_millis(250);

/// A call: the end of the sentence "cannot …", whether a repetition is harmless, and whether a late
/// arrival is harmful.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) doing: &'static str,
    pub(crate) repeats: bool,
    pub(crate) writes: bool,
}

impl Call {
    /// A change that must not be repeated.
    pub(crate) const fn once(doing: &'static str) -> Self {
        Self { doing, repeats: false, writes: true }
    }

    /// A change that is repeated if the connection turns out to be dead.
    pub(crate) const fn again(doing: &'static str) -> Self {
        Self { doing, repeats: true, writes: true }
    }

    /// A call that may arrive late, and is repeated if the connection turns out to be dead.
    pub(crate) const fn read(doing: &'static str) -> Self {
        Self { doing, repeats: true, writes: false }
    }
}

/// The connection of a driver, which the first use opens.
pub(crate) struct Line {
    settings: Settings,
    place: Place,
    /// Whether any node of a cluster suffices: for messages, which reach all nodes.
    any_node: bool,
    open: RwLock<Option<Open>>,
    is_closed: AtomicBool,
    /// Whether a tracking bus observes the writes of this connection.
    is_tracked: AtomicBool,
    /// Whether a setter was called after that: the bus then observes a connection with the old
    /// settings.
    is_untracked: bool,
}

/// The same settings without the connection, for a setter that is called while another handle
/// exists.
impl Clone for Line {
    fn clone(&self) -> Self {
        let is_untracked = self.is_untracked || self.is_tracked.load(Relaxed);
        Self { any_node: self.any_node, is_untracked, ..Self::of(self.settings.clone()) }
    }
}

struct Open {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
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
        Self::of(Settings { connect, options: Options::default() })
    }

    pub(crate) fn to_any_node(connect: Connect) -> Self {
        Self { any_node: true, ..Self::new(connect) }
    }

    fn of(settings: Settings) -> Self {
        let (place, open) = (settings.connect.place(), RwLock::default());
        let [is_closed, is_tracked] = [(); 2].map(|()| AtomicBool::new(false));
        Self { settings, place, any_node: false, open, is_closed, is_tracked, is_untracked: false }
    }

    /// Another connection with the same settings, to any node.
    pub(crate) fn for_messages(&self) -> Self {
        Self { any_node: true, ..Self::of(self.settings.clone()) }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.settings.options
    }

    pub(crate) fn options_mut(&mut self) -> &mut Options {
        &mut self.settings.options
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn connect(&self) -> &Connect {
        &self.settings.connect
    }

    fn opened(&self) -> Option<Arc<Shared>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|open| Arc::clone(&open.shared))
    }

    /// Validates the settings, and starts the task if there is none.
    fn open(&self) -> Result<Arc<Shared>, DriverError> {
        let running = |open: &Option<Open>| {
            let shared = &open.as_ref()?.shared;
            let has_ended = matches!(*shared.state.borrow(), State::Ended);
            (!has_ended).then(|| Arc::clone(shared))
        };
        // The caller's runtime; the runtime of the driver may have ended.
        let current = Handle::try_current().map_err(|_| error::runtime_ended())?;
        if let Some(shared) = running(&self.open.read().unwrap_or_else(PoisonError::into_inner)) {
            // Calls use timers of the caller's runtime.
            if current.id() != shared.runtime {
                running_runtime()?;
            }
            return Ok(shared);
        }
        if self.is_closed.load(Relaxed) {
            return Err(error::closed());
        }
        let current = running_runtime()?;
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = running(&open) {
            return Ok(shared);
        }
        let servers = self.servers()?;
        let given = match &servers.target {
            Target::Given(given) => Some(given.clone()),
            _ => None,
        };
        let state = given
            .as_ref()
            .map_or(State::Opening, |given| up(given.clone().into(), Arc::new(Session::new(None))));
        let shared = Arc::new(Shared {
            runtime: current.id(),
            servers,
            any_node: self.any_node,
            clock: ServerClock::default(),
            state: watch::Sender::new(state),
            doubt: Notify::new(),
            shards: Shards::default(),
        });
        let keeper = given.is_none().then(|| Keeper(Arc::clone(&shared)));
        let task = keeper.map(|keeper| current.spawn(keep(keeper)));
        *open = Some(Open { shared: Arc::clone(&shared), task });
        Ok(shared)
    }

    /// Waits for the outcome of the first attempt. A fault that an operator must fix fails the
    /// build.
    pub(crate) async fn ready(&self) -> Result<(), DriverError> {
        if self.is_untracked {
            return Err(error::config(
                "a setting was changed after Redis::tracking was called; call it last",
            ));
        }
        if self.is_tracked.load(Relaxed) {
            self.can_be_tracked()?;
        }
        self.open()?.conn("connect").await.map(drop).map_err(error::at_build)
    }

    /// Fails the build if the user lacks the right to the commands that every store needs. The test
    /// commands change nothing: no key of the store has this name. Whether the user has the right
    /// to the store's keys is not known here.
    pub(crate) async fn check_rights(&self) -> Result<(), DriverError> {
        const DOING: &str = "connect";
        let (shared, options) = (self.open()?, self.options());
        let (mut conn, _) = shared.conn(DOING).await?;
        let key = format!("{}bentocache:___bc:rights", options.prefix);
        if shared.problem([key.as_bytes()]).is_some() {
            return Ok(());
        }
        let commands = [
            redis::cmd("GET").arg(&key).take(),
            redis::cmd("SET").arg(&key).arg("").arg("XX").take(),
            redis::cmd("UNLINK").arg(&key).take(),
        ];
        for command in commands {
            let answer = timeout(options.timeout, command.query_async::<Value>(&mut conn)).await;
            match answer {
                Ok(Err(error)) if error::is_forbidden(&error) => {
                    return Err(error::at_build(self.place.failed(DOING, &error)));
                }
                // Other faults show when the store is used.
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    pub(crate) fn track(&self) {
        self.is_tracked.store(true, Relaxed);
    }

    /// Refuses settings with which the server cannot tell who wrote.
    pub(crate) fn can_be_tracked(&self) -> Result<(), DriverError> {
        let problem = match self.settings.connect {
            _ if self.is_cluster() => {
                "tracking of a store that writes works with one server only; use RedisBus"
            }
            Connect::Given(_) => return self.can_be_watched(),
            _ if self.options().write_deadline.is_some() => {
                "tracking does not work with a write deadline: the server would report all writes \
                 to their own writer; use RedisBus"
            }
            _ => return Ok(()),
        };
        Err(error::config(problem))
    }

    /// Refuses a connection that cannot be duplicated for the reports.
    pub(crate) fn can_be_watched(&self) -> Result<(), DriverError> {
        match self.is_given() {
            true => Err(error::config(
                "tracking needs a URL or a client, not a connection; use RedisBus with this one",
            )),
            false => Ok(()),
        }
    }

    /// A SET with a deadline, once the server's clock is known.
    pub(crate) async fn set_in_time(
        &self,
        limit: Duration,
        key: &str,
        value: &[u8],
    ) -> Result<Cmd, DriverError> {
        const DOING: &str = "set";
        let shared = self.open()?;
        if let Some(set) = shared.clock.set(limit, key, value) {
            return Ok(set);
        }
        shared.conn(DOING).await?;
        let unknown = "the time of the server is not known yet";
        shared.clock.set(limit, key, value).ok_or_else(|| self.place.unavailable(DOING, unknown))
    }

    /// Waits for a connection; returns a number that changes with each replacement.
    pub(crate) async fn connected(&self, doing: &'static str) -> Result<u64, DriverError> {
        Ok(self.open()?.conn(doing).await?.1.id)
    }

    /// The number of the key's shard, for the key as the server knows it.
    pub(crate) fn part(&self, key: &str) -> Option<u32> {
        if !self.is_cluster() { None } else { self.opened()?.shards.part(key.as_bytes()) }
    }

    /// The reason why calls wait.
    pub(crate) fn trouble(&self) -> Option<String> {
        let shared = self.opened()?;
        let state = shared.state.borrow();
        match &*state {
            State::Opening => Some(self.place.opening()),
            State::Down(failure) => Some(failure.to_string()),
            State::Up { .. } => shared.shards.trouble(),
            State::Ended | State::Closed => None,
        }
    }

    /// The reason why a message waits, also if there is a connection.
    pub(crate) fn obstacle(&self) -> Option<String> {
        self.trouble().or_else(|| Some(self.place.silent()))
    }

    /// The current shards of the cluster.
    pub(crate) async fn shards(&self, cluster: ClusterConnection) -> Result<Vec<Shard>, String> {
        let shared = self.open().map_err(|error| error.to_string())?;
        match shared.look_around(cluster, self.options().timeout).await? {
            true => Ok(shared.shards.all()),
            false => Err("no node of the cluster can be reached".to_owned()),
        }
    }

    pub(crate) async fn cluster(
        &self,
        doing: &'static str,
    ) -> Result<Option<ClusterConnection>, DriverError> {
        match self.open()?.conn(doing).await? {
            (Conn::Cluster(cluster), _) => Ok(Some(cluster)),
            _ => Ok(None),
        }
    }

    /// Sends one command.
    pub(crate) async fn query(&self, call: Call, cmd: &Cmd) -> Result<Value, DriverError> {
        self.try_query(call, cmd).await?.map_err(|error| self.place().failed(call.doing, &error))
    }

    /// The same, with the plain error of the server.
    pub(crate) async fn try_query(
        &self,
        call: Call,
        cmd: &Cmd,
    ) -> Result<RedisResult<Value>, DriverError> {
        let shared = self.open()?;
        let key = || key_of(cmd);
        shared.run(call, key, |mut conn| async move { cmd.query_async(&mut conn).await }).await
    }

    /// Sends many commands in one round trip, each to its node.
    pub(crate) async fn query_all(
        &self,
        call: Call,
        cmds: Vec<Cmd>,
    ) -> Result<Vec<Value>, DriverError> {
        let shared = self.open()?;
        let first = cmds.first().and_then(key_of);
        let key = || first.clone();
        let answers = if shared.servers.target.is_cluster() {
            let (cmds, shards) = (&cmds, &shared.shards);
            let (looker, is_given) = (&shared, shared.is_given());
            let keys: Vec<_> = cmds.iter().filter_map(key_of).collect();
            if let Some(problem) = shared.problem(keys.iter().map(Vec::as_slice)) {
                return Err(self.place.unavailable(call.doing, &problem));
            }
            let send = |conn| async move {
                match conn {
                    Conn::Cluster(conn) => {
                        // For a connection of the application, no task updates the shards.
                        if is_given && cmds.len() > batch::FEW {
                            let _ = looker
                                .look_around(conn.clone(), looker.servers.options.timeout)
                                .await;
                        }
                        batch::query(&conn, shards, cmds).await
                    }
                    _ => Err((redis::ErrorKind::Client, "not a connection to a cluster").into()),
                }
            };
            shared.run(call, key, send).await?
        } else {
            let mut pipeline = Pipeline::with_capacity(cmds.len());
            for cmd in cmds {
                pipeline.add_command(cmd);
            }
            let pipeline = &pipeline;
            shared
                .run(call, key, |mut conn| async move { pipeline.query_async(&mut conn).await })
                .await?
        };
        answers.map_err(|error| self.place().failed(call.doing, &error))
    }

    /// Sends many commands to a single server in one round trip; each has its own answer.
    pub(crate) async fn query_each(
        &self,
        call: Call,
        cmds: Vec<Cmd>,
    ) -> Result<Vec<RedisResult<Value>>, DriverError> {
        let shared = self.open()?;
        let expected = cmds.len();
        let first = cmds.first().and_then(key_of);
        let mut pipeline = Pipeline::with_capacity(expected);
        pipeline.ignore_errors();
        for cmd in cmds {
            pipeline.add_command(cmd);
        }
        let pipeline = &pipeline;
        let run = shared.run(
            call,
            || first.clone(),
            |mut conn| async move {
                let answers: Vec<RedisResult<Value>> = pipeline.query_async(&mut conn).await?;
                // A server that has become a replica, or is full, refuses all of them.
                let mut refusals = answers.iter().map(|answer| answer.as_ref().err());
                match refusals
                    .next()
                    .flatten()
                    .filter(|_| refusals.all(|refusal| refusal.is_some()))
                {
                    Some(error) if error::may_pass(error) => Err(error.clone()),
                    _ => Ok(answers),
                }
            },
        );
        let answers = run.await?.map_err(|error| self.place().failed(call.doing, &error))?;
        if answers.len() == expected { Ok(answers) } else { Err(self.place().odd(call.doing)) }
    }

    /// The connection to the single server, and a number that changes with each replacement.
    pub(crate) async fn node(
        &self,
        doing: &'static str,
    ) -> Result<Option<(MultiplexedConnection, u64)>, DriverError> {
        match self.open()?.conn(doing).await? {
            (Conn::Node(conn), session) => Ok(Some((conn, session.id))),
            _ => Ok(None),
        }
    }

    /// Returns when the connection with this number has been replaced.
    pub(crate) async fn replaced(&self, id: u64) {
        if let Some(shared) = self.opened() {
            shared.replaced(id).await;
        }
    }

    /// Reports when calls start to fail for a reason that the driver sees, and when they succeed
    /// again. A connection of the application reports nothing.
    pub(crate) fn link(&self) -> Option<LinkStream> {
        let shared = self.open().ok()?;
        if matches!(shared.servers.target, Target::Given(_)) {
            return None;
        }
        let state = shared.state.subscribe();
        let changes =
            stream::unfold((state, None, Vec::new()), |(mut state, last, mut due)| async move {
                let mut last: Option<(u64, u64)> = last;
                loop {
                    if let Some(link) = due.pop() {
                        return Some((link, (state, last, due)));
                    }
                    let now = match &*state.borrow_and_update() {
                        State::Up { session, trouble: None, healed, .. } => {
                            Ok((session.id, *healed))
                        }
                        State::Opening => Err(false),
                        State::Up { .. } | State::Down(_) => Err(true),
                        State::Ended | State::Closed => return None,
                    };
                    // The last element of `due` is reported first.
                    match (last, now) {
                        (None, Ok(now)) => {
                            due.push(Link::Restored);
                            last = Some(now);
                        }
                        (Some(before), Ok(now)) if before != now => {
                            due.extend([Link::Restored, Link::Lost]);
                            last = Some(now);
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
        self.is_closed.store(true, Relaxed);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            open.shared.state.send_replace(State::Closed);
            if let Some(task) = &open.task {
                task.abort();
            }
        }
    }

    /// The validated settings.
    pub(crate) fn servers(&self) -> Result<Servers, DriverError> {
        self.settings.servers()
    }

    pub(crate) fn is_given(&self) -> bool {
        self.settings.connect.is_given()
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.settings.connect.is_cluster()
    }
}

/// The caller's runtime, unless it has ended: a timer of an ended runtime would panic.
pub(crate) fn running_runtime() -> Result<Handle, DriverError> {
    let current = Handle::try_current().map_err(|_| error::runtime_ended())?;
    let probe = current.spawn(future::pending::<()>());
    let has_ended = probe.is_finished();
    probe.abort();
    if has_ended { Err(error::runtime_ended()) } else { Ok(current) }
}

/// Records that a call ended without an answer, also if its caller stopped waiting.
struct Waiting<'a> {
    shared: &'a Shared,
    session: &'a Session,
    writes: bool,
    key: &'a (dyn Fn() -> Option<Vec<u8>> + Sync),
    since: Instant,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Waiting { shared, session, writes, key, .. } = *self;
        if writes {
            session.unanswered.fetch_add(u64::from(!self.is_answered), Relaxed);
            session.writing.fetch_sub(1, Relaxed);
        }
        if self.is_answered {
            return;
        }
        if shared.is_many() {
            shared.unanswered(session.id, key(), writes);
        } else if writes && self.since.elapsed() >= STUCK {
            shared.replace(session.id, Duration::ZERO);
        } else {
            shared.troubled(session.id, Trouble::Silence);
        }
    }
}

impl Shared {
    async fn run<T, Answer: Future<Output = RedisResult<T>>>(
        &self,
        call: Call,
        key: impl Fn() -> Option<Vec<u8>> + Sync,
        ask: impl Fn(Conn) -> Answer,
    ) -> Result<RedisResult<T>, DriverError> {
        let start = Instant::now();
        let mut is_last = !call.repeats;
        loop {
            let (conn, session) = self.conn(call.doing).await?;
            if self.is_many()
                && let Some(problem) = key().and_then(|key| self.shards.problem(&key))
            {
                return Err(self.servers.place.unavailable(call.doing, &problem));
            }
            if call.writes {
                session.writing.fetch_add(1, Relaxed);
            }
            let mut waiting = Waiting {
                shared: self,
                session: &session,
                writes: call.writes,
                key: &key,
                since: Instant::now(),
                is_answered: false,
            };
            let answer = timeout(self.servers.options.timeout, ask(conn)).await;
            waiting.is_answered = answer.is_ok();
            drop(waiting);
            match answer {
                Ok(Err(error)) if error::is_lost(&error) => {
                    self.lost(&session, call, &key);
                    // The caller of a stuck write may have stopped waiting.
                    if is_last || call.writes && start.elapsed() >= STUCK {
                        return Ok(Err(error));
                    }
                    is_last = true;
                }
                Ok(answer) => {
                    if let Err(error) = &answer {
                        self.refused(&session, call, error, &key);
                    }
                    return Ok(answer);
                }
                Err(_) => {
                    return Err(self.servers.place.late(call.doing, self.servers.options.timeout));
                }
            }
        }
    }

    fn lost(&self, session: &Session, call: Call, key: impl Fn() -> Option<Vec<u8>>) {
        if call.writes {
            session.unanswered.fetch_add(1, Relaxed);
        }
        if self.is_many() {
            // The client lost one of its many connections, which it repairs itself.
            self.unanswered(session.id, key(), call.writes);
        } else {
            self.replace(session.id, Duration::ZERO);
        }
    }

    /// A node of a cluster did not answer. The others may have answered.
    fn unanswered(&self, id: u64, key: Option<Vec<u8>>, writes: bool) {
        if !key.as_ref().is_some_and(|key| self.shards.suspect(key)) {
            self.troubled(id, Trouble::Refusal { key, writes });
        }
    }

    fn refused(
        &self,
        session: &Session,
        call: Call,
        error: &RedisError,
        key: impl Fn() -> Option<Vec<u8>>,
    ) {
        if (error::is_demoted(error) || error::is_about_login(error)) && !self.is_many() {
            self.replace(session.id, SETTLED);
        }
        if fence::must_measure(error) {
            self.troubled(session.id, Trouble::Silence);
        }
        if self.is_many() && error::has_no_node(error) {
            self.unanswered(session.id, key(), call.writes);
        }
        if error::may_pass(error) {
            self.troubled(session.id, Trouble::Refusal { key: key(), writes: call.writes });
        }
    }
}
