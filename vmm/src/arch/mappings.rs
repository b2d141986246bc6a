//! Mappings of page tables: all virtual addresses that lead to guest memory.

use snapshot::GuestMemory;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::try_read;

/// Maximum number of tables that are read: those of 1 TiB in pages of 4 KiB. A guest can build tables that lead to themselves.
const MAX_TABLES: u32 = 1 << 19;
/// Maximum number of ranges, those of one vCPU, and those of all vCPUs in a core.
pub const MAX_MAPPINGS: usize = 1 << 20;

/// Reason why the page tables of a vCPU cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are too many tables or ranges.
    #[error(
        "cannot follow the page tables: they have more than {MAX_TABLES} tables or {MAX_MAPPINGS} ranges"
    )]
    TooMany,
    /// The processor translates addresses in an unsupported way.
    #[error("cannot follow the page tables: {0}")]
    Unsupported(&'static str),
}

/// Range of virtual addresses that are contiguous in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First virtual address.
    pub address: u64,
    /// First guest-physical address.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Entry of a page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Maps nothing.
    Absent,
    /// Guest-physical address of the next table.
    Table(u64),
    /// Guest-physical address of a page.
    Page(u64),
}

/// Format of page tables.
#[derive(Clone, Copy)]
pub struct TableFormat {
    /// Bits of an address within the smallest page.
    pub page_bits: u32,
    /// Bits of an address that select an entry of a table.
    pub index_bits: u32,
    /// Bytes of an entry: 4 or 8.
    pub entry_bytes: usize,
    /// Decodes an entry of a table at a level; the tables of the smallest pages have level 0.
    pub decode: fn(u64, u32) -> Entry,
}

impl TableFormat {
    /// Returns the bits of an address that an entry at `level` does not translate.
    pub fn shift(&self, level: u32) -> u32 {
        self.page_bits + self.index_bits * level
    }
}

/// Collection of mappings in the order of the tables.
pub struct Mappings<'a> {
    memory: &'a GuestMemory,
    ranges: Vec<Mapping>,
    tables: u32,
}

impl<'a> Mappings<'a> {
    /// Returns an empty collection of mappings to `memory`.
    pub fn new(memory: &'a GuestMemory) -> Self {
        Self {
            memory,
            ranges: Vec::new(),
            tables: 0,
        }
    }

    /// Returns guest memory.
    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// Returns the mappings.
    pub fn into_ranges(self) -> Vec<Mapping> {
        self.ranges
    }

    /// Adds the parts of a mapping that are in guest memory.
    ///
    /// # Errors
    /// [`Error::TooMany`]
    pub fn add(&mut self, mapping: Mapping) -> Result<(), Error> {
        let memory = self.memory;
        let last = mapping.physical.saturating_add(mapping.length - 1);
        for region in memory.iter() {
            let start = mapping.physical.max(region.start_addr().raw_value());
            let end = last.min(region.last_addr().raw_value());
            if start > end {
                continue;
            }
            let part = Mapping {
                address: mapping.address.wrapping_add(start - mapping.physical),
                physical: start,
                length: end - start + 1,
            };
            let count = self.ranges.len();
            match self.ranges.last_mut() {
                Some(last) if last.is_followed_by(&part) => last.length += part.length,
                _ if count == MAX_MAPPINGS => return Err(Error::TooMany),
                _ => self.ranges.push(part),
            }
        }
        Ok(())
    }

    /// Adds the mappings of the table at `table` with `entries` entries at `level`, the first of which is for the virtual `address`.
    ///
    /// # Errors
    /// [`Error::TooMany`]
    pub fn add_table(
        &mut self,
        format: &TableFormat,
        table: u64,
        level: u32,
        entries: usize,
        address: u64,
    ) -> Result<(), Error> {
        self.tables += 1;
        if self.tables > MAX_TABLES {
            return Err(Error::TooMany);
        }
        let mut bytes = vec![0; entries * format.entry_bytes];
        let read = try_read(self.memory, GuestAddress(table), &mut bytes);
        for (index, entry) in (0..).zip(bytes[..read].chunks_exact(format.entry_bytes)) {
            let mut value = [0; 8];
            value[..entry.len()].copy_from_slice(entry);
            let address = address.wrapping_add(index << format.shift(level));
            match (format.decode)(u64::from_le_bytes(value), level) {
                Entry::Absent => {}
                Entry::Page(physical) => self.add(Mapping {
                    address,
                    physical,
                    length: 1 << format.shift(level),
                })?,
                Entry::Table(table) => {
                    // Entries of the lowest level are pages.
                    let level = level.saturating_sub(1);
                    self.add_table(format, table, level, 1 << format.index_bits, address)?;
                }
            }
        }
        Ok(())
    }
}

impl Mapping {
    fn is_followed_by(&self, next: &Self) -> bool {
        self.address.wrapping_add(self.length) == next.address && self.physical + self.length == next.physical
    }
}

#[cfg(test)]
pub mod tests {
    use snapshot::GuestMemory;
    use vm_memory::{Bytes, GuestAddress};

    use super::{Entry, Error, Mapping, Mappings, TableFormat};
    use crate::memory::allocate;

    const FORMAT: TableFormat = TableFormat {
        page_bits: 12,
        index_bits: 9,
        entry_bytes: 8,
        decode: |entry, level| match entry & 0xfff {
            0 => Entry::Absent,
            _ if level == 0 => Entry::Page(entry & !0xfff),
            _ => Entry::Table(entry & !0xfff),
        },
    };

    /// Returns the mappings that `add` adds as first addresses, physical addresses and lengths, each page of them checked against the
    /// translation.
    pub fn translated_mappings(
        memory: &GuestMemory,
        add: impl FnOnce(&mut Mappings<'_>) -> Result<(), Error>,
        translate: impl Fn(u64) -> Option<u64>,
    ) -> Vec<(u64, u64, u64)> {
        let mut mappings = Mappings::new(memory);
        add(&mut mappings).unwrap();
        let ranges = mappings.into_ranges();
        for range in &ranges {
            for offset in (0..range.length).step_by(0x1000) {
                let translated = translate(range.address + offset);
                assert_eq!(translated, Some(range.physical + offset), "{range:x?}");
            }
        }
        let fields = ranges.iter();
        fields
            .map(|range| (range.address, range.physical, range.length))
            .collect()
    }

    #[test]
    fn mapping_is_clipped_to_memory_and_merged() {
        let memory = allocate(&[(GuestAddress(0x1000), 0x2000), (GuestAddress(0x8000), 0x1000)]).unwrap();
        let mut mappings = Mappings::new(&memory);
        let mapping = |address, physical, length| Mapping {
            address,
            physical,
            length,
        };
        mappings.add(mapping(0x10_0000, 0, 0x10_0000)).unwrap();
        mappings.add(mapping(0x40_0000, 0x1000, 0x1000)).unwrap();
        mappings.add(mapping(0x40_1000, 0x2000, 0x1000)).unwrap();
        mappings.add(mapping(0x50_0000, 0x4000, 0x1000)).unwrap();
        mappings.add(mapping(u64::MAX - 0xfff, 0x8000, 0x1000)).unwrap();
        assert_eq!(
            mappings.into_ranges(),
            [
                mapping(0x10_1000, 0x1000, 0x2000),
                mapping(0x10_8000, 0x8000, 0x1000),
                mapping(0x40_0000, 0x1000, 0x2000),
                mapping(u64::MAX - 0xfff, 0x8000, 0x1000),
            ]
        );
    }

    #[test]
    fn tables_that_lead_to_themselves_are_limited() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        for index in 0..512 {
            memory.write_obj(1_u64, GuestAddress(index * 8)).unwrap();
        }
        let mut mappings = Mappings::new(&memory);
        assert_eq!(mappings.add_table(&FORMAT, 0, 3, 512, 0), Err(Error::TooMany));
    }

    #[test]
    fn table_outside_memory_maps_nothing() {
        let memory = allocate(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut mappings = Mappings::new(&memory);
        mappings.add_table(&FORMAT, 0x5000, 3, 512, 0).unwrap();
        assert_eq!(mappings.into_ranges(), []);
    }
}
