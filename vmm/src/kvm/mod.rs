//! Access to KVM: the device, its required capabilities, and errors with their remedies.

pub mod kick;
mod kick_target;
pub mod run_page;
pub(crate) mod sample_timer;
pub mod slots;
pub(crate) mod statistics;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};

pub use kick::{Kick, install as install_kick};
pub use run_page::{InternalError, RunPage};
pub(crate) use statistics::Statistics;

/// KVM API version, constant since Linux 2.6.22 (KVM API §4.1).
const API_VERSION: i32 = 12;

/// Access of the group to read and write, in the mode of a file.
const GROUP_ACCESS: u32 = 0o060;

/// Error of a KVM call on the system or VM file descriptor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device file does not exist.
    #[error(
        "cannot open /dev/kvm: it does not exist; load the module kvm_intel or kvm_amd, enable virtualisation in the firmware, or, \
         in a virtual machine, enable nesting on its host; on aarch64, boot the kernel at EL2"
    )]
    Missing,
    /// Access to the device file is denied.
    #[error(
        "cannot open /dev/kvm: permission denied; join the group that owns it (usually kvm), or run as root"
    )]
    Permission,
    /// Access to the device file is denied, to its group too.
    #[error(
        "cannot open /dev/kvm: permission denied, also to its group; run chgrp kvm /dev/kvm and chmod 660 /dev/kvm as root, then join \
         the group, or run as root"
    )]
    GroupPermission,
    /// The device file could not be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The file is not the device of KVM.
    #[error(
        "cannot use /dev/kvm: its API version is {0}, not {API_VERSION}; check that it is the device of KVM"
    )]
    Version(i32),
    /// KVM lacks a required capability.
    #[error("cannot use KVM: it lacks the capability {0:?}; use Linux 5.10 or later")]
    Capability(Cap),
    /// The number of vCPUs exceeds the limit of KVM.
    #[error("cannot create {requested} vCPUs: KVM on this host allows {limit}; configure fewer")]
    Vcpus {
        /// Configured number of vCPUs.
        requested: u8,
        /// Maximum number of vCPUs.
        limit: usize,
    },
    /// A call failed.
    #[error("cannot call {call}{hint}")]
    Call {
        /// Name of the call, with its arguments.
        call: String,
        /// Cause and remedy, or an empty text.
        hint: &'static str,
        /// Error of the call.
        #[source]
        source: io::Error,
    },
}

/// Converts an error of kvm-ioctls.
pub(crate) fn cause(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Converts an error of kvm-ioctls to [`Error::Call`].
pub(crate) fn failed(call: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    |error| Error::Call {
        call: call.into(),
        hint: "",
        source: cause(error),
    }
}

/// Opens `/dev/kvm` and checks that it has `capabilities`.
///
/// # Errors
/// [`Error::Missing`], [`Error::Permission`], [`Error::GroupPermission`] or [`Error::Open`] if `open` fails, otherwise [`Error::Version`] or
/// [`Error::Capability`].
pub fn open(capabilities: &[Cap]) -> Result<Kvm, Error> {
    let mode = || fs::metadata("/dev/kvm").ok().map(|metadata| metadata.mode());
    let kvm = Kvm::new().map_err(|error| open_error(cause(error), mode))?;
    check(kvm.get_api_version(), capabilities, |capability| {
        kvm.check_extension(capability)
    })?;
    Ok(kvm)
}

/// Returns the error of an open of the device file, whose mode `mode` returns if it is known.
fn open_error(error: io::Error, mode: impl FnOnce() -> Option<u32>) -> Error {
    match error.kind() {
        _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Error::Missing,
        io::ErrorKind::NotFound => Error::Missing,
        io::ErrorKind::PermissionDenied => match mode() {
            Some(mode) if mode & GROUP_ACCESS != GROUP_ACCESS => Error::GroupPermission,
            _ => Error::Permission,
        },
        _ => Error::Open(error),
    }
}

fn check(version: i32, required: &[Cap], has: impl Fn(Cap) -> bool) -> Result<(), Error> {
    if version != API_VERSION {
        return Err(Error::Version(version));
    }
    match required.iter().find(|capability| !has(**capability)) {
        Some(capability) => Err(Error::Capability(*capability)),
        None => Ok(()),
    }
}

/// Creates a VM of `vm_type`, which the platform defines.
///
/// # Errors
/// [`Error::Call`].
pub fn create_vm(kvm: &Kvm, vm_type: u64) -> Result<Arc<VmFd>, Error> {
    loop {
        match kvm.create_vm_with_type(vm_type) {
            Ok(vm) => return Ok(Arc::new(vm)),
            // The kernel takes all locks of the address space (mm_take_all_locks), which a signal interrupts.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => {
                let hint = match error.errno() {
                    libc::EBUSY => ": another hypervisor uses the virtualisation of the CPU; stop it",
                    libc::ENOMEM => ": the host is out of memory",
                    _ => "",
                };
                return Err(Error::Call {
                    call: "KVM_CREATE_VM".into(),
                    hint,
                    source: cause(error),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use kvm_ioctls::Cap;

    use super::{Error, check, open_error};

    #[test]
    fn open_error_names_remedy() {
        for (errno, text) in [
            (
                libc::ENOENT,
                "cannot open /dev/kvm: it does not exist; load the module",
            ),
            (
                libc::ENODEV,
                "cannot open /dev/kvm: it does not exist; load the module",
            ),
            (
                libc::EACCES,
                "cannot open /dev/kvm: permission denied; join the group",
            ),
            (
                libc::EPERM,
                "cannot open /dev/kvm: permission denied; join the group",
            ),
            (libc::EMFILE, "cannot open /dev/kvm"),
        ] {
            let error = open_error(io::Error::from_raw_os_error(errno), || None).to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn group_without_access_is_no_remedy() {
        let denied = |mode| open_error(io::Error::from_raw_os_error(libc::EACCES), || Some(mode));
        assert!(matches!(denied(0o020_660), Error::Permission));
        for mode in [0o020_600, 0o020_640, 0o020_620] {
            let error = denied(mode);
            assert!(matches!(error, Error::GroupPermission), "{mode:o}");
            assert!(error.to_string().contains("chmod 660"), "{error}");
        }
    }

    #[test]
    fn missing_capability_is_named() {
        let required = [Cap::UserMemory, Cap::SplitIrqchip];
        assert!(check(12, &required, |_| true).is_ok());
        let error = check(12, &required, |capability| capability == Cap::UserMemory).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot use KVM: it lacks the capability SplitIrqchip; use Linux 5.10 or later"
        );
        assert!(matches!(check(-1, &required, |_| true), Err(Error::Version(-1))));
    }
}
