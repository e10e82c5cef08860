//! Progress of things that take a while: a bar on a terminal, plain lines elsewhere. All of it on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::UserError;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes a line to standard error, above any bar. That nobody may be reading there stops nothing.
pub fn note(text: impl AsRef<str>) {
    let mut text = text.as_ref().to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    write_stderr(text.as_bytes());
}

/// Writes to standard error without tearing a bar.
pub(crate) fn write_stderr(bytes: &[u8]) {
    BARS.suspend(|| {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(bytes).and_then(|()| stderr.flush());
    });
}

/// Something that is done piece by piece.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    told: u64,
}

impl Progress {
    /// `total` pieces of what `label` says.
    pub fn start(label: &str, total: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} · {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            let bar = BARS.add(ProgressBar::new(total).with_style(style).with_message(label.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        Self { bar, total, done: 0, told: 0 }
    }

    /// `done` pieces are done now; `next` says which is under way.
    pub fn set(&mut self, done: u64, next: &str) {
        if done == self.done {
            return;
        }
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if done == self.total || (done - self.told) * 10 >= self.total {
            // Plain lines: about ten of them, however many pieces there are.
            self.told = done;
            let next = if next.is_empty() || done == self.total { String::new() } else { format!(", now {next}") };
            note(format!("{done} of {} done{next}", self.total));
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        drop(self);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Something that is done in so many pieces as there are: on a terminal only, since elsewhere nobody watches numbers grow.
#[derive(Debug)]
pub struct Counter(Option<ProgressBar>);

impl Counter {
    /// Counts what `label` says.
    pub fn start(label: &str) -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {human_pos} {msg} · {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = BARS.add(ProgressBar::no_length().with_style(style).with_message(label.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        }))
    }

    /// So many are done.
    pub fn set(&mut self, done: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(done);
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Asks on the terminal whether to do what the command is called.
///
/// # Errors
/// When nobody can be asked.
pub fn agreed(command: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(UserError::new("nobody can be asked here, so nothing was changed")
            .hint(format!("`tidegate {command} --yes` does it without asking"))
            .into());
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{command}? [y/N] ").and_then(|()| stderr.flush()).context("asking on the terminal")?;
    drop(stderr);
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
