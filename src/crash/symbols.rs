//! Symbols of an ELF image: System V ABI, chapter 4. They are read after the end of the guest, never at the start.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vmm::boot::elf::{self, MAGIC};
use vmm::boot::file::HeaderFields;

use crate::printable::printable;

const PT_LOAD: u32 = 1;
/// Flag of an executable segment.
const PF_X: u32 = 1;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;
/// Sections of undefined and of absolute symbols.
const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;
/// Types of symbols: none, as labels of assembly code have it, and function.
const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;

/// Bytes of the symbol table that are read at once.
const CHUNK: u64 = 64 << 10;
/// Maximum bytes of the symbol table, and of its names. Those of Linux have a tenth of it.
const MAX_TABLE: u64 = 64 << 20;
/// Maximum bytes of a name.
const MAX_NAME: usize = 200;
/// Maximum number of comparisons of a symbol with an address in it. Few symbols contain the same address.
const MAX_COMPARISONS: usize = 1 << 26;
/// Bytes at the start of a function in which it sets up its frame pointer.
const PROLOGUE: usize = 32;

/// Function of the image, or label of its assembly code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name, at most 200 bytes of it.
    pub name: String,
    /// Offset of the address from that of the symbol, in bytes.
    pub offset: u64,
    /// Offset behind the instruction that sets the frame pointer; `None` if the function keeps none.
    pub frame: Option<u64>,
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

/// Function without an address in it; otherwise as [`Symbol`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Name, at most 200 bytes of it.
    pub name: String,
    /// Address.
    pub start: u64,
    /// Offset behind the instruction that sets the frame pointer; `None` if the function keeps none.
    pub frame: Option<u64>,
}

/// Functions that contain addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// The functions.
    pub functions: Vec<Function>,
    /// Number of the function of each address.
    pub numbers: Vec<Option<u32>>,
}

/// ELF file with its tables.
pub struct Symbols<'a> {
    file: &'a File,
    is_64_bit: bool,
    machine: u16,
    program_headers: Vec<u8>,
    table: Table,
    names: Table,
}

/// Section of a file.
#[derive(Clone, Copy, Debug)]
struct Table {
    offset: u64,
    size: u64,
}

impl Table {
    /// Returns the table if `file` holds all of it, and if it is not too large.
    fn check(self, file: &File) -> Option<Self> {
        (self.size <= MAX_TABLE && contains(file, self.offset, self.size)).then_some(self)
    }
}

/// Symbol that contains an address, or precedes it. The order is that of the preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    value: u64,
    is_global: bool,
    name: u32,
    size: u64,
}

/// Search for the symbols of addresses.
struct Search<'a> {
    /// In ascending order.
    addresses: &'a [u64],
    /// Best symbol with a size that contains each address.
    found: Vec<Option<Candidate>>,
    /// Best symbol without a size, such as a label of assembly code, between each address and the one before.
    labels: Vec<Option<Candidate>>,
    /// Addresses of the executable segments, in ascending order. A label names only code in its own segment: others mark the end of the
    /// image.
    code: Vec<Range<u64>>,
    comparisons: usize,
}

impl<'a> Search<'a> {
    fn new(addresses: &'a [u64], code: Vec<Range<u64>>) -> Self {
        Self {
            code,
            addresses,
            found: vec![None; addresses.len()],
            labels: vec![None; addresses.len()],
            comparisons: 0,
        }
    }

    fn add(&mut self, candidate: Candidate) {
        let first = self
            .addresses
            .partition_point(|address| *address < candidate.value);
        if candidate.size == 0 {
            if segment_at(&self.code, candidate.value).is_none() {
                return;
            }
            if let Some(label) = self.labels.get_mut(first) {
                *label = (*label).max(Some(candidate));
            }
            return;
        }
        let pairs = self.addresses[first..].iter().zip(&mut self.found[first..]);
        let inside = pairs.take_while(|(address, _)| *address - candidate.value < candidate.size);
        for (_, found) in inside.take(MAX_COMPARISONS - self.comparisons) {
            *found = (*found).max(Some(candidate));
            self.comparisons += 1;
        }
    }

    /// Returns the best symbol of each address. One that contains it precedes labels.
    fn finish(mut self) -> Vec<Option<Candidate>> {
        let mut label = None;
        let addresses = self.addresses.iter().zip(self.labels);
        for (found, (address, next)) in self.found.iter_mut().zip(addresses) {
            label = label.max(next);
            let is_near = |label: &Candidate| {
                let code = segment_at(&self.code, *address);
                code.is_some_and(|code| code.contains(&label.value))
            };
            *found = found.or(label.filter(is_near));
        }
        self.found
    }
}

/// Returns the range of `code`, which is in ascending order, that contains `address`.
fn segment_at(code: &[Range<u64>], address: u64) -> Option<&Range<u64>> {
    let next = code.partition_point(|range| range.end <= address);
    code.get(next).filter(|range| range.contains(&address))
}

impl<'a> Symbols<'a> {
    /// Reads the headers of `file`. Returns `None` if it is no ELF file, or has no symbols.
    pub fn open(file: &'a File) -> Option<Self> {
        let header = read(file, 0, 64)?;
        if !header.starts_with(&MAGIC) {
            return None;
        }
        let fields = HeaderFields(&header);
        let is_64_bit = fields.u8(4) == 2;
        let (programs, sections, counts) = match is_64_bit {
            true => (fields.u64(32), fields.u64(40), 54_usize),
            false => (fields.u32(28).into(), fields.u32(32).into(), 42),
        };
        let (program_size, section_size) = header_sizes(is_64_bit);
        let headers = |offset, at, size| {
            let [found, count] = [at, at + 2].map(|at| usize::from(fields.u16(counts + at)));
            match count {
                0 => Some(Vec::new()),
                _ if found == size => read(file, offset, count * size),
                _ => None,
            }
        };
        let program_headers = headers(programs, 0, program_size)?;
        // No image of a guest has more.
        if program_headers.len() > elf::MAX_TABLE {
            return None;
        }
        let section_headers: Vec<_> = headers(sections, 4, section_size)?
            .chunks_exact(section_size)
            .map(|bytes| SectionHeader::parse(HeaderFields(bytes), is_64_bit))
            .collect();
        let of_kind = |kind| section_headers.iter().find(|header| header.kind == kind);
        let symbols = of_kind(SHT_SYMTAB).or_else(|| of_kind(SHT_DYNSYM))?;
        let names = section_headers.get(usize::try_from(symbols.link).ok()?)?;
        Some(Self {
            file,
            is_64_bit,
            machine: fields.u16(18),
            program_headers,
            table: symbols.table.check(file)?,
            names: names.table.check(file)?,
        })
    }

    /// Returns the symbol of each of `addresses`.
    pub fn find(&self, addresses: &[u64]) -> Vec<Option<Symbol>> {
        let mut sorted = addresses.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let Functions { functions, numbers } = self.functions(&sorted);
        let symbol = |address: &u64| {
            let number = numbers[sorted.binary_search(address).ok()?]?;
            let function = functions.get(usize::try_from(number).ok()?)?;
            Some(Symbol {
                name: function.name.clone(),
                offset: address - function.start,
                frame: function.frame,
            })
        };
        addresses.iter().map(symbol).collect()
    }

    /// Returns the functions of `addresses`, which are in ascending order.
    pub fn functions(&self, addresses: &[u64]) -> Functions {
        let mut search = Search::new(addresses, self.executable_segments());
        let entry = if self.is_64_bit { 24 } else { 16 };
        let mut at = 0;
        while at < self.table.size {
            // A multiple of the size of an entry.
            let length = (self.table.size - at).min(CHUNK / 48 * 48);
            let bytes = usize::try_from(length)
                .ok()
                .and_then(|length| read(self.file, self.table.offset.checked_add(at)?, length));
            let Some(bytes) = bytes else { break };
            for bytes in bytes.chunks_exact(entry) {
                self.candidate(HeaderFields(bytes))
                    .into_iter()
                    .for_each(|candidate| search.add(candidate));
            }
            at += length;
        }
        self.describe(&search.finish())
    }

    /// Returns the functions of the symbols of addresses.
    fn describe(&self, found: &[Option<Candidate>]) -> Functions {
        let mut functions = Functions::default();
        // A function around others comes again after each of them.
        let mut candidates: Vec<_> = found.iter().flatten().copied().collect();
        candidates.sort_unstable();
        candidates.dedup();
        let number = |candidate: &Candidate| {
            let function = self.function(*candidate)?;
            functions.functions.push(function);
            u32::try_from(functions.functions.len() - 1).ok()
        };
        let numbers: Vec<_> = candidates.iter().map(number).collect();
        let number = |candidate: &Option<Candidate>| {
            let index = candidates.binary_search(candidate.as_ref()?).ok()?;
            numbers.get(index).copied()?
        };
        functions.numbers = found.iter().map(number).collect();
        functions
    }

    /// Returns an entry of the symbol table, if it may be a function.
    fn candidate(&self, symbol: HeaderFields<'_>) -> Option<Candidate> {
        let (info, section, value, size) = match self.is_64_bit {
            true => (symbol.u8(4), symbol.u16(6), symbol.u64(8), symbol.u64(16)),
            false => (
                symbol.u8(12),
                symbol.u16(14),
                symbol.u32(4).into(),
                symbol.u32(8).into(),
            ),
        };
        // Absolute symbols are numbers, not addresses.
        let is_code =
            ![SHN_UNDEF, SHN_ABS].contains(&section) && [STT_NOTYPE, STT_FUNC].contains(&(info & 0xf));
        is_code.then(|| Candidate {
            value,
            is_global: info >> 4 != 0,
            name: symbol.u32(0),
            size,
        })
    }

    fn function(&self, found: Candidate) -> Option<Function> {
        let name = self.name(found.name)?;
        // Mapping symbols of aarch64 mark data and code.
        (!name.is_empty() && !name.starts_with('$')).then(|| Function {
            name,
            start: found.value,
            frame: self.frame_set_up(found),
        })
    }

    fn name(&self, at: u32) -> Option<String> {
        let at = u64::from(at);
        let length = usize::try_from(self.names.size.checked_sub(at)?).unwrap_or(usize::MAX);
        let bytes = read(
            self.file,
            self.names.offset.checked_add(at)?,
            length.min(MAX_NAME),
        )?;
        let name = bytes.split(|byte| *byte == 0).next()?;
        // A message has a line of its own for each function.
        Some(printable(&String::from_utf8_lossy(name)))
    }

    /// Returns the segments that are loaded.
    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let (size, _) = header_sizes(self.is_64_bit);
        let headers = self.program_headers.chunks_exact(size).map(HeaderFields);
        let headers = headers.filter(|header| header.u32(0) == PT_LOAD);
        headers.map(|header| match self.is_64_bit {
            true => Segment {
                flags: header.u32(4),
                offset: header.u64(8),
                start: header.u64(16),
                size: header.u64(32),
            },
            false => Segment {
                flags: header.u32(24),
                offset: header.u32(4).into(),
                start: header.u32(8).into(),
                size: header.u32(16).into(),
            },
        })
    }

    /// Returns the addresses of the executable segments in ascending order, those that overlap as one range.
    fn executable_segments(&self) -> Vec<Range<u64>> {
        let code = self.segments().filter(|segment| segment.flags & PF_X != 0);
        let ranges = code.map(|segment| segment.start..segment.start.saturating_add(segment.size));
        let mut sorted: Vec<Range<u64>> = Vec::new();
        for range in ranges.filter(|range| !range.is_empty()) {
            let at = sorted.partition_point(|other| other.start <= range.start);
            sorted.insert(at, range);
        }
        sorted.dedup_by(|next, range| {
            let overlaps = next.start < range.end;
            if overlaps {
                range.end = range.end.max(next.end);
            }
            overlaps
        });
        sorted
    }

    /// Returns up to `length` bytes of the file at the virtual `address`.
    fn code(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        self.segments().find_map(|segment| {
            let within = address.checked_sub(segment.start)?;
            let rest = segment.size.checked_sub(within).filter(|rest| *rest > 0)?;
            let length = usize::try_from(rest).unwrap_or(length).min(length);
            read(self.file, segment.offset.checked_add(within)?, length)
        })
    }

    /// Returns true if the file has the instruction `bytes` at the virtual `address`.
    pub fn holds(&self, address: u64, bytes: &[u8]) -> bool {
        let code = self.code(address, bytes.len());
        !bytes.is_empty() && code.is_some_and(|code| code == bytes)
    }

    /// Returns the offset behind the instruction by which the function sets its frame pointer, if it has one.
    fn frame_set_up(&self, function: Candidate) -> Option<u64> {
        // The code of the next function may follow.
        let length = match usize::try_from(function.size) {
            Ok(0) | Err(_) => PROLOGUE,
            Ok(size) => size.min(PROLOGUE),
        };
        let code = self.code(function.value, length)?;
        let is_set_up = |bytes: &[u8]| match (self.machine, bytes) {
            // mov %rsp,%rbp, in both encodings.
            (EM_X86_64, [0x48, 0x89, 0xe5] | [0x48, 0x8b, 0xec]) => true,
            // add x29, sp, #immediate, of which mov x29, sp is a case.
            (EM_AARCH64, _) => HeaderFields(bytes).u32(0) & 0xffc0_03ff == 0x9100_03fd,
            _ => false,
        };
        let (length, step) = if self.machine == EM_AARCH64 {
            (4, 4)
        } else {
            (3, 1)
        };
        let position = code.windows(length).step_by(step).position(is_set_up)?;
        Some((position * step + length) as u64)
    }
}

/// Segment that is loaded.
struct Segment {
    flags: u32,
    /// Offset in the file.
    offset: u64,
    /// Virtual address.
    start: u64,
    /// Bytes in the file: no code is behind them.
    size: u64,
}

/// Header of a section.
struct SectionHeader {
    kind: u32,
    table: Table,
    /// Number of the section with the names.
    link: u32,
}

impl SectionHeader {
    fn parse(fields: HeaderFields<'_>, is_64_bit: bool) -> Self {
        let (offset, size, link) = match is_64_bit {
            true => (fields.u64(24), fields.u64(32), fields.u32(40)),
            false => (fields.u32(16).into(), fields.u32(20).into(), fields.u32(24)),
        };
        Self {
            kind: fields.u32(4),
            table: Table { offset, size },
            link,
        }
    }
}

/// Returns the bytes of a program header, and of a section header.
fn header_sizes(is_64_bit: bool) -> (usize, usize) {
    if is_64_bit { (56, 64) } else { (32, 40) }
}

/// Returns true if the file has `length` bytes at `offset`.
fn contains(file: &File, offset: u64, length: u64) -> bool {
    let end = offset.checked_add(length);
    file.metadata()
        .is_ok_and(|metadata| end.is_some_and(|end| end <= metadata.len()))
}

/// Reads `length` bytes at `offset`. Returns `None` if the file is shorter, or cannot be read: a report then lacks symbols.
fn read(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    // Before the allocation: a damaged header may have any length.
    if !contains(file, offset, length as u64) {
        return None;
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).ok()?;
    bytes.resize(length, 0);
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use scratch::Temporary;

    use super::{Candidate, EM_AARCH64, EM_X86_64, MAX_TABLE, Search, Symbol, Symbols, read, segment_at};

    const CODE: u64 = 0x20_0000;
    /// Offsets in the file.
    const CODE_AT: usize = 0x200;
    const SYMBOLS_AT: usize = 0x400;
    const NAMES_AT: usize = 0x600;
    const SECTIONS_AT: usize = 0x700;

    /// Name, type and binding, address, and size.
    type Listed = (&'static str, u8, u64, u64);

    const GLOBAL_FUNCTION: u8 = 0x12;
    const LOCAL_LABEL: u8 = 0;
    const GLOBAL_LABEL: u8 = 0x10;

    /// Returns an ELF64 file with `code` at [`CODE`].
    fn elf(machine: u16, code: &[u8], symbols: &[Listed]) -> Vec<u8> {
        let mut file = vec![0; SECTIONS_AT + 3 * 64];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(18, &machine.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(40, &(SECTIONS_AT as u64).to_le_bytes());
        for (at, value) in [(54, 56_u16), (56, 1), (58, 64), (60, 3)] {
            put(at, &value.to_le_bytes());
        }
        put(64, &1_u32.to_le_bytes());
        put(68, &5_u32.to_le_bytes());
        for (at, value) in [(72, CODE_AT as u64), (80, CODE), (96, code.len() as u64)] {
            put(at, &value.to_le_bytes());
        }
        put(CODE_AT, code);
        let mut name = 1;
        for (index, (text, info, value, size)) in symbols.iter().enumerate() {
            let at = SYMBOLS_AT + index * 24;
            put(at, &u32::try_from(name).unwrap().to_le_bytes());
            put(at + 4, &[*info, 0, 1, 0]);
            put(at + 8, &value.to_le_bytes());
            put(at + 16, &size.to_le_bytes());
            put(NAMES_AT + name, text.as_bytes());
            name += text.len() + 1;
        }
        for (index, kind, offset, size) in
            [(1, 2_u32, SYMBOLS_AT, symbols.len() * 24), (2, 3, NAMES_AT, name)]
        {
            let at = SECTIONS_AT + index * 64;
            put(at + 4, &kind.to_le_bytes());
            put(at + 24, &(offset as u64).to_le_bytes());
            put(at + 32, &(size as u64).to_le_bytes());
            put(at + 40, &2_u32.to_le_bytes());
        }
        file
    }

    fn find(image: &[u8], addresses: &[u64]) -> Vec<Option<Symbol>> {
        let file = Temporary::with(image);
        let file = File::open(file.path()).unwrap();
        Symbols::open(&file).unwrap().find(addresses)
    }

    fn symbol(name: &str, offset: u64, frame: Option<u64>) -> Option<Symbol> {
        let name = name.to_owned();
        Some(Symbol { name, offset, frame })
    }

    #[test]
    fn function_with_size_precedes_label() {
        let symbols = [
            ("before", GLOBAL_LABEL, CODE - 0x10, 0),
            ("function", GLOBAL_FUNCTION, CODE, 0x20),
            ("local", LOCAL_LABEL, CODE + 0x10, 0),
            ("data", 1, CODE + 0x18, 8),
            ("$x", LOCAL_LABEL, CODE + 0x40, 0),
            ("$d", LOCAL_LABEL, CODE + 0x30, 0),
            ("start", GLOBAL_LABEL, CODE + 0x30, 0),
        ];
        let found = find(
            &elf(EM_X86_64, &[0x90; 64], &symbols),
            &[
                CODE - 0x11,
                CODE - 1,
                CODE,
                CODE + 0x1f,
                CODE + 0x20,
                CODE + 0x3f,
                CODE + 0x40,
            ],
        );
        let expected = [
            None,
            // The label is in no segment.
            None,
            symbol("function", 0, None),
            symbol("function", 0x1f, None),
            symbol("local", 0x10, None),
            symbol("start", 0xf, None),
            None,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn label_names_code_of_its_segment_alone() {
        let symbols = [
            ("start", GLOBAL_LABEL, CODE, 0),
            ("image_end", GLOBAL_LABEL, CODE + 0x100, 0),
        ];
        let mut image = elf(EM_X86_64, &[0x90; 0x20], &symbols);
        let addresses = [CODE + 0x1f, CODE + 0x20, CODE + 0x100, CODE + 0x1000, u64::MAX];
        let mut expected = vec![None; addresses.len()];
        expected[0] = symbol("start", 0x1f, None);
        assert_eq!(find(&image, &addresses), expected);
        // Without the flag.
        image[68] = 4;
        assert_eq!(find(&image, &addresses), vec![None; addresses.len()]);
    }

    #[test]
    fn executable_segments_are_ascending_and_apart() {
        let mut image = elf(EM_X86_64, &[0x90], &[("start", GLOBAL_LABEL, CODE, 0)]);
        let segments = [
            (5_u32, 0x5000_u64, 0x800_u64),
            (5, 0x1000, 0x1000),
            (4, 0, 0x9000),
            (5, 0x4000, 0),
        ];
        let segments = [
            &segments[..],
            &[(5, 0x2000, 0x1000), (5, 0x2800, 0x1000), (5, 0x2900, 1)],
        ]
        .concat();
        image[56] = u8::try_from(segments.len()).unwrap();
        for (index, (flags, start, size)) in segments.iter().enumerate() {
            let at = 64 + index * 56;
            image[at] = 1;
            image[at + 4..at + 8].copy_from_slice(&flags.to_le_bytes());
            image[at + 16..at + 24].copy_from_slice(&start.to_le_bytes());
            image[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
        }
        let file = Temporary::with(&image);
        let file = File::open(file.path()).unwrap();
        let code = Symbols::open(&file).unwrap().executable_segments();
        assert_eq!(code, [0x1000..0x2000, 0x2000..0x3800, 0x5000..0x5800]);
        for (address, found) in [
            (0xfff, None),
            (0x1000, Some(0)),
            (0x1fff, Some(0)),
            (0x2000, Some(1)),
            (0x37ff, Some(1)),
            (0x3800, None),
            (0x57ff, Some(2)),
            (0x5800, None),
        ] {
            assert_eq!(
                segment_at(&code, address),
                found.map(|index: usize| &code[index]),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn program_headers_beyond_those_of_an_image_are_rejected() {
        let image = elf(EM_X86_64, &[0x90], &[("function", GLOBAL_FUNCTION, CODE, 1)]);
        for (count, is_accepted) in [(1170_u16, true), (1171, false)] {
            let mut image = image.clone();
            image[56..58].copy_from_slice(&count.to_le_bytes());
            assert_eq!(opens(&image, 1 << 20), is_accepted, "{count}");
        }
    }

    #[test]
    fn function_around_many_others_has_one_number() {
        let mut symbols = vec![("around", GLOBAL_FUNCTION, CODE, 0x40)];
        symbols.extend((0..18).map(|at| ("in", GLOBAL_FUNCTION, CODE + 1 + 2 * at, 1)));
        let file = Temporary::with(&elf(EM_X86_64, &[0x90; 0x40], &symbols));
        let file = File::open(file.path()).unwrap();
        let addresses: Vec<_> = (CODE..CODE + 0x40).collect();
        let found = Symbols::open(&file).unwrap().functions(&addresses);
        assert_eq!(found.functions.len(), 19);
        assert_eq!(found.numbers[0x3f], found.numbers[0]);
        assert_eq!(found.numbers[2], found.numbers[0]);
    }

    #[test]
    fn absolute_symbols_are_no_functions() {
        let symbols = [
            ("number", GLOBAL_LABEL, CODE + 4, 0),
            ("start", GLOBAL_LABEL, CODE, 0),
        ];
        let mut image = elf(EM_X86_64, &[0x90; 8], &symbols);
        assert_eq!(find(&image, &[CODE + 5]), [symbol("number", 1, None)]);
        image[SYMBOLS_AT + 6..SYMBOLS_AT + 8].copy_from_slice(&0xfff1_u16.to_le_bytes());
        assert_eq!(find(&image, &[CODE + 5]), [symbol("start", 5, None)]);
    }

    #[test]
    fn symbols_of_many_addresses_are_those_of_single_ones() {
        // Values and sizes by a linear congruential generator: overlapping, equal and empty symbols.
        let mut state = 7_u64;
        let mut draw = |limit| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % limit
        };
        let symbols: Vec<_> = (0..300)
            .map(|name| Candidate {
                value: draw(4000),
                is_global: draw(2) == 1,
                name,
                size: draw(3) * draw(200),
            })
            .collect();
        let addresses: Vec<_> = (0..4200).filter(|_| draw(3) == 0).collect();
        let mut search = Search::new(&addresses, std::iter::once(0..5000).collect());
        symbols.iter().for_each(|symbol| search.add(*symbol));
        for (address, found) in addresses.iter().zip(search.finish()) {
            let precedes = symbols.iter().filter(|symbol| symbol.value <= *address);
            let (sized, labels): (Vec<&Candidate>, Vec<_>) = precedes.partition(|symbol| symbol.size > 0);
            let contains = sized
                .into_iter()
                .filter(|symbol| address - symbol.value < symbol.size);
            assert_eq!(
                found.as_ref(),
                contains.max().or(labels.into_iter().max()),
                "{address}"
            );
        }
    }

    #[test]
    fn frame_pointer_is_found_in_prologue() {
        let function = [("function", GLOBAL_FUNCTION, CODE, 0x40)];
        let frame = |machine, code: &[u8]| {
            let found = find(&elf(machine, code, &function), &[CODE]);
            found[0].as_ref().unwrap().frame
        };
        // endbr64; push %rbp; mov %edi,%eax; mov %rsp,%rbp
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x89, 0xf8, 0x48, 0x89, 0xe5, 0xc3];
        assert_eq!(frame(EM_X86_64, &code), Some(10));
        assert_eq!(frame(EM_X86_64, &[0x55, 0x48, 0x8b, 0xec]), Some(4));
        // push %rbx; sub $0x10,%rsp
        assert_eq!(frame(EM_X86_64, &[0x53, 0x48, 0x83, 0xec, 0x10]), None);
        // stp x29, x30, [sp, #-32]!; add x29, sp, #0x10
        let code = [0xa9be_7bfd_u32, 0x9100_43fd].map(u32::to_le_bytes).concat();
        assert_eq!(frame(EM_AARCH64, &code), Some(8));
        assert_eq!(frame(EM_AARCH64, &code[..4]), None);
        // A function of one instruction before another one.
        let function = [("leaf", GLOBAL_FUNCTION, CODE, 1)];
        let found = find(
            &elf(EM_X86_64, &[0xc3, 0x55, 0x48, 0x89, 0xe5], &function),
            &[CODE],
        );
        assert_eq!(found[0].as_ref().unwrap().frame, None);
    }

    #[test]
    fn name_cannot_add_lines() {
        let symbols = [("a\nmayfly: \x1b[2J", GLOBAL_FUNCTION, CODE, 1)];
        let found = find(&elf(EM_X86_64, &[0x90], &symbols), &[CODE]);
        assert_eq!(found, [symbol(r"a\nmayfly: \u{1b}[2J", 0, None)]);
    }

    /// Opens `image` with `length` bytes.
    fn opens(image: &[u8], length: u64) -> bool {
        let image = Temporary::with(image);
        let file = File::options().write(true).open(image.path()).unwrap();
        file.set_len(length).unwrap();
        Symbols::open(&File::open(image.path()).unwrap()).is_some()
    }

    #[test]
    fn headers_of_other_sizes_are_rejected() {
        let image = elf(EM_X86_64, &[0x90], &[("function", GLOBAL_FUNCTION, CODE, 1)]);
        assert!(opens(&image, 1 << 33));
        for (at, size) in [(54, 55_u16), (54, 57), (54, 0), (58, 40), (58, 65)] {
            let mut image = image.clone();
            image[at..at + 2].copy_from_slice(&size.to_le_bytes());
            assert!(!opens(&image, 1 << 33), "{size} at {at}");
        }
    }

    #[test]
    fn large_tables_are_rejected() {
        let image = elf(EM_X86_64, &[0x90], &[("function", GLOBAL_FUNCTION, CODE, 1)]);
        for section in [1, 2] {
            for (size, is_accepted) in [(MAX_TABLE, true), (MAX_TABLE + 1, false)] {
                let (mut image, at) = (image.clone(), SECTIONS_AT + section * 64 + 32);
                image[at..at + 8].copy_from_slice(&size.to_le_bytes());
                assert_eq!(opens(&image, 1 << 30), is_accepted, "{size}");
                assert!(!opens(&image, MAX_TABLE), "table behind the end of the file");
            }
        }
    }

    #[test]
    fn read_behind_end_of_file_allocates_nothing() {
        /// Returns the maximum of the memory of this process so far, in KiB.
        fn peak() -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            line.unwrap().trim_end_matches("kB").trim().parse().unwrap()
        }
        let file = Temporary::with(&[0; 64]);
        let file = File::open(file.path()).unwrap();
        let before = peak();
        assert_eq!(read(&file, 0, 1 << 30), None);
        assert_eq!(read(&file, u64::MAX, 1), None);
        assert!(peak() - before < 512 << 10);
    }

    #[test]
    fn damaged_file_has_no_symbols() {
        let image = elf(EM_X86_64, &[0x90], &[("function", GLOBAL_FUNCTION, CODE, 1)]);
        let open = |image: &[u8]| {
            let file = Temporary::with(image);
            let file = File::open(file.path()).unwrap();
            Symbols::open(&file).map(|symbols| symbols.find(&[CODE]))
        };
        assert!(open(b"\x7fELF").is_none());
        assert!(open(&[0; 100]).is_none());
        assert!(open(&image[..image.len() - 1]).is_none());
        // Each field of 8 bytes, at its maximum.
        for at in (0..image.len() - 8).step_by(8) {
            let mut damaged = image.clone();
            damaged[at..at + 8].fill(0xff);
            let _ = open(&damaged);
        }
    }
}
