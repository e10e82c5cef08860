//! Redis: alone, as a primary with a replica and a sentinel, or as a cluster of three.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::process::{Port, Server, program};

/// How long servers may take to agree on something. (A sentinel that stood still for two seconds does nothing for half
/// a minute.)
const AGREE_MAX: Duration = Duration::from_secs(90);

/// What a Redis is started with.
#[derive(Debug, Clone, Default)]
pub struct RedisOptions {
    /// Asked of every client.
    pub password: Option<String>,
    /// Whether only encrypted connections are taken, with a certificate for `localhost` of an authority made for it.
    /// Servers that belong together have the same one.
    pub tls: bool,
    /// Further settings, each as on Redis's command line: `["--appendonly", "yes"]`.
    pub settings: Vec<String>,
}

/// One Redis server, or one sentinel.
#[derive(Debug)]
pub struct Redis {
    server: Server,
    command: Vec<String>,
    port: Port,
    options: RedisOptions,
    folder: TempDir,
}

impl Redis {
    /// Starts one that keeps nothing on disk and takes anybody.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(RedisOptions::default())
    }

    /// Starts one.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start_with(options: RedisOptions) -> Result<Self> {
        let certificates = options.tls.then(Certificates::new).transpose()?;
        Self::launch(options, certificates.as_ref())
    }

    fn launch(options: RedisOptions, certificates: Option<&Certificates>) -> Result<Self> {
        let port = Port::reserve()?;
        let folder = tempfile::tempdir().context("making a folder for Redis")?;
        let server = program("redis-server", &[], "redis-server")?;
        let mut command = vec![server.to_string_lossy().into_owned()];
        let mut set = |name: &str, value: &str| command.extend([format!("--{name}"), value.to_owned()]);
        set("bind", "127.0.0.1");
        set("dir", &folder.path().to_string_lossy());
        for (name, value) in ports(port.number(), certificates, &folder)? {
            set(name, &value);
        }
        if let Some(password) = &options.password {
            set("requirepass", password);
            set("masterauth", password);
        }
        set("save", "");
        set("repl-diskless-sync-delay", "0");
        set("enable-debug-command", "yes");
        command.extend(options.settings.iter().cloned());
        let mut redis = Self { server: spawn(&command, &folder)?, command, port, options, folder };
        redis.server.wait_for_port(redis.port.number())?;
        Ok(redis)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of its database 0, with the password and the authority's file.
    pub fn url(&self) -> String {
        let user = self.user();
        match self.authority() {
            Some(authority) => format!("rediss://{user}localhost:{}/0?ca={}", self.port(), authority.display()),
            None => format!("redis://{user}127.0.0.1:{}/0", self.port()),
        }
    }

    /// How a URL of it begins, after the scheme.
    fn user(&self) -> String {
        self.options.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default()
    }

    /// The certificate of the authority that signed the server's, when it has one.
    pub fn authority(&self) -> Option<PathBuf> {
        self.options.tls.then(|| self.folder.path().join("ca.pem"))
    }

    /// Runs `redis-cli` with `arguments`; what it printed, without the last line break.
    ///
    /// # Errors
    /// When it cannot be run, or Redis answered with an error.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("redis-cli", &[], "redis-tools")?);
        command.args(["-e", "-h", "localhost", "-p", &self.port().to_string()]);
        if let Some(password) = &self.options.password {
            command.args(["--no-auth-warning", "-a", password]);
        }
        if let Some(authority) = self.authority() {
            command.arg("--tls").arg("--cacert").arg(authority);
        }
        let output = command.args(arguments).output().context("running redis-cli")?;
        let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if !output.status.success() {
            bail!("redis-cli {}: {said}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(said)
    }

    /// Kills it at once, as a power cut would.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Stops its process until what is returned is dropped: the system goes on taking connections, and nobody answers.
    ///
    /// # Errors
    /// When it does not tell its process's number, or cannot be stopped.
    pub fn freeze(&self) -> Result<Frozen> {
        let told = self.cli(&["info", "server"])?;
        let process = told.lines().find_map(|line| line.strip_prefix("process_id:"));
        let frozen = Frozen { process: process.context("finding the process of Redis")?.trim().to_owned() };
        ensure!(frozen.signal("-STOP"), "`kill -STOP` failed");
        Ok(frozen)
    }

    /// Starts it again on the same port with the same folder, after [`Redis::kill`] or while it runs (then it is killed).
    /// It answers when this returns.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.start_again()?;
        // It listens before it has read its data back, and then says `LOADING` to everything.
        until("Redis has read its data back", || Ok(self.cli(&["ping"])? == "PONG"))
    }

    /// As [`Redis::restart`], but returns while it may still be reading its data back.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<()> {
        self.server.kill();
        self.server = spawn(&self.command, &self.folder)?;
        self.server.wait_for_port(self.port.number())
    }
}

/// A Redis that stands still.
#[derive(Debug)]
pub struct Frozen {
    process: String,
}

impl Frozen {
    fn signal(&self, signal: &str) -> bool {
        Command::new("kill").args([signal, &self.process]).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

fn spawn(command: &[String], folder: &TempDir) -> Result<Server> {
    let (program, arguments) = command.split_first().context("no command")?;
    Server::start(Command::new(program).args(arguments), &folder.path().join("log"))
}

/// The settings of a server that listens on `port`, with its certificates written into its folder.
fn ports(port: u16, certificates: Option<&Certificates>, folder: &TempDir) -> Result<Vec<(&'static str, String)>> {
    let Some(certificates) = certificates else { return Ok(vec![("port", port.to_string())]) };
    let mut settings = vec![
        ("port", "0".to_owned()),
        ("tls-port", port.to_string()),
        ("tls-auth-clients", "no".to_owned()),
        // Servers speak to each other encrypted, too.
        ("tls-replication", "yes".to_owned()),
        ("tls-cluster", "yes".to_owned()),
    ];
    let files = [
        ("tls-ca-cert-file", "ca.pem", &certificates.authority),
        ("tls-cert-file", "cert.pem", &certificates.certificate),
        ("tls-key-file", "key.pem", &certificates.key),
    ];
    for (name, file, text) in files {
        let path = folder.path().join(file);
        fs::write(&path, text).context("writing a certificate")?;
        settings.push((name, path.to_string_lossy().into_owned()));
    }
    Ok(settings)
}

/// An authority, and a certificate of `localhost` with its key, all as PEM.
struct Certificates {
    authority: String,
    certificate: String,
    key: String,
}

impl Certificates {
    fn new() -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new()).context("naming an authority")?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // By default both would have the same name, and the server's would look signed by itself.
        authority.distinguished_name.push(DnType::CommonName, "authority of a test");
        let key = KeyPair::generate().context("making a key")?;
        let authority = CertifiedIssuer::self_signed(authority, key).context("making an authority")?;
        let key = KeyPair::generate().context("making a key")?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut certificate = CertificateParams::new(names).context("naming a server")?;
        certificate.distinguished_name.push(DnType::CommonName, "server of a test");
        let certificate = certificate.signed_by(&key, &authority).context("signing a certificate")?;
        Ok(Self { authority: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// A primary, its replica, and a sentinel that watches them as the service `features`.
#[derive(Debug)]
pub struct RedisSentinel {
    /// The first primary.
    pub primary: Redis,
    /// Its replica.
    pub replica: Redis,
    sentinel: Redis,
}

impl RedisSentinel {
    /// Starts all three and waits until the replica is in step.
    ///
    /// # Errors
    /// When Redis is not installed, or they do not come to know each other.
    pub fn start() -> Result<Self> {
        Self::start_with(&RedisOptions::default())
    }

    /// Starts them with options for all three; the further settings are the servers'.
    ///
    /// # Errors
    /// As [`RedisSentinel::start`].
    pub fn start_with(options: &RedisOptions) -> Result<Self> {
        let certificates = options.tls.then(Certificates::new).transpose()?;
        let primary = Redis::launch(options.clone(), certificates.as_ref())?;
        let replica = Redis::launch(options.clone(), certificates.as_ref())?;
        replica.cli(&["replicaof", "127.0.0.1", &primary.port().to_string()])?;
        let folder = tempfile::tempdir().context("making a folder for a sentinel")?;
        let port = Port::reserve()?;
        let config = folder.path().join("sentinel.conf");
        let mut text = format!("bind 127.0.0.1\ndir {}\n", folder.path().display());
        for (name, value) in ports(port.number(), certificates.as_ref(), &folder)? {
            text += &format!("{name} {value}\n");
        }
        text += &format!("sentinel monitor features 127.0.0.1 {} 1\n", primary.port());
        // A machine that stands still for a second is no reason for a failover.
        text += "sentinel down-after-milliseconds features 60000\nsentinel failover-timeout features 3000\n";
        if let Some(password) = &options.password {
            text += &format!("requirepass {password}\nsentinel auth-pass features {password}\n");
        }
        fs::write(&config, text).context("writing the sentinel's settings")?;
        let server = program("redis-server", &[], "redis-server")?.to_string_lossy().into_owned();
        let command = vec![server, config.to_string_lossy().into_owned(), "--sentinel".to_owned()];
        let options = RedisOptions { settings: Vec::new(), ..options.clone() };
        let mut sentinel = Redis { server: spawn(&command, &folder)?, command, port, options, folder };
        sentinel.server.wait_for_port(sentinel.port.number())?;
        let set = Self { primary, replica, sentinel };
        until("the replica is in step", || {
            Ok(set.replica.cli(&["info", "replication"])?.contains("master_link_status:up"))
        })?;
        until("the sentinel knows the replica", || {
            Ok(set.sentinel.cli(&["sentinel", "replicas", "features"])?.contains(&set.replica.port().to_string()))
        })?;
        Ok(set)
    }

    /// The URL by which the primary is found.
    pub fn url(&self) -> String {
        let sentinel = &self.sentinel;
        let address = format!("{}127.0.0.1:{}/features", sentinel.user(), sentinel.port());
        let auth = if sentinel.options.password.is_some() { "sentinel_auth=true" } else { "" };
        match sentinel.authority() {
            Some(authority) => format!("rediss-sentinel://{address}?ca={}&{auth}", authority.display()),
            None => format!("redis-sentinel://{address}?{auth}"),
        }
    }

    /// Waits until the sentinel, which may lose its patience now, names the replica as the primary.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_failover(&self) -> Result<()> {
        self.sentinel.cli(&["sentinel", "set", "features", "down-after-milliseconds", "500"])?;
        until("the replica is the primary", || {
            let named = self.sentinel.cli(&["sentinel", "get-master-addr-by-name", "features"])?;
            let role = self.replica.cli(&["role"])?;
            Ok(named.contains(&self.replica.port().to_string()) && role.starts_with("master"))
        })
    }
}

/// Three nodes that share all slots.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    _buses: Vec<Port>,
}

impl RedisCluster {
    /// Starts it and waits until every node serves.
    ///
    /// # Errors
    /// When Redis is not installed, or the nodes do not come to know each other.
    pub fn start() -> Result<Self> {
        Self::start_with(&RedisOptions::default())
    }

    /// Starts it with options for every node.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    pub fn start_with(options: &RedisOptions) -> Result<Self> {
        let certificates = options.tls.then(Certificates::new).transpose()?;
        let (mut nodes, mut buses) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let mut options = options.clone();
            // The bus has a port of its own: by default the port plus 10,000, which may not exist.
            let bus = Port::reserve()?;
            let number = bus.number().to_string();
            let more = ["--cluster-enabled", "yes", "--cluster-port", &number];
            options.settings.extend(more.map(str::to_owned));
            nodes.push(Redis::launch(options, certificates.as_ref())?);
            buses.push(bus);
        }
        let cluster = Self { nodes, _buses: buses };
        let first = &cluster.nodes[0];
        let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        for (node, (from, to)) in cluster.nodes.iter().zip(slots) {
            node.cli(&["cluster", "addslotsrange", from, to])?;
            let bus = node.options.settings.last().context("no port")?;
            if node.port() != first.port() {
                first.cli(&["cluster", "meet", "127.0.0.1", &node.port().to_string(), bus])?;
            }
        }
        for node in &cluster.nodes {
            until("the cluster serves", || {
                let info = node.cli(&["cluster", "info"])?;
                Ok(info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3"))
            })?;
        }
        Ok(cluster)
    }

    /// The URL of all nodes.
    pub fn url(&self) -> String {
        let first = &self.nodes[0];
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        let address = format!("{}{}", first.user(), hosts.join(","));
        match first.authority() {
            Some(authority) => format!("rediss-cluster://{address}?ca={}", authority.display()),
            None => format!("redis-cluster://{address}"),
        }
    }

    /// Its nodes.
    pub fn nodes(&mut self) -> &mut [Redis] {
        &mut self.nodes
    }
}

/// Waits for `condition`; an error counts as "not yet".
fn until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + AGREE_MAX;
    loop {
        let seen = condition();
        if matches!(seen, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            seen.with_context(|| format!("waiting until {what}"))?;
            bail!("gave up waiting until {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_server_with_a_password_and_certificates_answers_and_comes_back_empty() {
        let options = RedisOptions { password: Some("open".to_owned()), tls: true, settings: Vec::new() };
        let mut redis = Redis::start_with(options).unwrap();
        assert_eq!(redis.cli(&["set", "a", "1"]).unwrap(), "OK");
        redis.restart().unwrap();
        assert_eq!(redis.cli(&["dbsize"]).unwrap(), "0");
    }

    #[test]
    fn a_cluster_shares_its_slots() {
        let mut cluster = RedisCluster::start().unwrap();
        let answers: Vec<_> = cluster.nodes().iter().map(|node| node.cli(&["set", "a", "1"])).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    }

    #[test]
    fn a_sentinel_names_the_new_primary() {
        let mut set = RedisSentinel::start().unwrap();
        set.primary.cli(&["set", "a", "1"]).unwrap();
        until("the replica has it", || Ok(set.replica.cli(&["get", "a"])? == "1")).unwrap();
        set.primary.kill();
        set.wait_for_failover().unwrap();
        assert_eq!(set.replica.cli(&["get", "a"]).unwrap(), "1");
    }
}
