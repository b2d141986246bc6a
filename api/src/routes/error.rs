//! What a client is told when it does not get its wish, in Firecracker's words where it has some.

use vmm::control::{self, ErrorChain};

use crate::http::Method;
use crate::schema;

/// Why a request is answered with 400.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such thing, or it cannot be done with it.
    #[error("Invalid request method and/or path: {method} {path}.")]
    Route {
        /// The method.
        method: Method,
        /// The path, without the slash that it starts with.
        path: String,
    },
    /// A body where none belongs.
    #[error("{0} request cannot have a body.")]
    Body(Method),
    /// Nothing where there should be a body, or a change.
    #[error("Empty {0} request.")]
    Empty(Method),
    /// The body is not what it should be.
    #[error(transparent)]
    Schema(schema::Error),
    /// Two names for one thing.
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    /// A thing without a name.
    #[error("The ID cannot be empty.")]
    IdEmpty,
    /// A name that would be trouble elsewhere.
    #[error(
        "API Resource IDs can only contain alphanumeric characters, underscores, hyphens, points and colons."
    )]
    IdCharacter,
    /// Something that Firecracker has.
    #[error("{0} not part of {1}.")]
    Absent(&'static str, &'static str),
    /// The VM is not as far, or too far.
    #[error(transparent)]
    Phase(control::Error),
    /// It was tried.
    #[error("{part} error: {reason}")]
    Refused {
        /// What it was about.
        part: &'static str,
        /// Why it did not work.
        reason: String,
    },
}

impl Error {
    /// What went wrong with `part`: `reason`.
    pub fn refused(part: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Refused { part, reason }
    }

    /// What went wrong with `part`: `error`, with all causes.
    pub fn failed(part: &'static str, error: &dyn std::error::Error) -> Self {
        Self::refused(part, ErrorChain(error).to_string())
    }

    /// For `map_err`: what the VMM says of `part`, with all causes.
    pub fn of(part: &'static str) -> impl Fn(control::Error) -> Self {
        move |error| match error {
            control::Error::AfterStart | control::Error::BeforeStart => Self::Phase(error),
            other => Self::failed(part, &other),
        }
    }
}
