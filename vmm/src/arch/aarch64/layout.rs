//! Guest-physical addresses and interrupt lines of the two memory maps, and the places of image and device tree.
//!
//! | fc | virt | |
//! |---|---|---|
//! | 0x0800_0000 | 0x0800_0000 | distributor of the GIC |
//! | 0x0801_0000 | 0x0801_0000 | CPU interface (GICv2) |
//! | 0x080a_0000 | 0x080a_0000 | redistributors (GICv3) |
//! | 0x4000_2000 | 0x0900_0000 | serial port: 16550 or PL011 |
//! | 0x4000_1000 | 0x0901_0000 | real-time clock PL031 |
//! | 0x4000_3000 | 0x0a00_0000 | virtio-mmio devices, one in each page |
//! | 0x8000_0000 | 0x4000_0000 | memory |
//!
//! The last 64 KiB of memory contain the identity record. The memory map of the guest does not list them: a guest may ignore
//! reservations inside of its memory, and Linux maps the record only outside.
//!
//! fc has the addresses of Firecracker, virt those of QEMU's machine of this name. The GIC of Firecracker lies elsewhere, but its
//! guests find it by the device tree.

use std::borrow::Cow;
use std::ops::Range;

use devices::serial::SerialModel;

use crate::arch::{LoadPlan, MmioDeviceInfo};
use crate::boot::arm64::BASE_ALIGNMENT;
use crate::boot::image::Format;
use crate::boot::{Image, Protocol};
use crate::config::{AddressLayout, MAX_DEVICES, MemoryMap};

/// Size in bits of guest-physical addresses of a KVM without `KVM_CAP_ARM_VM_IPA_SIZE`: KVM API, `KVM_CREATE_VM`.
const DEFAULT_ADDRESS_BITS: u32 = 40;

/// Distributor of the GIC.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// Bytes of the distributor of a GICv2.
pub const DISTRIBUTOR_V2_SIZE: u64 = 0x1000;
/// Bytes of the distributor of a GICv3.
pub const DISTRIBUTOR_V3_SIZE: u64 = 0x1_0000;
/// CPU interface of a GICv2.
pub const CPU_INTERFACE: u64 = 0x0801_0000;
/// Bytes of the CPU interface.
pub const CPU_INTERFACE_SIZE: u64 = 0x2000;
/// Redistributors of a GICv3, in the order of the vCPUs.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Bytes of each redistributor.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// Interrupts of the GIC, the 32 private ones of each vCPU included. KVM API, `KVM_DEV_ARM_VGIC_GRP_NR_IRQS`: a multiple of 32.
pub const INTERRUPTS: u32 = 128;
/// Number of the first shared interrupt.
pub const FIRST_SHARED_INTERRUPT: u32 = 32;

/// Maximum length of the device tree in bytes, the limit of OSv.
pub const DEVICE_TREE_SIZE: u64 = 64 << 10;

/// Bytes at the end of memory for the [identity record](crate::identity): the largest page of a kernel, which contains nothing else.
pub const IDENTITY_SIZE: u64 = 64 << 10;
/// Shared interrupt of a new generation ID.
pub const IDENTITY_INTERRUPT: u32 = 2;

/// Bytes of the registers of serial port and clock, as the device tree describes them.
pub const DEVICE_SIZE: u64 = 0x1000;
/// Distance of two virtio-mmio devices.
const VIRTIO_STRIDE: usize = 0x1000;
/// Bytes of the registers of each virtio-mmio device. Hermit requires fewer than a page.
const VIRTIO_SIZE: u64 = 0x200;
/// Shared interrupt of the first virtio-mmio device.
const VIRTIO_INTERRUPT: u32 = 16;

/// Minimum size of a guest-physical address: KVM API, `KVM_CREATE_VM`.
const MIN_ADDRESS_BITS: u32 = 32;

/// Reason why image and device tree have no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The image is linked below the memory of both maps.
    #[error(
        "the image is linked at {0:#x}, outside memory of both memory maps: virt has memory from {virt:#x}, fc from {fc:#x}; link it \
         for one of them", virt = VIRT.memory, fc = FC.memory
    )]
    OutsideMemory(u64),
    /// The image is linked below the memory of the requested map.
    #[error(
        "the image is linked at {start:#x}, and memory map {map} has memory from {memory:#x}; use the other memory map, or link it \
         there"
    )]
    BelowMemory {
        /// First address of the image.
        start: u64,
        /// Requested memory map.
        map: MemoryMap,
        /// First address of memory.
        memory: u64,
    },
    /// The image covers the place of the device tree.
    #[error(
        "the image ({:#x}..{:#x}) covers the device tree at {:#x}..{:#x}; link it at {:#x} or above", image.start, image.end,
        device_tree.start, device_tree.end, device_tree.end
    )]
    DeviceTree {
        /// Addresses of the image.
        image: Range<u64>,
        /// Addresses of the device tree.
        device_tree: Range<u64>,
    },
    /// Memory is too small for image, device tree and identity record.
    #[error(
        "the image ends at {image_end:#x}, and memory at {memory_end:#x}: guest memory is too small for the image and the device tree \
         or identity record behind it; {sufficient_mib} MiB suffice"
    )]
    MemoryTooSmall {
        /// End of the image.
        image_end: u64,
        /// End of memory.
        memory_end: u64,
        /// Size of memory in MiB that contains all.
        sufficient_mib: u64,
    },
    /// Memory exceeds the guest-physical addresses of the host.
    #[error(
        "guest memory ends at {end:#x}, and KVM on this host has guest-physical addresses of {bits} bits; use less memory, or a host \
         with larger ones"
    )]
    AddressSize {
        /// End of memory.
        end: u64,
        /// Size of guest-physical addresses in bits.
        bits: u32,
    },
}

/// Addresses of one memory map. Saved VMs have them: they never change.
#[derive(Debug)]
pub struct Layout {
    /// The map.
    pub map: MemoryMap,
    /// Start of memory.
    pub memory: u64,
    /// Model of the serial port.
    pub serial_model: SerialModel,
    /// Registers of the serial port.
    pub serial: u64,
    /// Shared interrupt of the serial port.
    pub serial_interrupt: u32,
    /// Registers of the real-time clock.
    pub rtc: u64,
    /// Registers of the first virtio-mmio device.
    virtio: u64,
    /// Memory ends with an identity record.
    pub has_identity: bool,
}

const FC_1: Layout = Layout {
    map: MemoryMap::Fc,
    memory: 0x8000_0000,
    serial_model: SerialModel::Uart16550,
    serial: 0x4000_2000,
    serial_interrupt: 1,
    rtc: 0x4000_1000,
    virtio: 0x4000_3000,
    has_identity: false,
};

const VIRT_1: Layout = Layout {
    map: MemoryMap::Virt,
    memory: 0x4000_0000,
    serial_model: SerialModel::Pl011,
    serial: 0x0900_0000,
    serial_interrupt: 1,
    rtc: 0x0901_0000,
    virtio: 0x0a00_0000,
    has_identity: false,
};

static FC_WITHOUT_IDENTITY: Layout = FC_1;
static VIRT_WITHOUT_IDENTITY: Layout = VIRT_1;

static FC: Layout = Layout {
    has_identity: true,
    ..FC_1
};

static VIRT: Layout = Layout {
    has_identity: true,
    ..VIRT_1
};

impl Layout {
    /// Returns the addresses of `layout`, or those of fc for a layout of another architecture, which
    /// [`Platform::check`](crate::arch::Platform::check) rejects.
    pub fn of(layout: AddressLayout) -> &'static Self {
        match layout {
            AddressLayout::ArmFc => &FC_WITHOUT_IDENTITY,
            AddressLayout::ArmVirt => &VIRT_WITHOUT_IDENTITY,
            AddressLayout::ArmVirt2 => &VIRT,
            AddressLayout::ArmFc2 | AddressLayout::V1 | AddressLayout::V2 | AddressLayout::V3 => &FC,
        }
    }

    /// Returns the address of the identity record in `size` bytes of memory, a multiple of [`IDENTITY_SIZE`]; `None` if the guest has
    /// none.
    pub fn identity(&self, size: u64) -> Option<u64> {
        let end = self.memory.saturating_add(size) & !(IDENTITY_SIZE - 1);
        self.has_identity.then_some(end.saturating_sub(IDENTITY_SIZE))
    }

    /// Returns the end of the memory that the guest may use.
    pub fn usable_end(&self, size: u64) -> u64 {
        let end = self.memory.saturating_add(size);
        self.identity(size).unwrap_or(end)
    }

    /// Returns the virtio-mmio devices in their order.
    pub fn mmio_devices(&self) -> impl Iterator<Item = MmioDeviceInfo> + use<> {
        let bases = (self.virtio..).step_by(VIRTIO_STRIDE);
        bases
            .zip(VIRTIO_INTERRUPT..)
            .take(MAX_DEVICES)
            .map(|(base, gsi)| MmioDeviceInfo {
                base,
                size: VIRTIO_SIZE,
                gsi,
            })
    }
}

fn address_layout(map: MemoryMap) -> AddressLayout {
    match map {
        MemoryMap::Fc => AddressLayout::ArmFc2,
        MemoryMap::Virt => AddressLayout::ArmVirt2,
    }
}

/// Returns the layout for `image`, and the reason: that of `forced`, or the one whose memory contains the image.
///
/// # Errors
/// [`Error::OutsideMemory`]
pub fn select(image: &Image, forced: Option<MemoryMap>) -> Result<(AddressLayout, String), Error> {
    if let Some(map) = forced {
        return Ok((address_layout(map), "as requested".into()));
    }
    if matches!(image.info().format, Format::Arm64(_)) {
        return Ok((
            AddressLayout::ArmFc2,
            "an arm64 Image has no address of its own".into(),
        ));
    }
    let starts = image.info().segments.iter().map(|segment| segment.physical.start);
    let start = starts.min().unwrap_or(0);
    let map = match start {
        start if start >= FC.memory => MemoryMap::Fc,
        start if start >= VIRT.memory => MemoryMap::Virt,
        _ => return Err(Error::OutsideMemory(start)),
    };
    Ok((address_layout(map), format!("the image is linked at {start:#x}")))
}

/// Returns the places of `image`, entered by `protocol`, and of the device tree in `size` bytes of memory.
///
/// fc has the device tree at the end of memory: an image may begin at the start of memory (unikraft issue 1488). virt has it at the
/// start of memory, where guests expect it that take no register, unless an `Image` lies there: that moves up if it can, and takes
/// the address from x0 otherwise.
///
/// # Errors
/// [`Error::DeviceTree`], [`Error::BelowMemory`] or [`Error::MemoryTooSmall`]
pub fn plan(layout: AddressLayout, size: u64, image: &Image, protocol: Protocol) -> Result<LoadPlan, Error> {
    let Layout { map, memory, .. } = *Layout::of(layout);
    let header = match &image.info().format {
        Format::Arm64(header) => Some(header),
        _ => None,
    };
    let mut base = if header.is_some() { memory } else { 0 };
    let low = memory..memory + DEVICE_TREE_SIZE;
    let mut is_low = map == MemoryMap::Virt;
    let covers = |base| {
        let segments = image.segments_at(base, protocol);
        segments
            .iter()
            .any(|segment| segment.physical.start < low.end && low.start < segment.physical.end)
    };
    if is_low && covers(base) {
        match header {
            Some(header) if header.is_relocatable => base += BASE_ALIGNMENT,
            Some(_) => is_low = false,
            None => {
                let image = extent(image, base, protocol);
                return Err(Error::DeviceTree {
                    image,
                    device_tree: low,
                });
            }
        }
    }
    let image = extent(image, base, protocol);
    if image.start < memory {
        let start = image.start;
        return Err(Error::BelowMemory { start, map, memory });
    }
    let device_tree = match is_low {
        true => low,
        false => high_device_tree(Layout::of(layout).usable_end(size)),
    };
    let memory_end = memory.saturating_add(size);
    let identity = Layout::of(layout).identity(size).map(|start| start..memory_end);
    let reserved: Vec<Range<u64>> = [device_tree.clone()].into_iter().chain(identity).collect();
    let behind = reserved.iter().filter(|range| is_high(range, memory));
    if behind
        .map(|range| range.start)
        .min()
        .is_some_and(|start| image.end > start)
    {
        return Err(too_small(image.end, memory..memory_end, &reserved));
    }
    Ok(LoadPlan {
        image_base: base,
        boot_data: device_tree.start,
        reserved: Cow::Owned(reserved),
    })
}

/// Returns true for reserved addresses at the end of `memory`.
fn is_high(range: &Range<u64>, memory: u64) -> bool {
    range.start != memory
}

/// Returns the addresses of the device tree at the end of memory.
fn high_device_tree(end: u64) -> Range<u64> {
    let start = end.saturating_sub(DEVICE_TREE_SIZE) & !(DEVICE_TREE_SIZE - 1);
    start..start + DEVICE_TREE_SIZE
}

/// Returns the error of an image that ends at `image_end`, with the size of memory in which it precedes all `reserved` addresses.
fn too_small(image_end: u64, memory: Range<u64>, reserved: &[Range<u64>]) -> Error {
    let count = reserved
        .iter()
        .filter(|range| is_high(range, memory.start))
        .count() as u64;
    let sufficient = (image_end.saturating_add((1 + count) * DEVICE_TREE_SIZE - 1)) & !(DEVICE_TREE_SIZE - 1);
    Error::MemoryTooSmall {
        image_end,
        memory_end: memory.end,
        sufficient_mib: (sufficient - memory.start).div_ceil(1 << 20),
    }
}

/// Returns the addresses from the first to the last segment of `image`.
fn extent(image: &Image, base: u64, protocol: Protocol) -> Range<u64> {
    let segments = image.segments_at(base, protocol);
    let start = segments.iter().map(|segment| segment.physical.start).min();
    let end = segments.iter().map(|segment| segment.physical.end).max();
    start.unwrap_or(0)..end.unwrap_or(0)
}

/// Returns the type of a VM for `KVM_CREATE_VM` whose memory ends at `end`. `limit` is the size in bits of guest-physical addresses that
/// KVM supports, or 0 if it has no choice of the size.
///
/// # Errors
/// [`Error::AddressSize`]
pub fn vm_type(end: u64, limit: u32) -> Result<u64, Error> {
    if limit == 0 {
        return address_bits(end, DEFAULT_ADDRESS_BITS).map(|_| 0);
    }
    address_bits(end, limit).map(u64::from)
}

/// Returns the size in bits of guest-physical addresses up to `end`: the smallest that KVM accepts, which takes the fewest levels of
/// page tables. `limit` is that of the host.
///
/// # Errors
/// [`Error::AddressSize`]
fn address_bits(end: u64, limit: u32) -> Result<u32, Error> {
    let bits = (u64::BITS - end.saturating_sub(1).leading_zeros()).max(MIN_ADDRESS_BITS);
    if bits > limit {
        return Err(Error::AddressSize { end, bits: limit });
    }
    Ok(bits)
}

#[cfg(test)]
mod tests;
