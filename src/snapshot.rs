//! Snapshots by hand: `mayfly snapshot`, `snapshot-info` and `snapshot-merge`. One is a folder with a state file and a memory
//! file.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::client::{self, Client};
use serde_json::{Value, json};
use vmm::control::{
    Contents, LoadSnapshotError, MergeError, STATE_VERSION, describe_snapshot, describe_working_set,
    merge_snapshots, state_version,
};
use vmm::memory::Bytes;

use crate::cli::args::SnapshotArgs;
use crate::logging::print_message;

/// Name of the state file.
pub const STATE: &str = "state";
/// Name of the memory file.
pub const MEMORY: &str = "memory";

/// A snapshot takes as long as its memory takes to be written.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be used.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// Where it is.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The VM cannot be asked.
    #[error("cannot ask the VM")]
    Client(#[source] client::Error),
    /// The VM refuses.
    #[error("the VM refuses to {wish}: {reason}")]
    Refused {
        /// What it was asked.
        wish: &'static str,
        /// What it says.
        reason: String,
    },
    /// The snapshot cannot be read.
    #[error(transparent)]
    Read(LoadSnapshotError),
    /// The difference cannot be merged.
    #[error("cannot merge {} into {}", difference.display(), base.display())]
    Merge {
        /// The folder of the difference.
        difference: PathBuf,
        /// The folder that it was to go into.
        base: PathBuf,
        /// Why.
        #[source]
        source: MergeError,
    },
}

/// Makes a snapshot of a running VM, which is paused as long as that takes.
///
/// # Errors
/// [`Error`]; the VM goes on all the same.
pub fn create(take: &SnapshotArgs) -> Result<(), Error> {
    let vm = VmClient(Client::new(&take.socket, TIMEOUT));
    let state = vm.ask("say how it is", "GET", "/", None)?;
    let folder = directory(&take.folder)?;
    let running = state["state"] == "Running";
    let pause = |state: &str| json!({ "state": state });
    if running {
        vm.ask("pause", "PATCH", "/vm", Some(pause("Paused")))?;
    }
    let kind = if take.diff { "Diff" } else { "Full" };
    let body = json!({
        "snapshot_type": kind,
        "snapshot_path": folder.join(STATE),
        "mem_file_path": folder.join(MEMORY),
    });
    let taken = vm.ask("make a snapshot", "PUT", "/snapshot/create", Some(body));
    if running {
        vm.ask("go on", "PATCH", "/vm", Some(pause("Resumed")))?;
    }
    taken?;
    let file = folder.join(MEMORY);
    let size = fs::metadata(&file).map_or(0, |metadata| metadata.blocks() * 512);
    print_message(&format!(
        "the snapshot is in {}, {} on disk",
        folder.display(),
        Bytes(size)
    ));
    Ok(())
}

/// The folder, made if it is not there, as an absolute path: the VM may be in another one.
fn directory(path: &Path) -> Result<PathBuf, Error> {
    let made = fs::create_dir_all(path).and_then(|()| fs::canonicalize(path));
    made.map_err(|source| Error::Folder {
        path: path.to_owned(),
        source,
    })
}

struct VmClient(Client);

impl VmClient {
    fn ask(&self, wish: &'static str, method: &str, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let body = body.map(|body| body.to_string());
        let answer = self.0.request(method, path, body.as_deref().map(str::as_bytes));
        let answer = answer.map_err(Error::Client)?;
        let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.is_success() {
            return Ok(said);
        }
        let reason = said["fault_message"].as_str();
        let reason = reason.map_or_else(|| format!("status {}", answer.status), str::to_owned);
        Err(Error::Refused { wish, reason })
    }
}

/// The version of the format of snapshots, as Firecracker writes its own.
pub fn format_version() -> String {
    versioned(STATE_VERSION)
}

/// The version of the format of the state file at `path`.
///
/// # Errors
/// [`Error::Read`]
pub fn describe_format(path: &Path) -> Result<String, Error> {
    state_version(path).map(versioned).map_err(Error::Read)
}

/// The format has a version of one number, and its readers expect three.
fn versioned(version: u32) -> String {
    format!("v{version}.0.0\n")
}

/// What is in the working set at `path`, if it is one.
fn working_set(path: &Path) -> Option<String> {
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

/// What is in the snapshot in `folder`, or in the state file or working set at that path.
///
/// # Errors
/// [`Error::Read`]
pub fn info(folder: &Path) -> Result<String, Error> {
    let state = if folder.is_dir() {
        folder.join(STATE)
    } else {
        folder.to_owned()
    };
    if let Some(text) = working_set(&state) {
        return Ok(text);
    }
    let (header, config) = describe_snapshot(&state).map_err(Error::Read)?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    let size = fs::metadata(&state).map_or(0, |metadata| metadata.len());
    line("state", format!("{}: {}", state.display(), Bytes(size)));
    line("format", format_version().trim_end().into());
    line("architecture", header.host.architecture.to_string());
    line("processor", header.host.cpu.clone());
    line(
        "holds",
        match header.contents {
            Contents::Whole => "all of the memory".into(),
            Contents::Difference => "a difference, to be merged into what it differs from".into(),
        },
    );
    line("vCPUs", config.vcpus.to_string());
    line("memory", Bytes(header.memory).to_string());
    let memory = state.with_file_name(MEMORY);
    if let Ok(metadata) = fs::metadata(&memory) {
        let data = metadata.blocks() * 512;
        let hole = metadata.len().saturating_sub(data);
        line(
            "memory file",
            format!(
                "{}, {}: {} on disk, {} hole",
                memory.display(),
                Bytes(metadata.len()),
                Bytes(data),
                Bytes(hole)
            ),
        );
    }
    line("kernel", config.kernel.display().to_string());
    for drive in config.drives() {
        let access = if drive.disk.read_only { ", read-only" } else { "" };
        line(
            "drive",
            format!("{}: {}{access}", drive.disk.id, drive.disk.path.display()),
        );
    }
    for net in config.interfaces() {
        let mac = net.mac.map(|mac| format!(", {mac}")).unwrap_or_default();
        line("interface", format!("{}: {}{mac}", net.id, net.backend));
    }
    Ok(text)
}

/// Merges the differences in all folders but the first, in their order, into the snapshot in the first.
///
/// # Errors
/// [`Error::Merge`]; what was merged before stays merged.
pub fn merge(folders: &[PathBuf]) -> Result<String, Error> {
    let Some((base, differences)) = folders.split_first() else {
        return Ok(String::new());
    };
    let mut text = String::new();
    for difference in differences {
        let files = |folder: &Path| (folder.join(STATE), folder.join(MEMORY));
        let written = merge_snapshots(files(difference), files(base)).map_err(|source| Error::Merge {
            difference: difference.clone(),
            base: base.clone(),
            source,
        })?;
        let _ = writeln!(text, "{}: {} pages", difference.display(), written.pages);
    }
    Ok(text)
}
