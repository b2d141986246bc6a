//! Linux's compressed x86 kernel: Linux, Documentation/arch/x86/boot.rst.
//!
//! The kernel is loaded at its preferred address, and its segment includes the memory to unpack it. A relocatable kernel also
//! starts at other addresses, but moves itself up from a lower one before it unpacks.

use super::file::{Error as FileError, HeaderFields, RegularFile};
use super::segment::{Flags, Segment};
use snapshot::file::Architecture;

/// Offset of the setup header in the file, and in `boot_params`.
pub const SETUP_HEADER: usize = 0x1f1;
/// Offset of the 64-bit entry in the protected-mode code.
pub const ENTRY_64: u64 = 0x200;

/// Protocol version 2.12, the first with `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
/// Bit 0 of `loadflags`.
const LOADED_HIGH: u8 = 1;
/// Bit 0 of `xloadflags`, `XLF_KERNEL_64`.
const HAS_64_BIT_ENTRY: u16 = 1;

/// Error of a bzImage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is incomplete or not readable.
    #[error("cannot read the bzImage")]
    File(#[source] FileError),
    /// The machine is not x86.
    #[error("a bzImage is built for x86_64, and the machine is {0}; build the image for {0}")]
    Machine(Architecture),
    /// The protocol version is too old.
    #[error(
        "boot protocol {}.{:02} has no 64-bit entry; 2.12 (Linux 3.8) or later is required",
        .0 >> 8, .0 & 0xff
    )]
    ProtocolVersion(u16),
    /// The image is a zImage, which is loaded below 1 MiB.
    #[error(
        "load flags {0:#x} request an address below 1 MiB, as in a zImage; build the image with make bzImage"
    )]
    NotLoadedHigh(u8),
    /// The image has no 64-bit entry.
    #[error("extended load flags {0:#x} declare no 64-bit entry; build the image with CONFIG_64BIT")]
    Only32Bit(u16),
    /// The segment exceeds the address space.
    #[error(
        "{length:#x} bytes at the preferred address {address:#x} exceed the address space: the file is damaged"
    )]
    Wraps {
        /// `pref_address`.
        address: u64,
        /// `init_size`, or the size of the kernel.
        length: u64,
    },
}

/// Setup header of a bzImage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// Version of the boot protocol, major number in the high byte.
    pub version: u16,
    /// Bytes of the file from [`SETUP_HEADER`] to the end of the header.
    pub header: Vec<u8>,
    /// True if the kernel also starts at other than its preferred address.
    pub relocatable: bool,
    /// Alignment of other addresses in bytes.
    pub alignment: u32,
    /// Maximum length of the command line in bytes, without the NUL.
    pub command_line_size: u32,
    /// Maximum address of the last byte of the initrd.
    pub initrd_addr_max: u32,
}

/// Returns true if a file that begins with `head` is a Linux kernel for x86, of any version.
pub fn is_bzimage(head: &[u8]) -> bool {
    let fields = HeaderFields(head);
    fields.u16(0x1fe) == 0xaa55 && head.get(0x202..0x206) == Some(b"HdrS")
}

/// Reads the setup header, and the segment of the protected-mode code with the memory to unpack it.
///
/// # Errors
/// [`Error`] for a file that `architecture` cannot load into any guest memory.
pub fn parse(file: &RegularFile, architecture: Architecture) -> Result<(SetupHeader, Segment), Error> {
    if architecture != Architecture::X86_64 {
        return Err(Error::Machine(architecture));
    }
    let fields = HeaderFields(file.head());
    let version = fields.u16(0x206);
    if version < MIN_VERSION {
        return Err(Error::ProtocolVersion(version));
    }
    // The jump at 0x200 skips the header, so that its distance at 0x201 is the length of the header from 0x202 on.
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
        return Err(Error::NotLoadedHigh(load_flags));
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
    Ok((setup, parse_segment(file, fields)?))
}

fn parse_segment(file: &RegularFile, fields: HeaderFields<'_>) -> Result<Segment, Error> {
    // boot.rst, setup_sects: 0 means 4, for backward compatibility.
    let sectors = match fields.u8(SETUP_HEADER) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (sectors + 1) * 512;
    // boot.rst, syssize: in paragraphs of 16 bytes. The last one can be incomplete, and a signature can follow.
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
