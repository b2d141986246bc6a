//! Configuration of a whole VM.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, Schema};

use super::arm::{CpuFeatures, GicVersion, MemoryMap};
use super::device::{DeviceConfig, DeviceKind};
use super::drive::DriveConfig;
use super::error::{Error, MAX_DEVICES, MAX_VCPUS};
use super::host::HostMemory;
use super::layout::AddressLayout;
use super::net::NetConfig;
use super::size::MemorySize;
use crate::boot::Protocol;

/// Emulator of the interrupt controllers other than the local APICs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IrqchipMode {
    /// IOAPIC, PIC and PIT in this process: quicker to create and to destroy.
    #[default]
    Split,
    /// All of them in the kernel.
    Kernel,
}

impl fmt::Display for IrqchipMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Split => "split",
            Self::Kernel => "kernel",
        })
    }
}

impl std::str::FromStr for IrqchipMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "split" => Ok(Self::Split),
            "kernel" => Ok(Self::Kernel),
            other => Err(format!(
                "{other:?} is not an interrupt controller mode: use split or kernel"
            )),
        }
    }
}

/// Configuration of a VM as the user requests it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "SavedVmConfig", into = "SavedVmConfig")]
pub struct VmConfig {
    /// Image to boot.
    pub kernel: PathBuf,
    /// Initial RAM disk, or any other file that the boot protocol passes in its place.
    pub initrd: Option<PathBuf>,
    /// Boot protocol; none selects the one that the image prefers.
    pub protocol: Option<Protocol>,
    /// Command line of the user, without the arguments for devices.
    pub cmdline: String,
    /// Guest memory.
    pub memory: MemorySize,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Each two vCPUs are threads of one core.
    pub smt: bool,
    /// Emulator of the interrupt controllers.
    pub irqchip: IrqchipMode,
    /// The guest gets ACPI tables.
    pub acpi: bool,
    /// The guest gets an MP table.
    pub mptable: bool,
    /// The command line has an argument for each virtio device.
    pub device_arguments: bool,
    /// Virtio devices. [`check`](Self::check) sorts them into the order of the guest.
    pub devices: Vec<DeviceConfig>,
    /// The client requests dirty page tracking. Changed pages are known at no cost in any case, so that this has no effect.
    pub track_dirty_pages: bool,
    /// The kernel is advised to back guest memory with huge pages.
    pub huge_pages: bool,
    /// Guest-physical addresses. On x86_64 a start uses the default; on aarch64 it selects them by the image.
    pub layout: AddressLayout,
    /// Memory map of an aarch64 machine; none selects it by the image. Not saved: the layout contains the selected one.
    pub memory_map: Option<MemoryMap>,
    /// Interrupt controller of an aarch64 machine; none selects the newest that the host supports. Not saved.
    pub gic: Option<GicVersion>,
    /// Optional processor features of an aarch64 machine. Not saved here: the settings of the platform contain them.
    pub cpu_features: CpuFeatures,
}

/// [`VmConfig`] as state files hold it.
#[derive(Serialize, Deserialize)]
struct SavedVmConfig {
    first: VmConfigV1,
    layout: AddressLayout,
}

/// [`VmConfig`] in state files of version 1, whose VMs have [`AddressLayout::V1`]. postcard encodes by position: the order of the
/// fields is part of the format.
#[derive(Serialize, Deserialize)]
pub(crate) struct VmConfigV1 {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    protocol: Option<Protocol>,
    cmdline: String,
    memory: MemorySize,
    vcpus: u32,
    irqchip: IrqchipMode,
    acpi: bool,
    mptable: bool,
    device_arguments: bool,
    drives: Vec<DriveConfig>,
    nets: Vec<NetConfig>,
    track_dirty_pages: bool,
    pages_and_threads: PagesAndThreads,
}

/// Use of huge pages, and threads of a core. postcard encodes the first two like the `bool` of older state files.
#[derive(Serialize, Deserialize)]
enum PagesAndThreads {
    Small,
    Huge,
    SmallWithSmt,
    HugeWithSmt,
}

impl Schema for VmConfigV1 {
    const NAME: &'static str = VmConfig::NAME;
    const VERSION: u32 = 1;
}

impl From<VmConfig> for SavedVmConfig {
    fn from(config: VmConfig) -> Self {
        Self {
            layout: config.layout,
            first: config.into(),
        }
    }
}

impl From<SavedVmConfig> for VmConfig {
    fn from(saved: SavedVmConfig) -> Self {
        Self {
            layout: saved.layout,
            ..saved.first.into()
        }
    }
}

impl From<VmConfig> for VmConfigV1 {
    fn from(config: VmConfig) -> Self {
        let (mut drives, mut nets) = (Vec::new(), Vec::new());
        for device in config.devices {
            match device {
                DeviceConfig::Drive(drive) => drives.push(drive),
                DeviceConfig::Interface(net) => nets.push(net),
            }
        }
        Self {
            kernel: config.kernel,
            initrd: config.initrd,
            protocol: config.protocol,
            cmdline: config.cmdline,
            memory: config.memory,
            vcpus: config.vcpus,
            irqchip: config.irqchip,
            acpi: config.acpi,
            mptable: config.mptable,
            device_arguments: config.device_arguments,
            drives,
            nets,
            track_dirty_pages: config.track_dirty_pages,
            pages_and_threads: match (config.huge_pages, config.smt) {
                (false, false) => PagesAndThreads::Small,
                (true, false) => PagesAndThreads::Huge,
                (false, true) => PagesAndThreads::SmallWithSmt,
                (true, true) => PagesAndThreads::HugeWithSmt,
            },
        }
    }
}

impl From<VmConfigV1> for VmConfig {
    fn from(saved: VmConfigV1) -> Self {
        let drives = saved.drives.into_iter().map(DeviceConfig::Drive);
        let nets = saved.nets.into_iter().map(DeviceConfig::Interface);
        use PagesAndThreads::{Huge, HugeWithSmt, SmallWithSmt};
        Self {
            kernel: saved.kernel,
            initrd: saved.initrd,
            protocol: saved.protocol,
            cmdline: saved.cmdline,
            memory: saved.memory,
            vcpus: saved.vcpus,
            irqchip: saved.irqchip,
            acpi: saved.acpi,
            mptable: saved.mptable,
            device_arguments: saved.device_arguments,
            devices: drives.chain(nets).collect(),
            track_dirty_pages: saved.track_dirty_pages,
            huge_pages: matches!(saved.pages_and_threads, Huge | HugeWithSmt),
            smt: matches!(saved.pages_and_threads, SmallWithSmt | HugeWithSmt),
            layout: AddressLayout::V1,
            memory_map: None,
            gic: None,
            cpu_features: CpuFeatures::default(),
        }
    }
}

impl Schema for VmConfig {
    const NAME: &'static str = "machine";
    const VERSION: u32 = 2;
}

impl VmConfig {
    /// Reads section `key` of `archive`, in this version or version 1.
    ///
    /// # Errors
    /// As [`ArchiveReader::read`].
    pub(crate) fn read_section(archive: &mut ArchiveReader<'_>, key: &str) -> Result<Self, SectionError> {
        match archive.version(key) {
            Some(VmConfigV1::VERSION) => archive.read::<VmConfigV1>(key).map(Self::from),
            _ => archive.read(key),
        }
    }

    /// Returns the defaults: 128 MiB, one vCPU, all tables, no device.
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            kernel,
            initrd: None,
            protocol: None,
            cmdline: String::new(),
            memory: MemorySize::DEFAULT,
            vcpus: 1,
            smt: false,
            irqchip: IrqchipMode::default(),
            acpi: true,
            mptable: true,
            device_arguments: true,
            devices: Vec::new(),
            track_dirty_pages: false,
            huge_pages: false,
            layout: AddressLayout::default(),
            memory_map: None,
            gic: None,
            cpu_features: CpuFeatures::default(),
        }
    }

    /// Returns names and values of the settings that a platform has from its creation on; no value if the host chooses it.
    pub(crate) fn platform_settings(&self) -> [(&'static str, Option<String>); 4] {
        let acpi = if self.acpi { "on" } else { "off" };
        [
            ("irqchip", Some(self.irqchip.to_string())),
            ("address layout", Some(self.layout.to_string())),
            (
                "interrupt controller",
                self.gic.map(|version| version.to_string()),
            ),
            ("ACPI", Some(acpi.to_owned())),
        ]
    }

    /// Returns the drives, in the order in which the guest counts them.
    pub fn drives(&self) -> impl Iterator<Item = &DriveConfig> {
        self.devices.iter().filter_map(|device| match device {
            DeviceConfig::Drive(drive) => Some(drive),
            DeviceConfig::Interface(_) => None,
        })
    }

    /// Returns the network interfaces, in the order in which the guest counts them.
    pub fn interfaces(&self) -> impl Iterator<Item = &NetConfig> {
        self.devices.iter().filter_map(|device| match device {
            DeviceConfig::Interface(net) => Some(net),
            DeviceConfig::Drive(_) => None,
        })
    }

    /// Returns the index in the list of the device of `kind` with this `id`.
    pub(crate) fn position(&self, kind: DeviceKind, id: &str) -> Option<usize> {
        self.devices
            .iter()
            .position(|device| device.kind() == kind && device.id() == id)
    }

    /// Returns the IDs of the devices of `kind`, separated by commas, or `none`, for error messages.
    pub(crate) fn list_ids(&self, kind: DeviceKind) -> String {
        let devices = self.devices.iter().filter(|device| device.kind() == kind);
        let ids: Vec<_> = devices.map(DeviceConfig::id).collect();
        if ids.is_empty() {
            "none".into()
        } else {
            ids.join(", ")
        }
    }

    /// Checks all values that require no open file, and sets missing IDs and addresses.
    ///
    /// # Errors
    /// [`Error`], with the value that is out of range or in conflict.
    pub fn check(mut self, host: &HostMemory) -> Result<VmSpec, Error> {
        let vcpus = u8::try_from(self.vcpus)
            .ok()
            .filter(|count| (1..=MAX_VCPUS).contains(count))
            .ok_or(Error::Vcpus(self.vcpus))?;
        if self.smt && vcpus > 1 && !vcpus.is_multiple_of(2) {
            return Err(Error::OddVcpus(self.vcpus));
        }
        if self.memory < MemorySize::MIN {
            return Err(Error::MemoryTooSmall(self.memory));
        }
        if self.memory.bytes() > host.memory {
            return Err(Error::MemoryBeyondHost {
                requested: self.memory,
                host: MemorySize::from_bytes(host.memory),
            });
        }
        sort_devices(&mut self.devices, |device| (device.kind(), false));
        self.set_device_defaults();
        check_devices(&self.devices)?;
        Ok(VmSpec { vcpus, config: self })
    }

    /// Adds `device`, or replaces the device of the same kind and ID. The list keeps the order of the guest.
    ///
    /// # Errors
    /// [`Error`]; the list is unchanged then.
    pub(crate) fn put_device(&mut self, mut device: DeviceConfig) -> Result<(), Error> {
        let mut devices = self.devices.clone();
        let is_same_kind = |other: &&DeviceConfig| other.kind() == device.kind();
        device.set_defaults(devices.iter().filter(is_same_kind).count());
        match self.position(device.kind(), device.id()) {
            Some(index) => devices[index] = device,
            None => devices.push(device),
        }
        sort_devices(&mut devices, DeviceConfig::guest_order);
        check_devices(&devices)?;
        self.devices = devices;
        Ok(())
    }

    /// Sets missing IDs and addresses. They are saved, so that a restored VM has the same ones.
    fn set_device_defaults(&mut self) {
        let mut previous = None;
        let mut index = 0;
        for device in &mut self.devices {
            index = if previous == Some(device.kind()) {
                index + 1
            } else {
                0
            };
            previous = Some(device.kind());
            device.set_defaults(index);
        }
    }
}

/// Sorts `devices` by `key`, and keeps the order of devices with the same key. The key is a pointer, so that the program has one copy
/// of the sort.
fn sort_devices(devices: &mut [DeviceConfig], key: fn(&DeviceConfig) -> (DeviceKind, bool)) {
    devices.sort_by_key(key);
}

/// Checks the number of devices, and each pair of them. A hash set would read random numbers from the kernel at every start.
fn check_devices(devices: &[DeviceConfig]) -> Result<(), Error> {
    if devices.len() > MAX_DEVICES {
        return Err(Error::Devices(devices.len()));
    }
    for (index, device) in devices.iter().enumerate() {
        for earlier in &devices[..index] {
            let (kind, id) = (device.kind(), device.id());
            if earlier.kind() == kind && earlier.id() == id {
                let id = id.to_owned();
                return Err(Error::DuplicateId { kind, id });
            }
            device.check_after(earlier)?;
        }
    }
    Ok(())
}

/// Topology of the vCPUs, which are in one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// Number of vCPUs, a multiple of `threads`.
    pub vcpus: u8,
    /// Number of vCPUs of each core: 1, or 2 with SMT.
    pub threads: u8,
}

impl fmt::Display for CpuTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let smt = if self.threads > 1 { " with SMT" } else { "" };
        write!(f, "{}{smt}", self.vcpus)
    }
}

/// Checked configuration.
#[derive(Clone, Debug)]
pub struct VmSpec {
    vcpus: u8,
    config: VmConfig,
}

impl VmSpec {
    /// Returns the number of vCPUs, 1 to [`MAX_VCPUS`].
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Returns the topology of the vCPUs.
    pub fn topology(&self) -> CpuTopology {
        CpuTopology {
            vcpus: self.vcpus,
            threads: if self.config.smt && self.vcpus > 1 { 2 } else { 1 },
        }
    }

    /// Returns the configuration. Every device has an ID, and the list has the order of the guest.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests {
    use snapshot::{ArchiveReader, ArchiveWriter};

    use super::super::{DeviceConfig, DriveConfig, NetConfig};
    use super::{
        AddressLayout, CpuTopology, Error, HostMemory, MemorySize, SavedVmConfig, VmConfig, VmConfigV1,
    };

    const HOST: HostMemory = HostMemory { memory: 8 << 30 };

    fn config() -> VmConfig {
        VmConfig::new("kernel".into())
    }

    fn drive(text: &str) -> DeviceConfig {
        text.parse::<DriveConfig>().unwrap().into()
    }

    fn interface(text: &str) -> DeviceConfig {
        text.parse::<NetConfig>().unwrap().into()
    }

    #[test]
    fn defaults_are_accepted() {
        let spec = config().check(&HOST).unwrap();
        assert_eq!((spec.vcpus(), spec.config().memory.bytes()), (1, 128 << 20));
    }

    #[test]
    fn vcpus_outside_1_to_32_are_rejected() {
        for vcpus in [0, 33, u32::MAX] {
            let checked = VmConfig { vcpus, ..config() }.check(&HOST);
            assert_eq!(checked.unwrap_err(), Error::Vcpus(vcpus));
        }
        for vcpus in [1, 32] {
            assert!(VmConfig { vcpus, ..config() }.check(&HOST).is_ok());
        }
    }

    #[test]
    fn odd_number_of_vcpus_with_smt_is_rejected() {
        let check = |vcpus, smt| {
            let checked = VmConfig {
                vcpus,
                smt,
                ..config()
            }
            .check(&HOST);
            checked.map(|spec| spec.topology())
        };
        let topology = |vcpus, threads| Ok(CpuTopology { vcpus, threads });
        assert_eq!(check(3, true), Err(Error::OddVcpus(3)));
        assert_eq!(check(3, false), topology(3, 1));
        assert_eq!(check(1, true), topology(1, 1));
        assert_eq!(check(32, true), topology(32, 2));
    }

    #[test]
    fn memory_outside_1_mib_to_host_is_rejected() {
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
            "cannot use 0B of guest memory: a VM has at least 1M"
        );
        assert_eq!(
            check(9 << 30).unwrap_err().to_string(),
            "cannot use 9G of guest memory: this host has 8G, swap included; request less"
        );
    }

    #[test]
    fn interfaces_with_shared_values_are_rejected() {
        let check = |nets: &[&str]| {
            let devices = nets.iter().map(|net| interface(net)).collect();
            let checked = VmConfig { devices, ..config() }.check(&HOST);
            checked.map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["user", "user", "fd:5", "fd:6"]), Ok(()));
        assert_eq!(
            check(&["user,mac=02:00:00:00:00:01", "user,mac=02:00:00:00:00:02"]),
            Ok(())
        );
        assert_eq!(
            check(&["user,mac=02:00:00:00:00:01", "user", "fd:5,mac=02:00:00:00:00:01"]),
            Err("cannot attach two network interfaces with the MAC address 02:00:00:00:00:01: change the address of one".into())
        );
        assert_eq!(
            check(&["fd:5", "user", "fd:5"]),
            Err("cannot attach two network interfaces to descriptor 5: give each its own tap".into())
        );
    }

    #[test]
    fn device_ids_are_filled_in_and_unique() {
        let named = |drives: &[&str], nets: &[&str]| {
            let interfaces = nets.iter().map(|text| interface(text));
            let devices = interfaces.chain(drives.iter().map(|text| drive(text))).collect();
            let checked = VmConfig { devices, ..config() }.check(&HOST);
            let config = checked.map_err(|error| error.to_string())?.config;
            let ids: Vec<_> = config.devices.iter().map(DeviceConfig::id).collect();
            Ok(ids.join(" "))
        };
        let ok = |names: &str| Ok::<_, String>(names.to_owned());
        assert_eq!(
            named(&["x", "x,id=a", "x"], &["user,id=b", "user"]),
            ok("drive0 a drive2 b net1")
        );
        let rejected = |kind: &str, id: &str| {
            Err(format!(
                "cannot attach two {kind} with the ID \"{id}\": change the ID of one"
            ))
        };
        assert_eq!(named(&["x,id=drive1", "x"], &[]), rejected("drives", "drive1"));
        assert_eq!(
            named(&[], &["user,id=a", "fd:5,id=a"]),
            rejected("network interfaces", "a")
        );
    }

    #[test]
    fn saved_form_keeps_flags() {
        for (text, flags) in [
            ("a,id=x", [false; 2]),
            ("a,id=x,ro", [false, true]),
            ("a,id=x,shared", [true, false]),
            ("a,id=x,ro,shared", [true; 2]),
        ] {
            let devices = vec![drive(text)];
            let mut archive = ArchiveWriter::new();
            let [huge_pages, smt] = flags;
            let config = VmConfig {
                devices,
                huge_pages,
                smt,
                ..config()
            };
            archive.write("machine", &config).unwrap();
            let bytes = archive.into_bytes();
            let mut reader = ArchiveReader::parse(&bytes).unwrap();
            let read: VmConfig = reader.read("machine").unwrap();
            assert_eq!(read.devices, config.devices, "{text}");
            assert_eq!([read.huge_pages, read.smt], flags);
        }
    }

    #[test]
    fn saved_form_keeps_devices() {
        let devices = vec![drive("a,id=x"), drive("b,id=y"), interface("user,id=z")];
        let saved = SavedVmConfig::from(VmConfig {
            devices: devices.clone(),
            ..config()
        });
        assert_eq!((saved.first.drives.len(), saved.first.nets.len()), (2, 1));
        assert_eq!(VmConfig::from(saved).devices, devices);
    }

    #[test]
    fn saved_form_keeps_layout_and_version_1_has_the_first() {
        let mut archive = ArchiveWriter::new();
        archive.write("new", &config()).unwrap();
        archive.write("old", &VmConfigV1::from(config())).unwrap();
        let bytes = archive.into_bytes();
        let mut archive = ArchiveReader::parse(&bytes).unwrap();
        let mut layout = |key: &str| VmConfig::read_section(&mut archive, key).unwrap().layout;
        assert_eq!(layout("new"), AddressLayout::V3);
        assert_eq!(layout("old"), AddressLayout::V1);
        let error = VmConfig::read_section(&mut archive, "none").unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
