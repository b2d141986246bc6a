//! The way into KVM: what is opened, what is asked for, and what a refusal means to a user.

pub mod kick;
pub mod run_page;
pub mod slots;

use std::io;
use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};

pub use kick::{Kick, install as install_kick};
pub use run_page::{InternalError, RunPage};

/// The version of the API since Linux 2.6.22; it will never change.
const API_VERSION: i32 = 12;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no device file.
    #[error(
        "there is no /dev/kvm: load the module kvm_intel or kvm_amd, switch virtualisation on in the firmware, or, in a \
         virtual machine, let its host allow nesting"
    )]
    Missing,
    /// The device file may not be opened.
    #[error("no permission to open /dev/kvm: join the group that owns it (usually kvm), or run as root")]
    Permission,
    /// The device file could not be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The file is not KVM's, or KVM is of another era.
    #[error(
        "/dev/kvm speaks version {0} of its API where {API_VERSION} is needed: is it really KVM's device?"
    )]
    Version(i32),
    /// The kernel lacks what this monitor is built on.
    #[error("this kernel's KVM is too old: it has no {0:?}; Linux 5.10 or later has all that is needed")]
    Capability(Cap),
    /// More vCPUs than the kernel's limit.
    #[error("this host's KVM allows {limit} vCPUs, not {asked}: lower --cpus")]
    Vcpus {
        /// vCPUs asked for.
        asked: u8,
        /// Most that the kernel allows.
        limit: usize,
    },
    /// A call on the system or VM file descriptor failed.
    #[error("{call} failed{hint}")]
    Call {
        /// Name of the call and its argument.
        call: String,
        /// What to try, or nothing.
        hint: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The kernel's answer to a kvm-ioctls call.
pub(crate) fn cause(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

pub(crate) fn failed(call: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    |error| Error::Call {
        call: call.into(),
        hint: "",
        source: cause(error),
    }
}

/// Opens `/dev/kvm` and checks that it can do what `capabilities` lists.
///
/// # Errors
/// [`Error`], with the way out for a user in its text.
pub fn open(capabilities: &[Cap]) -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|error| explain_open(cause(error)))?;
    check(kvm.get_api_version(), capabilities, |capability| {
        kvm.check_extension(capability)
    })?;
    Ok(kvm)
}

fn explain_open(error: io::Error) -> Error {
    match error.kind() {
        _ if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Error::Missing,
        io::ErrorKind::NotFound => Error::Missing,
        io::ErrorKind::PermissionDenied => Error::Permission,
        _ => Error::Open(error),
    }
}

fn check(version: i32, needed: &[Cap], has: impl Fn(Cap) -> bool) -> Result<(), Error> {
    if version != API_VERSION {
        return Err(Error::Version(version));
    }
    match needed.iter().find(|capability| !has(**capability)) {
        Some(capability) => Err(Error::Capability(*capability)),
        None => Ok(()),
    }
}

/// Makes a VM.
///
/// # Errors
/// [`Error::Call`].
pub fn create_vm(kvm: &Kvm) -> Result<Arc<VmFd>, Error> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(Arc::new(vm)),
            // The kernel takes all locks of the address space here and gives up when a signal comes in between.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => {
                let hint = match error.errno() {
                    libc::EBUSY => ": another hypervisor is using the processor's virtualisation; stop it",
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

    use super::{Error, check, explain_open};

    #[test]
    fn a_refused_open_says_what_to_do() {
        for (errno, text) in [
            (libc::ENOENT, "there is no /dev/kvm: load the module"),
            (libc::ENODEV, "there is no /dev/kvm: load the module"),
            (libc::EACCES, "no permission to open /dev/kvm: join the group"),
            (libc::EPERM, "no permission to open /dev/kvm: join the group"),
            (libc::EMFILE, "cannot open /dev/kvm"),
        ] {
            let error = explain_open(io::Error::from_raw_os_error(errno)).to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }

    #[test]
    fn an_old_kernel_is_told_from_a_new_one() {
        let needed = [Cap::UserMemory, Cap::SplitIrqchip];
        assert!(check(12, &needed, |_| true).is_ok());
        let error = check(12, &needed, |capability| capability == Cap::UserMemory).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this kernel's KVM is too old: it has no SplitIrqchip; Linux 5.10 or later has all that is needed"
        );
        assert!(matches!(check(-1, &needed, |_| true), Err(Error::Version(-1))));
    }
}
