//! Rules for the fields of a body, in addition to the types that serde checks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Maximum number of unknown keys in a log message; a client may send thousands.
const MAX_LOGGED_KEYS: usize = 8;
/// Maximum number of characters of a key or value in a message.
const MAX_SHOWN: usize = 64;

/// Body of a request, or object in it. `schema!` implements it.
pub trait Schema: DeserializeOwned {
    /// Name of the type in the OpenAPI specification.
    const NAME: &'static str;
    /// All fields, also those that mayfly rejects or ignores.
    const FIELDS: &'static [Field];
}

/// Type of a field.
pub trait FieldType {
    /// Rule of a field without a rule of its own.
    const RULE: Rule = Rule::Any;
}

impl FieldType for String {}
impl FieldType for PathBuf {}
impl FieldType for bool {}
impl FieldType for u8 {}
impl FieldType for u16 {}
impl FieldType for u64 {}
impl FieldType for BTreeMap<String, String> {}

impl<T: FieldType> FieldType for Option<T> {
    const RULE: Rule = T::RULE;
}

impl<T: Schema> FieldType for Vec<T> {
    const RULE: Rule = Rule::List(T::FIELDS);
}

/// Field of a body.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Key of the field.
    pub name: &'static str,
    /// Permitted values.
    pub rule: Rule,
}

/// Permitted values of a field, besides the type.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Any value.
    Any,
    /// A number from the first to the second, both included.
    Range(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An object with these fields.
    Object(&'static [Field]),
    /// An array of objects with these fields.
    List(&'static [Field]),
    /// Only the value that disables the feature, which mayfly does not support for this reason.
    Unsupported(Off, &'static str),
    /// Any value, without effect for this reason.
    Ignored(&'static str),
}

/// Value that disables a feature. Null and an absent field disable it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Off {
    /// Only null.
    Null,
    /// `false`
    False,
    /// `0`
    Zero,
    /// One of these texts.
    Text(&'static [&'static str]),
}

/// Rejection of a body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is invalid JSON, or a value has the wrong type. The text is serde's.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(String),
    /// A number is out of range.
    #[error("Invalid {field}: {value} is not in the range from {min} to {max}.")]
    Range {
        /// Path of the field, with a point between two keys.
        field: String,
        /// Value in the request.
        value: u64,
        /// Minimum.
        min: u64,
        /// Maximum.
        max: u64,
    },
    /// A value is invalid.
    #[error("Invalid {field}: {reason}.")]
    Invalid {
        /// Path of the field, with a point between two keys.
        field: String,
        /// Reason, and the way out.
        reason: String,
    },
    /// A field enables a feature that mayfly does not support.
    #[error("The field {field} cannot be {value}: {why}.")]
    Unsupported {
        /// Path of the field, with a point between two keys.
        field: String,
        /// Value in the request, truncated.
        value: String,
        /// Reason, and the alternative.
        why: &'static str,
    },
}

/// Reads a body. Unknown keys are logged and ignored.
///
/// # Errors
/// All variants of [`Error`].
pub fn read<T: Schema>(body: &[u8]) -> Result<T, Error> {
    let json = |error: serde_json::Error| Error::Json(error.to_string());
    let read: Result<T, Error> = serde_json::from_slice(body).map_err(json);
    let value = serde_json::from_slice(body).map_err(json);
    let unknown = match value.and_then(|value| check(T::FIELDS, &value)) {
        // serde's error has the words of Firecracker's, and a position.
        Err(Error::Json(text)) => return Err(read.err().unwrap_or(Error::Json(text))),
        checked => checked?,
    };
    let read = read?;
    if let Some(names) = unknown {
        log::warn!("api: ignored unknown keys in a {}: {names}", T::NAME);
    }
    Ok(read)
}

impl Off {
    fn matches(self, value: &Value) -> bool {
        match self {
            _ if value.is_null() => true,
            Self::Null => false,
            Self::False => *value == Value::Bool(false),
            Self::Zero => value.as_u64() == Some(0),
            Self::Text(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        }
    }
}

/// Checks `value` against `fields`. Returns the names of unknown keys, or `None` if all are known.
pub(super) fn check(fields: &'static [Field], value: &Value) -> Result<Option<String>, Error> {
    let mut check = Check::default();
    check.object(fields, value, "")?;
    let Some(more) = check.unknown.checked_sub(check.names.len()) else {
        return Ok(None);
    };
    let mut names = check.names.join(", ");
    if more > 0 {
        names.push_str(&format!(" and {more} more"));
    }
    Ok((check.unknown > 0).then_some(names))
}

#[derive(Default)]
struct Check {
    names: Vec<String>,
    unknown: usize,
}

impl Check {
    fn object(&mut self, fields: &'static [Field], value: &Value, path: &str) -> Result<(), Error> {
        // serde accepts a sequence as the fields in their order; Firecracker's clients never mean that.
        let Some(object) = value.as_object() else {
            return Err(wrong_type(value, "an object"));
        };
        for (name, value) in object {
            match fields.iter().find(|field| field.name == name) {
                Some(field) => self.field(field, value, &format!("{path}{}", field.name))?,
                None => self.unknown(&format!("{path}{}", shorten(name))),
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, value: &Value, path: &str) -> Result<(), Error> {
        match field.rule {
            // Null in a required field, and wrong types, are errors of serde.
            _ if value.is_null() => Ok(()),
            Rule::Any => Ok(()),
            Rule::Range(min, max) => match value.as_u64() {
                Some(value) if !(min..=max).contains(&value) => Err(Error::Range {
                    field: path.to_owned(),
                    value,
                    min,
                    max,
                }),
                _ => Ok(()),
            },
            // serde also accepts an object with the word as its key.
            Rule::Choice(_) if !value.is_string() => Err(wrong_type(value, "a string")),
            Rule::Choice(_) => Ok(()),
            Rule::Object(fields) => self.object(fields, value, &format!("{path}.")),
            Rule::List(fields) => self.list(fields, value, path),
            Rule::Unsupported(off, _) if off.matches(value) => Ok(()),
            Rule::Unsupported(_, why) => Err(Error::Unsupported {
                field: path.to_owned(),
                value: shorten(&value.to_string()),
                why,
            }),
            Rule::Ignored(why) => {
                if *value != Value::Bool(false) {
                    log::warn!("api: {path} has no effect: {why}");
                }
                Ok(())
            }
        }
    }

    fn list(&mut self, fields: &'static [Field], value: &Value, path: &str) -> Result<(), Error> {
        let Some(list) = value.as_array() else {
            return Err(wrong_type(value, "a sequence"));
        };
        for element in list {
            self.object(fields, element, &format!("{path}."))?;
        }
        Ok(())
    }

    fn unknown(&mut self, name: &str) {
        self.unknown += 1;
        if self.names.len() < MAX_LOGGED_KEYS {
            self.names.push(format!("{name:?}"));
        }
    }
}

fn wrong_type(value: &Value, expected: &str) -> Error {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "sequence",
        Value::Object(_) => "map",
    };
    Error::Json(format!("invalid type: {found}, expected {expected}"))
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
