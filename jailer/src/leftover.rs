//! Files of an earlier VMM in a jail, and its processes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::contents::{DEVICES, USERFAULTFD, pid_file, pid_file_draft, program_draft};
use crate::error::Error;
use crate::sys::{self, Directory};

const OPERATION: &str = "use the jail";

/// Checks that no process runs in the jail `root`, which exists, and that it holds no file of one that has ended. With `force`,
/// removes such files. `program` is the name of the VMM's program, which stays, as do all files of the user.
///
/// # Errors
/// Fails if a process has the jail as its root, or if there are such files without `force`.
pub fn check(root: &Directory, program: &OsStr, force: bool) -> Result<(), Error> {
    let reject = |reason: String| Error::Check {
        operation: OPERATION,
        path: root.path().to_owned(),
        reason,
    };
    // Always: a hostile process may have removed the files.
    if let Some(process) = find_process(root)? {
        return Err(reject(format!(
            "process {process} runs in it; choose another --id, or end that process first"
        )));
    }
    let pid_file = pid_file(program);
    for (path, name) in files(program) {
        let Some(directory) = open_below(root, path)? else {
            continue;
        };
        let shown = directory.join(&name);
        match directory.status_of(&name) {
            Ok(_) if force => directory
                .remove(&name, false)
                .map_err(Error::path("remove the file of an earlier VMM", shown))?,
            // Drafts exist only if a jailer was killed.
            Ok(_) => {
                let ended = match root.read(&pid_file) {
                    Ok(pid) if pid.parse::<u32>().is_ok() => format!("process {pid}"),
                    _ => "one".to_owned(),
                };
                return Err(reject(format!(
                    "it holds {} of an earlier VMM, {ended}, which has ended; add --force to remove such files",
                    shown.strip_prefix(root.path()).unwrap_or(&shown).display()
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::path("look for files of an earlier VMM:", shown)(error)),
        }
    }
    if force && let Some(run) = open_below(root, "run")? {
        remove_socket(&run, "firecracker.socket".as_ref())?;
    }
    Ok(())
}

/// Returns the files that a jailer creates: directory and name.
fn files(program: &OsStr) -> impl Iterator<Item = (&'static str, OsString)> {
    let devices = DEVICES
        .iter()
        .map(|device| (device.directory, device.name.into()));
    let own = [pid_file(program), pid_file_draft(program), program_draft(program)];
    let own = own.map(|name| ("", name));
    devices.chain([("dev", USERFAULTFD.into())]).chain(own)
}

/// Opens the directory `path` below `root` without following links. Returns none if it does not exist.
fn open_below(root: &Directory, path: &str) -> Result<Option<Directory>, Error> {
    let open = Error::path("open the directory", root.join(path));
    let parts = path.split('/').filter(|part| !part.is_empty());
    let mut directory = match root.open_directory(".".as_ref()) {
        Ok(directory) => directory,
        Err(error) => return Err(open(error)),
    };
    for part in parts {
        directory = match directory.open_directory(part.as_ref()) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(open(error)),
        };
    }
    Ok(Some(directory))
}

/// Removes the socket `name`, and no other kind of file.
fn remove_socket(directory: &Directory, name: &OsStr) -> Result<(), Error> {
    let is_socket = directory
        .status_of(name)
        .is_ok_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFSOCK);
    if !is_socket {
        return Ok(());
    }
    let result = directory.remove(name, false);
    result.map_err(Error::path(
        "remove the socket of an earlier VMM",
        directory.join(name),
    ))
}

/// Returns the PID of a process with `root` as its root. A PID in a file proves nothing: the kernel reuses PIDs, and the jail belongs
/// to the VMM.
fn find_process(root: &Directory) -> Result<Option<u32>, Error> {
    let status = root.status().map_err(Error::path("query", root.path()))?;
    let processes = fs::read_dir("/proc").map_err(Error::path("list the processes in", "/proc"))?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_root = |other: sys::Status| (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino);
    let is_inside = |pid: &u32| match sys::status_of(format!("/proc/{pid}/root")) {
        Ok(other) => is_root(other),
        // The first thread has ended. A hostile process may go on with others.
        Err(_) => threads(*pid).any(|root| sys::status_of(root).is_ok_and(is_root)),
    };
    Ok(pids.into_iter().find(is_inside))
}

/// Returns the paths of the roots of all threads of `pid`.
fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.map(|task| task.path().join("root"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::check;
    use crate::sys::Directory;

    #[test]
    fn files_of_ended_process_are_named_or_removed() {
        let scratch = scratch::Directory::new();
        let root = Directory::open(scratch.root()).unwrap();
        let check = |force| check(&root, "mayfly".as_ref(), force).map_err(|error| error.describe());
        scratch.write("kernel", "of the user");
        scratch.write("mayfly", "of the user");
        check(false).unwrap();
        fs::create_dir_all(scratch.path("dev/net")).unwrap();
        fs::create_dir_all(scratch.path("run")).unwrap();
        check(false).unwrap();
        scratch.write("mayfly.pid", "1234");
        scratch.write("dev/net/tun", "");
        drop(UnixListener::bind(scratch.path("run/firecracker.socket")).unwrap());
        let text = check(false).unwrap_err();
        assert!(
            text.contains("holds dev/net/tun of an earlier VMM, process 1234, which has ended; add --force"),
            "{text}"
        );
        check(true).unwrap();
        assert_eq!(scratch.names(), ["dev", "kernel", "mayfly", "run"]);
        assert!(fs::read_dir(scratch.path("dev/net")).unwrap().next().is_none());
        assert!(fs::read_dir(scratch.path("run")).unwrap().next().is_none());
        check(false).unwrap();
    }

    #[test]
    fn links_are_not_followed() {
        let scratch = scratch::Directory::new();
        let outside = scratch::Directory::new();
        outside.write("kvm", "");
        let root = Directory::open(scratch.root()).unwrap();
        symlink(outside.root(), scratch.path("dev")).unwrap();
        let text = check(&root, "mayfly".as_ref(), true).unwrap_err().describe();
        assert!(text.contains("cannot open the directory"), "{text}");
        assert_eq!(outside.names(), ["kvm"]);
    }

    #[test]
    fn running_process_is_named() {
        let root = Directory::open("/").unwrap();
        let text = check(&root, "mayfly".as_ref(), true).unwrap_err().describe();
        assert!(text.starts_with("cannot use the jail /: process "), "{text}");
        assert!(text.contains(" runs in it; choose another --id"), "{text}");
    }
}
