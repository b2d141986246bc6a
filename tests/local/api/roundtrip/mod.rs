//! Everything returns: guests that notice when anything of theirs is lost, doubled or not as it was.

mod clock;
mod disk;
mod packets;

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process};

use super::served::{ApiProcess, Directory};
use crate::guests::{file, program};

const PAUSED: &str = r#"{"state":"Paused"}"#;

/// A snapshot in memory; it goes when this goes.
struct Snapshot(PathBuf);

impl Snapshot {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/dev/shm/mayfly-returns-{}-{count}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn folder(&self) -> String {
        self.text("")
    }

    fn text(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Pauses the guest and freezes it.
    fn take(&self, served: &ApiProcess, kind: &str) {
        served.expect_no_content("PATCH", "/vm", PAUSED);
        self.create(served, kind);
    }

    /// Freezes a guest that is paused.
    fn create(&self, served: &ApiProcess, kind: &str) {
        let (state, memory) = (self.text("state"), self.text("memory"));
        let body =
            format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        served.expect_no_content("PUT", "/snapshot/create", &body);
    }

    /// Another mayfly has it, as more `fields` say.
    fn load(&self, fields: &str) -> ApiProcess {
        let served = ApiProcess::start();
        let (state, memory) = (self.text("state"), self.text("memory"));
        let backend = format!(r#"{{"backend_type":"File","backend_path":"{memory}"}}"#);
        let body = format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#);
        served.expect_no_content("PUT", "/snapshot/load", &body);
        served
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The guest `name` in 8 MiB, with more `options` and behind `--` its `arguments`, all of them separated by blanks.
fn run(name: &str, options: &str, arguments: &str) -> ApiProcess {
    let folder = Directory::new();
    let socket = folder.text("api.sock");
    let mut command = Command::new(program());
    command
        .args(["run", &file(name), "--memory", "8M", "--api-sock", &socket])
        .args(options.split_whitespace())
        .arg("--")
        .args(arguments.split_whitespace());
    ApiProcess::called(folder, &mut command)
}
