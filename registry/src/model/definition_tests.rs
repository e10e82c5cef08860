//! Tests of definitions: a few rows in, and the rows that a view shall make of them.
//!
//! They are no part of a [`super::Project`]: nothing of them is applied, stored, or counts in a fingerprint.

use indexmap::IndexMap;
use serde_json::Value;

use super::Table;
use crate::diagnostics::Origin;
use crate::ids::{TestName, ViewId};
use crate::run::Verdict;
use crate::time::Interval;

/// One test of one view.
#[derive(Debug, Clone, PartialEq)]
pub struct DefinitionTest {
    /// Its name, unique in the project.
    pub name: TestName,
    /// The view that is computed.
    pub view: ViewId,
    /// The interval that it is computed for.
    pub interval: Interval,
    /// The tables that stand in for real ones: every source that is read, and any view. Views without rows here are computed
    /// from these tables, over the same interval alone.
    pub given: Vec<GivenTable>,
    /// The rows that shall come out, in any order; `None` when they do not matter.
    pub expect: Option<Vec<TestRow>>,
    /// The verdicts that checks of the view shall give on the rows that come out.
    pub checks: Vec<ExpectedVerdict>,
    /// Where its name is written.
    pub origin: Origin,
}

impl DefinitionTest {
    /// The rows that stand in for `table`, if any do.
    pub fn given(&self, table: &Table) -> Option<&GivenTable> {
        self.given.iter().find(|given| given.table == *table)
    }
}

/// The verdict that a check shall give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedVerdict {
    /// The name of one of the view's own checks.
    pub check: String,
    /// Passed, failed, quarantined or skipped.
    pub verdict: Verdict,
    /// Where it is written.
    pub origin: Origin,
}

/// The rows that stand in for a table.
#[derive(Debug, Clone, PartialEq)]
pub struct GivenTable {
    /// What they stand in for.
    pub table: Table,
    /// The rows.
    pub rows: Vec<TestRow>,
    /// Where its name is written.
    pub origin: Origin,
}

/// One row: values by column. A column that is left out is null.
#[derive(Debug, Clone, PartialEq)]
pub struct TestRow {
    /// The values, as JSON.
    pub values: IndexMap<String, TestValue>,
    /// Where it is written.
    pub origin: Origin,
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct TestValue {
    /// The value: days and instants are text.
    pub value: Value,
    /// Where its column is named.
    pub column: Origin,
    /// Where it is written.
    pub origin: Origin,
}
