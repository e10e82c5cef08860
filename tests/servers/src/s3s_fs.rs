//! `s3s-fs`: an S3 server that answers every single request rightly and lets several writers win one conditional PUT,
//! because it looks first and writes then. The example of what Tidegate must refuse.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::s3::S3Endpoint;

/// A running s3s-fs; gone when it is dropped.
#[derive(Debug)]
pub struct S3sFs {
    address: SocketAddr,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3sFs {
    /// Starts one on a free port of the loopback interface, with a runtime of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("making a folder for s3s-fs")?;
        let files = s3s_fs::FileSystem::new(folder.path()).map_err(|error| anyhow!("opening s3s-fs: {error:?}"))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(S3Endpoint::ACCESS_KEY, S3Endpoint::SECRET_KEY));
        let service = service.build();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()
            .context("starting the runtime of s3s-fs")?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding the port of s3s-fs")?;
        listener.set_nonblocking(true).context("binding the port of s3s-fs")?;
        let address = listener.local_addr().context("binding the port of s3s-fs")?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("s3s-fs".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    // It fails only outside of a runtime.
                    if let Ok(listener) = TcpListener::from_std(listener) {
                        serve(listener, service, stopped).await;
                    }
                });
            })
            .context("starting s3s-fs")?;
        Ok(Self { address, folder, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it answers.
    pub fn endpoint(&self) -> S3Endpoint {
        S3Endpoint { url: format!("http://{}", self.address) }
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        let folder: PathBuf = self.folder.path().join(bucket);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating `{}`", folder.display()))
    }
}

impl Drop for S3sFs {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => return,
        };
        let Ok((socket, _)) = accepted else { continue };
        let service = service.clone();
        connections.spawn(async move {
            // An error here is a client that went away.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
