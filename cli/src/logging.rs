//! Logs: sentences with fields, on standard error, never torn by a progress bar.

use std::io;

use anyhow::Context as _;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::progress;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `level` is a level for everything of ours (`info`), or a filter (`info,sqlx=debug`).
///
/// # Errors
/// When `level` cannot be understood.
pub fn start(level: &str, format: LogFormat, colour: bool) -> anyhow::Result<()> {
    let directives = match level {
        "off" | "error" | "warn" | "info" | "debug" | "trace" => {
            // The Delta kernel logs as an error what it also returns; ours say it once, with what was being done.
            format!("warn,buoyant_kernel=off,delta_kernel=off,tidegate={level}")
        }
        other => other.to_owned(),
    };
    let directives = if level == "off" || level == "error" { level.to_owned() } else { directives };
    let filter =
        EnvFilter::try_new(&directives).with_context(|| format!("`--log-level {level}` is not a log filter"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr).with_ansi(colour);
    // Somebody may have started logging before us (tests in one process): theirs stays.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;
    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One event, written as a whole when it is dropped.
struct Line(Vec<u8>);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            progress::write_stderr(&self.0);
        }
    }
}
