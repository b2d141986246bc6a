//! Devices and names of the files in a jail.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::sys::{self, affixed};

/// A device node in the jail.
pub struct Device {
    /// Directory in the jail.
    pub directory: &'static str,
    /// Name in the directory.
    pub name: &'static str,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// The jail can do without it.
    pub is_optional: bool,
}

/// Nodes of each jail.
pub const DEVICES: [Device; 3] = [
    Device {
        directory: "dev/net",
        name: "tun",
        major: 10,
        minor: 200,
        is_optional: false,
    },
    Device {
        directory: "dev",
        name: "kvm",
        major: 10,
        minor: 232,
        is_optional: false,
    },
    Device {
        directory: "dev",
        name: "urandom",
        major: 1,
        minor: 9,
        is_optional: true,
    },
];
/// Name of a node that the jail has if the host has the device. Its minor number differs between hosts.
pub const USERFAULTFD: &str = "userfaultfd";
/// Major number of miscellaneous devices.
pub const MISC: u32 = 10;

/// Returns the name of the file with the PID of `program`.
pub fn pid_file(program: &OsStr) -> OsString {
    affixed("", program, ".pid")
}

/// Returns the temporary name of that file.
pub fn pid_file_draft(program: &OsStr) -> OsString {
    affixed(".", program, ".pid")
}

/// Returns the temporary name of the copy of `program`.
pub fn program_draft(program: &OsStr) -> OsString {
    affixed(".", program, ".new")
}

/// Returns the minor number of `/dev/userfaultfd` if the host has this device.
pub fn userfaultfd_minor() -> Option<u32> {
    let is_device = |status: &sys::Status| status.st_mode & libc::S_IFMT == libc::S_IFCHR;
    let status = sys::status_of("/dev/userfaultfd").ok().filter(is_device);
    if let Some(status) = status
        && libc::major(status.st_rdev) == MISC
    {
        return Some(libc::minor(status.st_rdev));
    }
    parse_misc(&std::fs::read_to_string(Path::new("/proc/misc")).ok()?)
}

/// Returns the minor number of userfaultfd in the text of `/proc/misc`.
fn parse_misc(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let (minor, name) = line.trim().split_once(' ')?;
        (name == USERFAULTFD).then(|| minor.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::parse_misc;

    #[test]
    fn minor_number_is_found_in_misc() {
        let text = "126 userfaultfd\n232 kvm\n  1 psaux\n";
        assert_eq!(parse_misc(text), Some(126));
        assert_eq!(parse_misc(" 61 userfaultfd\n"), Some(61));
        assert_eq!(parse_misc("232 kvm\n"), None);
    }
}
