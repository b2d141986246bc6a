//! Files of the measurements of a VM: its trace and its profile. A file keeps its content until the VM has started, and is no other file
//! of the VM.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use vmm::config::{DeviceBackend, DeviceConfig, VmConfig};
use vmm::control::{Control, FileRole, LoadSnapshotParams, MEMORY_NAME, MemorySource, OpenFile, STATE_NAME};

/// Failure to write a measurement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened or written.
    #[error("cannot write {role} to {}; name a writable file", path.display())]
    Write {
        /// Measurement.
        role: FileRole,
        /// Path of the file.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The VM has another use for the file.
    #[error("cannot write {role} to {}: the file is {other}; name another file", path.display())]
    InUse {
        /// Measurement.
        role: FileRole,
        /// Path of the file.
        path: PathBuf,
        /// The other use.
        other: FileRole,
    },
}

/// File for a measurement.
pub struct MeasurementFile {
    role: FileRole,
    path: PathBuf,
    file: File,
    /// `None` if the file is no regular one.
    open: Option<OpenFile>,
}

impl MeasurementFile {
    /// Opens the file at `path`, or creates it. `others` are the other files of the VM.
    ///
    /// # Errors
    /// [`Error`] if the file cannot be opened, or is one of `others`.
    #[inline(never)]
    pub fn open(role: FileRole, path: &Path, others: &[OpenFile]) -> Result<Self, Error> {
        // Without O_TRUNC: the file may be an input of the VM.
        let opened = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let path = path.to_owned();
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(Error::Write { role, path, source }),
        };
        let open = OpenFile::new(role.clone(), &file);
        let other = open
            .iter()
            .find_map(|open| others.iter().find(|other| other.is_same_file(open)));
        match other.map(|other| other.role().clone()) {
            Some(other) => Err(Error::InUse { role, path, other }),
            None => Ok(Self {
                role,
                path,
                file,
                open,
            }),
        }
    }

    /// Returns the file for the check of others, unless it is no regular one.
    pub fn open_file(&self) -> Option<&OpenFile> {
        self.open.as_ref()
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Empties the file.
    ///
    /// # Errors
    /// [`Error`] if the VM of `control` has the file open, which may be a disk that a state file names, or if the call fails.
    #[inline(never)]
    pub fn empty(&self, control: &Control) -> Result<(), Error> {
        let Some(open) = &self.open else { return Ok(()) };
        let (role, path) = (self.role.clone(), self.path.clone());
        if let Some(other) = control.role_of(open) {
            return Err(Error::InUse { role, path, other });
        }
        let emptied = self.file.set_len(0);
        emptied.map_err(|source| Error::Write { role, path, source })
    }

    /// Writes the file by `write`.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub fn write(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
        let mut out = BufWriter::new(self.file);
        let written = write(&mut out).and_then(|()| out.flush());
        let (role, path) = (self.role, self.path);
        written.map_err(|source| Error::Write { role, path, source })
    }
}

/// Returns the files that a VM with `config` reads or writes.
#[inline(never)]
pub fn boot_files(config: &VmConfig) -> Vec<OpenFile> {
    let kernel = OpenFile::at(FileRole::Image, &config.kernel);
    let initrd = config.initrd.iter();
    let initrd = initrd.filter_map(|path| OpenFile::at(FileRole::Initrd, path));
    let disks = config.devices.iter().filter_map(|device| match device {
        DeviceConfig::Drive(drive) => {
            let role = FileRole::Device(device.kind(), drive.disk.id.clone());
            OpenFile::at(role, &drive.disk.path)
        }
        _ => None,
    });
    kernel.into_iter().chain(initrd).chain(disks).collect()
}

/// Returns the files that the load of a snapshot with `params` reads. The disks that its state file names are not known before the load.
#[inline(never)]
pub fn snapshot_files(params: &LoadSnapshotParams) -> Vec<OpenFile> {
    let mut files = vec![OpenFile::at(FileRole::State, &params.state)];
    if let MemorySource::File(path) = &params.memory {
        files.push(OpenFile::at(FileRole::Memory, path));
    }
    if let Some(directory) = &params.generations {
        let current = directory.join("current");
        files.push(OpenFile::at(FileRole::State, &current.join(STATE_NAME)));
        files.push(OpenFile::at(FileRole::Memory, &current.join(MEMORY_NAME)));
    }
    let working_set = &params.working_set;
    let record = working_set.record.as_ref().map(|record| &record.path);
    let working_set = working_set.prefetch.iter().chain(record);
    files.extend(working_set.map(|path| OpenFile::at(FileRole::WorkingSet, path)));
    files.extend(params.overrides.iter().map(|(id, backend)| match backend {
        DeviceBackend::Drive(drive) => {
            let role = FileRole::Device(backend.kind(), id.clone());
            OpenFile::at(role, &drive.path)
        }
        _ => None,
    }));
    files.extend(params.first_frames.iter().map(|frames| {
        let path = format!("/proc/self/fd/{}", frames.descriptor);
        OpenFile::at(FileRole::FirstFrames, Path::new(&path))
    }));
    files.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, hard_link};
    use std::path::Path;
    use std::slice;

    use scratch::Directory;
    use vmm::control::{FileRole, OpenFile};

    use super::{Error, MeasurementFile};

    #[test]
    fn other_file_of_vm_is_rejected_and_kept() {
        let directory = Directory::new();
        directory.write("image", "content");
        hard_link(directory.path("image"), directory.path("link")).unwrap();
        let image = OpenFile::at(FileRole::Image, &directory.path("image")).unwrap();
        let open = |path: &Path| MeasurementFile::open(FileRole::Trace, path, slice::from_ref(&image));
        for name in ["image", "link"] {
            let path = directory.path(name);
            let Err(error @ Error::InUse { .. }) = open(&path) else {
                panic!("{name} is accepted");
            };
            let text = format!(
                "cannot write the trace to {}: the file is the image; name another file",
                path.display()
            );
            assert_eq!(error.to_string(), text);
            assert_eq!(fs::read_to_string(&path).unwrap(), "content");
        }
        assert!(open(&directory.path("new")).is_ok());
        assert!(open(Path::new("/dev/null")).is_ok_and(|file| file.open_file().is_none()));
        assert!(matches!(
            open(&directory.path("missing/file")),
            Err(Error::Write { .. })
        ));
    }
}
