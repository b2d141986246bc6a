//! Undo of the steps, after one of them failed.

use std::ffi::{CString, OsString};
use std::io;
use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

use crate::error::Error;
use crate::sys::{self, Directory};

/// Attempts to remove a cgroup, and the delay between them: a process leaves its cgroup shortly after its end.
const CGROUP_ATTEMPTS: u32 = 1000;
const CGROUP_DELAY: Duration = Duration::from_millis(1);

/// Undoes one call.
#[derive(Debug)]
enum Entry {
    /// Remove this file.
    File(Rc<Directory>, OsString),
    /// Remove this empty directory.
    Directory(Rc<Directory>, OsString),
    /// Remove this cgroup of the VM.
    Cgroup(Rc<Directory>, OsString),
    /// Remove this cgroup above, unless another VM uses it.
    ParentCgroup(Rc<Directory>, OsString),
    /// Restore owner and mode of this directory.
    Attributes(Rc<Directory>, Box<sys::Status>),
    /// Detach this mount.
    Mount(CString),
    /// Move the process to the cgroup of this file of processes.
    Member(std::os::fd::OwnedFd),
}

/// List of the calls to undo, in their order.
#[derive(Debug, Default)]
pub struct Undo(Vec<Entry>);

impl Undo {
    /// Notes that the file `name` is new.
    pub fn add_file(&mut self, directory: &Rc<Directory>, name: impl Into<OsString>) {
        self.0.push(Entry::File(Rc::clone(directory), name.into()));
    }

    /// Notes that the directory `name` is new.
    pub fn add_directory(&mut self, directory: &Rc<Directory>, name: impl Into<OsString>) {
        self.0.push(Entry::Directory(Rc::clone(directory), name.into()));
    }

    /// Notes that the cgroup `name` above that of the VM is new.
    pub fn add_parent_cgroup(&mut self, directory: &Rc<Directory>, name: impl Into<OsString>) {
        self.0
            .push(Entry::ParentCgroup(Rc::clone(directory), name.into()));
    }

    /// Notes that the cgroup `name` of the VM is new.
    pub fn add_cgroup(&mut self, directory: &Rc<Directory>, name: impl Into<OsString>) {
        self.0.push(Entry::Cgroup(Rc::clone(directory), name.into()));
    }

    /// Notes owner and mode of a directory before their change.
    pub fn add_attributes(&mut self, directory: &Rc<Directory>, status: sys::Status) {
        let status = Box::new(status);
        self.0.push(Entry::Attributes(Rc::clone(directory), status));
    }

    /// Notes that a mount at `path` is new.
    pub fn add_mount(&mut self, path: CString) {
        self.0.push(Entry::Mount(path));
    }

    /// Forgets the newest mount: it became the root.
    pub fn forget_mount(&mut self) {
        self.0.pop_if(|entry| matches!(entry, Entry::Mount(_)));
    }

    /// Notes that the process has left the cgroup whose file of processes is `processes`.
    pub fn add_member(&mut self, processes: std::os::fd::OwnedFd) {
        self.0.push(Entry::Member(processes));
    }

    /// Undoes all calls, the newest first. Returns the failures.
    pub fn run(&mut self) -> Vec<Error> {
        let entries = self.0.drain(..).rev();
        entries.filter_map(|entry| entry.undo().err()).collect()
    }
}

impl Entry {
    fn undo(self) -> Result<(), Error> {
        let (operation, path, result) = match self {
            Self::File(directory, name) => ("remove", directory.join(&name), directory.remove(&name, false)),
            Self::Directory(directory, name) => {
                ("remove", directory.join(&name), directory.remove(&name, true))
            }
            Self::Cgroup(directory, name) => (
                "remove the cgroup",
                directory.join(&name),
                remove_cgroup(&directory, &name),
            ),
            Self::ParentCgroup(directory, name) => {
                let result = match directory.remove(&name, true) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
                    result => result,
                };
                ("remove the cgroup", directory.join(&name), result)
            }
            Self::Attributes(directory, status) => (
                "restore owner and mode of",
                directory.path().to_owned(),
                directory.set_attributes(status.st_uid, status.st_gid, Some(status.st_mode & 0o7777)),
            ),
            Self::Mount(path) => {
                let result = sys::unmount(&path);
                ("unmount", path.to_string_lossy().into_owned().into(), result)
            }
            Self::Member(processes) => {
                return sys::write(&processes, b"0").map_err(Error::call("leave the cgroup"));
            }
        };
        match result {
            // A step that failed may not have created it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Another process has put its own files there.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(Error::path(operation, path)),
        }
    }
}

/// Removes a cgroup, whose last processes may be ending.
fn remove_cgroup(directory: &Directory, name: &OsString) -> io::Result<()> {
    let mut result = directory.remove(name, true);
    for _ in 0..CGROUP_ATTEMPTS {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => sleep(CGROUP_DELAY),
            _ => break,
        }
        result = directory.remove(name, true);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::rc::Rc;

    use super::Undo;
    use crate::sys::Directory;

    #[test]
    fn new_files_are_removed_and_others_stay() {
        let scratch = scratch::Directory::new();
        scratch.write("before", "");
        let root = Rc::new(Directory::open(scratch.root()).unwrap());
        let mut undo = Undo::default();
        for name in ["a", "shared"] {
            root.create_directory(name.as_ref(), 0o700).unwrap();
            undo.add_directory(&root, name);
        }
        let inner = Rc::new(root.open_directory("a".as_ref()).unwrap());
        scratch.write("a/file", "");
        undo.add_file(&inner, "file");
        undo.add_file(&inner, "not created");
        scratch.write("shared/of another process", "");
        undo.add_attributes(&root, root.status().unwrap());
        fs::set_permissions(scratch.root(), fs::Permissions::from_mode(0o755)).unwrap();
        root.set_attributes(u32::MAX, u32::MAX, Some(0o711)).unwrap();
        assert!(undo.run().is_empty());
        assert_eq!(scratch.names(), ["before", "shared"]);
        // Only once.
        assert!(undo.run().is_empty());
    }

    #[test]
    fn attributes_are_restored() {
        let scratch = scratch::Directory::new();
        fs::set_permissions(scratch.root(), fs::Permissions::from_mode(0o751)).unwrap();
        let root = Rc::new(Directory::open(scratch.root()).unwrap());
        let mut undo = Undo::default();
        undo.add_attributes(&root, root.status().unwrap());
        root.set_attributes(u32::MAX, u32::MAX, Some(0o700)).unwrap();
        assert!(undo.run().is_empty());
        let mode = fs::metadata(scratch.root()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751);
    }
}
