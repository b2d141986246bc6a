//! Frames that a caller has received for the guest before a load.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;

use devices::virtio::net::FirstFrames;
use devices::virtio::net::first_frames::{Error as FramesError, MAX_FIRST_BYTES};

use crate::config::{DeviceKind, VmConfig};
use crate::machine::PassedFiles;

/// File with first frames. Its format is that of [`devices::virtio::net::first_frames`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstFramesFile {
    /// ID of the network interface; none for the first one.
    pub interface: Option<String>,
    /// Number of the open descriptor of the file.
    pub descriptor: RawFd,
}

/// Reason why first frames cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The snapshot has no such interface.
    #[error("cannot pass first frames to network interface {id:?}: the snapshot has {known}")]
    Unknown {
        /// ID of the interface.
        id: String,
        /// IDs of the interfaces in the snapshot, separated by commas, or `none`.
        known: String,
    },
    /// The snapshot has no interface.
    #[error("cannot pass first frames: the snapshot has no network interface")]
    NoInterface,
    /// Two files are for one interface.
    #[error("cannot pass first frames to network interface {0:?} twice; pass one file with all frames")]
    Twice(String),
    /// The file cannot be read.
    #[error("cannot read first frames from descriptor {descriptor}")]
    Read {
        /// Number of the descriptor.
        descriptor: RawFd,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not that of a regular file.
    #[error("cannot read first frames from descriptor {0}: it is no regular file; pass a memfd")]
    NotRegular(RawFd),
    /// The frames are invalid.
    #[error("cannot use the first frames of descriptor {descriptor}")]
    Frames {
        /// Number of the descriptor.
        descriptor: RawFd,
        /// Cause.
        #[source]
        source: FramesError,
    },
}

/// Reads all `files`, for the interfaces of the checked `config`, into `passed`.
pub(super) fn read(
    files: &[FirstFramesFile],
    config: &VmConfig,
    passed: &mut PassedFiles,
) -> Result<(), Error> {
    for file in files {
        let id = match &file.interface {
            Some(id) if config.position(DeviceKind::Interface, id).is_some() => id.clone(),
            Some(id) => {
                return Err(Error::Unknown {
                    id: id.clone(),
                    known: config.list_ids(DeviceKind::Interface),
                });
            }
            None => config.interfaces().next().ok_or(Error::NoInterface)?.id.clone(),
        };
        if passed.has_first_frames(&id) {
            return Err(Error::Twice(id));
        }
        let frames = read_file(file.descriptor, passed)?;
        passed.add_first_frames(id, frames);
    }
    Ok(())
}

fn read_file(descriptor: RawFd, passed: &mut PassedFiles) -> Result<FirstFrames, Error> {
    let failed = |source| Error::Read { descriptor, source };
    let invalid = |source| Error::Frames { descriptor, source };
    let file = File::from(passed.open_descriptor(descriptor).map_err(failed)?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::NotRegular(descriptor));
    }
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    if length > MAX_FIRST_BYTES {
        return Err(invalid(FramesError::TooLong(length)));
    }
    let mut records = vec![0; length];
    file.read_exact_at(&mut records, 0).map_err(failed)?;
    FirstFrames::parse(records).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::{AsRawFd, OwnedFd};

    use scratch::Temporary;

    use super::{FirstFramesFile, MAX_FIRST_BYTES, read};
    use crate::config::{HostMemory, NetConfig, VmConfig, VmSpec};
    use crate::error_chain::ErrorChain;
    use crate::machine::PassedFiles;

    fn spec(interfaces: &[&str]) -> VmSpec {
        let nets = interfaces
            .iter()
            .map(|id| format!("user,id={id}").parse::<NetConfig>());
        let config = VmConfig {
            devices: nets.map(|net| net.unwrap().into()).collect(),
            ..VmConfig::new("kernel".into())
        };
        config.check(&HostMemory { memory: 1 << 30 }).unwrap()
    }

    fn record(length: u8) -> Vec<u8> {
        [&[length, 0, 0, 0][..], &vec![0; length.into()]].concat()
    }

    fn result(interfaces: &[&str], files: &[(Option<&str>, &File)]) -> Result<PassedFiles, String> {
        let files: Vec<_> = files
            .iter()
            .map(|(id, file)| FirstFramesFile {
                interface: id.map(str::to_owned),
                descriptor: file.as_raw_fd(),
            })
            .collect();
        let mut passed = PassedFiles::default();
        read(&files, spec(interfaces).config(), &mut passed)
            .map_err(|error| ErrorChain(&error).to_string())?;
        Ok(passed)
    }

    #[test]
    fn frames_reach_their_interface() {
        let files = [record(26), [record(60), record(61)].concat()].map(|bytes| Temporary::with(&bytes));
        let [one, two] = files.each_ref().map(|file| File::open(file.path()).unwrap());
        let mut passed = result(&["a", "b"], &[(Some("b"), &one), (None, &two)]).unwrap();
        let mut lengths = |id| passed.take_first_frames(id).map(|frames| frames.len());
        assert_eq!(
            ["a", "b", "a", "c"].map(&mut lengths),
            [Some(2), Some(1), None, None]
        );
    }

    #[test]
    fn unusable_files_are_rejected_by_name() {
        let good = Temporary::with(&record(26));
        let good = File::open(good.path()).unwrap();
        let check = |interfaces: &[&str], files: &[(Option<&str>, &File)], reason: &str| {
            let error = result(interfaces, files).unwrap_err();
            assert!(error.contains(reason), "{error}");
        };
        check(
            &["a"],
            &[(Some("b"), &good)],
            "interface \"b\": the snapshot has a",
        );
        check(&[], &[(None, &good)], "the snapshot has no network interface");
        check(&["a"], &[(None, &good), (Some("a"), &good)], "\"a\" twice");
        let (pipe, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(pipe));
        check(&["a"], &[(None, &pipe)], "it is no regular file");
        let huge = Temporary::with(&[]);
        File::options()
            .write(true)
            .open(huge.path())
            .unwrap()
            .set_len(MAX_FIRST_BYTES as u64 + 1)
            .unwrap();
        let huge = File::open(huge.path()).unwrap();
        check(
            &["a"],
            &[(None, &huge)],
            "they have 4194305 bytes; at most 4194304",
        );
        let short = Temporary::with(&record(26)[..29]);
        let short = File::open(short.path()).unwrap();
        check(&["a"], &[(None, &short)], "frame 1 ends before its length");
        let write_only = Temporary::with(&record(26));
        let write_only = File::options().write(true).open(write_only.path()).unwrap();
        check(
            &["a"],
            &[(None, &write_only)],
            "cannot read first frames from descriptor",
        );
        let closed = [FirstFramesFile {
            interface: None,
            descriptor: 900,
        }];
        let error = read(&closed, spec(&["a"]).config(), &mut PassedFiles::default()).unwrap_err();
        assert!(
            ErrorChain(&error).to_string().contains("Bad file descriptor"),
            "{error}"
        );
    }
}
