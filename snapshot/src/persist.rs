//! Contract of components with state.

use crate::section::{ArchiveReader, ArchiveWriter, Error as SectionError, Schema};

/// Error while a component is saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The section could not be written, found or decoded.
    #[error("cannot save or restore section {key:?}")]
    Section {
        /// Key of the section.
        key: String,
        /// Error of the archive.
        #[source]
        source: SectionError,
    },
    /// A value of the decoded state is not valid for the component.
    #[error("cannot restore {component}: {reason}")]
    Invalid {
        /// Schema name of the component.
        component: &'static str,
        /// The invalid value and the valid ones.
        reason: String,
    },
    /// The component is busy, so that its state is not complete.
    #[error("cannot save {component}: {reason}")]
    Busy {
        /// Schema name of the component.
        component: &'static str,
        /// The activity and the way out.
        reason: String,
    },
    /// The state has values that this host does not support, and a load can remove them.
    #[error("cannot restore {component} on this host: {reason}")]
    Unsupported {
        /// Schema name of the component.
        component: &'static str,
        /// The values.
        reason: String,
    },
    /// A system call on kernel state failed.
    #[error("cannot save or restore {component}: {operation} failed")]
    Kernel {
        /// Schema name of the component.
        component: &'static str,
        /// Name of the system call or ioctl.
        operation: &'static str,
        /// Error of the call.
        #[source]
        source: std::io::Error,
    },
}

/// Component with state to save and restore.
///
/// `save` requires a quiescent component: no vCPU runs and no request is in flight. `restore` requires an instance
/// built from the same specification as the saved one, and overwrites all state of that instance. Neither has a default
/// body: a component without state has an empty state structure.
pub trait Persist {
    /// Saved state: plain owned data.
    type State: Schema;

    /// Returns the current state.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel does not return its part of the state.
    fn save(&self) -> Result<Self::State, Error>;

    /// Replaces the state. The values of `state` are untrusted; the function checks them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a value is not valid for the component, [`Error::Kernel`] if the kernel rejects it. The
    /// component must not be used after an error.
    fn restore(&mut self, state: Self::State) -> Result<(), Error>;
}

/// [`Persist`] without the type of the state, for lists of different components.
pub trait Component {
    /// Saves the state as section `key` of `archive`.
    ///
    /// # Errors
    /// As [`Persist::save`], and [`Error::Section`] if the key exists.
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), Error>;

    /// Restores the state from section `key` of `archive` and removes the section.
    ///
    /// # Errors
    /// As [`Persist::restore`], and [`Error::Section`] if the section is missing or has another schema.
    fn restore_section(&mut self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), Error>;
}

impl<T: Persist> Component for T {
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), Error> {
        let state = self.save()?;
        archive.write(key, &state).map_err(|source| Error::Section {
            key: key.to_owned(),
            source,
        })
    }

    fn restore_section(&mut self, key: &str, archive: &mut ArchiveReader<'_>) -> Result<(), Error> {
        let state = archive.read(key).map_err(|source| Error::Section {
            key: key.to_owned(),
            source,
        })?;
        self.restore(state)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::{Component, Error, Persist};
    use crate::section::{ArchiveReader, ArchiveWriter, Error as SectionError, Schema};

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Level(u32);

    impl Schema for Level {
        const NAME: &'static str = "level";
        const VERSION: u32 = 1;
    }

    /// A component whose level is at most 9.
    #[derive(Debug, PartialEq)]
    struct Tank(Level);

    impl Persist for Tank {
        type State = Level;

        fn save(&self) -> Result<Level, Error> {
            Ok(self.0.clone())
        }

        fn restore(&mut self, state: Level) -> Result<(), Error> {
            if state.0 > 9 {
                let reason = format!("level {} is above 9", state.0);
                let component = Level::NAME;
                return Err(Error::Invalid { component, reason });
            }
            self.0 = state;
            Ok(())
        }
    }

    #[test]
    fn component_round_trips_through_section() {
        let mut archive = ArchiveWriter::new();
        Tank(Level(7)).save_section("tank/0", &mut archive).unwrap();
        let duplicate = Tank(Level(8)).save_section("tank/0", &mut archive);
        assert!(matches!(
            duplicate,
            Err(Error::Section { key, source: SectionError::Duplicate(_) }) if key == "tank/0"
        ));
        let bytes = archive.into_bytes();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        let mut restored = Tank(Level(0));
        restored.restore_section("tank/0", &mut reader).unwrap();
        assert_eq!(restored, Tank(Level(7)));
        let again = restored.restore_section("tank/0", &mut reader);
        assert!(matches!(
            again,
            Err(Error::Section { key, source: SectionError::Missing(_) }) if key == "tank/0"
        ));
        reader.finish().unwrap();
    }

    #[test]
    fn invalid_state_is_rejected_by_component() {
        let mut archive = ArchiveWriter::new();
        Tank(Level(10)).save_section("tank", &mut archive).unwrap();
        let bytes = archive.into_bytes();
        let mut reader = ArchiveReader::parse(&bytes).unwrap();
        let error = Tank(Level(0)).restore_section("tank", &mut reader).unwrap_err();
        assert_eq!(error.to_string(), "cannot restore level: level 10 is above 9");
    }
}
