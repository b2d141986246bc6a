//! What cannot be frozen goes on, and what cannot be loaded ends mayfly once that is said.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};

use super::super::http::fault;
use super::super::served::{ApiProcess, Directory};
use super::{PAUSED, RESUMED, body, count, create, goes_on, load_snapshot, pause_and_create, ticking};

const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const BEFORE: &str = "The requested operation is not supported before starting the microVM.";

#[test]
fn a_guest_that_runs_is_not_frozen() {
    let folder = Directory::new();
    let mut served = ticking();
    let why = create(&served, &folder, "Full", "state", "memory").fault();
    assert!(
        why.starts_with("Create snapshot error: cannot create a snapshot: the VM is not paused"),
        "{why}"
    );
    assert_eq!(served.state(), "Running");
    assert!(!folder.path("state").exists() && !folder.path("memory").exists());
    served.expect("tick 20\n");
    count(&served.kill());
}

#[test]
fn nothing_is_frozen_before_the_start() {
    let folder = Directory::new();
    let served = ApiProcess::start();
    assert_eq!(
        create(&served, &folder, "Full", "state", "memory").text,
        fault(BEFORE)
    );
    served.terminate();
}

#[test]
fn a_guest_whose_files_cannot_be_goes_on() {
    let folder = Directory::new();
    fs::create_dir(folder.path("folder")).unwrap();
    let mut served = ticking();
    served.expect_no_content("PATCH", "/vm", PAUSED);
    for kind in ["Full", "Diff"] {
        for (state, memory) in [
            ("none/state", "memory"),
            ("state", "none/memory"),
            ("folder", "memory"),
            ("state", "folder"),
            ("state", "state"),
            ("state", "folder/../state"),
        ] {
            let why = create(&served, &folder, kind, state, memory).fault();
            assert!(why.starts_with("Create snapshot error: "), "{why}");
            assert_eq!(served.state(), "Paused", "{kind} {state} {memory}");
        }
    }
    let left: Vec<_> = fs::read_dir(folder.path("")).unwrap().collect();
    assert_eq!(left.len(), 1, "more than the folder: {left:?}");
    // All the same, it can be frozen where it can.
    pause_and_create(&served, &folder, "Full", "state", "memory");
    served.expect_no_content("PATCH", "/vm", RESUMED);
    served.expect("tick 20\n");
    let all = served.kill();
    count(&all);
    let mut clone = load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#);
    clone.expect("tick 20\n");
    clone.terminate();
}

#[test]
fn what_cannot_be_frozen_leaves_the_old_snapshot() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    symlink("memory", folder.path("link")).unwrap();
    let before = ["state", "memory"].map(|name| fs::read(folder.path(name)).unwrap());
    // Another guest, which must not be half of it.
    let mut other = ticking();
    other.expect("tick 40\n");
    other.expect_no_content("PATCH", "/vm", PAUSED);
    for kind in ["Full", "Diff"] {
        for (state, memory) in [
            ("none/state", "memory"),
            ("state", "none/memory"),
            ("memory", "link"),
            ("link", "memory"),
        ] {
            let why = create(&other, &folder, kind, state, memory).fault();
            assert!(why.starts_with("Create snapshot error: "), "{why}");
        }
    }
    other.kill();
    let after = ["state", "memory"].map(|name| fs::read(folder.path(name)).unwrap());
    assert!(before == after, "the old snapshot has changed");
    goes_on(
        load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#),
        printed,
    );
}

#[test]
fn files_behind_links_are_replaced() {
    let folder = Directory::new();
    let served = ticking();
    for name in ["state", "memory"] {
        folder.write(&format!("old {name}"), "old");
        symlink(folder.path(&format!("old {name}")), folder.path(name)).unwrap();
    }
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    assert!(folder.path("state").is_symlink() && folder.path("memory").is_symlink());
    goes_on(
        load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#),
        printed,
    );
}

/// What is loaded, and what is said then.
type Case = (&'static str, &'static str, &'static str, &'static str);

#[test]
fn what_cannot_be_loaded_ends_mayfly() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    served.kill();
    let state = fs::read(folder.path("state")).unwrap();
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    folder.write("flipped", flipped);
    folder.write("cut", &state[..state.len() - 1]);
    folder.write("empty", "");
    fs::copy(folder.path("memory"), folder.path("short")).unwrap();
    let short = fs::File::options()
        .write(true)
        .open(folder.path("short"))
        .unwrap();
    let length = short.metadata().unwrap().len();
    short.set_len(length - 4096).unwrap();
    fs::copy(folder.path("memory"), folder.path("long")).unwrap();
    let long = fs::File::options().write(true).open(folder.path("long")).unwrap();
    long.write_all_at(&[0xa5], length).unwrap();
    let cases: [Case; 12] = [
        ("none", "memory", "", "none"),
        ("state", "none", "", "none"),
        ("state", "short", "", "short"),
        ("state", "long", "", "long"),
        ("state", "empty", "", "empty"),
        ("flipped", "memory", "", "flipped"),
        ("cut", "memory", "", "cut"),
        ("empty", "memory", "", "empty"),
        ("memory", "state", "", "memory"),
        ("", "memory", "", "cannot use the state file"),
        (
            "state",
            "memory",
            r#","network_overrides":[{"iface_id":"x","host_dev_name":"tap0"}]"#,
            "no network interface \"x\"",
        ),
        (
            "state",
            "memory",
            r#","drive_overrides":[{"drive_id":"x","path_on_host":"/d"}]"#,
            "no drive \"x\"",
        ),
    ];
    for (state, memory, fields, text) in cases {
        let served = ApiProcess::start();
        let why = served
            .ask("PUT", "/snapshot/load", &body(&folder, state, memory, fields))
            .fault();
        assert!(
            why.starts_with("Load snapshot error: ") && why.contains(text),
            "{state} {memory}: {why}"
        );
        served.ends_with(1);
    }
}

#[test]
fn nothing_is_loaded_over_a_machine() {
    let folder = Directory::new();
    let mut served = ApiProcess::start();
    served.boots("ticker.elf");
    let load = body(&folder, "state", "memory", "");
    let answer = served.ask("PUT", "/snapshot/load", &load);
    assert_eq!(
        answer.text,
        fault(
            "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
        )
    );
    // Nothing was touched by that, so that it goes on.
    served.act("InstanceStart");
    served.expect("tick 3\n");
    for state in [RESUMED, PAUSED] {
        served.expect_no_content("PATCH", "/vm", state);
        assert_eq!(served.ask("PUT", "/snapshot/load", &load).text, fault(AFTER));
    }
    pause_and_create(&served, &folder, "Full", "state", "memory");
    served.expect_no_content("PATCH", "/vm", RESUMED);
    served.expect("tick 6\n");
    served.terminate();

    let restored = load_snapshot(&folder, "state", "memory", "");
    for (path, body) in [
        ("/snapshot/load", load.as_str()),
        ("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#),
        ("/actions", r#"{"action_type":"InstanceStart"}"#),
    ] {
        assert_eq!(restored.ask("PUT", path, body).text, fault(AFTER), "{path}");
    }
    restored.terminate();
}
