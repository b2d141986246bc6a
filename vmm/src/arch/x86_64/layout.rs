//! Guest-physical addresses and interrupt lines.
//!
//! ```text
//! 0x0000_0500  GDT
//! 0x0000_6000  hvm_start_info (PVH) or multiboot information
//! 0x0000_7000  boot_params (Linux)
//! 0x0000_8ff0  top of the stack at entry
//! 0x0000_9000  page tables, up to 0xf000
//! 0x0002_0000  command line
//! 0x0009_fc00  extended BIOS data area with the MP table
//! 0x000e_0000  ACPI tables, RSDP first
//! 0x000f_f000  identity record
//! 0x000f_fff0  reset vector
//! 0x0010_0000  memory up to the hole
//! 0xc000_0000  hole; virtio-mmio devices from 0xc000_1000
//! 0xfec0_0000  IOAPIC
//! 0xfee0_0000  local APICs
//! 0x1_0000_0000  rest of memory
//! ```

use std::ops::Range;

use crate::arch::MmioDeviceInfo;
use crate::config::{AddressLayout, MAX_DEVICES};

/// Global descriptor table at entry.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` or multiboot information with memory map and module list, at most one page.
pub const START_INFO: u64 = 0x6000;
/// Linux `boot_params`, one page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Stack pointer at entry.
pub const STACK_TOP: u64 = 0x8ff0;
/// Page tables at entry: PML4, PDPT and one to four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Capacity of the command line in bytes, NUL included.
pub const COMMAND_LINE_CAPACITY: usize = 4096;
/// End of the boot data below the extended BIOS data area.
pub const LOW_TABLES_END: u64 = COMMAND_LINE + COMMAND_LINE_CAPACITY as u64;
/// End of conventional memory in the memory map: start of the page with the extended BIOS data area.
pub const CONVENTIONAL_RAM_END: u64 = 0x9_f000;
/// Extended BIOS data area, up to 0xa_0000. Contains the MP table: MP specification 1.4, section 4.
pub const EBDA: u64 = 0x9_fc00;
/// End of conventional memory.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// ACPI tables, RSDP first, up to [`IDENTITY`]. Guests search the RSDP from 0xe_0000 to 1 MiB: ACPI 6.5,
/// section 5.2.5.1.
pub const ACPI: u64 = 0xe_0000;
/// [Identity record](crate::identity), in the page of [`RESET_VECTOR`], which a boot writes anyway. As the memory map does not list it, no
/// guest uses it as memory.
pub const IDENTITY: u64 = 0xf_f000;
/// Address to which a guest jumps in real mode for a reset by the BIOS, the last resort of Linux.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the first MiB.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Hole below 4 GiB without memory, at a start.
pub const HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// Bytes of the registers of each virtio-mmio device.
const VIRTIO_MMIO_SIZE: usize = 0x1000;
/// Interrupt lines of the virtio-mmio devices, in their order. Lines below 16 come first, because a PIC has no others. The
/// lines of timer, keyboard, cascade, serial port, real-time clock and coprocessor are left out.
const VIRTIO_IRQS: [u32; MAX_DEVICES] = [5, 6, 7, 9, 10, 11, 12, 14, 15, 3, 16, 17, 18, 19, 20, 21, 22, 23];

/// Addresses and interrupt lines of one [`AddressLayout`]. Saved VMs have them: they never change.
#[derive(Debug)]
pub struct Layout {
    /// Hole below 4 GiB without memory.
    pub hole: Range<u64>,
    /// Registers of the first virtio-mmio device.
    virtio_mmio: u64,
    virtio_irqs: [u32; MAX_DEVICES],
    /// Identity record, if the guest has one.
    pub identity: Option<u64>,
}

/// Layout of VMs whose state file holds none.
static V1: Layout = Layout {
    hole: 0xd000_0000..0x1_0000_0000,
    virtio_mmio: 0xd000_0000,
    virtio_irqs: VIRTIO_IRQS,
    identity: None,
};

/// The first page of the hole is Firecracker's boot timer; its first virtio device follows, with interrupt line 5. Some unikernels
/// have these values as constants (BareMetal).
static V2: Layout = Layout {
    hole: HOLE,
    virtio_mmio: 0xc000_1000,
    virtio_irqs: VIRTIO_IRQS,
    identity: None,
};

/// With an identity record.
static V3: Layout = Layout {
    hole: HOLE,
    virtio_mmio: 0xc000_1000,
    virtio_irqs: VIRTIO_IRQS,
    identity: Some(IDENTITY),
};

impl Layout {
    /// Returns the values of `layout`, or those of V3 for a layout of another architecture, which
    /// [`Platform::check`](crate::arch::Platform::check) rejects.
    pub fn of(layout: AddressLayout) -> &'static Self {
        match layout {
            AddressLayout::V1 => &V1,
            AddressLayout::V2 => &V2,
            _ => &V3,
        }
    }

    /// Returns the virtio-mmio devices in their order.
    pub fn mmio_devices(&self) -> impl Iterator<Item = MmioDeviceInfo> + use<> {
        let bases = (self.virtio_mmio..).step_by(VIRTIO_MMIO_SIZE);
        bases.zip(self.virtio_irqs).map(|(base, gsi)| MmioDeviceInfo {
            base,
            size: VIRTIO_MMIO_SIZE as u64,
            gsi,
        })
    }
}
/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Registers of the first serial port, on the port bus.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Interrupt line of the interval timer.
pub const PIT_IRQ: u32 = 0;
/// Interrupt line of the keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// Interrupt line of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Pin of the IOAPIC for a new generation ID: that of the coprocessor, which processors since the 486 do not use.
pub const IDENTITY_PIN: u8 = 13;
/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u8 = devices::ioapic::PINS;

/// Addresses of boot data, where no segment may lie.
pub const RESERVED: [Range<u64>; 2] = [0..LOW_TABLES_END, EBDA..HIGH_MEMORY];

#[cfg(test)]
mod tests {
    use super::{
        HOLE, IDENTITY, IDENTITY_PIN, KEYBOARD_IRQ, Layout, PIT_IRQ, RESERVED, RESET_VECTOR, SERIAL_IRQ,
    };
    use crate::config::AddressLayout;
    use crate::identity;

    /// Returns base and interrupt line of the first and the last device.
    fn ends(layout: AddressLayout) -> [(u64, u32); 2] {
        let devices: Vec<_> = Layout::of(layout).mmio_devices().collect();
        assert_eq!(devices.len(), 18);
        [devices[0], devices[17]].map(|info| (info.base, info.gsi))
    }

    #[test]
    fn first_device_is_where_firecracker_has_it() {
        assert_eq!(
            ends(AddressLayout::default()),
            [(0xc000_1000, 5), (0xc001_2000, 23)]
        );
        let second = Layout::of(AddressLayout::default()).mmio_devices().nth(1);
        assert_eq!(second.map(|info| (info.base, info.gsi)), Some((0xc000_2000, 6)));
        assert_eq!(Layout::of(AddressLayout::default()).hole, HOLE);
    }

    #[test]
    fn layout_of_older_snapshots_never_changes() {
        assert_eq!(ends(AddressLayout::V1), [(0xd000_0000, 5), (0xd001_1000, 23)]);
        assert_eq!(Layout::of(AddressLayout::V1).hole, 0xd000_0000..1 << 32);
        assert_eq!(ends(AddressLayout::V2), ends(AddressLayout::V3));
        assert_eq!(Layout::of(AddressLayout::V2).hole, HOLE);
        let identities = [AddressLayout::V1, AddressLayout::V2, AddressLayout::V3];
        let identities = identities.map(|layout| Layout::of(layout).identity);
        assert_eq!(identities, [None, None, Some(0xf_f000)]);
    }

    #[test]
    fn identity_lies_in_no_listed_memory_and_on_no_line_of_a_device() {
        let record = IDENTITY..IDENTITY + identity::LENGTH as u64;
        assert!(
            RESERVED
                .iter()
                .any(|range| range.start <= record.start && record.end <= range.end)
        );
        assert!(record.end <= RESET_VECTOR);
        assert_eq!((IDENTITY + identity::ID_OFFSET) % 8, 0);
        let devices = Layout::of(AddressLayout::default()).mmio_devices();
        let used = [PIT_IRQ, KEYBOARD_IRQ, SERIAL_IRQ].into_iter();
        assert!(
            !used
                .chain(devices.map(|info| info.gsi))
                .any(|gsi| gsi == u32::from(IDENTITY_PIN))
        );
    }
}
