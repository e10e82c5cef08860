//! Values of features as Python's own: the online store keeps texts, definitions keep defaults as JSON.

use anyhow::{Context as _, anyhow};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyList, PyString};
use serde_json::Value;
use tidegate_registry::model::ColumnType;

use crate::errors::raise;

/// The value that canonical `text` of the type `kind` stands for.
pub(crate) fn of_text<'py>(py: Python<'py>, kind: &ColumnType, text: &str) -> PyResult<Bound<'py, PyAny>> {
    let wrong = |error: anyhow::Error| raise(&error.context(format!("`{text}` was stored as a {kind}")));
    Ok(match kind {
        ColumnType::String => PyString::new(py, text).into_any(),
        ColumnType::Boolean => {
            let value = text.parse().context("reading a boolean").map_err(wrong)?;
            PyBool::new(py, value).to_owned().into_any()
        }
        ColumnType::Integer | ColumnType::Bigint => {
            PyInt::new(py, text.parse::<i64>().context("reading an integer").map_err(wrong)?).into_any()
        }
        ColumnType::Float | ColumnType::Double => {
            PyFloat::new(py, text.parse().context("reading a number").map_err(wrong)?).into_any()
        }
        ColumnType::Date => py.import("datetime")?.getattr("date")?.call_method1("fromisoformat", (text,))?,
        ColumnType::Timestamp => instant(py, text)?,
        ColumnType::Array(_) => {
            of_json(py, kind, &serde_json::from_str(text).context("reading a list").map_err(wrong)?)?
        }
    })
}

/// The value of the type `kind` that `value` stands for.
pub(crate) fn of_json<'py>(py: Python<'py>, kind: &ColumnType, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match (kind, value) {
        (_, Value::Null) => Ok(py.None().into_bound(py)),
        (ColumnType::Array(kind), Value::Array(values)) => {
            let values = values.iter().map(|value| of_json(py, kind, value)).collect::<PyResult<Vec<_>>>()?;
            Ok(PyList::new(py, values)?.into_any())
        }
        (_, Value::String(text)) => of_text(py, kind, text),
        (_, Value::Bool(_) | Value::Number(_)) => of_text(py, kind, &value.to_string()),
        (_, other) => Err(raise(&anyhow!("`{other}` was stored as a {kind}"))),
    }
}

/// A `datetime` in UTC of an instant as RFC 3339, which is written with a `Z` that Python 3.10 does not read.
pub(crate) fn instant<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    let text = text.strip_suffix('Z').map_or_else(|| text.to_owned(), |plain| format!("{plain}+00:00"));
    py.import("datetime")?.getattr("datetime")?.call_method1("fromisoformat", (text,))
}
