//! The contract that everything with state to keep fulfils.

use crate::section::{ArchiveReader, ArchiveWriter, Error as SectionError, Schema};

/// Why a component could not give or take its state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The section could not be written, found or decoded.
    #[error("cannot move state in or out of section {key:?}")]
    Section {
        /// Key of the section.
        key: String,
        /// What was wrong with it.
        #[source]
        source: SectionError,
    },
    /// The state was decoded, but its values cannot be those of this component.
    #[error("{component} cannot take its saved state: {reason}")]
    Invalid {
        /// Schema name of the component.
        component: &'static str,
        /// Which value is wrong, and what was expected.
        reason: String,
    },
    /// The kernel refused to give or take state.
    #[error("{component}: {operation} failed")]
    Kernel {
        /// Schema name of the component.
        component: &'static str,
        /// The operation that failed.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Saves and restores the state of one component.
///
/// `save` is called while the component is quiescent: no vCPU runs and no request is in flight. `restore` is called on
/// an instance that was built from the same specification as the one that was saved, and leaves no trace of what that
/// instance did before. Neither has a default body: a component without state has an empty state structure.
pub trait Persist {
    /// Plain owned data.
    type State: Schema;

    /// Returns the state as it is now.
    ///
    /// # Errors
    /// [`Error::Kernel`] when part of the state lives in the kernel and it does not hand it out.
    fn save(&self) -> Result<Self::State, Error>;

    /// Replaces the state. The values of `state` are untrusted and are checked.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a value cannot be one of this component, [`Error::Kernel`] when the kernel refuses it.
    /// After an error the component must not be used.
    fn restore(&mut self, state: Self::State) -> Result<(), Error>;
}

/// [`Persist`] with the type of the state erased, for lists of unlike components.
pub trait Component {
    /// Saves the state as section `key` of `archive`.
    ///
    /// # Errors
    /// As [`Persist::save`], and [`Error::Section`] when the key is taken.
    fn save_section(&self, key: &str, archive: &mut ArchiveWriter) -> Result<(), Error>;

    /// Takes section `key` out of `archive` and restores from it.
    ///
    /// # Errors
    /// As [`Persist::restore`], and [`Error::Section`] when the section is missing or of another schema.
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
