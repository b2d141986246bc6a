//! Test guests, built once for all tests, and the program under test.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs};

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let made = Command::new("make")
        .args([
            "--silent",
            "--directory",
            concat!(env!("CARGO_MANIFEST_DIR"), "/resources/guests"),
            "all",
        ])
        .arg(format!("OUT={}", directory.display()))
        .env_remove("MAKEFLAGS")
        .status()
        .unwrap();
    assert!(
        made.success(),
        "cannot build the guests: make failed; run `make setup` to install the tools"
    );
    // /images/initrd of the emulated host is the initrd of its Linux; here the content does not matter.
    fs::write(directory.join("initrd"), vec![7; 10_000]).unwrap();
    directory
});

/// Returns the program under test: `$MAYFLY`, which `make test` sets to the release binary, or the binary of this build.
pub fn program() -> OsString {
    env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into())
}

/// Resets SIGHUP to its default action in `command`. Children inherit ignored signals, for example from nohup.
pub fn reset_sighup(command: &mut Command) {
    let prepare = || {
        // SAFETY: the default action takes no handler.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe { command.pre_exec(prepare) };
}

/// Returns the path on this machine of the emulated host's `path`, which is in /guests or /images.
pub fn file(path: &str) -> String {
    let name = path.trim_start_matches("/guests/").trim_start_matches("/images/");
    DIRECTORY.join(name).to_str().unwrap().to_owned()
}
