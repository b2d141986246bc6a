//! Initrd: file that the guest finds in memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use snapshot::GuestMemory;
use snapshot::file::FileIdentity;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::file::{Error as FileError, RegularFile};
use super::segment::{Flags, LoadError, Segment, load_segment, overlaps, sufficient_mib};
use crate::memory::{Bytes, page_size};

/// Error of an initrd.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was not opened.
    #[error("cannot open the initrd {path}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Error of the file.
        #[source]
        source: FileError,
    },
    /// Guest memory is too small.
    #[error(
        "cannot load the initrd {path} of {size} between the end of the image at {image_end:#x} and the end of memory at \
         {memory_end:#x}: guest memory is too small; {sufficient_mib} MiB suffice"
    )]
    MemoryTooSmall {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file.
        size: Bytes,
        /// End of the image.
        image_end: u64,
        /// End of the lowest region of memory.
        memory_end: u64,
        /// Size of memory in MiB that contains image and initrd.
        sufficient_mib: u64,
    },
    /// No size of memory contains the initrd.
    #[error(
        "cannot load the initrd {path} of {size} between the end of the image at {image_end:#x} and the limit {limit:#x}: the \
         file is too large; use a smaller one"
    )]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file.
        size: Bytes,
        /// End of the image.
        image_end: u64,
        /// Upper limit of its end.
        limit: u64,
    },
    /// The file was not loaded.
    #[error("cannot load the initrd {path}")]
    Load {
        /// Path of the file.
        path: PathBuf,
        /// Error of the load.
        #[source]
        source: LoadError,
    },
}

/// Place of an initrd within its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At the lowest free page, right behind the image. The loader of Hermit, entered by multiboot, allocates memory only behind its
    /// module.
    Lowest,
    /// At the highest free page, out of the way of a kernel that unpacks or moves itself.
    Highest,
}

/// Open initrd.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    file: RegularFile,
}

impl Initrd {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_regular_file(path, RegularFile::open(path, 0))
    }

    /// Uses the open `file`. Errors name it `path`.
    ///
    /// # Errors
    /// As [`Initrd::open`].
    pub fn from_file(path: &Path, file: File) -> Result<Self, Error> {
        Self::from_regular_file(path, RegularFile::from_file(file, 0))
    }

    fn from_regular_file(path: &Path, file: Result<RegularFile, FileError>) -> Result<Self, Error> {
        let path = path.to_owned();
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    /// Returns the identity of the file.
    pub(crate) fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Loads the file at the page boundary of `placement` in the lowest region of fresh memory. The file lies between `after` and
    /// `limit`, and overlaps no `reserved` range. Returns its guest-physical addresses.
    ///
    /// # Errors
    /// [`Error::MemoryTooSmall`], [`Error::TooLarge`], or [`Error::Load`] if a call of the kernel fails.
    pub fn load(
        &self,
        memory: &GuestMemory,
        after: u64,
        limit: u64,
        reserved: &[Range<u64>],
        placement: Placement,
    ) -> Result<Range<u64>, Error> {
        let region = memory.iter().next().map_or(0..0, |region| {
            let start = region.start_addr().raw_value();
            start..start.saturating_add(region.len())
        });
        let space = after.max(region.start)..limit.min(region.end);
        let find = match placement {
            Placement::Lowest => lowest_free_page,
            Placement::Highest => highest_free_page,
        };
        let start =
            find(&space, self.size(), reserved).ok_or_else(|| self.no_space_error(region, after, limit))?;
        let range = start..start + self.size();
        let segment = Segment {
            number: 0,
            file: 0..self.size(),
            physical: range.clone(),
            virtual_address: start,
            flags: Flags {
                read: true,
                write: true,
                execute: false,
            },
        };
        load_segment(&self.file, &segment, memory).map_err(|source| Error::Load {
            path: self.path.clone(),
            source,
        })?;
        Ok(range)
    }

    fn no_space_error(&self, region: Range<u64>, image_end: u64, limit: u64) -> Error {
        let (path, size) = (self.path.clone(), Bytes(self.size()));
        let page = page_size();
        // Up to the end of the last page: the initrd starts at a page.
        let end = image_end
            .max(region.start)
            .checked_next_multiple_of(page)
            .and_then(|start| start.checked_add(self.size()))
            .and_then(|end| end.checked_next_multiple_of(page));
        match end
            .filter(|end| region.end < *end && *end <= limit)
            .and_then(|end| sufficient_mib(region.start, end))
        {
            Some(sufficient_mib) => Error::MemoryTooSmall {
                path,
                size,
                image_end,
                memory_end: region.end,
                sufficient_mib,
            },
            None => Error::TooLarge {
                path,
                size,
                image_end,
                limit: limit.min(region.end),
            },
        }
    }
}

/// Returns the highest page in `space` with `size` free bytes.
fn highest_free_page(space: &Range<u64>, size: u64, reserved: &[Range<u64>]) -> Option<u64> {
    let mut top = space.end;
    loop {
        let start = top.checked_sub(size)?;
        let start = start - start % page_size();
        if start < space.start {
            return None;
        }
        // An overlapping range starts below `top`, so that the loop ends.
        match reserved
            .iter()
            .find(|range| overlaps(range, &(start..start + size)))
        {
            Some(range) => top = range.start,
            None => return Some(start),
        }
    }
}

/// Returns the lowest page in `space` with `size` free bytes.
fn lowest_free_page(space: &Range<u64>, size: u64, reserved: &[Range<u64>]) -> Option<u64> {
    let mut bottom = space.start;
    loop {
        let start = bottom.checked_next_multiple_of(page_size())?;
        let end = start.checked_add(size).filter(|end| *end <= space.end)?;
        // An overlapping range ends above `start`, so that the loop ends.
        match reserved.iter().find(|range| overlaps(range, &(start..end))) {
            Some(range) => bottom = range.end,
            None => return Some(start),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::Path;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::{Error, Initrd, Placement};
    use crate::GuestMemory;
    use crate::boot::file::Error as FileError;
    use crate::boot::testing::{Temporary, pattern};
    use crate::memory::{allocate, page_size};

    const MEMORY: u64 = 1 << 20;

    fn memory() -> GuestMemory {
        allocate(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)]).unwrap()
    }

    fn load(content: &[u8], after: u64, limit: u64, reserved: &[Range<u64>]) -> Result<Range<u64>, Error> {
        load_at(Placement::Highest, content, after, limit, reserved)
    }

    fn load_at(
        placement: Placement,
        content: &[u8],
        after: u64,
        limit: u64,
        reserved: &[Range<u64>],
    ) -> Result<Range<u64>, Error> {
        let file = Temporary::with(content);
        let memory = memory();
        let range = Initrd::open(file.path())?.load(&memory, after, limit, reserved, placement)?;
        let mut found = vec![1; usize::try_from(MEMORY - range.start).unwrap()];
        memory.read_slice(&mut found, GuestAddress(range.start)).unwrap();
        assert_eq!(&found[..content.len()], content);
        assert!(found[content.len()..].iter().all(|byte| *byte == 0));
        Ok(range)
    }

    #[test]
    fn initrd_loads_at_highest_free_page() {
        let page = page_size();
        assert_eq!(
            load(b"x", 0, u64::MAX, &[]).unwrap(),
            MEMORY - page..MEMORY - page + 1
        );
        let large = pattern(300_001);
        let start = (MEMORY - 300_001) / page * page;
        assert_eq!(
            load(&large, start, u64::MAX, &[]).unwrap(),
            start..start + 300_001
        );
        assert_eq!(load(b"x", 0, MEMORY / 2, &[]).unwrap().start, MEMORY / 2 - page);
        assert_eq!(load(b"x", 0, MEMORY / 2 + 1, &[]).unwrap().start, MEMORY / 2);
        let reserved = [MEMORY / 2..MEMORY, MEMORY / 4 + 1..MEMORY / 2];
        assert_eq!(load(b"x", 0, u64::MAX, &reserved).unwrap().start, MEMORY / 4);
        let full = pattern(1 << 20);
        assert_eq!(load(&full, 0, u64::MAX, &[]).unwrap(), 0..MEMORY);
    }

    #[test]
    fn initrd_loads_at_lowest_free_page() {
        let page = page_size();
        let load = |content: &[u8], after, limit, reserved: &[Range<u64>]| {
            load_at(Placement::Lowest, content, after, limit, reserved)
        };
        assert_eq!(load(b"x", 0, u64::MAX, &[]).unwrap(), 0..1);
        assert_eq!(load(b"x", page, u64::MAX, &[]).unwrap().start, page);
        assert_eq!(load(b"x", page + 1, u64::MAX, &[]).unwrap().start, 2 * page);
        let reserved = [0..page + 1, MEMORY / 4..MEMORY / 2];
        assert_eq!(load(b"x", 0, u64::MAX, &reserved).unwrap().start, 2 * page);
        let large = pattern(300_001);
        assert_eq!(load(&large, 0, u64::MAX, &reserved).unwrap().start, MEMORY / 2);
        let error = load(&large, 0, MEMORY / 2, &reserved).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        let error = load(&large, MEMORY - 0x4_0000, u64::MAX, &[]).unwrap_err();
        assert!(
            matches!(
                error,
                Error::MemoryTooSmall {
                    sufficient_mib: 2,
                    ..
                }
            ),
            "{error}"
        );
        let error = load(&large, u64::MAX - 10, u64::MAX, &[]).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    #[test]
    fn missing_space_error_states_sizes() {
        let large = pattern(300_000);
        let error = load(&large, MEMORY - 0x4_0000, u64::MAX, &[]).unwrap_err();
        assert!(
            matches!(
                error,
                Error::MemoryTooSmall {
                    sufficient_mib: 2,
                    ..
                }
            ),
            "{error}"
        );
        let text = error.to_string();
        for value in ["300000 bytes", "0xc0000", "0x100000", "2 MiB suffice"] {
            assert!(text.contains(value), "{text}");
        }
        let error = load(&large, 0, 0x1000, &[]).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 0x1000, .. }), "{error}");
        let reserved = [0x1000..MEMORY, 0..0];
        let error = load(&large, 0, u64::MAX, &reserved).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
        let error = load(&large, u64::MAX - 10, u64::MAX, &[]).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    #[test]
    fn shrunk_file_is_rejected() {
        let file = Temporary::with(&pattern(300_000));
        let initrd = Initrd::open(file.path()).unwrap();
        let writer = std::fs::File::options().write(true).open(file.path()).unwrap();
        writer.set_len(page_size()).unwrap();
        let error = initrd
            .load(&memory(), 0, u64::MAX, &[], Placement::Highest)
            .unwrap_err();
        let text = crate::ErrorChain(&error).to_string();
        let expected = format!(
            "cannot load the initrd {}: cannot map or read the file",
            file.path().display()
        );
        assert!(text.starts_with(&expected) && !text.contains("segment"), "{text}");
    }

    #[test]
    fn missing_file_is_named() {
        let error = Initrd::open(Path::new("/nowhere/initrd")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the initrd /nowhere/initrd");
        assert!(matches!(
            error,
            Error::Open {
                source: FileError::Missing,
                ..
            }
        ));
    }
}
