//! Rejections of requests, with Firecracker's sentence where there is one.

use vmm::config::DeviceKind;
use vmm::control::{
    self, CreateSnapshotError, ErrorChain, LoadSnapshotError, NameError, OperationError, ScaleToZeroError,
};

use crate::http::{Method, Response};
use crate::schema;

/// Firecracker's sentence for a request that is valid only before the start.
pub(super) const AFTER_START: &str = "The requested operation is not supported after starting the microVM.";
/// Firecracker's sentence for a request that is valid only after the start.
pub(super) const BEFORE_START: &str = "The requested operation is not supported before starting the microVM.";
/// Firecracker's sentence for a start without an image.
const NO_KERNEL: &str = "Cannot start microvm without kernel configuration.";
/// Firecracker's sentence for a load after other configuration requests.
const CONFIGURED: &str = "Loading a microVM snapshot not allowed after configuring boot-specific resources.";
/// Firecracker's sentence for a machine without a keyboard.
const NO_KEYBOARD: &str = "SendCtrlAltDel does not supported on aarch64.";
const NOT_PAUSED: &str =
    "cannot create a snapshot: the VM is not paused; PATCH /vm with the state Paused first";

/// Subject of the creation of a snapshot.
pub(super) const CREATE: &str = "Create snapshot";
/// Subject of the load of a snapshot.
pub(super) const LOAD: &str = "Load snapshot";
/// Subject of a suspend.
pub(super) const SUSPEND: &str = "Suspend";

/// Rejection of a request, with the status 400.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No route has this method and path.
    #[error("Invalid request method and/or path: {method} {path}.")]
    Route {
        /// Method.
        method: Method,
        /// Path without the first slash.
        path: String,
    },
    /// The method permits no body.
    #[error("{0} request cannot have a body.")]
    Body(Method),
    /// The method requires a body, or a change in it.
    #[error("Empty {0} request.")]
    Empty(Method),
    /// The body is invalid.
    #[error(transparent)]
    Schema(schema::Error),
    /// Path and body have different identifiers.
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    /// Path and body have different identifiers of an interface.
    #[error("The id from the path [{path}] does not match the id from the body [{body}]!")]
    InterfaceMismatch {
        /// Identifier in the path.
        path: String,
        /// Identifier in the body.
        body: String,
    },
    /// The identifier is empty.
    #[error("The ID cannot be empty.")]
    IdEmpty,
    /// The identifier has a character that is not permitted.
    #[error(
        "API Resource IDs can only contain alphanumeric characters, underscores, hyphens, points and colons."
    )]
    IdCharacter,
    /// The feature of Firecracker is unsupported. Contains subject and verb.
    #[error("{0} not part of mayfly.")]
    Unsupported(&'static str),
    /// The request is invalid in the present state of the VM, or on this architecture.
    #[error("{0}")]
    Phase(&'static str),
    /// The request has a deprecated key.
    #[error(transparent)]
    Deprecated(Box<Self>),
    /// The operation failed.
    #[error("{part} error: {reason}")]
    Rejected {
        /// Subject of the request.
        part: &'static str,
        /// Cause.
        reason: String,
    },
}

impl Error {
    /// Creates [`Error::Rejected`].
    pub fn rejected(part: &'static str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Rejected { part, reason }
    }

    /// Returns a conversion for `map_err`, which marks the rejection of a request that may have a deprecated key.
    pub(super) fn mark(is_deprecated: bool) -> impl Fn(Self) -> Self {
        move |error| match is_deprecated {
            true => Self::Deprecated(Box::new(error)),
            false => error,
        }
    }

    /// Returns the response.
    pub(super) fn response(&self) -> Response {
        match self {
            Self::Deprecated(error) => error.response().deprecated(),
            error => Response::fault(&error.to_string()),
        }
    }

    /// Returns a conversion for `map_err` from an error of the VMM about `part`.
    pub fn of(part: &'static str) -> impl Fn(control::Error) -> Self {
        move |error| match error {
            control::Error::AfterStart => Self::Phase(AFTER_START),
            control::Error::BeforeStart => Self::Phase(BEFORE_START),
            control::Error::NoKernel => Self::rejected(part, NO_KERNEL),
            control::Error::NoShutdownRequest => Self::Phase(NO_KEYBOARD),
            other => Self::failed(part, &other),
        }
    }

    /// Converts a failure to create a snapshot.
    pub(super) fn of_create(error: &CreateSnapshotError) -> Self {
        match error {
            CreateSnapshotError::Running => Self::rejected(CREATE, NOT_PAUSED),
            other => Self::failed(CREATE, other),
        }
    }

    /// Converts a failure to load a snapshot.
    pub(super) fn of_load(error: &LoadSnapshotError) -> Self {
        match error {
            LoadSnapshotError::Configured => Self::rejected(LOAD, CONFIGURED),
            LoadSnapshotError::Name(NameError::Unnamed(devices)) => {
                let field = |kind, field| devices.iter().any(|device| device.kind == kind).then_some(field);
                let fields = [
                    field(DeviceKind::Drive, "drive_overrides"),
                    field(DeviceKind::Interface, "network_overrides"),
                ];
                let fields: Vec<_> = fields.into_iter().flatten().collect();
                Self::rejected(LOAD, format!("{error} in {}", fields.join(" or ")))
            }
            other if other.can_mask_cpu() => {
                Self::rejected(LOAD, format!("{} by mask_cpu", ErrorChain(other)))
            }
            other => Self::failed(LOAD, other),
        }
    }

    /// Converts a failure of a suspend, or of its settings.
    pub(super) fn of_suspend(error: &ScaleToZeroError) -> Self {
        match error {
            ScaleToZeroError::BeforeStart => Self::Phase(BEFORE_START),
            ScaleToZeroError::NoTarget => Self::rejected(
                SUSPEND,
                format!("{error} by snapshot_path and mem_file_path, or start mayfly with --suspend-to"),
            ),
            other => Self::failed(SUSPEND, other),
        }
    }

    /// Converts a failure of an operation on `part`.
    pub(super) fn of_operation(part: &'static str, error: OperationError) -> Self {
        match error {
            OperationError::Control(error) => Self::of(part)(error),
            OperationError::Create(error) => Self::of_create(&error),
            OperationError::Load(error) => Self::of_load(&error),
            OperationError::Suspend(error) => Self::of_suspend(&error),
        }
    }

    /// Creates [`Error::Rejected`] from `error` and all its causes.
    fn failed(part: &'static str, error: &dyn std::error::Error) -> Self {
        Self::rejected(part, ErrorChain(error).to_string())
    }
}
