//! State of the boot vCPU at the first instruction of the guest: registers, descriptor table and page tables.
//!
//! One descriptor table serves every protocol. The 64-bit Linux protocol fixes its flat code segment at selector 0x10 and
//! its flat data segment at 0x18; the 32-bit protocols leave the selectors open and use a code segment at 0x08.
//!
//! A 64-bit guest starts with an identity map of the first GiB, which contains the boot data: one PML4 entry, one page-directory
//! pointer, one page directory of 2 MiB pages. The map continues by GiB only up to the end of the image. Nanos keeps these tables and
//! replaces only those of the first GiB: it takes a large page above for a page table. Other guests map the rest by themselves.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use snapshot::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::boot::Protocol;

const CR0_PE: u64 = 1 << 0;
/// Hard-wired to one in every processor with an FPU: Intel SDM volume 3A, section 2.5.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with interrupts disabled. Bit 1 always reads as one: Intel SDM volume 1, section 3.4.3.
const RFLAGS: u64 = 1 << 1;
/// EAX at the entry of a multiboot 1 kernel: Multiboot Specification 0.6.96, section 3.2.
const MULTIBOOT_MAGIC: u64 = 0x2bad_b002;

/// Flat segment: base 0, 4 GiB in units of pages, present.
const FLAT: kvm_segment = kvm_segment {
    base: 0,
    limit: 0xffff_ffff,
    selector: 0,
    type_: 0,
    present: 1,
    dpl: 0,
    db: 0,
    s: 1,
    l: 0,
    g: 1,
    avl: 0,
    unusable: 0,
    padding: 0,
};

/// Execute and read, accessed.
const CODE_TYPE: u8 = 0xb;
/// Read and write, accessed.
const DATA_TYPE: u8 = 0x3;
/// Busy 32-bit TSS in protected mode, busy 64-bit TSS in long mode.
const TASK_TYPE: u8 = 0xb;

/// Flat 32-bit code.
const CODE_32: kvm_segment = kvm_segment {
    selector: 0x08,
    type_: CODE_TYPE,
    db: 1,
    ..FLAT
};
/// 64-bit code.
const CODE_64: kvm_segment = kvm_segment {
    selector: 0x10,
    type_: CODE_TYPE,
    l: 1,
    ..FLAT
};
/// Flat data and stack.
const DATA: kvm_segment = kvm_segment {
    selector: 0x18,
    type_: DATA_TYPE,
    db: 1,
    ..FLAT
};
/// Task state segment. PVH requires base 0 and limit 0x67; the processor reads nothing from it before the guest loads
/// its own.
const TASK: kvm_segment = kvm_segment {
    limit: 0x67,
    selector: 0x20,
    type_: TASK_TYPE,
    s: 0,
    g: 0,
    ..FLAT
};

/// Descriptors in the table: null, two for code, one for data, and the TSS, which takes two in long mode.
const DESCRIPTORS: usize = 6;
/// Length of the descriptor table in bytes.
const DESCRIPTOR_TABLE_LENGTH: usize = DESCRIPTORS * 8;
/// Limit of the GDT register.
const DESCRIPTOR_TABLE_LIMIT: u16 = 47;
const _: () = assert!(DESCRIPTOR_TABLE_LIMIT as usize == DESCRIPTOR_TABLE_LENGTH - 1);

/// Bytes of one page table.
const PAGE: usize = 4096;
/// A page directory maps one GiB. The entry point lies in the first four: [`crate::boot::protocol`].
const MAX_PAGE_DIRECTORIES: u64 = 4;

/// Bits of page table entries: Intel SDM volume 3A, section 4.5.
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// Entry that refers to another table.
const TABLE_ENTRY: u64 = PRESENT | WRITABLE | ACCESSED;
/// Entry that maps 2 MiB. Accessed and dirty are set, because the processor writes the tables to set them.
const PAGE_ENTRY: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE;

/// Entry of the boot vCPU. [`boot_data::write`](super::boot_data::write()) writes the memory that the registers point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Boot protocol.
    pub protocol: Protocol,
    /// Address of the first instruction.
    pub entry: u64,
}

impl EntryState {
    /// Returns the general registers.
    pub fn regs(&self) -> kvm_regs {
        let regs = kvm_regs {
            rip: self.entry,
            rsp: layout::STACK_TOP,
            rflags: RFLAGS,
            ..Default::default()
        };
        match self.protocol {
            Protocol::Linux => kvm_regs {
                rsi: layout::BOOT_PARAMS,
                ..regs
            },
            Protocol::Pvh => kvm_regs {
                rbx: layout::START_INFO,
                ..regs
            },
            Protocol::Multiboot => kvm_regs {
                rax: MULTIBOOT_MAGIC,
                rbx: layout::START_INFO,
                ..regs
            },
        }
    }

    /// Returns the special registers: `base`, KVM's values after reset, with the registers that the entry defines replaced.
    /// The base of the local APIC, the LDT, CR2 and CR8 stay.
    pub fn sregs(&self, base: kvm_sregs) -> kvm_sregs {
        let flat = |code: kvm_segment| kvm_sregs {
            cs: code,
            ds: DATA,
            es: DATA,
            fs: DATA,
            gs: DATA,
            ss: DATA,
            tr: TASK,
            gdt: kvm_dtable {
                base: layout::GDT,
                limit: DESCRIPTOR_TABLE_LIMIT,
                ..Default::default()
            },
            // Limit 0: an exception before the guest loads an IDT is a triple fault, not a jump to stray memory.
            idt: kvm_dtable::default(),
            ..base
        };
        match self.protocol {
            // Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol": paging is on.
            Protocol::Linux => kvm_sregs {
                cr0: CR0_PE | CR0_ET | CR0_PG,
                cr3: layout::PAGE_TABLES,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..flat(CODE_64)
            },
            // PVH: PE is the only writable bit set in CR0, and CR4 is clear.
            Protocol::Pvh | Protocol::Multiboot => kvm_sregs {
                cr0: CR0_PE | CR0_ET,
                cr3: 0,
                cr4: 0,
                efer: 0,
                ..flat(CODE_32)
            },
        }
    }
}

/// Returns the bytes of the descriptor table at [`layout::GDT`].
pub fn descriptor_table() -> [u8; DESCRIPTOR_TABLE_LENGTH] {
    const TABLE: [u64; DESCRIPTORS] = [
        0,
        descriptor(&CODE_32),
        descriptor(&CODE_64),
        descriptor(&DATA),
        descriptor(&TASK),
        0,
    ];
    let mut bytes = [0; DESCRIPTOR_TABLE_LENGTH];
    for (place, entry) in bytes.chunks_exact_mut(8).zip(TABLE) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    bytes
}

/// Encodes a segment descriptor: Intel SDM volume 3A, section 3.4.5, figure 3-8.
const fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    } as u64;
    let access = (segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7) as u64;
    let flags = (segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3) as u64;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Writes the page tables of an image that ends at `end` to [`layout::PAGE_TABLES`], the value of CR3.
///
/// # Errors
/// The tables do not lie within `memory`.
pub fn write_page_tables(memory: &GuestMemory, end: u64) -> Result<(), vm_memory::GuestMemoryError> {
    let directory = |number: u64| layout::PAGE_TABLES + (2 + number) * PAGE as u64;
    let directories = end.div_ceil(1 << 30).clamp(1, MAX_PAGE_DIRECTORIES);
    // One buffer for all tables: it touches one page of the host stack instead of three.
    let mut page = [0; PAGE];
    fill(&mut page, [(layout::PAGE_TABLES + PAGE as u64) | TABLE_ENTRY]);
    memory.write_slice(&page, GuestAddress(layout::PAGE_TABLES))?;
    fill(
        &mut page,
        (0..directories).map(|number| directory(number) | TABLE_ENTRY),
    );
    memory.write_slice(&page, GuestAddress(layout::PAGE_TABLES + PAGE as u64))?;
    for number in 0..directories {
        fill(
            &mut page,
            (0..512).map(|entry| number << 30 | entry << 21 | PAGE_ENTRY),
        );
        memory.write_slice(&page, GuestAddress(directory(number)))?;
    }
    Ok(())
}

fn fill(page: &mut [u8; PAGE], entries: impl IntoIterator<Item = u64>) {
    for (place, entry) in page.chunks_exact_mut(8).zip(entries) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
