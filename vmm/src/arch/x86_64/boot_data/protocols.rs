//! Memory map and boot parameters of each boot protocol.
//!
//! The memory map lists only memory, in complete pages. Guests ignore unlisted addresses, and a map without
//! reserved areas is the only one that all guests accept:
//!
//! - Unikraft adds the areas from 0xa_0000 to 0x10_0000 by itself. An assertion fails if a reserved area of the map overlaps
//!   them with other flags (unikraft issue 1410), or if memory ends within a page.
//! - Nanos, entered by the Linux protocol, uses the first listed area of 16 KiB or more for page tables, whatever its type,
//!   unless the area starts at 0. It would overwrite ACPI tables in a reserved area.
//! - Linux reserves the extended BIOS data area and the addresses from its start to 1 MiB by itself.

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::ByteValued;

use super::tables::{Error, TableBuilder, Tables, low};
use crate::arch::x86_64::layout;
use crate::boot::LoadedImage;

/// Type of a usable area, common to E820, PVH and multiboot.
const RAM: u32 = 1;

/// Maximum number of areas in a memory map.
const MAX_AREAS: usize = 3;

/// Returns the usable areas of a guest with `size` bytes of memory, lowest first.
///
/// Memory between [`layout::CONVENTIONAL_RAM_END`] and 1 MiB is not listed; it contains the MP table and the ACPI tables.
/// Memory that does not fit below [`layout::HOLE`] continues above it.
pub(super) fn memory_map(size: u64) -> impl Iterator<Item = Range<u64>> + Clone {
    let below = size.min(layout::HOLE.start);
    let above = layout::HOLE.end;
    let areas: [_; MAX_AREAS] = [
        0..layout::CONVENTIONAL_RAM_END.min(below),
        layout::HIGH_MEMORY..below,
        above..above.saturating_add(size - below),
    ];
    areas.into_iter().filter(|area| !area.is_empty())
}

/// Fields of the setup header: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", little-endian.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Protocol version 2.14, the first with the address of the RSDP.
const LINUX_VERSION: u16 = 0x020e;
/// Boot loader without an assigned ID.
const UNDEFINED_LOADER: u8 = 0xff;
/// The protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// The kernel has the 64-bit entry point.
const KERNEL_64: u16 = 1 << 0;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
/// Minimum length of a header with all fields set here: version 2.06 ends with `cmdline_size`.
const MIN_HEADER: usize = 0x23c - 0x1f1;

/// Builds `boot_params` of the 64-bit Linux protocol, one page that the guest finds through RSI: Linux,
/// Documentation/arch/x86/zero-page.rst.
///
/// `length` is the length of the command line without its NUL, `size` the size of guest memory, both in bytes.
///
/// # Errors
/// [`Error::SetupHeader`] for a truncated header of the image, [`Error::CommandLine`] for a command line beyond the limit of the
/// kernel.
pub(super) fn build_boot_params(
    loaded: &LoadedImage,
    length: u32,
    size: u64,
    tables: &Tables<'_>,
) -> Result<boot_params, Error> {
    let mut header = setup_header_of(loaded)?;
    let limit = header.cmdline_size;
    // In the header of an image, the field is the limit of the kernel; in a new header it is zero.
    if limit != 0 && length > limit {
        return Err(Error::CommandLine {
            length: u64::from(length),
            limit: u64::from(limit),
        });
    }
    header.type_of_loader = UNDEFINED_LOADER;
    header.loadflags |= LOADED_HIGH;
    header.cmd_line_ptr = low(layout::COMMAND_LINE);
    // An ELF image declares no limit. Its field is the length with the NUL, as Firecracker sets it: Hermit panics unless the NUL is
    // the last byte, Unikraft parses so many bytes and stops at a NUL, Nanos copies so many bytes. In a bzImage the field stays the
    // limit: memtest86+ searches the end of its last option within it.
    if loaded.setup_header.is_none() {
        header.cmdline_size = length + 1;
    }

    let mut parameters = boot_params::default();
    if let Some(initrd) = &loaded.initrd {
        let length = initrd.end - initrd.start;
        header.ramdisk_image = low(initrd.start);
        header.ramdisk_size = low(length);
        parameters.ext_ramdisk_image = low(initrd.start >> 32);
        parameters.ext_ramdisk_size = low(length >> 32);
    }
    parameters.hdr = header;
    if tables.acpi {
        parameters.acpi_rsdp_addr = layout::ACPI;
    }
    for (place, area) in parameters.e820_table.iter_mut().zip(memory_map(size)) {
        *place = boot_e820_entry {
            addr: area.start,
            size: area.end - area.start,
            r#type: RAM,
        };
        parameters.e820_entries += 1;
    }
    Ok(parameters)
}

/// Returns the setup header of a bzImage, or a new one for an ELF image.
fn setup_header_of(loaded: &LoadedImage) -> Result<setup_header, Error> {
    let Some(bytes) = &loaded.setup_header else {
        return Ok(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: LINUX_VERSION,
            kernel_alignment: KERNEL_ALIGNMENT,
            xloadflags: KERNEL_64,
            ..Default::default()
        });
    };
    if bytes.len() < MIN_HEADER {
        return Err(Error::SetupHeader {
            length: bytes.len(),
            min: MIN_HEADER,
        });
    }
    let mut header = setup_header::default();
    // A longer header has fields of later protocol versions, which are optional for a boot loader.
    let length = bytes.len().min(header.as_slice().len());
    header.as_mut_slice()[..length].copy_from_slice(&bytes[..length]);
    Ok(header)
}

/// Version of `hvm_start_info` with a memory map.
const PVH_VERSION: u32 = 1;
const PVH_INFO: usize = size_of::<hvm_start_info>();
const PVH_MAP_ENTRY: usize = size_of::<hvm_memmap_table_entry>();
const PVH_MODULE: usize = size_of::<hvm_modlist_entry>();

/// Builds `hvm_start_info` with memory map and module list for PVH, which the guest finds through EBX: Xen,
/// xen/include/public/arch-x86/hvm/start_info.h.
///
/// `size` is the size of guest memory in bytes. The address of a missing table is 0.
pub(super) fn build_pvh(loaded: &LoadedImage, size: u64, tables: &Tables<'_>) -> Vec<u8> {
    let map = layout::START_INFO + PVH_INFO as u64;
    let modules = map + (MAX_AREAS * PVH_MAP_ENTRY) as u64;
    let mut fields = TableBuilder::with_capacity(PVH_INFO + MAX_AREAS * PVH_MAP_ENTRY + PVH_MODULE);
    fields
        .u32(XEN_HVM_START_MAGIC_VALUE)
        .u32(PVH_VERSION)
        .u32(0)
        .u32(u32::from(loaded.initrd.is_some()))
        .u64(loaded.initrd.as_ref().map_or(0, |_| modules))
        .u64(layout::COMMAND_LINE)
        .u64(if tables.acpi { layout::ACPI } else { 0 })
        .u64(map)
        .u32(memory_map(size).map(|_| 1).sum())
        .u32(0);
    for area in memory_map(size) {
        fields.u64(area.start).u64(area.end - area.start).u32(RAM).u32(0);
    }
    if let Some(initrd) = &loaded.initrd {
        fields
            .pad_to(PVH_INFO + MAX_AREAS * PVH_MAP_ENTRY)
            .u64(initrd.start)
            .u64(initrd.end - initrd.start)
            .u64(0)
            .u64(0);
    }
    fields.finish()
}

// Flags of the multiboot information: Multiboot Specification 0.6.96, section 3.3.

/// `mem_lower` and `mem_upper` are valid.
const HAS_MEMORY: u32 = 1 << 0;
/// `cmdline` is valid.
const HAS_COMMAND_LINE: u32 = 1 << 2;
/// `mods_count` and `mods_addr` are valid.
const HAS_MODULES: u32 = 1 << 3;
/// `mmap_length` and `mmap_addr` are valid.
const HAS_MEMORY_MAP: u32 = 1 << 6;
/// `boot_loader_name` is valid.
const HAS_LOADER_NAME: u32 = 1 << 9;

/// Length of the structure with all its optional fields.
const MULTIBOOT_INFO: usize = 116;
/// Length of an entry of the memory map, size field included.
const MULTIBOOT_MAP_ENTRY: usize = 24;
/// Value of the size field of an entry, which excludes the field itself.
const MAP_ENTRY_SIZE: u32 = 20;
const LOADER_NAME: &[u8] = b"mayfly\0";
const NAME_OFFSET: usize = 120;
const MAP_OFFSET: usize = 128;
const MODULES_OFFSET: usize = MAP_OFFSET + MAX_AREAS * MULTIBOOT_MAP_ENTRY;
const _: () = assert!(MULTIBOOT_INFO <= NAME_OFFSET && NAME_OFFSET + LOADER_NAME.len() <= MAP_OFFSET);

/// Builds the multiboot 1 information with memory map and module list, which the guest finds through EBX.
///
/// `size` is the size of guest memory in bytes.
///
/// # Errors
/// [`Error::Above4GiB`] for an initrd that does not lie below 4 GiB.
pub(super) fn build_multiboot(loaded: &LoadedImage, size: u64) -> Result<Vec<u8>, Error> {
    let address = |offset: usize| low(layout::START_INFO + offset as u64);
    // In KiB. Upper memory ends at the first gap.
    let upper = (size.min(layout::HOLE.start) - layout::HIGH_MEMORY.min(size)) / 1024;
    let entries: u32 = memory_map(size).map(|_| MAP_ENTRY_SIZE + 4).sum();
    let mut fields = TableBuilder::with_capacity(MODULES_OFFSET + 16);
    fields
        .u32(HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_MEMORY_MAP | HAS_LOADER_NAME)
        .u32(low(layout::CONVENTIONAL_RAM_END / 1024))
        .u32(low(upper))
        .u32(0)
        .u32(low(layout::COMMAND_LINE))
        .u32(u32::from(loaded.initrd.is_some()))
        .u32(address(MODULES_OFFSET))
        .pad_to(44)
        .u32(entries)
        .u32(address(MAP_OFFSET))
        .pad_to(64)
        .u32(address(NAME_OFFSET))
        .pad_to(NAME_OFFSET)
        .bytes(LOADER_NAME)
        .pad_to(MAP_OFFSET);
    for area in memory_map(size) {
        fields
            .u32(MAP_ENTRY_SIZE)
            .u64(area.start)
            .u64(area.end - area.start)
            .u32(RAM);
    }
    if let Some(initrd) = &loaded.initrd {
        let below_4_gib = |value: u64| {
            u32::try_from(value).map_err(|_| Error::Above4GiB {
                object: "end of the initrd",
                address: value,
            })
        };
        // The module string is empty, because some kernels read it without a check for 0: it is the NUL of the loader name.
        fields
            .pad_to(MODULES_OFFSET)
            .u32(below_4_gib(initrd.start)?)
            .u32(below_4_gib(initrd.end)?)
            .u32(address(NAME_OFFSET + LOADER_NAME.len() - 1))
            .u32(0);
    }
    Ok(fields.finish())
}
