//! A file that the guest finds in memory.

use std::ops::Range;
use std::path::{Path, PathBuf};

use snapshot::GuestMemory;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::file::{Error as FileError, RegularFile};
use super::fit::{enough, overlap};
use super::place::{Error as PlaceError, load_segment};
use super::segment::{Flags, Segment};
use crate::memory::{Bytes, page_size};

/// Why there is no initrd for the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("cannot open the initrd {path}")]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// What was in the way.
        #[source]
        source: FileError,
    },
    /// The guest has too little memory.
    #[error(
        "the initrd {path} ({size}) does not fit between the image, which ends at {image_end:#x}, and the end of memory \
         at {memory_end:#x}; --memory {enough}M is enough"
    )]
    Small {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file.
        size: Bytes,
        /// End of the image.
        image_end: u64,
        /// End of the lowest region of memory.
        memory_end: u64,
        /// MiB with which it fits.
        enough: u64,
    },
    /// More memory would not help.
    #[error(
        "the initrd {path} ({size}) does not fit between the image, which ends at {image_end:#x}, and {limit:#x}, below \
         which it must be; a smaller one is needed"
    )]
    Large {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file.
        size: Bytes,
        /// End of the image.
        image_end: u64,
        /// What it must be below.
        limit: u64,
    },
    /// The file did not get into memory.
    #[error("cannot load the initrd {path}")]
    Place {
        /// Path of the file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: PlaceError,
    },
}

/// An initrd that has been opened.
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
        let file = RegularFile::open(path, 0).map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Puts the file on page boundaries as high as it can be in the lowest region of fresh memory: at or above `after`,
    /// with all of it below `limit`, and over none of the `reserved` ranges. Returns where it is.
    ///
    /// # Errors
    /// [`Error::Small`], [`Error::Large`], or [`Error::Place`] when the kernel refuses.
    pub fn load(
        &self,
        memory: &GuestMemory,
        after: u64,
        limit: u64,
        reserved: &[Range<u64>],
    ) -> Result<Range<u64>, Error> {
        let region = memory.iter().next().map_or(0..0, |region| {
            let start = region.start_addr().raw_value();
            start..start.saturating_add(region.len())
        });
        let room = after.max(region.start)..limit.min(region.end);
        let start =
            highest(&room, self.size(), reserved).ok_or_else(|| self.no_room(region, after, limit))?;
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
        load_segment(&self.file, &segment, memory).map_err(|source| Error::Place {
            path: self.path.clone(),
            source,
        })?;
        Ok(range)
    }

    fn no_room(&self, region: Range<u64>, image_end: u64, limit: u64) -> Error {
        let (path, size) = (self.path.clone(), Bytes(self.size()));
        let page = page_size();
        // Up to the end of its last page: it starts on a page as high as it can.
        let end = image_end
            .max(region.start)
            .checked_next_multiple_of(page)
            .and_then(|start| start.checked_add(self.size()))
            .and_then(|end| end.checked_next_multiple_of(page));
        match end
            .filter(|end| region.end < *end && *end <= limit)
            .and_then(|end| enough(region.start, end))
        {
            Some(enough) => Error::Small {
                path,
                size,
                image_end,
                memory_end: region.end,
                enough,
            },
            None => Error::Large {
                path,
                size,
                image_end,
                limit: limit.min(region.end),
            },
        }
    }
}

/// The highest page in `room` at which `size` bytes are free.
fn highest(room: &Range<u64>, size: u64, reserved: &[Range<u64>]) -> Option<u64> {
    let mut top = room.end;
    loop {
        let start = top.checked_sub(size)?;
        let start = start - start % page_size();
        if start < room.start {
            return None;
        }
        // What is in the way starts below `top`, so that this ends.
        match reserved
            .iter()
            .find(|range| overlap(range, &(start..start + size)))
        {
            Some(range) => top = range.start,
            None => return Some(start),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::Path;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::{Error, Initrd};
    use crate::GuestMemory;
    use crate::boot::file::Error as FileError;
    use crate::boot::testing::{Temporary, pattern};
    use crate::memory::{allocate, page_size};

    const MEMORY: u64 = 1 << 20;

    fn memory() -> GuestMemory {
        allocate(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)]).unwrap()
    }

    fn load(content: &[u8], after: u64, limit: u64, reserved: &[Range<u64>]) -> Result<Range<u64>, Error> {
        let file = Temporary::with(content);
        let memory = memory();
        let range = Initrd::open(file.path())?.load(&memory, after, limit, reserved)?;
        let mut there = vec![1; usize::try_from(MEMORY - range.start).unwrap()];
        memory.read_slice(&mut there, GuestAddress(range.start)).unwrap();
        assert_eq!(&there[..content.len()], content);
        assert!(there[content.len()..].iter().all(|byte| *byte == 0));
        Ok(range)
    }

    #[test]
    fn it_is_as_high_as_it_can_be() {
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
        let taken = [MEMORY / 2..MEMORY, MEMORY / 4 + 1..MEMORY / 2];
        assert_eq!(load(b"x", 0, u64::MAX, &taken).unwrap().start, MEMORY / 4);
        let whole = pattern(1 << 20);
        assert_eq!(load(&whole, 0, u64::MAX, &[]).unwrap(), 0..MEMORY);
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_sizes() {
        let large = pattern(300_000);
        let error = load(&large, MEMORY - 0x4_0000, u64::MAX, &[]).unwrap_err();
        assert!(matches!(error, Error::Small { enough: 2, .. }), "{error}");
        let text = error.to_string();
        for part in ["300000 bytes", "0xc0000", "0x100000", "--memory 2M is enough"] {
            assert!(text.contains(part), "{text}");
        }
        let error = load(&large, 0, 0x1000, &[]).unwrap_err();
        assert!(matches!(error, Error::Large { limit: 0x1000, .. }), "{error}");
        let taken = [0x1000..MEMORY, 0..0];
        let error = load(&large, 0, u64::MAX, &taken).unwrap_err();
        assert!(matches!(error, Error::Large { .. }), "{error}");
        let error = load(&large, u64::MAX - 10, u64::MAX, &[]).unwrap_err();
        assert!(matches!(error, Error::Large { .. }), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_is_refused() {
        let file = Temporary::with(&pattern(300_000));
        let initrd = Initrd::open(file.path()).unwrap();
        let writer = std::fs::File::options().write(true).open(file.path()).unwrap();
        writer.set_len(page_size()).unwrap();
        let error = initrd.load(&memory(), 0, u64::MAX, &[]).unwrap_err();
        let text = crate::ErrorChain(&error).to_string();
        let named = format!(
            "cannot load the initrd {}: the file's bytes cannot be ",
            file.path().display()
        );
        assert!(text.starts_with(&named) && !text.contains("segment"), "{text}");
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
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
