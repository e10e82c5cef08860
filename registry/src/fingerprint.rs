//! Identifies the logic of a view, so that a change of comments or descriptions recomputes nothing.
//!
//! Logic is what decides the rows: the SQL's tokens without comments and white space, the entity's keys, the output,
//! the features' names and types, and the logic of the views that it reads. The text begins with the name of the
//! algorithm (`v1:`): a newer algorithm gets a newer name and must still compute the old one for what is stored.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::definitions::sql::ParsedSql;
use crate::diagnostics::Origin;
use crate::ids::ViewId;
use crate::model::{FeatureView, Key, Output, SqlText, Table};

/// The fingerprint of `view`, whose `reads` are resolved. `sql` is its query, `parent` gives the fingerprint of a view
/// that it reads.
pub(crate) fn of<'a>(view: &FeatureView, keys: &[Key], sql: &ParsedSql, parent: impl Fn(&ViewId) -> &'a str) -> String {
    // A bare name counts as the version that it means: fixing that version in the text changes nothing.
    let tokens = sql.tokens_with(|named| {
        let name = named.parts.join(".");
        match &view.reads.iter().find(|read| read.name == name)?.table {
            Table::Source(_) => None,
            Table::State(id) => Some((format!("state {id}"), id.name.to_string())),
            Table::History(id) => Some((format!("history {id}"), id.name.to_string())),
        }
    });
    let output = match view.output {
        Output::Full => json!("full"),
        Output::Partial { ttl } => json!(["partial", ttl.as_secs()]),
    };
    let mut features: Vec<(&str, String)> =
        view.features.iter().map(|feature| (feature.name.as_str(), feature.kind.to_string())).collect();
    features.sort();
    let mut reads: Vec<Value> = view
        .reads
        .iter()
        .map(|read| match &read.table {
            Table::Source(source) => json!(["source", source]),
            Table::State(id) => json!(["state", id, parent(id)]),
            Table::History(id) => json!(["history", id, parent(id)]),
        })
        .collect();
    reads.sort_by_key(Value::to_string);
    reads.dedup();
    let keys: Vec<(&str, String)> = keys.iter().map(|key| (key.name.as_str(), key.kind.to_string())).collect();
    let logic = json!([tokens, keys, output, features, reads]);
    format!("v1:{}", hex(&Sha256::digest(logic.to_string()), 16))
}

/// The tokens of `sql` as they count for logic. `None` when it cannot be read.
pub(crate) fn tokens(sql: &str) -> Option<Vec<String>> {
    let text = SqlText { text: sql.to_owned(), origin: Origin::default() };
    crate::definitions::sql::parse(&text, &mut Vec::new()).map(|parsed| parsed.tokens)
}

/// A hash of a definition that has no logic of its own, from its JSON: tells whether anything changed.
pub fn of_body(body: &Value) -> String {
    format!("v1:{}", hex(&Sha256::digest(body.to_string()), 16))
}

fn hex(bytes: &[u8], length: usize) -> String {
    bytes.iter().take(length).map(|byte| format!("{byte:02x}")).collect()
}
