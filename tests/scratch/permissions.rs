//! File permissions for root.

use std::{io, ptr, thread};

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: two sets of 32 bits.
const VERSION: u32 = 0x2008_0522;
/// `CAP_DAC_OVERRIDE` and `CAP_DAC_READ_SEARCH`.
const OVERRIDES: u32 = 1 << 1 | 1 << 2;

#[repr(C)]
struct Header {
    version: u32,
    /// Thread, or 0 for the calling one.
    thread: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Runs `test` on a thread that file permissions bind although its user is root.
///
/// # Panics
/// Panics if `test` panics, or if the kernel rejects the capabilities.
pub fn bound_by_permissions(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            drop_overrides().unwrap();
            test();
        });
        crate::join(thread);
    });
}

/// Removes the capabilities that override permissions from this thread.
fn drop_overrides() -> io::Result<()> {
    let mut header = Header {
        version: VERSION,
        thread: 0,
    };
    let mut sets = [Sets::default(); 2];
    // SAFETY: both structures have the layout of this version, and are valid for writes.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    sets[0].effective &= !OVERRIDES;
    // SAFETY: both structures have the layout of this version, and are valid for reads.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, ptr::from_ref(&sets)) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::ErrorKind;
    use std::os::unix::fs::PermissionsExt;

    use super::bound_by_permissions;
    use crate::Directory;

    #[test]
    fn permissions_bind_root() {
        let directory = Directory::new();
        let path = directory.write("file", "content");
        fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
        bound_by_permissions(|| {
            let error = fs::read(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        });
    }
}
