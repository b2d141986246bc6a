//! Type of a file system, found without a call that may wait for it.
//!
//! statfs(2) asks the server of a network or FUSE file system, which may not answer. This module asks the kernel for the mount of the
//! file instead, by statmount(2) of Linux 6.8.

use std::ffi::CString;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// statmount(2), with the same number on all architectures.
const SYS_STATMOUNT: libc::c_long = 457;
/// `STATMOUNT_SB_BASIC` of linux/mount.h.
const STATMOUNT_SB_BASIC: u64 = 1;
/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// `mnt_id_req` of linux/mount.h, version 0.
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    mask: u64,
}

/// The first fields of `statmount` of linux/mount.h.
#[repr(C)]
struct MountStatus {
    size: u32,
    options: u32,
    mask: u64,
    device: [u32; 2],
    magic: u64,
    // The kernel rejects a buffer that is shorter than its structure.
    other: [u64; 60],
}

/// Returns true if the file system of `directory` has no disk. Returns false if the kernel does not know the path without asking a
/// server, or does not support statmount(2).
pub fn is_in_memory(directory: &Path) -> bool {
    open_cached(directory)
        .and_then(|directory| magic(&directory))
        .is_some_and(is_memory)
}

fn is_memory(magic: i64) -> bool {
    magic == libc::TMPFS_MAGIC || magic == RAMFS_MAGIC
}

/// Opens `directory` as a path, from names that the kernel has cached.
fn open_cached(directory: &Path) -> Option<OwnedFd> {
    let path = CString::new(directory.as_os_str().as_bytes()).ok()?;
    // SAFETY: the structure consists of integers, for which zero is valid.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .unsigned_abs()
        .into();
    how.resolve = libc::RESOLVE_CACHED;
    // SAFETY: `path` is a C string, and `how` is valid for reads of its size.
    let file = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    let file = i32::try_from(file).ok().filter(|file| *file >= 0)?;
    // SAFETY: openat2 has just returned this descriptor, which has no other owner.
    Some(unsafe { OwnedFd::from_raw_fd(file) })
}

/// Returns the magic number of the file system of `file`.
fn magic(file: &impl AsRawFd) -> Option<i64> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // AT_STATX_DONT_SYNC: the attributes of the server are not needed.
    // SAFETY: the path is a C string, and `found` is valid for writes of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC,
            libc::STATX_MNT_ID_UNIQUE,
            found.as_mut_ptr(),
        )
    };
    // SAFETY: the structure was zeroed and consists of integers, for which any bit pattern is valid.
    let found = unsafe { found.assume_init() };
    if result != 0 || found.stx_mask & libc::STATX_MNT_ID_UNIQUE == 0 {
        return None;
    }
    let request = MountRequest {
        size: 24,
        spare: 0,
        mount: found.stx_mnt_id,
        mask: STATMOUNT_SB_BASIC,
    };
    let mut status = MaybeUninit::<MountStatus>::zeroed();
    // SAFETY: `request` is valid for reads of its size, and `status` for writes of its size.
    let result = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            status.as_mut_ptr(),
            size_of::<MountStatus>(),
            0,
        )
    };
    // SAFETY: as above.
    let status = unsafe { status.assume_init() };
    if result != 0 || status.mask & STATMOUNT_SB_BASIC == 0 {
        return None;
    }
    i64::try_from(status.magic).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::{is_in_memory, magic};

    #[test]
    fn memory_and_processes_have_their_types() {
        let Some(found) = magic(&File::open("/proc").unwrap()) else {
            return scratch::skip("this kernel has no statmount(2)", "Linux 6.8");
        };
        assert_eq!(found, libc::PROC_SUPER_MAGIC);
        for path in ["/proc", "/nowhere", "/proc/version"] {
            assert!(!is_in_memory(Path::new(path)), "{path}");
        }
        let shared = Path::new("/dev/shm");
        let _ = shared.metadata();
        if magic(&File::open(shared).unwrap()) == Some(libc::TMPFS_MAGIC) {
            assert!(is_in_memory(shared));
        }
    }
}
