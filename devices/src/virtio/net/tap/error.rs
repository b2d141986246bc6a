//! Why a tap cannot be used, and the way out.

use std::io;

use super::control::DEVICE;

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No interface can have this name.
    #[error("{0:?} cannot be the name of an interface: 1 to 15 bytes, without '/', ':', '%' and spaces")]
    Name(String),
    /// The kernel has no tap interfaces, or their device is not there.
    #[error("there is no {DEVICE}; load its module with `modprobe tun`, or give the process the device")]
    NoDevice(#[source] io::Error),
    /// The process may not have taps.
    #[error("{DEVICE} may not be opened; let this user have it with `chmod 666 {DEVICE}`")]
    DeviceDenied(#[source] io::Error),
    /// The device cannot be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// There is no such interface.
    #[error("there is no interface {name}; make it with `ip tuntap add {name} mode tap user $USER`")]
    Missing {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The interface is another user's.
    #[error(
        "the interface {name} is not this user's; make it anew with \
         `ip tuntap del {name} mode tap; ip tuntap add {name} mode tap user $USER`"
    )]
    Denied {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Another process is attached to the interface.
    #[error(
        "another process uses the interface {name}; end it, or make another one with \
         `ip tuntap add NAME mode tap user $USER`"
    )]
    Busy {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is an interface with this name that is not a tap.
    #[error("{name} is not a tap interface; make one with `ip tuntap add NAME mode tap user $USER`")]
    NotTap {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The interface was made for several queues: another process could have the others, and with them a part of the
    /// packets.
    #[error(
        "the interface {name} is for several queues, and a guest has one; make it anew with \
         `ip tuntap del {name} mode tap multi_queue; ip tuntap add {name} mode tap user $USER`"
    )]
    Queues {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A given descriptor is not that of a tap.
    #[error("descriptor {descriptor} is not that of a tap that is attached to an interface")]
    Descriptor {
        /// The descriptor.
        descriptor: i32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A given tap was attached with other flags than it must be.
    #[error(
        "the interface {name} has the flags {flags:#x}; attach it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"
    )]
    Mode {
        /// Name of the interface.
        name: String,
        /// Its flags.
        flags: i16,
    },
    /// The interface cannot be set up.
    #[error("cannot set up the interface {name:?}: {operation} failed")]
    Configure {
        /// Name of the interface.
        name: String,
        /// What failed.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Why the device of all taps cannot be opened.
    pub(in crate::virtio::net) fn of_device(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoDevice(source),
            Some(libc::EACCES | libc::EPERM) => Self::DeviceDenied(source),
            _ => Self::Device(source),
        }
    }

    /// Why there is no index of the interface `name`.
    pub(super) fn of_missing(name: &str, source: io::Error) -> Self {
        Self::Missing {
            name: name.to_owned(),
            source,
        }
    }

    /// Why the interface `name`, which is there or was to be made, cannot be attached.
    pub(super) fn of_attaching(name: &str, source: io::Error) -> Self {
        let cause = source.raw_os_error();
        let owned = name.to_owned();
        match cause {
            Some(libc::EPERM) if name.is_empty() => Self::Configure {
                name: owned,
                operation: "making it, which takes CAP_NET_ADMIN,",
                source,
            },
            Some(libc::EPERM) => Self::Denied { name: owned, source },
            Some(libc::EBUSY) => Self::Busy { name: owned, source },
            Some(libc::EINVAL) => Self::NotTap { name: owned, source },
            _ => Self::Configure {
                name: owned,
                operation: "TUNSETIFF",
                source,
            },
        }
    }
}
