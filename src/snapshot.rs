//! `mayfly snapshot`, `snapshot-info` and `snapshot-merge`. A snapshot is a directory with a state file and a memory file.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vmm::config::{BackendDescription, DeviceConfig};
use vmm::control::{
    Contents, LoadSnapshotError, MEMORY_NAME, MergeError, STATE_NAME, STATE_VERSION, describe_snapshot,
    describe_working_set, merge_snapshots, resolve_generation, state_version,
};
use vmm::memory::Bytes;

use crate::cli::args::SnapshotArgs;
use crate::logging::print_message;
use crate::printable::printable;
use crate::process::HeldSignals;
use crate::vm_client::{self, VmClient};

/// Failure of a snapshot command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be created or accessed.
    #[error("cannot use the directory {}", path.display())]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The VM rejects a request, or its API cannot be reached.
    #[error(transparent)]
    Vm(vm_client::Error),
    /// The snapshot cannot be read.
    #[error(transparent)]
    Read(LoadSnapshotError),
    /// The diff snapshot cannot be merged.
    #[error("cannot merge {} into {}", diff.display(), base.display())]
    Merge {
        /// Directory of the diff snapshot.
        diff: PathBuf,
        /// Directory of the base.
        base: PathBuf,
        /// Error of the merge.
        #[source]
        source: MergeError,
    },
}

/// Creates a snapshot of a running VM, which is paused meanwhile. A VM that was paused before stays paused.
///
/// # Errors
/// [`Error`] if the VM rejects a request or cannot be reached. The VM resumes even if no snapshot was created.
pub fn create(args: &SnapshotArgs) -> Result<(), Error> {
    let vm = VmClient::new(&args.socket);
    let is_running = vm.is_running().map_err(Error::Vm)?;
    let is_new = !args.directory.exists();
    let directory = create_directory(&args.directory)?;
    // An interrupted command would leave the VM paused.
    let _signals = HeldSignals::hold();
    let kind = if args.diff { "Diff" } else { "Full" };
    let (state, memory) = (directory.join(STATE_NAME), directory.join(MEMORY_NAME));
    let created = vm.create_snapshot(is_running, kind, &state, &memory);
    if created.is_err() && is_new {
        // Fails if another process has put a file into it.
        let _ = fs::remove_dir(&directory);
    }
    created.map_err(Error::Vm)?;
    let size = fs::metadata(&memory).map_or(0, |metadata| metadata.blocks() * 512);
    print_message(&format!(
        "snapshot created in {}, {} on disk",
        directory.display(),
        Bytes(size)
    ));
    Ok(())
}

/// Creates the directory if necessary, and returns its absolute path: the VM may have another working directory.
fn create_directory(path: &Path) -> Result<PathBuf, Error> {
    let created = fs::create_dir_all(path).and_then(|()| fs::canonicalize(path));
    created.map_err(|source| Error::Directory {
        path: path.to_owned(),
        source,
    })
}

/// Returns the version of the snapshot format, in the form of Firecracker's.
pub fn format_version() -> String {
    format_number(STATE_VERSION)
}

/// Returns the format version of the state file at `path`, also of one that mayfly cannot load.
///
/// # Errors
/// [`Error::Read`] if `path` is not a state file.
pub fn describe_format(path: &Path) -> Result<String, Error> {
    state_version(path).map(format_number).map_err(Error::Read)
}

/// Formats a version as three numbers, which clients of Firecracker expect; the format has one.
fn format_number(version: u32) -> String {
    format!("v{version}.0.0\n")
}

/// Describes the working set at `path`, if there is one.
fn working_set_info(path: &Path) -> Option<String> {
    let (header, touched, written) = describe_working_set(path).ok()?;
    let page = u64::from(header.host.page_size);
    Some(format!(
        "working set  {}\nmemory       {}\ntouched      {touched} pages, {}\nwritten      {written} of them, {}\n",
        path.display(),
        Bytes(header.memory),
        Bytes(touched * page),
        Bytes(written * page)
    ))
}

/// Describes the snapshot in the directory `path`, or the state file or working set at `path`.
///
/// # Errors
/// [`Error::Read`] if `path` is none of them.
pub fn info(path: &Path) -> Result<String, Error> {
    let state = if path.is_dir() {
        let resolved = resolve_generation(path);
        let directory = resolved.map_err(|error| Error::Read(LoadSnapshotError::Generation(error)))?;
        directory.join(STATE_NAME)
    } else {
        path.to_owned()
    };
    if let Some(text) = working_set_info(&state) {
        return Ok(text);
    }
    let (header, config) = describe_snapshot(&state).map_err(Error::Read)?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        // A value from the state file must not add lines.
        let _ = writeln!(text, "{name:<12} {}", printable(&value));
    };
    let size = fs::metadata(&state).map_or(0, |metadata| metadata.len());
    line("state", format!("{}: {}", state.display(), Bytes(size)));
    line("format", format_version().trim_end().into());
    line("architecture", header.host.architecture.to_string());
    line("processor", header.host.cpu.clone());
    line(
        "holds",
        match header.contents {
            Contents::Full => "all of the memory (full snapshot)".into(),
            Contents::Diff => {
                "changed pages only (diff snapshot); merge it into its base by mayfly snapshot-merge".into()
            }
        },
    );
    line("vCPUs", config.vcpus.to_string());
    line("memory", Bytes(header.memory).to_string());
    let memory = state.with_file_name(MEMORY_NAME);
    if let Ok(metadata) = fs::metadata(&memory) {
        let data = metadata.blocks() * 512;
        let holes = metadata.len().saturating_sub(data);
        line(
            "memory file",
            format!(
                "{}, {}: {} on disk, {} in holes",
                memory.display(),
                Bytes(metadata.len()),
                Bytes(data),
                Bytes(holes)
            ),
        );
    }
    line("kernel", config.kernel.display().to_string());
    for device in &config.devices {
        let (id, backend) = (device.id(), BackendDescription(device));
        match device {
            DeviceConfig::Drive(_) => line("drive", format!("{id}: {backend}")),
            DeviceConfig::Interface(net) => {
                let mac = net.mac.map(|mac| format!(", {mac}")).unwrap_or_default();
                line("interface", format!("{id}: {backend}{mac}"));
            }
        }
    }
    Ok(text)
}

/// Merges the diff snapshots in all directories but the first, in order, into the snapshot in the first.
///
/// # Errors
/// [`Error::Merge`] if one cannot be merged; those before it are merged.
pub fn merge(directories: &[PathBuf]) -> Result<String, Error> {
    let Some((base, diffs)) = directories.split_first() else {
        return Ok(String::new());
    };
    let mut text = String::new();
    for diff in diffs {
        let files = |directory: &Path| (directory.join(STATE_NAME), directory.join(MEMORY_NAME));
        let written = merge_snapshots(files(diff), files(base)).map_err(|source| Error::Merge {
            diff: diff.clone(),
            base: base.clone(),
            source,
        })?;
        let _ = writeln!(text, "{}: {} pages", diff.display(), written.pages);
    }
    Ok(text)
}
