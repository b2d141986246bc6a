//! Linux's compressed x86 kernel: the x86 boot protocol, Documentation/arch/x86/boot.rst of Linux.
//!
//! The kernel is put where it prefers to be, and enough memory for it to unpack itself is demanded there. A relocatable
//! kernel would start elsewhere too, but lower than it prefers only to move itself up before it unpacks.

use crate::boot::fields::HeaderFields;
use crate::boot::file::{Error as FileError, RegularFile};
use crate::boot::segment::{Flags, Segment};
use snapshot::file::Architecture;

/// Offset of the setup header in the file, and in `boot_params`.
pub const SETUP_HEADER: usize = 0x1f1;
/// The 64-bit entry, from the start of the protected-mode code on.
pub const ENTRY_64: u64 = 0x200;

const MIN_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const HAS_64_BIT_ENTRY: u16 = 1;

/// Why a bzImage cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file ends too early.
    #[error("the bzImage is not all there")]
    File(#[source] FileError),
    /// The kernel is for x86.
    #[error("a bzImage is made for x86_64, but this machine is {0}; build the image for {0}")]
    Machine(Architecture),
    /// Older than the 64-bit entry.
    #[error(
        "its boot protocol is {}.{:02}; 2.12 (Linux 3.8) is the oldest that can be entered in 64-bit mode",
        .0 >> 8, .0 & 0xff
    )]
    Old(u16),
    /// A zImage, to be loaded below 1 MiB.
    #[error(
        "its load flags are {0:#x}: it wants to be below 1 MiB, as zImages do; make bzImage builds one that does not"
    )]
    Low(u8),
    /// No 64-bit entry.
    #[error("its extended load flags are {0:#x}: it has no 64-bit entry; build it with CONFIG_64BIT")]
    Only32Bit(u16),
    /// The preferred address cannot be.
    #[error(
        "it wants {length:#x} bytes at {address:#x}, which goes beyond the last address: the file is damaged"
    )]
    Wraps {
        /// `pref_address`.
        address: u64,
        /// `init_size`, or the size of the kernel.
        length: u64,
    },
}

/// What a bzImage says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// Version of the boot protocol, major number in the high byte.
    pub version: u16,
    /// The bytes of the file from [`SETUP_HEADER`] to the end of the header.
    pub header: Vec<u8>,
    /// Whether the kernel can be elsewhere than where it prefers.
    pub relocatable: bool,
    /// Multiple of which its address must be, if it is elsewhere.
    pub alignment: u32,
    /// The longest command line in bytes, without the NUL.
    pub command_line_size: u32,
    /// The highest address that the initrd's last byte may have.
    pub initrd_addr_max: u32,
}

/// Whether a file that begins with `head` is a Linux kernel for x86, of whatever age.
pub fn is_bzimage(head: &[u8]) -> bool {
    let fields = HeaderFields(head);
    fields.u16(0x1fe) == 0xaa55 && head.get(0x202..0x206) == Some(b"HdrS")
}

/// Reads the setup header; the segment is the protected-mode code with the memory to unpack it.
///
/// # Errors
/// Whatever makes it impossible to load the file on `machine`, but for what depends on the guest's memory.
pub fn parse(file: &RegularFile, machine: Architecture) -> Result<(SetupHeader, Segment), Error> {
    if machine != Architecture::X86_64 {
        return Err(Error::Machine(machine));
    }
    let fields = HeaderFields(file.head());
    let version = fields.u16(0x206);
    if version < MIN_VERSION {
        return Err(Error::Old(version));
    }
    // The jump at 0x200 leads over the header: its distance is the header's length.
    let end = 0x202 + usize::from(fields.u8(0x201));
    let header = file
        .bytes(
            "setup header",
            SETUP_HEADER as u64,
            end.saturating_sub(SETUP_HEADER),
        )
        .map_err(Error::File)?;
    let load_flags = fields.u8(0x211);
    if load_flags & LOADED_HIGH == 0 {
        return Err(Error::Low(load_flags));
    }
    let extended = fields.u16(0x236);
    if extended & HAS_64_BIT_ENTRY == 0 {
        return Err(Error::Only32Bit(extended));
    }
    let setup = SetupHeader {
        version,
        header: header.into_owned(),
        relocatable: fields.u8(0x234) != 0,
        alignment: fields.u32(0x230),
        command_line_size: fields.u32(0x238),
        initrd_addr_max: fields.u32(0x22c),
    };
    Ok((setup, segment(file, fields)?))
}

fn segment(file: &RegularFile, fields: HeaderFields<'_>) -> Result<Segment, Error> {
    // 0 means 4, for the sake of kernels older than the field.
    let sectors = match fields.u8(SETUP_HEADER) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (sectors + 1) * 512;
    // In paragraphs of 16 bytes, the last of which need not be whole. A signature may follow.
    let code = (u64::from(fields.u32(0x1f4)) * 16).saturating_sub(15).max(1);
    file.check_range("kernel", start, code).map_err(Error::File)?;
    let length = file.size() - start;
    let address = fields.u64(0x258);
    let needed = u64::from(fields.u32(0x260)).max(length);
    let end = address.checked_add(needed).ok_or(Error::Wraps {
        address,
        length: needed,
    })?;
    Ok(Segment {
        number: 0,
        file: start..file.size(),
        physical: address..end,
        virtual_address: address,
        flags: Flags {
            read: true,
            write: true,
            execute: true,
        },
    })
}

#[cfg(test)]
mod tests;
