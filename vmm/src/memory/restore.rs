//! Guest memory out of a snapshot's memory file, by mapping alone.

use std::fs::File;

use snapshot::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Bytes, Error, allocate, map_file};

/// Maps the regions, an address and a size in bytes each, privately from `file`, in which they follow each other by address.
/// Nothing is read, and nothing of the regions' size is allocated.
///
/// The file must be a regular one, exactly as long as the regions together. Nobody may change it while the guest lives: a page
/// that the guest has not written is the file's as it is now, and one that was cut off raises SIGBUS.
///
/// # Errors
/// As [`allocate()`] and [`remap_snapshot`].
pub fn map_snapshot(regions: &[(GuestAddress, usize)], file: &File) -> Result<GuestMemory, Error> {
    let memory = allocate(regions)?;
    remap_snapshot(&memory, file)?;
    Ok(memory)
}

/// Lets `memory` be what a snapshot's memory `file` holds, as [`map_snapshot`] does, whatever it was before. Addresses in
/// this process stay as they are, and so do the memory slots of a VM. Nobody may use the memory meanwhile.
///
/// # Errors
/// [`Error::Irregular`] when the file is none to map, [`Error::Snapshot`] when its length is another, and as [`map_file`];
/// only in that last case some of the memory may have changed.
pub fn remap_snapshot(memory: &GuestMemory, file: &File) -> Result<(), Error> {
    let metadata = file.metadata().map_err(Error::Size)?;
    if !metadata.is_file() {
        return Err(Error::Irregular);
    }
    let needed = memory.iter().map(GuestMemoryRegion::len).sum();
    if metadata.len() != needed {
        return Err(Error::Snapshot {
            found: Bytes(metadata.len()),
            needed: Bytes(needed),
        });
    }
    let mut offset = 0;
    for region in memory.iter() {
        let length = usize::try_from(region.len()).unwrap_or(usize::MAX);
        map_file(memory, region.start_addr(), file, offset, length)?;
        offset += region.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::{map_snapshot, remap_snapshot};
    use crate::memory::{Error, allocate, memfd, page_size};

    fn page() -> usize {
        usize::try_from(page_size()).unwrap()
    }

    fn regions() -> [(GuestAddress, usize); 2] {
        [(GuestAddress(0), 2 * page()), (GuestAddress(1 << 32), 3 * page())]
    }

    /// A file of pages whose bytes are their numbers, from `first` on.
    fn file(first: u8, pages: u8) -> File {
        let mut file = memfd(c"snapshot", b"").unwrap();
        for number in first..first + pages {
            file.write_all(&vec![number; page()]).unwrap();
        }
        file
    }

    #[test]
    fn regions_follow_each_other_in_the_file() {
        let memory = map_snapshot(&regions(), &file(1, 5)).unwrap();
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!(byte(0), 1);
        assert_eq!(byte(2 * page_size() - 1), 2);
        assert_eq!(byte(1 << 32), 3);
        assert_eq!(byte((1 << 32) + 3 * page_size() - 1), 5);
    }

    #[test]
    fn the_file_stays_as_it_is() {
        let file = file(1, 5);
        let (first, second) = (
            map_snapshot(&regions(), &file).unwrap(),
            map_snapshot(&regions(), &file).unwrap(),
        );
        first.write_obj(77_u8, GuestAddress(0)).unwrap();
        assert_eq!(second.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
    }

    #[test]
    fn only_a_file_of_that_length_will_do() {
        for pages in [4, 6] {
            let error = map_snapshot(&regions(), &file(1, pages)).unwrap_err().to_string();
            let found = (u64::from(pages) * page_size()) >> 10;
            assert!(
                error.starts_with(&format!("the memory file has {found} KiB")),
                "{error}"
            );
        }
        let short = file(1, 5);
        short.set_len(5 * page_size() - 1).unwrap();
        assert!(matches!(
            map_snapshot(&regions(), &short),
            Err(Error::Snapshot { .. })
        ));
        for path in ["/", "/dev/zero"] {
            let error = map_snapshot(&regions(), &File::open(path).unwrap()).unwrap_err();
            assert!(matches!(error, Error::Irregular), "{path}: {error}");
        }
    }

    #[test]
    fn nothing_is_left_of_what_was_there() {
        let memory = allocate(&regions()).unwrap();
        memory.write_obj(99_u8, GuestAddress(5)).unwrap();
        remap_snapshot(&memory, &file(1, 5)).unwrap();
        memory.write_obj(98_u8, GuestAddress(1 << 32)).unwrap();
        remap_snapshot(&memory, &file(11, 5)).unwrap();
        let byte = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!((byte(5), byte(1 << 32)), (11, 13));
    }
}
