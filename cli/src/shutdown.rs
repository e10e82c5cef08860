//! Stopping: the first Ctrl-C or SIGTERM asks everyone to finish or hand back what they hold; the second leaves at once.

use std::fmt;

use tokio::signal;
use tokio_util::sync::CancellationToken;

use crate::error::Exit;
use crate::progress::note;

/// The wish to stop, as a value passed down.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Claim no more, finish or hand back, flush, close.
    pub gentle: CancellationToken,
}

impl Shutdown {
    /// Turns signals into cancellations. The second one ends the process at once; the first does too, by returning
    /// [`Stopped`], when the command cannot stop gently. It also returns when the system does not deliver signals.
    pub async fn watch_signals(&self, gently: bool) -> anyhow::Error {
        let mut terminate = match Terminate::listen() {
            Ok(terminate) => terminate,
            Err(error) => return anyhow::Error::new(error).context("listening for signals"),
        };
        loop {
            tokio::select! {
                heard = signal::ctrl_c() => if let Err(error) = heard {
                    return anyhow::Error::new(error).context("listening for signals");
                },
                () = terminate.heard() => {}
            }
            if !gently {
                return Stopped.into();
            }
            if self.gentle.is_cancelled() {
                leave_at_once();
            }
            note("stopping: finishing or handing back what is running (once more stops at once)");
            self.gentle.cancel();
        }
    }
}

/// Ends the process without unwinding anything: tasks that are dropped half-way would only complain about each other. What
/// they hold is safe: that is the same as being killed.
#[expect(clippy::disallowed_methods, reason = "asked twice to stop: destructors are what takes the time")]
fn leave_at_once() -> ! {
    note(format!("error: {Stopped}"));
    std::process::exit(i32::from(Exit::Failed.code()))
}

/// A person or the system stopped this process before it was done.
#[derive(Debug)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped; the next start goes on with what was running")
    }
}

impl std::error::Error for Stopped {}

#[cfg(unix)]
struct Terminate(signal::unix::Signal);

#[cfg(unix)]
impl Terminate {
    fn listen() -> std::io::Result<Self> {
        signal::unix::signal(signal::unix::SignalKind::terminate()).map(Self)
    }

    async fn heard(&mut self) {
        self.0.recv().await;
    }
}

#[cfg(not(unix))]
struct Terminate;

#[cfg(not(unix))]
impl Terminate {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn heard(&mut self) {
        std::future::pending::<()>().await;
    }
}
