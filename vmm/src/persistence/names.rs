//! Names in a state file: the host sides of the devices, which a load opens.
//!
//! A state file may come from an attacker. An untrusted load opens only files, interfaces and processes that the caller names. All
//! names are checked before one is opened.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::source::MemorySource;
use super::working_set::WorkingSetOptions;
use crate::config::{BackendDescription, DeviceBackend, DeviceConfig, DeviceKind, DriveBackend, VmConfig};

/// Maximum length of an ID and of the name of a host side in bytes: that of a path in Linux, `PATH_MAX` without its NUL.
const MAX_LENGTH: usize = 4095;

/// Device whose host side only the state file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnnamedDevice {
    /// Kind of the device.
    pub kind: DeviceKind,
    /// ID of the device.
    pub id: String,
    /// Host side in the state file, and its access.
    pub backend: String,
}

impl fmt::Display for UnnamedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} ({})", self.kind, self.id, self.backend)
    }
}

/// Reason to open nothing that a state file names.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The snapshot is untrusted, and the caller does not name the host sides of these devices.
    #[error("cannot open the devices of an untrusted snapshot: only the state file names {}; name each", list(.0))]
    Unnamed(Vec<UnnamedDevice>),
    /// The caller names a drive read-only that the snapshot has read-write.
    #[error(
        "cannot attach drive {0:?} read-only: the snapshot has it read-write; permit writes, or create the snapshot with a read-only drive"
    )]
    Writable(String),
    /// A file of an untrusted snapshot leads elsewhere, or has no fixed content.
    #[error(
        "cannot open {0:?} of an untrusted snapshot: it is a link, directory, pipe or device; name a regular file"
    )]
    NotRegular(PathBuf),
    /// An ID or the name of a host side is longer than a path can be.
    #[error(
        "cannot use device {number} of the state file, a {kind}: its ID or host side has {length} bytes, at most {MAX_LENGTH} are \
         possible; create the snapshot again"
    )]
    TooLong {
        /// Kind of the device.
        kind: DeviceKind,
        /// Position among all devices, from 1.
        number: usize,
        /// Length in bytes.
        length: usize,
    },
}

fn list(devices: &[UnnamedDevice]) -> String {
    let texts: Vec<_> = devices.iter().map(UnnamedDevice::to_string).collect();
    texts.join(", ")
}

/// Checks that the files of an untrusted snapshot are regular files and no links: its directory may come from an archive. A missing
/// file passes; its open fails.
pub(super) fn check_files(
    state: &Path,
    memory: &MemorySource,
    working_set: &WorkingSetOptions,
) -> Result<(), Error> {
    let memory = match memory {
        MemorySource::File(path) => Some(path.as_path()),
        MemorySource::Uffd(_) => None,
    };
    let record = working_set.record.as_ref().map(|record| record.path.as_path());
    let files = [Some(state), memory, working_set.prefetch.as_deref(), record];
    for path in files.into_iter().flatten() {
        if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Error::NotRegular(path.to_owned()));
        }
    }
    Ok(())
}

/// Checks an override of the device `config` of the snapshot: the state file must not extend the access that the caller names.
pub(super) fn check_access(config: &DeviceConfig, backend: &DeviceBackend) -> Result<(), Error> {
    match (config, backend) {
        (DeviceConfig::Drive(drive), DeviceBackend::Drive(DriveBackend { read_only: true, .. }))
            if !drive.disk.read_only =>
        {
            Err(Error::Writable(drive.disk.id.clone()))
        }
        _ => Ok(()),
    }
}

/// Checks the lengths of all names in `config`: messages show them.
pub(super) fn check_lengths(config: &VmConfig) -> Result<(), Error> {
    for (device, number) in config.devices.iter().zip(1..) {
        let length = device.id().len().max(device.backend_length());
        if length > MAX_LENGTH {
            let kind = device.kind();
            return Err(Error::TooLong { kind, number, length });
        }
    }
    Ok(())
}

/// Checks that each device of the checked `config` is in `overrides`.
pub(super) fn check_named(config: &VmConfig, overrides: &[(String, DeviceBackend)]) -> Result<(), Error> {
    let unnamed = config
        .devices
        .iter()
        .filter(|device| !is_named(device, overrides));
    let unnamed: Vec<_> = unnamed
        .map(|device| UnnamedDevice {
            kind: device.kind(),
            id: device.id().to_owned(),
            backend: BackendDescription(device).to_string(),
        })
        .collect();
    match unnamed.is_empty() {
        true => Ok(()),
        false => Err(Error::Unnamed(unnamed)),
    }
}

fn is_named(device: &DeviceConfig, overrides: &[(String, DeviceBackend)]) -> bool {
    let mut overrides = overrides.iter();
    overrides.any(|(id, backend)| (backend.kind(), id.as_str()) == (device.kind(), device.id()))
}

/// Logs all that the load opens: the source of memory, and the host side of each device with its access.
pub(super) fn log(config: &VmConfig, overrides: &[(String, DeviceBackend)], memory: &MemorySource) {
    match memory {
        MemorySource::File(path) => log::info!("the load opens the memory file {path:?}, read-only"),
        MemorySource::Uffd(path) => log::info!("the load connects to the fault handler at {path:?}"),
    }
    for device in &config.devices {
        let source = match is_named(device, overrides) {
            true => "an override",
            false => "the state file",
        };
        let backend = BackendDescription(device);
        log::info!(
            "the load opens {} {:?}, named by {source}: {backend}",
            device.kind(),
            device.id()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Error, MAX_LENGTH, check_access, check_lengths, check_named};
    use crate::config::{
        DeviceBackend, DeviceConfig, DriveBackend, DriveConfig, HostMemory, NetBackend, NetConfig, VmConfig,
    };

    const HOST: HostMemory = HostMemory { memory: 1 << 30 };

    fn drive(text: &str) -> DeviceConfig {
        text.parse::<DriveConfig>().unwrap().into()
    }

    fn interface(text: &str) -> DeviceConfig {
        text.parse::<NetConfig>().unwrap().into()
    }

    fn config(devices: Vec<DeviceConfig>) -> VmConfig {
        VmConfig {
            devices,
            ..VmConfig::new("kernel".into())
        }
    }

    fn named(devices: Vec<DeviceConfig>, overrides: &[(&str, DeviceBackend)]) -> Result<(), String> {
        let spec = config(devices).check(&HOST).unwrap();
        let owned = overrides
            .iter()
            .map(|(id, backend)| ((*id).to_owned(), backend.clone()));
        check_named(spec.config(), &owned.collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_unnamed_device_is_listed() {
        let disk: DeviceBackend = PathBuf::from("/named").into();
        let user: DeviceBackend = NetBackend::User.into();
        assert_eq!(named(vec![], &[]), Ok(()));
        let devices = || vec![drive("/a,id=x"), drive("/b,ro"), interface("tap:t,id=x")];
        let all = named(devices(), &[]).unwrap_err();
        for text in [
            "drive \"x\" (/a, read-write), drive \"drive1\" (/b, read-only)",
            "network interface \"x\" (tap:t, read-write)",
        ] {
            assert!(all.contains(text), "{all}");
        }
        // An override names devices of its own kind only.
        let drives = [("x", disk.clone()), ("drive1", disk.clone())];
        let text = named(devices(), &drives).unwrap_err();
        assert!(
            text.contains("network interface \"x\"") && !text.contains("drive"),
            "{text}"
        );
        let all = [("x", disk.clone()), ("drive1", disk), ("x", user)];
        assert_eq!(named(devices(), &all), Ok(()));
    }

    #[test]
    fn state_does_not_extend_named_access() {
        let read_only = DriveBackend {
            path: "/x".into(),
            read_only: true,
        };
        let writable = DriveBackend::from(PathBuf::from("/x"));
        let result =
            |device: &str, backend: &DriveBackend| check_access(&drive(device), &backend.clone().into());
        assert_eq!(result("/a,ro,id=d", &read_only), Ok(()));
        assert_eq!(result("/a,ro,id=d", &writable), Ok(()));
        assert_eq!(result("/a,id=d", &writable), Ok(()));
        assert_eq!(result("/a,id=d", &read_only), Err(Error::Writable("d".into())));
    }

    #[test]
    fn names_of_any_length_are_rejected() {
        let [longest, long] = [MAX_LENGTH, MAX_LENGTH + 1].map(|length| "x".repeat(length));
        let check = |device| check_lengths(&config(vec![device]));
        for name in [&longest, &long] {
            for device in [
                drive(name),
                drive(&format!("/a,id={name}")),
                interface(&format!("tap:{name}")),
                interface(&format!("unix:{name}")),
                interface(&format!("user,id={name}")),
            ] {
                assert_eq!(check(device).is_ok(), name == &longest, "{} bytes", name.len());
            }
        }
    }
}
