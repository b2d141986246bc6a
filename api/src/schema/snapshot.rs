//! Snapshots.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vmm::config::NetBackend;
use vmm::control::{
    CreateSnapshotParams, DEFAULT_RECORD_LENGTH, LoadSnapshotParams, MAX_RECORD_MS, MemorySource,
    RecordOptions, SnapshotKind, WorkingSetOptions,
};

use super::{Error, Field, Off, Schema};

/// Which pages a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SnapshotType {
    /// All that were ever touched.
    #[default]
    Full,
    /// Those that differ from what the VM was restored from.
    Diff,
}

/// A snapshot to be made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotCreate {
    /// Which pages; all if nothing is said.
    pub snapshot_type: Option<SnapshotType>,
    /// The state file.
    pub snapshot_path: PathBuf,
    /// The memory file.
    pub mem_file_path: PathBuf,
}

/// Who gives the guest its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum BackendType {
    /// The memory file.
    File,
    /// Another process, by userfaultfd.
    Uffd,
}

/// Where the guest's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MemBackend {
    /// Who gives it.
    pub backend_type: BackendType,
    /// The memory file, or the socket on which the other process listens.
    pub backend_path: PathBuf,
}

/// An interface that is to be on another tap.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NetworkOverride {
    /// Its name.
    pub iface_id: String,
    /// The tap; the kernel names one if this is empty.
    pub host_dev_name: String,
}

/// A drive that is to be on another file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DriveOverride {
    /// Its name.
    pub drive_id: String,
    /// The file or block device.
    pub path_on_host: PathBuf,
}

/// A working set to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RecordWorkingSet {
    /// Where it goes.
    pub path: PathBuf,
    /// For how much of the guest's time.
    pub milliseconds: Option<u64>,
}

/// A snapshot to be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotLoad {
    /// The state file.
    pub snapshot_path: PathBuf,
    /// Where memory comes from; there must be this or `mem_file_path`.
    pub mem_backend: Option<MemBackend>,
    /// The memory file, as it was named before there were backends.
    pub mem_file_path: Option<PathBuf>,
    /// Whether it is to be known which pages change. It always is, at no cost, so that this changes nothing.
    pub track_dirty_pages: Option<bool>,
    /// The old name of that.
    pub enable_diff_snapshots: Option<bool>,
    /// Whether the guest runs at once.
    pub resume_vm: Option<bool>,
    /// Interfaces that are to be on other taps.
    pub network_overrides: Option<Vec<NetworkOverride>>,
    /// Drives that are to be on other files.
    pub drive_overrides: Option<Vec<DriveOverride>>,
    /// Whether the guest's clock jumps to where it would stand had it never stopped.
    pub clock_realtime: Option<bool>,
    /// A working set, whose pages are made ready.
    pub working_set: Option<PathBuf>,
    /// A working set to be recorded.
    pub record_working_set: Option<RecordWorkingSet>,
}

impl Schema for SnapshotCreate {
    const NAME: &'static str = "SnapshotCreate";
    const FIELDS: &'static [Field] = &[
        Field::choice("snapshot_type", &["Full", "Diff"]),
        Field::any("snapshot_path"),
        Field::any("mem_file_path"),
        Field::ignored("version", "mayfly writes the format of its own release"),
    ];
}

impl Schema for SnapshotLoad {
    const NAME: &'static str = "SnapshotLoad";
    const FIELDS: &'static [Field] = &[
        Field::any("snapshot_path"),
        Field::object(
            "mem_backend",
            &[
                Field::choice("backend_type", &["File", "Uffd"]),
                Field::any("backend_path"),
            ],
        ),
        Field::any("mem_file_path"),
        Field::any("track_dirty_pages"),
        Field::any("enable_diff_snapshots"),
        Field::any("resume_vm"),
        Field::list(
            "network_overrides",
            &[Field::any("iface_id"), Field::any("host_dev_name")],
        ),
        Field::list(
            "drive_overrides",
            &[Field::any("drive_id"), Field::any("path_on_host")],
        ),
        Field::unsupported("vsock_override", Off::Null, "vsock is not part of mayfly"),
        Field::any("clock_realtime"),
        Field::any("working_set"),
        Field::object(
            "record_working_set",
            &[Field::any("path"), Field::range("milliseconds", 1, MAX_RECORD_MS)],
        ),
        Field::unsupported(
            "huge_pages",
            Off::Text(&["Snapshot", "None"]),
            "mayfly maps the memory file with the pages that its file system has; choose Snapshot or None",
        ),
    ];
}

impl SnapshotCreate {
    /// What the VMM is to make.
    pub fn into_params(self) -> CreateSnapshotParams {
        CreateSnapshotParams {
            kind: match self.snapshot_type.unwrap_or_default() {
                SnapshotType::Full => SnapshotKind::Full,
                SnapshotType::Diff => SnapshotKind::Diff,
            },
            state: self.snapshot_path,
            memory: self.mem_file_path,
        }
    }
}

impl SnapshotLoad {
    /// Whether a field was given that Firecracker gives up.
    pub fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots.is_some()
    }

    /// What the VMM is to make.
    ///
    /// # Errors
    /// [`Error::Json`] unless there is one place, and only one, from which memory comes.
    pub fn into_params(self) -> Result<LoadSnapshotParams, Error> {
        let memory = match (self.mem_backend, self.mem_file_path) {
            (Some(backend), None) => backend.source(),
            (None, Some(path)) => MemorySource::File(path),
            (None, None) => {
                return Err(either(
                    "missing field: either `mem_backend` or `mem_file_path` is required",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(either(
                    "too many fields: either `mem_backend` or `mem_file_path` exclusively is required",
                ));
            }
        };
        let taps = self.network_overrides.unwrap_or_default().into_iter();
        let taps = taps.map(|tap| (tap.iface_id, NetBackend::Tap(tap.host_dev_name).into()));
        let disks = self.drive_overrides.unwrap_or_default().into_iter();
        let disks = disks.map(|disk| (disk.drive_id, disk.path_on_host.into()));
        let tracks = [self.track_dirty_pages, self.enable_diff_snapshots];
        Ok(LoadSnapshotParams {
            state: self.snapshot_path,
            memory,
            overrides: taps.chain(disks).collect(),
            track_dirty_pages: tracks.contains(&Some(true)),
            resume: self.resume_vm.unwrap_or(false),
            realtime: self.clock_realtime.unwrap_or(false),
            working_set: WorkingSetOptions {
                prefetch: self.working_set,
                record: self.record_working_set.map(RecordWorkingSet::record),
            },
        })
    }
}

impl RecordWorkingSet {
    fn record(self) -> RecordOptions {
        let length = self.milliseconds.map(Duration::from_millis);
        RecordOptions {
            path: self.path,
            length: length.unwrap_or(DEFAULT_RECORD_LENGTH),
        }
    }
}

impl MemBackend {
    fn source(self) -> MemorySource {
        match self.backend_type {
            BackendType::File => MemorySource::File(self.backend_path),
            BackendType::Uffd => MemorySource::Uffd(self.backend_path),
        }
    }
}

fn either(text: &str) -> Error {
    Error::Json(text.to_owned())
}
