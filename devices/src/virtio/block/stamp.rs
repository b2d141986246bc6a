//! Length and modification time of a disk, by which a snapshot detects a change of the disk.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

/// Length, modification time and identity of a disk. The time of a block device does not follow its writes, and is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStamp {
    /// Length in bytes.
    pub length: u64,
    /// Seconds and nanoseconds since the epoch.
    pub modified: Option<(i64, i64)>,
    /// Numbers of device and inode.
    identity: (u64, u64),
}

impl DiskStamp {
    /// Returns the stamp of the open file of a disk.
    ///
    /// # Errors
    /// Fails if the file system cannot inspect the file.
    pub fn of(mut file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        Ok(Self {
            length: match is_device {
                // The metadata of a block device has no size. Reads and writes of the disk do not use the position.
                true => file.seek(SeekFrom::End(0))?,
                false => metadata.len(),
            },
            modified: (!is_device).then(|| (metadata.mtime(), metadata.mtime_nsec())),
            identity: (metadata.dev(), metadata.ino()),
        })
    }

    /// Returns true if the disks have the same length and time. A copy with both passes.
    pub fn has_content_of(&self, other: &Self) -> bool {
        (self.length, self.modified) == (other.length, other.modified)
    }

    /// Returns true if both are one file, whatever its names and content are.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl fmt::Display for DiskStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.length)?;
        match self.modified {
            Some((seconds, nanoseconds)) => write!(f, ", modified at {seconds}.{nanoseconds:09}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use scratch::Temporary;

    use super::DiskStamp;

    #[test]
    fn change_of_length_or_time_changes_stamp() {
        let disk = Temporary::with(&[0; 1024]);
        let file = File::options().write(true).open(disk.path()).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
        file.set_modified(time).unwrap();
        let stamp = DiskStamp::of(&file).unwrap();
        assert_eq!(stamp.to_string(), "1024 bytes, modified at 1700000000.000000005");
        file.set_modified(time + Duration::from_nanos(1)).unwrap();
        assert!(!DiskStamp::of(&file).unwrap().has_content_of(&stamp));
        file.set_modified(time).unwrap();
        assert!(DiskStamp::of(&file).unwrap().has_content_of(&stamp));
        file.set_len(512).unwrap();
        file.set_modified(time).unwrap();
        assert!(DiskStamp::of(&file).unwrap().is_same_file(&stamp));
        assert!(!DiskStamp::of(&file).unwrap().has_content_of(&stamp));
    }
}
