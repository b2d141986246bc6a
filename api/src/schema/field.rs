//! What serde does not know of a field.

use serde_json::Value;

use super::Error;

/// Unknown keys that are named in the log; a client may send thousands.
const NAMED: usize = 8;
/// Characters of a key or a value that are repeated to whoever sent it.
const SHOWN: usize = 64;

/// One field of a body.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it may hold.
    pub rule: Rule,
}

/// What a field may hold, besides what its type says.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Anything.
    Any,
    /// A number from the first to the second, both included.
    Range(u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An object with these fields.
    Object(&'static [Field]),
    /// An array of objects with these fields.
    List(&'static [Field]),
    /// Only what leaves it off: mayfly does not have it, for this reason.
    Unsupported(Off, &'static str),
    /// Anything, which does nothing, for this reason.
    Ignored(&'static str),
}

/// The value that a field has when its feature is not wanted. Null and nothing at all mean the same.
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
    /// `{}`
    Empty,
}

impl Field {
    /// A field that may hold anything of its type.
    pub const fn any(name: &'static str) -> Self {
        let rule = Rule::Any;
        Self { name, rule }
    }

    /// A field for a number from `min` to `max`.
    pub const fn range(name: &'static str, min: u64, max: u64) -> Self {
        let rule = Rule::Range(min, max);
        Self { name, rule }
    }

    /// A field for one of `words`.
    pub const fn choice(name: &'static str, words: &'static [&'static str]) -> Self {
        let rule = Rule::Choice(words);
        Self { name, rule }
    }

    /// A field for an object with `fields`.
    pub const fn object(name: &'static str, fields: &'static [Self]) -> Self {
        let rule = Rule::Object(fields);
        Self { name, rule }
    }

    /// A field for an array of objects with `fields`.
    pub const fn list(name: &'static str, fields: &'static [Self]) -> Self {
        let rule = Rule::List(fields);
        Self { name, rule }
    }

    /// A field of Firecracker's that mayfly does not have.
    pub const fn unsupported(name: &'static str, off: Off, why: &'static str) -> Self {
        let rule = Rule::Unsupported(off, why);
        Self { name, rule }
    }

    /// A field of an older Firecracker's that can be done without.
    pub const fn ignored(name: &'static str, why: &'static str) -> Self {
        let rule = Rule::Ignored(why);
        Self { name, rule }
    }
}

impl Off {
    fn is(self, value: &Value) -> bool {
        match self {
            _ if value.is_null() => true,
            Self::Null => false,
            Self::False => *value == Value::Bool(false),
            Self::Zero => value.as_u64() == Some(0),
            Self::Text(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Self::Empty => value.as_object().is_some_and(serde_json::Map::is_empty),
        }
    }
}

/// Holds `value` against `fields`, and returns the names of what is not among them.
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
        // serde would take a sequence for the fields in their order.
        let Some(object) = value.as_object() else {
            return Err(wrong(value, "an object"));
        };
        for (name, value) in object {
            match fields.iter().find(|field| field.name == name) {
                Some(field) => self.field(field, value, &format!("{path}{}", field.name))?,
                None => self.unknown(&format!("{path}{}", short(name))),
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, value: &Value, path: &str) -> Result<(), Error> {
        match field.rule {
            // What else is wrong with null, and with types, serde says.
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
            // serde would take an object with the word as its key.
            Rule::Choice(_) if !value.is_string() => Err(wrong(value, "a string")),
            Rule::Choice(_) => Ok(()),
            Rule::Object(fields) => self.object(fields, value, &format!("{path}.")),
            Rule::List(fields) => self.list(fields, value, path),
            Rule::Unsupported(off, _) if off.is(value) => Ok(()),
            Rule::Unsupported(_, why) => Err(Error::Unsupported {
                field: path.to_owned(),
                value: short(&value.to_string()),
                why,
            }),
            Rule::Ignored(why) => {
                if *value != Value::Bool(false) {
                    log::warn!("api: {path} does nothing: {why}");
                }
                Ok(())
            }
        }
    }

    fn list(&mut self, fields: &'static [Field], value: &Value, path: &str) -> Result<(), Error> {
        let Some(list) = value.as_array() else {
            return Err(wrong(value, "a sequence"));
        };
        for element in list {
            self.object(fields, element, &format!("{path}."))?;
        }
        Ok(())
    }

    fn unknown(&mut self, name: &str) {
        self.unknown += 1;
        if self.names.len() < NAMED {
            self.names.push(format!("{name:?}"));
        }
    }
}

fn wrong(value: &Value, expected: &str) -> Error {
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

fn short(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}
