//! Snapshots of real guests: what one process has frozen goes on in another.

mod devices;
mod rejected;
mod urunc;
mod working_set;

use super::http::{Answer, DONE};
use super::served::{ApiProcess, Directory, fifo};

pub const PAUSED: &str = r#"{"state":"Paused"}"#;
pub const RESUMED: &str = r#"{"state":"Resumed"}"#;
/// What is answered to old names.
const DEPRECATED: &str =
    "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\r\n";

/// The ticker, which has printed three lines at least.
pub fn ticking() -> ApiProcess {
    let mut served = ApiProcess::start();
    served.boots("ticker.elf");
    served.act("InstanceStart");
    served.expect("tick 3\n");
    served
}

/// Asks for a snapshot in the files `state` and `memory` of `folder`.
pub fn create(served: &ApiProcess, folder: &Directory, kind: &str, state: &str, memory: &str) -> Answer {
    let (state, memory) = (folder.text(state), folder.text(memory));
    let body =
        format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
    served.ask("PUT", "/snapshot/create", &body)
}

/// Pauses the guest and makes a snapshot in the files `state` and `memory` of `folder`.
pub fn pause_and_create(served: &ApiProcess, folder: &Directory, kind: &str, state: &str, memory: &str) {
    served.expect_no_content("PATCH", "/vm", PAUSED);
    let answer = create(served, folder, kind, state, memory);
    assert_eq!(answer.text, DONE, "{kind}");
    assert_eq!(served.state(), "Paused");
}

/// The body that loads such a snapshot, with more fields.
pub fn body(folder: &Directory, state: &str, memory: &str, fields: &str) -> String {
    let (state, memory) = (folder.text(state), folder.text(memory));
    let backend = format!(r#"{{"backend_type":"File","backend_path":"{memory}"}}"#);
    format!(r#"{{"snapshot_path":"{state}","mem_backend":{backend}{fields}}}"#)
}

/// A new mayfly that has loaded it.
pub fn load_snapshot(folder: &Directory, state: &str, memory: &str, fields: &str) -> ApiProcess {
    let served = ApiProcess::start();
    served.expect_no_content("PUT", "/snapshot/load", &body(folder, state, memory, fields));
    served
}

/// Lines in what a ticker has printed, of which none is missing and none there twice; the last may be cut short.
pub fn count(printed: &str) -> usize {
    let (whole, rest) = printed.rsplit_once('\n').unwrap();
    let lines = whole.lines().count();
    for (index, line) in whole.lines().enumerate() {
        assert_eq!(line, format!("tick {}", index + 1), "{printed}");
    }
    assert!(format!("tick {}\n", lines + 1).starts_with(rest), "{printed}");
    lines
}

/// Waits for three lines more than `printed` has, and ends mayfly; all that has been printed up to then.
pub fn goes_on(mut served: ApiProcess, printed: String) -> String {
    served.expect(&format!("tick {}\n", count(&printed) + 3));
    let all = printed + &served.kill();
    count(&all);
    all
}

#[test]
fn a_guest_goes_on_in_another_process() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    let restored = load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#);
    assert_eq!(restored.state(), "Running");
    goes_on(restored, printed);
}

#[test]
fn a_loaded_guest_waits_until_it_is_resumed() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    let waiting = load_snapshot(&folder, "state", "memory", r#","resume_vm":false"#);
    assert_eq!(waiting.state(), "Paused");
    assert_eq!(waiting.kill(), "", "a paused guest printed");
    let restored = load_snapshot(&folder, "state", "memory", "");
    restored.expect_no_content("PATCH", "/vm", RESUMED);
    assert_eq!(restored.state(), "Running");
    goes_on(restored, printed);
}

#[test]
fn who_was_frozen_goes_on_and_so_do_its_clones() {
    let folder = Directory::new();
    let mut served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    served.expect_no_content("PATCH", "/vm", RESUMED);
    served.expect("tick 20\n");
    let all = served.kill();
    count(&all);
    let [first, second] =
        [(), ()].map(|()| load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#));
    for mut clone in [first, second] {
        clone.expect("tick 20\n");
        let printed = clone.kill();
        let until = |text: &str| text.find("tick 20\n").unwrap();
        // What it was frozen in the middle of is what the first one printed from there on.
        assert!(
            all[..until(&all)].ends_with(&printed[..until(&printed)]),
            "{printed}"
        );
    }
}

#[test]
fn snapshots_of_snapshots() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let mut printed = served.kill();
    for _ in 0..3 {
        let mut restored = load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#);
        let last = count(&printed) + 3;
        restored.expect(&format!("tick {last}\n"));
        pause_and_create(&restored, &folder, "Full", "state", "memory");
        printed += &restored.kill();
        assert!(count(&printed) >= last);
    }
}

/// A restored guest that has changed memory, paused, and what was printed before it was resumed.
fn changed(folder: &Directory) -> (ApiProcess, String) {
    let served = ticking();
    pause_and_create(&served, folder, "Full", "state", "memory");
    let printed = served.kill();
    let mut restored = load_snapshot(folder, "state", "memory", r#","resume_vm":true"#);
    restored.expect(&format!("tick {}\n", count(&printed) + 3));
    restored.expect_no_content("PATCH", "/vm", PAUSED);
    (restored, printed)
}

#[test]
fn a_difference_merges_into_its_base() {
    let folder = Directory::new();
    let (restored, printed) = changed(&folder);
    pause_and_create(&restored, &folder, "Diff", "state", "memory");
    let printed = printed + &restored.kill();
    // Its pages are those of the base, which has changed, and what it had written.
    let again = load_snapshot(&folder, "state", "memory", r#","resume_vm":true"#);
    goes_on(again, printed);
}

#[test]
fn a_difference_of_a_guest_that_was_not_restored_is_all_of_it() {
    let folder = Directory::new();
    let served = ticking();
    // What is there already, and as long as the memory, is another guest's.
    std::fs::write(folder.path("memory"), vec![0xee; 128 << 20]).unwrap();
    pause_and_create(&served, &folder, "Diff", "state", "memory");
    pause_and_create(&served, &folder, "Diff", "state-2", "memory-2");
    let printed = served.kill();
    for (state, memory) in [("state", "memory"), ("state-2", "memory-2")] {
        let restored = load_snapshot(&folder, state, memory, r#","resume_vm":true"#);
        goes_on(restored, printed.clone());
    }
    let [first, second] = ["memory", "memory-2"].map(|name| std::fs::read(folder.path(name)).unwrap());
    assert!(first == second);
}

#[test]
fn a_difference_alone_is_merged_by_hand() {
    use std::os::unix::fs::MetadataExt;
    for memory in ["new", "empty"] {
        let folder = Directory::new();
        folder.write("empty", "");
        let (restored, printed) = changed(&folder);
        pause_and_create(&restored, &folder, "Diff", "difference", memory);
        let printed = printed + &restored.kill();
        let sizes = |name: &str| {
            let metadata = folder.path(name).metadata().unwrap();
            (metadata.len(), metadata.blocks())
        };
        let (base, difference) = (sizes("memory"), sizes(memory));
        assert!(
            difference.0 == base.0 && difference.1 < base.1,
            "{difference:?} {base:?}"
        );

        let refused = ApiProcess::start();
        let load = body(&folder, "difference", memory, "");
        let why = refused.ask("PUT", "/snapshot/load", &load).fault();
        assert!(why.contains("merge it into the snapshot"), "{why}");
        refused.ends_with(1);

        let [difference, whole] = ["d", "w"].map(|name| {
            std::fs::create_dir(folder.path(name)).unwrap();
            folder.text(name)
        });
        for (from, to) in [
            ("difference", "d/state"),
            (memory, "d/memory"),
            ("state", "w/state"),
            ("memory", "w/memory"),
        ] {
            std::fs::rename(folder.path(from), folder.path(to)).unwrap();
        }
        let mut command = std::process::Command::new(crate::guests::program());
        let merged = command
            .args(["snapshot-merge", &whole, &difference])
            .output()
            .unwrap();
        assert!(merged.status.success(), "{merged:?}");
        let again = load_snapshot(&folder, "w/state", "w/memory", r#","resume_vm":true"#);
        goes_on(again, printed);
    }
}

#[test]
fn a_loaded_machine_is_shown_as_it_was_said() {
    let folder = Directory::new();
    let served = ApiProcess::start();
    let disk = folder.write("disk", [0; 4096]);
    let drive = format!(r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"{disk}"}}"#);
    served.expect_no_content("PUT", "/drives/d", &drive);
    served.expect_no_content("PUT", "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":64}"#);
    served.boots("ticker.elf");
    served.act("InstanceStart");
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let shown = |served: &ApiProcess, path: &str| served.ask("GET", path, "").json();
    let paths = ["/vm/config", "/machine-config"];
    let before = paths.map(|path| shown(&served, path));
    assert_eq!(before[1]["mem_size_mib"], 64);
    served.kill();
    let restored = load_snapshot(&folder, "state", "memory", "");
    assert_eq!(paths.map(|path| shown(&restored, path)), before);
    restored.kill();

    // Whether changes are to be known is asked for each time, by either name.
    for field in ["track_dirty_pages", "enable_diff_snapshots"] {
        let restored = ApiProcess::start();
        let load = body(&folder, "state", "memory", &format!(",\"{field}\":true"));
        let answer = restored.ask("PUT", "/snapshot/load", &load);
        let is_old = field == "enable_diff_snapshots";
        assert_eq!(answer.text, if is_old { DEPRECATED } else { DONE });
        assert_eq!(shown(&restored, "/machine-config")["track_dirty_pages"], true);
        restored.terminate();
    }
}

#[test]
fn the_old_name_of_the_memory_file_is_answered_as_such() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    let restored = ApiProcess::start();
    let load = format!(
        r#"{{"snapshot_path":"{}","mem_file_path":"{}","resume_vm":true,"enable_diff_snapshots":false}}"#,
        folder.text("state"),
        folder.text("memory")
    );
    assert_eq!(restored.ask("PUT", "/snapshot/load", &load).text, DEPRECATED);
    goes_on(restored, printed);
}

#[test]
fn a_loaded_guest_prints_to_the_file_that_was_named_before() {
    let folder = Directory::new();
    let served = ticking();
    pause_and_create(&served, &folder, "Full", "state", "memory");
    let printed = served.kill();
    let restored = ApiProcess::start();
    let fifo = fifo(&restored.folder, "serial");
    restored.expect_no_content("PUT", "/serial", &format!(r#"{{"serial_out_path":"{fifo}"}}"#));
    let load = body(&folder, "state", "memory", r#","resume_vm":true"#);
    restored.expect_no_content("PUT", "/snapshot/load", &load);
    let mut all = printed;
    let wanted = count(&all) + 3;
    let mut file = std::fs::File::open(fifo).unwrap();
    while count(&all) < wanted {
        let mut bytes = [0; 64];
        let length = std::io::Read::read(&mut file, &mut bytes).unwrap();
        all += std::str::from_utf8(&bytes[..length]).unwrap();
    }
    assert_eq!(restored.kill(), "");
}
