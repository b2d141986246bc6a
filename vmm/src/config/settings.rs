//! Operations common to the configurations of all kinds of devices.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use super::forward::Forward;
use super::mac::MacAddress;

/// Reason why two devices of one kind cannot be attached to one VM.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A drive other than the first is to hold the root file system.
    #[error("cannot use two root drives: only the first drive can hold the guest's root file system")]
    Root,
    /// Two interfaces have the same MAC address.
    #[error("cannot attach two network interfaces with the MAC address {0}: change the address of one")]
    Mac(MacAddress),
    /// The network sees two interfaces with the same IP address.
    #[error("cannot attach two network interfaces with the IP address {0}: change the address of one")]
    Ip(Ipv4Addr),
    /// Two interfaces use the same tap.
    #[error("cannot attach two network interfaces to descriptor {0}: give each its own tap")]
    Descriptor(RawFd),
    /// Two interfaces listen at the same port.
    #[error(
        "cannot forward {0} and {1} for two network interfaces: both listen at this port; change one port"
    )]
    Forwards(Forward, Forward),
}

/// Operations on the configuration of one kind of device.
pub(super) trait DeviceSettings {
    /// Change of an attached device.
    type Update;
    /// Host side of the device.
    type Backend;

    /// Returns the ID, unique among the devices of this kind.
    fn id(&self) -> &str;

    /// Sets missing values. `index` counts the devices of this kind from 0.
    fn set_defaults(&mut self, index: usize);

    /// Checks that `self` can be attached to the VM of `earlier`, a device of this kind that guests count first.
    fn check_after(&self, earlier: &Self) -> Result<(), Conflict>;

    /// Returns true if both have the same host side, which cannot be open twice.
    fn has_backend_of(&self, other: &Self) -> bool;

    /// Returns true if guests must find this device before the others of its kind.
    fn is_first(&self) -> bool {
        false
    }

    /// Applies the change of an attached device.
    fn apply(&mut self, update: &Self::Update);

    /// Replaces the host side.
    fn set_backend(&mut self, backend: &Self::Backend);

    /// Returns the length of the name of the host side in bytes.
    fn backend_length(&self) -> usize;

    /// Writes the host side and its access, read-only or read-write.
    fn format_backend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}
