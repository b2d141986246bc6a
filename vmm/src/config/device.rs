//! Virtio devices of a VM as one list of typed configurations.

use std::fmt;
use std::path::PathBuf;

use super::drive::{DriveBackend, DriveConfig, DriveUpdate};
use super::net::{InterfaceUpdate, NetBackend, NetConfig, NetOverride};
use super::settings::{Conflict, DeviceSettings};

/// Host side of a device and its access as text, such as `/images/root, read-only`.
#[derive(Clone, Copy, Debug)]
pub struct BackendDescription<'a>(pub &'a DeviceConfig);

/// Defines the kinds of devices. A row has the variant, the types of [`DeviceSettings`], and the name in messages. The order of the
/// rows is the order in which guests count devices and state files list them.
macro_rules! device_kinds {
    ($($kind:ident($config:ty, $update:ty, $backend:ty) = $name:literal,)*) => {
        /// Kind of a virtio device, in the order in which guests count devices.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DeviceKind {
            $(
                #[doc = concat!("A ", $name, ".")]
                $kind,
            )*
        }

        impl fmt::Display for DeviceKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$kind => $name,)*
                })
            }
        }

        /// Configuration of a virtio device.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum DeviceConfig {
            $(
                #[doc = concat!("Configuration of a ", $name, ".")]
                $kind($config),
            )*
        }

        /// Change of an attached device.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum DeviceUpdate {
            $(
                #[doc = concat!("Change of a ", $name, ".")]
                $kind($update),
            )*
        }

        /// Host side of a device.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum DeviceBackend {
            $(
                #[doc = concat!("Host side of a ", $name, ".")]
                $kind($backend),
            )*
        }

        $(
            impl From<$config> for DeviceConfig {
                fn from(config: $config) -> Self {
                    Self::$kind(config)
                }
            }

            impl From<$update> for DeviceUpdate {
                fn from(update: $update) -> Self {
                    Self::$kind(update)
                }
            }

            impl From<$backend> for DeviceBackend {
                fn from(backend: $backend) -> Self {
                    Self::$kind(backend)
                }
            }
        )*

        impl DeviceConfig {
            /// Returns the kind of the device.
            pub fn kind(&self) -> DeviceKind {
                match self {
                    $(Self::$kind(_) => DeviceKind::$kind,)*
                }
            }

            /// Returns the ID, unique among the devices of the kind. Without an ID from the user it is empty until the configuration is
            /// checked.
            pub fn id(&self) -> &str {
                match self {
                    $(Self::$kind(config) => config.id(),)*
                }
            }

            pub(crate) fn set_defaults(&mut self, index: usize) {
                match self {
                    $(Self::$kind(config) => config.set_defaults(index),)*
                }
            }

            /// Returns the key by which devices are sorted into the order of the guest.
            pub(crate) fn guest_order(&self) -> (DeviceKind, bool) {
                match self {
                    $(Self::$kind(config) => (DeviceKind::$kind, !config.is_first()),)*
                }
            }

            /// Checks that `self` can be attached to the VM of `earlier`, which guests count first. Devices of two kinds never
            /// conflict.
            pub(crate) fn check_after(&self, earlier: &Self) -> Result<(), Conflict> {
                match (self, earlier) {
                    $((Self::$kind(config), Self::$kind(earlier)) => config.check_after(earlier),)*
                    _ => Ok(()),
                }
            }

            /// Returns true if both have the same host side, which cannot be open twice.
            pub(crate) fn has_backend_of(&self, other: &Self) -> bool {
                match (self, other) {
                    $((Self::$kind(config), Self::$kind(other)) => config.has_backend_of(other),)*
                    _ => false,
                }
            }

            /// Returns the length of the name of the host side in bytes.
            pub(crate) fn backend_length(&self) -> usize {
                match self {
                    $(Self::$kind(config) => config.backend_length(),)*
                }
            }

            /// Applies the change of an attached device. A change of another kind has no effect.
            pub(crate) fn apply(&mut self, update: &DeviceUpdate) {
                match (self, update) {
                    $((Self::$kind(config), DeviceUpdate::$kind(update)) => config.apply(update),)*
                    _ => {}
                }
            }

            /// Replaces the host side. A host side of another kind has no effect.
            pub(crate) fn set_backend(&mut self, backend: &DeviceBackend) {
                match (self, backend) {
                    $((Self::$kind(config), DeviceBackend::$kind(backend)) => config.set_backend(backend),)*
                    _ => {}
                }
            }
        }

        impl fmt::Display for BackendDescription<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(DeviceConfig::$kind(config) => config.format_backend(f),)*
                }
            }
        }

        impl DeviceUpdate {
            /// Returns the kind of device that the change is for.
            pub fn kind(&self) -> DeviceKind {
                match self {
                    $(Self::$kind(_) => DeviceKind::$kind,)*
                }
            }
        }

        impl DeviceBackend {
            /// Returns the kind of device that the host side is for.
            pub fn kind(&self) -> DeviceKind {
                match self {
                    $(Self::$kind(_) => DeviceKind::$kind,)*
                }
            }
        }
    };
}

device_kinds! {
    Drive(DriveConfig, DriveUpdate, DriveBackend) = "drive",
    Interface(NetConfig, InterfaceUpdate, NetOverride) = "network interface",
}

impl From<PathBuf> for DeviceBackend {
    fn from(path: PathBuf) -> Self {
        DriveBackend::from(path).into()
    }
}

impl From<NetBackend> for DeviceBackend {
    fn from(backend: NetBackend) -> Self {
        NetOverride::from(backend).into()
    }
}

impl DeviceUpdate {
    /// Returns true if the change calls a file system, which may not answer.
    pub(crate) fn calls_file_system(&self) -> bool {
        match self {
            Self::Drive(update) => update.changes_disk(),
            Self::Interface(_) => false,
        }
    }
}
