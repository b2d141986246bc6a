//! Errors of the vCPU state.

use snapshot::persist::Error;

use crate::kvm::cause;

/// Name of the schema, and of the component in errors.
pub(super) const COMPONENT: &str = "x86_64-vcpu";

/// Returns an error for an invalid state.
pub(super) fn invalid(reason: String) -> Error {
    Error::Invalid {
        component: COMPONENT,
        reason,
    }
}

/// Returns an error for values that a load can remove.
pub(super) fn unsupported(reason: String) -> Error {
    Error::Unsupported {
        component: COMPONENT,
        reason,
    }
}

/// Returns a function that wraps the error of the KVM call `operation`.
pub(super) fn kernel_error(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Kernel {
        component: COMPONENT,
        operation,
        source: cause(error),
    }
}
