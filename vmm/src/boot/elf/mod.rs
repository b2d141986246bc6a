//! ELF images, 32 and 64 bits wide, little-endian.

use crate::boot::fields::HeaderFields;
use crate::boot::file::{Error as FileError, RegularFile};
use crate::boot::notes::{self, Note};
use crate::boot::segment::{Flags, Segment};
use snapshot::file::Architecture;

/// The first bytes of every ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";
/// Bytes of program headers that are looked at, and of notes too. Kernels have less than a tenth of it.
pub const TABLE_LIMIT: usize = 64 << 10;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

/// Why an ELF file cannot be an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A header is not all there.
    #[error("the ELF headers cannot be read")]
    File(#[source] FileError),
    /// Neither 32 nor 64 bits.
    #[error("the ELF header's class is {0}, neither 1 (32 bits) nor 2 (64 bits): the file is damaged")]
    Class(u8),
    /// Not little-endian.
    #[error("the ELF header's byte order is {0}; only 1 (little-endian) can be run here")]
    ByteOrder(u8),
    /// Not linked.
    #[error("the ELF header's type is {kind}, {}; an image has type 2 (executable) or 3", kind_name(*.kind))]
    Kind {
        /// `e_type` of the file.
        kind: u16,
    },
    /// For another architecture.
    #[error("it is made for {} (e_machine {found}), but this machine is {wanted}; build the image for {wanted}",
        machine_name(*.found))]
    Machine {
        /// `e_machine` of the file.
        found: u16,
        /// What this machine is.
        wanted: Architecture,
    },
    /// Program headers of an unknown size.
    #[error("a program header has {found} bytes, not {expected}: the file is damaged")]
    HeaderSize {
        /// `e_phentsize` of the file.
        found: u16,
        /// What the class demands.
        expected: u16,
    },
    /// More program headers than anything real has.
    #[error("it has {count} program headers; at most {} are read", TABLE_LIMIT / *.size)]
    TooMany {
        /// `e_phnum` of the file.
        count: u16,
        /// Size of a program header.
        size: usize,
    },
    /// There is nothing to load.
    #[error("none of its {0} program headers is a segment to load; link it as an executable")]
    NoSegments(u16),
    /// A segment holds more of the file than of memory.
    #[error(
        "segment {number} takes {file:#x} bytes of the file and only {memory:#x} of memory: the file is damaged"
    )]
    Sizes {
        /// Which program header.
        number: usize,
        /// Bytes of the file.
        file: u64,
        /// Bytes of memory.
        memory: u64,
    },
    /// A segment goes beyond the last address.
    #[error(
        "segment {number} of {size:#x} bytes at {start:#x} goes beyond the last address: the file is damaged"
    )]
    Wraps {
        /// Which program header.
        number: usize,
        /// Where it starts.
        start: u64,
        /// How long it is.
        size: u64,
    },
    /// A segment is not all in the file.
    #[error("segment {number} cannot be read")]
    Segment {
        /// Which program header.
        number: usize,
        /// What is missing.
        #[source]
        source: FileError,
    },
}

/// What an ELF file says of itself.
#[derive(Debug)]
pub struct Elf {
    /// Whether it is 64 bits wide, or 32.
    pub is_64_bit: bool,
    /// Entry as in the header, physical or virtual.
    pub entry: u64,
    /// What is to be loaded, in the order of the program headers.
    pub segments: Vec<Segment>,
    /// Notes in the order in which they are in the file, up to [`TABLE_LIMIT`] bytes of them.
    pub notes: Vec<Note>,
}

/// A program header of either class.
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

impl ProgramHeader {
    const SIZE_32: u16 = 32;
    const SIZE_64: u16 = 56;

    fn parse(fields: HeaderFields<'_>, is_64_bit: bool) -> Self {
        if is_64_bit {
            return Self {
                kind: fields.u32(0),
                flags: fields.u32(4),
                offset: fields.u64(8),
                virtual_address: fields.u64(16),
                physical_address: fields.u64(24),
                file_size: fields.u64(32),
                memory_size: fields.u64(40),
                alignment: fields.u64(48),
            };
        }
        Self {
            kind: fields.u32(0),
            offset: fields.u32(4).into(),
            virtual_address: fields.u32(8).into(),
            physical_address: fields.u32(12).into(),
            file_size: fields.u32(16).into(),
            memory_size: fields.u32(20).into(),
            flags: fields.u32(24),
            alignment: fields.u32(28).into(),
        }
    }

    fn segment(&self, number: usize, file: &RegularFile) -> Result<Segment, Error> {
        if self.file_size > self.memory_size {
            return Err(Error::Sizes {
                number,
                file: self.file_size,
                memory: self.memory_size,
            });
        }
        let end = self.physical_address.checked_add(self.memory_size);
        let physical = self.physical_address..end.ok_or(Error::Wraps {
            number,
            start: self.physical_address,
            size: self.memory_size,
        })?;
        file.check_range("segment", self.offset, self.file_size)
            .map_err(|source| Error::Segment { number, source })?;
        Ok(Segment {
            number,
            file: self.offset..self.offset + self.file_size,
            physical,
            virtual_address: self.virtual_address,
            flags: Flags {
                read: self.flags & 4 != 0,
                write: self.flags & 2 != 0,
                execute: self.flags & 1 != 0,
            },
        })
    }
}

/// Reads the headers and notes of an ELF file.
///
/// # Errors
/// Whatever makes it impossible to load the file on `machine`, but for what depends on the guest's memory.
pub fn parse(file: &RegularFile, machine: Architecture) -> Result<Elf, Error> {
    let identification = file.bytes("ELF header", 0, 20).map_err(Error::File)?;
    let is_64_bit = match identification[4] {
        1 => false,
        2 => true,
        other => return Err(Error::Class(other)),
    };
    let length = if is_64_bit { 64 } else { 52 };
    if identification[5] != 1 {
        return Err(Error::ByteOrder(identification[5]));
    }
    let header = file.bytes("ELF header", 0, length).map_err(Error::File)?;
    let fields = HeaderFields(&header);
    let kind = fields.u16(16);
    if kind != 2 && kind != 3 {
        return Err(Error::Kind { kind });
    }
    check_machine(fields.u16(18), machine)?;
    let headers = program_headers(file, fields, is_64_bit)?;
    let mut segments = Vec::new();
    for (number, header) in headers.iter().enumerate() {
        if header.kind == PT_LOAD && header.memory_size != 0 {
            segments.push(header.segment(number, file)?);
        }
    }
    if segments.is_empty() {
        return Err(Error::NoSegments(fields.u16(if is_64_bit { 56 } else { 44 })));
    }
    Ok(Elf {
        is_64_bit,
        entry: if is_64_bit {
            fields.u64(24)
        } else {
            fields.u32(24).into()
        },
        segments,
        notes: read_notes(&headers, file)?,
    })
}

fn check_machine(found: u16, wanted: Architecture) -> Result<(), Error> {
    let fits = match wanted {
        Architecture::X86_64 => found == EM_X86_64 || found == EM_386,
        Architecture::Aarch64 => found == EM_AARCH64,
    };
    if !fits {
        return Err(Error::Machine { found, wanted });
    }
    Ok(())
}

fn program_headers(
    file: &RegularFile,
    header: HeaderFields<'_>,
    is_64_bit: bool,
) -> Result<Vec<ProgramHeader>, Error> {
    let (offset, found, count, expected) = if is_64_bit {
        (
            header.u64(32),
            header.u16(54),
            header.u16(56),
            ProgramHeader::SIZE_64,
        )
    } else {
        let offset = header.u32(28).into();
        (offset, header.u16(42), header.u16(44), ProgramHeader::SIZE_32)
    };
    if count == 0 {
        return Err(Error::NoSegments(0));
    }
    if found != expected {
        return Err(Error::HeaderSize { found, expected });
    }
    let size = usize::from(expected);
    let length = usize::from(count) * size;
    if length > TABLE_LIMIT {
        return Err(Error::TooMany { count, size });
    }
    let table = file
        .bytes("program header table", offset, length)
        .map_err(Error::File)?;
    Ok(table
        .chunks_exact(size)
        .map(|bytes| ProgramHeader::parse(HeaderFields(bytes), is_64_bit))
        .collect())
}

fn read_notes(headers: &[ProgramHeader], file: &RegularFile) -> Result<Vec<Note>, Error> {
    let mut found = Vec::new();
    let mut room = TABLE_LIMIT;
    for (number, header) in headers.iter().enumerate() {
        if header.kind != PT_NOTE || header.file_size == 0 {
            continue;
        }
        let failed = |source| Error::Segment { number, source };
        file.check_range("note", header.offset, header.file_size)
            .map_err(failed)?;
        let length = usize::try_from(header.file_size).map_or(room, |size| size.min(room));
        let bytes = file.bytes("note", header.offset, length).map_err(failed)?;
        found.extend(notes::parse(&bytes, header.alignment));
        room -= length;
    }
    Ok(found)
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        1 => "an object file that has not been linked",
        4 => "a core dump",
        _ => "which nothing here knows",
    }
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        EM_386 => "32-bit x86",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit Arm",
        EM_X86_64 => "x86_64",
        EM_AARCH64 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "another architecture",
    }
}

#[cfg(test)]
mod tests;
