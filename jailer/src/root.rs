//! The jail as the root of a mount namespace.

use std::path::Path;

use crate::error::Error;
use crate::sys;
use crate::undo::Undo;

/// Gives the process a mount namespace whose only mount is the jail at `path`, and makes it root and working directory.
///
/// # Errors
/// Fails if one of the system calls fails.
pub fn enter(path: &Path, undo: &mut Undo) -> Result<(), Error> {
    let target = sys::c_string(path).map_err(Error::path("mount the jail", path))?;
    sys::unshare_mounts().map_err(Error::call("create a mount namespace"))?;
    // pivot_root rejects shared mounts, and mounts of the jail must not appear on the host.
    let flags = libc::MS_SLAVE | libc::MS_REC;
    sys::mount(None, c"/", flags).map_err(Error::path("make a slave mount of", "/"))?;
    // pivot_root requires a mount.
    let flags = libc::MS_BIND | libc::MS_REC;
    sys::mount(Some(&target), &target, flags).map_err(Error::path("mount the jail", path))?;
    undo.add_mount(target.clone());
    // By path: a descriptor from before refers to the directory below the new mount.
    sys::change_directory(&target).map_err(Error::path("enter the jail", path))?;
    sys::pivot_root().map_err(Error::path("make the root of the process of the jail", path))?;
    undo.forget_mount();
    // The old root lies on top of the new one (pivot_root(2)): no directory is needed for it.
    sys::unmount(c".").map_err(Error::path("unmount the old root over", path))?;
    sys::change_directory(c"/").map_err(Error::path("enter the root of the jail", path))
}
