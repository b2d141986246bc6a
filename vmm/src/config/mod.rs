//! What a user asks for, and the same after it has been checked.

mod drive;
mod net;
mod options;
mod size;

use std::os::fd::RawFd;
use std::path::PathBuf;

pub use devices::limiter::Bucket;
pub use devices::virtio::block::{CacheType, DiskConfig, IoEngine};
pub use drive::{DriveConfig, Root};
pub use net::{MacAddress, NetBackend, NetConfig};
pub use options::{Error as OptionError, RateLimits};
pub use size::{MemorySize, ParseError as SizeError};

use serde::{Deserialize, Serialize};
use snapshot::Schema;

use crate::boot::Protocol;

/// Most vCPUs that a machine can have.
pub const MAX_VCPUS: u8 = 32;

/// Most virtio devices that a machine can have: as many as there are interrupt lines for them.
pub const MAX_DEVICES: usize = 18;

/// Where the interrupt controllers other than the local APICs are emulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IrqchipMode {
    /// IOAPIC, PIC and PIT in this process: quicker to make and to end.
    #[default]
    Split,
    /// All of them in the kernel.
    Kernel,
}

impl std::str::FromStr for IrqchipMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "split" => Ok(Self::Split),
            "kernel" => Ok(Self::Kernel),
            other => Err(format!(
                "{other:?} is no interrupt controller: it is split or kernel"
            )),
        }
    }
}

/// What the user asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmConfig {
    /// Image to boot.
    pub kernel: PathBuf,
    /// Initial RAM disk, or whatever else the image takes in its place.
    pub initrd: Option<PathBuf>,
    /// Boot protocol, if the image's own choice is not to count.
    pub protocol: Option<Protocol>,
    /// Command line as the user wrote it.
    pub cmdline: String,
    /// Guest memory.
    pub memory: MemorySize,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Where the interrupt controllers are.
    pub irqchip: IrqchipMode,
    /// Whether the guest gets ACPI tables.
    pub acpi: bool,
    /// Whether the guest gets an MP table.
    pub mptable: bool,
    /// Whether the guest is told of its virtio devices on the command line.
    pub device_arguments: bool,
    /// Drives, in the order in which the guest counts them.
    pub drives: Vec<DriveConfig>,
    /// Network interfaces, in the order in which the guest counts them.
    pub nets: Vec<NetConfig>,
    /// Whether it is to be known which pages change. It always is, at no cost, so that this changes nothing.
    pub track_dirty_pages: bool,
    /// Whether the kernel is asked to back the guest's memory by huge pages where it can.
    pub huge_pages: bool,
}

impl Schema for VmConfig {
    const NAME: &'static str = "machine";
    const VERSION: u32 = 1;
}

impl VmConfig {
    /// The defaults: 128 MiB, one vCPU, all tables.
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            kernel,
            initrd: None,
            protocol: None,
            cmdline: String::new(),
            memory: MemorySize::DEFAULT,
            vcpus: 1,
            irqchip: IrqchipMode::default(),
            acpi: true,
            mptable: true,
            device_arguments: true,
            drives: Vec::new(),
            nets: Vec::new(),
            track_dirty_pages: false,
            huge_pages: false,
        }
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`Error`], naming the option and the value.
    pub fn check(mut self, host: &HostMemory) -> Result<VmSpec, Error> {
        let vcpus = u8::try_from(self.vcpus)
            .ok()
            .filter(|count| (1..=MAX_VCPUS).contains(count))
            .ok_or(Error::Vcpus(self.vcpus))?;
        if self.memory < MemorySize::MIN {
            return Err(Error::MemoryTooSmall(self.memory));
        }
        if self.memory.bytes() > host.memory {
            return Err(Error::MemoryBeyondHost {
                asked: self.memory,
                host: MemorySize::from_bytes(host.memory),
            });
        }
        let devices = self.drives.len() + self.nets.len();
        if devices > MAX_DEVICES {
            return Err(Error::Devices(devices));
        }
        self.name_devices();
        if let Some(id) = repeated(&self.drives, |drive| &drive.disk.id) {
            return Err(Error::DriveId(id.into()));
        }
        if let Some(id) = repeated(&self.nets, |net| &net.id) {
            return Err(Error::NetId(id.into()));
        }
        if self.drives.iter().skip(1).any(|drive| drive.root.is_some()) {
            return Err(Error::Root);
        }
        for (index, net) in self.nets.iter().enumerate() {
            let same = |other: &NetConfig| net.mac.is_some() && other.mac == net.mac;
            if let (Some(mac), true) = (net.mac, self.nets[..index].iter().any(same)) {
                return Err(Error::Mac(mac));
            }
            let same = |other: &NetConfig| other.backend == net.backend;
            if let (NetBackend::Descriptor(descriptor), true) =
                (&net.backend, self.nets[..index].iter().any(same))
            {
                return Err(Error::Descriptor(*descriptor));
            }
        }
        Ok(VmSpec { vcpus, config: self })
    }

    /// Gives devices that have none a name and an address, so that a machine that is made from this again has the same.
    fn name_devices(&mut self) {
        for (index, drive) in self.drives.iter_mut().enumerate() {
            if drive.disk.id.is_empty() {
                drive.disk.id = format!("drive{index}");
            }
        }
        for (index, net) in self.nets.iter_mut().enumerate() {
            net.mac.get_or_insert_with(MacAddress::random);
            if net.id.is_empty() {
                net.id = format!("net{index}");
            }
        }
    }
}

/// The first `name` of a device that one before it has. Every two are compared: they are few, and a set of hashes would ask
/// the kernel for random numbers at every start.
fn repeated<T>(devices: &[T], name: fn(&T) -> &str) -> Option<&str> {
    let taken = |index: usize, device: &T| devices[..index].iter().any(|other| name(other) == name(device));
    let mut numbered = devices.iter().enumerate();
    let (_, device) = numbered.find(|(index, device)| taken(*index, device))?;
    Some(name(device))
}

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    /// Memory and swap, in bytes.
    pub memory: u64,
}

impl HostMemory {
    /// Asks the kernel, by a system call that needs no /proc.
    pub fn this() -> Self {
        // SAFETY: all-zero bytes are a valid `sysinfo`, which is a structure of integers.
        let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is valid for writes for the length of the call.
        let result = unsafe { libc::sysinfo(&raw mut info) };
        let unit = u64::from(info.mem_unit);
        let memory = info.totalram.saturating_add(info.totalswap).saturating_mul(unit);
        // Nothing but a bad pointer makes the call fail; should it, the limit is left to mmap.
        Self {
            memory: if result == 0 { memory } else { u64::MAX },
        }
    }
}

/// Why a configuration was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No vCPU, or too many.
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u32),
    /// More devices than there are interrupt lines.
    #[error("a machine has at most {MAX_DEVICES} drives and network interfaces, not {0}: leave some out")]
    Devices(usize),
    /// Two drives with one name.
    #[error("two drives are called {0:?}: change the id of one")]
    DriveId(String),
    /// Two interfaces with one name.
    #[error("two network interfaces are called {0:?}: change the id of one")]
    NetId(String),
    /// A second drive with the root file system.
    #[error("only the first drive can hold the guest's root file system")]
    Root,
    /// Two interfaces with one address.
    #[error("two network interfaces have the address {0}: change the mac of one")]
    Mac(MacAddress),
    /// Two interfaces on one tap.
    #[error("two network interfaces are on descriptor {0}: give each a tap of its own")]
    Descriptor(RawFd),
    /// Less memory than the first megabyte.
    #[error("{0} of memory is too little: a machine has at least {min}", min = MemorySize::MIN)]
    MemoryTooSmall(MemorySize),
    /// More memory than the host has.
    #[error("{asked} of memory is more than this host has, which is {host} with its swap: ask for less")]
    MemoryBeyondHost {
        /// What was asked for.
        asked: MemorySize,
        /// Memory and swap of the host.
        host: MemorySize,
    },
}

/// A configuration that has been checked.
#[derive(Clone, Debug)]
pub struct VmSpec {
    vcpus: u8,
    config: VmConfig,
}

impl VmSpec {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// What the user asked for.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Follows a device that was changed while its machine runs.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut VmConfig)) {
        change(&mut self.config);
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, HostMemory, MemorySize, VmConfig};

    const HOST: HostMemory = HostMemory { memory: 8 << 30 };

    fn config() -> VmConfig {
        VmConfig::new("kernel".into())
    }

    #[test]
    fn the_defaults_are_accepted() {
        let spec = config().check(&HOST).unwrap();
        assert_eq!((spec.vcpus(), spec.config().memory.bytes()), (1, 128 << 20));
    }

    #[test]
    fn vcpus_are_1_to_32() {
        for vcpus in [0, 33, u32::MAX] {
            let checked = VmConfig { vcpus, ..config() }.check(&HOST);
            assert_eq!(checked.unwrap_err(), Error::Vcpus(vcpus));
        }
        for vcpus in [1, 32] {
            assert!(VmConfig { vcpus, ..config() }.check(&HOST).is_ok());
        }
    }

    #[test]
    fn memory_is_1_mib_to_what_the_host_has() {
        let check = |bytes| {
            VmConfig {
                memory: MemorySize::from_bytes(bytes),
                ..config()
            }
            .check(&HOST)
        };
        assert!(check(1 << 20).is_ok());
        assert!(check(8 << 30).is_ok());
        assert_eq!(
            check(0).unwrap_err().to_string(),
            "0B of memory is too little: a machine has at least 1M"
        );
        assert_eq!(
            check(9 << 30).unwrap_err().to_string(),
            "9G of memory is more than this host has, which is 8G with its swap: ask for less"
        );
    }

    #[test]
    fn interfaces_share_nothing() {
        let check = |nets: &[&str]| {
            let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
            let checked = VmConfig { nets, ..config() }.check(&HOST);
            checked.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["user", "user", "fd:5", "fd:6"]), Ok(()));
        assert_eq!(
            check(&["user,mac=02:00:00:00:00:01", "user,mac=02:00:00:00:00:02"]),
            Ok(())
        );
        assert_eq!(
            check(&["user,mac=02:00:00:00:00:01", "user", "fd:5,mac=02:00:00:00:00:01"]),
            Err("two network interfaces have the address 02:00:00:00:00:01: change the mac of one".into())
        );
        assert_eq!(
            check(&["fd:5", "user", "fd:5"]),
            Err("two network interfaces are on descriptor 5: give each a tap of its own".into())
        );
    }

    #[test]
    fn devices_have_names_of_their_own() {
        let named = |drives: &[&str], nets: &[&str]| {
            let config = VmConfig {
                drives: drives.iter().map(|text| text.parse().unwrap()).collect(),
                nets: nets.iter().map(|text| text.parse().unwrap()).collect(),
                ..config()
            };
            let config = config.check(&HOST).map_err(|error| error.to_string())?.config;
            let drives = config.drives.into_iter().map(|drive| drive.disk.id);
            Ok(drives
                .chain(config.nets.into_iter().map(|net| net.id))
                .collect::<Vec<_>>()
                .join(" "))
        };
        let ok = |names: &str| Ok::<_, String>(names.to_owned());
        assert_eq!(
            named(&["x", "x,id=a", "x"], &["user,id=b", "user"]),
            ok("drive0 a drive2 b net1")
        );
        let refused =
            |kind: &str, id: &str| Err(format!("two {kind} are called \"{id}\": change the id of one"));
        assert_eq!(named(&["x,id=drive1", "x"], &[]), refused("drives", "drive1"));
        assert_eq!(
            named(&[], &["user,id=a", "fd:5,id=a"]),
            refused("network interfaces", "a")
        );
    }

    #[test]
    fn the_host_has_memory() {
        assert!(HostMemory::this().memory > 1 << 24);
    }
}
