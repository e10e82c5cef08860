//! Connections: how a server, a primary behind sentinels and a cluster come to look alike.
//!
//! One connection carries everything, several pipelines at a time. All that this store sends may be sent twice, so a
//! connection that broke or fell silent is thrown away and the question put again on a fresh one, [`TRIES`] times in all;
//! longer outages are the caller's to wait for. After every (re)connect the server is asked whether it evicts, because
//! after a failover it is another server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, Value,
};
use tidegate_registry::definitions::settings::{RedisLocation, RedisNode, RedisTopology};
use tokio::sync::{Mutex, RwLock};

use super::errors::{is_moved, on, spoils_connection, strange};
use super::keys::{slot, text};
use crate::online::{OnlineError, Result};

/// How long Redis may take to let us in.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long Redis may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How often a question is put before its failure is the caller's.
const TRIES: u32 = 3;
/// How often a transaction is begun of which something changed meanwhile: that is another publication, every few seconds.
const TRANSACTION_TRIES: u32 = 100;
/// The pause before the second try; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the library sends something after a slot that moves.
const REDIRECTS_MAX: u32 = 5;
/// How long the library waits before it sends something again that a cluster does not serve just now, in milliseconds: a
/// cluster that is down for longer is the caller's to wait for, who can say so.
const REDIRECT_WAIT_MS: std::ops::Range<u64> = 50..300;
/// How many commands that a cluster moved are under way at once.
const MOVED_IN_FLIGHT: usize = 64;

/// A command and the key that it is about.
#[derive(Debug, Clone)]
pub(super) struct Keyed {
    pub(super) slot: u16,
    pub(super) cmd: Cmd,
}

impl Keyed {
    pub(super) fn new(key: &str, cmd: Cmd) -> Self {
        Self { slot: slot(key.as_bytes()), cmd }
    }
}

/// The way to a Redis.
pub(super) struct Connections {
    location: RedisLocation,
    certificates: Option<TlsCertificates>,
    current: Mutex<Option<Arc<Connection>>>,
    /// Connections that serve one transaction at a time, while nobody uses them.
    idle: Mutex<Vec<MultiplexedConnection>>,
    opened: AtomicU64,
    answer_max: Duration,
}

/// One connection: see the module.
pub(super) struct Connection {
    number: u64,
    way: Way,
}

enum Way {
    One(MultiplexedConnection),
    Cluster { connection: ClusterConnection, slots: RwLock<Vec<u16>> },
}

impl Connections {
    /// Reads the authority's file; connects to nothing.
    pub(super) fn new(location: RedisLocation) -> Result<Self> {
        let certificates = match &location.ca {
            None => None,
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| OnlineError::Internal {
                    doing: "reading the certificates for",
                    source: format!("`{}`: {error}", path.display()).into(),
                })?;
                Some(TlsCertificates { client_tls: None, root_cert: Some(pem) })
            }
        };
        // Both providers of cryptography are compiled in, so one must be named; another's choice stands.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let opened = AtomicU64::new(0);
        let (current, idle) = (Mutex::default(), Mutex::default());
        Ok(Self { location, certificates, current, idle, opened, answer_max: ANSWER_MAX })
    }

    #[cfg(test)]
    pub(super) fn set_answer_max(&mut self, answer_max: Duration) {
        self.answer_max = answer_max;
    }

    pub(super) fn location(&self) -> &RedisLocation {
        &self.location
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.location.topology == RedisTopology::Cluster
    }

    /// The connection in use, or a new one.
    pub(super) async fn get(&self) -> Result<Arc<Connection>> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &*current {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(self.connect_in_time().await?);
        *current = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Lets go of the connections.
    pub(super) async fn close(&self) {
        self.current.lock().await.take();
        self.idle.lock().await.clear();
    }

    async fn forget(&self, connection: &Connection) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| current.number == connection.number) {
            current.take();
        }
    }

    /// Asks one thing.
    pub(super) async fn query(&self, doing: &'static str, cmd: &Cmd) -> Result<Value> {
        let mut answers = self.ask(doing, Question::One(cmd)).await?;
        answers.pop().ok_or_else(|| strange("a question was not answered"))
    }

    /// Asks many things at once, failing with the first answer that is an error. What a cluster moved is sent after.
    pub(super) async fn all(&self, doing: &'static str, batch: &Batch) -> Result<Vec<Value>> {
        self.ask(doing, Question::Many(batch)).await
    }

    /// `INFO section` of every primary.
    pub(super) async fn info(&self, section: &'static str) -> Result<Vec<String>> {
        let answers = self.ask("reading", Question::Info(section)).await?;
        answers.into_iter().map(|answer| text(answer).map_err(strange)).collect()
    }

    /// Runs `commands` in one step, if `check` lets pass what `question` answers and the key `watched`, which it asks, stays as
    /// it is until then. For a single server only: a transaction of a cluster spans one slot.
    ///
    /// A script could do the same, but makes a value of Lua of every argument first: it keeps the one thread of Redis busy
    /// twice as long.
    pub(super) async fn transact(
        &self,
        doing: &'static str,
        (watched, question): (&str, &Cmd),
        check: impl Fn(Value) -> Result<()>,
        commands: &Pipeline,
    ) -> Result<()> {
        let (mut pause, mut failed) = (PAUSE, 0);
        for _ in 0..TRANSACTION_TRIES {
            // What is watched belongs to a connection, so nobody else may use it meanwhile.
            let idle = self.idle.lock().await.pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => match self.connect_in_time().await?.way {
                    Way::One(connection) => connection,
                    Way::Cluster { .. } => return Err(strange("transactions are for single servers")),
                },
            };
            let done = async {
                let mut ask = Pipeline::with_capacity(2);
                ask.cmd("WATCH").arg(watched).add_command(question.clone());
                let answers = connection.send_packed_commands(&ask, 0, 2).await?;
                let answers = answers.into_iter().map(Value::extract_error).collect::<RedisResult<Vec<_>>>()?;
                if let Err(refused) = check(answers.into_iter().next_back().unwrap_or(Value::Nil)) {
                    return Ok(Err(refused));
                }
                // What is answered to all others is in what is answered to the last.
                let answer = connection.send_packed_commands(commands, commands.len() + 1, 1).await.map_err(cause)?;
                match answer.into_iter().next().unwrap_or(Value::Nil).extract_error()? {
                    Value::Array(answers) => {
                        answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
                        Ok(Ok(true))
                    }
                    _ => Ok(Ok(false)),
                }
            };
            let done: RedisResult<Result<bool>> = done.await;
            match done {
                Ok(Ok(true)) => {
                    self.idle.lock().await.push(connection);
                    return Ok(());
                }
                // Something else of the key changed meanwhile.
                Ok(Ok(false)) => self.idle.lock().await.push(connection),
                Ok(Err(refused)) => return Err(refused),
                Err(error) => {
                    failed += 1;
                    if !spoils_connection(&error) || error.is_timeout() || failed >= TRIES {
                        return Err(on(doing)(error));
                    }
                    // The others lead to the same server.
                    self.idle.lock().await.clear();
                    tracing::debug!("Asking Redis again on a fresh connection: {error}");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        Err(OnlineError::Unavailable("what is live changed with every try to change rows".into()))
    }

    async fn ask(&self, doing: &'static str, question: Question<'_>) -> Result<Vec<Value>> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            let connection = self.get().await?;
            match connection.ask(question).await {
                Ok(answers) => return Ok(answers),
                Err(error) if spoils_connection(&error) => {
                    self.forget(&connection).await;
                    // One that did not answer in time has used up our patience.
                    if attempt >= TRIES || error.is_timeout() {
                        return Err(on(doing)(error));
                    }
                    tracing::debug!("Asking Redis again on a fresh connection: {error}");
                }
                Err(error) if is_moved(&error) && attempt < TRIES => {}
                Err(error) => return Err(on(doing)(error)),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    async fn connect_in_time(&self) -> Result<Connection> {
        tokio::time::timeout(3 * CONNECT_MAX, self.connect()).await.unwrap_or_else(|_| {
            Err(OnlineError::Unavailable("Redis did not let us in in time: is its address right?".into()))
        })
    }

    async fn connect(&self) -> Result<Connection> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let way = match &self.location.topology {
            RedisTopology::Standalone => {
                let node = self.location.nodes.first().ok_or_else(|| strange("the location names no server"))?;
                Way::One(self.connect_to(node, true).await.map_err(on("connecting to"))?)
            }
            RedisTopology::Sentinel { service } => Way::One(self.connect_to_primary(service).await?),
            RedisTopology::Cluster => self.connect_to_cluster().await.map_err(on("connecting to"))?,
        };
        let connection = Connection { number, way };
        if !self.location.allow_eviction {
            for info in connection.info("memory").await.map_err(on("asking for the settings of"))? {
                refuse_eviction(&text(info).map_err(strange)?)?;
            }
        }
        Ok(connection)
    }

    fn address(&self, node: &RedisNode) -> ConnectionAddr {
        let (host, port) = (node.host.clone(), node.port);
        match self.location.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        }
    }

    fn info_of(&self, node: &RedisNode, login: bool) -> RedisResult<ConnectionInfo> {
        let mut settings = RedisConnectionInfo::default();
        if login {
            if let Some(username) = &self.location.username {
                settings = settings.set_username(username);
            }
            if let Some(password) = &self.location.password {
                settings = settings.set_password(password.expose());
            }
        }
        let info = self.address(node).into_connection_info()?;
        Ok(info.set_redis_settings(settings.set_db(0)))
    }

    async fn connect_to(&self, node: &RedisNode, data: bool) -> RedisResult<MultiplexedConnection> {
        let login = data || self.location.sentinel_auth;
        let mut info = self.info_of(node, login)?;
        if data {
            let settings = info.redis_settings().clone().set_db(i64::from(self.location.db));
            info = info.set_redis_settings(settings);
        }
        let client = match &self.certificates {
            Some(certificates) if self.location.tls => Client::build_with_tls(info, certificates.clone())?,
            _ => Client::open(info)?,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(if data { self.answer_max } else { CONNECT_MAX }));
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Asks the sentinels, one after the other, and believes a server only when it says itself that it is the primary.
    async fn connect_to_primary(&self, service: &str) -> Result<MultiplexedConnection> {
        let mut last = RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "no sentinel answered"));
        for sentinel in &self.location.nodes {
            let found = async {
                let mut sentinel = self.connect_to(sentinel, false).await?;
                let mut question = redis::cmd("SENTINEL");
                question.arg("get-master-addr-by-name").arg(service);
                let named: Option<(String, u16)> = question.query_async(&mut sentinel).await?;
                let (host, port) = named
                    .ok_or((ErrorKind::MasterNameNotFoundBySentinel, "the sentinel knows no service of this name"))?;
                let mut primary = self.connect_to(&RedisNode { host, port }, true).await?;
                let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut primary).await?;
                match role.into_iter().next().map(text) {
                    Some(Ok(role)) if role == "master" => Ok(primary),
                    _ => Err(RedisError::from((
                        ErrorKind::MasterNameNotFoundBySentinel,
                        "the server that the sentinel names is not a primary",
                    ))),
                }
            };
            match found.await {
                Ok(primary) => return Ok(primary),
                Err(error) => last = error,
            }
        }
        Err(on("connecting to")(last))
    }

    async fn connect_to_cluster(&self) -> RedisResult<Way> {
        let nodes: Vec<ConnectionInfo> =
            self.location.nodes.iter().map(|node| self.info_of(node, true)).collect::<RedisResult<_>>()?;
        let mut builder = ClusterClient::builder(nodes)
            .connection_timeout(CONNECT_MAX)
            .response_timeout(self.answer_max)
            .retries(REDIRECTS_MAX)
            .min_retry_wait(REDIRECT_WAIT_MS.start)
            .max_retry_wait(REDIRECT_WAIT_MS.end)
            .overall_response_timeout(Some(2 * self.answer_max));
        if let Some(certificates) = self.certificates.clone().filter(|_| self.location.tls) {
            builder = builder.certs(certificates);
        }
        let connection = builder.build()?.get_async_connection().await?;
        let slots = RwLock::new(node_of_slots(&mut connection.clone()).await?);
        Ok(Way::Cluster { connection, slots })
    }
}

/// What is asked.
#[derive(Clone, Copy)]
enum Question<'a> {
    One(&'a Cmd),
    Many(&'a Batch),
    Info(&'static str),
}

impl Connection {
    async fn ask(&self, question: Question<'_>) -> RedisResult<Vec<Value>> {
        match question {
            Question::One(cmd) => Ok(vec![self.query(cmd).await?]),
            Question::Many(batch) => self.pipeline(batch).await?.into_iter().map(Value::extract_error).collect(),
            Question::Info(section) => self.info(section).await,
        }
    }

    async fn query(&self, cmd: &Cmd) -> RedisResult<Value> {
        match &self.way {
            Way::One(connection) => connection.clone().req_packed_command(cmd).await?.extract_error(),
            Way::Cluster { connection, .. } => connection.clone().req_packed_command(cmd).await?.extract_error(),
        }
    }

    async fn pipeline(&self, batch: &Batch) -> RedisResult<Vec<Value>> {
        if batch.slots.is_empty() {
            return Ok(Vec::new());
        }
        match &self.way {
            Way::One(connection) => {
                connection.clone().send_packed_commands(&batch.pipeline, 0, batch.slots.len()).await
            }
            Way::Cluster { connection, slots } => pipeline_of_nodes(connection, slots, batch).await,
        }
    }

    async fn info(&self, section: &'static str) -> RedisResult<Vec<Value>> {
        let mut cmd = redis::cmd("INFO");
        cmd.arg(section);
        let answers = match &self.way {
            Way::One(connection) => vec![connection.clone().req_packed_command(&cmd).await?],
            Way::Cluster { connection, .. } => {
                let routing = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
                match connection.clone().route_command(cmd, routing).await? {
                    Value::Map(answers) => answers.into_iter().map(|(_, answer)| answer).collect(),
                    other => vec![other],
                }
            }
        };
        answers.into_iter().map(Value::extract_error).collect()
    }
}

/// Why a transaction was not run.
fn cause(error: RedisError) -> RedisError {
    let first = error.clone().into_server_errors().and_then(|errors| errors.first().cloned());
    first.and_then(|(_, first)| Value::ServerError(first).extract_error().err()).unwrap_or(error)
}

fn not_understood(problem: String) -> RedisError {
    (ErrorKind::UnexpectedReturnType, "an answer is not understood", problem).into()
}

/// Commands to be sent together.
#[derive(Default)]
pub(super) struct Batch {
    pipeline: Pipeline,
    slots: Vec<u16>,
}

impl Batch {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let mut pipeline = Pipeline::with_capacity(capacity);
        pipeline.ignore_errors();
        Self { pipeline, slots: Vec::with_capacity(capacity) }
    }

    pub(super) fn push(&mut self, command: Keyed) {
        self.slots.push(command.slot);
        self.pipeline.add_command(command.cmd);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl FromIterator<Keyed> for Batch {
    fn from_iter<T: IntoIterator<Item = Keyed>>(commands: T) -> Self {
        let mut batch = Self::with_capacity(0);
        for command in commands {
            batch.push(command);
        }
        batch
    }
}

/// Sends each command to the node of its slot, in one pipeline per node; what was moved meanwhile is sent after, one by one.
async fn pipeline_of_nodes(
    connection: &ClusterConnection,
    slots: &RwLock<Vec<u16>>,
    batch: &Batch,
) -> RedisResult<Vec<Value>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    {
        let nodes = slots.read().await;
        for (position, slot) in batch.slots.iter().enumerate() {
            let node = usize::from(nodes.get(usize::from(*slot)).copied().unwrap_or(0));
            if groups.len() <= node {
                groups.resize_with(node + 1, Vec::new);
            }
            groups[node].push(position);
        }
    }
    let commands: Vec<Cmd> = batch.pipeline.cmd_iter().cloned().collect();
    let asked = groups.into_iter().filter(|group| !group.is_empty()).map(|group| {
        let mut pipeline = Pipeline::with_capacity(group.len());
        pipeline.ignore_errors();
        for position in &group {
            pipeline.add_command(commands[*position].clone());
        }
        let route = Route::new(batch.slots[group[0]], SlotAddr::Master);
        let mut connection = connection.clone();
        async move {
            let route = SingleNodeRoutingInfo::SpecificNode(route);
            let answers = connection.route_pipeline(pipeline, 0, group.len(), route).await;
            (group, answers)
        }
    });
    let mut values = vec![Value::Nil; batch.slots.len()];
    let mut moved = Vec::new();
    for answered in futures::future::join_all(asked).await {
        let (group, answers) = answered;
        let answers = match answers {
            Ok(answers) => answers,
            // One command that was moved sends the library's whole pipeline after it, and the others back again.
            Err(error) if is_moved(&error) => {
                moved.extend(group);
                continue;
            }
            Err(error) => return Err(error),
        };
        if answers.len() != group.len() {
            return Err(not_understood(format!("{} answers to {} commands", answers.len(), group.len())));
        }
        for (position, answer) in group.into_iter().zip(answers) {
            match answer.extract_error() {
                Ok(answer) => values[position] = answer,
                Err(error) if is_moved(&error) => moved.push(position),
                Err(error) => values[position] = as_value(error)?,
            }
        }
    }
    if moved.is_empty() {
        return Ok(values);
    }
    let again = stream::iter(moved).map(|position| {
        let (mut connection, cmd) = (connection.clone(), commands[position].clone());
        async move { (position, connection.req_packed_command(&cmd).await) }
    });
    for (position, answer) in again.buffer_unordered(MOVED_IN_FLIGHT).collect::<Vec<_>>().await {
        values[position] = answer.or_else(as_value)?;
    }
    *slots.write().await = node_of_slots(&mut connection.clone()).await?;
    Ok(values)
}

/// An error that the server gave as the answer to one command; others are of the connection.
fn as_value(error: RedisError) -> RedisResult<Value> {
    match error.clone().into_server_errors() {
        Some(errors) => match errors.first() {
            Some((_, error)) => Ok(Value::ServerError(error.clone())),
            None => Err(error),
        },
        None => Err(error),
    }
}

/// For each slot a number that stands for its node.
async fn node_of_slots(connection: &mut ClusterConnection) -> RedisResult<Vec<u16>> {
    let mut cmd = redis::cmd("CLUSTER");
    cmd.arg("SLOTS");
    let answer = connection.route_command(cmd, RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random)).await?;
    let understood = || -> Option<Vec<u16>> {
        let Value::Array(ranges) = &answer else { return None };
        let (mut nodes, mut of_slots) = (Vec::new(), vec![0; 16_384]);
        for range in ranges {
            let Value::Array(range) = range else { return None };
            let [Value::Int(from), Value::Int(to), Value::Array(primary), ..] = range.as_slice() else { return None };
            let name = primary.get(..2)?;
            let node = nodes.iter().position(|known: &&[Value]| *known == name).unwrap_or_else(|| {
                nodes.push(name);
                nodes.len() - 1
            });
            let range = usize::try_from(*from).ok()?..=usize::try_from(*to).ok()?;
            of_slots.get_mut(range)?.fill(u16::try_from(node).ok()?);
        }
        Some(of_slots)
    };
    understood().ok_or_else(|| not_understood("`CLUSTER SLOTS` has another form".to_owned()))
}

/// `INFO memory` says it where managed services forbid `CONFIG`.
fn refuse_eviction(info: &str) -> Result<()> {
    let policy = info_field(info, "maxmemory_policy").unwrap_or("noeviction");
    if policy == "noeviction" {
        return Ok(());
    }
    let source = format!(
        "its `maxmemory-policy` is `{policy}`: when it is full it would throw features away and nobody would be told; set \
         it to `noeviction`, or write `?allow_eviction=true` behind the URL to accept that"
    );
    Err(OnlineError::Internal { doing: "accepting", source: source.into() })
}

/// A value of INFO.
pub(super) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
