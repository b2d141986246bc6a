//! The device tree: one for all guests, whose parsers differ.
//!
//! - Hermit requires the node `/intc` without an address, names of virtio-mmio devices that begin with `virtio_mmio`, and `cpu_on` in
//!   `/psci` for several vCPUs.
//! - OSv reads the address of a 16550 from the name `uart@…`, each `reg` as two 64-bit numbers, and four interrupts of the timer, whose
//!   third is the virtual one.
//! - The early console of Unikraft requires `stdout-path`. It accepts one region of redistributors.
//! - Processors without FWB require `dma-coherent` (firecracker issue 5538).
//! - There are no nodes of caches: KVM makes up CLIDR_EL1 since Linux 6.3, which would contradict them.
//! - The node of the memory omits the identity record instead of a reservation, which some guests ignore. Linux maps no generation ID
//!   inside of its memory (`ioremap` of arm64).

use std::ffi::CStr;
use std::ops::Range;

use vm_fdt::FdtWriter;

use super::layout::{self, Layout};
use crate::arch::MmioDeviceInfo;
use crate::config::{GicVersion, MemoryMap};
use crate::identity;

/// Bytes of randomness for the guest.
pub const SEED_LENGTH: usize = 64;

const GIC_HANDLE: u32 = 1;
const CLOCK_HANDLE: u32 = 2;

/// Kinds of interrupts: Linux, Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// Private interrupts of the timers: secure physical, physical, virtual, hypervisor. The order is that of the binding.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// Private interrupt of the maintenance of the GIC.
const MAINTENANCE: u32 = 9;

/// Function numbers: Power State Coordination Interface, Arm DEN 0022, section 5.
const CPU_SUSPEND: u32 = 0xc400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0xc400_0003;

/// Affinity bits of MPIDR_EL1.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// Frequency of the clock of the serial port in Hz.
const CLOCK_FREQUENCY: u32 = 24_000_000;

/// Reason why the device tree is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The writer rejects a node or property.
    #[error("cannot compose the device tree")]
    Writer(#[from] vm_fdt::Error),
    /// The device tree is too large.
    #[error("the device tree has {0} bytes, and guests accept {max}; use fewer devices", max = layout::DEVICE_TREE_SIZE)]
    Size(usize),
}

/// Contents of a device tree.
pub struct DeviceTree<'a> {
    /// Memory map.
    pub layout: &'static Layout,
    /// Size of memory in bytes, with the identity record.
    pub memory: u64,
    /// MPIDR_EL1 of each vCPU.
    pub affinities: &'a [u64],
    /// Version of the interrupt controller.
    pub gic: GicVersion,
    /// Command line.
    pub cmdline: &'a CStr,
    /// Addresses of the initrd.
    pub initrd: Option<Range<u64>>,
    /// Attached virtio-mmio devices.
    pub mmio_devices: &'a [MmioDeviceInfo],
    /// Randomness for the guest.
    pub seed: [u8; SEED_LENGTH],
}

impl DeviceTree<'_> {
    /// Returns the flattened device tree.
    ///
    /// # Errors
    /// [`Error`]
    pub fn flatten(&self) -> Result<Vec<u8>, Error> {
        let mut tree = FdtWriter::new()?;
        let root = tree.begin_node("")?;
        tree.property_string("compatible", "linux,dummy-virt")?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_u32("interrupt-parent", GIC_HANDLE)?;
        self.chosen(&mut tree)?;
        self.memory(&mut tree)?;
        self.cpus(&mut tree)?;
        self.gic(&mut tree)?;
        psci(&mut tree)?;
        self.timer(&mut tree)?;
        clock(&mut tree)?;
        self.serial(&mut tree)?;
        self.rtc(&mut tree)?;
        self.generation_id(&mut tree)?;
        for device in self.mmio_devices {
            virtio(&mut tree, device)?;
        }
        tree.end_node(root)?;
        let bytes = tree.finish()?;
        match bytes.len() as u64 <= layout::DEVICE_TREE_SIZE {
            true => Ok(bytes),
            false => Err(Error::Size(bytes.len())),
        }
    }

    fn serial_name(&self) -> String {
        match self.layout.map {
            MemoryMap::Fc => format!("uart@{:x}", self.layout.serial),
            MemoryMap::Virt => format!("pl011@{:x}", self.layout.serial),
        }
    }

    fn chosen(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let node = tree.begin_node("chosen")?;
        tree.property("bootargs", self.cmdline.to_bytes_with_nul())?;
        tree.property_string("stdout-path", &format!("/{}", self.serial_name()))?;
        tree.property("rng-seed", &self.seed)?;
        if let Some(initrd) = &self.initrd {
            tree.property_u64("linux,initrd-start", initrd.start)?;
            tree.property_u64("linux,initrd-end", initrd.end)?;
        }
        Ok(tree.end_node(node)?)
    }

    fn memory(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let node = tree.begin_node(&format!("memory@{:x}", self.layout.memory))?;
        tree.property_string("device_type", "memory")?;
        let size = self
            .layout
            .usable_end(self.memory)
            .saturating_sub(self.layout.memory);
        tree.property_array_u64("reg", &[self.layout.memory, size])?;
        Ok(tree.end_node(node)?)
    }

    fn cpus(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let cpus = tree.begin_node("cpus")?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 0)?;
        for (id, mpidr) in self.affinities.iter().enumerate() {
            let cpu = tree.begin_node(&format!("cpu@{id:x}"))?;
            tree.property_string("device_type", "cpu")?;
            tree.property_string("compatible", "arm,arm-v8")?;
            tree.property_string("enable-method", "psci")?;
            tree.property_u64("reg", mpidr & AFFINITY)?;
            tree.end_node(cpu)?;
        }
        Ok(tree.end_node(cpus)?)
    }

    fn gic(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let node = tree.begin_node("intc")?;
        let distributor = layout::DISTRIBUTOR;
        match self.gic {
            GicVersion::V3 => {
                let redistributors = layout::REDISTRIBUTOR_SIZE * self.affinities.len() as u64;
                let reg = [
                    distributor,
                    layout::DISTRIBUTOR_V3_SIZE,
                    layout::REDISTRIBUTORS,
                    redistributors,
                ];
                tree.property_string("compatible", "arm,gic-v3")?;
                tree.property_array_u64("reg", &reg)?;
            }
            GicVersion::V2 => {
                let names = ["arm,cortex-a15-gic", "arm,gic-400"];
                let reg = [
                    distributor,
                    layout::DISTRIBUTOR_V2_SIZE,
                    layout::CPU_INTERFACE,
                    layout::CPU_INTERFACE_SIZE,
                ];
                tree.property_string_list("compatible", names.map(str::to_owned).into())?;
                tree.property_array_u64("reg", &reg)?;
            }
        }
        tree.property_null("interrupt-controller")?;
        tree.property_u32("#interrupt-cells", 3)?;
        tree.property_u32("#address-cells", 2)?;
        tree.property_u32("#size-cells", 2)?;
        tree.property_null("ranges")?;
        tree.property_array_u32("interrupts", &[PRIVATE, MAINTENANCE, LEVEL | self.cpu_mask()])?;
        tree.property_phandle(GIC_HANDLE)?;
        Ok(tree.end_node(node)?)
    }

    /// Returns the bits of a private interrupt that name the vCPUs. A GICv3 has none.
    fn cpu_mask(&self) -> u32 {
        match self.gic {
            GicVersion::V2 => ((1 << self.affinities.len().min(8)) - 1) << 8,
            GicVersion::V3 => 0,
        }
    }

    fn timer(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let node = tree.begin_node("timer")?;
        tree.property_string("compatible", "arm,armv8-timer")?;
        let mask = self.cpu_mask();
        let interrupts = TIMERS.map(|timer| [PRIVATE, timer, LEVEL | mask]);
        tree.property_array_u32("interrupts", interrupts.as_flattened())?;
        tree.property_null("always-on")?;
        Ok(tree.end_node(node)?)
    }

    fn serial(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let Layout {
            map,
            serial,
            serial_interrupt,
            ..
        } = *self.layout;
        let node = tree.begin_node(&self.serial_name())?;
        let trigger = match map {
            MemoryMap::Fc => {
                tree.property_string("compatible", "ns16550a")?;
                tree.property_u32("clocks", CLOCK_HANDLE)?;
                tree.property_string("clock-names", "apb_pclk")?;
                EDGE
            }
            MemoryMap::Virt => {
                tree.property_string_list("compatible", primecell("arm,pl011"))?;
                tree.property_array_u32("clocks", &[CLOCK_HANDLE, CLOCK_HANDLE])?;
                tree.property_string_list("clock-names", vec!["uartclk".into(), "apb_pclk".into()])?;
                LEVEL
            }
        };
        tree.property_array_u64("reg", &[serial, layout::DEVICE_SIZE])?;
        tree.property_array_u32("interrupts", &[SHARED, serial_interrupt, trigger])?;
        Ok(tree.end_node(node)?)
    }

    fn rtc(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let node = tree.begin_node(&format!("rtc@{:x}", self.layout.rtc))?;
        tree.property_string_list("compatible", primecell("arm,pl031"))?;
        tree.property_array_u64("reg", &[self.layout.rtc, layout::DEVICE_SIZE])?;
        tree.property_u32("clocks", CLOCK_HANDLE)?;
        tree.property_string("clock-names", "apb_pclk")?;
        Ok(tree.end_node(node)?)
    }

    /// Linux, Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml.
    fn generation_id(&self, tree: &mut FdtWriter) -> Result<(), Error> {
        let Some(record) = self.layout.identity(self.memory) else {
            return Ok(());
        };
        let id = record + identity::ID_OFFSET;
        let node = tree.begin_node(&format!("rng@{id:x}"))?;
        tree.property_string("compatible", "microsoft,vmgenid")?;
        tree.property_array_u64("reg", &[id, identity::ID_LENGTH])?;
        tree.property_array_u32("interrupts", &[SHARED, layout::IDENTITY_INTERRUPT, EDGE])?;
        Ok(tree.end_node(node)?)
    }
}

/// Returns the `compatible` property of a PrimeCell component.
fn primecell(name: &str) -> Vec<String> {
    vec![name.to_owned(), "arm,primecell".to_owned()]
}

fn psci(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = tree.begin_node("psci")?;
    let names = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
    tree.property_string_list("compatible", names.map(str::to_owned).into())?;
    tree.property_string("method", "hvc")?;
    tree.property_u32("cpu_suspend", CPU_SUSPEND)?;
    tree.property_u32("cpu_off", CPU_OFF)?;
    tree.property_u32("cpu_on", CPU_ON)?;
    Ok(tree.end_node(node)?)
}

fn clock(tree: &mut FdtWriter) -> Result<(), Error> {
    let node = tree.begin_node("apb-pclk")?;
    tree.property_string("compatible", "fixed-clock")?;
    tree.property_u32("#clock-cells", 0)?;
    tree.property_u32("clock-frequency", CLOCK_FREQUENCY)?;
    tree.property_string("clock-output-names", "clk24mhz")?;
    tree.property_phandle(CLOCK_HANDLE)?;
    Ok(tree.end_node(node)?)
}

fn virtio(tree: &mut FdtWriter, device: &MmioDeviceInfo) -> Result<(), Error> {
    let node = tree.begin_node(&format!("virtio_mmio@{:x}", device.base))?;
    tree.property_string("compatible", "virtio,mmio")?;
    tree.property_array_u64("reg", &[device.base, device.size])?;
    tree.property_array_u32("interrupts", &[SHARED, device.gsi, EDGE])?;
    tree.property_u32("interrupt-parent", GIC_HANDLE)?;
    tree.property_null("dma-coherent")?;
    Ok(tree.end_node(node)?)
}

#[cfg(test)]
mod tests;
