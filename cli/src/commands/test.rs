//! `tidegate test`: views computed from the few rows of their tests. Needs neither registry nor lake.

use serde::Serialize;
use serde_json::{Map, Value};
use tidegate_registry::diagnostics::{Level, ids};
use tidegate_registry::model::DefinitionTest;
use tidegate_registry::run;
use tidegate_worker::definition_test::{CheckOutcome, Difference, TestOutcome, run_test};
use tidegate_worker::engine::Engine;

use super::preview::{Scratch, plain};
use crate::checked;
use crate::context::Context;
use crate::error::{Exit, UserError, chain, did_you_mean};
use crate::output::grid;
use crate::progress::note;

/// Compute views from the rows of their `tests:`, and compare what comes out with what is expected
///
/// Reads the definitions and, for the types of columns, the schemas of sources; nothing else. Exit code 1 when a test failed.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tests, or views whose tests to run [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When the definitions have errors, or there is no test of a name.
pub async fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Exit> {
    let checked = checked::load(context).await?;
    // Rows stand in for sources, so one that cannot be read is no obstacle.
    let found: Vec<_> =
        checked.diagnostics.into_iter().filter(|diagnostic| diagnostic.id != ids::SOURCE_UNREADABLE).collect();
    context.report(&found, &checked.files);
    let wrong = found.iter().any(|diagnostic| diagnostic.level == Level::Error);
    let (Some(settings), Some(project), false) = (checked.settings, checked.project, wrong) else {
        return Err(UserError::new("the definitions have errors; no test was run").into());
    };
    let tests = chosen(&checked.tests, &arguments.names)?;
    let scratch = Scratch::new();
    let engine = Engine::new(settings.memory_bytes, &scratch.0)?;
    let mut reports = Vec::with_capacity(tests.len());
    for test in tests {
        let outcome = run_test(&engine, &project, &checked.schemas, test).await;
        reports.push(Report::of(test, outcome.map_err(|error| chain(&error))));
    }
    let failed = reports.iter().filter(|report| report.verdict == Verdict::Failed).count();
    if context.output.is_json() {
        context.output.json(&reports)?;
    } else {
        for report in &reports {
            context.output.text(report.text())?;
        }
        match (reports.len() - failed, failed) {
            (0, 0) => note("there are no tests: write some under `tests:`"),
            (passed, 0) => note(format!("{passed} passed")),
            (passed, failed) => note(format!("{passed} passed, {failed} failed")),
        }
    }
    Ok(if failed > 0 { Exit::Wrong } else { Exit::Done })
}

/// The tests of these names, and those of views of these names; all when there are none.
fn chosen<'a>(tests: &'a [DefinitionTest], names: &[String]) -> Result<Vec<&'a DefinitionTest>, UserError> {
    let means = |name: &str, test: &DefinitionTest| {
        test.name.as_str() == name || test.view.name.as_str() == name || test.view.to_string() == name
    };
    for name in names {
        if !tests.iter().any(|test| means(name, test)) {
            let error = UserError::new(format!("there is no test `{name}`, and none of a view of this name"));
            let known = tests.iter().flat_map(|test| [test.name.as_str(), test.view.name.as_str()]);
            return Err(match did_you_mean(name, known) {
                Some(guess) => error.hint(guess),
                None => error,
            });
        }
    }
    Ok(tests.iter().filter(|test| names.is_empty() || names.iter().any(|name| means(name, test))).collect())
}

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Passed,
    Failed,
}

/// What a check says whose verdict is expected.
#[derive(Debug, Serialize)]
struct CheckReport {
    check: String,
    expected: run::Verdict,
    verdict: run::Verdict,
    message: String,
}

impl CheckReport {
    fn of(outcome: CheckOutcome) -> Self {
        let CheckOutcome { check, expected, verdict, message } = outcome;
        Self { check, expected, verdict, message }
    }

    /// One line, of a verdict that is not the expected one.
    fn text(&self) -> String {
        format!("  {} should be {}, and is {}: {}", self.check, self.expected, self.verdict, self.message)
    }
}

#[derive(Debug, Serialize)]
struct Report {
    test: String,
    view: String,
    verdict: Verdict,
    /// `file:line:column` of its name.
    at: String,
    /// Why it could not be computed.
    error: Option<String>,
    /// The columns that were compared.
    columns: Vec<String>,
    /// Rows that were expected and not computed.
    missing: Vec<Map<String, Value>>,
    /// Rows that were computed and not expected.
    extra: Vec<Map<String, Value>>,
    /// The checks whose verdicts are expected.
    checks: Vec<CheckReport>,
    #[serde(skip)]
    differences: Vec<Difference>,
}

impl Report {
    fn of(test: &DefinitionTest, outcome: Result<TestOutcome, String>) -> Self {
        let verdict = if outcome.as_ref().is_ok_and(TestOutcome::passed) { Verdict::Passed } else { Verdict::Failed };
        let (error, columns, differences, checks) = match outcome {
            Ok(outcome) => (None, outcome.columns, outcome.differences, outcome.checks),
            Err(error) => (Some(error), Vec::new(), Vec::new(), Vec::new()),
        };
        let side = |expected: bool| {
            let rows = differences.iter().filter(|row| row.expected == expected);
            rows.map(|row| columns.iter().cloned().zip(row.values.iter().cloned()).collect()).collect()
        };
        Self {
            test: test.name.to_string(),
            view: test.view.to_string(),
            verdict,
            at: test.origin.to_string(),
            error,
            missing: side(true),
            extra: side(false),
            checks: checks.into_iter().map(CheckReport::of).collect(),
            columns,
            differences,
        }
    }

    /// One line, and below it what differs.
    fn text(&self) -> String {
        if self.verdict == Verdict::Passed {
            return format!("passed  {}", self.test);
        }
        let head = format!("FAILED  {}, {}", self.test, self.at);
        if let Some(error) = &self.error {
            return format!("{head}\n  {error}");
        }
        let mut lines = vec![head];
        if !self.differences.is_empty() {
            let side = |row: &Difference| if row.expected { "expected" } else { "computed" };
            let line =
                |row: &Difference| std::iter::once(side(row).to_owned()).chain(row.values.iter().map(plain)).collect();
            let headings: Vec<&str> = std::iter::once("").chain(self.columns.iter().map(String::as_str)).collect();
            let table = grid(&headings, self.differences.iter().map(line));
            lines.extend(table.lines().map(|line| format!("  {line}")));
        }
        lines.extend(self.checks.iter().filter(|check| check.verdict != check.expected).map(CheckReport::text));
        lines.join("\n")
    }
}
