//! A small S3 in this process, made to misbehave on purpose.
//!
//! It speaks as much of the protocol as an object store client uses: GET and HEAD with ranges and conditions, PUT with
//! `If-None-Match` and `If-Match`, DELETE, multi-object delete, ListObjectsV2 with pages, multipart uploads. Every request
//! is one step under a lock, so conditional writes have exactly one winner. What no real server can be asked for is a
//! [`Fault`]: to apply a write and then lose the answer, to hang, to cut a body in the middle.
//!
//! It runs on plain threads of its own: a test whose runtime is busy or paused does not slow it down, and processes that the
//! test starts reach it over loopback like any other server.

mod faults;
mod objects;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use faults::{Fault, Mode};
use objects::Objects;
use wire::{Request, Response};

/// How many of the last requests are remembered.
const REQUESTS_KEPT: usize = 100_000;

/// Where an S3 server answers, and who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Endpoint {
    /// As in `http://127.0.0.1:9000`.
    pub url: String,
}

impl S3Endpoint {
    /// The key id that the test servers know.
    pub const ACCESS_KEY: &str = "tidegate-test";
    /// The key that goes with it; guards nothing.
    pub const SECRET_KEY: &str = "canary-7f3a-secret";
    /// The region in which every bucket is.
    pub const REGION: &str = "us-east-1";

    /// The environment in which a process finds this server.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY),
            ("AWS_REGION", Self::REGION),
            ("AWS_ENDPOINT_URL", &self.url),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Makes `bucket`.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub fn create_bucket(&self, bucket: &str) -> Result<()> {
        let authority = self.url.trim_start_matches("http://");
        let mut connection = TcpStream::connect(authority).with_context(|| format!("connecting to {authority}"))?;
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/20240101/{}/s3/aws4_request, SignedHeaders=host, Signature=0",
            Self::ACCESS_KEY,
            Self::REGION
        );
        write!(
            connection,
            "PUT /{bucket} HTTP/1.1\r\nHost: {authority}\r\nAuthorization: {authorization}\r\n\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .context("asking for a bucket")?;
        let status = wire::read_status(&mut BufReader::new(connection)).context("asking for a bucket")?;
        anyhow::ensure!(status == 200, "making the bucket `{bucket}` was answered with {status}");
        Ok(())
    }
}

/// A request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As in `PUT`.
    pub method: String,
    /// The decoded path with its query, as in `/bucket/key?uploads=`.
    pub target: String,
}

/// The server; gone when it is dropped.
#[derive(Debug)]
pub struct S3Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    stopping: Condvar,
}

#[derive(Debug, Default)]
struct State {
    objects: Objects,
    faults: Vec<Fault>,
    /// How often faults had struck that were taken away.
    healed: u64,
    seen: VecDeque<Seen>,
    requests: u64,
    stopped: bool,
    connections: HashMap<u64, TcpStream>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of one test's thread must not take the others' server away.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long, or until the server stops.
    fn sleep(&self, duration: Duration) {
        let deadline = Instant::now() + duration;
        let mut state = self.state();
        while !state.stopped {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.stopping.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl S3Fake {
    /// Starts a server without buckets on a free port of the loopback interface.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding the S3 fake")?;
        let address = listener.local_addr().context("binding the S3 fake")?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("s3-fake".to_owned())
            .spawn(move || accept(&listener, &for_thread))
            .context("starting the S3 fake")?;
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// Where it answers.
    pub fn endpoint(&self) -> S3Endpoint {
        S3Endpoint { url: format!("http://{}", self.address) }
    }

    /// Makes a bucket, if it is not there.
    pub fn create_bucket(&self, bucket: &str) {
        self.shared.state().objects.create_bucket(bucket);
    }

    /// Lets something go wrong from now on. Of several faults that fit a request the first strikes.
    pub fn inject(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        let mut state = self.shared.state();
        let strikes: u64 = state.faults.drain(..).map(|fault| fault.strikes()).sum();
        state.healed += strikes;
    }

    /// How often faults have struck since [`S3Fake::heal`].
    pub fn strikes(&self) -> u64 {
        self.shared.state().faults.iter().map(Fault::strikes).sum()
    }

    /// How often faults have struck since the start.
    pub fn struck(&self) -> u64 {
        self.strikes() + self.shared.state().healed
    }

    /// How many requests came in since the start.
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }

    /// The last requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.iter().cloned().collect()
    }

    /// Forgets the requests seen so far.
    pub fn forget(&self) {
        self.shared.state().seen.clear();
    }

    /// The most entries in one page of a listing; 1,000 unless told.
    pub fn set_page_size(&self, entries: usize) {
        self.shared.state().objects.page_size = entries.max(1);
    }

    /// Becomes a server that has never heard of conditional writes, as older ones are.
    pub fn ignore_put_conditions(&self) {
        self.shared.state().objects.ignores_put_conditions = true;
    }

    /// Becomes a server that has never heard of `If-Match` on reads.
    pub fn ignore_get_conditions(&self) {
        self.shared.state().objects.ignores_get_conditions = true;
    }

    /// The keys in `bucket` that begin with `prefix`, in order.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        self.shared.state().objects.keys(bucket, prefix)
    }

    /// What an object holds.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        self.shared.state().objects.get(bucket, key)
    }

    /// Writes an object behind everybody's back.
    pub fn put(&self, bucket: &str, key: &str, content: &[u8]) {
        self.shared.state().objects.put(bucket, key, content.to_vec());
    }

    /// Deletes an object behind everybody's back.
    pub fn delete(&self, bucket: &str, key: &str) {
        self.shared.state().objects.delete(bucket, key);
    }

    /// How many multipart uploads have begun and neither ended nor been aborted.
    pub fn open_uploads(&self) -> usize {
        self.shared.state().objects.open_uploads()
    }
}

impl Drop for S3Fake {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.stopped = true;
            for connection in state.connections.values() {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.stopping.notify_all();
        // Wakes the thread that waits for connections, which then sees that it shall stop.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (id, connection) in (0_u64..).zip(listener.incoming()) {
        let Ok(connection) = connection else { continue };
        let Ok(again) = connection.try_clone() else { continue };
        {
            let mut state = shared.state();
            if state.stopped {
                return;
            }
            state.connections.insert(id, again);
        }
        let shared = Arc::clone(shared);
        let serving = std::thread::Builder::new().name(format!("s3-fake-{id}")).spawn(move || {
            // An error here is a client that went away.
            let _ = serve(&connection, &shared);
            let _ = connection.shutdown(Shutdown::Both);
            shared.state().connections.remove(&id);
        });
        drop(serving);
    }
}

/// Answers requests on one connection until either side ends it.
fn serve(connection: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    while let Some(request) = wire::read_request(&mut reader)? {
        let mode = note(shared, &request);
        match mode {
            None => answer(shared, &request).write(&mut writer)?,
            Some(Mode::Refuse(status)) => Response::error(status, "the fault plan says no").write(&mut writer)?,
            Some(Mode::ApplyThenRefuse(status)) => {
                answer(shared, &request);
                Response::error(status, "applied, and the fault plan says no").write(&mut writer)?;
            }
            Some(Mode::Cut) => return Ok(()),
            Some(Mode::ApplyThenCut) => {
                answer(shared, &request);
                return Ok(());
            }
            Some(Mode::Hang(duration)) => {
                shared.sleep(duration);
                return Ok(());
            }
            Some(Mode::ApplyThenHang(duration)) => {
                answer(shared, &request);
                shared.sleep(duration);
                return Ok(());
            }
            Some(Mode::Delay(duration)) => {
                shared.sleep(duration);
                answer(shared, &request).write(&mut writer)?;
            }
            Some(Mode::CutBody(bytes)) => {
                let (head, body) = answer(shared, &request).encode();
                writer.write_all(&head)?;
                writer.write_all(&body[..bytes.min(body.len())])?;
                return writer.flush();
            }
            Some(Mode::SlowBody { bytes, pause }) => {
                let (head, body) = answer(shared, &request).encode();
                writer.write_all(&head)?;
                for piece in body.chunks(bytes.max(1)) {
                    writer.write_all(piece)?;
                    writer.flush()?;
                    shared.sleep(pause);
                }
            }
            Some(Mode::FlipByte(at)) => {
                let mut response = answer(shared, &request);
                let length = response.body.len();
                if let Some(byte) = response.body.get_mut(at % length.max(1)) {
                    *byte ^= 0x20;
                }
                response.write(&mut writer)?;
            }
            Some(Mode::Truncate(bytes)) => {
                let mut response = answer(shared, &request);
                response.body.truncate(bytes);
                response.write(&mut writer)?;
            }
        }
    }
    Ok(())
}

/// Remembers a request, and finds out what shall go wrong with it.
fn note(shared: &Shared, request: &Request) -> Option<Mode> {
    let mut state = shared.state();
    state.requests += 1;
    let target = request.target();
    let strike = state.faults.iter_mut().find_map(|fault| fault.strike(&request.method, &target));
    if state.seen.len() == REQUESTS_KEPT {
        state.seen.pop_front();
    }
    state.seen.push_back(Seen { method: request.method.clone(), target });
    strike
}

fn answer(shared: &Shared, request: &Request) -> Response {
    let known = format!("Credential={}/", S3Endpoint::ACCESS_KEY);
    if !request.header("authorization").is_some_and(|value| value.contains(&known)) {
        return Response::error(403, "nobody by this name is known here");
    }
    shared.state().objects.answer(request)
}
