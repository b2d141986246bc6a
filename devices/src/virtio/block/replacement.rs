//! Update of a disk in two steps: the first calls the file system, which may not answer, and needs no lock of the device.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, DiskFile, DiskOptions, Error, measure};
use super::stamp::DiskStamp;
use crate::medium::Medium;

/// The open file of a disk, without the device.
#[derive(Clone, Debug)]
pub struct DiskHandle {
    file: Arc<DiskFile>,
    path: PathBuf,
    options: DiskOptions,
    is_locked: bool,
}

/// New file or size of a disk, before it is applied. Afterwards it owns the old file, which it closes when it is dropped.
#[derive(Debug)]
pub struct DiskUpdate(Change);

#[derive(Debug)]
enum Change {
    Length { path: PathBuf, length: u64 },
    File(Disk),
}

impl DiskHandle {
    /// Returns the path at the last opening.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if the disk rejects writes.
    pub fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Returns true if a server or another process provides the file: each call may wait for it.
    pub fn is_remote(&self) -> bool {
        self.file.medium == Medium::Remote
    }

    /// Writes the disk through to its medium. The call waits for the file system.
    ///
    /// # Errors
    /// Fails if `fdatasync` fails.
    pub fn sync(&self) -> io::Result<()> {
        self.file.file.sync_data()
    }

    /// Returns length and modification time of the file. The call waits for the file system.
    ///
    /// # Errors
    /// Fails if the file system cannot inspect the file.
    pub fn stamp(&self) -> io::Result<DiskStamp> {
        DiskStamp::of(&self.file.file)
    }

    /// Opens the file at `path` with the same options, or measures the open file without a path. The same file keeps its lock;
    /// another file is locked before the old one is unlocked. The replacement of an unlocked disk stays unlocked. The call waits for
    /// the file system.
    ///
    /// # Errors
    /// As [`Disk::open`]. Without a path, [`Error::Empty`], [`Error::Size`] or [`Error::System`].
    pub fn update(&self, path: Option<&Path>) -> Result<DiskUpdate, Error> {
        let change = match path {
            Some(path) if !self.is_at(path) => {
                let mut disk = self.open(path)?;
                disk.open_for_uring();
                Change::File(disk)
            }
            _ => Change::Length {
                path: path.unwrap_or(&self.path).to_owned(),
                length: measure(&self.path, &self.file.file, self.options)?,
            },
        };
        Ok(DiskUpdate(change))
    }

    fn open(&self, path: &Path) -> Result<Disk, Error> {
        if self.is_locked {
            return Disk::open(path, self.options);
        }
        let disk = Disk::open_unlocked(path, self.options)?;
        disk.check_lock()?;
        Ok(disk)
    }

    fn is_at(&self, path: &Path) -> bool {
        let inode = &self.file.inode;
        path.metadata()
            .is_ok_and(|other| (other.dev(), other.ino()) == (inode.dev(), inode.ino()))
    }
}

impl Disk {
    /// Returns the open file, to update the disk without the lock of its device.
    pub fn handle(&self) -> DiskHandle {
        DiskHandle {
            file: self.file.clone(),
            path: self.path.clone(),
            options: self.options,
            is_locked: self.is_locked,
        }
    }

    /// Applies `update`, which its caller drops without the lock of the device: the last close of a file may wait for its server.
    /// Returns true if the disk is another file now.
    pub(super) fn apply(&mut self, update: &mut DiskUpdate) -> bool {
        match &mut update.0 {
            Change::Length { path, length } => {
                self.set_length(*length);
                std::mem::swap(&mut self.path, path);
                false
            }
            Change::File(disk) => {
                std::mem::swap(self, disk);
                true
            }
        }
    }
}
