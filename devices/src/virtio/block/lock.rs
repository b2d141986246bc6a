//! Lock of a disk, and the process that holds a conflicting one.
//!
//! The lock is an open file description lock on the whole file. The kernel knows no process that holds it: fcntl(2) returns the
//! process -1. But proc(5) lists it under the descriptor that owns it, in `/proc/PID/fdinfo`. A process without a permission for
//! these files finds no holder.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::fs::MetadataExt;
use std::process;

use libc::c_int;

/// Maximum number of descriptors in the search for the holder, of about 4 us each: a host may have very many. No guest waits for it: it
/// runs before the start, before the first resume, or on the thread that opens a file.
const MAX_DESCRIPTORS: usize = 20_000;

/// Access that a lock leaves to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockKind {
    /// None.
    Exclusive,
    /// That of others with a shared lock.
    Shared,
}

/// Holder of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process, for another drive.
    ThisProcess,
    /// Another process.
    Process {
        /// Its number.
        id: u32,
        /// Its name.
        name: Option<String>,
    },
    /// A process that cannot be found.
    Unknown,
}

impl Holder {
    fn process(id: u32) -> Self {
        if id == process::id() {
            return Self::ThisProcess;
        }
        let name = fs::read_to_string(format!("/proc/{id}/comm")).ok();
        let name = name.map(|name| name.trim_end().escape_debug().to_string());
        Self::Process { id, name }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisProcess => f.write_str("another drive of this VM"),
            Self::Process { id, name: None } => write!(f, "process {id}"),
            Self::Process { id, name: Some(name) } => write!(f, "process {id} ({name})"),
            Self::Unknown => f.write_str("another process"),
        }
    }
}

/// Failure to lock a file.
#[derive(Debug)]
pub(super) enum Error {
    /// Another open file description has a conflicting lock.
    Held(Holder),
    /// The kernel rejects the call. Some network file systems have no locks.
    System(io::Error),
}

impl LockKind {
    /// Locks `file` until it is closed or [unlocked](unlock).
    ///
    /// # Errors
    /// [`Error`]
    pub(super) fn lock(self, file: &File) -> Result<(), Error> {
        match control(file, libc::F_OFD_SETLK, &mut self.request()) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(Error::Held(self.holder(file)))
            }
            result => result.map_err(Error::System),
        }
    }

    /// Fails if [`lock`](Self::lock) would fail now, and locks nothing.
    ///
    /// # Errors
    /// [`Error`]
    pub(super) fn check(self, file: &File) -> Result<(), Error> {
        let mut request = self.request();
        control(file, libc::F_OFD_GETLK, &mut request).map_err(Error::System)?;
        match is_free(&request) {
            true => Ok(()),
            false => Err(Error::Held(self.holder(file))),
        }
    }

    /// Returns the holder of a conflicting lock on `file`.
    fn holder(self, file: &File) -> Holder {
        let mut request = self.request();
        if control(file, libc::F_OFD_GETLK, &mut request).is_ok()
            && !is_free(&request)
            && let Ok(id @ 1..) = u32::try_from(request.l_pid)
        {
            // A lock of the other kind, which belongs to a process.
            return Holder::process(id);
        }
        self.search(file).map_or(Holder::Unknown, Holder::process)
    }

    /// Returns the process that has a conflicting lock on `file`, as far as this process may see the descriptors of others.
    fn search(self, file: &File) -> Option<u32> {
        let inode = inode_name(file)?;
        let mut left = MAX_DESCRIPTORS;
        let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.parse::<u32>().ok()
        });
        let mut processes: Vec<_> = processes.collect();
        processes.sort_unstable();
        // This process first. Then the latest: VMs start after the services of the host.
        let own = process::id();
        let others = processes.into_iter().rev().filter(|id| *id != own);
        std::iter::once(own).chain(others).find(|id| {
            let Ok(descriptors) = fs::read_dir(format!("/proc/{id}/fdinfo")) else {
                return false;
            };
            descriptors
                .filter_map(Result::ok)
                .take_while(|_| {
                    let has_left = left > 0;
                    left -= usize::from(has_left);
                    has_left
                })
                .any(|entry| {
                    fs::read_to_string(entry.path()).is_ok_and(|text| self.is_blocked_by(&text, &inode))
                })
        })
    }

    /// Returns true if the `fdinfo` of a descriptor has a conflicting lock on `inode`.
    fn is_blocked_by(self, fdinfo: &str, inode: &str) -> bool {
        let locks = fdinfo.lines().filter_map(|line| line.strip_prefix("lock:"));
        let mut locks = locks.map(|lock| lock.split_whitespace().collect::<Vec<_>>());
        locks.any(|lock| match *lock {
            [_, "OFDLCK", _, access, _, of, ..] => {
                of == inode && (self == Self::Exclusive || access == "WRITE")
            }
            _ => false,
        })
    }

    fn request(self) -> libc::flock {
        request(match self {
            Self::Exclusive => libc::F_WRLCK,
            Self::Shared => libc::F_RDLCK,
        })
    }
}

/// Removes the lock of `file`.
pub(super) fn unlock(file: &File) {
    // Cannot fail for a file that could be locked.
    let _ = control(file, libc::F_OFD_SETLK, &mut request(libc::F_UNLCK));
}

fn is_free(answer: &libc::flock) -> bool {
    c_int::from(answer.l_type) == libc::F_UNLCK
}

fn request(kind: c_int) -> libc::flock {
    // A length of 0 covers the file to any later end.
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn control(file: &File, command: c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open, and `lock` is the structure that the command reads and writes.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *lock) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns the name of the inode of `file` in a list of locks: device and number. Both may differ from those of stat(2), for example
/// on Btrfs and overlayfs.
fn inode_name(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let field = |name: &str| -> Option<&str> {
        let mut lines = fdinfo.lines();
        lines.find_map(|line| line.strip_prefix(name)).map(str::trim)
    };
    let inode = field("ino:").map_or_else(|| metadata.st_ino().to_string(), str::to_owned);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (major, minor) = field("mnt_id:")
        .and_then(|mount| device_of_mount(&mounts, mount))
        .unwrap_or_else(|| (libc::major(metadata.st_dev()), libc::minor(metadata.st_dev())));
    Some(format!("{major:02x}:{minor:02x}:{inode}"))
}

/// Returns major and minor number of the file system that is mounted as `mount`, in the text of `/proc/self/mountinfo`.
fn device_of_mount(mounts: &str, mount: &str) -> Option<(u32, u32)> {
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let mut fields = lines.find(|fields| fields.clone().next() == Some(mount))?;
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::{Error, Holder, LockKind, device_of_mount, inode_name, unlock};
    use scratch::Temporary;

    fn open(scratch: &Temporary) -> std::fs::File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(scratch.path()).unwrap()
    }

    #[test]
    fn conflicting_lock_is_found_in_descriptors() {
        let scratch = Temporary::with(&[0; 512]);
        let (owner, other) = (open(&scratch), open(&scratch));
        let is_held = |kind: LockKind| {
            let (checked, locked) = (kind.check(&other), kind.lock(&other));
            unlock(&other);
            let held = |result| match result {
                Ok(()) => false,
                Err(Error::Held(holder)) => {
                    assert_eq!(holder, Holder::ThisProcess);
                    true
                }
                Err(Error::System(error)) => panic!("{error}"),
            };
            let results = (held(checked), held(locked));
            assert_eq!(results.0, results.1);
            results.0
        };
        LockKind::Exclusive.lock(&owner).unwrap();
        assert!(is_held(LockKind::Exclusive) && is_held(LockKind::Shared));
        LockKind::Shared.lock(&owner).unwrap();
        assert!(is_held(LockKind::Exclusive) && !is_held(LockKind::Shared));
        unlock(&owner);
        assert!(!is_held(LockKind::Exclusive));
    }

    #[test]
    fn lock_of_process_is_named() {
        let scratch = Temporary::with(&[0; 512]);
        let (owner, other) = (open(&scratch), open(&scratch));
        let name = inode_name(&owner).unwrap();
        let line = |access: &str, inode: &str| {
            format!("pos:\t0\nlock:\t1: OFDLCK ADVISORY  {access} -1 {inode} 0 EOF\n")
        };
        assert!(LockKind::Exclusive.is_blocked_by(&line("READ", &name), &name));
        assert!(LockKind::Shared.is_blocked_by(&line("WRITE", &name), &name));
        assert!(!LockKind::Shared.is_blocked_by(&line("READ", &name), &name));
        assert!(!LockKind::Exclusive.is_blocked_by(&line("WRITE", "00:00:0"), &name));
        // A classic lock belongs to a process, and conflicts with that of a file.
        let mut lock = super::request(libc::F_WRLCK);
        super::control(&owner, libc::F_SETLK, &mut lock).unwrap();
        assert!(matches!(
            LockKind::Exclusive.lock(&other),
            Err(Error::Held(Holder::ThisProcess))
        ));
    }

    #[test]
    fn mount_has_device() {
        let mounts =
            "36 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw\n37 35 0:41 / /x rw - btrfs /dev/vda rw\n";
        assert_eq!(device_of_mount(mounts, "37"), Some((0, 41)));
        assert_eq!(device_of_mount(mounts, "3"), None);
    }

    #[test]
    fn holder_has_name() {
        let process = |name: Option<&str>| Holder::Process {
            id: 7,
            name: name.map(str::to_owned),
        };
        assert_eq!(process(Some("mayfly")).to_string(), "process 7 (mayfly)");
        assert_eq!(process(None).to_string(), "process 7");
        assert!(matches!(Holder::process(1), Holder::Process { id: 1, .. }));
    }
}
