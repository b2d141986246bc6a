//! Descriptors that this process has inherited: taps, which its user needs no right to open, and the API socket.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use devices::virtio::net::tap::{self, Tap};

use super::sys;

/// First descriptor that systemd passes (sd_listen_fds(3)).
const FIRST: RawFd = 3;
/// Name of the taps among the descriptors that systemd passes.
pub const TAP: &str = "tap";
/// Name of the API socket among the descriptors that systemd passes.
pub const API: &str = "api";

/// Failure to use an inherited descriptor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor is not open.
    #[error("cannot use descriptor {number} as a tap; pass an open one")]
    Closed {
        /// Number of the descriptor.
        number: RawFd,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The descriptor is no tap.
    #[error("cannot use descriptor {number} as a tap")]
    Tap {
        /// Number of the descriptor.
        number: RawFd,
        /// Cause.
        #[source]
        source: tap::Error,
    },
    /// The descriptor is no listening socket.
    #[error("cannot use descriptor {number} as the API socket; pass a listening unix stream socket")]
    NotListening {
        /// Number of the descriptor.
        number: RawFd,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The inherited socket has another path than that of the options.
    #[error("cannot serve the API at {}: the inherited socket is {}; name the same path", path.display(), inherited.display())]
    OtherPath {
        /// Path of the options.
        path: PathBuf,
        /// Path of the socket, empty without one.
        inherited: PathBuf,
    },
    /// Two descriptors are of one tap.
    #[error("cannot use descriptor {number}: tap {name} is passed twice; remove one")]
    Twice {
        /// Number of the descriptor.
        number: RawFd,
        /// Name of the tap.
        name: String,
    },
}

/// Inherited taps by the names of their interfaces.
#[derive(Debug, Default)]
pub struct PassedTaps(BTreeMap<String, OwnedFd>);

impl PassedTaps {
    /// Takes the descriptors `numbers`, which no other part of the process may own. Processes of instances do not inherit them.
    ///
    /// # Errors
    /// [`Error`]
    pub fn take(numbers: &[RawFd]) -> Result<Self, Error> {
        let mut taps = BTreeMap::new();
        for number in numbers.iter().copied() {
            let closed = |source| Error::Closed { number, source };
            let descriptor = sys::take_inherited(number).map_err(closed)?;
            let copy = descriptor.try_clone().map_err(closed)?;
            let tap = Tap::from_descriptor(copy).map_err(|source| Error::Tap { number, source })?;
            let name = tap.name().to_owned();
            if taps.insert(name.clone(), descriptor).is_some() {
                return Err(Error::Twice { number, name });
            }
        }
        Ok(Self(taps))
    }

    /// Returns a copy of the descriptor of the tap `name`, if it is passed.
    pub fn open(&self, name: &str) -> Option<io::Result<OwnedFd>> {
        let descriptor = self.0.get(name)?;
        Some(descriptor.as_fd().try_clone_to_owned())
    }
}

/// Takes the descriptor `number`, the socket of the API at `path`, which no other part of the process may own.
///
/// # Errors
/// [`Error::Closed`], [`Error::NotListening`] and [`Error::OtherPath`].
pub fn take_listener(number: RawFd, path: &Path) -> Result<UnixListener, Error> {
    let not_listening = |source| Error::NotListening { number, source };
    let descriptor = sys::take_inherited(number).map_err(|source| Error::Closed { number, source })?;
    sys::check_listener(descriptor.as_fd()).map_err(not_listening)?;
    let listener = UnixListener::from(descriptor);
    let address = listener.local_addr().map_err(not_listening)?;
    let inherited = address.as_pathname().unwrap_or(Path::new(""));
    if !is_same_file(inherited, path) {
        return Err(Error::OtherPath {
            path: path.to_owned(),
            inherited: inherited.to_owned(),
        });
    }
    Ok(listener)
}

/// Returns true if both paths, of which links may be parts, name one file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).ok();
    identity(one).is_some() && identity(one) == identity(other)
}

/// Returns the numbers of the descriptors with `name` that systemd has passed to the process `pid`, by the values of `LISTEN_PID`,
/// `LISTEN_FDS` and `LISTEN_FDNAMES`.
pub fn numbers_of_systemd(pid: u32, [listen_pid, count, names]: [Option<&str>; 3], name: &str) -> Vec<RawFd> {
    let is_ours = listen_pid.and_then(|pid| pid.parse().ok()) == Some(pid);
    let count = count.and_then(|count| count.parse().ok()).filter(|_| is_ours);
    let names = names.unwrap_or_default().split(':');
    let numbered = (FIRST..).zip(names).take(count.unwrap_or(0));
    numbered
        .filter(|(_, known)| *known == name)
        .map(|(number, _)| number)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{API, PassedTaps, TAP, numbers_of_systemd};

    #[test]
    fn descriptors_of_systemd_have_their_name() {
        let numbers = |pid, count, names| numbers_of_systemd(7, [pid, count, names], TAP);
        let sockets = numbers_of_systemd(7, [Some("7"), Some("3"), Some("tap:api:tap")], API);
        assert_eq!(sockets, [4]);
        assert_eq!(numbers(Some("7"), Some("3"), Some("tap:other:tap")), [3, 5]);
        assert_eq!(numbers(Some("7"), Some("1"), Some("tap:tap")), [3]);
        for (pid, count, names) in [
            (None, Some("1"), Some("tap")),
            (Some("8"), Some("1"), Some("tap")),
            (Some("7"), None, Some("tap")),
            (Some("7"), Some("x"), Some("tap")),
            (Some("7"), Some("1"), None),
        ] {
            assert!(numbers(pid, count, names).is_empty());
        }
    }

    #[test]
    fn closed_descriptor_is_an_error() {
        let error = PassedTaps::take(&[1_000_000]).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot use descriptor 1000000"),
            "{error}"
        );
    }
}
