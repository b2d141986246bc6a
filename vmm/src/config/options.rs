//! A thing with options, as people write them: `THING,FLAG,NAME=VALUE`. A comma that is part of the thing or of a value is
//! written twice.

use devices::limiter::Bucket;
use serde::{Deserialize, Serialize};

/// What a device may do in a time, in one direction; nothing stands for as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimits {
    /// Bytes.
    pub bandwidth: Option<Bucket>,
    /// Requests or packets.
    pub operations: Option<Bucket>,
}

impl RateLimits {
    /// Replaces the buckets that `new` has.
    pub(super) fn merge(&mut self, new: Self) {
        self.bandwidth = new.bandwidth.or(self.bandwidth);
        self.operations = new.operations.or(self.operations);
    }
}

/// Why such a text makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing is named.
    #[error("there is nothing before the first comma")]
    Nothing,
    /// An option that is there twice.
    #[error("{0:?} is there twice")]
    Twice(String),
    /// An option that does not exist.
    #[error("there is no option {name:?}: there are {known}")]
    Unknown {
        /// What was written.
        name: String,
        /// What could have been.
        known: &'static str,
    },
    /// A flag with a value.
    #[error("{0} is a flag: write it without a value")]
    Flag(String),
    /// An option without its value.
    #[error("{0} needs a value: {0}=VALUE")]
    NoValue(String),
    /// A value that an option cannot have.
    #[error("{name}={value:?}: it is {expected}")]
    Value {
        /// The option.
        name: &'static str,
        /// What was written.
        value: String,
        /// What could have been.
        expected: &'static str,
    },
}

impl Error {
    pub(super) fn value(name: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Value {
            name,
            value: value.to_owned(),
            expected,
        }
    }
}

/// The parts of the text, of which each is taken once.
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
            .ok_or(Error::Nothing)?;
        let mut rest: Vec<(String, Option<String>)> = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (part.as_str(), None),
            };
            if rest.iter().any(|(known, _)| known == name) {
                return Err(Error::Twice(name.to_owned()));
            }
            rest.push((name.to_owned(), value));
        }
        Ok(Self { first, rest })
    }

    /// What the options are of.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// Takes a flag, and says whether it was there.
    pub fn flag(&mut self, name: &str) -> bool {
        self.remove(name, |value| value.is_none()).is_some()
    }

    /// Takes the value of an option.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.remove(name, Option::is_some).flatten()
    }

    fn remove(&mut self, name: &str, fits: fn(&Option<String>) -> bool) -> Option<Option<String>> {
        let place = self
            .rest
            .iter()
            .position(|(known, value)| known == name && fits(value))?;
        Some(self.rest.remove(place).1)
    }

    /// Takes the two limits of a direction: `PREFIXbandwidth` in bytes and `PREFIXops` in operations.
    pub fn limits(&mut self, bandwidth: &'static str, operations: &'static str) -> Result<RateLimits, Error> {
        Ok(RateLimits {
            bandwidth: self.bucket(bandwidth)?,
            operations: self.bucket(operations)?,
        })
    }

    fn bucket(&mut self, name: &'static str) -> Result<Option<Bucket>, Error> {
        let Some(text) = self.take(name) else {
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
                "AMOUNT/MILLISECONDS, or AMOUNT/MILLISECONDS/BURST",
            )),
        }
    }

    /// Ends the reading; `known` is what could have been there.
    pub fn finish(self, known: &'static str) -> Result<(), Error> {
        match self.rest.into_iter().next() {
            None => Ok(()),
            Some((name, value)) if known.split([',', ' ']).any(|word| word == name) => Err(match value {
                Some(_) => Error::Flag(name),
                None => Error::NoValue(name),
            }),
            Some((name, _)) => Err(Error::Unknown { name, known }),
        }
    }
}

/// The parts of `text` between single commas, with a comma for each pair of them.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, parts.last_mut()) {
            (',', _) if letters.peek() != Some(&',') => parts.push(String::new()),
            (letter, Some(part)) => {
                part.push(letter);
                if letter == ',' {
                    letters.next();
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
    fn two_commas_are_one_that_separates_nothing() {
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
