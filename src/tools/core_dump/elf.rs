//! ELF core: System V ABI, chapters 4 and 5, with the notes of Linux.
//!
//! The file begins with all headers and notes. Guest memory follows as it is in the memory file, from a page boundary on.

use std::io::{self, Write};

use vmm::persistence::SavedRegisters;

const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;

const EHDR: usize = 64;
const PHDR: usize = 56;
const SHDR: usize = 64;

/// Number of program headers that stands for one in the first section header.
const PN_XNUM: usize = 0xffff;

/// Bytes of `struct elf_prstatus` before the registers, on all architectures with words of 64 bits.
const BEFORE_REGISTERS: usize = 112;
/// Offset of the thread ID in `struct elf_prstatus`.
const PID: usize = 32;
/// Bytes after the registers: a flag and its padding.
const AFTER_REGISTERS: usize = 8;

/// Alignment of memory in the file.
const PAGE: usize = 4096;

/// Range of guest memory in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSegment {
    /// Virtual address.
    pub address: u64,
    /// Guest-physical address.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
    /// Offset in the memory file.
    pub offset: u64,
}

/// Writes the part of the file before memory, with whole pages. Returns its length in bytes.
///
/// # Errors
/// The error of `file`.
pub fn write_front(
    file: &mut impl Write,
    machine: u16,
    vcpus: impl Iterator<Item = SavedRegisters>,
    segments: &[LoadSegment],
) -> io::Result<u64> {
    let notes: Vec<u8> = (1_u32..)
        .zip(vcpus)
        .flat_map(|(id, registers)| notes(id, registers))
        .collect();
    let count = segments.len() + 1;
    let is_large = count >= PN_XNUM;
    let headers = EHDR + if is_large { SHDR } else { 0 };
    let notes_at = headers + count * PHDR;
    let notes_end = notes_at + notes.len();
    let memory_at = notes_end.next_multiple_of(PAGE);
    file.write_all(&elf_header(machine, headers, count))?;
    if is_large {
        file.write_all(&first_section(count))?;
    }
    file.write_all(&program_header(PT_NOTE, notes_at, 0, 0, notes.len() as u64))?;
    for segment in segments {
        let at = memory_at as u64 + segment.offset;
        file.write_all(&program_header(
            PT_LOAD,
            usize::try_from(at).unwrap_or(usize::MAX),
            segment.address,
            segment.physical,
            segment.length,
        ))?;
    }
    file.write_all(&notes)?;
    file.write_all(&[0; PAGE][..memory_at - notes_end])?;
    Ok(memory_at as u64)
}

fn elf_header(machine: u16, program_headers: usize, count: usize) -> Vec<u8> {
    let is_large = count >= PN_XNUM;
    let half = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
    let word = |value: usize| (value as u64).to_le_bytes();
    let mut header = Vec::with_capacity(EHDR);
    // 64 bits, little-endian, version 1.
    header.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.extend(ET_CORE.to_le_bytes());
    header.extend(machine.to_le_bytes());
    header.extend(1_u32.to_le_bytes());
    header.extend(word(0));
    header.extend(word(program_headers));
    header.extend(word(if is_large { EHDR } else { 0 }));
    header.extend(0_u32.to_le_bytes());
    header.extend([half(EHDR), half(PHDR), half(count.min(PN_XNUM))].concat());
    let sections = usize::from(is_large);
    header.extend([half(SHDR), half(sections), half(0)].concat());
    header
}

/// Returns the first section header, whose `sh_info` is the number of program headers.
fn first_section(count: usize) -> [u8; SHDR] {
    const SH_INFO: usize = 44;
    let mut header = [0; SHDR];
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    header[SH_INFO..SH_INFO + 4].copy_from_slice(&count.to_le_bytes());
    header
}

fn program_header(kind: u32, offset: usize, address: u64, physical: u64, length: u64) -> Vec<u8> {
    let (flags, alignment) = match kind {
        // Rights do not matter to a reader.
        PT_LOAD => (7_u32, PAGE as u64),
        _ => (0, 4),
    };
    let mut header = Vec::with_capacity(PHDR);
    header.extend(kind.to_le_bytes());
    header.extend(flags.to_le_bytes());
    let words = [offset as u64, address, physical, length, length, alignment];
    header.extend(words.into_iter().flat_map(u64::to_le_bytes));
    header
}

/// Returns the notes of a vCPU, which is the thread `id` of the core.
fn notes(id: u32, registers: SavedRegisters) -> Vec<u8> {
    let mut status = vec![0; BEFORE_REGISTERS];
    status[PID..PID + 4].copy_from_slice(&id.to_le_bytes());
    status.extend(registers.general);
    status.extend([0; AFTER_REGISTERS]);
    let mut notes = note(NT_PRSTATUS, &status);
    if let Some(float) = registers.float {
        notes.extend(note(NT_FPREGSET, &float));
    }
    notes
}

/// Returns a note of the owner that gdb expects.
fn note(kind: u32, description: &[u8]) -> Vec<u8> {
    const OWNER: &[u8] = b"CORE\0\0\0\0";
    let length = u32::try_from(description.len()).unwrap_or(u32::MAX);
    let header = [5, length, kind];
    let mut note: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    note.extend(OWNER);
    note.extend(description);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

#[cfg(test)]
mod tests {
    use vmm::persistence::SavedRegisters;

    use super::{LoadSegment, write_front};

    /// Returns the front of a core for x86-64.
    fn front(vcpus: &[SavedRegisters], segments: &[LoadSegment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let length = write_front(&mut bytes, 62, vcpus.iter().cloned(), segments).unwrap();
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    fn registers(byte: u8, float: Option<Vec<u8>>) -> SavedRegisters {
        SavedRegisters {
            general: vec![byte; 216],
            float,
        }
    }

    fn segment(address: u64, offset: u64) -> LoadSegment {
        LoadSegment {
            address,
            physical: 0x10_0000 + offset,
            length: 0x1000,
            offset,
        }
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn half(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    #[test]
    fn front_has_headers_and_notes() {
        let vcpus = [registers(7, Some(vec![9; 512])), registers(8, None)];
        let segments = [segment(0x40_0000, 0x2000), segment(0xffff_8000_0000_0000, 0)];
        let bytes = front(&vcpus, &segments);
        assert_eq!(bytes.len(), 4096);
        assert_eq!((half(&bytes, 16), half(&bytes, 18)), (4, 62));
        assert_eq!(
            (word(&bytes, 32), half(&bytes, 54), half(&bytes, 56)),
            (64, 56, 3)
        );
        // PT_NOTE.
        let notes_at = 64 + 3 * 56;
        assert_eq!(bytes[64], 4);
        let status = 112 + 216 + 8;
        let length = 3 * 20 + 2 * status + 512;
        assert_eq!(
            (word(&bytes, 72), word(&bytes, 96)),
            (notes_at as u64, length as u64)
        );
        // The last PT_LOAD.
        let load = 64 + 2 * 56;
        assert_eq!(bytes[load], 1);
        let fields: Vec<_> = (1..7).map(|index| word(&bytes, load + index * 8)).collect();
        assert_eq!(
            fields,
            [4096, 0xffff_8000_0000_0000, 0x10_0000, 0x1000, 0x1000, 4096]
        );
        // The first note: name, ID, registers.
        let note = &bytes[notes_at..];
        assert_eq!(&note[12..17], b"CORE\0");
        assert_eq!(
            (note[8], note[20 + 32], note[20 + 111], note[20 + 112]),
            (1, 1, 0, 7)
        );
        let second = &note[20 + status + 20 + 512..];
        assert_eq!((second[8], second[20 + 32], second[20 + 112]), (1, 2, 8));
    }

    #[test]
    fn many_segments_are_counted_in_section_header() {
        let segments = vec![segment(0, 0); 70_000];
        let bytes = front(&[], &segments);
        assert_eq!(
            (half(&bytes, 56), word(&bytes, 40), half(&bytes, 60)),
            (0xffff, 64, 1)
        );
        assert_eq!(word(&bytes, 32), 128);
        let count = u32::from_le_bytes(bytes[64 + 44..64 + 48].try_into().unwrap());
        assert_eq!(count, 70_001);
        let few = front(&[], &segments[..0xfffd]);
        assert_eq!((half(&few, 56), word(&few, 40)), (0xfffe, 0));
    }
}
