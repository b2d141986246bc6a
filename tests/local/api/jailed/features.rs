//! All features of a VM in a jail, as an unprivileged user without /proc and /sys: each works, or is refused by name.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use scratch::Limited;

use super::super::chroot::in_own_mounts;
use super::super::http::{Client, NO_CONTENT};
use super::super::served::{ApiProcess, Directory, PAUSED, RESUMED, connect};
use super::super::uffd::FaultHandler;
use super::Jails;
use crate::guests::{file, program};
use crate::network::{create_tap, fetch, ping, repeat_arp, run_command};

/// User and group of the VMM.
const USER: u32 = 1000;
const MAC: &str = "02:00:00:00:00:07";
const DISK_SIZE: usize = 64 * 4096;
/// Memory of the guests in bytes.
const MEMORY: u64 = 8 << 20;
const BLOCKS: &str = "blocks.elf";
const NET: &str = "net.elf";

/// A jail, before and after the start of its VMM.
struct Jail<'a> {
    jails: &'a Jails,
    id: &'static str,
    root: PathBuf,
}

/// A VMM in a jail.
struct Vmm {
    process: ApiProcess,
    client: Client,
    root: PathBuf,
}

impl<'a> Jail<'a> {
    fn new(jails: &'a Jails, id: &'static str) -> Self {
        let root = jails.root(id);
        fs::create_dir_all(&root).unwrap();
        Self { jails, id, root }
    }

    /// Gives the file `name` in the jail to the user of the VMM.
    fn own(&self, name: &str) {
        let path = self.root.join(name);
        chown(&path, Some(USER), Some(USER)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.root.join(name), content).unwrap();
        self.own(name);
    }

    /// Copies the guest `name` to `kernel`.
    fn put_guest(&self, name: &str) {
        fs::copy(file(name), self.root.join("kernel")).unwrap();
        self.own("kernel");
    }

    /// Copies files of another jail, the disk as of the snapshot `state`.
    fn put_files(&self, from: &Jail, names: &[&str]) {
        for name in names {
            let source = if *name == "disk" { "state-disk" } else { name };
            fs::copy(from.root.join(source), self.root.join(name)).unwrap();
            self.own(name);
        }
    }

    /// Creates the FIFO `name`. Returns its read end.
    fn fifo(&self, name: &str) -> Limited<File> {
        let path = self.root.join(name);
        scratch::make_fifo(&path);
        self.own(name);
        // Also open for writing: the open waits for no writer.
        Limited(File::options().read(true).write(true).open(path).unwrap())
    }

    /// Starts the VMM with its API socket.
    fn start(&self, options: &[&str]) -> Vmm {
        let mut command = self.jails.command_as(USER, &["--id", self.id], options);
        let process = ApiProcess::spawn(Directory::new(), &mut command);
        let client = connect(&self.root.join("run/firecracker.socket"));
        Vmm {
            process,
            client,
            root: self.root.clone(),
        }
    }
}

impl Vmm {
    fn put(&mut self, path: &str, body: &str) {
        self.expect_no_content("PUT", path, body);
    }

    fn expect_no_content(&mut self, method: &str, path: &str, body: &str) {
        let response = self.client.request(method, path, body);
        assert_eq!(response.text, NO_CONTENT, "{method} {path} {body}");
    }

    /// Returns the message of a rejected load.
    fn load_error(&mut self, body: &str) -> String {
        self.client.request("PUT", "/snapshot/load", body).fault_message()
    }

    /// Pauses the guest, creates a snapshot with a copy of the disk, and resumes the guest.
    fn create(&mut self, kind: &str, state: &str, memory: &str) {
        self.expect_no_content("PATCH", "/vm", PAUSED);
        let body =
            format!(r#"{{"snapshot_type":"{kind}","snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        self.put("/snapshot/create", &body);
        // Not of all guests.
        let _ = fs::copy(self.root.join("disk"), self.root.join(format!("{state}-disk")));
        self.expect_no_content("PATCH", "/vm", RESUMED);
    }

    fn expect_round(&mut self) {
        self.process.expect("round ");
        self.process.expect("round ");
    }
}

/// Returns the body of a load of `state` with the memory at `path`, with more `fields`.
fn load_body(kind: &str, path: &str, fields: &str) -> String {
    let backend = format!(r#"{{"backend_type":"{kind}","backend_path":"{path}"}}"#);
    format!(r#"{{"snapshot_path":"state","mem_backend":{backend},"resume_vm":true{fields}}}"#)
}

/// Returns the configuration of a guest that writes its disk, with log and metrics in FIFOs.
fn configuration(engine: &str, tracked: bool) -> [(&'static str, String); 5] {
    [
        ("logger", r#"{"level":"Info","log_path":"log"}"#.to_owned()),
        ("metrics", r#"{"metrics_path":"metrics"}"#.to_owned()),
        (
            "machine-config",
            format!(r#"{{"vcpu_count":1,"mem_size_mib":8,"track_dirty_pages":{tracked}}}"#),
        ),
        ("boot-source", r#"{"kernel_image_path":"kernel"}"#.to_owned()),
        (
            "drives",
            format!(
                r#"{{"drive_id":"d","is_root_device":false,"path_on_host":"disk","io_engine":"{engine}","cache_type":"Writeback"}}"#
            ),
        ),
    ]
}

/// Checks that log and metrics reach their FIFOs.
fn expect_outputs(vmm: &mut Vmm, log: &mut Limited<File>, metrics: &mut Limited<File>) {
    vmm.put("/actions", r#"{"action_type":"FlushMetrics"}"#);
    for (fifo, text) in [(log, "mayfly"), (metrics, "utc_timestamp_ms")] {
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            let length = std::io::Read::read(fifo, &mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }
}

/// Checks disk I/O, log and metrics of a VM, a full snapshot and a diff.
fn check_snapshots(jail: &Jail, vmm: &mut Vmm, log: &mut Limited<File>, metrics: &mut Limited<File>) {
    vmm.expect_round();
    expect_outputs(vmm, log, metrics);
    vmm.create("Full", "state", "memory");
    vmm.expect_round();
    vmm.create("Diff", "diff-state", "diff");
    vmm.expect_round();
    let blocks = |name: &str| jail.root.join(name).metadata().unwrap().blocks();
    let [full, diff] = [blocks("memory"), blocks("diff")];
    assert!((1..=full).contains(&diff) && full < MEMORY / 512, "{diff} {full}");
}

fn put_disk_guest(jail: &Jail) -> (Limited<File>, Limited<File>) {
    jail.put_guest(BLOCKS);
    jail.write("disk", [0; DISK_SIZE]);
    (jail.fifo("log"), jail.fifo("metrics"))
}

/// Each engine, with and without dirty page tracking; the snapshot then loads in another jail.
#[test]
fn disk_and_snapshots_work_by_api() {
    for (engine, tracked) in [("Sync", false), ("Async", true)] {
        in_own_mounts(|base| {
            let jails = Jails::in_base(base);
            let first = Jail::new(&jails, "first");
            let (mut log, mut metrics) = put_disk_guest(&first);
            let mut vmm = first.start(&[]);
            for (name, body) in configuration(engine, tracked) {
                let id = if name == "drives" { "/d" } else { "" };
                vmm.put(&format!("/{name}{id}"), &body);
            }
            vmm.put("/actions", super::START);
            check_snapshots(&first, &mut vmm, &mut log, &mut metrics);
            vmm.process.terminate();
            for (id, fields) in [("plain", ""), ("tracked", r#","track_dirty_pages":true"#)] {
                let second = Jail::new(&jails, id);
                second.put_files(&first, &["state", "memory", "disk"]);
                let mut vmm = second.start(&[]);
                vmm.put("/snapshot/load", &load_body("File", "memory", fields));
                vmm.expect_round();
                vmm.create("Diff", "diff-state", "diff");
                vmm.expect_round();
                vmm.process.terminate();
            }
        });
    }
}

#[test]
fn disk_and_snapshots_work_by_config_file() {
    for (engine, tracked) in [("Sync", true), ("Async", false)] {
        in_own_mounts(|base| {
            let jails = Jails::in_base(base);
            let jail = Jail::new(&jails, "file");
            let (mut log, mut metrics) = put_disk_guest(&jail);
            let sections = configuration(engine, tracked).map(|(name, body)| match name {
                "drives" => format!(r#""{name}":[{body}]"#),
                _ => format!(r#""{name}":{body}"#),
            });
            jail.write("vm.json", format!("{{{}}}", sections.join(",")));
            let mut vmm = jail.start(&["--config-file", "/vm.json"]);
            check_snapshots(&jail, &mut vmm, &mut log, &mut metrics);
            vmm.process.terminate();
        });
    }
}

/// Creates a tap of the user, with the address of the host.
fn create_user_tap() {
    create_tap("tap0", 0, Some(USER.into()));
    run_command("ip addr add 10.0.0.1/24 dev tap0");
    run_command("ip link set tap0 up");
    repeat_arp("tap0");
}

#[test]
fn network_works_by_api_and_config_file() {
    in_own_mounts(|base| {
        create_user_tap();
        let jails = Jails::in_base(base);
        let interface = format!(r#"{{"iface_id":"n","host_dev_name":"tap0","guest_mac":"{MAC}"}}"#);
        let boot = r#"{"kernel_image_path":"kernel","boot_args":"ip=10.0.0.2 pages=9"}"#;
        let first = Jail::new(&jails, "first");
        first.put_guest(NET);
        let mut vmm = first.start(&[]);
        vmm.put("/network-interfaces/n", &interface);
        vmm.put("/boot-source", boot);
        vmm.put("/actions", super::START);
        vmm.process.expect(MAC);
        ping("10.0.0.2", 2);
        vmm.create("Full", "state", "memory");
        vmm.process.terminate();
        let second = Jail::new(&jails, "second");
        second.put_files(&first, &["state", "memory"]);
        let mut vmm = second.start(&[]);
        vmm.put("/snapshot/load", &load_body("File", "memory", ""));
        ping("10.0.0.2", 2);
        assert!(fetch("10.0.0.2").ends_with("hello from mayfly\n"));
        vmm.process.terminate();
        let third = Jail::new(&jails, "third");
        third.put_guest(NET);
        third.write(
            "vm.json",
            format!(r#"{{"boot-source":{boot},"network-interfaces":[{interface}]}}"#),
        );
        let mut vmm = third.start(&["--config-file", "/vm.json"]);
        vmm.process.expect(MAC);
        ping("10.0.0.2", 2);
        vmm.process.terminate();
    });
}

/// A recording needs /proc, and memory of a handler needs a userfaultfd.
#[test]
fn working_sets_and_fault_handlers_work_or_are_refused() {
    in_own_mounts(|base| {
        let jails = Jails::in_base(base);
        let first = Jail::new(&jails, "first");
        let (_log, _metrics) = put_disk_guest(&first);
        let mut vmm = first.start(&[]);
        for (name, body) in configuration("Sync", false).into_iter().skip(2) {
            let id = if name == "drives" { "/d" } else { "" };
            vmm.put(&format!("/{name}{id}"), &body);
        }
        vmm.put("/actions", super::START);
        vmm.expect_round();
        vmm.create("Full", "state", "memory");
        vmm.process.terminate();

        // A process outside of a jail records the working set.
        let outside = Directory::new();
        fs::copy(first.root.join("state-disk"), first.root.join("disk")).unwrap();
        let mut command = std::process::Command::new(program());
        let socket = outside.path("api.sock");
        command.arg("--api-sock").arg(&socket).current_dir(&first.root);
        let mut process = ApiProcess::spawn(Directory::new(), &mut command);
        let mut client = connect(&socket);
        let set = outside.text("set");
        let record = format!(r#","record_working_set":{{"path":"{set}","milliseconds":50}}"#);
        let load = load_body("File", "memory", &record);
        assert_eq!(client.request("PUT", "/snapshot/load", &load).text, NO_CONTENT);
        process.expect("round ");
        scratch::wait_until("the working set", || outside.path("set").exists());
        process.kill();

        let second = Jail::new(&jails, "second");
        second.put_files(&first, &["state", "memory", "disk"]);
        second.write("set", fs::read(set).unwrap());
        let mut vmm = second.start(&[]);
        vmm.put(
            "/snapshot/load",
            &load_body("File", "memory", r#","working_set":"set""#),
        );
        vmm.expect_round();
        vmm.process.terminate();

        let third = Jail::new(&jails, "third");
        third.put_files(&first, &["state", "memory", "disk"]);
        let record = r#","record_working_set":{"path":"set","milliseconds":50}"#;
        let message = third.start(&[]).load_error(&load_body("File", "memory", record));
        assert!(
            message.contains("cannot record a working set") && message.contains("/proc"),
            "{message}"
        );

        let fourth = Jail::new(&jails, "fourth");
        fourth.put_files(&first, &["state", "memory", "disk"]);
        let listener = UnixListener::bind(fourth.root.join("handler")).unwrap();
        fourth.own("handler");
        let handler = FaultHandler::serve(listener, File::open(fourth.root.join("memory")).unwrap());
        let mut vmm = fourth.start(&[]);
        vmm.put("/snapshot/load", &load_body("Uffd", "handler", ""));
        vmm.expect_round();
        vmm.create("Diff", "diff-state", "diff");
        vmm.process.terminate();
        assert!(handler.join() > 0);
    });
}

/// The arguments of the jailer precede those of the user, so that a command is none.
#[test]
fn commands_are_refused() {
    in_own_mounts(|base| {
        let jails = Jails::in_base(base);
        for name in ["shell", "run", "restore"] {
            let output = scratch::run(&mut jails.command_as(USER, &["--id", name], &[name, "/shell"]));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(153), "{stderr}");
            assert!(stderr.contains(name), "{stderr}");
        }
    });
}
