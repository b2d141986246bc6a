//! Errors for a missing or inaccessible `/dev/kvm`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, chroot};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use scratch::{Directory, Requirement};

use crate::guests::program;

/// Major and minor number of `/dev/kvm` (Documentation/admin-guide/devices.txt).
pub const KVM: (u32, u32) = (10, 232);

/// Creates a directory with mayfly alone, which is static and needs no other file.
pub fn bare_root() -> Directory {
    // In the file system of the program, for the link.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    // The emulated host does not have it.
    fs::create_dir_all(parent).unwrap();
    let directory = Directory::new_in(parent);
    let root = directory.root();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    // A link: exec of a copy fails with ETXTBSY while a child of another test holds the descriptor.
    fs::hard_link(program(), root.join("mayfly")).unwrap();
    directory
}

/// Runs `mayfly demo` in the root `root`, as `user` if given. Requires root.
fn demo(root: &Path, user: Option<u32>) -> Output {
    let root = root.to_owned();
    let mut command = Command::new("/mayfly");
    command.arg("demo");
    let enter = move || {
        chroot(&root)?;
        std::env::set_current_dir("/")?;
        match user {
            // SAFETY: setuid takes no pointer.
            Some(user) if unsafe { libc::setuid(user) } != 0 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(enter) };
    scratch::run(&mut command)
}

fn expect_error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Creates the device node `(major, minor)` at `path`.
pub fn make_node(path: &Path, mode: u32, (major, minor): (u32, u32)) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: `name` is a C string for the length of the call.
    let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | mode, libc::makedev(major, minor)) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // mknod applies the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn missing_device_is_reported() {
    if !scratch::require(Requirement::Root) {
        return;
    }
    let stderr = expect_error(&demo(bare_root().root(), None));
    assert!(
        stderr.contains("cannot open /dev/kvm: it does not exist; load the module kvm_intel or kvm_amd"),
        "{stderr}"
    );
}

#[test]
fn inaccessible_device_is_reported() {
    if !scratch::require(Requirement::Root) {
        return;
    }
    let directory = bare_root();
    let root = directory.root();
    fs::create_dir(root.join("dev")).unwrap();
    let device = root.join("dev/kvm");
    make_node(&device, 0o660, KVM);
    // The user keeps the group of root.
    chown(&device, None, Some(65533)).unwrap();
    let stderr = expect_error(&demo(root, Some(65534)));
    assert!(
        stderr.contains("cannot open /dev/kvm: permission denied; join the group"),
        "{stderr}"
    );
    fs::set_permissions(&device, fs::Permissions::from_mode(0o600)).unwrap();
    let stderr = expect_error(&demo(root, Some(65534)));
    assert!(
        stderr.contains("cannot open /dev/kvm: permission denied, also to its group; run chgrp kvm /dev/kvm"),
        "{stderr}"
    );
}

#[test]
fn regular_file_is_not_kvm() {
    if !scratch::require(Requirement::Root) {
        return;
    }
    let directory = bare_root();
    let root = directory.root();
    fs::create_dir(root.join("dev")).unwrap();
    fs::write(root.join("dev/kvm"), "").unwrap();
    let stderr = expect_error(&demo(root, None));
    assert!(stderr.contains("check that it is the device of KVM"), "{stderr}");
}

#[test]
fn device_alone_suffices() {
    if !scratch::require(Requirement::Root) {
        return;
    }
    let directory = bare_root();
    let root = directory.root();
    fs::create_dir(root.join("dev")).unwrap();
    make_node(&root.join("dev/kvm"), 0o666, KVM);
    let output = demo(root, None);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("resetting the machine"));
}
