//! The memory map.
//!
//! Only memory is listed, and only whole pages of it. What is not listed is not memory for any guest, and a list without
//! reserved areas is the one that all of them take:
//!
//! - Unikraft adds the areas from 0xa_0000 to 0x10_0000 by itself and fails an assertion when a reserved one of the
//!   monitor's overlaps them with other flags (unikraft issue 1410). It keeps memory in whole pages, so that memory which
//!   ends in the middle of one fails another.
//! - Nanos, entered by the Linux protocol, takes the first listed area of 16 KiB or more for page tables, whatever its
//!   type, unless it starts at 0. A reserved area with the ACPI tables would be overwritten.
//! - Linux reserves the extended BIOS data area and all from there to 1 MiB by itself.

use std::ops::Range;

use crate::arch::x86_64::layout;

/// Type of an area that the guest may use.
pub const RAM: u32 = 1;

/// Most areas that a map has.
pub const MAX_AREAS: usize = 3;

/// The areas of memory that a guest with `size` bytes in all may use, lowest first.
///
/// Between [`layout::CONVENTIONAL_RAM_END`] and 1 MiB there is memory that is not listed; it holds the MP table and
/// the ACPI tables. Memory that does not fit below [`layout::HOLE`] continues above it.
pub fn ram(size: u64) -> impl Iterator<Item = Range<u64>> + Clone {
    let below = size.min(layout::HOLE.start);
    let above = layout::HOLE.end;
    let areas: [_; MAX_AREAS] = [
        0..layout::CONVENTIONAL_RAM_END.min(below),
        layout::HIGH_MEMORY..below,
        above..above.saturating_add(size - below),
    ];
    areas.into_iter().filter(|area| !area.is_empty())
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    use super::ram;
    use crate::arch::x86_64::layout;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn map(size: u64) -> Vec<Range<u64>> {
        ram(size).collect()
    }

    #[test]
    fn memory_goes_around_the_hole() {
        let low = 0..0x9_f000;
        assert_eq!(map(MIB), std::slice::from_ref(&low));
        assert_eq!(map(MIB + 4096), [low.clone(), MIB..MIB + 4096]);
        assert_eq!(map(128 * MIB), [low.clone(), MIB..128 * MIB]);
        assert_eq!(map(3328 * MIB), [low.clone(), MIB..0xd000_0000]);
        assert_eq!(
            map(3329 * MIB),
            [low.clone(), MIB..0xd000_0000, 4 * GIB..4 * GIB + MIB]
        );
        assert_eq!(
            map(8 * GIB),
            [low, MIB..0xd000_0000, 4 * GIB..8 * GIB + 768 * MIB]
        );
    }

    proptest! {
        #[test]
        fn every_page_but_the_first_megabytes_upper_ones_is_listed_once(pages in 256..1u64 << 40) {
            let size = pages * 4096;
            let map = map(size);
            prop_assert!(map.is_sorted_by(|left, right| left.end < right.start));
            let listed: u64 = map.iter().map(|area| area.end - area.start).sum();
            prop_assert_eq!(listed, size - (MIB - 0x9_f000));
            for area in &map {
                prop_assert_eq!((area.start % 4096, area.end % 4096), (0, 0));
                prop_assert!(area.end <= layout::HOLE.start || area.start >= layout::HOLE.end);
            }
        }
    }

    #[test]
    fn no_table_of_the_monitors_above_the_command_line_is_in_listed_memory() {
        for address in [layout::EBDA, layout::ACPI, layout::HIGH_MEMORY - 1] {
            assert!(!ram(64 * MIB).any(|area| area.contains(&address)), "{address:#x}");
        }
    }
}
