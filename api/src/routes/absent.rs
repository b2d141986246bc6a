//! What Firecracker has and mayfly has not.

use super::Error;
use crate::http::Method;

/// What there is not: the first part of its path, its key in a configuration file, and how it is spoken of.
const ABSENT: [(&str, &str, &str); 7] = [
    ("balloon", "balloon", "The balloon is"),
    ("entropy", "entropy", "The entropy device is"),
    ("mmds", "mmds-config", "MMDS is"),
    ("pmem", "pmem", "Pmem devices are"),
    ("hotplug", "memory-hotplug", "Memory hot-plug is"),
    ("cpu-config", "cpu-config", "CPU configuration is"),
    ("vsock", "vsock", "A vsock is"),
];

/// Says so, if `path` is that of something that is not there, and `method` one that Firecracker might take.
pub(super) fn check_path(method: &Method, path: &str) -> Option<Error> {
    if matches!(method, Method::Other(_)) {
        return None;
    }
    let first = path.split('/').next().unwrap_or_default();
    // An empty one is none, and some clients always send it.
    if path == "vsock" && *method == Method::Put {
        return None;
    }
    ABSENT
        .iter()
        .find(|(name, _, _)| *name == first)
        .map(|(_, _, subject)| Error::Absent(subject, "mayfly"))
}

/// What is said of the key `key` of a configuration file if it is that of something that is not there.
pub(crate) fn check_key(key: &str) -> Option<Error> {
    ABSENT
        .iter()
        .find(|(_, name, _)| *name == key)
        .map(|(_, _, subject)| Error::Absent(subject, "mayfly"))
}
