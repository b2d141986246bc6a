//! The program of the VMM, with checks for defects that `execve` would reject after the jail exists.

use std::env::consts::ARCH;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::sys::{self, Directory};

/// Bytes at the start of a file that the checks read. Program headers follow the ELF header in practice.
const HEAD: usize = 4096;
/// Machines of ELF (e_machine) by the name that Rust gives to them.
const MACHINES: [(&str, u16); 2] = [("x86_64", 62), ("aarch64", 183)];
/// Type of a program header with the path of the interpreter.
const PT_INTERP: u32 = 3;

const CHECK: &str = "use the program";

/// A checked program.
#[derive(Debug)]
pub struct Program {
    /// Open file.
    pub file: OwnedFd,
    /// Path without links.
    pub path: PathBuf,
    /// Name, which the jail and its default cgroup have as well.
    pub name: OsString,
    /// Size in bytes.
    pub size: usize,
    /// Permissions of the copy.
    pub mode: libc::mode_t,
    /// Path of a program that executes this one.
    interpreter: Option<OsString>,
}

impl Program {
    /// Opens the program at `path` and checks it.
    ///
    /// # Errors
    /// Fails if the file is inaccessible or no executable of this machine.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let canonical = fs::canonicalize(path).map_err(Error::path("find the program", path))?;
        let reject = |reason: &str| Error::Check {
            operation: CHECK,
            path: canonical.clone(),
            reason: reason.to_owned(),
        };
        let name = canonical
            .file_name()
            .ok_or_else(|| reject("it is a directory; name a file"))?
            .to_owned();
        // The name is a component of cgroups and of the jail.
        if name.as_bytes().len() > 200 {
            return Err(reject("its name is longer than 200 bytes; rename it"));
        }
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = sys::open(&canonical, flags).map_err(Error::path("open the program", &canonical))?;
        let status = sys::status(&file).map_err(Error::path("open the program", &canonical))?;
        if status.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(reject("it is not a regular file; name an executable file"));
        }
        // The user of the VMM owns the copy.
        if status.st_mode & 0o100 == 0 {
            return Err(reject("its owner may not execute it; run chmod u+x on it"));
        }
        let mut head = [0; HEAD];
        let length =
            sys::read_at(&file, &mut head, 0).map_err(Error::path("read the program", &canonical))?;
        let interpreter = interpreter(&head[..length]).map_err(|reason| reject(&reason))?;
        let interpreter = interpreter.map(|path| OsStr::from_bytes(path).to_owned());
        Ok(Self {
            file,
            name,
            size: usize::try_from(status.st_size).unwrap_or(0),
            mode: status.st_mode & 0o777,
            interpreter,
            path: canonical,
        })
    }

    /// Checks that the program can be executed with `root` as its root.
    ///
    /// # Errors
    /// Fails if the file system forbids it, or if the interpreter is not in the jail.
    pub fn check_in(&self, root: &Directory) -> Result<(), Error> {
        let flags = root
            .mount_flags()
            .map_err(Error::path("query the file system of", root.path()))?;
        let is_set = |flag: libc::c_ulong| flags & flag != 0;
        let reject = |reason: &str| Error::Check {
            operation: "use the jail",
            path: root.path().to_owned(),
            reason: format!("its file system is mounted {reason}; choose another --chroot-base-dir"),
        };
        if is_set(libc::ST_NOEXEC) {
            return Err(reject("noexec, which forbids programs"));
        }
        if is_set(libc::ST_NODEV) {
            return Err(reject("nodev, which forbids /dev/kvm"));
        }
        match &self.interpreter {
            Some(interpreter) if !root.has_in_root(interpreter) => Err(Error::Check {
                operation: CHECK,
                path: self.path.clone(),
                reason: format!(
                    "it requires {}, which is not in the jail; use a static executable, or copy it to {}",
                    interpreter.display(),
                    root.path().display()
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// Returns the path of the interpreter that a program needs, if it needs one. `head` is the start of the file.
///
/// # Errors
/// A reason why the kernel does not execute the file.
fn interpreter(head: &[u8]) -> Result<Option<&[u8]>, String> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let words = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = words.split(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
        let path = words.find(|word| !word.is_empty());
        return path
            .map(Some)
            .ok_or_else(|| "its first line names no interpreter".into());
    }
    let bytes = |start: usize, length: usize| head.get(start..start.checked_add(length)?);
    let half = |at| bytes(at, 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let word = |at| bytes(at, 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    // 64-bit, little-endian.
    if bytes(0, 6) != Some(b"\x7fELF\x02\x01") {
        return Err("it is neither a 64-bit ELF file nor a script; name an executable file".into());
    }
    let machine = MACHINES.iter().find(|(name, _)| *name == ARCH);
    if machine.is_some_and(|(_, number)| half(18) != Some(*number)) {
        return Err(format!("it is built for another processor; build it for {ARCH}"));
    }
    let truncated = || "its ELF header is truncated; copy it again".to_owned();
    let (size, count) = (half(54).ok_or_else(truncated)?, half(56).ok_or_else(truncated)?);
    // Offsets beyond 4 GiB are beyond the head as well.
    let table = word(32).ok_or_else(truncated)? as usize;
    for index in 0..usize::from(count) {
        let header = table + index * usize::from(size);
        if word(header).ok_or_else(truncated)? != PT_INTERP {
            continue;
        }
        let start = word(header + 8).ok_or_else(truncated)? as usize;
        let length = word(header + 32).ok_or_else(truncated)? as usize;
        let path = bytes(start, length).ok_or_else(truncated)?;
        return Ok(Some(path.strip_suffix(b"\0").unwrap_or(path)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::{MACHINES, Program, interpreter};
    use crate::sys::Directory;

    /// Returns the start of a program, with a path as its interpreter if it is not empty.
    fn elf(path: &str) -> Vec<u8> {
        let mut head = vec![0; 120];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let machine = MACHINES.iter().find(|(name, _)| *name == std::env::consts::ARCH);
        head[18..20].copy_from_slice(&machine.unwrap().1.to_le_bytes());
        head[32] = 64;
        head[54] = 56;
        head[56] = u8::from(!path.is_empty());
        head[64] = 3;
        head[72] = 120;
        head[96] = u8::try_from(path.len()).unwrap();
        head.extend_from_slice(path.as_bytes());
        head
    }

    #[test]
    fn interpreter_is_found() {
        assert_eq!(interpreter(&elf("")), Ok(None));
        assert_eq!(interpreter(&elf("/lib/ld.so\0")), Ok(Some(&b"/lib/ld.so"[..])));
        assert_eq!(interpreter(b"#! /bin/sh -e\necho\n"), Ok(Some(&b"/bin/sh"[..])));
    }

    #[test]
    fn head_that_kernel_rejects_is_rejected() {
        for (head, text) in [
            (&b""[..], "neither a 64-bit ELF file"),
            (b"\x7fELF\x01\x01", "neither a 64-bit ELF file"),
            (b"#! \nx", "names no interpreter"),
            (&elf("")[..40], "truncated"),
            (&elf("/lib/ld.so")[..100], "truncated"),
        ] {
            let message = interpreter(head).unwrap_err();
            assert!(message.contains(text), "{head:?}: {message}");
        }
        let mut foreign = elf("");
        foreign[18] = 8;
        assert!(interpreter(&foreign).unwrap_err().contains("another processor"));
    }

    fn reject(path: &Path) -> String {
        Program::open(path).unwrap_err().describe()
    }

    #[test]
    fn file_that_cannot_be_executed_is_rejected() {
        let scratch = scratch::Directory::new();
        let text = reject(&scratch.path("none"));
        assert!(
            text.starts_with("cannot find the program") && text.contains("No such file"),
            "{text}"
        );
        assert!(reject(scratch.root()).contains("not a regular file"));
        scratch.fifo("fifo");
        assert!(reject(&scratch.path("fifo")).contains("not a regular file"));
        scratch.write("plain", elf(""));
        assert!(reject(&scratch.path("plain")).contains("may not execute it"));
        scratch.write("text", "hello");
        fs::set_permissions(scratch.path("text"), Permissions::from_mode(0o755)).unwrap();
        assert!(reject(&scratch.path("text")).contains("neither a 64-bit ELF"));
    }

    #[test]
    fn name_is_that_of_the_file_behind_links() {
        let scratch = scratch::Directory::new();
        scratch.write("program", elf(""));
        fs::set_permissions(scratch.path("program"), Permissions::from_mode(0o4755)).unwrap();
        symlink("program", scratch.path("link")).unwrap();
        let program = Program::open(&scratch.path("link")).unwrap();
        assert_eq!(
            (program.name.to_str(), program.size, program.mode),
            (Some("program"), 120, 0o755)
        );
    }

    #[test]
    fn interpreter_must_be_in_jail() {
        let scratch = scratch::Directory::new();
        scratch.write("program", elf("/lib/ld.so"));
        fs::set_permissions(scratch.path("program"), Permissions::from_mode(0o755)).unwrap();
        let program = Program::open(&scratch.path("program")).unwrap();
        let root = Directory::open(scratch.root()).unwrap();
        let is_device_allowed = root.mount_flags().unwrap() & libc::ST_NODEV == 0;
        if !is_device_allowed {
            return;
        }
        let text = program.check_in(&root).unwrap_err().describe();
        assert!(
            text.contains("requires /lib/ld.so, which is not in the jail"),
            "{text}"
        );
        // A link in the jail is resolved in the jail.
        fs::create_dir(scratch.path("lib")).unwrap();
        symlink("/etc/passwd", scratch.path("lib/ld.so")).unwrap();
        assert!(program.check_in(&root).is_err());
        fs::remove_file(scratch.path("lib/ld.so")).unwrap();
        scratch.write("ld", "");
        symlink("/ld", scratch.path("lib/ld.so")).unwrap();
        program.check_in(&root).unwrap();
    }
}
