//! Notes of an ELF image.

use super::fields::HeaderFields;

/// Name of the owner of Xen's notes, PVH among them.
pub const XEN: &str = "Xen";
/// Kind of the note that holds the physical address of the PVH entry, `XEN_ELFNOTE_PHYS32_ENTRY`.
pub const PHYS32_ENTRY: u32 = 18;

/// A note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who defines the kinds, without the terminating NUL.
    pub name: String,
    /// What it is, among the notes of this name.
    pub kind: u32,
    /// What it says.
    pub description: Vec<u8>,
}

impl Note {
    /// The PVH entry, if this is the note that holds it. It is 4 bytes long, or 8 in images that give an address of their
    /// own word size.
    pub fn pvh_entry(&self) -> Option<u64> {
        if self.name != XEN || self.kind != PHYS32_ENTRY {
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

/// The notes in the content of a PT_NOTE segment. `alignment` is that of its program header: 8 pads names and descriptions
/// to 8 bytes, anything else to 4, as linkers write it. What follows a note that leaves the segment is no note.
pub fn parse(bytes: &[u8], alignment: u64) -> Vec<Note> {
    let alignment = if alignment == 8 { 8 } else { 4 };
    let mut notes = Vec::new();
    let mut rest = bytes;
    while let Some((note, length)) = first(rest, alignment) {
        notes.push(note);
        // The last note need not be padded.
        rest = rest.get(length..).unwrap_or_default();
    }
    notes
}

fn first(bytes: &[u8], alignment: usize) -> Option<(Note, usize)> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::{Note, PHYS32_ENTRY, parse};
    use crate::boot::testing::note;

    fn build_id() -> Note {
        Note {
            name: "GNU".into(),
            kind: 3,
            description: vec![7; 5],
        }
    }

    fn pvh(entry: &[u8]) -> Note {
        Note {
            name: "Xen".into(),
            kind: PHYS32_ENTRY,
            description: entry.to_vec(),
        }
    }

    #[test]
    fn notes_are_found_with_either_padding() {
        for alignment in [4, 8] {
            let expected = [build_id(), pvh(&[1, 2, 3, 0]), build_id()];
            let bytes: Vec<u8> = expected.iter().flat_map(|one| note(one, alignment)).collect();
            assert_eq!(parse(&bytes, alignment as u64), expected, "alignment {alignment}");
            let unpadded = &bytes[..bytes.len() - 3];
            assert_eq!(
                parse(unpadded, alignment as u64),
                expected,
                "alignment {alignment}"
            );
            assert_eq!(parse(&bytes[..bytes.len() - 8], alignment as u64), expected[..2]);
        }
    }

    #[test]
    fn an_entry_has_4_or_8_bytes() {
        assert_eq!(pvh(&[1, 2, 3, 0]).pvh_entry(), Some(0x0003_0201));
        assert_eq!(
            pvh(&[1, 2, 3, 0, 0, 0, 0, 4]).pvh_entry(),
            Some(0x0400_0000_0003_0201)
        );
        assert_eq!(pvh(&[1, 2]).pvh_entry(), None);
        assert_eq!(build_id().pvh_entry(), None);
        let other = Note {
            kind: 17,
            ..pvh(&[0; 4])
        };
        assert_eq!(other.pvh_entry(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), wide: bool) {
            let held: usize = parse(&bytes, if wide { 8 } else { 4 }).iter().map(|note| note.description.len()).sum();
            prop_assert!(held <= bytes.len());
        }
    }
}
