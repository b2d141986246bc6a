//! PVH: `hvm_start_info` version 1 with memory map and module list, which the guest finds through EBX.
//!
//! Layouts are those of Xen, xen/include/public/arch-x86/hvm/start_info.h.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use crate::arch::x86_64::handoff::fields::TableBuilder;
use crate::arch::x86_64::handoff::{Tables, e820};
use crate::arch::x86_64::layout;
use crate::boot::LoadedImage;

const VERSION: u32 = 1;
const INFO: usize = size_of::<hvm_start_info>();
const MAP_ENTRY: usize = size_of::<hvm_memmap_table_entry>();
const MODULE: usize = size_of::<hvm_modlist_entry>();

/// Builds what goes to [`layout::START_INFO`], for a guest with `size` bytes of memory.
///
/// A table that is not there has address 0.
pub fn build(loaded: &LoadedImage, size: u64, tables: &Tables<'_>) -> Vec<u8> {
    let map = layout::START_INFO + INFO as u64;
    let modules = map + (e820::MAX_AREAS * MAP_ENTRY) as u64;
    let mut fields = TableBuilder::with_capacity(INFO + e820::MAX_AREAS * MAP_ENTRY + MODULE);
    fields
        .u32(XEN_HVM_START_MAGIC_VALUE)
        .u32(VERSION)
        .u32(0)
        .u32(u32::from(loaded.initrd.is_some()))
        .u64(loaded.initrd.as_ref().map_or(0, |_| modules))
        .u64(layout::COMMAND_LINE)
        .u64(if tables.acpi { layout::ACPI } else { 0 })
        .u64(map)
        .u32(e820::ram(size).map(|_| 1).sum())
        .u32(0);
    for area in e820::ram(size) {
        fields
            .u64(area.start)
            .u64(area.end - area.start)
            .u32(e820::RAM)
            .u32(0);
    }
    if let Some(initrd) = &loaded.initrd {
        fields
            .pad_to(INFO + e820::MAX_AREAS * MAP_ENTRY)
            .u64(initrd.start)
            .u64(initrd.end - initrd.start)
            .u64(0)
            .u64(0);
    }
    fields.finish()
}
