//! Translation of linear addresses by the page tables of the guest: Intel SDM volume 3A, chapter 5.

use kvm_bindings::kvm_sregs;
use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use crate::arch::mappings::{Entry, Error as MappingError, Mapping, Mappings, TableFormat};
use crate::memory::try_read;

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const PRESENT: u64 = 1 << 0;
/// The entry maps a page, not a table.
const LARGE: u64 = 1 << 7;
/// Physical address in an entry of 8 bytes.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Registers that determine the translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
}

impl From<&kvm_sregs> for Paging {
    fn from(sregs: &kvm_sregs) -> Self {
        Self {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
        }
    }
}

impl Paging {
    /// Returns the guest-physical address of `address`, or `None` if it is not mapped.
    pub fn translate(&self, memory: &GuestMemory, address: u64) -> Option<u64> {
        if self.cr0 & CR0_PG == 0 {
            return Some(address & 0xffff_ffff);
        }
        if self.efer & EFER_LMA != 0 {
            let levels = if self.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
            // Bits above the translated ones repeat the highest of them.
            let unused = 64 - (12 + 9 * levels);
            if (address << unused).cast_signed() >> unused != address.cast_signed() {
                return None;
            }
            return walk(memory, self.cr3 & ADDRESS, address, levels);
        }
        let address = address & 0xffff_ffff;
        if self.cr4 & CR4_PAE != 0 {
            // Four pointers, 32-byte aligned, instead of a page of them.
            let pointers = self.cr3 & 0xffff_ffe0;
            let pointer = read::<8>(memory, pointers + (address >> 30) * 8).map(u64::from_le_bytes)?;
            if pointer & PRESENT == 0 {
                return None;
            }
            return walk(memory, pointer & ADDRESS, address, 2);
        }
        self.walk_32(memory, address)
    }

    /// Adds the mappings of the page tables to guest memory, or of all addresses without paging.
    ///
    /// # Errors
    /// [`MappingError::TooMany`]
    pub fn add_mappings(&self, mappings: &mut Mappings<'_>) -> Result<(), MappingError> {
        if self.cr0 & CR0_PG == 0 {
            return mappings.add(Mapping {
                address: 0,
                physical: 0,
                length: 1 << 32,
            });
        }
        if self.efer & EFER_LMA != 0 {
            let (table, level) = (self.cr3 & ADDRESS, if self.cr4 & CR4_LA57 == 0 { 3 } else { 4 });
            mappings.add_table(&FORMAT_64, table, level, 256, 0)?;
            // Bits above the translated ones repeat the highest of them.
            let upper = u64::MAX << (FORMAT_64.shift(level) + 8);
            return mappings.add_table(&FORMAT_64, table + 256 * 8, level, 256, upper);
        }
        if self.cr4 & CR4_PAE != 0 {
            return mappings.add_table(&FORMAT_64, self.cr3 & 0xffff_ffe0, 2, 4, 0);
        }
        let format = match self.cr4 & CR4_PSE {
            0 => FORMAT_32,
            _ => FORMAT_32_PSE,
        };
        mappings.add_table(&format, self.cr3 & 0xffff_f000, 1, 1024, 0)
    }

    /// Translates by two levels of tables with entries of 4 bytes.
    fn walk_32(&self, memory: &GuestMemory, address: u64) -> Option<u64> {
        let entry = |table: u64, index: u64| {
            let entry = read::<4>(memory, table + index * 4).map(u32::from_le_bytes)?;
            Some(u64::from(entry)).filter(|entry| entry & PRESENT != 0)
        };
        let upper = entry(self.cr3 & 0xffff_f000, address >> 22)?;
        if upper & LARGE != 0 && self.cr4 & CR4_PSE != 0 {
            // Bits 13 to 20 are bits 32 to 39 of the address: PSE-36.
            let high = (upper >> 13 & 0xff) << 32;
            return Some(high | upper & 0xffc0_0000 | address & 0x3f_ffff);
        }
        let lower = entry(upper & 0xffff_f000, address >> 12 & 0x3ff)?;
        Some(lower & 0xffff_f000 | address & 0xfff)
    }
}

/// Tables with entries of 8 bytes.
const FORMAT_64: TableFormat = TableFormat {
    page_bits: 12,
    index_bits: 9,
    entry_bytes: 8,
    decode: |entry, level| {
        let offset = (1 << (12 + 9 * level)) - 1;
        match entry & PRESENT {
            0 => Entry::Absent,
            _ if level == 0 || level <= 2 && entry & LARGE != 0 => Entry::Page(entry & ADDRESS & !offset),
            _ => Entry::Table(entry & ADDRESS),
        }
    },
};

/// Tables with entries of 4 bytes.
const FORMAT_32: TableFormat = TableFormat {
    page_bits: 12,
    index_bits: 10,
    entry_bytes: 4,
    decode: |entry, level| match entry & PRESENT {
        0 => Entry::Absent,
        _ if level == 0 => Entry::Page(entry & 0xffff_f000),
        _ => Entry::Table(entry & 0xffff_f000),
    },
};

/// The same with pages of 4 MiB.
const FORMAT_32_PSE: TableFormat = TableFormat {
    decode: |entry, level| match entry & (PRESENT | LARGE) {
        0x81 if level == 1 => Entry::Page((entry >> 13 & 0xff) << 32 | entry & 0xffc0_0000),
        _ => (FORMAT_32.decode)(entry, level),
    },
    ..FORMAT_32
};

/// Translates by `levels` of tables with entries of 8 bytes, the first at `table`.
fn walk(memory: &GuestMemory, mut table: u64, address: u64, levels: u32) -> Option<u64> {
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let index = address >> shift & 0x1ff;
        let entry = read::<8>(memory, table + index * 8).map(u64::from_le_bytes)?;
        if entry & PRESENT == 0 {
            return None;
        }
        // The bit is a part of the address in the lowest level, and reserved above the third.
        if level == 0 || level <= 2 && entry & LARGE != 0 {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | address & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

fn read<const N: usize>(memory: &GuestMemory, address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (try_read(memory, GuestAddress(address), &mut bytes) == N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use snapshot::GuestMemory;
    use vm_memory::{Bytes, GuestAddress};

    use super::{CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, Paging};
    use crate::arch::mappings::tests::translated_mappings;
    use crate::memory::allocate;

    /// Present and writable.
    const TABLE: u64 = 3;
    const LARGE: u64 = 0x83;

    fn memory() -> GuestMemory {
        allocate(&[(GuestAddress(0), 0x10_0000)]).unwrap()
    }

    fn set_64(memory: &GuestMemory, address: u64, value: u64) {
        memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn set_32(memory: &GuestMemory, address: u64, value: u32) {
        memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn long_mode(cr4: u64) -> Paging {
        Paging {
            cr0: CR0_PG,
            cr3: 0x1000,
            cr4: CR4_PAE | cr4,
            efer: EFER_LMA,
        }
    }

    fn mappings(paging: &Paging, memory: &GuestMemory) -> Vec<(u64, u64, u64)> {
        let translate = |address| paging.translate(memory, address);
        translated_mappings(memory, |mappings| paging.add_mappings(mappings), translate)
    }

    #[test]
    fn mappings_are_those_of_translation() {
        let memory = memory();
        let high = 0xffff_8000_0000_0000_u64;
        assert_eq!(mappings(&Paging::default(), &memory), [(0, 0, 0x10_0000)]);
        set_64(&memory, 0x1000, 0x2000 | TABLE);
        set_64(&memory, 0x1000 + 256 * 8, 0x2000 | TABLE);
        set_64(&memory, 0x2000, 0x3000 | TABLE);
        set_64(&memory, 0x3000, LARGE);
        set_64(&memory, 0x3000 + 8, 0x4000 | TABLE);
        set_64(&memory, 0x4000, 0x5000 | TABLE);
        set_64(&memory, 0x4000 + 8, 0x6000 | TABLE);
        set_64(&memory, 0x4000 + 16, 0x5000 | TABLE);
        // The first GiB of the fifth level.
        let four = [
            (0, 0, 0x10_0000),
            (0x20_0000, 0x5000, 0x2000),
            (0x20_2000, 0x5000, 0x1000),
        ];
        let upper = four.map(|(address, physical, length)| (high + address, physical, length));
        assert_eq!(mappings(&long_mode(0), &memory), [four, upper].concat());
        set_64(&memory, 0x7000, 0x1000 | TABLE);
        let five = Paging {
            cr3: 0x7000,
            ..long_mode(CR4_LA57)
        };
        let upper = upper.map(|(address, physical, length)| (address & !(0xffff << 48), physical, length));
        assert_eq!(mappings(&five, &memory), [four, upper].concat());
    }

    #[test]
    fn mappings_of_32_bit_tables_are_those_of_translation() {
        let memory = memory();
        set_64(&memory, 0x8020 + 8, 0x9001);
        set_64(&memory, 0x9000 + 8, 0xa000 | TABLE);
        set_64(&memory, 0xa000, 0xb000 | TABLE);
        let pae = Paging {
            cr0: CR0_PG,
            cr3: 0x8020,
            cr4: CR4_PAE,
            efer: 0,
        };
        assert_eq!(mappings(&pae, &memory), [(0x4020_0000, 0xb000, 0x1000)]);
        set_32(&memory, 0xc000 + 4, 0x83);
        set_32(&memory, 0xc000 + 8, 0xd003);
        set_32(&memory, 0xd000 + 4, 0xe003);
        let plain = Paging {
            cr3: 0xc000,
            cr4: CR4_PSE,
            ..pae
        };
        let expected = [(0x40_0000, 0, 0x10_0000), (0x80_1000, 0xe000, 0x1000)];
        assert_eq!(mappings(&plain, &memory), expected);
        // Without pages of 4 MiB, the first entry leads to a table at 0, which is empty.
        let small = Paging { cr4: 0, ..plain };
        assert_eq!(mappings(&small, &memory), [(0x80_1000, 0xe000, 0x1000)]);
    }

    #[test]
    fn address_without_paging_is_physical() {
        let paging = Paging::default();
        assert_eq!(paging.translate(&memory(), 0x1_2345_6789), Some(0x2345_6789));
    }

    #[test]
    fn long_mode_has_four_levels_and_three_page_sizes() {
        let memory = memory();
        // Canonical: bit 47 and above are set.
        let high = 0xffff_ff80_0000_0000_u64;
        set_64(&memory, 0x1000 + 511 * 8, 0x2000 | TABLE);
        set_64(&memory, 0x2000, 0x3000 | TABLE);
        set_64(&memory, 0x2000 + 8, 0x1_4000_0000 | LARGE);
        set_64(&memory, 0x3000, 0x4000 | TABLE);
        set_64(&memory, 0x3000 + 8, 0x8060_0000 | LARGE);
        // With the bit for no execution, and an ignored bit.
        set_64(&memory, 0x4000 + 5 * 8, 1 << 63 | 1 << 52 | 0x9_a000 | TABLE);
        let paging = long_mode(0);
        for (address, physical) in [
            (high + 0x5123, Some(0x9_a123)),
            (high + 0x6000, None),
            (high + 0x20_0000 + 0x1_2345, Some(0x8061_2345)),
            (high + 0x4000_0000 + 0x1234_5678, Some(0x1_5234_5678)),
            (high + 0x8000_0000, None),
            (high & 0xffff_ffff_ffff, None),
            (0x5123, None),
        ] {
            assert_eq!(paging.translate(&memory, address), physical, "{address:#x}");
        }
    }

    #[test]
    fn fifth_level_extends_addresses() {
        let memory = memory();
        set_64(&memory, 0x1000 + 8, 0x2000 | TABLE);
        set_64(&memory, 0x2000, 0x3000 | TABLE);
        set_64(&memory, 0x3000, 0x4000_0000 | LARGE);
        let address = 1 << 48 | 0x777;
        assert_eq!(long_mode(CR4_LA57).translate(&memory, address), Some(0x4000_0777));
        assert_eq!(long_mode(0).translate(&memory, address), None);
    }

    #[test]
    fn pae_has_four_pointers() {
        let memory = memory();
        set_64(&memory, 0x1020 + 3 * 8, 0x2001);
        set_64(&memory, 0x2000 + 511 * 8, 0x2_0040_0000 | LARGE);
        set_64(&memory, 0x2000, 0x3000 | TABLE);
        set_64(&memory, 0x3000 + 8, 0x5_6000 | TABLE);
        let paging = Paging {
            cr0: CR0_PG,
            cr3: 0x1020,
            cr4: CR4_PAE,
            efer: 0,
        };
        assert_eq!(paging.translate(&memory, 0xffff_ffff), Some(0x2_005f_ffff));
        assert_eq!(paging.translate(&memory, 0xc000_1042), Some(0x5_6042));
        assert_eq!(paging.translate(&memory, 0x1042), None);
    }

    #[test]
    fn tables_of_32_bits_have_large_pages_only_with_pse() {
        let memory = memory();
        set_32(&memory, 0x1000 + 4, 0x2003);
        set_32(&memory, 0x2000 + 3 * 4, 0x8_8003);
        // The table at 0x40_0000 does not exist; the page does.
        set_32(&memory, 0x1000 + 8, 0x0040_2083);
        let paging = |cr4| Paging {
            cr0: CR0_PG,
            cr3: 0x1000,
            cr4,
            efer: 0,
        };
        assert_eq!(paging(0).translate(&memory, 0x40_3abc), Some(0x8_8abc));
        assert_eq!(paging(CR4_PSE).translate(&memory, 0x80_1234), Some(0x1_0040_1234));
        assert_eq!(paging(0).translate(&memory, 0x80_1234), None);
        assert_eq!(paging(0).translate(&memory, 0xc0_0000), None);
    }

    #[test]
    fn tables_outside_memory_map_nothing() {
        let paging = Paging {
            cr3: 0x7fff_f000,
            ..long_mode(0)
        };
        assert_eq!(paging.translate(&memory(), 0), None);
    }
}
