//! `moto`: an S3 server from PyPI that many projects test against, written by people who never saw our code.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{Port, Server};
use crate::s3::S3Endpoint;

/// Names a Python that has `moto`; without it, one is made below the target folder once.
pub const MOTO_VARIABLE: &str = "TIDEGATE_TEST_MOTO";

/// A running moto server.
#[derive(Debug)]
pub struct Moto {
    port: Port,
    /// Holds its log.
    _folder: tempfile::TempDir,
    _server: Server,
}

impl Moto {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When it is not installed and cannot be, or does not start.
    pub fn start() -> Result<Self> {
        let python = python_with_moto()?;
        let folder = tempfile::tempdir().context("making a folder for moto")?;
        let port = Port::reserve()?;
        let mut command = Command::new(python);
        command.args(["-c", include_str!("serve_s3.py"), &port.number().to_string()]);
        let mut server = Server::start(&command, &folder.path().join("moto.log"))?;
        server.wait_for_port(port.number())?;
        Ok(Self { port, _folder: folder, _server: server })
    }

    /// Where it answers.
    pub fn endpoint(&self) -> S3Endpoint {
        S3Endpoint { url: format!("http://127.0.0.1:{}", self.port.number()) }
    }
}

/// The interpreter; moto is installed when it is missing.
fn python_with_moto() -> Result<PathBuf> {
    if let Some(named) = named_program() {
        ensure!(named.is_file(), "`{MOTO_VARIABLE}` names `{}`, which is no file", named.display());
        return Ok(named);
    }
    let target = target_folder()?;
    let venv = target.join("moto-venv");
    let python = venv.join("bin/python");
    // Test binaries run side by side: one installs, the others wait for it.
    let lock = File::create(target.join("moto-venv.lock")).context("making the lock of moto's environment")?;
    lock.lock().context("waiting for whoever installs moto")?;
    let complete = venv.join("complete");
    if !complete.is_file() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output().context("starting python3")?;
        ensure!(made.status.success(), "making a Python environment: {}", String::from_utf8_lossy(&made.stderr));
        let pip = venv.join("bin/pip");
        let installed =
            Command::new(pip).args(["install", "--quiet", "moto[server]"]).output().context("starting pip")?;
        ensure!(installed.status.success(), "installing moto: {}", String::from_utf8_lossy(&installed.stderr));
        File::create(complete).context("noting that moto is installed")?;
    }
    Ok(python)
}

#[expect(clippy::disallowed_methods, reason = "where a test finds its server is no setting of a project")]
fn named_program() -> Option<PathBuf> {
    std::env::var(MOTO_VARIABLE).ok().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The folder that cargo builds into: the one above this program that carries cargo's tag.
fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    let tagged = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file());
    tagged.map(Path::to_owned).context("this program is not in a target folder of cargo")
}
