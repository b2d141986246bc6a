//! Working sets in the body of a snapshot load.

use super::super::served::{
    ApiProcess, Directory, RESUMED, count_ticks, expect_progress, load_body, pause_and_create, start_ticker,
};

/// Returns the field `working_set`.
fn working_set_field(directory: &Directory) -> String {
    format!(r#","working_set":"{}""#, directory.text("set"))
}

/// Returns the field `record_working_set`.
fn record_field(directory: &Directory, milliseconds: u32) -> String {
    let path = directory.text("set");
    format!(r#","record_working_set":{{"path":"{path}","milliseconds":{milliseconds}}}"#)
}

#[test]
fn working_set_is_recorded_and_prefetched() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    let mut recording = ApiProcess::start();
    let load = load_body(&directory, "state", "memory", &record_field(&directory, 600_000));
    recording.expect_no_content("PUT", "/snapshot/load", &load);
    recording.expect_no_content("PATCH", "/vm", RESUMED);
    recording.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
    assert!(!directory.path("set").exists(), "the recording ended early");
    // Snapshot creation ends the recording. The working set belongs to the loaded snapshot.
    pause_and_create(&recording, &directory, "Full", "state-2", "memory-2");
    assert!(directory.path("set").exists());
    recording.terminate();
    for resume in [true, false] {
        let restored = ApiProcess::start();
        let fields = working_set_field(&directory) + &format!(r#","resume_vm":{resume}"#);
        restored.expect_no_content(
            "PUT",
            "/snapshot/load",
            &load_body(&directory, "state", "memory", &fields),
        );
        restored.expect_no_content("PATCH", "/vm", RESUMED);
        expect_progress(restored, printed.clone());
    }
    let rejecting = ApiProcess::start();
    let load = load_body(&directory, "state-2", "memory-2", &working_set_field(&directory));
    let message = rejecting.request("PUT", "/snapshot/load", &load).fault_message();
    assert!(message.contains("belongs to another snapshot"), "{message}");
    rejecting.expect_exit(1);
}

#[test]
fn invalid_working_set_options_are_rejected() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.kill();
    let (state, socket) = (directory.text("state"), directory.text("unused.sock"));
    let backend = format!(r#"{{"backend_type":"Uffd","backend_path":"{socket}"}}"#);
    let uffd_body =
        |fields: String| format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#);
    for (load, message) in [
        (
            uffd_body(working_set_field(&directory)),
            "Load snapshot error: cannot use a working set: a fault handler",
        ),
        (
            uffd_body(record_field(&directory, 5)),
            "Load snapshot error: cannot record a working set: a fault handler",
        ),
        (
            load_body(
                &directory,
                "state",
                "memory",
                &(working_set_field(&directory) + &record_field(&directory, 5)),
            ),
            "leave out one of them",
        ),
        (
            load_body(&directory, "state", "memory", &working_set_field(&directory)),
            "cannot use the working set",
        ),
    ] {
        let process = ApiProcess::start();
        let response = process.request("PUT", "/snapshot/load", &load).fault_message();
        assert!(response.contains(message), "{response}");
        process.expect_exit(1);
    }
    // An invalid duration is a schema error, which does not end mayfly.
    let process = ApiProcess::start();
    for milliseconds in [0, 600_001] {
        let load = load_body(
            &directory,
            "state",
            "memory",
            &record_field(&directory, milliseconds),
        );
        let message = process.request("PUT", "/snapshot/load", &load).fault_message();
        assert!(
            message.contains("record_working_set.milliseconds") && message.contains("600000"),
            "{message}"
        );
    }
    process.terminate();
    assert!(!directory.path("set").exists());
}
