//! Archive of named, versioned sections, each read exactly once.
//!
//! Format of a section, all integers little-endian:
//!
//! ```text
//! u16 length of key | key | u16 length of schema name | schema name | u32 schema version | u32 length | payload
//! ```
//!
//! The payload is the state structure in postcard encoding, which identifies fields and variants by position.

use std::collections::BTreeMap;
use std::io;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// State structure with a name and version of its layout.
pub trait Schema: Serialize + DeserializeOwned {
    /// Name of the component, for example `"i8042"`. Must not change.
    const NAME: &'static str;
    /// Version of the layout. Must be increased if a field is added, removed, or changes its meaning.
    const VERSION: u32;
}

/// Error while sections are written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two sections have the same key.
    #[error("section {0:?} exists twice")]
    Duplicate(String),
    /// A key or a name is longer than 65,535 bytes, or a payload longer than 4 GiB.
    #[error("cannot write section {0:?}: key, schema name or payload is too long for the format")]
    TooLarge(String),
    /// The process has no memory for the encoding.
    #[error(
        "cannot encode section {0:?}: out of memory; raise RLIMIT_AS (ulimit -v), or free memory of the host"
    )]
    NoMemory(String),
    /// The state structure could not be encoded.
    #[error("cannot encode section {key:?}")]
    Encode {
        /// Key of the section.
        key: String,
        /// Error of the encoder.
        #[source]
        source: postcard::Error,
    },
    /// The payload is not an encoding of the expected structure.
    #[error("cannot decode section {key:?}")]
    Decode {
        /// Key of the section.
        key: String,
        /// Error of the decoder.
        #[source]
        source: postcard::Error,
    },
    /// The payload is longer than the structure.
    #[error("cannot decode section {key:?}: it has {extra} extra bytes")]
    Trailing {
        /// Key of the section.
        key: String,
        /// Number of bytes after the structure.
        extra: usize,
    },
    /// The archive ends within a section.
    #[error("cannot read the section at byte {at}: {missing} bytes are missing")]
    Truncated {
        /// Offset of the incomplete field.
        at: usize,
        /// Number of missing bytes.
        missing: usize,
    },
    /// A key or a schema name is not UTF-8.
    #[error("cannot read the section name at byte {0}: it is not UTF-8")]
    Name(usize),
    /// The section does not exist, or was read before.
    #[error("section {0:?} is missing")]
    Missing(String),
    /// The section holds another structure or version.
    #[error("section {key:?} holds {found}, but {expected} is required")]
    Schema {
        /// Key of the section.
        key: String,
        /// Name and version in the archive.
        found: String,
        /// Required name and version.
        expected: String,
    },
    /// The machine has no component for these sections.
    #[error("cannot restore the sections {0:?}: the machine has no component for them")]
    Leftover(Vec<String>),
}

/// Archive under construction.
#[derive(Debug, Default)]
pub struct ArchiveWriter {
    sections: BTreeMap<String, Vec<u8>>,
}

impl ArchiveWriter {
    /// Creates an archive without sections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `state` as section `key`.
    ///
    /// # Errors
    /// [`Error::Duplicate`] if the key exists, [`Error::Encode`] and [`Error::TooLarge`] if the format does not support
    /// the state, [`Error::NoMemory`].
    pub fn write<S: Schema>(&mut self, key: &str, state: &S) -> Result<(), Error> {
        if self.sections.contains_key(key) {
            return Err(Error::Duplicate(key.to_owned()));
        }
        let too_large = || Error::TooLarge(key.to_owned());
        let mut section = Vec::new();
        for name in [key, S::NAME] {
            let length = u16::try_from(name.len()).map_err(|_| too_large())?;
            section.extend_from_slice(&length.to_le_bytes());
            section.extend_from_slice(name.as_bytes());
        }
        section.extend_from_slice(&S::VERSION.to_le_bytes());
        let length_at = section.len();
        section.extend_from_slice(&[0; 4]);
        let payload_at = section.len();
        let encoded = postcard::serialize_with_flavor(state, FallibleBytes(section));
        let mut section = encoded.map_err(|source| match source {
            postcard::Error::SerializeBufferFull => Error::NoMemory(key.to_owned()),
            source => Error::Encode {
                key: key.to_owned(),
                source,
            },
        })?;
        let length = u32::try_from(section.len() - payload_at).map_err(|_| too_large())?;
        section[length_at..payload_at].copy_from_slice(&length.to_le_bytes());
        self.sections.insert(key.to_owned(), section);
        Ok(())
    }

    /// Encodes the sections, sorted by key.
    pub fn into_bytes(self) -> Vec<u8> {
        self.sections.into_values().collect::<Vec<_>>().concat()
    }

    /// Encodes the sections like [`into_bytes`](Self::into_bytes).
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`]
    pub(crate) fn try_into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(self.sections.values().map(Vec::len).sum())?;
        self.sections
            .into_values()
            .for_each(|section| bytes.extend_from_slice(&section));
        Ok(bytes)
    }
}

/// Encoding that fails if the process has no memory for it.
struct FallibleBytes(Vec<u8>);

impl Flavor for FallibleBytes {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        let reserved = self.0.try_reserve(bytes.len());
        reserved.map_err(|_| postcard::Error::SerializeBufferFull)?;
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Self::Output> {
        Ok(self.0)
    }
}

#[derive(Debug)]
struct Section<'a> {
    name: &'a str,
    version: u32,
    payload: &'a [u8],
}

/// Archive to read sections from, each once.
#[derive(Debug)]
pub struct ArchiveReader<'a> {
    sections: BTreeMap<&'a str, Section<'a>>,
}

impl<'a> ArchiveReader<'a> {
    /// Parses the sections in `bytes`; [`read`](Self::read) decodes their payloads.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Name`] or [`Error::Duplicate`].
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
                return Err(Error::Duplicate(key.to_owned()));
            }
        }
        Ok(Self { sections })
    }

    /// Returns the version of section `key`, or `None` if it does not exist or was read before. A component that still reads an
    /// earlier version selects its structure by it.
    pub fn version(&self, key: &str) -> Option<u32> {
        self.sections.get(key).map(|section| section.version)
    }

    /// Removes section `key` and decodes it.
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

    /// Reads section `key` like [`read`](Self::read), or returns `None` if it does not exist.
    ///
    /// # Errors
    /// [`Error::Schema`], [`Error::Decode`] or [`Error::Trailing`].
    pub fn read_optional<S: Schema>(&mut self, key: &str) -> Result<Option<S>, Error> {
        match self.read(key) {
            Err(Error::Missing(_)) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Checks that all sections were read.
    ///
    /// # Errors
    /// [`Error::Leftover`] if a section was not read.
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
    fn next_bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let bytes = rest.get(..length).ok_or(Error::Truncated {
            at: self.at,
            missing: length.saturating_sub(rest.len()),
        })?;
        self.at += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.next_bytes(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn name(&mut self) -> Result<&'a str, Error> {
        let length = u16::from_le_bytes(self.array()?);
        let at = self.at;
        std::str::from_utf8(self.next_bytes(length.into())?).map_err(|_| Error::Name(at))
    }

    fn payload(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u32()?;
        let length = usize::try_from(length).map_err(|_| Error::Truncated {
            at: self.at,
            missing: usize::MAX,
        })?;
        self.next_bytes(length)
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
    fn round_trip_keeps_sections() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        assert_eq!(reader.version("clock/0"), Some(Clock::VERSION));
        assert_eq!(reader.read::<Clock>("clock/0").unwrap(), clock());
        assert_eq!(reader.version("clock/0"), None);
        assert_eq!(reader.read::<Clock>("clock/1").unwrap().ticks, 7);
        reader.finish().unwrap();
    }

    #[test]
    fn second_read_of_section_fails() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        reader.read::<Clock>("clock/0").unwrap();
        assert!(matches!(reader.read::<Clock>("clock/0"), Err(Error::Missing(key)) if key == "clock/0"));
    }

    #[test]
    fn optional_section_may_be_missing() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        assert_eq!(reader.read_optional::<Clock>("clock/0").unwrap(), Some(clock()));
        assert_eq!(reader.read_optional::<Clock>("clock/0").unwrap(), None);
        assert!(matches!(
            reader.read_optional::<NewerClock>("clock/1"),
            Err(Error::Schema { .. })
        ));
    }

    #[test]
    fn unread_section_is_an_error() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        reader.read::<Clock>("clock/0").unwrap();
        assert!(matches!(reader.finish(), Err(Error::Leftover(keys)) if keys == ["clock/1"]));
    }

    #[test]
    fn other_version_is_rejected_before_decode() {
        let bytes = archive();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        let error = reader.read::<NewerClock>("clock/0").err().unwrap();
        assert_eq!(
            error.to_string(),
            "section \"clock/0\" holds clock version 3, but clock version 4 is required"
        );
    }

    #[test]
    fn duplicate_key_is_rejected() {
        let mut writer = ArchiveWriter::new();
        writer.write("clock", &clock()).unwrap();
        assert!(matches!(
            writer.write("clock", &clock()),
            Err(Error::Duplicate(_))
        ));
        let twice = [archive(), archive()].concat();
        assert!(matches!(ArchiveReader::parse(&twice), Err(Error::Duplicate(_))));
    }

    #[test]
    fn every_truncation_fails() {
        let bytes = archive();
        for length in 1..bytes.len() {
            let parsed = ArchiveReader::parse(&bytes[..length]);
            let is_incomplete = parsed.is_ok_and(|mut reader| reader.read::<Clock>("clock/1").is_err());
            assert!(
                is_incomplete || ArchiveReader::parse(&bytes[..length]).is_err(),
                "{length} bytes were accepted"
            );
        }
    }

    proptest! {
        #[test]
        fn parse_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut reader) = ArchiveReader::parse(&bytes) {
                prop_assert!(reader.read::<Clock>("clock/0").is_err());
            }
        }

        #[test]
        fn parse_changed_byte_never_panics(at in 0..100_usize, value: u8) {
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
