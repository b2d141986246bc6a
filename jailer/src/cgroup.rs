//! The cgroup of a VM: `PARENT/ID` in the hierarchy of each controller (version 1) or in the only one (version 2).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::args::{Args, Setting};
use crate::error::Error;
use crate::report::warn;
use crate::retry;
use crate::sys::Directory;
use crate::undo::Undo;

/// Mode of a new cgroup.
const MODE: libc::mode_t = 0o755;
/// Files of a cpuset (version 1) that are empty in a new cgroup. No process can join it then.
const INHERITED: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// Prefix of files that each cgroup of version 2 has.
const CORE: &str = "cgroup";

/// Text of `/proc/self/mountinfo`.
struct Mounts(String);

impl Mounts {
    fn read() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        fs::read_to_string(path)
            .map(Self)
            .map_err(Error::path("read the mounts in", path))
    }

    /// Returns the mount point of the first file system with `kind` and, if it is given, with `option`.
    fn find(&self, kind: &str, option: Option<&str>) -> Option<PathBuf> {
        self.0.lines().find_map(|line| {
            let (mount, system) = line.split_once(" - ")?;
            let mut system = system.split(' ');
            let is_kind = system.next() == Some(kind);
            let mut options = system.nth(1)?.split(',');
            let is_found = is_kind && option.is_none_or(|option| options.any(|word| word == option));
            is_found.then(|| mount.split(' ').nth(4).map(unescape))?
        })
    }
}

/// Decodes the octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(path: &str) -> PathBuf {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let decode = |text: String, (code, text_of): (&str, &str)| text.replace(code, text_of);
    codes.into_iter().fold(path.to_owned(), decode).into()
}

/// Creates the cgroups, writes their settings and moves the process to them. `program` is the default parent.
///
/// # Errors
/// Fails if a hierarchy is missing, or if one of the steps fails.
pub fn join(args: &Args, program: &OsStr, undo: &mut Undo) -> Result<(), Error> {
    if args.cgroups.is_empty() && args.cgroup_version == 1 {
        if args.parent_cgroup.is_some() {
            warn(&ignored_parent("cgroup version 1 needs --cgroup"));
        }
        return Ok(());
    }
    let mounts = Mounts::read()?;
    let parents: Vec<&OsStr> = match &args.parent_cgroup {
        Some(parts) => parts.iter().map(OsStr::new).collect(),
        None => vec![program],
    };
    if args.cgroup_version == 1 {
        join_v1(&mounts, args, &parents, undo)
    } else {
        join_v2(&mounts, args, &parents, undo)
    }
}

/// Cgroups from the root of a hierarchy down to the VM's.
struct Branch {
    levels: Vec<Rc<Directory>>,
}

impl Branch {
    /// Opens the cgroups below `mount`, and creates the missing ones.
    fn create(mount: &Path, parents: &[&OsStr], id: &str, undo: &mut Undo) -> Result<Self, Error> {
        let top = Directory::open(mount).map_err(Error::path("open the cgroups in", mount))?;
        let top = Rc::new(top);
        // The steps before the cgroup stay.
        retry::create(undo, |_| (), |undo| Self::create_below(&top, parents, id, undo))
    }

    fn create_below(
        top: &Rc<Directory>,
        parents: &[&OsStr],
        id: &str,
        undo: &mut Undo,
    ) -> Result<Self, Error> {
        let mut levels = vec![Rc::clone(top)];
        for (depth, name) in parents.iter().copied().chain([OsStr::new(id)]).enumerate() {
            let above = Rc::clone(&levels[depth]);
            match above.create_directory(name, MODE) {
                Ok(()) if depth == parents.len() => undo.add_cgroup(&above, name),
                Ok(()) => undo.add_parent_cgroup(&above, name),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::path("create the cgroup", above.join(name))(error)),
            }
            let level = above.open_directory(name);
            levels.push(Rc::new(
                level.map_err(Error::path("open the cgroup", above.join(name)))?,
            ));
        }
        Ok(Self { levels })
    }

    /// Returns the cgroup of the VM.
    fn leaf(&self) -> &Directory {
        &self.levels[self.levels.len() - 1]
    }

    /// Gives each cgroup without `file` the value of the one above.
    fn inherit(&self, file: &str) -> Result<(), Error> {
        let read = |level: &Directory| {
            let text = level.read(file.as_ref());
            text.map_err(Error::path("read the file of a cgroup", level.join(file)))
        };
        let mut value = read(&self.levels[0])?;
        for level in &self.levels[1..] {
            let own = read(level)?;
            if own.trim().is_empty() {
                let result = level.write(file.as_ref(), &value);
                result.map_err(Error::path("inherit the value of", level.join(file)))?;
            } else {
                value = own;
            }
        }
        Ok(())
    }

    /// Writes `setting` to the cgroup of the VM.
    fn apply(&self, setting: &Setting) -> Result<(), Error> {
        let result = self.leaf().write(setting.file.as_ref(), &setting.value);
        result.map_err(|error| {
            let path = self.leaf().join(&setting.file);
            let way_out = if error.kind() == io::ErrorKind::NotFound {
                "; check the name of the file and --cgroup-version"
            } else {
                "; check the value"
            };
            Error::Cgroup {
                setting: format!("{}={}", setting.file, setting.value),
                reason: format!("cannot write {}: {error}{way_out}", path.display()),
            }
        })
    }

    /// Moves the process to the cgroup of the VM. `origin` is the open file of its old cgroup.
    fn attach(&self, file: &str, origin: std::os::fd::OwnedFd, undo: &mut Undo) -> Result<(), Error> {
        attach(self.leaf(), file, origin, undo)
    }
}

fn attach(level: &Directory, file: &str, origin: std::os::fd::OwnedFd, undo: &mut Undo) -> Result<(), Error> {
    undo.add_member(origin);
    // 0 is the calling thread. With a PID the kernel would lock all thread groups, which takes an RCU grace period.
    let result = level.write(file.as_ref(), "0");
    result.map_err(Error::path("join the cgroup by", level.join(file)))
}

/// Opens the file of processes or tasks of `level` for the undo.
fn open_members(level: &Directory, file: &str) -> Result<std::os::fd::OwnedFd, Error> {
    let members = level.open_file(file.as_ref(), libc::O_WRONLY, 0);
    members.map_err(Error::path("open", level.join(file)))
}

fn join_v1(mounts: &Mounts, args: &Args, parents: &[&OsStr], undo: &mut Undo) -> Result<(), Error> {
    const TASKS: &str = "tasks";
    let mut groups: Vec<(PathBuf, Branch)> = Vec::new();
    for setting in &args.cgroups {
        let controller = setting.controller();
        let mount = mounts
            .find("cgroup", Some(controller))
            .ok_or_else(|| unavailable(setting, 1))?;
        let known = groups.iter().position(|(known, _)| *known == mount);
        let index = match known {
            Some(index) => index,
            None => {
                let path = Branch::create(&mount, parents, &args.id, undo)?;
                groups.push((mount, path));
                groups.len() - 1
            }
        };
        let (_, path) = &groups[index];
        if known.is_none() && controller == "cpuset" {
            INHERITED.iter().try_for_each(|file| path.inherit(file))?;
        }
        path.apply(setting)?;
    }
    // Last: a cpuset accepts processes only when it is complete.
    for (_, path) in &groups {
        // An undo moves the process to the top of the hierarchy. It ends then.
        let origin = open_members(&path.levels[0], TASKS)?;
        path.attach(TASKS, origin, undo)?;
    }
    Ok(())
}

fn join_v2(mounts: &Mounts, args: &Args, parents: &[&OsStr], undo: &mut Undo) -> Result<(), Error> {
    const PROCESSES: &str = "cgroup.procs";
    let mount = mounts
        .find("cgroup2", None)
        .ok_or(Error::NoHierarchy { version: 2, other: 1 })?;
    if args.cgroups.is_empty() {
        // As in Firecracker, an existing parent alone means the cgroup itself.
        let path = mount.join(parents.iter().collect::<PathBuf>());
        let parent = match Directory::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if args.parent_cgroup.is_some() {
                    warn(&ignored_parent(&format!("{} does not exist", path.display())));
                }
                return Ok(());
            }
            opened => opened.map_err(Error::path("open the cgroup", path))?,
        };
        return attach(&parent, PROCESSES, origin_v2(&mount, PROCESSES)?, undo);
    }
    let top = Directory::open(&mount).map_err(Error::path("open the cgroups in", &mount))?;
    let file = "cgroup.controllers";
    let available = top.read(file.as_ref());
    let available = available.map_err(Error::path("read", top.join(file)))?;
    for setting in &args.cgroups {
        let controller = setting.controller();
        if controller != CORE && !available.split_whitespace().any(|word| word == controller) {
            return Err(unavailable(setting, 2));
        }
    }
    let path = Branch::create(&mount, parents, &args.id, undo)?;
    for setting in &args.cgroups {
        if setting.controller() != CORE {
            enable(&path.levels[..path.levels.len() - 1], setting.controller())?;
        }
        path.apply(setting)?;
    }
    let origin = origin_v2(&mount, PROCESSES)?;
    path.attach(PROCESSES, origin, undo)
}

/// Enables `controller` for the cgroups below each of `levels`. An undo leaves it enabled: other cgroups may use it by then.
fn enable(levels: &[Rc<Directory>], controller: &str) -> Result<(), Error> {
    let file = OsStr::new("cgroup.subtree_control");
    for level in levels {
        let enabled = level.read(file);
        let enabled = enabled.map_err(Error::path("read", level.join(file)))?;
        if enabled.split_whitespace().any(|word| word == controller) {
            continue;
        }
        level.write(file, &format!("+{controller}")).map_err(|error| {
            let way_out = if error.raw_os_error() == Some(libc::EBUSY) {
                "; move the processes of this cgroup to a cgroup below it, or use --parent-cgroup"
            } else {
                ""
            };
            Error::Check {
                operation: "enable a controller by",
                path: level.join(file),
                reason: format!("+{controller}: {error}{way_out}"),
            }
        })?;
    }
    Ok(())
}

/// Opens the file of processes of the cgroup of this process, or of the hierarchy if the former is outside of it.
fn origin_v2(mount: &Path, file: &str) -> Result<std::os::fd::OwnedFd, Error> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let level = own.and_then(|path| Directory::open(mount.join(path)).ok());
    let level = match level {
        Some(level) => level,
        None => Directory::open(mount).map_err(Error::path("open the cgroups in", mount))?,
    };
    open_members(&level, file)
}

/// Returns the notice for an option that Firecracker's jailer ignores, too.
fn ignored_parent(reason: &str) -> String {
    format!(
        "--parent-cgroup has no effect: {reason}, so that the VMM stays in the cgroup of the jailer; create the cgroup and use \
         --cgroup-version 2, or set a --cgroup"
    )
}

fn unavailable(setting: &Setting, version: u8) -> Error {
    let other = 3 - version;
    Error::Cgroup {
        setting: format!("{}={}", setting.file, setting.value),
        reason: format!(
            "the controller {} is not available in cgroup version {version}; enable it on the host, or use --cgroup-version {other}",
            setting.controller()
        ),
    }
}

#[cfg(test)]
mod tests;
