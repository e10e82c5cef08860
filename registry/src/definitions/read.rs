//! From YAML nodes to the types of [`super::written`], reporting everything that does not fit instead of stopping.

use std::borrow::Cow;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::yaml::{Node, Scalar, Value};
use crate::diagnostics::{Diagnostic, Origin, ids};
use granit_parser::ScalarStyle;

/// What can be read from a node. `None` when it cannot, which has then been reported.
pub(super) trait Read: Sized {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self>;
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

impl<T> Deref for At<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Read> Read for At<T> {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        T::read(node, out).map(|value| Self { value, origin: node.origin.clone() })
    }
}

/// The value of a key. `Bad` is told from `Missing` so that one mistake is reported once.
#[derive(Debug, Clone)]
pub(super) enum Field<T> {
    Missing,
    Bad,
    Is(At<T>),
}

impl<T> Field<T> {
    pub(super) fn get(&self) -> Option<&At<T>> {
        match self {
            Self::Is(value) => Some(value),
            Self::Missing | Self::Bad => None,
        }
    }

    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }

    /// The place of the value, else `otherwise`.
    pub(super) fn origin_or(&self, otherwise: &Origin) -> Origin {
        self.get().map_or_else(|| otherwise.clone(), |at| at.origin.clone())
    }
}

impl<T: Clone> Field<T> {
    pub(super) fn value(&self) -> Option<T> {
        self.get().map(|at| at.value.clone())
    }
}

impl<T: Read> Field<T> {
    pub(super) fn of(node: Option<&Node>, out: &mut Vec<Diagnostic>) -> Self {
        match node {
            None => Self::Missing,
            Some(node) => At::read(node, out).map_or(Self::Bad, Self::Is),
        }
    }
}

pub(super) fn wrong_type(node: &Node, expected: &str) -> Diagnostic {
    Diagnostic::error(ids::WRONG_TYPE, node.origin.clone(), format!("expected {expected}, found {}", node.describe()))
        .with_label(format!("must be {expected}"))
}

/// The scalar of `node`, unless it is null.
pub(super) fn scalar<'a>(node: &'a Node, expected: &str, out: &mut Vec<Diagnostic>) -> Option<&'a Scalar> {
    match &node.value {
        Value::Scalar(scalar) if !node.is_null() => Some(scalar),
        _ => {
            let mut diagnostic = wrong_type(node, expected);
            if node.is_null() {
                diagnostic = diagnostic.with_help("write a value, or remove the key");
            }
            out.push(diagnostic);
            None
        }
    }
}

impl Read for String {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        scalar(node, "text", out).map(|scalar| scalar.text.clone())
    }
}

/// SQL text, which must have kept its lines so that errors inside it can be placed.
#[derive(Debug, Clone)]
pub(super) struct Sql(pub(super) String);

impl Read for Sql {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let scalar = scalar(node, "SQL text", out)?;
        let folded = match scalar.style {
            ScalarStyle::Folded => true,
            ScalarStyle::Literal => false,
            // A text on one line spans as many characters as it has; folding and escapes change that.
            ScalarStyle::Plain | ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                !scalar.text.is_empty() && node.origin.length as usize != scalar.text.chars().count()
            }
        };
        if folded {
            out.push(
                Diagnostic::error(
                    ids::SQL_STYLE,
                    node.origin.clone(),
                    "this YAML notation changes the text of the SQL",
                )
                .with_label("places inside it would be lost")
                .with_help("begin the value with `|` and write the SQL indented on the lines below"),
            );
            return None;
        }
        Some(Self(scalar.text.clone()))
    }
}

macro_rules! read_number {
    ($type:ty, $expected:literal) => {
        impl Read for $type {
            fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
                let text = &scalar(node, $expected, out)?.text;
                let value = text.parse().ok();
                if value.is_none() {
                    out.push(wrong_type(node, $expected));
                }
                value
            }
        }
    };
}
read_number!(u32, "a whole number from 0 to 4294967295");
read_number!(u64, "a whole number of at least 0");
read_number!(i32, "a whole number");

impl Read for f64 {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let text = &scalar(node, "a number", out)?.text;
        let value = text.parse().ok().filter(|value: &f64| value.is_finite());
        if value.is_none() {
            out.push(wrong_type(node, "a number"));
        }
        value
    }
}

/// A list in which every bad item is reported and left out.
impl<T: Read> Read for Vec<At<T>> {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        let Value::List(items) = &node.value else {
            out.push(wrong_type(node, "a list").with_help("write `[…]`, or one line with `- ` for each item"));
            return None;
        };
        Some(items.iter().filter_map(|item| At::read(item, out)).collect())
    }
}

/// A scalar, a list or a map as JSON; plain scalars are read as YAML's core schema says.
impl Read for serde_json::Value {
    fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
        Some(match &node.value {
            Value::List(items) => Self::Array(items.iter().map(|item| Self::read(item, out)).collect::<Option<_>>()?),
            Value::Map(_) => {
                out.push(wrong_type(node, "a plain value"));
                return None;
            }
            Value::Scalar(_) if node.is_null() => Self::Null,
            Value::Scalar(scalar) if scalar.style != ScalarStyle::Plain => Self::String(scalar.text.clone()),
            Value::Scalar(scalar) => match scalar.text.as_str() {
                "true" => Self::Bool(true),
                "false" => Self::Bool(false),
                text => text
                    .parse::<i64>()
                    .map(Self::from)
                    .ok()
                    .or_else(|| text.parse().ok().filter(|value: &f64| value.is_finite()).map(Self::from))
                    .unwrap_or_else(|| Self::String(text.to_owned())),
            },
        })
    }
}

/// The nearest of `known` to `wanted`, when it is near enough to be what was meant.
pub(crate) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wanted.chars().count() / 3).max(1) + usize::from(wanted.len() > 4);
    known
        .into_iter()
        .map(|name| (strsim::osa_distance(wanted, name), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// "did you mean", or what there is to choose from when that is short, or nothing.
pub(super) fn suggestion<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(name) = nearest(wanted, known.iter().copied()) {
        return Some(format!("did you mean `{name}`?"));
    }
    let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    (!known.is_empty() && known.len() <= 24).then(|| format!("choose from {list}"))
}

/// Reports the keys of `node` that are not among `known`. Gives the known keys that those seem to mean, so that they are
/// not reported as missing, too; `None` when it is not a map at all, which is reported.
pub(super) fn check_keys<'a>(
    node: &Node,
    what: &str,
    known: &[&'a str],
    out: &mut Vec<Diagnostic>,
) -> Option<Vec<&'a str>> {
    let Value::Map(entries) = &node.value else {
        let example = known.first().copied().unwrap_or("key");
        out.push(wrong_type(node, &format!("a map ({what})")).with_help(format!("write keys, as in `{example}: …`")));
        return None;
    };
    let mut meant = Vec::new();
    for (key, _) in entries {
        if !known.contains(&key.name.as_str()) {
            let mut diagnostic = Diagnostic::error(
                ids::UNKNOWN_KEY,
                key.origin.clone(),
                format!("unknown key `{}` in {what}", key.name),
            )
            .with_label("not a key here");
            let elsewhere = elsewhere(what, &key.name).map(str::to_owned);
            diagnostic.help = elsewhere.or_else(|| suggestion(&key.name, known.iter().copied()));
            out.push(diagnostic);
            meant.extend(nearest(&key.name, known.iter().copied()));
        }
    }
    Some(meant)
}

/// Why this `what` has no such key, when others have.
fn elsewhere(what: &str, key: &str) -> Option<&'static str> {
    match (what, key) {
        ("check", "on_fail") => Some(
            "only checks that judge rows can set rows aside (`not_null`, `unique`, `range`, `accepted_values`, `regex`, \
             `format`, `length`, `event_time`, `expression` and `referential`)",
        ),
        ("check", "group_by") => Some(
            "groups are judged by checks of single rows (`not_null`, `range`, `accepted_values`, `regex`, `format`, `length`, \
             `event_time`, `expression`, `referential`) and by `row_count`, `null_rate`, `distinct_count`, `mean`, `stddev`, \
             `sum` and `true_ratio`: what others need is not kept of every group",
        ),
        _ => None,
    }
}

/// Reports that `key` is missing from `node`.
pub(super) fn missing(node: &Node, what: &str, key: &str, out: &mut Vec<Diagnostic>) {
    let name = node.get("name").and_then(|name| match &name.value {
        Value::Scalar(scalar) => Some((scalar.text.as_str(), &name.origin)),
        _ => None,
    });
    let id = match key {
        "owner" => ids::MISSING_OWNER,
        "description" => ids::MISSING_DESCRIPTION,
        _ => ids::MISSING_FIELD,
    };
    let help = match key {
        "owner" => {
            "add `owner:` with a name from `owners:`, so that somebody is told when it is late or wrong".to_owned()
        }
        "description" => "add `description:`: what it holds, with its unit".to_owned(),
        _ => format!("add `{key}:`"),
    };
    let (title, origin) = match name {
        Some((name, origin)) => (format!("{what} `{name}` has no `{key}`"), origin.clone()),
        None => (format!("{what} without `{key}`"), node.origin.clone()),
    };
    out.push(Diagnostic::error(id, origin, title).with_label(format!("`{key}` is missing")).with_help(help));
}

/// The schema of one key, with its description.
pub(super) fn described<T: JsonSchema>(generator: &mut SchemaGenerator, description: &str) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    schema.insert("description".to_owned(), description.trim().into());
    schema
}

macro_rules! schema_of {
    ($type:ty, $name:literal, $schema:tt) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}
pub(super) use schema_of;
schema_of!(Sql, "sql", { "type": "string" });

impl<T: JsonSchema> JsonSchema for At<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Declares a map with known keys: its type, how it is read, and its JSON Schema, from one text.
macro_rules! record {
    ($(#[doc = $doc:literal])* $name:ident $what:literal {
        $($(#[doc = $field_doc:literal])* $field:ident: $need:ident $type:ty,)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone)]
        pub(in crate::definitions) struct $name {
            $($(#[doc = $field_doc])* pub(in crate::definitions) $field: Field<$type>,)*
        }

        impl $name {
            pub(in crate::definitions) const KEYS: &'static [&'static str] = &[$(key_name(stringify!($field))),*];
        }

        impl Read for $name {
            fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
                let meant = check_keys(node, $what, Self::KEYS, out)?;
                Some(Self { $($field: {
                    let key = key_name(stringify!($field));
                    let value = node.get(key);
                    if value.is_none() && meant.contains(&key) {
                        Field::Bad
                    } else {
                        if value.is_none() && record!(@required $need) {
                            missing(node, $what, key, out);
                        }
                        Field::of(value, out)
                    }
                },)* })
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&str> = Vec::new();
                $(
                    let key = key_name(stringify!($field));
                    properties.insert(key.to_owned(), described::<$type>(generator, concat!($($field_doc),*)).into());
                    if record!(@required $need) {
                        required.push(key);
                    }
                )*
                json_schema!({
                    "description": concat!($($doc),*).trim(),
                    "type": "object",
                    "additionalProperties": false,
                    "properties": properties,
                    "required": required,
                })
            }
        }
    };
    (@required required) => { true };
    (@required optional) => { false };
}
pub(super) use record;

/// `type` is a keyword of Rust and a key of ours.
pub(super) const fn key_name(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// Declares how the words of an enum are written.
macro_rules! words {
    ($type:ty, $what:literal { $($word:literal => $value:expr,)+ }) => {
        impl Read for $type {
            fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
                const WORDS: &[&str] = &[$($word),+];
                let text = &scalar(node, $what, out)?.text;
                match text.as_str() {
                    $($word => Some($value),)+
                    _ => {
                        let choices = WORDS.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
                        let mut diagnostic = Diagnostic::error(
                            ids::UNKNOWN_WORD,
                            node.origin.clone(),
                            format!("`{text}` is not {}", $what),
                        )
                        .with_label(format!("expected one of {choices}"));
                        diagnostic.help =
                            nearest(text, WORDS.iter().copied()).map(|near| format!("did you mean `{near}`?"));
                        out.push(diagnostic);
                        None
                    }
                }
            }
        }
    };
}
pub(super) use words;

/// Declares a choice written as a map with one key.
macro_rules! one_key {
    ($(#[doc = $doc:literal])* $name:ident $what:literal {
        $($(#[doc = $variant_doc:literal])* $variant:ident = $key:literal: $type:ty,)+
    }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone)]
        pub(in crate::definitions) enum $name {
            $($(#[doc = $variant_doc])* $variant($type),)+
        }

        impl Read for $name {
            fn read(node: &Node, out: &mut Vec<Diagnostic>) -> Option<Self> {
                const KEYS: &[&str] = &[$($key),+];
                check_keys(node, $what, KEYS, out)?;
                let Value::Map(entries) = &node.value else { return None };
                if entries.len() != 1 {
                    out.push(
                        Diagnostic::error(
                            ids::EXCLUSIVE_FIELDS,
                            node.origin.clone(),
                            format!("{} has {} keys instead of one", $what, entries.len()),
                        )
                        .with_help(concat!("write each ", $what, " as a list item of its own")),
                    );
                    return None;
                }
                let (key, value) = entries.first()?;
                match key.name.as_str() {
                    $($key => <$type>::read(value, out).map(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let variants: Vec<Schema> = vec![$({
                    let inner = described::<$type>(generator, concat!($($variant_doc),*));
                    json_schema!({
                        "type": "object", "additionalProperties": false,
                        "properties": { $key: inner }, "required": [$key],
                    })
                }),+];
                json_schema!({ "description": concat!($($doc),*).trim(), "oneOf": variants })
            }
        }
    };
}
pub(super) use one_key;
