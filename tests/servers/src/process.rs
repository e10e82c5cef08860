//! A child process that does not outlive its parent.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::TcpSocket;

/// Keeps the server (`"$@"`) as a child, and kills it as soon as standard input ends: that is when our process lets go of
/// the other end, on purpose or by dying. `$0` is the signal.
const KEEPER: &str =
    r#""$@" & server=$!; cat >/dev/null; kill -"$0" "$server" 2>/dev/null; wait "$server" 2>/dev/null"#;

/// Deletes the folder `$0` as soon as standard input ends. Servers may still be dying there: so it is tried again.
const SWEEPER: &str =
    r#"cat >/dev/null; n=0; until rm -rf "$0" 2>/dev/null || [ $n -ge 50 ]; do n=$((n+1)); sleep 0.1; done"#;

/// How long a server may take to answer on its port.
const START_MAX: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct Server {
    keeper: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts `command` in its own process group, its output going to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &Command, log: &Path) -> Result<Self> {
        Self::start_ended_by("KILL", command, log)
    }

    /// The same for a server whose sudden death has a signal of its own, because it leaves things behind otherwise.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_ended_by(signal: &str, command: &Command, log: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::create(log).with_context(|| format!("creating `{}`", log.display()))?;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, signal]).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => keeper.env(key, value),
                None => keeper.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            keeper.current_dir(folder);
        }
        // A group of its own: Ctrl-C in a terminal is for the tests, which then let go of their servers in order.
        std::os::unix::process::CommandExt::process_group(&mut keeper, 0);
        let keeper = keeper
            .stdin(Stdio::piped())
            .stdout(output.try_clone().context("sharing the server's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting `{name}`"))?;
        Ok(Self { keeper, name, log: log.to_owned() })
    }

    /// Waits until something answers on `port`.
    ///
    /// # Errors
    /// When nothing does in time, with what the server wrote.
    pub fn wait_for_port(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        loop {
            if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("`{}` did not answer on port {port} in {START_MAX:?}; it wrote:\n{}", self.name, self.tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The end of what the server wrote.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        if let Ok(mut log) = File::open(&self.log) {
            let length = log.metadata().map_or(0, |about| about.len());
            // A cut character at the beginning only spoils the message, not the test.
            let _ = log.seek(SeekFrom::Start(length.saturating_sub(4_000)));
            let mut bytes = Vec::new();
            let _ = log.read_to_end(&mut bytes);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        text
    }

    /// Kills the server at once, as a power cut would, and waits until it is gone.
    pub fn kill(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder for a server's files: deleted when this is dropped or our process dies, so it may also live in a static.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    sweeper: Child,
}

impl Folder {
    /// An empty folder below the system's temporary one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let path = tempfile::Builder::new().prefix("tidegate-").tempdir().context("making a folder")?.keep();
        let mut sweeper = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut sweeper, 0);
        let sweeper = sweeper.args(["-c", SWEEPER]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        let sweeper = sweeper.stderr(Stdio::null()).spawn().context("starting the sweeper of a folder")?;
        Ok(Self { path, sweeper })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}

/// A port of the loopback interface that the system gives to nobody else as long as this lives. Nobody listens there,
/// but for the server that is told its number: both allow the other to share the address, and only one of them listens.
#[derive(Debug)]
pub struct Port {
    _held: TcpSocket,
    number: u16,
}

impl Port {
    /// One that nobody has.
    ///
    /// # Errors
    /// When the machine has none left.
    pub fn reserve() -> Result<Self> {
        let reserve = || {
            let held = TcpSocket::new_v4()?;
            held.set_reuseaddr(true)?;
            held.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            let number = held.local_addr()?.port();
            std::io::Result::Ok(Self { _held: held, number })
        };
        reserve().context("reserving a port")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// The full path of `name`: on the path, or in one of `folders`.
///
/// # Errors
/// When it is nowhere, naming the Debian `package`.
pub fn program(name: &str, folders: &[PathBuf], package: &str) -> Result<PathBuf> {
    let on_path = path_folders();
    let found = folders.iter().chain(&on_path).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("`{name}` is not installed: `apt-get install {package}` brings it"))
}

fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Under whom a server must be started that refuses to run as root: the prefix of its command, empty when we are not root.
///
/// # Errors
/// When we are root and there is no such user.
pub fn user_for_servers(user: &str) -> Result<Vec<String>> {
    let id = Command::new("id").arg("-u").output().context("asking who we are")?;
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return Ok(Vec::new());
    }
    let known = Command::new("id").args(["-u", user]).output().context("looking for a user")?;
    if !known.status.success() {
        bail!("there is no user `{user}`, and its server does not run as root");
    }
    Ok(["setpriv", "--reuid", user, "--regid", user, "--clear-groups"].map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_server_dies_with_the_value_that_stands_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ >\"$0.new\" && mv \"$0.new\" \"$0\" && exec sleep 600"]).arg(&pid_file);
        let server = Server::start(&command, &folder.path().join("log")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !pid_file.exists() {
            assert!(Instant::now() < deadline, "{}", server.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = std::fs::read_to_string(&pid_file).unwrap().trim().to_owned();
        let process = Path::new("/proc").join(pid);
        assert!(process.exists());
        drop(server);
        assert!(!process.exists());
    }

    #[test]
    fn a_reserved_port_is_for_the_server_that_knows_its_number() {
        let port = Port::reserve().unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        for _ in 0..2 {
            // A child that another test is starting at this moment has our files open until it has become its program.
            let deadline = Instant::now() + Duration::from_secs(60);
            while TcpStream::connect(address).is_ok() {
                assert!(Instant::now() < deadline, "somebody else listens there");
                std::thread::sleep(Duration::from_millis(5));
            }
            let server = TcpListener::bind(address).unwrap();
            TcpStream::connect(address).unwrap();
            drop(server);
        }
    }

    #[test]
    fn a_folder_goes_with_the_value_that_stands_for_it() {
        let folder = Folder::new().unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "text").unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let missing = program("no-such-server", &[], "nice-package").unwrap_err();
        assert!(missing.to_string().contains("apt-get install nice-package"), "{missing}");
    }
}
