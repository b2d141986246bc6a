//! A thing with options, as people write them: `THING,FLAG,NAME=VALUE`.

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
        let mut parts = text.split(',');
        let first = parts
            .next()
            .filter(|first| !first.is_empty())
            .ok_or(Error::Nothing)?
            .to_owned();
        let mut rest: Vec<(String, Option<String>)> = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (part, None),
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

    /// Ends the reading; `known` is what could have been there.
    pub fn finish(self, known: &'static str) -> Result<(), Error> {
        match self.rest.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(Error::Unknown { name, known }),
        }
    }
}
