//! Instances that end by themselves, are killed, or cannot wake.

use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::guests::file;
use crate::host::{GUEST, MANY, Supervisor, create_snapshot, enter_namespace, on_tap, ping, served};

/// Requests a page of the guest.
fn fetch() {
    let mut stream = TcpStream::connect((GUEST, 80)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.ends_with("hello from mayfly\n"), "{page}");
}

/// Starts a supervisor, and an instance `web` of a guest that ends after one page.
fn start_ending(more: Value) -> Supervisor {
    let directory = scratch::Directory::new();
    create_snapshot(&directory.path("snapshot"), &[], 1);
    let supervisor = Supervisor::start_in(directory, &[]);
    supervisor.register("web", on_tap(more));
    supervisor
}

#[test]
fn stateful_guest_that_ends_fails_its_instance() {
    if !enter_namespace() {
        return;
    }
    let supervisor = start_ending(json!({}));
    ping(GUEST, 1);
    supervisor.await_state("web", "suspended");
    fetch();
    let reason = supervisor.await_state("web", "failed");
    assert!(reason.contains("the process has ended with status 0"), "{reason}");
    assert_eq!(supervisor.failures("guest"), 1);
    // A request wakes it, from its last suspend.
    supervisor.set("web", "wake");
    assert_eq!(served(GUEST).pings, 1);
}

#[test]
fn stateless_guest_that_ends_starts_again_for_each_page() {
    if !enter_namespace() {
        return;
    }
    let scale = json!({"cooldown_time_ms": 60_000, "stateful": false});
    let supervisor = start_ending(json!({"scale_to_zero": scale}));
    for _ in 0..3 {
        fetch();
        let reason = supervisor.await_state("web", "suspended");
        assert!(reason.contains("starts from its snapshot"), "{reason}");
    }
    assert_eq!(supervisor.failures("guest"), 3);
}

#[test]
fn killed_guest_wakes_from_its_last_suspend() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", on_tap(json!({"scale_to_zero": {"policy": "off"}})));
    ping(GUEST, 2);
    supervisor.await_state("web", "running");
    supervisor.suspend("web");
    ping(GUEST, 3);
    supervisor.await_state("web", "running");
    supervisor.kill_process("web");
    let reason = supervisor.await_state("web", "failed");
    assert!(reason.contains("signal 9"), "{reason}");
    supervisor.set("web", "wake");
    assert_eq!(served(GUEST).pings, 2);
}

#[test]
fn missing_snapshot_fails_the_wake_until_it_is_back() {
    if !enter_namespace() {
        return;
    }
    let supervisor = Supervisor::start(&[]);
    supervisor.register("web", on_tap(json!({})));
    let (path, moved) = (
        supervisor.directory.path("snapshot"),
        supervisor.directory.path("moved"),
    );
    fs::rename(&path, &moved).unwrap();
    supervisor.set("web", "wake");
    let reason = supervisor.await_state("web", "failed");
    assert!(reason.contains(path.to_str().unwrap()), "{reason}");
    assert_eq!(supervisor.failures("load"), 1);
    fs::rename(&moved, &path).unwrap();
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    ping(GUEST, 1);
}

/// Sets the modification time of the file at `path`.
fn set_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let file = File::options().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// Starts a supervisor, and an instance `web` with a drive and the given policy after a crash. The instance is suspended with the drive
/// of time 2000; its registered snapshot has that of time 1000.
fn start_with_drive(on_crash: &str) -> Supervisor {
    let directory = scratch::Directory::new();
    let drive = directory.path("data");
    fs::write(&drive, [0; 4096]).unwrap();
    set_time(&drive, 1000);
    let option = format!("{},id=data", drive.display());
    create_snapshot(&directory.path("snapshot"), &["--disk", &option], MANY);
    let supervisor = Supervisor::start_in(directory, &[]);
    let mut body = on_tap(json!({
        "drives": [{"drive_id": "data", "path_on_host": drive}],
        "scale_to_zero": {"policy": "off"},
        "on_crash": on_crash,
    }));
    if on_crash == "boot" {
        body["boot"] = json!([
            file("net.elf"),
            "--memory",
            "8M",
            "--net",
            "fd:net0,id=net0,mac=02:00:00:00:00:07",
            "--disk",
            option,
            "--",
            "ip=10.0.0.2",
        ]);
    }
    supervisor.register("web", body);
    ping(GUEST, 2);
    supervisor.await_state("web", "running");
    set_time(&drive, 2000);
    supervisor.suspend("web");
    supervisor
}

#[test]
fn drive_newer_than_the_snapshot_fails_the_wake() {
    if !enter_namespace() {
        return;
    }
    let supervisor = start_with_drive("fail");
    let drive = supervisor.directory.path("data");
    set_time(&drive, 3000);
    supervisor.set("web", "wake");
    let reason = supervisor.await_state("web", "failed");
    assert!(
        reason.contains("status 119") && reason.contains("\"data\""),
        "{reason}"
    );
    // The drive of the snapshot is back.
    set_time(&drive, 2000);
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    assert_eq!(served(GUEST).pings, 2);
}

#[test]
fn drive_newer_than_the_snapshot_boots_the_guest() {
    if !enter_namespace() {
        return;
    }
    let supervisor = start_with_drive("boot");
    set_time(&supervisor.directory.path("data"), 3000);
    assert_eq!(served(GUEST).pings, 0);
    supervisor.await_state("web", "running");
    assert_eq!(supervisor.failures("load"), 1);
    // The booted guest is suspended with the drive as it is.
    ping(GUEST, 1);
    supervisor.suspend("web");
    assert_eq!(served(GUEST).pings, 1);
    assert_eq!(supervisor.failures("load"), 1);
}

#[test]
fn drive_newer_than_the_snapshot_discards_the_suspend() {
    if !enter_namespace() {
        return;
    }
    let supervisor = start_with_drive("discard");
    let drive = supervisor.directory.path("data");
    // A drive that belongs to neither snapshot.
    set_time(&drive, 3000);
    supervisor.set("web", "wake");
    let reason = supervisor.await_state("web", "failed");
    assert!(reason.contains("status 119"), "{reason}");
    assert_eq!(supervisor.failures("load"), 2);
    // That of the registered snapshot.
    set_time(&drive, 1000);
    supervisor.set("web", "wake");
    supervisor.await_state("web", "running");
    assert_eq!(served(GUEST).pings, 0);
}
