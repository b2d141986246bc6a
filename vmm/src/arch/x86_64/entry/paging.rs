//! The identity map of the first 4 GiB that a 64-bit guest starts with.
//!
//! One PML4 entry, four page-directory pointers, four directories of 2 MiB pages. The first gigabyte holds what the
//! guest was loaded with, the fourth the virtio-mmio windows, the IOAPIC and the local APIC.

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::arch::x86_64::layout;

/// Bytes of one table.
const PAGE: usize = 4096;
/// Tables that are written: PML4, page-directory pointers, four page directories.
pub const TABLES: usize = 6;
const DIRECTORIES: u64 = 4;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// What a table entry refers to: another table.
const TABLE: u64 = PRESENT | WRITABLE | ACCESSED;
/// What a table entry refers to: 2 MiB of memory. Accessed and dirty are set beforehand, so that the processor does not
/// have to write the tables.
const MEMORY: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE;

/// Writes the tables to [`layout::PAGE_TABLES`], which is what CR3 must hold.
///
/// # Errors
/// The memory's answer when the tables do not lie within it.
pub fn write(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    let directory = |number: u64| layout::PAGE_TABLES + (2 + number) * PAGE as u64;
    // One page is built at a time, so that this touches one page of the monitor's own stack for six of the guest's.
    let mut page = [0; PAGE];
    fill(&mut page, [(layout::PAGE_TABLES + PAGE as u64) | TABLE]);
    memory.write_slice(&page, GuestAddress(layout::PAGE_TABLES))?;
    fill(
        &mut page,
        (0..DIRECTORIES).map(|number| directory(number) | TABLE),
    );
    memory.write_slice(&page, GuestAddress(layout::PAGE_TABLES + PAGE as u64))?;
    for number in 0..DIRECTORIES {
        fill(
            &mut page,
            (0..512).map(|entry| number << 30 | entry << 21 | MEMORY),
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
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};
    use vm_memory::{Bytes, GuestAddress};

    use super::{PAGE, TABLES, write};
    use crate::GuestMemory;
    use crate::arch::x86_64::layout;

    fn memory() -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        // Left-overs must not show through.
        memory
            .write_slice(&[0xff; TABLES * PAGE], GuestAddress(layout::PAGE_TABLES))
            .unwrap();
        write(&memory).unwrap();
        memory
    }

    /// Walks the tables as the processor does: Intel SDM volume 3, section 4.5.
    fn translate(memory: &GuestMemory, address: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let entry: u64 = memory
                .read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8))
                .unwrap();
            if entry & 0b11 != 0b11 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if entry & 0x80 != 0 {
                assert_eq!(shift, 21, "only a directory has large pages here");
                return Some(table | address & 0x1f_ffff);
            }
        }
        None
    }

    proptest! {
        #[test]
        fn the_first_four_gigabytes_are_where_they_are(address in 0..1u64 << 32) {
            prop_assert_eq!(translate(&memory(), address), Some(address));
        }

        #[test]
        fn nothing_else_is_mapped(address in 1u64 << 32..1 << 48) {
            prop_assert_eq!(translate(&memory(), address), None);
        }
    }

    #[test]
    fn the_tables_end_before_the_next_thing_in_memory() {
        let end = layout::PAGE_TABLES + (TABLES * PAGE) as u64;
        assert_eq!(end, 0xf000);
        assert!(end <= layout::COMMAND_LINE);
        let next: u8 = memory().read_obj(GuestAddress(end)).unwrap();
        assert_eq!(next, 0);
    }
}
