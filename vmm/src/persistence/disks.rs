//! Disks of a snapshot: length, modification time and identity of each, by which a load finds a disk that has changed since.
//!
//! The memory of a guest has the content of its file systems. With a disk of another time, the guest destroys them.

use std::path::Path;

use devices::virtio::block::DiskStamp;
use serde::{Deserialize, Serialize};
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, Schema};

use crate::config::{DeviceBackend, DeviceKind, VmConfig};
use crate::machine::Machine;

/// Section of the disks in state files; absent without drives, and in files of older releases.
const SECTION: &str = "disks";

/// Treatment of a disk that has changed since the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriveCheck {
    /// The load fails.
    Reject,
    /// The log has a warning.
    #[default]
    Warn,
    /// The change is accepted.
    Ignore,
}

/// Disk of a drive that has changed since the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot load the snapshot with drive {id:?}: its disk has changed since, from {saved} to {found}; load it with the unchanged disk, or \
     accept the change"
)]
pub struct ChangedDrive {
    /// ID of the drive.
    pub id: String,
    /// Disk at the snapshot.
    pub saved: DiskStamp,
    /// Disk at the load.
    pub found: DiskStamp,
}

/// Saved disk of a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedDisk {
    /// ID of the drive.
    id: String,
    stamp: DiskStamp,
}

/// Saved disks, in the order of the drives. A disk whose writes had not ended is absent: it changed after the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedDisks(Vec<SavedDisk>);

impl Schema for SavedDisks {
    const NAME: &'static str = "disks";
    const VERSION: u32 = 1;
}

/// Adds the disks of the paused `machine`, whose requests in flight have ended, to `archive`.
pub(super) fn save(machine: &Machine, archive: &mut ArchiveWriter) -> Result<(), SectionError> {
    let stamps = machine.settled_disks().filter_map(|(id, disk)| {
        let id = id.to_owned();
        Some(SavedDisk {
            id,
            // Without a stamp, a load cannot compare the disk.
            stamp: disk.stamp().ok()?,
        })
    });
    let disks = SavedDisks(stamps.collect());
    match disks.0.is_empty() {
        true => Ok(()),
        false => archive.write(SECTION, &disks),
    }
}

impl SavedDisks {
    /// Reads the section, if there is one.
    pub fn read(sections: &mut ArchiveReader<'_>) -> Result<Self, SectionError> {
        Ok(sections.read_optional(SECTION)?.unwrap_or_default())
    }

    /// Compares the disk of the drive `id`, open at `path`, with that of the snapshot, unless one of `overrides` replaces it: an override that names the
    /// same file does not. `config` is that of the state file.
    pub fn compare(
        &self,
        id: &str,
        (path, found): (&Path, DiskStamp),
        config: &VmConfig,
        overrides: &[(String, DeviceBackend)],
    ) -> Result<(), ChangedDrive> {
        let Some(SavedDisk { stamp: saved, .. }) = self.0.iter().find(|saved| saved.id == id) else {
            return Ok(());
        };
        let is_named = overrides
            .iter()
            .any(|(name, backend)| name == id && backend.kind() == DeviceKind::Drive);
        let saved_path = config
            .drives()
            .find(|drive| drive.disk.id == id)
            .map(|drive| drive.disk.path.as_path());
        let is_replaced = is_named && saved_path != Some(path) && !found.is_same_file(saved);
        if is_replaced || found.has_content_of(saved) {
            return Ok(());
        }
        Err(ChangedDrive {
            id: id.to_owned(),
            saved: *saved,
            found,
        })
    }
}

impl DriveCheck {
    /// Treats the result of a comparison.
    pub(super) fn treat(self, compared: Result<(), ChangedDrive>) -> Result<(), ChangedDrive> {
        match (self, compared) {
            (Self::Reject, compared) => compared,
            (Self::Warn, Err(ChangedDrive { id, saved, found })) => {
                log::warn!(
                    "the disk of drive {id:?} has changed since the snapshot, from {saved} to {found}: the guest may destroy its file systems"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use devices::virtio::block::DiskStamp;
    use scratch::Directory;
    use snapshot::{ArchiveReader, ArchiveWriter};

    use super::{ChangedDrive, DriveCheck, SECTION, SavedDisk, SavedDisks};
    use crate::config::{DeviceBackend, DriveConfig, VmConfig};

    struct Fixture {
        directory: Directory,
        saved: SavedDisks,
        config: VmConfig,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = Directory::new();
            directory.write("disk", [0; 512]);
            directory.write("other", [1; 512]);
            let drive: DriveConfig = format!("{},id=d", directory.text("disk")).parse().unwrap();
            let stamp = DiskStamp::of(&File::open(directory.path("disk")).unwrap()).unwrap();
            Self {
                saved: SavedDisks(vec![SavedDisk {
                    id: "d".into(),
                    stamp,
                }]),
                config: VmConfig {
                    devices: vec![drive.into()],
                    ..VmConfig::new("kernel".into())
                },
                directory,
            }
        }

        fn touch(&self, name: &str, nanoseconds: u64) {
            let file = File::options()
                .write(true)
                .open(self.directory.path(name))
                .unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds))
                .unwrap();
        }

        fn compare(&self, name: &str, overrides: &[(String, DeviceBackend)]) -> Result<(), ChangedDrive> {
            let path = self.directory.path(name);
            let found = DiskStamp::of(&File::open(&path).unwrap()).unwrap();
            self.saved.compare("d", (&path, found), &self.config, overrides)
        }
    }

    #[test]
    fn changed_disk_is_found() {
        let fixture = Fixture::new();
        assert_eq!(fixture.compare("disk", &[]), Ok(()));
        // A copy of another inode, with another time.
        fixture.touch("other", 1);
        assert!(fixture.compare("other", &[]).is_err());
        fixture.touch("disk", 5);
        let changed = fixture.compare("disk", &[]).unwrap_err();
        assert_eq!(changed.found.modified, Some((0, 5)));
        assert!(
            changed.to_string().contains("512 bytes, modified at 0.000000005"),
            "{changed}"
        );
        for (check, is_accepted) in [
            (DriveCheck::Reject, false),
            (DriveCheck::Warn, true),
            (DriveCheck::Ignore, true),
        ] {
            assert_eq!(check.treat(Err(changed.clone())).is_ok(), is_accepted);
        }
        let unknown = SavedDisks::default();
        let path = Path::new("disk");
        assert_eq!(
            unknown.compare("d", (path, changed.found), &fixture.config, &[]),
            Ok(())
        );
    }

    #[test]
    fn only_another_file_replaces_disk() {
        let fixture = Fixture::new();
        fixture.touch("disk", 5);
        std::fs::hard_link(fixture.directory.path("disk"), fixture.directory.path("hard")).unwrap();
        for (name, is_replaced) in [("disk", false), ("hard", false), ("other", true)] {
            let named = [("d".to_owned(), fixture.directory.path(name).into())];
            assert_eq!(fixture.compare(name, &named).is_ok(), is_replaced, "{name}");
        }
        // That of another drive.
        let named = [("e".to_owned(), fixture.directory.path("other").into())];
        assert!(fixture.compare("disk", &named).is_err());
    }

    #[test]
    fn section_is_optional() {
        let fixture = Fixture::new();
        let mut archive = ArchiveWriter::new();
        archive.write(SECTION, &fixture.saved).unwrap();
        let bytes = archive.into_bytes();
        let mut sections = ArchiveReader::parse(&bytes).unwrap();
        assert_eq!(SavedDisks::read(&mut sections).unwrap(), fixture.saved);
        assert_eq!(SavedDisks::read(&mut sections).unwrap(), SavedDisks::default());
        sections.finish().unwrap();
    }
}
