//! Snapshots.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vmm::config::{
    AddressRequest, DeviceBackend, DriveBackend, MacAddress, NetBackend, NetOverride, UserNetwork,
};
use vmm::control::{
    CreateSnapshotParams, DEFAULT_RECORD_LENGTH, DriveCheck, LoadSnapshotParams, MAX_RECORD_MS, MemorySource,
    RecordOptions, SnapshotKind, WorkingSetOptions,
};

use super::field::{Error, Off, Rule};
use super::macros::{choice, schema};
use super::network::{ADDRESS_NAMES, PassedProtocol};
use super::vsock;

choice! {
    /// Kind of a snapshot.
    #[derive(Default)]
    SnapshotType mirrors SnapshotKind {
        /// Pages that differ from the loaded snapshot.
        Diff,
        /// All pages that were ever touched.
        #[default]
        Full,
    }
}

schema! {
    /// Snapshot to create.
    #[derive(Deserialize)]
    body SnapshotCreate {
        /// Full: all pages that were ever touched. Diff: pages that differ from the loaded snapshot.
        snapshot_type: Option<SnapshotType> = SnapshotType::default();
        /// State file, replaced if it exists.
        snapshot_path: PathBuf;
        /// Memory file, replaced if it exists. A Diff is merged into its base here, of the same size.
        mem_file_path: PathBuf;
    }
    unsupported {
        /// No effect.
        version => Rule::Ignored("mayfly writes the format of its own release");
    }
    example "{snapshot_type: 'Full', snapshot_path: /snapshot/state, mem_file_path: /snapshot/memory}";
}

choice! {
    /// Kind of a memory backend.
    BackendType {
        /// Memory file.
        File,
        /// Fault handler behind a userfaultfd.
        Uffd,
    }
}

schema! {
    /// Source of guest memory.
    #[derive(Deserialize)]
    body MemBackend {
        /// Memory file, or a fault handler behind a userfaultfd.
        backend_type: BackendType;
        /// Path of the memory file, or of the socket of the fault handler.
        backend_path: PathBuf;
    }
    example "{backend_type: 'File', backend_path: /snapshot/memory}";
}

schema! {
    /// Another tap for a network interface.
    #[derive(Deserialize)]
    body NetworkOverride {
        /// Identifier of the interface.
        #[schema(Id)]
        iface_id: String;
        /// Name of the tap on the host. The kernel chooses a name if it is empty.
        host_dev_name: String;
        /// IPv4 address of the guest, which the device rewrites to ip. Requires ip.
        guest_ip: Option<String>;
        /// IPv4 address that the network sees in place of guest_ip. Not saved in snapshots.
        ip: Option<String>;
        /// MAC address that the guest uses; by default that of the snapshot. Requires mac.
        #[pattern("^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")]
        guest_mac: Option<String>;
        /// MAC address that the network sees in place of guest_mac. Requires ip. Not saved in snapshots.
        #[pattern("^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$")]
        mac: Option<String>;
        /// Passes IPv6, which is dropped otherwise. Requires ip.
        pass: Option<PassedProtocol>;
    }
    example "{iface_id: eth0, host_dev_name: tap1, guest_ip: 10.0.0.2, ip: 10.0.7.1, mac: '02:00:00:00:07:01'}";
}

schema! {
    /// Another file for a drive.
    #[derive(Deserialize)]
    body DriveOverride {
        /// Identifier of the drive.
        #[schema(Id)]
        drive_id: String;
        /// File or block device.
        path_on_host: PathBuf;
        /// Rejects the load if the drive of the snapshot is read-write.
        is_read_only: Option<bool> = false;
    }
    example "{drive_id: rootfs, path_on_host: /images/clone}";
}

schema! {
    /// Working set to record: the pages that the guest touches first. Requires a memory file; excludes working_set.
    #[derive(Deserialize)]
    body RecordWorkingSet {
        /// File for the working set, replaced if it exists.
        path: PathBuf;
        /// Guest time to record, less if the guest exits or a snapshot is created before.
        milliseconds: Option<u64> = DEFAULT_RECORD_LENGTH.as_millis() => Rule::Range(1, MAX_RECORD_MS);
    }
    example "{path: /snapshot/working-set, milliseconds: 100}";
}

schema! {
    /// Snapshot to load. Exactly one of mem_backend and mem_file_path is required.
    #[derive(Deserialize)]
    body SnapshotLoad {
        /// State file.
        snapshot_path: PathBuf;
        /// Source of guest memory.
        mem_backend: Option<MemBackend>;
        /// Memory file. Deprecated.
        mem_file_path: Option<PathBuf>;
        /// Each Diff holds the pages that were written since the last snapshot, not all that differ from the loaded one.
        track_dirty_pages: Option<bool> = false;
        /// Old name of track_dirty_pages. Deprecated.
        enable_diff_snapshots: Option<bool> = false;
        /// Resumes the VM at once.
        resume_vm: Option<bool> = false;
        /// Other taps for network interfaces.
        network_overrides: Option<Vec<NetworkOverride>>;
        /// Other files for drives.
        drive_overrides: Option<Vec<DriveOverride>>;
        /// Advances the guest's clock by the time since the snapshot.
        clock_realtime: Option<bool> = false;
        /// Working set of this snapshot to prefetch. Its pages count as changed.
        working_set: Option<PathBuf>;
        /// Working set to record.
        record_working_set: Option<RecordWorkingSet>;
        /// Rejects the load if only the state file names a file, tap, socket or process to open. Requires an override of each
        /// drive and interface. A tap from network_overrides replaces any other backend.
        untrusted: Option<bool> = false;
        /// Rejects the load if the disk of a drive has changed since the snapshot, by its length or modification time, unless an
        /// override names another file. Otherwise, the log has a warning.
        check_drives: Option<bool> = false;
        /// Removes CPUID bits and model-specific registers of the guest that this host does not support. Otherwise they reject the
        /// load.
        mask_cpu: Option<bool> = false;
    }
    unsupported {
        /// Unsupported: vsock.
        vsock_override => Rule::Unsupported(Off::Null, vsock::UNSUPPORTED);
        /// No effect: the file system of the memory file decides on huge pages.
        huge_pages = "Snapshot" => Rule::Unsupported(
            Off::Text(&["Snapshot", "None"]),
            "the file system of the memory file decides on huge pages; choose Snapshot or None",
        );
    }
    example "{snapshot_path: /snapshot/state, mem_backend: {backend_type: 'File', backend_path: /snapshot/memory}, resume_vm: true, network_overrides: [{iface_id: eth0, host_dev_name: tap1}], drive_overrides: [{drive_id: rootfs, path_on_host: /images/clone}]}";
}

impl SnapshotCreate {
    /// Converts to the parameters of the VMM.
    pub fn into_params(self) -> CreateSnapshotParams {
        let Self {
            snapshot_type,
            snapshot_path,
            mem_file_path,
        } = self;
        CreateSnapshotParams {
            kind: snapshot_type.unwrap_or_default().into(),
            state: snapshot_path,
            memory: mem_file_path,
        }
    }
}

impl SnapshotLoad {
    /// Returns true if a field is set that Firecracker deprecates.
    pub fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots.is_some()
    }

    /// Converts to the parameters of the VMM.
    ///
    /// # Errors
    /// [`Error::Json`] without a source of memory, or with two. [`Error::Invalid`] if addresses of an interface are invalid.
    pub fn into_params(self) -> Result<LoadSnapshotParams, Error> {
        let Self {
            snapshot_path,
            mem_backend,
            mem_file_path,
            track_dirty_pages,
            enable_diff_snapshots,
            resume_vm,
            network_overrides,
            drive_overrides,
            clock_realtime,
            working_set,
            record_working_set,
            untrusted,
            check_drives,
            mask_cpu,
        } = self;
        let taps = network_overrides.unwrap_or_default().into_iter();
        let taps: Result<Vec<_>, Error> = taps.map(NetworkOverride::into_params).collect();
        let disks = drive_overrides.unwrap_or_default().into_iter();
        let disks = disks.map(DriveOverride::into_params);
        Ok(LoadSnapshotParams {
            state: snapshot_path,
            memory: memory_source(mem_backend, mem_file_path)?,
            generations: None,
            overrides: taps?.into_iter().chain(disks).collect(),
            first_frames: Vec::new(),
            track_dirty_pages: [track_dirty_pages, enable_diff_snapshots].contains(&Some(true)),
            resume: resume_vm.unwrap_or_default(),
            realtime: clock_realtime.unwrap_or_default(),
            working_set: WorkingSetOptions {
                prefetch: working_set,
                record: record_working_set.map(RecordWorkingSet::into_params),
            },
            untrusted: untrusted.unwrap_or_default(),
            drive_check: match check_drives {
                Some(true) => DriveCheck::Reject,
                _ => DriveCheck::Warn,
            },
            mask_cpu: mask_cpu.unwrap_or_default(),
        })
    }
}

impl NetworkOverride {
    fn into_params(self) -> Result<(String, DeviceBackend), Error> {
        let Self {
            iface_id,
            host_dev_name,
            guest_ip,
            ip,
            guest_mac,
            mac,
            pass,
        } = self;
        let invalid = |reason| Error::Invalid {
            field: "network_overrides".to_owned(),
            reason,
        };
        let mac_address = |text: Option<String>| {
            let mac = text.as_deref().map(str::parse::<MacAddress>);
            mac.transpose().map_err(invalid)
        };
        let request = AddressRequest {
            guest_ip,
            ip,
            guest_mac: mac_address(guest_mac)?,
            mac: mac_address(mac)?,
            pass_ipv6: pass.is_some(),
        };
        let addresses = request.check(&ADDRESS_NAMES);
        let backend = NetOverride {
            backend: NetBackend::Tap(host_dev_name),
            addresses: addresses.map_err(|error| invalid(error.to_string()))?,
            user: UserNetwork::default(),
        };
        Ok((iface_id, backend.into()))
    }
}

impl DriveOverride {
    fn into_params(self) -> (String, DeviceBackend) {
        let Self {
            drive_id,
            path_on_host,
            is_read_only,
        } = self;
        let backend = DriveBackend {
            path: path_on_host,
            read_only: is_read_only.unwrap_or_default(),
        };
        (drive_id, backend.into())
    }
}

impl RecordWorkingSet {
    fn into_params(self) -> RecordOptions {
        let Self { path, milliseconds } = self;
        RecordOptions {
            path,
            length: milliseconds.map_or(DEFAULT_RECORD_LENGTH, Duration::from_millis),
        }
    }
}

impl MemBackend {
    fn into_source(self) -> MemorySource {
        let Self {
            backend_type,
            backend_path,
        } = self;
        match backend_type {
            BackendType::File => MemorySource::File(backend_path),
            BackendType::Uffd => MemorySource::Uffd(backend_path),
        }
    }
}

/// Returns the source of memory. Firecracker requires exactly one.
fn memory_source(backend: Option<MemBackend>, file: Option<PathBuf>) -> Result<MemorySource, Error> {
    let text = match (backend, file) {
        (Some(backend), None) => return Ok(backend.into_source()),
        (None, Some(path)) => return Ok(MemorySource::File(path)),
        (None, None) => "missing field: either `mem_backend` or `mem_file_path` is required",
        (Some(_), Some(_)) => {
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required"
        }
    };
    Err(Error::Json(text.to_owned()))
}
