//! Files that a VM and its process have open: a snapshot must not replace them.

use std::fmt;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;

use devices::lock;
use snapshot::file::FileIdentity;

use crate::config::DeviceKind;
use crate::vm::VmCore;

/// Use of an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// Image that the guest was booted from.
    Image,
    /// Initrd that the guest was booted with.
    Initrd,
    /// Host side of the device with this ID.
    Device(DeviceKind, String),
    /// Memory file from which guest memory is mapped.
    Memory,
    /// State file that was loaded.
    State,
    /// Working set to prefetch or to record.
    WorkingSet,
    /// First frames of a network interface.
    FirstFrames,
    /// Destination of the guest's serial output.
    Serial,
    /// Destination of log messages.
    Log,
    /// Destination of the metrics.
    Metrics,
    /// Destination of the trace of the start.
    Trace,
    /// Destination of the profile of the guest.
    Profile,
}

impl fmt::Display for FileRole {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image => formatter.write_str("the image"),
            Self::Initrd => formatter.write_str("the initrd"),
            // The VM gives it an ID later.
            Self::Device(kind, id) if id.is_empty() => write!(formatter, "a {kind}"),
            Self::Device(kind, id) => write!(formatter, "{kind} {id:?}"),
            Self::Memory => formatter.write_str("the memory file that was loaded"),
            Self::State => formatter.write_str("the state file that was loaded"),
            Self::WorkingSet => formatter.write_str("the working set"),
            Self::FirstFrames => formatter.write_str("the first frames of a network interface"),
            Self::Serial => formatter.write_str("the serial output of the guest"),
            Self::Log => formatter.write_str("the log"),
            Self::Metrics => formatter.write_str("the metrics file"),
            Self::Trace => formatter.write_str("the trace"),
            Self::Profile => formatter.write_str("the profile"),
        }
    }
}

/// An open file and its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    role: FileRole,
    identity: FileIdentity,
}

impl OpenFile {
    /// Returns `file` with its use, or `None` if it is no regular file: a snapshot replaces only those.
    pub fn new(role: FileRole, file: &File) -> Option<Self> {
        let identity = FileIdentity::of(&file.metadata().ok()?)?;
        Some(Self { role, identity })
    }

    /// Returns the file at `path` with its use, or `None` if there is no regular file.
    pub fn at(role: FileRole, path: &Path) -> Option<Self> {
        let identity = FileIdentity::at(path)?;
        Some(Self { role, identity })
    }

    /// Returns the use.
    pub fn role(&self) -> &FileRole {
        &self.role
    }

    /// Returns true if both are the same file.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// As [`new`](Self::new), for a file that another object owns.
    pub fn of_descriptor(role: FileRole, file: BorrowedFd<'_>) -> Option<Self> {
        // The duplicate is needed for its type alone.
        Self::new(role, &File::from(file.try_clone_to_owned().ok()?))
    }
}

/// Returns the use that `vm` has for `file`.
pub(crate) fn role_in(vm: &VmCore, file: &OpenFile) -> Option<FileRole> {
    OpenFiles::list(vm, &[]).role_of(file.identity, None)
}

/// Open files of a VM and its process.
pub(super) struct OpenFiles(Vec<OpenFile>);

impl OpenFiles {
    /// Lists the open files of the VM beside those of its `process`: log, metrics, trace and profile.
    pub fn list(vm: &VmCore, process: &[OpenFile]) -> Self {
        let mut files = process.to_vec();
        let mut add = |role, identity: Option<FileIdentity>| {
            files.extend(identity.map(|identity| OpenFile { role, identity }));
        };
        let boot = vm.boot_files();
        add(FileRole::Image, boot.image);
        add(FileRole::Initrd, boot.initrd);
        for device in vm.machine().devices() {
            let role = FileRole::Device(device.kind(), device.id().to_owned());
            add(role, device.file());
        }
        if let Some(file) = vm.memory_file() {
            add(FileRole::Memory, file.identity());
        }
        add(FileRole::Serial, lock(vm.machine().serial()).output().identity());
        Self(files)
    }

    /// Returns the use of the file with `identity`, unless it is `allowed`.
    pub fn role_of(&self, identity: FileIdentity, allowed: Option<&FileRole>) -> Option<FileRole> {
        let mut files = self.0.iter().filter(|file| file.identity == identity);
        let found = files.find(|file| Some(&file.role) != allowed)?;
        Some(found.role.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use scratch::Directory;
    use snapshot::file::FileIdentity;

    use super::{FileRole, OpenFile, OpenFiles};

    #[test]
    fn open_file_is_found_by_every_name() {
        let directory = Directory::new();
        for name in ["log", "memory", "other"] {
            directory.write(name, name);
        }
        let open = |role, name: &str| OpenFile::new(role, &File::open(directory.path(name)).unwrap());
        let files = OpenFiles(
            [
                open(FileRole::Log, "log").unwrap(),
                open(FileRole::Memory, "memory").unwrap(),
            ]
            .to_vec(),
        );
        let role_at = |path: &Path, allowed| files.role_of(FileIdentity::at(path)?, allowed);
        fs::hard_link(directory.path("log"), directory.path("hard")).unwrap();
        symlink("log", directory.path("soft")).unwrap();
        for name in ["log", "hard", "soft"] {
            let role = role_at(&directory.path(name), Some(&FileRole::Memory));
            assert_eq!(role, Some(FileRole::Log), "{name}");
        }
        let memory = directory.path("memory");
        assert_eq!(role_at(&memory, None), Some(FileRole::Memory));
        assert_eq!(role_at(&memory, Some(&FileRole::Memory)), None);
        for name in ["other", "missing", "."] {
            assert_eq!(role_at(&directory.path(name), None), None, "{name}");
        }
        assert_eq!(
            OpenFile::new(FileRole::Log, &File::open("/dev/null").unwrap()),
            None
        );
    }
}
