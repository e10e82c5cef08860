//! What a set of rows holds, in 128 bits that can be added and subtracted.
//!
//! A digest is the wrapping sum of one hash per row, so it depends neither on the order of rows nor on how they were cut
//! into batches, files or slices; replacing a slice updates a table's digest by arithmetic, and compaction changes
//! nothing. It finds accidents and not attacks: somebody who can choose rows can choose a sum.
//!
//! A row's hash is taken of its columns' names and [canonical text](crate::text), in alphabetical order, without those
//! that are null. So neither the order of features in a definition nor a new nullable feature changes a digest of
//! older rows.

use std::fmt;
use std::str::FromStr;

use datafusion::arrow::record_batch::RecordBatch;
use xxhash_rust::xxh3::xxh3_128;

use crate::text::{NoText, TextColumn};

// Bytes that occur in no UTF-8 text, so that neither a name nor a value can imitate a border between them.
const NAME_END: u8 = 0xFE;
const VALUE_END: u8 = 0xFF;

/// Sum of the hashes of a set of rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(u128);

impl Digest {
    /// The digest of these rows together with those of `other`.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The digest of these rows without those of `other`, which are among them.
    #[must_use]
    pub fn remove(self, other: Self) -> Self {
        Self(self.0.wrapping_sub(other.0))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:032x}", self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected 32 hexadecimal digits")]
pub struct NotADigest(pub String);

impl FromStr for Digest {
    type Err = NotADigest;
    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let hexadecimal = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let parsed = hexadecimal.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        parsed.map(Self).ok_or_else(|| NotADigest(text.to_owned()))
    }
}

/// Why rows could not be digested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The batch lacks a column.
    #[error("the rows have no column `{0}`")]
    MissingColumn(String),
    /// A column's type has no text.
    #[error("column `{column}` cannot be digested")]
    NoText {
        /// The column.
        column: String,
        /// Its type.
        #[source]
        source: NoText,
    },
}

/// Digests a stream of batches, looking at the given columns only.
#[derive(Debug, Clone)]
pub struct Digester {
    columns: Vec<String>,
    row: Vec<u8>,
    sum: Digest,
}

impl Digester {
    /// A digester of `columns`: keys, `event_timestamp` and features, in any order.
    pub fn new(columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let mut columns: Vec<String> = columns.into_iter().map(Into::into).collect();
        columns.sort_unstable();
        columns.dedup();
        Self { columns, row: Vec::with_capacity(256), sum: Digest::default() }
    }

    /// Adds the rows of `batch`. Other columns are ignored.
    ///
    /// # Errors
    /// When a column is missing or has no canonical text; nothing has been added then.
    pub fn update(&mut self, batch: &RecordBatch) -> Result<(), DigestError> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            let array = batch.column_by_name(name).ok_or_else(|| DigestError::MissingColumn(name.clone()))?;
            let text = TextColumn::new(array).map_err(|source| DigestError::NoText { column: name.clone(), source })?;
            columns.push((name.as_bytes(), text));
        }
        let mut sum = self.sum.0;
        for row in 0..batch.num_rows() {
            self.row.clear();
            for (name, values) in &columns {
                if !values.is_null(row) {
                    self.row.extend_from_slice(name);
                    self.row.push(NAME_END);
                    values.write(row, &mut self.row);
                    self.row.push(VALUE_END);
                }
            }
            sum = sum.wrapping_add(xxh3_128(&self.row));
        }
        self.sum = Digest(sum);
        Ok(())
    }

    /// The digest of all rows so far.
    pub fn digest(&self) -> Digest {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Float64Array, StringArray, UInt32Array};
    use datafusion::arrow::compute::take_record_batch;
    use proptest::prelude::*;
    use std::sync::Arc;

    type Row = (Option<String>, Option<f64>);

    fn batch(rows: &[Row]) -> RecordBatch {
        let texts: ArrayRef = Arc::new(rows.iter().map(|row| row.0.as_deref()).collect::<StringArray>());
        let numbers: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<Float64Array>());
        RecordBatch::try_from_iter_with_nullable([("text", texts, true), ("number", numbers, true)]).unwrap()
    }

    fn digest(batches: &[RecordBatch]) -> Digest {
        let mut digester = Digester::new(["text", "number"]);
        for batch in batches {
            digester.update(batch).unwrap();
        }
        digester.digest()
    }

    fn one(text: Option<&str>, number: Option<f64>) -> Digest {
        digest(&[batch(&[(text.map(str::to_owned), number)])])
    }

    #[test]
    fn the_hash_of_a_row_never_changes() {
        // Digests are stored for years: these figures must not move with a dependency or a refactoring.
        assert_eq!(one(Some("AA"), Some(7.5)).to_string(), "cc40bb462958ab176ebfe15a494c1c8c");
        assert_eq!(one(Some(""), None).to_string(), "07e68c7f95bcca3e5e348b0cb048af93");
    }

    #[test]
    fn null_is_not_empty_and_columns_do_not_run_together() {
        let all = [
            one(None, None),
            one(Some(""), None),
            one(Some("null"), None),
            one(Some("1.0"), None),
            one(None, Some(1.0)),
            one(Some("number"), Some(1.0)),
            one(Some("a"), Some(1.0)),
        ];
        for (i, left) in all.iter().enumerate() {
            for right in &all[i + 1..] {
                assert_ne!(left, right);
            }
        }
    }

    #[test]
    fn a_new_nullable_feature_changes_nothing() {
        let old = batch(&[(Some("a".into()), Some(1.0))]);
        let empty: ArrayRef = Arc::new(Float64Array::from(vec![None::<f64>]));
        let new = RecordBatch::try_from_iter_with_nullable([
            ("a_new_one", empty, true),
            ("number", Arc::clone(old.column(1)), true),
            ("text", Arc::clone(old.column(0)), true),
        ])
        .unwrap();
        let mut digester = Digester::new(["number", "a_new_one", "text"]);
        digester.update(&new).unwrap();
        assert_eq!(digester.digest(), digest(&[old]));
    }

    #[test]
    fn what_cannot_be_digested_says_so() {
        let mut digester = Digester::new(["absent"]);
        let error = digester.update(&batch(&[])).unwrap_err();
        assert_eq!(error.to_string(), "the rows have no column `absent`");
    }

    #[test]
    fn text_form_reads_back() {
        let value = one(Some("a"), None);
        assert_eq!(value.to_string().parse::<Digest>().unwrap(), value);
        for bad in ["", "0", "+0000000000000000000000000000000f", "g0000000000000000000000000000000"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        prop::collection::vec((prop::option::of(".{0,8}"), prop::option::of(any::<f64>())), 1..40)
    }

    proptest! {
        #[test]
        fn order_and_batches_do_not_matter(rows in rows(), seed in any::<u32>(), cut in any::<prop::sample::Index>()) {
            let whole = batch(&rows);
            let mut order: Vec<u32> = (0..rows.len() as u32).collect();
            order.sort_by_key(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed).rotate_left(seed % 32));
            let shuffled = take_record_batch(&whole, &UInt32Array::from(order)).unwrap();
            let cut = cut.index(rows.len());
            let parts = [shuffled.slice(0, cut), shuffled.slice(cut, rows.len() - cut)];
            prop_assert_eq!(digest(std::slice::from_ref(&whole)), digest(&parts));
            let (left, right) = (digest(&parts[..1]), digest(&parts[1..]));
            prop_assert_eq!(left.merge(right), digest(std::slice::from_ref(&whole)));
            prop_assert_eq!(digest(&[whole]).remove(right), left);
        }
    }
}
