//! A private PostgreSQL.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Folder, Port, Server, program, user_for_servers};

/// The superuser of the server, and what its password is.
const USER: &str = "tidegate";
/// Odd enough to be found in a text, and with what an URL must escape.
const PASSWORD: &str = "s3cret/w0rd";

/// How long the server may take to come up, or to go down.
const CHANGE_MAX: Duration = Duration::from_secs(60);

/// A server with a folder and a port of its own. Nothing in it survives a power cut (`fsync=off`); it does survive the
/// death of its processes, which is what tests are about.
#[derive(Debug)]
pub struct Postgres {
    // Before the folder, so that it is gone before its files are.
    server: Mutex<Option<Server>>,
    programs: PathBuf,
    as_user: Vec<String>,
    port: Port,
    databases: AtomicU32,
    folder: Folder,
}

impl Postgres {
    /// Starts a server; it accepts connections when this returns.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start, with what it wrote.
    pub fn start() -> Result<Self> {
        let postgres = program("postgres", &installed(), "postgresql")?;
        let programs = postgres.parent().context("finding the programs of PostgreSQL")?.to_owned();
        let folder = Folder::new()?;
        let as_user = user_for_servers("postgres")?;
        let this = Self {
            server: Mutex::new(None),
            programs,
            as_user,
            port: Port::reserve()?,
            databases: AtomicU32::new(0),
            folder,
        };
        this.make_files()?;
        this.start_again()?;
        Ok(this)
    }

    /// The server that all tests of this process share, started by whoever asks first.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| match Self::start() {
            Ok(server) => server,
            Err(error) => panic!("{error:#}"),
        })
    }

    /// The URL of a new, empty database.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn database(&self) -> Result<String> {
        let name = format!("db{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(self.url(&name))
    }

    /// The URL of the database `name`, without TLS: `?sslmode=disable` stands at its end.
    pub fn url(&self, name: &str) -> String {
        let password = PASSWORD.replace('/', "%2F");
        format!("postgres://{USER}:{password}@127.0.0.1:{}/{name}?sslmode=disable", self.port())
    }

    /// Where it listens on the loopback interface, also with TLS.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The superuser's password, as nobody may ever see it.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The certificate by which clients may know the server: signed by itself, for `localhost`.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("server.crt")
    }

    /// Runs `sql` in the database `name` as superuser and returns what it prints, one row a line.
    ///
    /// # Errors
    /// What the server says.
    pub fn execute(&self, name: &str, sql: &str) -> Result<String> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--command"]);
        command.arg(sql).arg(self.url(name));
        succeeded(&command.output().context("starting `psql`")?, "psql")
    }

    /// Stops the server as an administrator does who does not wait for clients: they are told and cut off.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(&self) -> Result<()> {
        self.end_by("INT")
    }

    /// Kills the server at once (`kill -9`).
    ///
    /// # Errors
    /// When it does not die.
    pub fn kill(&self) -> Result<()> {
        self.end_by("KILL")
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`], on the same port.
    ///
    /// # Errors
    /// When it does not start, with what it wrote.
    pub fn start_again(&self) -> Result<()> {
        let mut slot = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + CHANGE_MAX;
        loop {
            // Drops, and thereby ends, what is left of the last one.
            *slot = None;
            let mut command = self.command("postgres");
            command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
            let server = Server::start_ended_by("QUIT", &command, &self.folder.path().join("log"))?;
            // It listens before it has recovered, or ends without ever listening.
            while Instant::now() < deadline {
                if self.execute("postgres", "SELECT 1").is_ok() {
                    *slot = Some(server);
                    return Ok(());
                }
                if server.tail().contains("is still in use") {
                    // Processes of the one that was killed are still on their way out.
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if Instant::now() >= deadline {
                bail!("PostgreSQL does not accept connections after {CHANGE_MAX:?}; it wrote:\n{}", server.tail());
            }
        }
    }

    /// Restarts the server as after a crash: nobody is told, and it recovers from its log.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn restart_immediate(&self) -> Result<()> {
        self.end_by("QUIT")?;
        self.start_again()
    }

    fn end_by(&self, signal: &str) -> Result<()> {
        let mut slot = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.data().join("postmaster.pid");
        let text = fs::read_to_string(&file).with_context(|| format!("reading `{}`", file.display()))?;
        let pid = text.lines().next().context("reading the server's process id")?.to_owned();
        let signal = format!("-{signal}");
        succeeded(&Command::new("kill").args([&signal, &pid]).output().context("starting `kill`")?, "kill")?;
        let deadline = Instant::now() + CHANGE_MAX;
        // A process that ended but was not waited for has no command line.
        let process = Path::new("/proc").join(&pid).join("cmdline");
        while fs::read(&process).is_ok_and(|text| !text.is_empty()) {
            if Instant::now() > deadline {
                bail!("PostgreSQL did not end by `kill {signal}` in {CHANGE_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        *slot = None;
        Ok(())
    }

    fn make_files(&self) -> Result<()> {
        let folder = self.folder.path();
        self.give_away(folder)?;
        let password = folder.join("password");
        fs::write(&password, PASSWORD).context("writing the superuser's password")?;
        self.give_away(&password)?;
        let mut initdb = self.command("initdb");
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256"]);
        initdb.args(["--username", USER, "--pwfile"]).arg(&password).arg("-D").arg(self.data());
        succeeded(&initdb.output().context("starting `initdb`")?, "initdb")?;
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).context("making a certificate")?;
        for (name, text) in [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("writing `{name}`"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
                .with_context(|| format!("guarding `{name}`"))?;
            self.give_away(&path)?;
        }
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nmax_connections = 200\nshared_buffers = 64MB\n\
             fsync = off\nfull_page_writes = off\nssl = on\nssl_cert_file = '{folder}/server.crt'\n\
             ssl_key_file = '{folder}/server.key'\n",
            self.port(),
            folder = folder.display()
        );
        let file = self.data().join("postgresql.auto.conf");
        fs::write(&file, settings).context("writing the server's settings")?;
        self.give_away(&file)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = match self.as_user.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.current_dir(self.folder.path());
        command
    }

    /// To the user who runs the server, when that is not us.
    fn give_away(&self, path: &Path) -> Result<()> {
        if self.as_user.is_empty() {
            return Ok(());
        }
        let id = |flag: &str| -> Result<u32> {
            let output = Command::new("id").args([flag, "postgres"]).output().context("looking for a user")?;
            succeeded(&output, "id")?.trim().parse().context("reading the id of a user")
        };
        chown(path, Some(id("-u")?), Some(id("-g")?)).with_context(|| format!("giving `{}` away", path.display()))
    }
}

/// Where Debian and its kin put what is not on the path, the newest version first.
fn installed() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    let version = |path: &PathBuf| -> u32 {
        let name = path.parent().and_then(Path::file_name);
        name.and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default()
    };
    folders.sort_by_key(|path| std::cmp::Reverse(version(path)));
    folders
}

fn succeeded(output: &Output, name: &str) -> Result<String> {
    if !output.status.success() {
        bail!("`{name}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_server_keeps_its_data_through_every_kind_of_end() {
        let server = Postgres::start().unwrap();
        let url = server.database().unwrap();
        assert!(url.contains("/db0?"), "{url}");
        server.execute("db0", "CREATE TABLE t (n bigint); INSERT INTO t VALUES (7)").unwrap();
        server.restart_immediate().unwrap();
        assert_eq!(server.execute("db0", "SELECT n FROM t").unwrap(), "7");
        server.kill().unwrap();
        assert!(server.execute("db0", "SELECT 1").is_err());
        server.start_again().unwrap();
        server.stop().unwrap();
        server.start_again().unwrap();
        assert_eq!(server.execute("db0", "SELECT n FROM t").unwrap(), "7");
        let folder = server.folder.path().to_owned();
        drop(server);
        assert!(!folder.exists());
    }
}
