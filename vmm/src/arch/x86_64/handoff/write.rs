//! Puts everything into the guest's memory.

use std::ffi::CStr;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::GuestMemory;
use crate::arch::MmioDeviceInfo;
use crate::arch::x86_64::entry::{EntryState, paging, segments};
use crate::arch::x86_64::handoff::{acpi, boot_params, mptable, multiboot, pvh};
use crate::arch::x86_64::layout;
use crate::boot::{LoadedImage, Protocol};
use crate::config::MAX_VCPUS;

/// `mov al, 0xfe; out 0x64, al; hlt; jmp` to the `hlt`, the same in 16, 32 and 64-bit mode.
const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// Why a guest's tables could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is longer than the memory set aside for it, or than the kernel takes.
    #[error("the command line has {length} bytes where {limit} are allowed: shorten it")]
    CommandLine {
        /// Its length in bytes, without the NUL.
        length: u64,
        /// The greatest length.
        limit: u64,
    },
    /// A bzImage's setup header is cut short, or of a protocol too old to be entered in 64-bit mode.
    #[error("the image's setup header has {length} bytes, at least {shortest} are needed")]
    SetupHeader {
        /// Its length in bytes.
        length: usize,
        /// The least length.
        shortest: usize,
    },
    /// A 32-bit protocol has no room for the address.
    #[error("the {what} is at {address:#x}, beyond the 4 GiB of a 32-bit boot protocol")]
    Above4GiB {
        /// What is there.
        what: &'static str,
        /// Where it is.
        address: u64,
    },
    /// The machine has no vCPU, or more than the tables have room for.
    #[error("the tables describe 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// A window is not within the hole below 4 GiB, or its interrupt is not an input of the IOAPIC.
    #[error("a device window at {base:#x} of {size:#x} bytes with interrupt {gsi} cannot be described")]
    Window {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// Interrupt.
        gsi: u32,
    },
    /// The tables do not fit in the memory set aside for them.
    #[error("the {what} would take {length} bytes where there are {capacity}: attach fewer devices")]
    NoRoom {
        /// Which tables.
        what: &'static str,
        /// Their length in bytes.
        length: u64,
        /// Bytes set aside.
        capacity: u64,
    },
    /// The guest's memory ends before the address.
    #[error("cannot write the {what} to {address:#x} of the guest's memory")]
    Write {
        /// What was written.
        what: &'static str,
        /// Where to.
        address: u64,
        /// The memory's answer.
        #[source]
        source: GuestMemoryError,
    },
}

/// What the tables say, and which of them there are.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// Whether there are ACPI tables.
    pub acpi: bool,
    /// Whether there is an MP table.
    pub mptable: bool,
    /// How many vCPUs the machine has, 1 to [`MAX_VCPUS`]. Their local APIC IDs count from 0.
    pub vcpus: u8,
    /// Devices to announce, in the order in which guests number them.
    pub windows: &'a [MmioDeviceInfo],
}

impl Tables<'_> {
    /// ID of the IOAPIC: the first that no local APIC has.
    pub fn ioapic_id(&self) -> u8 {
        self.vcpus
    }

    fn check(&self) -> Result<(), Error> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(Error::Vcpus(self.vcpus));
        }
        for MmioDeviceInfo { base, size, gsi } in self.windows.iter().copied() {
            let end = base.checked_add(size).filter(|_| size > 0);
            let placed = base >= layout::HOLE.start && end.is_some_and(|end| end <= layout::IOAPIC);
            if !placed || gsi >= u32::from(layout::IOAPIC_PINS) {
                return Err(Error::Window { base, size, gsi });
            }
        }
        Ok(())
    }
}

/// Writes all that `loaded` needs to find at its entry: the command line, the protocol's information, the descriptor
/// table, page tables for a 64-bit entry, and those of ACPI and MP tables that are wanted. Returns what the boot vCPU's
/// registers must hold.
///
/// The memory has at least 1 MiB and lies as [`layout`] says: contiguous from 0 up to the hole, and from 4 GiB.
///
/// # Errors
/// Any [`Error`]; the memory's contents are then undefined.
pub fn write(
    memory: &GuestMemory,
    loaded: &LoadedImage,
    cmdline: &CStr,
    tables: &Tables<'_>,
) -> Result<EntryState, Error> {
    tables.check()?;
    let writer = TableWriter { memory };
    let length = command_line(&writer, cmdline)?;
    let size = memory.iter().map(GuestMemoryRegion::len).sum();
    match loaded.protocol {
        Protocol::Linux => {
            let parameters = boot_params::build(loaded, length, size, tables)?;
            writer.put("boot parameters", layout::BOOT_PARAMS, parameters.as_slice())?;
            paging::write(memory).map_err(|source| Error::Write {
                what: "page tables",
                address: layout::PAGE_TABLES,
                source,
            })?;
        }
        Protocol::Pvh => {
            below_4_gib(loaded.entry)?;
            let info = pvh::build(loaded, size, tables);
            writer.put("PVH start information", layout::START_INFO, &info)?;
        }
        Protocol::Multiboot => {
            below_4_gib(loaded.entry)?;
            let info = multiboot::build(loaded, size)?;
            writer.put("multiboot information", layout::START_INFO, &info)?;
        }
    }
    writer.put("descriptor table", layout::GDT, &segments::table())?;
    writer.put("reset code", layout::RESET_VECTOR, &RESET_CODE)?;
    if tables.mptable {
        writer.put("BIOS data", mptable::BIOS_DATA, &mptable::bios_data())?;
        writer.fit(
            "MP table",
            layout::EBDA,
            &mptable::build(tables),
            mptable::CAPACITY,
        )?;
    }
    if tables.acpi {
        writer.fit("ACPI tables", layout::ACPI, &acpi::build(tables), acpi::CAPACITY)?;
    }
    Ok(EntryState {
        protocol: loaded.protocol,
        entry: loaded.entry,
    })
}

/// Writes the command line and returns its length without the NUL.
fn command_line(writer: &TableWriter<'_>, cmdline: &CStr) -> Result<u32, Error> {
    let bytes = cmdline.to_bytes_with_nul();
    let too_long = || Error::CommandLine {
        length: cmdline.count_bytes() as u64,
        limit: layout::COMMAND_LINE_CAPACITY as u64 - 1,
    };
    if bytes.len() > layout::COMMAND_LINE_CAPACITY {
        return Err(too_long());
    }
    writer.put("command line", layout::COMMAND_LINE, bytes)?;
    u32::try_from(cmdline.count_bytes()).map_err(|_| too_long())
}

fn below_4_gib(entry: u64) -> Result<(), Error> {
    match u32::try_from(entry) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Above4GiB {
            what: "entry point",
            address: entry,
        }),
    }
}

struct TableWriter<'a> {
    memory: &'a GuestMemory,
}

impl TableWriter<'_> {
    fn put(&self, what: &'static str, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| Error::Write {
                what,
                address,
                source,
            })
    }

    fn fit(&self, what: &'static str, address: u64, bytes: &[u8], capacity: u64) -> Result<(), Error> {
        let length = bytes.len() as u64;
        if length > capacity {
            return Err(Error::NoRoom {
                what,
                length,
                capacity,
            });
        }
        self.put(what, address, bytes)
    }
}
