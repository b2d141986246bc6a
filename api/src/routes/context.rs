//! Request in progress, and the checks that routes share.

use serde::Serialize;
use vmm::control::{Control, InstanceState, Progress};

use super::error::{AFTER_START, BEFORE_START, Error};
use crate::http::Response;
use crate::process::{Process, TimedOperation};
use crate::schema::{self, Schema};

/// Request in progress.
pub struct RequestContext<'a> {
    /// Control of the VM.
    pub control: &'a mut Control,
    /// Process around the VM.
    pub process: &'a mut Process,
    /// Identifier in the path. `None` for a path without one, and for a configuration file.
    pub id: Option<&'a str>,
    /// Body.
    pub body: &'a [u8],
    /// Protocol that the client requests for its connection.
    pub upgrade: Option<&'a str>,
    /// Operation of the request, if its duration is recorded.
    pub(crate) operation: Option<TimedOperation>,
}

impl RequestContext<'_> {
    /// Reads the body.
    pub(super) fn read<T: Schema>(&self) -> Result<T, Error> {
        schema::read(self.body).map_err(Error::Schema)
    }

    /// Fails after the start.
    pub(super) fn before_start(&self) -> Result<(), Error> {
        match self.control.state() {
            InstanceState::NotStarted => Ok(()),
            InstanceState::Running | InstanceState::Paused => Err(Error::Phase(AFTER_START)),
        }
    }

    /// Fails before the start.
    pub(super) fn after_start(&self) -> Result<(), Error> {
        match self.control.state() {
            InstanceState::NotStarted => Err(Error::Phase(BEFORE_START)),
            InstanceState::Running | InstanceState::Paused => Ok(()),
        }
    }

    /// Checks the identifier `id` of a body, also against the path.
    pub(super) fn check_id(&self, id: &str) -> Result<(), Error> {
        if self.id.is_some_and(|expected| expected != id) {
            return Err(Error::IdMismatch);
        }
        if id.is_empty() {
            return Err(Error::IdEmpty);
        }
        // Firecracker rejects hyphens, but kraftkit names an interface after its bridge.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
        id.bytes().all(plain).then_some(()).ok_or(Error::IdCharacter)
    }
}

/// Operation that a request has begun.
pub struct Begun {
    pub(super) progress: Progress,
    /// Subject of an error of the VM.
    pub(super) part: &'static str,
    /// The body has a deprecated key.
    pub(super) is_deprecated: bool,
}

impl Begun {
    /// Returns an operation on `part`.
    pub(super) fn new(progress: Progress, part: &'static str) -> Self {
        Self {
            progress,
            part,
            is_deprecated: false,
        }
    }
}

/// Returns a response with the status 204.
pub(super) fn no_content(is_deprecated: bool) -> Response {
    let response = Response::no_content();
    if is_deprecated {
        response.deprecated()
    } else {
        response
    }
}

/// Returns a response with the status 200 and `content` as JSON.
pub(super) fn json(content: &impl Serialize) -> Result<Response, Error> {
    let body = serde_json::to_vec(content)
        .map_err(|error| Error::rejected("Internal VMM", format!("cannot write the response: {error}")))?;
    Ok(Response::json(200, body))
}
