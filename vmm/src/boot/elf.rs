//! ELF images, 32 and 64 bits wide, little-endian, and their notes: System V ABI, chapters 4 and 5.

use super::file::{Error as FileError, HeaderFields, RegularFile};
use super::segment::{Flags, Segment};
use snapshot::file::Architecture;

/// First bytes of every ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";
/// Maximum length of the program header table, and of all notes, in bytes. Kernels have less than a tenth of it.
pub const MAX_TABLE: usize = 64 << 10;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;

/// Name of Xen's notes.
const XEN_NOTE: &str = "Xen";
/// Type of the note with the physical address of the PVH entry: Xen, xen/include/public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`.
pub const PHYS32_ENTRY: u32 = 18;

/// Error of an ELF file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A header is incomplete or not readable.
    #[error("cannot read the ELF headers")]
    File(#[source] FileError),
    /// The class is neither 32 nor 64 bits.
    #[error("ELF class {0} is neither 1 (32 bits) nor 2 (64 bits): the file is damaged")]
    Class(u8),
    /// The file is not little-endian.
    #[error(
        "ELF byte order {0} is unsupported; 1 (little-endian) is required; build the image little-endian"
    )]
    ByteOrder(u8),
    /// The file is not linked.
    #[error("ELF type {kind} ({}) is no image; 2 (executable) or 3 (shared object) is required", kind_name(*.kind))]
    Kind {
        /// `e_type` of the file.
        kind: u16,
    },
    /// The image is built for another architecture.
    #[error("the image is built for {} (e_machine {found}), and the machine is {required}; build it for {required}",
        machine_name(*.found))]
    Machine {
        /// `e_machine` of the file.
        found: u16,
        /// Architecture of the machine.
        required: Architecture,
    },
    /// Program headers have an invalid size.
    #[error("a program header has {found} bytes instead of {expected}: the file is damaged")]
    HeaderSize {
        /// `e_phentsize` of the file.
        found: u16,
        /// Size that the class defines.
        expected: u16,
    },
    /// The file has too many program headers.
    #[error("{count} program headers exceed the limit of {}", MAX_TABLE / *.size)]
    TooMany {
        /// `e_phnum` of the file.
        count: u16,
        /// Size of a program header.
        size: usize,
    },
    /// The file has no segment to load.
    #[error("none of the {0} program headers is a loadable segment; link the image as an executable")]
    NoSegments(u16),
    /// A segment is larger in the file than in memory.
    #[error(
        "segment {number} has {file:#x} bytes in the file and only {memory:#x} in memory: the file is damaged"
    )]
    Sizes {
        /// Index of the program header.
        number: usize,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// A segment exceeds the address space.
    #[error(
        "segment {number} of {size:#x} bytes at {start:#x} exceeds the address space: the file is damaged"
    )]
    Wraps {
        /// Index of the program header.
        number: usize,
        /// First address.
        start: u64,
        /// Length in bytes.
        size: u64,
    },
    /// A segment is incomplete in the file.
    #[error("cannot read segment {number}")]
    Segment {
        /// Index of the program header.
        number: usize,
        /// Error of the file.
        #[source]
        source: FileError,
    },
}

/// Headers and notes of an ELF file.
#[derive(Debug)]
pub struct Elf {
    /// True for 64 bits, false for 32 bits.
    pub is_64_bit: bool,
    /// Entry in the header, physical or virtual.
    pub entry: u64,
    /// Segments to load, in the order of the program headers.
    pub segments: Vec<Segment>,
    /// Notes in the order of the file, at most [`MAX_TABLE`] bytes.
    pub notes: Vec<Note>,
}

/// Program header of either class.
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
/// [`Error`] for a file that `architecture` cannot load into any guest memory.
pub fn parse(file: &RegularFile, architecture: Architecture) -> Result<Elf, Error> {
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
    check_machine(fields.u16(18), architecture)?;
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

fn check_machine(found: u16, required: Architecture) -> Result<(), Error> {
    let matches = match required {
        Architecture::X86_64 => found == EM_X86_64 || found == EM_386,
        Architecture::Aarch64 => found == EM_AARCH64,
    };
    if !matches {
        return Err(Error::Machine { found, required });
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
    if length > MAX_TABLE {
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
    let mut notes = Vec::new();
    let mut remaining = MAX_TABLE;
    for (number, header) in headers.iter().enumerate() {
        if header.kind != PT_NOTE || header.file_size == 0 {
            continue;
        }
        let failed = |source| Error::Segment { number, source };
        file.check_range("note", header.offset, header.file_size)
            .map_err(failed)?;
        let length = usize::try_from(header.file_size).map_or(remaining, |size| size.min(remaining));
        let bytes = file.bytes("note", header.offset, length).map_err(failed)?;
        notes.extend(parse_notes(&bytes, header.alignment));
        remaining -= length;
    }
    Ok(notes)
}

fn kind_name(kind: u16) -> &'static str {
    match kind {
        1 => "unlinked object file",
        4 => "core dump",
        _ => "unknown",
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

/// ELF note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Name of the owner, without the terminating NUL.
    pub name: String,
    /// Type of the note, defined by the owner.
    pub kind: u32,
    /// Descriptor.
    pub description: Vec<u8>,
}

impl Note {
    /// Returns the PVH entry of a note that contains it: 4 bytes, or 8 in images that use an address of their own word size.
    pub fn pvh_entry(&self) -> Option<u64> {
        if self.name != XEN_NOTE || self.kind != PHYS32_ENTRY {
            return None;
        }
        let fields = HeaderFields(&self.description);
        match self.description.len() {
            4 => Some(fields.u32(0).into()),
            8 => Some(fields.u64(0)),
            _ => None,
        }
    }
}

/// Parses the notes in the content of a PT_NOTE segment, up to a note that exceeds the segment. `alignment` is that of the
/// program header: 8 pads names and descriptors to 8 bytes, any other value to 4, as linkers write them.
pub fn parse_notes(bytes: &[u8], alignment: u64) -> Vec<Note> {
    let alignment = if alignment == 8 { 8 } else { 4 };
    let mut notes = Vec::new();
    let mut rest = bytes;
    while let Some((note, length)) = parse_note(rest, alignment) {
        notes.push(note);
        // Linkers omit the padding of the last note.
        rest = rest.get(length..).unwrap_or_default();
    }
    notes
}

/// Parses the first note of `bytes`. Returns it with its padded length.
fn parse_note(bytes: &[u8], alignment: usize) -> Option<(Note, usize)> {
    const HEADER: usize = 12;
    let fields = HeaderFields(bytes.get(..HEADER)?);
    let name_length = usize::try_from(fields.u32(0)).ok()?;
    let description_length = usize::try_from(fields.u32(4)).ok()?;
    let name_end = HEADER.checked_add(name_length)?;
    let start = name_end.checked_next_multiple_of(alignment)?;
    let end = start.checked_add(description_length)?;
    let name = bytes.get(HEADER..name_end)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    let note = Note {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: fields.u32(8),
        description: bytes.get(start..end)?.to_vec(),
    };
    Some((note, end.checked_next_multiple_of(alignment)?))
}
