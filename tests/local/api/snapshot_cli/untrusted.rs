//! Untrusted state files: a restore opens only files, interfaces and processes that the caller names.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use devices::virtio::block::DiskConfig;
use vmm::config::{DeviceConfig, DriveConfig, NetBackend, NetConfig, VmConfig};

use super::super::served::{ApiProcess, Directory, load_body};
use super::{create_snapshot, expect_ticks, restore, run_ok};
use crate::forged::change_config;
use crate::guests::{file, program};

/// Snapshot of a VM with the drives `a` and `b` (read-only) and the interface `n`, beside files that no restore may touch.
struct Fixture {
    directory: Directory,
    /// Peer of interface `n`.
    peer: UnixListener,
    /// Socket that no restore may connect to.
    victim: UnixListener,
}

impl Fixture {
    fn create() -> Self {
        let directory = Directory::new();
        for name in ["a", "b", "victim"] {
            directory.write(name, [0x5a; 4096]);
        }
        directory.fifo("fifo");
        let listen = |name| {
            let listener = UnixListener::bind(directory.path(name)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let (peer, victim) = (listen("peer"), listen("victim.sock"));
        // A passt that leaves a mark.
        fs::create_dir(directory.path("bin")).unwrap();
        let passt = directory.write(
            "bin/passt",
            format!("#!/bin/sh\n: >{}\n", directory.text("spawned")),
        );
        fs::set_permissions(passt, fs::Permissions::from_mode(0o755)).unwrap();
        let fixture = Self {
            directory,
            peer,
            victim,
        };
        let home = Directory::new();
        let socket = home.text("api.sock");
        let [a, b, peer] = ["a", "b", "peer"].map(|name| fixture.directory.text(name));
        let mut command = Command::new(program());
        command.args([
            "run",
            &file("ticker.elf"),
            "--memory",
            "32M",
            "--api-sock",
            &socket,
        ]);
        command.args(["--disk", &format!("{a},id=a"), "--disk", &format!("{b},ro,id=b")]);
        command.args(["--net", &format!("unix:{peer},id=n")]);
        let mut vm = ApiProcess::spawn(home, &mut command);
        vm.expect("tick 2\n");
        create_snapshot(&vm, &fixture.directory.text("s"), &[]);
        vm.terminate();
        fixture.accept_peer();
        fixture
    }

    /// Accepts the connection of a VM.
    fn accept_peer(&self) {
        scratch::accept(&self.peer);
    }

    fn snapshot(&self) -> String {
        self.directory.text("s")
    }

    /// Returns a copy of the snapshot with a changed configuration, in directory `f`.
    fn forge(&self, change: impl FnOnce(&mut VmConfig)) -> String {
        let forged = self.directory.path("f");
        let _ = fs::remove_dir_all(&forged);
        fs::create_dir(&forged).unwrap();
        for name in ["state", "memory"] {
            fs::copy(self.directory.path("s").join(name), forged.join(name)).unwrap();
        }
        change_config(&forged.join("state"), change);
        self.directory.text("f")
    }

    /// Options that name all host sides of the snapshot.
    fn names(&self) -> Vec<String> {
        let [a, b, peer] = ["a", "b", "peer"].map(|name| self.directory.text(name));
        [
            format!("--disk=a={a}"),
            format!("--disk=b={b},ro"),
            format!("--net=n=unix:{peer}"),
        ]
        .into()
    }

    /// Runs an untrusted restore of `snapshot`.
    fn run_untrusted(&self, snapshot: &str, options: &[String]) -> Output {
        let path = format!(
            "{}:{}",
            self.directory.text("bin"),
            std::env::var("PATH").unwrap()
        );
        let mut command = super::command_with_timeout();
        command.args(["restore", snapshot, "--untrusted"]).args(options);
        scratch::run(command.env("PATH", path))
    }

    /// Expects that an untrusted restore of `snapshot` fails with each of `texts`, and touches nothing.
    fn expect_rejected(&self, snapshot: &str, options: &[String], texts: &[&str]) {
        let output = self.run_untrusted(snapshot, options);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(output.stdout.is_empty());
        for text in texts {
            assert!(stderr.contains(text), "no {text:?} in: {stderr}");
        }
        self.expect_untouched();
    }

    fn expect_untouched(&self) {
        assert_eq!(fs::read(self.directory.path("victim")).unwrap(), [0x5a; 4096]);
        assert!(!self.directory.path("spawned").exists(), "passt was started");
        for listener in [&self.peer, &self.victim] {
            #[expect(clippy::disallowed_methods, reason = "the socket does not wait")]
            let accepted = listener.accept().map(|_| ());
            assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

fn drive<'a>(config: &'a mut VmConfig, id: &str) -> &'a mut DiskConfig {
    let mut drives = config.devices.iter_mut().filter_map(|device| match device {
        DeviceConfig::Drive(drive) => Some(&mut drive.disk),
        DeviceConfig::Interface(_) => None,
    });
    drives.find(|disk| disk.id == id).unwrap()
}

fn interface(config: &mut VmConfig) -> &mut NetConfig {
    let mut interfaces = config.devices.iter_mut().filter_map(|device| match device {
        DeviceConfig::Drive(_) => None,
        DeviceConfig::Interface(net) => Some(net),
    });
    interfaces.next().unwrap()
}

#[test]
fn unnamed_host_sides_are_rejected() {
    let fixture = Fixture::create();
    let names = fixture.names();
    let [a, b, n] = [0, 1, 2].map(|index| names[index].clone());
    let text = |name: &str| fixture.directory.text(name);
    // Each is listed, with its access and its option.
    let all = [
        format!("drive \"a\" ({}, read-write)", text("a")),
        format!("drive \"b\" ({}, read-only)", text("b")),
        format!("network interface \"n\" (unix:{}, read-write)", text("peer")),
        "(--disk a=PATH --disk b=PATH --net n=BACKEND)".into(),
    ];
    fixture.expect_rejected(&fixture.snapshot(), &[], &all.each_ref().map(String::as_str));
    // Named devices are not opened before the check of the others: this one is missing.
    let missing = format!("--disk=a={}", text("missing"));
    fixture.expect_rejected(&fixture.snapshot(), &[missing, b.clone()], &["(--net n=BACKEND)"]);

    let victim = text("victim");
    let fifo = text("fifo");
    for path in [&victim, &fifo, "/proc/self/fd/0", "/dev/fd/3", "/dev/null"] {
        let forged = fixture.forge(|config| drive(config, "a").path = path.into());
        let named = format!("drive \"a\" ({path}, read-write)");
        fixture.expect_rejected(&forged, &[b.clone(), n.clone()], &[&named, "(--disk a=PATH)"]);
    }
    let socket = text("victim.sock");
    for (backend, shown) in [
        (
            NetBackend::Stream(socket.clone().into()),
            format!("unix:{socket}"),
        ),
        (NetBackend::Tap("victim0".into()), "tap:victim0".into()),
        (NetBackend::Tap(String::new()), "tap:".into()),
        (NetBackend::Descriptor(0), "fd:0".into()),
        (NetBackend::Descriptor(7), "fd:7".into()),
        (NetBackend::User, "user".into()),
    ] {
        let forged = fixture.forge(|config| interface(config).backend = backend);
        let named = format!("network interface \"n\" ({shown}, read-write)");
        fixture.expect_rejected(&forged, &[a.clone(), b.clone()], &[&named, "(--net n=BACKEND)"]);
    }
}

#[test]
fn forged_devices_and_flags_are_rejected() {
    let fixture = Fixture::create();
    let victim = fixture.directory.text("victim");
    let names = fixture.names();
    // More devices, with the ID of another one, without an ID, and with one that would control the terminal.
    for (id, text) in [
        ("a", "cannot attach two drives with the ID \"a\""),
        ("", "(--disk drive2=PATH)"),
        ("n", "(--disk n=PATH)"),
        ("\u{1b}[2J\n", "(--disk \\u{1b}[2J\\n=PATH)"),
    ] {
        let forged = fixture.forge(|config| {
            let mut added: DriveConfig = victim.parse().unwrap();
            added.disk.id = id.into();
            config.devices.push(added.into());
        });
        fixture.expect_rejected(&forged, &names, &[text]);
    }
    // The caller has named drive b read-only.
    let forged = fixture.forge(|config| drive(config, "b").read_only = false);
    let read_only = "cannot attach drive \"b\" read-only: the snapshot has it read-write";
    fixture.expect_rejected(&forged, &names, &[read_only, "(--disk ID=PATH without ,ro)"]);
    // An empty disk is no file either.
    let forged = fixture.forge(|config| {
        let disk = drive(config, "a");
        (disk.allow_empty, disk.path) = (true, victim.clone().into());
    });
    fixture.expect_rejected(&forged, &names[1..], &["(--disk a=PATH)"]);
    // Names of any length, in the message too.
    let long = "x".repeat(1 << 20);
    let forged = fixture.forge(|config| drive(config, "a").path = long.clone().into());
    fixture.expect_rejected(
        &forged,
        &[],
        &["device 1 of the state file, a drive: ", "1048576 bytes"],
    );
    let forged = fixture.forge(|config| interface(config).id = long);
    let text = "device 3 of the state file, a network interface: ";
    fixture.expect_rejected(&forged, &names, &[text, "1048576 bytes"]);
}

#[test]
fn links_and_pipes_in_the_directory_are_rejected() {
    let fixture = Fixture::create();
    let snapshot = fixture.snapshot();
    let working_set = format!("--working-set={snapshot}/set");
    let record = format!("--record-working-set={snapshot}/set");
    for (name, option) in [
        ("state", None),
        ("memory", None),
        ("set", Some(working_set)),
        ("set", Some(record)),
    ] {
        let path = Path::new(&snapshot).join(name);
        let kept = path.exists().then(|| fs::read(&path).unwrap());
        let options = [fixture.names(), option.into_iter().collect()].concat();
        for target in ["victim", "fifo", "s"] {
            let _ = fs::remove_file(&path);
            symlink(fixture.directory.path(target), &path).unwrap();
            let shown = format!("cannot open {path:?} of an untrusted snapshot: it is a link");
            fixture.expect_rejected(&snapshot, &options, &[&shown]);
        }
        fs::remove_file(&path).unwrap();
        fixture.directory.fifo(&format!("s/{name}"));
        fixture.expect_rejected(&snapshot, &options, &["it is a link, directory, pipe or device"]);
        fs::remove_file(&path).unwrap();
        if let Some(kept) = kept {
            fs::write(&path, kept).unwrap();
        }
    }
}

/// The image, the initrd and the other values of a configuration are names or numbers that a load does not open.
#[test]
fn named_host_sides_are_opened() {
    let fixture = Fixture::create();
    let fifo = fixture.directory.text("fifo");
    let forged = fixture.forge(|config| {
        config.kernel = fifo.clone().into();
        config.initrd = Some(fifo.into());
        config.cmdline = "init=/victim".into();
        drive(config, "a").path = "/victim".into();
        interface(config).backend = NetBackend::User;
    });
    let options = [&["--untrusted".to_owned()], fixture.names().as_slice()].concat();
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    let mut clone = restore(&forged, &options);
    expect_ticks(&mut clone, 3);
    clone.terminate();
    fixture.accept_peer();
    fixture.expect_untouched();
    // Without the option nothing changes: the paths of the state file are opened.
    let mut clone = restore(&fixture.snapshot(), &[]);
    expect_ticks(&mut clone, 3);
    clone.terminate();
    fixture.accept_peer();
}

#[test]
fn api_opens_named_host_sides_only() {
    let fixture = Fixture::create();
    let victim = fixture.directory.text("victim");
    fixture.forge(|config| {
        config.devices.pop();
        drive(config, "a").path = victim.clone().into();
    });
    let load = |fields: &str| {
        let process = ApiProcess::start();
        let body = load_body(&fixture.directory, "f/state", "f/memory", fields);
        (process.request("PUT", "/snapshot/load", &body), process)
    };
    let override_of = |id: &str, read_only| {
        let path = fixture.directory.text(id);
        format!(r#"{{"drive_id":"{id}","path_on_host":"{path}","is_read_only":{read_only}}}"#)
    };
    let (a, b) = (override_of("a", false), override_of("b", true));
    let none = r#","untrusted":true"#.to_owned();
    let one = format!(r#"{none},"drive_overrides":[{b}]"#);
    let conflict = format!(r#"{none},"drive_overrides":[{},{b}]"#, override_of("a", true));
    let named = format!("drive \"a\" ({victim}, read-write)");
    for (fields, text) in [
        (none.clone(), format!("{named}, drive \"b\"")),
        (one, format!("{named}; name each in drive_overrides")),
        (conflict, "cannot attach drive \"a\" read-only".into()),
    ] {
        let (response, process) = load(&fields);
        let message = response.fault_message();
        assert!(message.contains(&text), "{message}");
        process.expect_exit(1);
        fixture.expect_untouched();
    }
    // The machine lacks the interface of the state, but its files are opened first.
    let (response, process) = load(&format!(r#"{none},"drive_overrides":[{a},{b}]"#));
    let message = response.fault_message();
    assert!(message.contains("cannot restore the state"), "{message}");
    process.expect_exit(1);
    fixture.expect_untouched();
}

#[test]
fn opened_host_sides_are_logged_and_listed() {
    let fixture = Fixture::create();
    let [a, b, peer] = ["a", "b", "peer"].map(|name| fixture.directory.text(name));
    let info = run_ok(&["snapshot-info", &fixture.snapshot()]);
    for line in [
        format!("drive        a: {a}, read-write\n"),
        format!("drive        b: {b}, read-only\n"),
        format!("interface    n: unix:{peer}, read-write, "),
    ] {
        assert!(info.contains(&line), "no {line:?} in {info}");
    }
    let log = fixture.directory.text("log");
    let named = format!("--disk=a={a}");
    let options = ["--log-level", "info", "--log-file", &log, &named];
    let mut clone = restore(&fixture.snapshot(), &options);
    expect_ticks(&mut clone, 1);
    clone.terminate();
    fixture.accept_peer();
    let log = fs::read_to_string(log).unwrap();
    for line in [
        format!(
            "the load opens the memory file \"{}/memory\", read-only\n",
            fixture.snapshot()
        ),
        format!("the load opens drive \"a\", named by an override: {a}, read-write\n"),
        format!("the load opens drive \"b\", named by the state file: {b}, read-only\n"),
        format!("the load opens network interface \"n\", named by the state file: unix:{peer}, read-write\n"),
    ] {
        assert!(log.contains(&line), "no {line:?} in {log}");
    }
}
