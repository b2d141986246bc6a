//! Images for tests, built in memory, and temporary files.

pub use scratch::Temporary;

use super::elf::Note;
use super::multiboot::Addresses;

/// Returns nonzero bytes that repeat after 1004 bytes only.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at % 251 + at / 251 % 4 + 1).unwrap())
        .collect()
}

/// Returns the bytes of a note in a file, padded at the end.
pub fn note(note: &Note, alignment: usize) -> Vec<u8> {
    let mut name = note.name.as_bytes().to_vec();
    name.push(0);
    let mut bytes = Vec::new();
    for length in [name.len(), note.description.len()] {
        bytes.extend(u32::try_from(length).unwrap().to_le_bytes());
    }
    bytes.extend(note.kind.to_le_bytes());
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes.extend(&note.description);
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes
}

/// Returns a note of a PVH entry.
pub fn pvh_note(entry: u32) -> Vec<u8> {
    let entry = Note {
        name: "Xen".into(),
        kind: 18,
        description: entry.to_le_bytes().to_vec(),
    };
    note(&entry, 4)
}

/// Returns 32 bytes that begin with a multiboot header.
pub fn multiboot_header(flags: u32, addresses: Option<Addresses>) -> Vec<u8> {
    let flags = flags | if addresses.is_some() { 1 << 16 } else { 0 };
    let magic = 0x1bad_b002_u32;
    let mut fields = vec![magic, flags, 0_u32.wrapping_sub(magic).wrapping_sub(flags)];
    if let Some(given) = addresses {
        fields.extend([
            given.header,
            given.load,
            given.load_end,
            given.bss_end,
            given.entry,
        ]);
    }
    fields.resize(8, 0);
    fields.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Returns the first 16 bytes of a multiboot 2 header for x86.
pub fn multiboot_2_header() -> Vec<u8> {
    let (magic, length) = (0xe852_50d6_u32, 24_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(length);
    let fields = [magic, 0, length, checksum];
    fields.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Program header with its content.
#[derive(Clone)]
pub struct ElfSegment {
    pub kind: u32,
    pub physical: u64,
    pub virtual_address: u64,
    pub content: Vec<u8>,
    pub memory_size: u64,
    /// Difference of the file offset from one that agrees with the address modulo the page size.
    pub skew: u64,
}

impl ElfSegment {
    /// Creates a segment to load, at the same physical and virtual address.
    pub fn load(address: u64, content: Vec<u8>, bss: u64) -> Self {
        Self {
            kind: 1,
            physical: address,
            virtual_address: address,
            memory_size: content.len() as u64 + bss,
            content,
            skew: 0,
        }
    }

    /// Creates a segment of notes.
    pub fn notes(content: Vec<u8>) -> Self {
        Self {
            kind: 4,
            ..Self::load(0, content, 0)
        }
    }
}

/// ELF file.
#[derive(Clone)]
pub struct ElfFile {
    pub is_64_bit: bool,
    pub machine: u16,
    pub entry: u64,
    pub segments: Vec<ElfSegment>,
}

impl ElfFile {
    /// Creates a 64-bit file for x86_64.
    pub fn new(entry: u64, segments: Vec<ElfSegment>) -> Self {
        Self {
            is_64_bit: true,
            machine: 62,
            entry,
            segments,
        }
    }

    /// Creates a 32-bit file for x86.
    pub fn new_32_bit(entry: u64, segments: Vec<ElfSegment>) -> Self {
        Self {
            is_64_bit: false,
            machine: 3,
            ..Self::new(entry, segments)
        }
    }

    pub fn build(&self) -> Vec<u8> {
        let page = crate::memory::page_size();
        let (header_size, header_entry_size) = if self.is_64_bit { (64, 56) } else { (52, 32) };
        let mut file = self.header(header_size, header_entry_size);
        let mut contents = vec![0; self.segments.len() * usize::from(header_entry_size)];
        let start = header_size as u64;
        for segment in &self.segments {
            let end = start + contents.len() as u64;
            let offset = end.next_multiple_of(page) + segment.physical % page + segment.skew;
            contents.resize(usize::try_from(offset - start).unwrap(), 0xaa);
            contents.extend(&segment.content);
            file.extend(self.program_header(segment, offset));
        }
        contents.extend([0xaa; 100]);
        file.extend(&contents[self.segments.len() * usize::from(header_entry_size)..]);
        file
    }

    fn header(&self, header_size: usize, header_entry_size: u16) -> Vec<u8> {
        let class = if self.is_64_bit { 2 } else { 1 };
        let mut header = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
        header.resize(16, 0);
        header.extend(2_u16.to_le_bytes());
        header.extend(self.machine.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        for word in [self.entry, header_size as u64, 0] {
            header.extend(self.word(word));
        }
        header.extend(0_u32.to_le_bytes());
        let own_size = u16::try_from(header_size).unwrap();
        let count = u16::try_from(self.segments.len()).unwrap();
        for half in [own_size, header_entry_size, count, 0, 0, 0] {
            header.extend(half.to_le_bytes());
        }
        header
    }

    fn program_header(&self, segment: &ElfSegment, offset: u64) -> Vec<u8> {
        let mut bytes = segment.kind.to_le_bytes().to_vec();
        if self.is_64_bit {
            bytes.extend(7_u32.to_le_bytes());
        }
        let size = segment.content.len() as u64;
        let words = [
            offset,
            segment.virtual_address,
            segment.physical,
            size,
            segment.memory_size,
        ];
        bytes.extend(words.into_iter().flat_map(|word| self.word(word)));
        if !self.is_64_bit {
            bytes.extend(7_u32.to_le_bytes());
        }
        bytes.extend(self.word(4));
        bytes
    }

    fn word(&self, word: u64) -> Vec<u8> {
        if self.is_64_bit {
            return word.to_le_bytes().to_vec();
        }
        u32::try_from(word).unwrap().to_le_bytes().to_vec()
    }
}

/// Returns a bzImage of protocol 2.15 with 4 setup sectors, preferred address 16 MiB and 2 MiB to unpack.
pub fn bzimage(kernel: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 5 * 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let paragraphs = u32::try_from(kernel.len() / 16).unwrap();
    put(0x1f1, &[4]);
    put(0x1f4, &paragraphs.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 1, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x20_0000_u32.to_le_bytes());
    file.extend(kernel);
    file
}

/// Returns an `Image` of arm64 with these fields of its header and `length` bytes.
pub fn arm64_image(text_offset: u64, image_size: u64, flags: u64, length: usize) -> Vec<u8> {
    let mut bytes = pattern(length);
    for (at, value) in [(8, text_offset), (16, image_size), (24, flags)] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes
}
