//! A `/dev/kvm` that is missing or forbidden.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chroot};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::guests::program;

/// Major and minor number of `/dev/kvm`.
pub const KVM: (u32, u32) = (10, 232);

/// A folder with nothing in it but mayfly, which is static and so runs there.
pub fn bare_root(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir(&root).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    // A link: what is being copied cannot be executed while another test forks.
    fs::hard_link(program(), root.join("mayfly")).unwrap();
    root
}

/// `mayfly demo` with `root` as its root, as user `user` if one is given. Takes root's rights, as CI has them.
fn demo(root: PathBuf, user: Option<u32>) -> Output {
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
    // SAFETY: what runs between fork and exec makes system calls only.
    unsafe { command.pre_exec(enter) };
    command
        .output()
        .unwrap_or_else(|error| panic!("chroot needs root's rights: {error}"))
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Makes the device `(major, minor)` at `path`.
pub fn make_node(path: &Path, mode: u32, (major, minor): (u32, u32)) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: `name` is a C string for the length of the call.
    let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | mode, libc::makedev(major, minor)) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // mknod heeds the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_missing_device_is_explained() {
    let said = refusal(&demo(bare_root("no-kvm"), None));
    assert!(
        said.contains("cannot open /dev/kvm: it does not exist; load the module kvm_intel or kvm_amd"),
        "{said}"
    );
}

#[test]
fn a_forbidden_device_is_explained() {
    let root = bare_root("forbidden-kvm");
    fs::create_dir(root.join("dev")).unwrap();
    make_node(&root.join("dev/kvm"), 0o600, KVM);
    let said = refusal(&demo(root, Some(65534)));
    assert!(
        said.contains("cannot open /dev/kvm: permission denied; join the group"),
        "{said}"
    );
}

#[test]
fn something_else_in_its_place_is_explained() {
    let root = bare_root("other-kvm");
    fs::create_dir(root.join("dev")).unwrap();
    fs::write(root.join("dev/kvm"), "").unwrap();
    let said = refusal(&demo(root, None));
    assert!(said.contains("check that it is the device of KVM"), "{said}");
}

#[test]
fn nothing_but_the_device_is_needed() {
    let root = bare_root("kvm-only");
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
