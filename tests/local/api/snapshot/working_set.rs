//! Working sets as fields of what is loaded.

use super::super::served::{ApiProcess, Directory};
use super::{RESUMED, body, count, goes_on, pause_and_create, ticking};

/// The field `working_set` or `record_working_set`.
fn used(folder: &Directory) -> String {
    format!(r#","working_set":"{}""#, folder.text("set"))
}

fn recorded(folder: &Directory, milliseconds: u32) -> String {
    let path = folder.text("set");
    format!(r#","record_working_set":{{"path":"{path}","milliseconds":{milliseconds}}}"#)
}

#[test]
fn a_working_set_is_recorded_and_used() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    let mut recording = ApiProcess::start();
    let load = body(&folder, "state", "memory", &recorded(&folder, 600_000));
    recording.expect_no_content("PUT", "/snapshot/load", &load);
    recording.expect_no_content("PATCH", "/vm", RESUMED);
    recording.expect(&format!("tick {}\n", count(&printed) + 3));
    assert!(!folder.path("set").exists(), "it has ended before its time");
    // To freeze it ends it, and so does the guest's end; what was recorded belongs to the snapshot that was loaded.
    pause_and_create(&recording, &folder, "Full", "state-2", "memory-2");
    assert!(folder.path("set").exists());
    recording.terminate();
    for resume in [true, false] {
        let restored = ApiProcess::start();
        let fields = used(&folder) + &format!(r#","resume_vm":{resume}"#);
        restored.expect_no_content(
            "PUT",
            "/snapshot/load",
            &body(&folder, "state", "memory", &fields),
        );
        restored.expect_no_content("PATCH", "/vm", RESUMED);
        goes_on(restored, printed.clone());
    }
    let refused = ApiProcess::start();
    let load = body(&folder, "state-2", "memory-2", &used(&folder));
    let why = refused.ask("PUT", "/snapshot/load", &load).fault();
    assert!(why.contains("belongs to another snapshot"), "{why}");
    refused.ends_with(1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    served.kill();
    let (state, nobody) = (folder.text("state"), folder.text("nobody.sock"));
    let backend = format!(r#"{{"backend_type":"Uffd","backend_path":"{nobody}"}}"#);
    let by_uffd =
        |fields: String| format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#);
    for (load, why) in [
        (
            by_uffd(used(&folder)),
            "Load snapshot error: cannot use a working set: a fault handler",
        ),
        (
            by_uffd(recorded(&folder, 5)),
            "Load snapshot error: cannot record a working set: a fault handler",
        ),
        (
            body(
                &folder,
                "state",
                "memory",
                &(used(&folder) + &recorded(&folder, 5)),
            ),
            "leave out working_set or record_working_set",
        ),
        (
            body(&folder, "state", "memory", &used(&folder)),
            "cannot use the working set",
        ),
    ] {
        let served = ApiProcess::start();
        let answer = served.ask("PUT", "/snapshot/load", &load).fault();
        assert!(answer.contains(why), "{answer}");
        served.ends_with(1);
    }
    // What is no length is wrong in itself, and ends nothing.
    let served = ApiProcess::start();
    for milliseconds in [0, 600_001] {
        let load = body(&folder, "state", "memory", &recorded(&folder, milliseconds));
        let why = served.ask("PUT", "/snapshot/load", &load).fault();
        assert!(
            why.contains("record_working_set.milliseconds") && why.contains("600000"),
            "{why}"
        );
    }
    served.terminate();
    assert!(!folder.path("set").exists());
}
