//! Translation of addresses by the stage-1 tables of EL1: Arm Architecture Reference Manual, section D8.2.

use snapshot::GuestMemory;
use vm_memory::GuestAddress;

use crate::arch::mappings::{Entry, Error as MappingError, Mapping, Mappings, TableFormat};
use crate::memory::try_read;

/// SCTLR_EL1: the MMU translates addresses.
const SCTLR_M: u64 = 1;
/// TCR_EL1: addresses have 52 bits.
const TCR_DS: u64 = 1 << 59;
/// Bit of an address that selects its table.
const UPPER: u64 = 1 << 55;
/// Physical address in a descriptor or a base register.
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Base register without its ASID and the bit for common tables. Small first tables are aligned to their size.
const BASE: u64 = 0x0000_ffff_ffff_fffe;

const VALID: u64 = 1 << 0;
/// A table, or a page at the last level.
const TABLE: u64 = 1 << 1;

/// Registers that determine the translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub tables: [u64; 2],
}

/// Settings of one half of the addresses in TCR_EL1.
struct Half {
    /// Bits of an address that are translated.
    bits: u32,
    /// Bits of an address within a page.
    page_bits: u32,
    /// The highest byte of an address is ignored.
    ignores_top: bool,
    is_disabled: bool,
}

impl Paging {
    /// Returns the guest-physical address of `address`, or `None` if it is not mapped.
    pub fn translate(&self, memory: &GuestMemory, address: u64) -> Option<u64> {
        if self.sctlr & SCTLR_M == 0 {
            return Some(address);
        }
        let is_upper = address & UPPER != 0;
        let half = self.half(is_upper)?;
        // Bits above the translated ones are all equal, those of the ignored byte aside.
        let top = if half.ignores_top { 8 } else { 0 };
        let unused = (address << top).cast_signed() >> (top + half.bits);
        if half.is_disabled || unused != if is_upper { -1 } else { 0 } {
            return None;
        }
        let table = self.tables[usize::from(is_upper)] & BASE;
        walk(memory, table, address, &half)
    }

    /// Adds the mappings of the page tables to guest memory, or of all addresses without the MMU.
    ///
    /// # Errors
    /// [`MappingError`]
    pub fn add_mappings(&self, mappings: &mut Mappings<'_>) -> Result<(), MappingError> {
        if self.sctlr & SCTLR_M == 0 {
            return mappings.add(Mapping {
                address: 0,
                physical: 0,
                length: 1 << 52,
            });
        }
        if self.tcr & TCR_DS != 0 {
            return Err(MappingError::Unsupported("they have addresses of 52 bits"));
        }
        for is_upper in [false, true] {
            let Some(half) = self.half(is_upper).filter(|half| !half.is_disabled) else {
                continue;
            };
            let format = match half.page_bits {
                12 => format::<12>(),
                14 => format::<14>(),
                _ => format::<16>(),
            };
            let levels = (half.bits - format.page_bits).div_ceil(format.index_bits);
            // The first table may have fewer entries.
            let entries = 1 << (half.bits - format.shift(levels - 1));
            let address = if is_upper { u64::MAX << half.bits } else { 0 };
            let table = self.tables[usize::from(is_upper)] & BASE;
            mappings.add_table(&format, table, levels - 1, entries, address)?;
        }
        Ok(())
    }

    fn half(&self, is_upper: bool) -> Option<Half> {
        let tcr = self.tcr;
        let (size, granule, disabled, ignored) = match is_upper {
            false => (tcr & 0x3f, [12, 16, 14, 0][field(tcr, 14)], 1 << 7, 1 << 37),
            true => (
                tcr >> 16 & 0x3f,
                [0, 14, 12, 16][field(tcr, 30)],
                1 << 23,
                1 << 38,
            ),
        };
        let bits = 64 - u32::try_from(size).ok()?;
        // 52 bits at most, and a level at least.
        ((granule + 1..=52).contains(&bits) && granule > 0).then_some(Half {
            bits,
            page_bits: granule,
            ignores_top: tcr & ignored != 0,
            is_disabled: tcr & disabled != 0,
        })
    }
}

/// Returns the format of tables with pages of `PAGE_BITS` bits.
const fn format<const PAGE_BITS: u32>() -> TableFormat {
    TableFormat {
        page_bits: PAGE_BITS,
        index_bits: PAGE_BITS - 3,
        entry_bytes: 8,
        decode: |descriptor, level| {
            let is_table = descriptor & TABLE != 0;
            let offset = (1 << (PAGE_BITS + (PAGE_BITS - 3) * level)) - 1;
            match descriptor & VALID {
                0 => Entry::Absent,
                _ if level == 0 && !is_table => Entry::Absent,
                _ if level == 0 || !is_table => Entry::Page(descriptor & ADDRESS & !offset),
                _ => Entry::Table(descriptor & ADDRESS & !((1 << PAGE_BITS) - 1)),
            }
        },
    }
}

/// Returns a field of two bits.
fn field(register: u64, shift: u32) -> usize {
    usize::from((register >> shift & 3).to_le_bytes()[0])
}

fn walk(memory: &GuestMemory, mut table: u64, address: u64, half: &Half) -> Option<u64> {
    let level_bits = half.page_bits - 3;
    let levels = (half.bits - half.page_bits).div_ceil(level_bits);
    let translated = address & ((1 << half.bits) - 1);
    for level in (0..levels).rev() {
        let shift = half.page_bits + level_bits * level;
        // The first table may have fewer entries; the bits above are zero.
        let index = translated >> shift & ((1 << level_bits) - 1);
        let mut bytes = [0; 8];
        if try_read(memory, GuestAddress(table + index * 8), &mut bytes) != bytes.len() {
            return None;
        }
        let descriptor = u64::from_le_bytes(bytes);
        let is_table = descriptor & TABLE != 0;
        if descriptor & VALID == 0 || level == 0 && !is_table {
            return None;
        }
        if level == 0 || !is_table {
            let offset = (1 << shift) - 1;
            return Some(descriptor & ADDRESS & !offset | address & offset);
        }
        table = descriptor & ADDRESS & !((1 << half.page_bits) - 1);
    }
    None
}

#[cfg(test)]
mod tests {
    use snapshot::GuestMemory;
    use vm_memory::{Bytes, GuestAddress};

    use super::{MappingError, Mappings, Paging, TCR_DS};
    use crate::arch::mappings::tests::translated_mappings;
    use crate::memory::allocate;

    fn memory() -> GuestMemory {
        allocate(&[(GuestAddress(0x4000_0000), 0x10_0000)]).unwrap()
    }

    fn set(memory: &GuestMemory, address: u64, value: u64) {
        memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    #[test]
    fn address_without_mmu_is_physical() {
        assert_eq!(
            Paging::default().translate(&memory(), 0x4000_1234),
            Some(0x4000_1234)
        );
    }

    #[test]
    fn both_halves_have_tables_of_4_kib() {
        let memory = memory();
        // 39 bits below, three levels; 48 bits above, four levels.
        let paging = Paging {
            sctlr: 1,
            tcr: 25 | 16 << 16 | 2 << 30,
            tables: [5 << 48 | 0x4000_1001, 0x4000_4000],
        };
        set(&memory, 0x4000_1000, 0x4000_0705);
        set(&memory, 0x4000_1008, 0x4000_2003);
        set(&memory, 0x4000_2000 + 2 * 8, 0x0060_0000_4860_0701);
        set(&memory, 0x4000_2000 + 3 * 8, 0x4000_3003);
        set(&memory, 0x4000_3000 + 7 * 8, 0x4008_8703);
        // A block at the last level is reserved.
        set(&memory, 0x4000_3000 + 8 * 8, 0x4008_8701);
        set(&memory, 0x4000_4000 + 511 * 8, 0x4000_5003);
        set(&memory, 0x4000_5000 + 510 * 8, 0x8000_0701);
        for (address, physical) in [
            (0x1234, Some(0x4000_1234)),
            (0x4040_0000 + 0x1_2345, Some(0x4861_2345)),
            (0x4060_7abc, Some(0x4008_8abc)),
            (0x4060_8abc, None),
            (0x4060_9abc, None),
            (0xffff_ffff_8000_0042, Some(0x8000_0042)),
            (0xffff_ffff_c000_0042, None),
            (0xfffe_ffff_8000_0042, None),
            (0x80_0000_1234, None),
            (0x0100_0000_0000_1234, None),
        ] {
            assert_eq!(paging.translate(&memory, address), physical, "{address:#x}");
        }
    }

    fn mappings(paging: &Paging, memory: &GuestMemory) -> Vec<(u64, u64, u64)> {
        let translate = |address| paging.translate(memory, address);
        translated_mappings(memory, |mappings| paging.add_mappings(mappings), translate)
    }

    #[test]
    fn mappings_are_those_of_translation() {
        let memory = memory();
        assert_eq!(
            mappings(&Paging::default(), &memory),
            [(0x4000_0000, 0x4000_0000, 0x10_0000)]
        );
        // 39 bits below, 48 bits above.
        let mut paging = Paging {
            sctlr: 1,
            tcr: 25 | 16 << 16 | 2 << 30,
            tables: [0x4000_1000, 0x4000_4000],
        };
        set(&memory, 0x4000_1000, 0x4000_2003);
        set(&memory, 0x4000_1008, 0x4000_0705);
        set(&memory, 0x4000_2000 + 2 * 8, 0x4000_0701);
        set(&memory, 0x4000_2000 + 3 * 8, 0x4000_3003);
        set(&memory, 0x4000_3000 + 7 * 8, 0x4008_8703);
        set(&memory, 0x4000_3000 + 8 * 8, 0x4008_8701);
        set(&memory, 0x4000_4000 + 511 * 8, 0x4000_5003);
        set(&memory, 0x4000_5000 + 511 * 8, 0x4000_2003);
        let lower = [
            (0x40_0000, 0x4000_0000, 0x10_0000),
            (0x60_7000, 0x4008_8000, 0x1000),
        ];
        let top = 0xffff_ffff_c000_0000;
        let upper = lower.map(|(address, physical, length)| (top + address, physical, length));
        let first_gib = [(0x4000_0000, 0x4000_0000, 0x10_0000)];
        let expected = [&lower[..], &first_gib, &upper].concat();
        assert_eq!(mappings(&paging, &memory), expected);
        paging.tcr |= TCR_DS;
        assert_eq!(
            paging.add_mappings(&mut Mappings::new(&memory)),
            Err(MappingError::Unsupported("they have addresses of 52 bits"))
        );
    }

    #[test]
    fn ignored_byte_and_disabled_half_are_respected() {
        let memory = memory();
        set(&memory, 0x4000_1000, 0x4000_0705);
        let mut paging = Paging {
            sctlr: 1,
            tcr: 25 | 1 << 37 | 25 << 16 | 2 << 30 | 1 << 23,
            tables: [0x4000_1000; 2],
        };
        assert_eq!(
            paging.translate(&memory, 0xab00_0000_0000_1234),
            Some(0x4000_1234)
        );
        assert_eq!(paging.translate(&memory, 0xffff_ff80_0000_1234), None);
        paging.tcr &= !(1 << 23);
        assert_eq!(
            paging.translate(&memory, 0xffff_ff80_0000_1234),
            Some(0x4000_1234)
        );
    }

    #[test]
    fn granules_of_16_and_64_kib_have_their_levels() {
        let memory = memory();
        set(&memory, 0x4000_4000 + 8, 0x4000_8003);
        set(&memory, 0x4000_8000 + 3 * 8, 0x4001_4703);
        // 36 bits in two levels of 16 KiB.
        let paging = Paging {
            sctlr: 1,
            tcr: 28 | 2 << 14,
            tables: [0x4000_4000, 0],
        };
        assert_eq!(paging.translate(&memory, 0x200_f123), Some(0x4001_7123));
        assert_eq!(mappings(&paging, &memory), [(0x200_c000, 0x4001_4000, 0x4000)]);
        // 42 bits in two levels of 64 KiB, with a block of 512 MiB.
        set(&memory, 0x4002_0000 + 2 * 8, 0x6000_0701);
        let paging = Paging {
            sctlr: 1,
            tcr: 22 | 1 << 14,
            tables: [0x4002_0000, 0],
        };
        assert_eq!(paging.translate(&memory, 0x5234_5678), Some(0x7234_5678));
        assert_eq!(paging.translate(&memory, 0x2234_5678), None);
    }

    #[test]
    fn reserved_granule_maps_nothing() {
        let paging = Paging {
            sctlr: 1,
            tcr: 25 | 3 << 14,
            tables: [0x4000_0000; 2],
        };
        assert_eq!(paging.translate(&memory(), 0x1000), None);
        assert_eq!(paging.translate(&memory(), 0xffff_ffff_ffff_0000), None);
    }
}
