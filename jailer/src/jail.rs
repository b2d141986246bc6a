//! The directory tree of a jail.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::args::Args;
use crate::contents::{DEVICES, Device, MISC, USERFAULTFD, pid_file, pid_file_draft, program_draft};
use crate::error::Error;
use crate::leftover;
use crate::program::Program;
use crate::report::warn;
use crate::retry;
use crate::sys::{self, Directory};
use crate::undo::Undo;

/// Mode of directories above the root of the jail, which belong to root.
const OUTER_MODE: libc::mode_t = 0o755;
/// Mode of the root of the jail and of directories in it, which belong to the user of the VMM.
const INNER_MODE: libc::mode_t = 0o700;

/// A locked jail.
#[derive(Debug)]
pub struct Jail {
    /// Directory of this ID, which belongs to root and has the lock. `execve` releases it.
    _id: Rc<Directory>,
    /// Root of the jail.
    pub root: Rc<Directory>,
    /// The root existed before.
    is_old: bool,
    uid: u32,
    gid: u32,
    /// The copy of the program has a temporary name.
    has_draft: bool,
}

impl Jail {
    /// Creates the missing directories down to the root of the jail, and locks it. Removes the files of an earlier VMM if `--force`
    /// is given.
    ///
    /// # Errors
    /// Fails if a directory cannot be created, or if the jail is in use.
    pub fn create(args: &Args, program: &OsStr, undo: &mut Undo) -> Result<Self, Error> {
        let base = std::fs::canonicalize(&args.base);
        let base = base.map_err(Error::path("find the directory of all jails", &args.base))?;
        let base = Directory::open(base);
        let base = Rc::new(base.map_err(Error::path("open the directory of all jails", &args.base))?);
        retry::create(
            undo,
            |undo| drop(undo.run()),
            |undo| Self::create_below(&base, args, program, undo),
        )
    }

    fn create_below(
        base: &Rc<Directory>,
        args: &Args,
        program: &OsStr,
        undo: &mut Undo,
    ) -> Result<Self, Error> {
        let (above, _) = make_directory(base, program, OUTER_MODE, undo)?;
        let (id, _) = make_directory(&above, args.id.as_ref(), OUTER_MODE, undo)?;
        let is_locked = id.try_lock().map_err(Error::path("lock", id.path()))?;
        if !is_locked {
            return Err(Error::Check {
                operation: "use the jail",
                path: id.path().to_owned(),
                reason: "another jailer starts a VMM in it; choose another --id".to_owned(),
            });
        }
        let (root, is_new) = make_directory(&id, "root".as_ref(), INNER_MODE, undo)?;
        if !is_new {
            leftover::check(&root, program, args.force)?;
        }
        Ok(Self {
            _id: id,
            root,
            is_old: !is_new,
            uid: args.uid,
            gid: args.gid,
            has_draft: false,
        })
    }

    /// Copies the program to the root of the jail. A file in its place stays until
    /// [`Replacement::finish`].
    ///
    /// # Errors
    /// Fails if the copy fails, or if the file in its place may be outside of the jail.
    pub fn copy_program(&mut self, program: &Program, undo: &mut Undo) -> Result<(), Error> {
        let (mut name, mode) = (program.name.clone(), program.mode);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let create = |name: &OsStr| self.root.open_file(name, flags, mode);
        let mut file = create(&name);
        if let Err(error) = &file
            && error.kind() == io::ErrorKind::AlreadyExists
        {
            self.check_replaced(&name)?;
            name = program_draft(&name);
            self.has_draft = true;
            file = create(&name);
        }
        let path = self.root.join(&name);
        let file = file.map_err(Error::path("create the copy of the program", &path))?;
        undo.add_file(&self.root, name);
        sys::copy(&program.file, &file, program.size).map_err(Error::path("copy the program to", &path))?;
        sys::set_owner(&file, self.uid, self.gid).map_err(Error::path("set the owner of", path))
    }

    /// Checks the file that the copy of the program replaces.
    fn check_replaced(&self, name: &OsStr) -> Result<(), Error> {
        let path = self.root.join(name);
        let status = self.root.status_of(name);
        let status = status.map_err(Error::path("query", &path))?;
        let reason = if status.st_mode & libc::S_IFMT != libc::S_IFREG {
            "it is not a regular file; remove it"
        } else if status.st_nlink > 1 {
            "it has another name, which may be outside of the jail; remove it"
        } else {
            return Ok(());
        };
        Err(Error::Check {
            operation: "replace",
            path,
            reason: reason.to_owned(),
        })
    }

    /// Returns the replacement of an older program, which is the last step before `execve`: it cannot be undone.
    pub fn replacement(&self, program: &Program) -> Option<Replacement> {
        self.has_draft.then(|| Replacement {
            root: Rc::clone(&self.root),
            name: program.name.clone(),
        })
    }

    /// Creates the directories and devices in the jail.
    ///
    /// # Errors
    /// Fails if a directory or device other than `urandom` cannot be created.
    pub fn create_devices(&self, userfaultfd: Option<u32>, undo: &mut Undo) -> Result<(), Error> {
        self.take_over(&self.root, self.is_old, undo)?;
        let dev = self.make_inner_directory(&self.root, "dev", undo)?;
        let net = self.make_inner_directory(&dev, "net", undo)?;
        self.make_inner_directory(&self.root, "run", undo)?;
        for device in &DEVICES {
            let directory = if device.directory == "dev" { &dev } else { &net };
            match self.create_device(directory, device, undo) {
                Err(error) if device.is_optional => warn(&format!("warning: {}", error.describe())),
                result => result?,
            }
        }
        if let Some(minor) = userfaultfd {
            let device = Device {
                directory: "dev",
                name: USERFAULTFD,
                major: MISC,
                minor,
                is_optional: false,
            };
            self.create_device(&dev, &device, undo)?;
        }
        Ok(())
    }

    fn create_device(
        &self,
        directory: &Rc<Directory>,
        device: &Device,
        undo: &mut Undo,
    ) -> Result<(), Error> {
        let (name, path) = (OsStr::new(device.name), directory.join(device.name));
        let number = libc::makedev(device.major, device.minor);
        let result = directory.create_device(name, number);
        result.map_err(Error::path("create the device", &path))?;
        undo.add_file(directory, name);
        let result = directory.set_owner_of(name, self.uid, self.gid);
        result.map_err(Error::path("set the owner of", path))
    }

    /// Creates or takes over the directory `name` in `directory`.
    fn make_inner_directory(
        &self,
        directory: &Rc<Directory>,
        name: &str,
        undo: &mut Undo,
    ) -> Result<Rc<Directory>, Error> {
        let (inner, is_new) = make_directory(directory, name.as_ref(), INNER_MODE, undo)?;
        self.take_over(&inner, !is_new, undo)?;
        Ok(inner)
    }

    /// Gives a directory to the user of the VMM. Its mode is exact already, unless it `is_old`.
    fn take_over(&self, directory: &Rc<Directory>, is_old: bool, undo: &mut Undo) -> Result<(), Error> {
        let mut mode = None;
        if is_old {
            let status = directory.status();
            undo.add_attributes(directory, status.map_err(Error::path("query", directory.path()))?);
            mode = Some(INNER_MODE);
        }
        let result = directory.set_attributes(self.uid, self.gid, mode);
        result.map_err(Error::path("set owner and mode of", directory.path()))
    }

    /// Creates the file for the PID under a temporary name: a reader finds it complete, or not at all.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn create_pid_file(&self, program: &OsStr, undo: &mut Undo) -> Result<PidFile, Error> {
        let (draft, name) = (pid_file_draft(program), pid_file(program));
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = self.root.open_file(&draft, flags, 0o644);
        let file = file.map_err(Error::path("create the PID file", self.root.join(&draft)))?;
        undo.add_file(&self.root, &draft);
        // It does not exist: the lock excludes other jailers, and `leftover` has looked for it.
        undo.add_file(&self.root, &name);
        Ok(PidFile {
            root: Rc::clone(&self.root),
            file,
            draft,
            name,
        })
    }
}

/// A copy of the program under a temporary name, and the older file that it replaces.
#[derive(Debug)]
pub struct Replacement {
    root: Rc<Directory>,
    name: OsString,
}

impl Replacement {
    /// Gives the copy its name. The user of the VMM has the right to do so: the root of the jail belongs to it.
    ///
    /// # Errors
    /// Fails if the rename fails.
    pub fn finish(&self) -> Result<(), Error> {
        let result = self.root.rename(&program_draft(&self.name), &self.name);
        result.map_err(Error::path("replace", self.root.join(&self.name)))
    }
}

/// The file for the PID of the VMM, still without a PID.
#[derive(Debug)]
pub struct PidFile {
    root: Rc<Directory>,
    file: OwnedFd,
    draft: OsString,
    name: OsString,
}

impl PidFile {
    /// Writes `pid` and gives the file its name.
    ///
    /// # Errors
    /// Fails if the write or the rename fails.
    pub fn publish(&self, pid: libc::pid_t) -> Result<(), Error> {
        let result = sys::write(&self.file, pid.to_string().as_bytes());
        let result = result.and_then(|()| self.root.rename(&self.draft, &self.name));
        result.map_err(Error::path("write the PID file", self.root.join(&self.name)))
    }
}

/// Opens the directory `name` in `directory`. Creates it if it does not exist, and returns true then.
pub fn make_directory(
    directory: &Rc<Directory>,
    name: &OsStr,
    mode: libc::mode_t,
    undo: &mut Undo,
) -> Result<(Rc<Directory>, bool), Error> {
    let is_new = match directory.create_directory(name, mode) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(Error::path("create the directory", directory.join(name))(error)),
    };
    if is_new {
        undo.add_directory(directory, name);
    }
    let inner = directory.open_directory(name);
    let inner = inner.map_err(Error::path("open the directory", directory.join(name)))?;
    Ok((Rc::new(inner), is_new))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::Jail;
    use crate::args::{self, Args, Command};
    use crate::undo::Undo;

    fn args(id: &str, base: &str) -> Args {
        let words = ["--id", id, "--exec-file", "f", "--uid", "1", "--gid", "1"];
        let words = words.into_iter().chain(["--chroot-base-dir", base]);
        match args::parse(words.map(Into::into)) {
            Ok(Command::Jail(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    /// Another jailer with the same program removes the directory that both need.
    #[test]
    fn directories_are_created_again_after_removal_by_others() {
        const ROUNDS: usize = 500;
        let scratch = scratch::Directory::new();
        let shared = scratch.path("program");
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let _ = fs::remove_dir(&shared);
                    // More often than real jailers, but not at each attempt.
                    thread::sleep(Duration::from_micros(100));
                }
            });
            let create = |round: usize| {
                let args = args(&format!("vm-{round}"), scratch.root().to_str().unwrap());
                let mut undo = Undo::default();
                let jail = Jail::create(&args, "program".as_ref(), &mut undo);
                let result = jail.map(|jail| assert!(jail.root.path().exists()));
                assert!(undo.run().is_empty());
                result.map_err(|error| error.describe())
            };
            let results: Vec<_> = (0..ROUNDS).map(create).collect();
            is_done.store(true, Ordering::Relaxed);
            let failed = results.iter().find(|result| result.is_err());
            assert_eq!(failed, None);
        });
        assert!(scratch.names().len() <= 1);
    }
}
