//! Test guests, built once for all tests, and the program under test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;
use std::{env, fs, process};

use vmm::arch::{Architecture, Native, Platform};

/// Limit of the build of all guests.
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// Environment variable with the directory of built guests: the emulated host has no compiler.
const GUESTS: &str = "MAYFLY_GUESTS";

static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = env::var_os(GUESTS).map_or_else(build, PathBuf::from);
    write_initrd(&directory);
    directory
});

/// Builds the guests. Returns their directory, on aarch64 that of the memory map of Firecracker.
fn build() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let made = scratch::run_within(
        BUILD_LIMIT,
        Command::new("make")
            .args([
                "--silent",
                "--directory",
                concat!(env!("CARGO_MANIFEST_DIR"), "/resources/guests"),
                "all",
            ])
            .arg(format!("OUT={}", directory.display()))
            .env_remove("MAKEFLAGS"),
    );
    assert!(
        made.status.success(),
        "cannot build the guests: make failed; run `make setup` to install the tools\n{}",
        String::from_utf8_lossy(&made.stderr)
    );
    match Native::ARCHITECTURE {
        Architecture::X86_64 => directory,
        Architecture::Aarch64 => directory.join("fc"),
    }
}

/// Writes the initrd of the emulated host's Linux; here the content does not matter. Another run may use the file: it is replaced.
fn write_initrd(directory: &Path) {
    let written = directory.join(format!("initrd.{}", process::id()));
    fs::write(&written, vec![7; 10_000]).unwrap();
    fs::rename(&written, directory.join("initrd")).unwrap();
}

/// Returns the program under test: `$MAYFLY`, which `make test` sets to the release binary, or the binary of this build.
pub fn program() -> OsString {
    env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into())
}

/// Returns the jailer beside the program under test.
pub fn jailer() -> PathBuf {
    let path = Path::new(&program()).with_file_name("mayfly-jailer");
    assert!(
        path.exists(),
        "{} is missing; run `make build`, or `cargo build --workspace` for a test of a debug build",
        path.display()
    );
    path
}

/// Returns the path on this machine of the emulated host's `path`, which is in /guests or /images.
pub fn file(path: &str) -> String {
    let name = path.trim_start_matches("/guests/").trim_start_matches("/images/");
    DIRECTORY.join(name).to_str().unwrap().to_owned()
}
