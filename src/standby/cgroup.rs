//! Cgroups of limited instances, of version 2.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::config::Limits;

/// Name of the cgroup of an instance.
fn path(directory: &Path, id: &str) -> PathBuf {
    directory.join(format!("mayfly-{id}"))
}

/// Creates the cgroup of the instance `id` in `directory`. Returns the file that moves a process there, or none without limits.
///
/// # Errors
/// A text that names the file that cannot be written.
pub fn create(directory: &Path, id: &str, limits: Limits) -> Result<Option<File>, String> {
    if limits == Limits::default() {
        return Ok(None);
    }
    let path = path(directory, id);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(format!("cannot create the cgroup {}: {error}", path.display()));
        }
        _ => {}
    }
    set(&path, limits).map(Some)
}

/// Writes `limits`, and opens the file that moves a process to the cgroup at `path`.
fn set(path: &Path, limits: Limits) -> Result<File, String> {
    let open = |name: &str| {
        let path = path.join(name);
        let file = OpenOptions::new().write(true).open(&path);
        let failed = move |error: io::Error| {
            let (path, hint) = (
                path.display(),
                "enable its controller in cgroup.subtree_control of the directory above",
            );
            format!("cannot write {path}: {error}; {hint}, or remove limits")
        };
        (file, failed)
    };
    let values = [
        ("memory.max", limits.memory_max),
        ("cpu.weight", limits.cpu_weight.map(u64::from)),
    ];
    for (name, value) in values {
        let Some(value) = value else { continue };
        let (file, failed) = open(name);
        file.and_then(|mut file| file.write_all(value.to_string().as_bytes()))
            .map_err(failed)?;
    }
    let (file, failed) = open("cgroup.procs");
    file.map_err(failed)
}

/// Checks if `limits` can be set in `directory`.
///
/// # Errors
/// A text with the way out.
pub fn check(directory: Option<&Path>, limits: Limits) -> Result<(), String> {
    if limits == Limits::default() {
        return Ok(());
    }
    let Some(directory) = directory else {
        return Err(
            "limits: the supervisor has no cgroup; start it with --cgroup DIR, or remove limits".into(),
        );
    };
    let text = fs::read_to_string(directory.join("cgroup.subtree_control"));
    let text = text.map_err(|error| {
        format!(
            "limits: cannot read {}/cgroup.subtree_control: {error}",
            directory.display()
        )
    })?;
    let controllers = [
        ("memory", limits.memory_max.is_some()),
        ("cpu", limits.cpu_weight.is_some()),
    ];
    let missing =
        |(name, is_used): &(&str, bool)| *is_used && !text.split_whitespace().any(|found| found == *name);
    match controllers.into_iter().find(missing) {
        None => Ok(()),
        Some((name, _)) => Err(format!(
            "limits: the controller {name} is off in {0}; write +{name} to {0}/cgroup.subtree_control, or remove the limit",
            directory.display()
        )),
    }
}

/// Removes the cgroup of the instance `id`, whose process has ended.
pub fn remove(directory: &Path, id: &str) {
    // Fails without limits, where it does not exist.
    let _ = fs::remove_dir(path(directory, id));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Limits, check, create, remove, set};

    const LIMITS: Limits = Limits {
        memory_max: Some(1 << 20),
        cpu_weight: Some(50),
    };

    #[test]
    fn limits_are_written() {
        let directory = scratch::Directory::new();
        for name in ["memory.max", "cpu.weight", "cgroup.procs"] {
            directory.write(name, "");
        }
        set(directory.root(), LIMITS).unwrap();
        assert_eq!(
            fs::read_to_string(directory.path("memory.max")).unwrap(),
            "1048576"
        );
        assert_eq!(fs::read_to_string(directory.path("cpu.weight")).unwrap(), "50");
    }

    #[test]
    fn missing_controller_is_named() {
        let directory = scratch::Directory::new();
        assert!(
            create(directory.root(), "a", Limits::default())
                .unwrap()
                .is_none()
        );
        let error = create(directory.root(), "a", LIMITS).unwrap_err();
        assert!(
            error.contains("mayfly-a/memory.max") && error.contains("subtree_control"),
            "{error}"
        );
        remove(directory.root(), "a");
        assert!(directory.names().is_empty());
        assert!(check(None, LIMITS).unwrap_err().contains("--cgroup DIR"));
        assert!(check(None, Limits::default()).is_ok());
        directory.write("cgroup.subtree_control", "cpu pids\n");
        let error = check(Some(directory.root()), LIMITS).unwrap_err();
        assert!(error.contains("write +memory to"), "{error}");
        directory.write("cgroup.subtree_control", "cpu memory\n");
        check(Some(directory.root()), LIMITS).unwrap();
    }
}
