//! Test guests, built once for all tests, and the program under test.

use std::ffi::OsString;
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
    LazyLock::force(&CAUGHT_SIGNALS);
    env::var_os("MAYFLY").unwrap_or_else(|| env!("CARGO_BIN_EXE_mayfly").into())
}

/// Catches the signals that the parent of the tests ignores, as nohup and background jobs of a shell do. mayfly would inherit them as
/// ignored; exec resets caught signals to their default action.
static CAUGHT_SIGNALS: LazyLock<()> = LazyLock::new(|| {
    extern "C" fn catch(_: libc::c_int) {}
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        let handler = catch as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler does nothing, and is valid for the life of the process.
        let previous = unsafe { libc::signal(signal, handler) };
        if previous != libc::SIG_IGN {
            // SAFETY: this was the action of the signal before.
            unsafe { libc::signal(signal, previous) };
        }
    }
});

/// Returns the path on this machine of the emulated host's `path`, which is in /guests or /images.
pub fn file(path: &str) -> String {
    let name = path.trim_start_matches("/guests/").trim_start_matches("/images/");
    DIRECTORY.join(name).to_str().unwrap().to_owned()
}
