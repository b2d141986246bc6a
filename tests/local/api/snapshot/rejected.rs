//! Rejected snapshot requests: after a failed creation the guest can continue, a failed load ends mayfly after the response.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use super::super::http::{NO_CONTENT, fault_response};
use super::super::served::{
    ApiProcess, Directory, PAUSED, RESUMED, count_ticks, create_snapshot, expect_progress, load_body,
    load_snapshot, pause_and_create, start_ticker,
};
use crate::guests::file;

const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const BEFORE: &str = "The requested operation is not supported before starting the microVM.";

#[test]
fn create_of_running_guest_is_rejected() {
    let directory = Directory::new();
    let mut process = start_ticker();
    let message = create_snapshot(&process, &directory, "Full", "state", "memory").fault_message();
    assert!(
        message.starts_with("Create snapshot error: cannot create a snapshot: the VM is not paused; "),
        "{message}"
    );
    assert_eq!(process.state(), "Running");
    assert!(!directory.path("state").exists() && !directory.path("memory").exists());
    process.expect("tick 20\n");
    count_ticks(&process.kill());
}

#[test]
fn create_before_start_is_rejected() {
    let directory = Directory::new();
    let process = ApiProcess::start();
    assert_eq!(
        create_snapshot(&process, &directory, "Full", "state", "memory").text,
        fault_response(BEFORE)
    );
    process.terminate();
}

#[test]
fn create_with_invalid_paths_keeps_guest() {
    let directory = Directory::new();
    fs::create_dir(directory.path("directory")).unwrap();
    let mut process = start_ticker();
    process.expect_no_content("PATCH", "/vm", PAUSED);
    for kind in ["Full", "Diff"] {
        for (state, memory) in [
            ("none/state", "memory"),
            ("state", "none/memory"),
            ("directory", "memory"),
            ("state", "directory"),
            ("state", "state"),
            ("state", "directory/../state"),
        ] {
            let message = create_snapshot(&process, &directory, kind, state, memory).fault_message();
            assert!(message.starts_with("Create snapshot error: "), "{message}");
            assert_eq!(process.state(), "Paused", "{kind} {state} {memory}");
        }
    }
    let left: Vec<_> = fs::read_dir(directory.path("")).unwrap().collect();
    assert_eq!(left.len(), 1, "files remain beside the directory: {left:?}");
    // A valid request then succeeds.
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.expect_no_content("PATCH", "/vm", RESUMED);
    process.expect("tick 20\n");
    let all = process.kill();
    count_ticks(&all);
    let mut clone = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
    clone.expect("tick 20\n");
    clone.terminate();
}

#[test]
fn failed_create_keeps_old_snapshot() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    symlink("memory", directory.path("link")).unwrap();
    let before = ["state", "memory"].map(|name| fs::read(directory.path(name)).unwrap());
    // A different guest: a mix of both snapshots would show.
    let mut other = start_ticker();
    other.expect("tick 40\n");
    other.expect_no_content("PATCH", "/vm", PAUSED);
    for kind in ["Full", "Diff"] {
        for (state, memory) in [
            ("none/state", "memory"),
            ("state", "none/memory"),
            ("memory", "link"),
            ("link", "memory"),
        ] {
            let message = create_snapshot(&other, &directory, kind, state, memory).fault_message();
            assert!(message.starts_with("Create snapshot error: "), "{message}");
        }
    }
    other.kill();
    let after = ["state", "memory"].map(|name| fs::read(directory.path(name)).unwrap());
    assert!(before == after, "the old snapshot has changed");
    expect_progress(
        load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#),
        printed,
    );
}

#[test]
fn create_follows_symlinks() {
    let directory = Directory::new();
    let process = start_ticker();
    for name in ["state", "memory"] {
        directory.write(&format!("old {name}"), "old");
        symlink(directory.path(&format!("old {name}")), directory.path(name)).unwrap();
    }
    pause_and_create(&process, &directory, "Full", "state", "memory");
    let printed = process.kill();
    assert!(directory.path("state").is_symlink() && directory.path("memory").is_symlink());
    expect_progress(
        load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#),
        printed,
    );
}

/// Creates a snapshot of the ticker, loads and runs it, and pauses the clone.
fn start_paused_clone(directory: &Directory) -> ApiProcess {
    let process = start_ticker();
    pause_and_create(&process, directory, "Full", "state", "memory");
    let printed = process.kill();
    let mut clone = load_snapshot(directory, "state", "memory", r#","resume_vm":true"#);
    clone.expect(&format!("tick {}\n", count_ticks(&printed) + 3));
    clone.expect_no_content("PATCH", "/vm", PAUSED);
    clone
}

#[test]
fn create_with_changed_memory_file_is_rejected() {
    let directory = Directory::new();
    let clone = start_paused_clone(&directory);
    let memory = fs::File::options()
        .write(true)
        .open(directory.path("memory"))
        .unwrap();
    let length = memory.metadata().unwrap().len();
    let before = directory.names();
    // The truncation removes the guest's private copies. They stay lost when the file has its length again.
    for (new, text) in [(4096, "its length has changed"), (length, "has written it")] {
        memory.set_len(new).unwrap();
        for kind in ["Diff", "Full"] {
            for target in ["other", "memory"] {
                let message = create_snapshot(&clone, &directory, kind, "new", target).fault_message();
                assert!(
                    message.contains(text) && message.contains("memory\""),
                    "{message}"
                );
            }
        }
        assert_eq!(memory.metadata().unwrap().len(), new);
    }
    assert_eq!(directory.names(), before);
    assert_eq!(clone.state(), "Paused");
    clone.terminate();
}

#[test]
fn diffs_merge_repeatedly_into_loaded_memory_file() {
    let directory = Directory::new();
    let mut clone = start_paused_clone(&directory);
    for _ in 0..3 {
        let response = create_snapshot(&clone, &directory, "Diff", "state", "memory");
        assert_eq!(response.text, NO_CONTENT);
        // A failed creation must not spoil the next one.
        create_snapshot(&clone, &directory, "Diff", "none/state", "memory").fault_message();
        clone.expect_no_content("PATCH", "/vm", RESUMED);
        clone.expect("tick");
        clone.expect_no_content("PATCH", "/vm", PAUSED);
    }
    clone.terminate();
    let mut again = load_snapshot(&directory, "state", "memory", r#","resume_vm":true"#);
    again.expect("tick");
    again.terminate();
}

/// Starts a VM with each kind of file in `directory` open, and pauses it.
fn start_with_open_files(directory: &Directory) -> ApiProcess {
    for name in ["disk", "initrd", "log", "metrics", "serial"] {
        directory.write(name, [0; 4096]);
    }
    fs::copy(file("ticker.elf"), directory.path("kernel")).unwrap();
    fs::hard_link(directory.path("disk"), directory.path("other name")).unwrap();
    symlink("disk", directory.path("link")).unwrap();
    let process = ApiProcess::start();
    let root = directory.text("");
    for (path, body) in [
        ("/logger", r#"{"log_path":"@/log"}"#),
        ("/metrics", r#"{"metrics_path":"@/metrics"}"#),
        ("/serial", r#"{"serial_out_path":"@/serial"}"#),
        (
            "/drives/d",
            r#"{"drive_id":"d","is_root_device":false,"path_on_host":"@/disk"}"#,
        ),
        (
            "/boot-source",
            r#"{"kernel_image_path":"@/kernel","initrd_path":"@/initrd"}"#,
        ),
    ] {
        process.expect_no_content("PUT", path, &body.replace('@', &root));
    }
    process.run_action("InstanceStart");
    process.expect_no_content("PATCH", "/vm", PAUSED);
    process
}

#[test]
fn create_over_open_file_is_rejected() {
    let directory = Directory::new();
    let process = start_with_open_files(&directory);
    let open = [
        ("disk", "drive \"d\""),
        ("other name", "drive \"d\""),
        ("link", "drive \"d\""),
        ("kernel", "the image"),
        ("initrd", "the initrd"),
        ("log", "the log"),
        ("metrics", "the metrics file"),
        ("serial", "the serial output"),
    ];
    let names = directory.names();
    for (name, role) in open {
        let inode = directory.path(name).metadata().unwrap().ino();
        for (kind, state, memory) in [
            ("Full", name, "new"),
            ("Full", "new", name),
            ("Diff", "new", name),
        ] {
            let message = create_snapshot(&process, &directory, kind, state, memory).fault_message();
            let expected = format!("the file is in use as {role}");
            assert!(message.contains(&expected), "{kind} {name}: {message}");
        }
        assert_eq!(
            directory.path(name).metadata().unwrap().ino(),
            inode,
            "{name} was replaced"
        );
    }
    assert_eq!(directory.names(), names);
    // A replaced drive is free, and its successor is not.
    directory.write("second", [0; 4096]);
    let update = format!(
        r#"{{"drive_id":"d","path_on_host":"{}"}}"#,
        directory.text("second")
    );
    process.expect_no_content("PATCH", "/drives/d", &update);
    create_snapshot(&process, &directory, "Full", "state", "second").fault_message();
    let response = create_snapshot(&process, &directory, "Full", "state", "disk");
    assert_eq!(response.text, NO_CONTENT);
    process.terminate();
}

#[test]
fn state_over_loaded_memory_file_is_rejected() {
    let directory = Directory::new();
    let clone = start_paused_clone(&directory);
    for kind in ["Full", "Diff"] {
        let message = create_snapshot(&clone, &directory, kind, "memory", "new").fault_message();
        assert!(message.contains("the memory file that was loaded"), "{message}");
    }
    for kind in ["Diff", "Full"] {
        let response = create_snapshot(&clone, &directory, kind, "state", "memory");
        assert_eq!(response.text, NO_CONTENT, "{kind}");
    }
    clone.terminate();
}

/// State file, memory file, more fields, and a part of the message.
type Case = (&'static str, &'static str, &'static str, &'static str);

#[test]
fn failed_load_ends_mayfly() {
    let directory = Directory::new();
    let process = start_ticker();
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.kill();
    let state = fs::read(directory.path("state")).unwrap();
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    directory.write("flipped", flipped);
    directory.write("cut", &state[..state.len() - 1]);
    directory.write("empty", "");
    fs::copy(directory.path("memory"), directory.path("short")).unwrap();
    let short = fs::File::options()
        .write(true)
        .open(directory.path("short"))
        .unwrap();
    let length = short.metadata().unwrap().len();
    short.set_len(length - 4096).unwrap();
    fs::copy(directory.path("memory"), directory.path("long")).unwrap();
    let long = fs::File::options()
        .write(true)
        .open(directory.path("long"))
        .unwrap();
    long.write_all_at(&[0xa5], length).unwrap();
    // A load must not wait for a writer.
    directory.fifo("fifo");
    let cases: [Case; 14] = [
        ("none", "memory", "", "none"),
        ("state", "none", "", "none"),
        ("state", "short", "", "short"),
        ("state", "long", "", "long"),
        ("state", "empty", "", "empty"),
        ("state", "fifo", "", "fifo"),
        ("fifo", "memory", "", "fifo"),
        ("flipped", "memory", "", "flipped"),
        ("cut", "memory", "", "cut"),
        ("empty", "memory", "", "empty"),
        ("memory", "state", "", "memory"),
        ("", "memory", "", "it is not a regular file"),
        (
            "state",
            "memory",
            r#","network_overrides":[{"iface_id":"x","host_dev_name":"tap0"}]"#,
            "cannot override network interface \"x\": ",
        ),
        (
            "state",
            "memory",
            r#","drive_overrides":[{"drive_id":"x","path_on_host":"/d"}]"#,
            "cannot override drive \"x\": ",
        ),
    ];
    for (state, memory, fields, text) in cases {
        let process = ApiProcess::start();
        let load = load_body(&directory, state, memory, fields);
        let message = process.request("PUT", "/snapshot/load", &load).fault_message();
        assert!(
            message.starts_with("Load snapshot error: ") && message.contains(text),
            "{state} {memory}: {message}"
        );
        process.expect_exit(1);
    }
}

#[test]
fn load_into_configured_vm_is_rejected() {
    let directory = Directory::new();
    let mut process = ApiProcess::start();
    process.set_kernel("ticker.elf");
    let load = load_body(&directory, "state", "memory", "");
    let response = process.request("PUT", "/snapshot/load", &load);
    assert_eq!(
        response.text,
        fault_response(
            "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
        )
    );
    // The rejected load leaves the configuration unchanged.
    process.run_action("InstanceStart");
    process.expect("tick 3\n");
    for state in [RESUMED, PAUSED] {
        process.expect_no_content("PATCH", "/vm", state);
        assert_eq!(
            process.request("PUT", "/snapshot/load", &load).text,
            fault_response(AFTER)
        );
    }
    pause_and_create(&process, &directory, "Full", "state", "memory");
    process.expect_no_content("PATCH", "/vm", RESUMED);
    process.expect("tick 6\n");
    process.terminate();

    let restored = load_snapshot(&directory, "state", "memory", "");
    for (path, body) in [
        ("/snapshot/load", load.as_str()),
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#),
        ("/actions", r#"{"action_type":"InstanceStart"}"#),
    ] {
        assert_eq!(
            restored.request("PUT", path, body).text,
            fault_response(AFTER),
            "{path}"
        );
    }
    restored.terminate();
}
