//! The guests, built once for all tests.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let made = Command::new("make")
        .args([
            "--silent",
            "--directory",
            concat!(env!("CARGO_MANIFEST_DIR"), "/resources/guests"),
            "all",
        ])
        .arg(format!("OUT={}", folder.display()))
        .env_remove("MAKEFLAGS")
        .status()
        .unwrap();
    assert!(
        made.success(),
        "the guests cannot be built: make setup installs what that takes"
    );
    // What is in the emulated host as /images/initrd is the initrd of its Linux; here any bytes will do.
    fs::write(folder.join("initrd"), vec![7; 10_000]).unwrap();
    folder
});

/// The mayfly under test: the one that MAYFLY names, as `make test` does with the release binary, or else this build's.
pub fn program() -> OsString {
    env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into())
}

/// Has `command` heed SIGHUP, which a test run by nohup ignores, and with it all that it starts.
pub fn reset_sighup(command: &mut Command) {
    let prepare = || {
        // SAFETY: the default action takes no handler.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: what runs between fork and exec makes one system call.
    unsafe { command.pre_exec(prepare) };
}

/// Where `path` of the emulated host, in /guests or /images, is on this machine.
pub fn file(path: &str) -> String {
    let name = path.trim_start_matches("/guests/").trim_start_matches("/images/");
    FOLDER.join(name).to_str().unwrap().to_owned()
}
