//! Features of Firecracker that mayfly does not support.

use super::error::Error;
use crate::http::Method;

/// First segment of the path, key in a configuration file, and subject with verb for [`Error::Unsupported`].
const UNSUPPORTED: [(&str, &str, &str); 7] = [
    ("balloon", "balloon", "The balloon is"),
    ("entropy", "entropy", "The entropy device is"),
    ("mmds", "mmds-config", "MMDS is"),
    ("pmem", "pmem", "Pmem devices are"),
    ("hotplug", "memory-hotplug", "Memory hot-plug is"),
    ("cpu-config", "cpu-config", "CPU configuration is"),
    ("vsock", "vsock", "A vsock is"),
];

/// Returns an error if `path` belongs to an unsupported feature, and `method` is one of Firecracker's.
pub(super) fn check_path(method: &Method, path: &str) -> Option<Error> {
    if matches!(method, Method::Other(_)) {
        return None;
    }
    let first = path.split('/').next().unwrap_or_default();
    // Some clients send an empty vsock for each VM; its route checks the body.
    if path == "vsock" && *method == Method::Put {
        return None;
    }
    UNSUPPORTED
        .iter()
        .find(|(name, _, _)| *name == first)
        .map(|(_, _, subject)| Error::Unsupported(subject))
}

/// Returns an error if the key `key` of a configuration file belongs to an unsupported feature.
pub(crate) fn check_key(key: &str) -> Option<Error> {
    UNSUPPORTED
        .iter()
        .find(|(_, name, _)| *name == key)
        .map(|(_, _, subject)| Error::Unsupported(subject))
}
