//! How a command ends: what went wrong, told once, and the exit code that says whose turn it is.

use std::fmt;
use std::io;

use tidegate_registry::ids::InvalidName;
use tidegate_registry::store::StoreError;
use tidegate_registry::time::EmptyInterval;
use tidegate_worker::online::OnlineError;

/// What a command says to the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: the input or the data is wrong; change it and try again.
    Wrong,
    /// 2: we failed.
    Failed,
}

impl Exit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Wrong => 1,
            Self::Failed => 2,
        }
    }
}

/// Something that the user can mend: ends with exit code 1.
#[derive(Debug)]
pub struct UserError {
    message: String,
    hint: Option<String>,
    waits: bool,
    missing: bool,
}

impl UserError {
    /// What is wrong: lower case, no full stop.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, waits: false, missing: false }
    }

    /// What to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What was named does not exist.
    #[must_use]
    pub fn missing(mut self) -> Self {
        self.missing = true;
        self
    }

    /// Somebody else has to say yes first.
    #[must_use]
    pub fn waits(mut self) -> Self {
        self.waits = true;
        self
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for UserError {}

/// Nobody reads our standard output any more (`tidegate … | head`): not an error.
#[derive(Debug)]
pub struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// Whose turn it is after `error`.
pub fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<OutputClosed>() {
        Exit::Done
    } else if error.chain().any(is_the_users) {
        Exit::Wrong
    } else {
        Exit::Failed
    }
}

/// Whether nothing is wrong but that somebody else has to say yes first.
pub fn waits(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<UserError>().is_some_and(|error| error.waits))
}

/// Whether something that was named does not exist.
pub fn is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<UserError>().is_some_and(|error| error.missing)
            || matches!(cause.downcast_ref(), Some(StoreError::NotFound { .. }))
    })
}

/// Whether a part that others run did not answer: the same may work later.
pub fn is_unavailable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(StoreError::Unavailable(_)))
            || matches!(cause.downcast_ref(), Some(OnlineError::Unavailable(_)))
    })
}

/// What to try, where something helps.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint_of)
}

fn is_the_users(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.is::<UserError>()
        || cause.is::<InvalidName>()
        || cause.is::<EmptyInterval>()
        || matches!(
            cause.downcast_ref::<StoreError>(),
            Some(StoreError::NotFound { .. } | StoreError::Conflict(_) | StoreError::Refused(_))
        )
}

/// The whole story: the error, its causes, and a hint where one helps. Empty when there is nothing to tell.
pub fn explain(error: &anyhow::Error) -> String {
    use fmt::Write as _;
    if error.is::<OutputClosed>() {
        return String::new();
    }
    let mut text = format!("error: {}", story(error));
    if let Some(hint) = hint(error) {
        let _ = writeln!(text, "hint: {hint}");
    }
    text
}

/// The error and its causes, a line each.
pub fn story(error: &anyhow::Error) -> String {
    use fmt::Write as _;
    let mut text = format!("{error}\n");
    let mut told = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own text; once is enough.
        if !told.contains(&cause) {
            let _ = writeln!(text, "  because: {cause}");
        }
        told = cause;
    }
    text
}

fn hint_of(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<UserError>() {
        return error.hint.clone();
    }
    if let Some(StoreError::Unavailable(_)) = cause.downcast_ref() {
        return Some("another process may be holding the registry; try again in a moment".to_owned());
    }
    if let Some(StoreError::Internal { source, .. }) = cause.downcast_ref() {
        let told = source.to_string();
        if told.contains("readonly database") {
            return Some(
                "check who owns the registry file and its folder: even reading needs to write there".to_owned(),
            );
        }
        if told.contains("is not a database") {
            return Some("check `registry:` in tidegate.yaml: this file holds something else".to_owned());
        }
    }
    match cause.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::PermissionDenied => {
            Some("check who owns the project folder and its `.tidegate` folder".to_owned())
        }
        io::ErrorKind::StorageFull => {
            Some("free some disk space; what was running goes on with the next start".to_owned())
        }
        _ => None,
    }
}

/// The causes of `error` on one line.
pub fn chain(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

/// The name of `known` that `asked` was probably meant to be.
pub fn did_you_mean<'a>(asked: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(asked, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min()
        .map(|(_, name)| format!("did you mean `{name}`?"))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_chain_is_told_once_with_its_hint_and_exit_code() {
        let error = Err::<(), _>(UserError::new("there is no DAG `dayly`").hint("did you mean `daily`?"))
            .context("running `dayly`")
            .unwrap_err();
        assert_eq!(
            explain(&error),
            "error: running `dayly`\n  because: there is no DAG `dayly`\nhint: did you mean `daily`?\n"
        );
        assert_eq!(exit_of(&error), Exit::Wrong);
        assert_eq!(exit_of(&anyhow::anyhow!("the disk is on fire")), Exit::Failed);
        assert_eq!(exit_of(&StoreError::Refused("it has ended".to_owned()).into()), Exit::Wrong);
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let error = anyhow::Error::new(OutputClosed);
        assert_eq!((exit_of(&error), explain(&error).as_str()), (Exit::Done, ""));
    }

    #[test]
    fn names_are_only_guessed_when_they_are_close() {
        assert_eq!(
            did_you_mean("flights_dayly", ["flights_daily", "hourly"]).unwrap(),
            "did you mean `flights_daily`?"
        );
        assert_eq!(did_you_mean("x", ["flights_daily"]), None);
    }
}
