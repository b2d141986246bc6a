//! Configuration of a VM: as the user requests it, and checked.

mod addresses;
mod arm;
mod cpuid;
mod device;
mod drive;
mod error;
mod forward;
mod host;
mod layout;
mod mac;
mod net;
mod options;
mod serial;
mod settings;
mod size;
mod user;
mod vm;

pub use addresses::{AddressError, AddressNames, AddressRequest, NetAddresses};
pub use arm::{CpuFeatures, GicVersion, MemoryMap, VectorLengths};
pub use cpuid::{CpuidGroup, CpuidGroups};
pub use device::{BackendDescription, DeviceBackend, DeviceConfig, DeviceKind, DeviceUpdate};
pub use devices::limiter::Bucket;
pub use devices::virtio::block::{CacheType, DiskConfig, IoEngine};
pub use drive::{DriveBackend, DriveConfig, DriveUpdate, Root};
pub use error::{Error, MAX_DEVICES, MAX_VCPUS};
pub use forward::{Forward, Transport};
pub use host::HostMemory;
pub use layout::AddressLayout;
pub use mac::MacAddress;
pub use net::{InterfaceUpdate, NetBackend, NetConfig, NetOverride};
pub use options::{Error as OptionError, RateLimits};
pub use serial::SerialTarget;
pub use settings::Conflict;
pub use size::{MemorySize, ParseError as SizeError};
pub use user::UserNetwork;
#[cfg(test)]
pub(crate) use vm::VmConfigV1;
pub use vm::{CpuTopology, IrqchipMode, VmConfig, VmSpec};

pub use crate::boot::Protocol;
