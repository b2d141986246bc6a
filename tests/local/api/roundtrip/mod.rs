//! Round trips: guests that detect lost, repeated or changed state after a restore.

mod clock;
mod disk;
mod packets;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process};

use super::served::{ApiProcess, Directory, PAUSED};
use crate::guests::{file, program};

/// A snapshot in a directory in shared memory. Drop removes it.
struct Snapshot(PathBuf);

impl Snapshot {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/dev/shm/mayfly-roundtrip-{}-{count}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn directory(&self) -> String {
        self.text("")
    }

    fn text(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Pauses the guest and creates a snapshot.
    fn pause_and_create(&self, process: &ApiProcess, kind: &str) {
        process.expect_no_content("PATCH", "/vm", PAUSED);
        self.create(process, kind);
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

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
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
