//! Prints what this crate makes of columns, for `tests/oracle/quality.py` to compare with numpy and scipy.
//!
//! Reads from standard input JSON with `columns` (name to type and values, null where there is none; NaN and infinities
//! as text), `pairs` (names of a reference and a current column) and `numbers` (a value and its history); prints JSON with
//! the same keys.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool of the tests: it prints, and stops at what is wrong"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray};
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_quality::anomaly::robust_z;
use tidegate_quality::drift::{chi_square, jensen_shannon, kolmogorov_smirnov, psi, shares};
use tidegate_quality::profile::ColumnProfiler;
use tidegate_registry::profile::ColumnProfile;

#[derive(Deserialize)]
struct Asked {
    columns: BTreeMap<String, Column>,
    pairs: Vec<(String, String)>,
    numbers: Vec<(f64, Vec<f64>)>,
}

#[derive(Deserialize)]
struct Column {
    r#type: String,
    values: Vec<Value>,
}

fn main() {
    let asked: Asked = serde_json::from_reader(std::io::stdin()).unwrap();
    let columns: BTreeMap<String, ColumnProfile> =
        asked.columns.into_iter().map(|(name, column)| (name, profile(&column))).collect();
    let pairs: Vec<Value> = asked.pairs.iter().map(|(a, b)| compare(&columns[a], &columns[b])).collect();
    let numbers: Vec<Value> = asked
        .numbers
        .iter()
        .map(|(value, history)| match robust_z(*value, history, 3) {
            Ok(odd) => {
                json!({"z": odd.z, "infinite": odd.z.is_infinite(), "median": odd.median, "deviation": odd.deviation})
            }
            Err(error) => json!({"error": error.to_string()}),
        })
        .collect();
    println!("{}", json!({"columns": columns, "pairs": pairs, "numbers": numbers}));
}

/// The column in three parts, merged.
fn profile(column: &Column) -> ColumnProfile {
    let number = |value: &Value| match value {
        Value::String(text) => Some(text.parse::<f64>().unwrap()),
        value => value.as_f64(),
    };
    let array: ArrayRef = match column.r#type.as_str() {
        "int64" => Arc::new(Int64Array::from_iter(column.values.iter().map(Value::as_i64))),
        "float64" => Arc::new(Float64Array::from_iter(column.values.iter().map(number))),
        "boolean" => Arc::new(BooleanArray::from_iter(column.values.iter().map(Value::as_bool))),
        "date32" => {
            Arc::new(Date32Array::from_iter(column.values.iter().map(|day| day.as_i64().map(|day| day as i32))))
        }
        _ => Arc::new(StringArray::from_iter(column.values.iter().map(Value::as_str))),
    };
    let mut all = ColumnProfiler::new(array.data_type());
    let third = array.len() / 3 + 1;
    for start in (0..array.len()).step_by(third) {
        let mut part = ColumnProfiler::new(array.data_type());
        part.update(&array.slice(start, third.min(array.len() - start))).unwrap();
        all.merge(part);
    }
    all.finish()
}

fn compare(reference: &ColumnProfile, current: &ColumnProfile) -> Value {
    let distance = |found: Result<tidegate_quality::drift::Distance, _>| found.map(|distance| distance.value).ok();
    let ks = kolmogorov_smirnov(reference, current).ok();
    let chi = chi_square(reference, current).ok();
    let shares = shares(reference, current).unwrap();
    json!({
        "basis": format!("{:?}", shares.basis),
        "reference": shares.bins.iter().map(|bin| bin.reference).collect::<Vec<_>>(),
        "current": shares.bins.iter().map(|bin| bin.current).collect::<Vec<_>>(),
        "rows": [shares.reference_rows, shares.current_rows],
        "psi": distance(psi(reference, current)),
        "jensen_shannon": distance(jensen_shannon(reference, current)),
        "kolmogorov_smirnov": ks.map(|ks| json!({"statistic": ks.statistic, "error": ks.error, "p_value": ks.p_value})),
        "chi_square": chi.map(|chi| json!({"statistic": chi.statistic, "degrees": chi.degrees, "p_value": chi.p_value})),
    })
}
