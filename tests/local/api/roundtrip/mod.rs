//! Round trips: guests that detect lost, repeated or changed state after a restore.

/// Guest time by kvmclock. Module `aarch64` of tests/hosts has the tests of the counter of aarch64.
#[cfg(target_arch = "x86_64")]
mod clock;
mod disk;
mod packets;

use std::path::Path;
use std::process::Command;

use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};

/// A snapshot in a directory in shared memory. Drop removes it.
struct Snapshot(Directory);

impl Snapshot {
    fn new() -> Self {
        Self(Directory::new_in(Path::new("/dev/shm")))
    }

    fn text(&self, name: &str) -> String {
        self.0.text(name)
    }

    /// Creates a snapshot of a paused guest.
    fn create(&self, process: &ApiProcess, kind: &str) {
        let (state, memory) = (self.text("state"), self.text("memory"));
        let body =
            format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        process.expect_no_content("PUT", "/snapshot/create", &body);
    }

    /// Loads the snapshot in another process, with more `fields` in the body.
    fn load(&self, fields: &str) -> ApiProcess {
        let process = ApiProcess::start();
        let (state, memory) = (self.text("state"), self.text("memory"));
        let backend = format!(r#"{{"backend_type":"File","backend_path":"{memory}"}}"#);
        let body = format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#);
        process.expect_no_content("PUT", "/snapshot/load", &body);
        process
    }
}

/// Starts the guest `name` with 8 MiB, `options`, and its `arguments` after `--`. Both are split at spaces.
fn start(name: &str, options: &str, arguments: &str) -> ApiProcess {
    let directory = Directory::new();
    let socket = directory.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(["run", &file(name), "--memory", "8M", "--api-sock", &socket])
        .args(options.split_whitespace())
        .arg("--")
        .args(arguments.split_whitespace());
    ApiProcess::spawn(directory, &mut command)
}
