//! The online key of an entity: its key values joined with `:` in declared order, `:` and `\` escaped by `\`.
//!
//! Other languages build these keys too, so the rule is that short. An entity with one key whose values contain neither
//! character is stored under exactly its value.

/// Appends `text`, one key value, to `out`; `first` when no value stands before it.
pub fn push_value(text: &[u8], first: bool, out: &mut Vec<u8>) {
    if !first {
        out.push(b':');
    }
    for &byte in text {
        if matches!(byte, b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

/// Joins key values into one key.
pub fn join(values: &[impl AsRef<str>]) -> String {
    let mut out = Vec::new();
    for (position, value) in values.iter().enumerate() {
        push_value(value.as_ref().as_bytes(), position == 0, &mut out);
    }
    crate::text::into_text(out)
}

/// A text that no key values join into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an entity key: `\\` must be followed by `:` or `\\`")]
pub struct NotAKey(pub String);

/// Splits a key into its values. The empty key is one empty value.
///
/// # Errors
/// When a `\` stands before anything but `:` and `\`.
pub fn split(key: &str) -> Result<Vec<String>, NotAKey> {
    let mut values = vec![String::new()];
    let mut characters = key.chars();
    while let Some(character) = characters.next() {
        let value = match character {
            ':' => {
                values.push(String::new());
                continue;
            }
            '\\' => match characters.next() {
                Some(escaped @ (':' | '\\')) => escaped,
                _ => return Err(NotAKey(key.to_owned())),
            },
            plain => plain,
        };
        if let Some(last) = values.last_mut() {
            last.push(value);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_what_other_languages_build() {
        assert_eq!(join(&["AA"]), "AA");
        assert_eq!(join(&["EWR", "2013"]), "EWR:2013");
        assert_eq!(join(&["a:b", r"c\d"]), r"a\:b:c\\d");
        assert_eq!(join(&["", ""]), ":");
        assert_eq!(
            split(r"a\x").unwrap_err().to_string(),
            r"`a\x` is not an entity key: `\` must be followed by `:` or `\`"
        );
        assert!(split(r"a\").is_err());
    }

    proptest! {
        #[test]
        fn a_key_splits_into_what_it_was_joined_from(values in prop::collection::vec(r"[a:\\é ]{0,6}", 1..4)) {
            prop_assert_eq!(split(&join(&values)).unwrap(), values);
        }
    }
}
