//! Facts about the processor in sysfs that a VMM on aarch64 reads: Firecracker's jailer copies them.

use std::env::consts::ARCH;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::rc::Rc;

use crate::error::Error;
use crate::jail::{Jail, make_directory};
use crate::sys::{self, Directory};
use crate::undo::Undo;

/// Directory of the first processor.
const PROCESSOR: &str = "sys/devices/system/cpu/cpu0";
/// Maximum number of caches of a processor.
const MAX_CACHES: usize = 8;
/// Files of a cache.
const CACHE_FILES: [&str; 6] = [
    "size",
    "level",
    "type",
    "shared_cpu_map",
    "coherency_line_size",
    "number_of_sets",
];
/// Mode of the directories, which belong to root.
const MODE: libc::mode_t = 0o755;

/// Copies the caches and the identification of the first processor to the jail, on aarch64.
///
/// # Errors
/// Fails if a file cannot be written.
pub fn copy(jail: &Jail, owner: (u32, u32), undo: &mut Undo) -> Result<(), Error> {
    if ARCH != "aarch64" {
        return Ok(());
    }
    copy_from(Path::new("/"), &jail.root, owner, undo)
}

fn copy_from(host: &Path, root: &Rc<Directory>, owner: (u32, u32), undo: &mut Undo) -> Result<(), Error> {
    for cache in 0..MAX_CACHES {
        let path = format!("{PROCESSOR}/cache/index{cache}");
        if !copy_files(host, root, &path, &CACHE_FILES, (owner, undo))? {
            break;
        }
    }
    let path = format!("{PROCESSOR}/regs/identification");
    copy_files(host, root, &path, &["midr_el1"], (owner, undo)).map(drop)
}

/// Copies the `names` that exist in the directory `path`. Returns false if the directory does not exist.
fn copy_files(
    host: &Path,
    root: &Rc<Directory>,
    path: &str,
    names: &[&str],
    ((uid, gid), undo): ((u32, u32), &mut Undo),
) -> Result<bool, Error> {
    let source = match Directory::open(host.join(path)) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::path("open", host.join(path))(error)),
    };
    let mut target = Rc::clone(root);
    for part in path.split('/') {
        target = make_directory(&target, part.as_ref(), MODE, undo)?.0;
    }
    for name in names.iter().map(OsStr::new) {
        let text = match source.read(name) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::path("read", source.join(name))(error)),
        };
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = match target.open_file(name, flags, 0o644) {
            Ok(file) => file,
            // A file of the user, or of an earlier VMM on this host.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(Error::path("create", target.join(name))(error)),
        };
        undo.add_file(&target, name);
        let result = sys::write(&file, text.as_bytes()).and_then(|()| sys::set_owner(&file, uid, gid));
        result.map_err(Error::path("write", target.join(name)))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::rc::Rc;

    use super::copy_from;
    use crate::sys::Directory;
    use crate::undo::Undo;

    #[test]
    fn caches_and_identification_are_copied_and_undone() {
        let (host, jail) = (scratch::Directory::new(), scratch::Directory::new());
        let cpu = "sys/devices/system/cpu/cpu0";
        for directory in [
            "cache/index0",
            "cache/index1",
            "cache/index3",
            "regs/identification",
        ] {
            fs::create_dir_all(host.path(&format!("{cpu}/{directory}"))).unwrap();
        }
        host.write(&format!("{cpu}/cache/index0/size"), "32K\n");
        host.write(&format!("{cpu}/cache/index0/uevent"), "");
        host.write(&format!("{cpu}/cache/index1/level"), "2\n");
        host.write(&format!("{cpu}/regs/identification/midr_el1"), "0x41\n");
        let root = Rc::new(Directory::open(jail.root()).unwrap());
        let mut undo = Undo::default();
        copy_from(host.root(), &root, (u32::MAX, u32::MAX), &mut undo).unwrap();
        let read = |path: &str| fs::read_to_string(jail.path(&format!("{cpu}/{path}"))).ok();
        assert_eq!(read("cache/index0/size").as_deref(), Some("32K\n"));
        assert_eq!(read("cache/index1/level").as_deref(), Some("2\n"));
        assert_eq!(read("regs/identification/midr_el1").as_deref(), Some("0x41\n"));
        assert_eq!(read("cache/index0/uevent"), None);
        assert!(!jail.path(&format!("{cpu}/cache/index3")).exists());
        assert!(undo.run().is_empty());
        assert!(jail.names().is_empty());
    }
}
