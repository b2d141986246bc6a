//! Landlock: the files that the process can open while the guest runs.
//!
//! Files that are open already stay usable. The kernel may lack Landlock, or some of its rights: the log reports it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use devices::lock;
use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
};
use vmm::private_socket;

/// Newest rights that this program knows. Those of later kernels concern no call of it.
const VERSION: ABI = ABI::V5;

/// Files that the process needs while the guest runs, beside the sockets that it removes at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileRules {
    /// Directories of the user, for snapshots and drives.
    pub allowed: Vec<PathBuf>,
    /// Clients may name any file: without an allowed directory, nothing is restricted.
    pub has_clients: bool,
    /// gdb may create snapshots in the directories of the user.
    pub has_debugger: bool,
    /// Files that the process writes under their names: log and metrics, which SIGHUP opens again, and a recorded working set.
    pub outputs: Vec<PathBuf>,
    /// Directories in which the process creates snapshots: of a suspend and of a crash.
    pub snapshots: Vec<PathBuf>,
}

impl FileRules {
    /// Returns true if the process cannot open all files.
    pub fn is_restricted(&self) -> bool {
        !self.has_clients || !self.allowed.is_empty()
    }
}

/// Rules of the process, created by the first thread.
static RULESET: Mutex<Option<RulesetCreated>> = Mutex::new(None);

/// Restricts the calling thread.
///
/// # Errors
/// Fails if the kernel lacks memory or descriptors. A kernel without Landlock is no error.
pub fn restrict(rules: &FileRules) -> io::Result<()> {
    if !rules.is_restricted() {
        return Ok(());
    }
    let mut ruleset = lock(&RULESET);
    let ruleset = match &mut *ruleset {
        Some(ruleset) => ruleset,
        none => none.insert(create(rules).map_err(io::Error::other)?),
    };
    let own = ruleset.try_clone()?;
    let status = own.restrict_self().map_err(io::Error::other)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => log::debug!("Landlock restricts the files that a thread can open"),
        RulesetStatus::PartiallyEnforced => {
            log::info!("Landlock of this kernel lacks some rights: it restricts files in part")
        }
        RulesetStatus::NotEnforced => {
            log::info!("this kernel has no Landlock: it does not restrict the files that mayfly can open")
        }
    }
    Ok(())
}

fn create(rules: &FileRules) -> Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(VERSION);
    let mut ruleset = Ruleset::default().handle_access(all)?.create()?;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock;
    let write = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let allowed = rules.allowed.iter().map(|path| (path.as_path(), all & !never));
    let outputs = rules.outputs.iter().map(|path| (directory(path), write));
    let sockets = private_socket::paths();
    let sockets = sockets
        .iter()
        .map(|path| (directory(path), AccessFs::RemoveFile.into()));
    let snapshots = rules.snapshots.iter().map(|path| (path.as_path(), all & !never));
    // The process itself, for its page tables, and properties of block devices.
    let has_snapshots = rules.has_clients || rules.has_debugger || !rules.snapshots.is_empty();
    let process = has_snapshots.then_some("/proc/self");
    let devices = ["/sys/dev/block", "/sys/devices"]
        .into_iter()
        .filter(|_| rules.has_clients);
    let system = process
        .into_iter()
        .chain(devices)
        .map(|path| (Path::new(path), read));
    for (path, rights) in allowed
        .chain(outputs)
        .chain(sockets)
        .chain(snapshots)
        .chain(system)
    {
        ruleset = add(ruleset, path, rights)?;
    }
    Ok(ruleset)
}

/// Adds a rule for `path`, unless it cannot be opened: it stays forbidden then.
fn add(
    ruleset: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(opened) => ruleset.add_rule(PathBeneath::new(opened, rights)),
        Err(error) => {
            log::debug!("Landlock forbids {}: {error}", path.display());
            Ok(ruleset)
        }
    }
}

/// Returns the directory of the file at `path`.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
