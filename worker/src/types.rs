//! Declared types and Arrow types: what a column is stored as, and which computed types fit a declared one.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use tidegate_registry::model::{ColumnType, FeatureView, Project};

/// When a row's features became true; in every view's table.
pub const EVENT_TIMESTAMP: &str = "event_timestamp";
/// End of the interval whose run wrote the row; in every view's table.
pub const INTERVAL_END: &str = "interval_end";
/// The run that wrote the row; in every view's table.
pub const RUN_ID: &str = "run_id";
/// Start of the interval whose run wrote the row: the partition column of every view's table.
pub const INTERVAL_START: &str = "interval_start";

/// Names of all rules that a row broke; in every quarantine table, as what follows.
pub const RULE: &str = "_rule";
/// What is wrong with the row, in words.
pub const REASON: &str = "_reason";
/// The run that set the row aside.
pub const QUARANTINE_RUN: &str = "_run";
/// End of the interval whose run set the row aside.
pub const QUARANTINE_END: &str = "_interval_end";
/// When the row was set aside, in project time.
pub const QUARANTINED_AT: &str = "_quarantined_at";
/// Start of the interval whose run set the row aside: the partition column of every quarantine table.
pub const QUARANTINE_START: &str = "_interval_start";

/// The name of a list's items in Delta's own schemas; any other name makes two equal list types differ.
const LIST_ITEM: &str = "element";

/// How well a computed type fits a declared one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// It is the type that is stored.
    Same,
    /// A cast keeps every value that can occur, or fails loudly (an unsigned 64-bit number beyond a bigint).
    SafeCast,
    /// The author must say what is meant.
    No,
}

/// What a declared type is stored as.
pub fn arrow_type(declared: &ColumnType) -> DataType {
    match declared {
        ColumnType::String => DataType::Utf8,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Integer => DataType::Int32,
        ColumnType::Bigint => DataType::Int64,
        ColumnType::Float => DataType::Float32,
        ColumnType::Double => DataType::Float64,
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => timestamp(),
        ColumnType::Array(item) => DataType::List(Arc::new(Field::new(LIST_ITEM, arrow_type(item), true))),
    }
}

/// What instants are stored as: microseconds in UTC.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The declared type that `computed` would be called, when there is one.
pub fn column_type(computed: &DataType) -> Option<ColumnType> {
    Some(match computed {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::String,
        DataType::Dictionary(_, value) => return column_type(value),
        DataType::Boolean => ColumnType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ColumnType::Integer,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => ColumnType::Bigint,
        DataType::Float16 | DataType::Float32 => ColumnType::Float,
        DataType::Float64 => ColumnType::Double,
        DataType::Date32 | DataType::Date64 => ColumnType::Date,
        DataType::Timestamp(_, Some(_)) => ColumnType::Timestamp,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => match column_type(item.data_type())? {
            ColumnType::Array(_) => return None,
            item => ColumnType::Array(Box::new(item)),
        },
        _ => return None,
    })
}

/// Whether a query's column of type `computed` may stand for a column declared as `declared`.
///
/// Only widening is silent: an average that turns into a whole number, or a local time that is taken for UTC, is a
/// mistake that nobody would see in the features.
pub fn compatible(declared: &ColumnType, computed: &DataType) -> Compat {
    if *computed == arrow_type(declared) {
        return Compat::Same;
    }
    let fits = match (declared, computed) {
        // `NULL AS feature`: a column that is always absent
        (_, DataType::Null) => true,
        (ColumnType::Array(item), DataType::List(computed))
        | (ColumnType::Array(item), DataType::LargeList(computed))
        | (ColumnType::Array(item), DataType::FixedSizeList(computed, _))
        | (ColumnType::Array(item), DataType::ListView(computed))
        | (ColumnType::Array(item), DataType::LargeListView(computed)) => {
            compatible(item, computed.data_type()) != Compat::No
        }
        (_, DataType::Dictionary(_, value)) => compatible(declared, value) != Compat::No,
        // row_number() and its kin count in UInt64
        (ColumnType::Bigint, computed) => computed.is_integer(),
        (declared, computed) => column_type(computed).is_some_and(|computed| {
            computed == *declared || (*declared == ColumnType::Double && computed == ColumnType::Float)
        }),
    };
    if fits { Compat::SafeCast } else { Compat::No }
}

/// The words for a computed type in messages: the declared type's name where there is one.
pub fn describe(computed: &DataType) -> String {
    match (column_type(computed), computed) {
        (Some(declared), _) => declared.to_string(),
        (None, DataType::Timestamp(_, None)) => "timestamp without a zone".to_owned(),
        (None, DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)) => {
            format!("decimal({precision}, {scale})")
        }
        (None, DataType::Interval(_) | DataType::Duration(_)) => "interval".to_owned(),
        (None, DataType::Time32(_) | DataType::Time64(_)) => "time of day".to_owned(),
        (None, DataType::Binary | DataType::LargeBinary | DataType::BinaryView) => "binary".to_owned(),
        (None, DataType::Struct(_)) => "struct".to_owned(),
        (None, DataType::Map(..)) => "map".to_owned(),
        (None, other) => other.to_string().to_lowercase(),
    }
}

/// [`describe`] with its article: `an integer`, `a timestamp without a zone`.
pub fn describe_one(computed: &DataType) -> String {
    let words = describe(computed);
    let article = if words.starts_with(['a', 'i', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

/// An SQL expression that makes `expression`, of type `computed`, fit `declared`.
pub fn cast_expression(expression: &str, declared: &ColumnType, computed: &DataType) -> String {
    match (declared, computed) {
        (ColumnType::Timestamp, DataType::Timestamp(_, None)) => format!("{expression} AT TIME ZONE 'UTC'"),
        _ => format!("CAST({expression} AS {})", SqlType(declared)),
    }
}

struct SqlType<'a>(&'a ColumnType);

impl fmt::Display for SqlType<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            ColumnType::String => "VARCHAR",
            ColumnType::Boolean => "BOOLEAN",
            ColumnType::Integer => "INTEGER",
            ColumnType::Bigint => "BIGINT",
            ColumnType::Float => "REAL",
            ColumnType::Double => "DOUBLE",
            ColumnType::Date => "DATE",
            ColumnType::Timestamp => "TIMESTAMPTZ",
            ColumnType::Array(item) => return write!(f, "{}[]", SqlType(item)),
        })
    }
}

/// The columns of a view's table: keys, `event_timestamp`, features, `interval_end`, `run_id`, and last the partition
/// column `interval_start`.
///
/// Keys exist when the project was validated; a view of an unknown entity has none.
pub fn view_schema(project: &Project, view: &FeatureView) -> SchemaRef {
    let mut fields = output_fields(project, view);
    fields.extend([
        Field::new(INTERVAL_END, timestamp(), false),
        Field::new(RUN_ID, DataType::Utf8, false),
        Field::new(INTERVAL_START, timestamp(), false),
    ]);
    Arc::new(Schema::new(fields))
}

/// The columns of a view's quarantine table: what the view computes, all of it nullable since wrong rows may lack anything,
/// then why and by whom each row was set aside, and last the partition column.
///
/// Names of keys and features begin with a letter, so none can be one of these.
pub fn quarantine_schema(project: &Project, view: &FeatureView) -> SchemaRef {
    let computed = output_fields(project, view).into_iter().map(|field| field.with_nullable(true));
    let texts = [RULE, REASON, QUARANTINE_RUN].map(|name| Field::new(name, DataType::Utf8, false));
    let instants = [QUARANTINE_END, QUARANTINED_AT, QUARANTINE_START].map(|name| Field::new(name, timestamp(), false));
    Arc::new(Schema::new(computed.chain(texts).chain(instants).collect::<Vec<_>>()))
}

/// The columns that a run computes: keys and `event_timestamp` (never null), features (nullable).
pub fn output_schema(project: &Project, view: &FeatureView) -> SchemaRef {
    Arc::new(Schema::new(output_fields(project, view)))
}

fn output_fields(project: &Project, view: &FeatureView) -> Vec<Field> {
    let keys = project.keys_of(view).iter().map(|key| Field::new(&key.name, arrow_type(&key.kind), false));
    let features = view.features.iter().map(|feature| Field::new(&feature.name, arrow_type(&feature.kind), true));
    keys.chain([Field::new(EVENT_TIMESTAMP, timestamp(), false)]).chain(features).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> ColumnType {
        text.parse().unwrap()
    }

    fn list(item: DataType) -> DataType {
        DataType::List(Arc::new(Field::new("item", item, true)))
    }

    #[test]
    fn every_declared_type_is_itself() {
        for name in ColumnType::NAMES {
            for kind in [kind(name), kind(&format!("array<{name}>"))] {
                let stored = arrow_type(&kind);
                assert_eq!(column_type(&stored).as_ref(), Some(&kind));
                assert_eq!(compatible(&kind, &stored), Compat::Same);
                assert_eq!(describe(&stored), kind.to_string());
                assert_eq!(compatible(&kind, &DataType::Null), Compat::SafeCast);
            }
        }
    }

    #[test]
    fn only_widening_is_silent() {
        use DataType::*;
        let dictionary = Dictionary(Box::new(UInt16), Box::new(Utf8));
        let nanos = |zone: &str| Timestamp(TimeUnit::Nanosecond, Some(zone.into()));
        let safe = [
            ("string", vec![Utf8View, LargeUtf8, dictionary.clone()]),
            ("integer", vec![Int8, Int16, UInt8, UInt16]),
            ("bigint", vec![Int8, Int16, Int32, UInt8, UInt16, UInt32, UInt64]),
            ("float", vec![Float16]),
            ("double", vec![Float16, Float32]),
            ("date", vec![Date64]),
            ("timestamp", vec![nanos("UTC"), nanos("+00:00"), nanos("America/New_York")]),
            ("array<double>", vec![list(Float64), list(Float32), list(Null)]),
            ("array<string>", vec![list(Utf8View), LargeList(Arc::new(Field::new("x", Utf8, false)))]),
        ];
        for (declared, types) in safe {
            for computed in types {
                assert_eq!(compatible(&kind(declared), &computed), Compat::SafeCast, "{declared} from {computed}");
            }
        }
        let refused = [
            ("string", vec![Int64, Boolean, Binary]),
            ("boolean", vec![Int32, Utf8]),
            ("integer", vec![Int64, UInt32, Float64, Boolean]),
            ("bigint", vec![Float64, Decimal128(10, 0), Utf8, timestamp()]),
            ("float", vec![Float64, Int32]),
            ("double", vec![Int64, Int32, Decimal128(10, 2), Utf8]),
            ("date", vec![timestamp(), Utf8]),
            ("timestamp", vec![Timestamp(TimeUnit::Microsecond, None), Date32, Utf8, Int64]),
            ("array<double>", vec![Float64, list(Int64), list(list(Float64))]),
        ];
        for (declared, types) in refused {
            for computed in types {
                assert_eq!(compatible(&kind(declared), &computed), Compat::No, "{declared} from {computed}");
            }
        }
    }

    #[test]
    fn messages_read_well() {
        assert_eq!(describe_one(&DataType::Int32), "an integer");
        assert_eq!(describe_one(&DataType::Timestamp(TimeUnit::Second, None)), "a timestamp without a zone");
    }

    #[test]
    fn help_is_sql_that_can_be_pasted() {
        assert_eq!(cast_expression("x", &kind("double"), &DataType::Int64), "CAST(x AS DOUBLE)");
        assert_eq!(cast_expression("x", &kind("array<bigint>"), &DataType::Utf8), "CAST(x AS BIGINT[])");
        let zoneless = DataType::Timestamp(TimeUnit::Nanosecond, None);
        assert_eq!(cast_expression("x", &kind("timestamp"), &zoneless), "x AT TIME ZONE 'UTC'");
    }
}
