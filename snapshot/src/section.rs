//! Named, versioned sections, each taken exactly once.
//!
//! A section is, with all integers little-endian:
//!
//! ```text
//! u16 length of key | key | u16 length of schema name | schema name | u32 schema version | u32 length | payload
//! ```
//!
//! The payload is the state structure in postcard encoding.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Names the layout of a state structure, so that a reader knows what it is about to decode.
pub trait Schema: Serialize + DeserializeOwned {
    /// What the state belongs to, for example `"i8042"`. Never changes.
    const NAME: &'static str;
    /// Raised whenever a field is added, removed, or changes its meaning.
    const VERSION: u32;
}

/// Why sections could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two sections have the same key.
    #[error("section {0:?} is there twice")]
    Doubled(String),
    /// A key or a name is longer than 65,535 bytes, or a payload longer than 4 GiB.
    #[error("section {0:?} is too large for the format")]
    TooLarge(String),
    /// The state structure could not be encoded.
    #[error("cannot encode section {key:?}")]
    Encode {
        /// Key of the section.
        key: String,
        /// What the encoder said.
        #[source]
        source: postcard::Error,
    },
    /// The payload is not an encoding of the expected structure.
    #[error("cannot decode section {key:?}")]
    Decode {
        /// Key of the section.
        key: String,
        /// What the decoder said.
        #[source]
        source: postcard::Error,
    },
    /// The payload is longer than the structure that it holds.
    #[error("section {key:?} has {extra} bytes too many")]
    Trailing {
        /// Key of the section.
        key: String,
        /// Bytes left over.
        extra: usize,
    },
    /// The archive ends within a section.
    #[error("the sections end at byte {at}, {missing} bytes short")]
    Truncated {
        /// Offset of what could not be read.
        at: usize,
        /// Bytes that are missing.
        missing: usize,
    },
    /// A key or a schema name is not UTF-8.
    #[error("the name at byte {0} is not UTF-8")]
    Name(usize),
    /// A section that is needed is not there, or has been taken already.
    #[error("there is no section {0:?}")]
    Missing(String),
    /// The section holds another structure, or another version of it.
    #[error("section {key:?} holds {found} where {expected} is needed")]
    Schema {
        /// Key of the section.
        key: String,
        /// Name and version in the archive.
        found: String,
        /// Name and version that this build reads.
        expected: String,
    },
    /// Sections that nobody took: their component is missing from the machine.
    #[error("nothing in this machine takes the sections {0:?}")]
    Leftover(Vec<String>),
}

/// Collects sections.
#[derive(Debug, Default)]
pub struct ArchiveWriter {
    sections: BTreeMap<String, Vec<u8>>,
}

impl ArchiveWriter {
    /// An archive without sections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `state` as section `key`.
    ///
    /// # Errors
    /// [`Error::Doubled`] when the key is taken, [`Error::Encode`] and [`Error::TooLarge`] when the state does not fit
    /// the format.
    pub fn write<S: Schema>(&mut self, key: &str, state: &S) -> Result<(), Error> {
        if self.sections.contains_key(key) {
            return Err(Error::Doubled(key.to_owned()));
        }
        let payload = postcard::to_stdvec(state).map_err(|source| Error::Encode {
            key: key.to_owned(),
            source,
        })?;
        let too_large = || Error::TooLarge(key.to_owned());
        let mut section = Vec::with_capacity(payload.len() + key.len() + S::NAME.len() + 12);
        for name in [key, S::NAME] {
            let length = u16::try_from(name.len()).map_err(|_| too_large())?;
            section.extend_from_slice(&length.to_le_bytes());
            section.extend_from_slice(name.as_bytes());
        }
        section.extend_from_slice(&S::VERSION.to_le_bytes());
        section.extend_from_slice(
            &u32::try_from(payload.len())
                .map_err(|_| too_large())?
                .to_le_bytes(),
        );
        section.extend_from_slice(&payload);
        self.sections.insert(key.to_owned(), section);
        Ok(())
    }

    /// The sections, in the order of their keys.
    pub fn into_bytes(self) -> Vec<u8> {
        self.sections.into_values().collect::<Vec<_>>().concat()
    }
}

#[derive(Debug)]
struct Section<'a> {
    name: &'a str,
    version: u32,
    payload: &'a [u8],
}

/// Hands out sections, each once.
#[derive(Debug)]
pub struct ArchiveReader<'a> {
    sections: BTreeMap<&'a str, Section<'a>>,
}

impl<'a> ArchiveReader<'a> {
    /// Finds the sections in `bytes`; payloads are decoded when they are taken.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Name`] or [`Error::Doubled`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut cursor = Cursor { bytes, at: 0 };
        let mut sections = BTreeMap::new();
        while cursor.at < bytes.len() {
            let key = cursor.name()?;
            let section = Section {
                name: cursor.name()?,
                version: cursor.u32()?,
                payload: cursor.payload()?,
            };
            if sections.insert(key, section).is_some() {
                return Err(Error::Doubled(key.to_owned()));
            }
        }
        Ok(Self { sections })
    }

    /// Takes section `key` out and decodes it.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Schema`], [`Error::Decode`] or [`Error::Trailing`].
    pub fn read<S: Schema>(&mut self, key: &str) -> Result<S, Error> {
        let section = self
            .sections
            .remove(key)
            .ok_or_else(|| Error::Missing(key.to_owned()))?;
        if section.name != S::NAME || section.version != S::VERSION {
            return Err(Error::Schema {
                key: key.to_owned(),
                found: format!("{} version {}", section.name, section.version),
                expected: format!("{} version {}", S::NAME, S::VERSION),
            });
        }
        let (state, rest) = postcard::take_from_bytes(section.payload).map_err(|source| Error::Decode {
            key: key.to_owned(),
            source,
        })?;
        match rest.len() {
            0 => Ok(state),
            extra => Err(Error::Trailing {
                key: key.to_owned(),
                extra,
            }),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`Error::Leftover`] when a section was not taken.
    pub fn finish(self) -> Result<(), Error> {
        if self.sections.is_empty() {
            return Ok(());
        }
        Err(Error::Leftover(
            self.sections.into_keys().map(str::to_owned).collect(),
        ))
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take_bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or(Error::Truncated {
            at: self.at,
            missing: length.saturating_sub(rest.len()),
        })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take_bytes(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn name(&mut self) -> Result<&'a str, Error> {
        let length = u16::from_le_bytes(self.array()?);
        let at = self.at;
        std::str::from_utf8(self.take_bytes(length.into())?).map_err(|_| Error::Name(at))
    }

    fn payload(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u32()?;
        let length = usize::try_from(length).map_err(|_| Error::Truncated {
            at: self.at,
            missing: usize::MAX,
        })?;
        self.take_bytes(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};
    use serde::{Deserialize, Serialize};

    use super::{ArchiveReader, ArchiveWriter, Error, Schema};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Clock {
        ticks: u64,
        name: String,
    }

    impl Schema for Clock {
        const NAME: &'static str = "clock";
        const VERSION: u32 = 3;
    }

    #[derive(Serialize, Deserialize)]
    struct NewerClock {
        ticks: u64,
    }

    impl Schema for NewerClock {
        const NAME: &'static str = "clock";
        const VERSION: u32 = 4;
    }

    fn clock() -> Clock {
        Clock {
            ticks: u64::MAX,
            name: "wall".into(),
        }
    }

    fn archive() -> Vec<u8> {
        let mut writer = ArchiveWriter::new();
        writer.write("clock/0", &clock()).unwrap();
        writer
            .write(
                "clock/1",
                &Clock {
                    ticks: 7,
                    name: String::new(),
                },
            )
            .unwrap();
        writer.into_bytes()
    }

    #[test]
    fn sections_come_back_as_they_went() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        assert_eq!(reader.read::<Clock>("clock/0").unwrap(), clock());
        assert_eq!(reader.read::<Clock>("clock/1").unwrap().ticks, 7);
        reader.finish().unwrap();
    }

    #[test]
    fn a_section_is_taken_once() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        reader.read::<Clock>("clock/0").unwrap();
        assert!(matches!(reader.read::<Clock>("clock/0"), Err(Error::Missing(key)) if key == "clock/0"));
    }

    #[test]
    fn a_section_nobody_takes_is_an_error() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        reader.read::<Clock>("clock/0").unwrap();
        assert!(matches!(reader.finish(), Err(Error::Leftover(keys)) if keys == ["clock/1"]));
    }

    #[test]
    fn another_version_is_refused_before_it_is_decoded() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        let error = reader.read::<NewerClock>("clock/0").err().unwrap();
        assert_eq!(
            error.to_string(),
            "section \"clock/0\" holds clock version 3 where clock version 4 is needed"
        );
    }

    #[test]
    fn keys_are_unique() {
        let mut writer = ArchiveWriter::new();
        writer.write("clock", &clock()).unwrap();
        assert!(matches!(writer.write("clock", &clock()), Err(Error::Doubled(_))));
        let twice = [archive(), archive()].concat();
        assert!(matches!(ArchiveReader::parse(&twice), Err(Error::Doubled(_))));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = archive();
        for length in 1..bytes.len() {
            let parsed = ArchiveReader::parse(&bytes[..length]);
            let whole_sections = parsed.is_ok_and(|mut reader| reader.read::<Clock>("clock/1").is_err());
            assert!(
                whole_sections || ArchiveReader::parse(&bytes[..length]).is_err(),
                "{length} bytes were accepted"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut reader) = ArchiveReader::parse(&bytes) {
                prop_assert!(reader.read::<Clock>("clock/0").is_err());
            }
        }

        #[test]
        fn no_changed_byte_makes_the_reader_panic(at in 0..100_usize, value: u8) {
            let mut bytes = archive();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(mut reader) = ArchiveReader::parse(&bytes) {
                let _ = reader.read::<Clock>("clock/0");
                let _ = reader.read::<Clock>("clock/1");
            }
        }
    }
}
