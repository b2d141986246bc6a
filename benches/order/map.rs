//! Map file of the linker.

/// Input section at an address.
struct InputSection {
    start: u64,
    size: u64,
    pattern: String,
}

/// Input sections in the order of their addresses.
pub struct Map(Vec<InputSection>);

impl Map {
    /// Parses the map of lld. Each line has an address, a load address, a size and an alignment. A file with its
    /// section in brackets follows, indented by eight columns.
    pub fn parse(text: &str) -> Self {
        let mut sections: Vec<InputSection> = text.lines().filter_map(parse_line).collect();
        sections.sort_by_key(|section| section.start);
        Self(sections)
    }

    /// Returns the linker script patterns of all sections.
    #[allow(dead_code, reason = "only tests/order.rs calls it")]
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|section| section.pattern.as_str())
    }

    /// Returns the linker script pattern of the section that contains the instruction at `address`, or `None` if
    /// no pattern matches only that section.
    #[allow(dead_code, reason = "tests/order.rs does not call it")]
    pub fn pattern(&self, address: u64) -> Option<String> {
        let after = self.0.partition_point(|section| section.start <= address);
        let section = self.0[..after].last()?;
        (address - section.start < section.size).then(|| section.pattern.clone())
    }
}

fn parse_line(line: &str) -> Option<InputSection> {
    let mut columns = line.split_whitespace();
    let start = u64::from_str_radix(columns.next()?, 16).ok()?;
    let size = u64::from_str_radix(columns.nth(1)?, 16).ok()?;
    let (file, section) = line.strip_suffix(')')?.rsplit_once(":(")?;
    if !section.starts_with(".text") || size == 0 {
        return None;
    }
    let file = file.rsplit('/').next()?;
    let pattern = match file.strip_suffix(')').and_then(|file| file.split_once('(')) {
        // All sections of the C library share their names, so the pattern matches the archive member.
        Some((archive, member)) if archive.ends_with(".a") => format!("*{archive}:{member}({section})"),
        _ if section == ".text" => return None,
        _ => format!("*({})", stable_name(section)),
    };
    Some(InputSection { start, size, pattern })
}

/// Returns the section name with a wildcard for the part that differs between builds. It is the hash at the end
/// of a legacy mangled name, or the crate hash of a v0 name.
fn stable_name(section: &str) -> String {
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
