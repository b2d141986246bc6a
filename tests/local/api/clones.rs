//! Clones beside their living source: a clone gets a disk of its own between its load and its resume, as Firecracker's clients do
//! it. A disk in use by another process rejects the resume, and the clone stays paused.

use std::fs;

use super::http::{Client, NO_CONTENT, Response, go_request};
use super::replay::{START, send_as_go};
use super::served::{ApiProcess, Directory, PAUSED, RESUMED};
use crate::guests::file;

/// Bytes of a disk of the guest `blocks.elf`.
const SIZE: usize = 64 * 8 * 512;

/// A source that is paused after its snapshot, in its directory, with the disk `disk`.
struct Source(ApiProcess);

impl Source {
    /// Starts the guest by the requests of firecracker-go-sdk, and creates a snapshot.
    fn start(engine: &str) -> Self {
        let mut process = ApiProcess::start();
        let disk = process.directory.write("disk", vec![0; SIZE]);
        let kernel = file("blocks.elf");
        let mut client = process.connect();
        for (path, body) in [
            (
                "/machine-config",
                r#"{"mem_size_mib":8,"smt":false,"vcpu_count":1}"#.to_owned(),
            ),
            ("/boot-source", format!(r#"{{"kernel_image_path":"{kernel}"}}"#)),
            (
                "/drives/d",
                format!(
                    r#"{{"drive_id":"d","io_engine":"{engine}","is_read_only":false,"is_root_device":false,"path_on_host":"{disk}"}}"#
                ),
            ),
            ("/actions", START.to_owned()),
        ] {
            send_as_go(&mut client, "PUT", path, &body, NO_CONTENT);
        }
        process.expect("round 1\n");
        send_as_go(&mut client, "PATCH", "/vm", PAUSED, NO_CONTENT);
        let (state, memory) = (process.directory.text("state"), process.directory.text("memory"));
        let create = format!(r#"{{"mem_file_path":"{memory}","snapshot_path":"{state}"}}"#);
        send_as_go(&mut client, "PUT", "/snapshot/create", &create, NO_CONTENT);
        Self(process)
    }

    fn directory(&self) -> &Directory {
        &self.0.directory
    }

    fn disk(&self) -> Vec<u8> {
        fs::read(self.directory().path("disk")).unwrap()
    }

    /// Copies the disk to the file `name`.
    fn copy_disk(&self, name: &str) {
        self.directory().write(name, self.disk());
    }

    /// Sends the load of the SDK on `client`.
    fn load(&self, client: &mut Client, resume: bool) -> Response {
        let (state, memory) = (self.directory().text("state"), self.directory().text("memory"));
        let body = format!(
            r#"{{"enable_diff_snapshots":false,"mem_backend":{{"backend_path":"{memory}","backend_type":"File"}},"resume_vm":{resume},"snapshot_path":"{state}"}}"#
        );
        client.send(go_request("PUT", "/snapshot/load", &body));
        client.receive()
    }

    /// Starts a paused clone.
    fn clone_paused(&self) -> ApiProcess {
        let clone = ApiProcess::start();
        let response = self.load(&mut clone.connect(), false);
        assert_eq!(response.status(), 204, "{}", response.text);
        assert_eq!(clone.state(), "Paused");
        clone
    }

    /// Replaces the disk of `clone` by the file `name`, as the SDK does.
    fn replace_disk(&self, clone: &ApiProcess, name: &str) -> Response {
        let path = self.directory().text(name);
        clone.request(
            "PATCH",
            "/drives/d",
            &format!(r#"{{"drive_id":"d","path_on_host":"{path}"}}"#),
        )
    }
}

/// Expects the rejection of `response` because another process uses the disk at `path`.
fn expect_held(response: &Response, path: &str) {
    let message = response.fault_message();
    // Neither process has the right to look at the other.
    let expected = format!("cannot lock disk {path:?}: another process uses it; name another file");
    assert!(
        response.status() == 400 && message.contains(&expected),
        "{message}"
    );
}

fn expect_rounds(process: &mut ApiProcess) {
    process.expect("round ");
    process.expect("round ");
}

#[test]
fn clones_get_disks_of_their_own_beside_living_source() {
    for engine in ["Sync", "Async"] {
        let mut source = Source::start(engine);
        let before = source.disk();
        // Both are loaded before either has its own disk.
        let mut clones = [source.clone_paused(), source.clone_paused()];
        for (clone, name) in clones.iter_mut().zip(["copy1", "copy2"]) {
            source.copy_disk(name);
            assert_eq!(source.replace_disk(clone, name).text, NO_CONTENT);
            assert!(fs::read(source.directory().path(name)).unwrap() == before);
            clone.expect_no_content("PATCH", "/vm", RESUMED);
            expect_rounds(clone);
        }
        assert!(source.disk() == before, "a clone wrote the disk of its source");
        source.0.expect_no_content("PATCH", "/vm", RESUMED);
        expect_rounds(&mut source.0);
        for mut clone in clones {
            expect_rounds(&mut clone);
            assert!(!clone.kill().contains("FAIL"));
        }
        assert!(!source.0.kill().contains("FAIL"));
    }
}

#[test]
fn clone_on_disk_in_use_stays_paused() {
    for engine in ["Sync", "Async"] {
        let mut source = Source::start(engine);
        let before = source.disk();
        let disk = source.directory().text("disk");
        // With resume_vm, and by a later request; the process lives after both.
        let mut clone = ApiProcess::start();
        let mut client = clone.connect();
        let response = source.load(&mut client, true);
        expect_held(&response, &disk);
        assert!(
            response
                .fault_message()
                .starts_with("Load snapshot error: cannot resume the VM, which stays paused: "),
            "{}",
            response.text
        );
        for _ in 0..2 {
            assert_eq!(clone.state(), "Paused");
            expect_held(&client.request("PATCH", "/vm", RESUMED), &disk);
        }
        // Neither a snapshot nor the end of a paused clone accesses the disk.
        let (state, memory) = (clone.directory.text("s"), clone.directory.text("m"));
        let create = format!(r#"{{"mem_file_path":"{memory}","snapshot_path":"{state}"}}"#);
        clone.expect_no_content("PUT", "/snapshot/create", &create);
        source.clone_paused().terminate();
        assert!(source.disk() == before, "a paused clone wrote the disk");
        // The failed resume leaves no lock behind: the source goes on, and another process may use the copy.
        source.copy_disk("copy");
        source.0.expect_no_content("PATCH", "/vm", RESUMED);
        expect_rounds(&mut source.0);
        assert_eq!(source.replace_disk(&clone, "copy").text, NO_CONTENT);
        clone.expect_no_content("PATCH", "/vm", RESUMED);
        expect_rounds(&mut clone);
        // The copy is in use now.
        let other = source.clone_paused();
        let copy = source.directory().text("copy");
        expect_held(&source.replace_disk(&other, "copy"), &copy);
        clone.terminate();
        assert_eq!(source.replace_disk(&other, "copy").text, NO_CONTENT);
        other.expect_no_content("PATCH", "/vm", RESUMED);
        other.kill();
    }
}

#[test]
fn shared_drive_is_written_by_several_vms() {
    let directory = Directory::new();
    let disk = directory.write("disk", vec![0; SIZE]);
    let start = |shared: &str| {
        let process = ApiProcess::start();
        process.set_kernel("blocks.elf");
        let drive = format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"{shared}}}"#);
        let response = process.request("PUT", "/drives/d", &drive);
        (process, response)
    };
    let (first, response) = start(r#","shared":true"#);
    assert_eq!(response.text, NO_CONTENT);
    assert_eq!(
        first.request("GET", "/vm/config", "").json()["drives"][0]["shared"],
        true
    );
    let (second, response) = start(r#","shared":true"#);
    assert_eq!(response.text, NO_CONTENT);
    let (other, response) = start("");
    assert_eq!(response.status(), 400, "{}", response.text);
    for mut process in [first, second] {
        process.run_action("InstanceStart");
        process.expect("ready");
        process.terminate();
    }
    other.terminate();
}
