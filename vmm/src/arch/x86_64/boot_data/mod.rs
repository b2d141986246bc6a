//! Boot data: tables in guest memory that the guest reads at its start.
//!
//! | module | contents |
//! |---|---|
//! | [`acpi`] | ACPI tables: hardware-reduced, no PCI |
//! | [`mptable`] | MP table and the BIOS data that refers to it |
//! | [`protocols`] | memory map, and boot parameters of Linux, PVH and multiboot 1 |
//! | [`tables`] | description of the tables, and their errors |
//!
//! Every table is built in host memory and written by one call, because the first access to a guest page costs more than a
//! microsecond.

pub mod acpi;
pub mod mptable;
pub mod protocols;
pub mod tables;

use std::ffi::CStr;

use snapshot::GuestMemory;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

pub use tables::{Error, Tables};

use super::entry::{self, EntryState};
use super::layout;
use crate::boot::{LoadedImage, Protocol};

/// `mov al, 0xfe; out 0x64, al; hlt; jmp` to the `hlt`: the same bytes in 16, 32 and 64-bit mode.
const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Writes the boot data of `loaded`: command line, boot parameters of its protocol, descriptor table, page tables for a 64-bit
/// entry, and the ACPI and MP tables that `tables` requests. Returns the entry state of the boot vCPU.
///
/// `memory` has at least 1 MiB and the regions of [`layout`]: one from 0 up to the hole, and one from 4 GiB.
///
/// # Errors
/// Any [`Error`]; the content of memory is undefined afterwards.
pub fn write(
    memory: &GuestMemory,
    loaded: &LoadedImage,
    cmdline: &CStr,
    tables: &Tables<'_>,
) -> Result<EntryState, Error> {
    tables.check()?;
    let writer = TableWriter { memory };
    let length = write_command_line(&writer, cmdline)?;
    let size = memory.iter().map(GuestMemoryRegion::len).sum();
    match loaded.protocol {
        Protocol::Linux => {
            let parameters = protocols::build_boot_params(loaded, length, size, tables)?;
            writer.write("boot parameters", layout::BOOT_PARAMS, parameters.as_slice())?;
            entry::write_page_tables(memory, loaded.end).map_err(|source| Error::Write {
                table: "page tables",
                address: layout::PAGE_TABLES,
                source,
            })?;
        }
        Protocol::Pvh => {
            check_entry(loaded.entry)?;
            let info = protocols::build_pvh(loaded, size, tables);
            writer.write("PVH start info", layout::START_INFO, &info)?;
        }
        Protocol::Multiboot => {
            check_entry(loaded.entry)?;
            let info = protocols::build_multiboot(loaded, size)?;
            writer.write("multiboot information", layout::START_INFO, &info)?;
        }
    }
    writer.write("descriptor table", layout::GDT, &entry::descriptor_table())?;
    writer.write("reset code", layout::RESET_VECTOR, &RESET_CODE)?;
    if tables.mptable {
        writer.write("BIOS data", mptable::BIOS_DATA, &mptable::build_bios_data())?;
        writer.write_bounded(
            "MP table",
            layout::EBDA,
            &mptable::build(tables),
            mptable::CAPACITY,
        )?;
    }
    if tables.acpi {
        writer.write_bounded("ACPI tables", layout::ACPI, &acpi::build(tables), acpi::CAPACITY)?;
    }
    Ok(EntryState {
        protocol: loaded.protocol,
        entry: loaded.entry,
    })
}

/// Writes the command line. Returns its length without the NUL.
fn write_command_line(writer: &TableWriter<'_>, cmdline: &CStr) -> Result<u32, Error> {
    let bytes = cmdline.to_bytes_with_nul();
    let too_long = || Error::CommandLine {
        length: cmdline.count_bytes() as u64,
        limit: layout::COMMAND_LINE_CAPACITY as u64 - 1,
    };
    if bytes.len() > layout::COMMAND_LINE_CAPACITY {
        return Err(too_long());
    }
    writer.write("command line", layout::COMMAND_LINE, bytes)?;
    u32::try_from(cmdline.count_bytes()).map_err(|_| too_long())
}

/// Checks that a 32-bit protocol can enter at `entry`.
fn check_entry(entry: u64) -> Result<(), Error> {
    match u32::try_from(entry) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Above4GiB {
            object: "entry point",
            address: entry,
        }),
    }
}

/// Writer of tables to guest memory.
struct TableWriter<'a> {
    memory: &'a GuestMemory,
}

impl TableWriter<'_> {
    fn write(&self, table: &'static str, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| Error::Write {
                table,
                address,
                source,
            })
    }

    fn write_bounded(
        &self,
        table: &'static str,
        address: u64,
        bytes: &[u8],
        capacity: u64,
    ) -> Result<(), Error> {
        let length = bytes.len() as u64;
        if length > capacity {
            return Err(Error::TooLarge {
                table,
                length,
                capacity,
            });
        }
        self.write(table, address, bytes)
    }
}

#[cfg(test)]
mod tests;
