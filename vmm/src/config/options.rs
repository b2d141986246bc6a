//! Text with options: `VALUE,FLAG,NAME=VALUE`. A comma inside a value is doubled.

use devices::limiter::Bucket;
use serde::{Deserialize, Serialize};

use super::addresses::AddressError;
use super::forward::Forward;

/// Rate limits of a device in one direction; none is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Limit in bytes.
    pub bandwidth: Option<Bucket>,
    /// Limit in requests or packets.
    pub operations: Option<Bucket>,
}

impl RateLimits {
    /// Replaces those buckets that `new` has; the others stay.
    pub(super) fn merge(&mut self, new: Self) {
        self.bandwidth = new.bandwidth.or(self.bandwidth);
        self.operations = new.operations.or(self.operations);
    }
}

/// Reason why a text with options is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text begins with a comma, or is empty.
    #[error("the value before the first comma is missing")]
    Missing,
    /// Nothing follows a comma.
    #[error("the option after a comma is missing; remove the comma, or double a comma of a path")]
    Empty,
    /// An option is given twice.
    #[error("option {0:?} is given twice; remove one")]
    Duplicate(String),
    /// An option does not exist.
    #[error("option {name:?} does not exist; use {known}")]
    Unknown {
        /// Name of the option.
        name: String,
        /// Names of the options that exist.
        known: &'static str,
    },
    /// A flag has a value.
    #[error("{0} is a flag; remove its value")]
    Flag(String),
    /// An option has no value.
    #[error("option {0} requires a value; write {0}=VALUE")]
    NoValue(String),
    /// A value is invalid.
    #[error("{name}={value:?} is invalid; use {expected}")]
    Value {
        /// Name of the option.
        name: &'static str,
        /// Value in the text.
        value: String,
        /// Valid form of the value.
        expected: &'static str,
    },
    /// The first value is invalid.
    #[error("{value:?} is invalid; use {expected}")]
    First {
        /// Value in the text.
        value: String,
        /// Valid form of the value.
        expected: &'static str,
    },
    /// An option is given for another backend than passt.
    #[error("option {0} requires the backend user")]
    RequiresUser(&'static str),
    /// A port of the host is forwarded twice.
    #[error(
        "cannot forward {0} and {1} for one interface: passt takes each port of this host once; change one port"
    )]
    Forwards(Forward, Forward),
    /// The addresses of an interface are invalid.
    #[error(transparent)]
    Addresses(#[from] AddressError),
}

impl Error {
    pub(super) fn first(value: &str, expected: &'static str) -> Self {
        let value = value.to_owned();
        Self::First { value, expected }
    }

    pub(super) fn value(name: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Value {
            name,
            value: value.to_owned(),
            expected,
        }
    }
}

/// Options that may be repeated.
const REPEATED: [&str; 2] = ["tcp", "udp"];

/// Parts of the text. Each can be taken once; [`finish`](Self::finish) rejects the rest.
pub(super) struct Options {
    first: String,
    rest: Vec<(String, Option<String>)>,
}

impl Options {
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parts = split(text).into_iter();
        let first = parts
            .next()
            .filter(|first| !first.is_empty())
            .ok_or(Error::Missing)?;
        let mut rest: Vec<(String, Option<String>)> = Vec::new();
        for part in parts {
            if part.is_empty() {
                return Err(Error::Empty);
            }
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (part.as_str(), None),
            };
            if !REPEATED.contains(&name) && rest.iter().any(|(known, _)| known == name) {
                return Err(Error::Duplicate(name.to_owned()));
            }
            rest.push((name.to_owned(), value));
        }
        Ok(Self { first, rest })
    }

    /// Returns the value before the first comma.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// Takes a flag. Returns true if it was given.
    pub fn take_flag(&mut self, name: &str) -> bool {
        self.remove(name, |value| value.is_none()).is_some()
    }

    /// Takes the value of an option.
    pub fn take_value(&mut self, name: &str) -> Option<String> {
        self.remove(name, Option::is_some).flatten()
    }

    fn remove(&mut self, name: &str, is_match: fn(&Option<String>) -> bool) -> Option<Option<String>> {
        let position = self
            .rest
            .iter()
            .position(|(known, value)| known == name && is_match(value))?;
        Some(self.rest.remove(position).1)
    }

    /// Takes the values of the options named `bandwidth` and `operations`, the limits of one direction.
    pub fn take_limits(
        &mut self,
        bandwidth: &'static str,
        operations: &'static str,
    ) -> Result<RateLimits, Error> {
        Ok(RateLimits {
            bandwidth: self.take_bucket(bandwidth)?,
            operations: self.take_bucket(operations)?,
        })
    }

    fn take_bucket(&mut self, name: &'static str) -> Result<Option<Bucket>, Error> {
        let Some(text) = self.take_value(name) else {
            return Ok(None);
        };
        let numbers: Option<Vec<u64>> = text.split('/').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([size, refill_time_ms]) => Ok(Some(Bucket {
                size: *size,
                refill_time_ms: *refill_time_ms,
                one_time_burst: 0,
            })),
            Some([size, refill_time_ms, one_time_burst]) => {
                let (size, refill_time_ms, one_time_burst) = (*size, *refill_time_ms, *one_time_burst);
                Ok(Some(Bucket {
                    size,
                    refill_time_ms,
                    one_time_burst,
                }))
            }
            _ => Err(Error::value(
                name,
                &text,
                "AMOUNT/MILLISECONDS or AMOUNT/MILLISECONDS/BURST",
            )),
        }
    }

    /// Fails if an option remains. `names` are lists of the options that exist, and `known` the text that names them.
    pub fn finish(self, names: &[&[&str]], known: &'static str) -> Result<(), Error> {
        match self.rest.into_iter().next() {
            None => Ok(()),
            Some((name, value)) if names.iter().any(|names| names.contains(&name.as_str())) => {
                Err(match value {
                    Some(_) => Error::Flag(name),
                    None => Error::NoValue(name),
                })
            }
            Some((name, _)) => Err(Error::Unknown { name, known }),
        }
    }
}

/// Splits `text` at single commas. Each pair of commas becomes one comma.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, parts.last_mut()) {
            (',', _) if characters.peek() != Some(&',') => parts.push(String::new()),
            (character, Some(part)) => {
                part.push(character);
                if character == ',' {
                    characters.next();
                }
            }
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn double_comma_is_literal() {
        for (text, parts) in [
            ("", &[""][..]),
            ("a", &["a"]),
            ("a,b", &["a", "b"]),
            ("a,,b", &["a,b"]),
            ("a,,,b", &["a,", "b"]),
            ("a,,,,b", &["a,,b"]),
            (",", &["", ""]),
            (",,", &[","]),
            ("a,b,", &["a", "b", ""]),
        ] {
            assert_eq!(split(text), parts, "{text}");
        }
    }
}
