//! The linker's map.

/// A piece of an object file, at an address.
struct Piece {
    start: u64,
    size: u64,
    pattern: String,
}

/// All of them, by address.
pub struct Map(Vec<Piece>);

impl Map {
    /// Reads the map of lld: lines of an address, the address where it is loaded, a size, an alignment, and then, indented by
    /// eight columns, a file and in brackets its section.
    pub fn parse(text: &str) -> Self {
        let mut pieces: Vec<Piece> = text.lines().filter_map(piece).collect();
        pieces.sort_by_key(|piece| piece.start);
        Self(pieces)
    }

    /// How the linker is told of what holds the instruction at `address`, if it can be.
    pub fn pattern(&self, address: u64) -> Option<String> {
        let after = self.0.partition_point(|piece| piece.start <= address);
        let piece = self.0[..after].last()?;
        (address - piece.start < piece.size).then(|| piece.pattern.clone())
    }
}

fn piece(line: &str) -> Option<Piece> {
    let mut words = line.split_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok()?;
    let size = u64::from_str_radix(words.nth(1)?, 16).ok()?;
    let (file, section) = line.strip_suffix(')')?.rsplit_once(":(")?;
    if !section.starts_with(".text") || size == 0 {
        return None;
    }
    let file = file.rsplit('/').next()?;
    let pattern = match file.strip_suffix(')').and_then(|file| file.split_once('(')) {
        // Of the C library, whose sections all have the same names, the member of the archive is what is meant.
        Some((archive, member)) if archive.ends_with(".a") => format!("*{archive}:{member}({section})"),
        _ if section == ".text" => return None,
        _ => format!("*({})", lasting(section)),
    };
    Some(Piece { start, size, pattern })
}

/// A section's name without what is another in each build: the hash at the end of a name in the old way, and in the new way
/// that of a crate.
fn lasting(section: &str) -> String {
    let mut name = String::new();
    let mut rest = section;
    while let Some(at) = rest.find("Cs") {
        let (before, crate_name) = rest.split_at(at + 2);
        let hash = crate_name.bytes().take_while(u8::is_ascii_alphanumeric).count();
        name += before;
        rest = if (6..=13).contains(&hash) && crate_name[hash..].starts_with('_') {
            name.push('*');
            &crate_name[hash..]
        } else {
            crate_name
        };
    }
    name += rest;
    match name.rfind("17h") {
        Some(at) if name[at + 3..].bytes().take_while(u8::is_ascii_hexdigit).count() >= 16 => {
            format!("{}17h*", &name[..at])
        }
        _ => name,
    }
}
