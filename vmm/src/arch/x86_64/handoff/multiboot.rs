//! Multiboot 1: the information structure, which the guest finds through EBX.
//!
//! Layout of the Multiboot Specification 0.6.96, section 3.3.

use crate::arch::x86_64::handoff::e820;
use crate::arch::x86_64::handoff::fields::{TableBuilder, low};
use crate::arch::x86_64::handoff::write::Error;
use crate::arch::x86_64::layout;
use crate::boot::LoadedImage;

/// `mem_lower` and `mem_upper` are valid.
const MEMORY: u32 = 1 << 0;
/// `cmdline` is valid.
const COMMAND_LINE: u32 = 1 << 2;
/// `mods_count` and `mods_addr` are valid.
const MODULES: u32 = 1 << 3;
/// `mmap_length` and `mmap_addr` are valid.
const MEMORY_MAP: u32 = 1 << 6;
/// `boot_loader_name` is valid.
const LOADER_NAME: u32 = 1 << 9;

/// Length of the structure with all its optional fields.
const INFO: usize = 116;
/// Length of an entry of the memory map, its own size field included.
const MAP_ENTRY: usize = 24;
/// What the size field of such an entry says, which does not count itself.
const MAP_ENTRY_SIZE: u32 = 20;
const NAME: &[u8] = b"mayfly\0";
const NAME_AT: usize = 120;
const MAP_AT: usize = 128;
const MODULES_AT: usize = MAP_AT + e820::MAX_AREAS * MAP_ENTRY;
const _: () = assert!(INFO <= NAME_AT && NAME_AT + NAME.len() <= MAP_AT);

/// Builds what goes to [`layout::START_INFO`], for a guest with `size` bytes of memory.
///
/// # Errors
/// [`Error::Above4GiB`] when the initrd does not lie below 4 GiB.
pub fn build(loaded: &LoadedImage, size: u64) -> Result<Vec<u8>, Error> {
    let address = |offset: usize| low(layout::START_INFO + offset as u64);
    // In KiB; the upper memory ends with the first gap.
    let upper = (size.min(layout::HOLE.start) - layout::HIGH_MEMORY.min(size)) / 1024;
    let entries: u32 = e820::ram(size).map(|_| MAP_ENTRY_SIZE + 4).sum();
    let mut fields = TableBuilder::with_capacity(MODULES_AT + 16);
    fields
        .u32(MEMORY | COMMAND_LINE | MODULES | MEMORY_MAP | LOADER_NAME)
        .u32(low(layout::CONVENTIONAL_RAM_END / 1024))
        .u32(low(upper))
        .u32(0)
        .u32(low(layout::COMMAND_LINE))
        .u32(u32::from(loaded.initrd.is_some()))
        .u32(address(MODULES_AT))
        .pad_to(44)
        .u32(entries)
        .u32(address(MAP_AT))
        .pad_to(64)
        .u32(address(NAME_AT))
        .pad_to(NAME_AT)
        .bytes(NAME)
        .pad_to(MAP_AT);
    for area in e820::ram(size) {
        fields
            .u32(MAP_ENTRY_SIZE)
            .u64(area.start)
            .u64(area.end - area.start)
            .u32(e820::RAM);
    }
    if let Some(initrd) = &loaded.initrd {
        let below_4_gib = |value: u64| {
            u32::try_from(value).map_err(|_| Error::Above4GiB {
                what: "end of the initrd",
                address: value,
            })
        };
        // The module's string is the NUL that ends the loader's name: an empty one, for kernels that read it unasked.
        fields
            .pad_to(MODULES_AT)
            .u32(below_4_gib(initrd.start)?)
            .u32(below_4_gib(initrd.end)?)
            .u32(address(NAME_AT + NAME.len() - 1))
            .u32(0);
    }
    Ok(fields.finish())
}
