//! Restores into a shell, whose VM exists before.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::super::served::{ApiProcess, Directory, PAUSED};
use super::{create_snapshot, create_snapshot_of, expect_ticks, run_err, start};
#[cfg(target_arch = "x86_64")]
use crate::forged::change_vcpu;
use crate::guest::Running;
use crate::guests::{file, program};
use crate::network::{attach_tap, create_host_tap, in_own_network, ping};

/// A waiting shell, in a directory with its socket.
struct Shell {
    directory: Directory,
    running: Running,
}

impl Shell {
    /// Starts a shell with `options`, and waits for its socket.
    fn start(options: &[&str]) -> Self {
        let directory = Directory::new();
        let mut command = Command::new(program());
        command.args(["shell", &directory.text("shell")]).args(options);
        let running = Running::start(command.stdin(Stdio::null()));
        let path = directory.path("shell");
        scratch::wait_until("the socket of the shell", || {
            running.expect_alive();
            path.exists()
        });
        Self { directory, running }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path("shell")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    /// Returns the arguments that restore the snapshot in `directory`.
    fn arguments<'a>(&self, directory: &'a str) -> Vec<&'a str> {
        let socket = self.directory.text("shell").leak();
        vec!["restore", "--shell", socket, directory]
    }

    /// Starts `mayfly restore` into the shell.
    fn restore(&self, directory: &str, options: &[&str]) -> Client {
        let mut command = Command::new(program());
        command.args(self.arguments(directory)).args(options);
        Client(Running::start(command.stdin(Stdio::piped())))
    }
}

/// A `mayfly restore` whose VM runs in a shell.
struct Client(Running);

impl Client {
    fn expect(&mut self, text: &str) {
        self.0.expect(text);
    }

    /// Expects `count` consecutive ticks after the next one.
    fn expect_ticks(&mut self, count: u32) {
        self.expect("tick ");
        let first: u32 = self.0.expect("\n").parse().unwrap();
        for number in first + 1..=first + count {
            self.expect(&format!("tick {number}\n"));
        }
    }

    /// Waits for exit with `code`. Returns stderr.
    fn expect_exit(mut self, code: i32) -> String {
        self.0.expect_exit(code);
        self.0.read_stderr()
    }
}

fn vcpu_thread(process: u32) -> String {
    // A new thread may not have its name yet, and another may end meanwhile.
    scratch::wait_for("a vCPU thread", || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let name = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm"));
        let mut vcpus = tasks
            .flatten()
            .filter(|task| name(task).is_ok_and(|name| name.starts_with("fc_vcpu")));
        Some(vcpus.next()?.file_name().into_string().unwrap())
    })
}

#[test]
fn snapshot_continues_in_shell() {
    let (_kept, snapshot) = create_snapshot_of("ticker.elf", "tick 5\n");
    let mut shell = Shell::start(&["--for", &snapshot]);
    let mode = fs::metadata(shell.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let thread = vcpu_thread(shell.running.id());
    let api = Directory::new();
    let mut client = shell.restore(&snapshot, &["--api-sock", &api.text("api.sock")]);
    client.expect_ticks(20);
    // A shell serves one client.
    scratch::wait_until("the removal of the socket", || !shell.socket().exists());
    assert_eq!(vcpu_thread(shell.running.id()), thread);
    // The VM is as any other: a snapshot of it can be loaded.
    let second = api.text("second");
    super::run_ok(&["snapshot", &second, "--api-sock", &api.text("api.sock")]);
    client.expect("tick ");
    client.0.terminate();
    shell.running.expect_exit(1);
    let mut vm = super::restore(&second, &[]);
    expect_ticks(&mut vm, 5);
    vm.terminate();
}

#[test]
fn input_and_exit_status_pass_through_shell() {
    let mut vm = start("echo.elf");
    vm.expect("ready");
    let kept = Directory::new();
    let snapshot = kept.text("s");
    create_snapshot(&vm, &snapshot, &[]);
    vm.terminate();
    // Relative paths belong to the directory of the client.
    let mut shell = Shell::start(&["--for", &snapshot]);
    let mut command = Command::new(program());
    command
        .current_dir(kept.root())
        .args(shell.arguments("s"))
        .arg("--untrusted");
    let mut client = Running::start(command.stdin(Stdio::piped()));
    let mut input = client.take_input().unwrap();
    input.write_all(b"hello shell\n").unwrap();
    client.expect("hello shell");
    input.write_all(b"q").unwrap();
    client.expect("bye");
    client.expect_exit(0);
    shell.running.expect_exit(0);
}

#[test]
fn shell_refuses_other_shapes_and_waits_on() {
    let (_kept, snapshot) = create_snapshot_of("ticker.elf", "tick 3\n");
    for (options, text) in [
        (
            &["--for", &snapshot, "--memory", "64M"][..],
            "its guest memory: 64M, that of the snapshot: 32M",
        ),
        (
            &["--for", &snapshot, "--cpus", "2"],
            "its vCPUs: 2, that of the snapshot: 1",
        ),
    ] {
        let mut shell = Shell::start(options);
        let stderr = run_err(&shell.arguments(&snapshot));
        assert!(
            stderr.contains("the shell refuses the snapshot") && stderr.contains(text),
            "{stderr}"
        );
        assert!(shell.socket().exists());
        shell.running.terminate();
        assert!(!shell.socket().exists());
    }
    // A refusal changes nothing.
    let (_other, larger) = {
        let directory = Directory::new();
        let socket = directory.text("api.sock");
        let arguments = [
            "run",
            &file("ticker.elf"),
            "--memory",
            "40M",
            "--api-sock",
            &socket,
        ];
        let mut vm = ApiProcess::spawn(directory, Command::new(program()).args(arguments));
        vm.expect("tick 1\n");
        let kept = Directory::new();
        let path = kept.text("s");
        create_snapshot(&vm, &path, &[]);
        vm.terminate();
        (kept, path)
    };
    let mut shell = Shell::start(&["--memory", "32M"]);
    let stderr = run_err(&shell.arguments(&larger));
    assert!(stderr.contains("its guest memory: 32M"), "{stderr}");
    let mut client = shell.restore(&snapshot, &[]);
    client.expect_ticks(3);
    drop(client);
    shell.running.expect_exit(1);
}

#[test]
fn tracked_snapshot_uses_vm_of_shell() {
    let mut vm = ApiProcess::start();
    let body = r#"{"vcpu_count":1,"mem_size_mib":32,"track_dirty_pages":true}"#;
    vm.expect_no_content("PUT", "/machine-config", body);
    vm.set_kernel("ticker.elf");
    vm.run_action("InstanceStart");
    vm.expect("tick 1\n");
    let kept = Directory::new();
    let snapshot = kept.text("s");
    create_snapshot(&vm, &snapshot, &[]);
    vm.terminate();
    let mut shell = Shell::start(&["--for", &snapshot]);
    let thread = vcpu_thread(shell.running.id());
    let mut client = shell.restore(&snapshot, &[]);
    client.expect_ticks(3);
    assert_eq!(vcpu_thread(shell.running.id()), thread);
    drop(client);
    shell.running.expect_exit(1);
}

#[test]
fn incomplete_request_does_not_occupy_shell() {
    let (_kept, snapshot) = create_snapshot_of("ticker.elf", "tick 3\n");
    let mut shell = Shell::start(&["--for", &snapshot]);
    let mut incomplete = shell.connect();
    incomplete.write_all(b"{").unwrap();
    let mut client = shell.restore(&snapshot, &[]);
    client.expect_ticks(3);
    drop((client, incomplete));
    shell.running.expect_exit(1);
}

#[test]
fn shell_refuses_invalid_requests() {
    let (_kept, snapshot) = create_snapshot_of("ticker.elf", "tick 3\n");
    let mut shell = Shell::start(&["--for", &snapshot]);
    // Clients that end, and one that never sends its request.
    drop(shell.connect());
    let silent = shell.connect();
    let mut garbage = shell.connect();
    garbage.write_all(b"not json\n").unwrap();
    let mut reply = String::new();
    garbage.read_to_string(&mut reply).unwrap();
    assert!(
        reply.starts_with(r#"{"refused":"cannot read the message: it is not JSON"#),
        "{reply}"
    );
    let stderr = run_err(&shell.arguments("/missing"));
    assert!(stderr.contains("/missing/state"), "{stderr}");
    let mut client = shell.restore(&snapshot, &[]);
    client.expect_ticks(3);
    drop((client, silent));
    shell.running.expect_exit(1);
}

#[test]
fn end_of_shell_is_reported_to_client() {
    let (_kept, snapshot) = create_snapshot_of("ticker.elf", "tick 3\n");
    let mut shell = Shell::start(&["--for", &snapshot]);
    let mut client = shell.restore(&snapshot, &[]);
    client.expect_ticks(3);
    shell.running.kill();
    let stderr = client.expect_exit(1);
    assert!(
        stderr.contains("the shell has ended without an exit status"),
        "{stderr}"
    );
    // The file of the killed shell is gone, because it had loaded its snapshot.
    let stderr = run_err(&shell.arguments(&snapshot));
    assert!(stderr.contains("cannot connect to the shell at"), "{stderr}");

    let mut shell = Shell::start(&["--for", &snapshot]);
    let mut client = shell.restore(&snapshot, &[]);
    client.expect_ticks(3);
    shell.running.terminate();
    // As if the client had got the signal itself.
    client.0.expect_signal(libc::SIGTERM);
}

/// By CPUID, which is of x86_64 alone.
#[cfg(target_arch = "x86_64")]
#[test]
fn snapshot_of_another_processor_ends_shell_with_message() {
    let (kept, snapshot) = create_snapshot_of("ticker.elf", "tick 3\n");
    // A feature that no processor has: an undefined bit of leaf 1.
    change_vcpu(&kept.path("s/state"), 0, |vcpu| {
        let leaf = vcpu.cpuid.iter_mut().find(|entry| entry.function == 1).unwrap();
        leaf.ecx |= 1 << 16;
    });
    let mut shell = Shell::start(&["--for", &snapshot]);
    let stderr = run_err(&shell.arguments(&snapshot));
    assert!(stderr.contains("CPUID"), "{stderr}");
    shell.running.expect_exit(1);
}

#[test]
fn inherited_socket_ends_shell() {
    let (own, other) = UnixStream::pair().unwrap();
    // The command, which owns the other end, is dropped at once.
    let mut shell = Running::start(&mut shell_with_descriptor(other.into()));
    let mut reply = String::new();
    let mut own = BufReader::new(own);
    // A refused peer can send another request.
    for _ in 0..2 {
        own.get_mut().write_all(b"{}\n").unwrap();
        own.read_line(&mut reply).unwrap();
    }
    assert_eq!(reply.matches("arrays of strings").count(), 2, "{reply}");
    drop(own);
    shell.expect_exit(0);

    let output = scratch::run(&mut shell_with_descriptor(
        File::open("/dev/null").unwrap().into(),
    ));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("cannot use descriptor 100 as a socket"),
        "{stderr}"
    );
}

/// Returns a shell that inherits `descriptor` as number 100. The command keeps it open.
fn shell_with_descriptor(descriptor: OwnedFd) -> Command {
    let mut command = Command::new(program());
    command
        .args(["shell", "fd:100", "--memory", "16M"])
        .stdin(Stdio::null());
    let inherit = move || {
        // SAFETY: the call takes no pointer. Nothing else has the number.
        match unsafe { libc::dup2(descriptor.as_raw_fd(), 100) } {
            100 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes one system call. No other child inherits the number.
    unsafe { command.pre_exec(inherit) };
    command
}

#[test]
fn disks_pass_to_shell() {
    let directory = Directory::new();
    let disk = directory.write("disk", vec![0; 64 * 8 * 512]);
    let socket = directory.text("api.sock");
    let arguments = [
        "run",
        &file("blocks.elf"),
        "--memory",
        "8M",
        "--api-sock",
        &socket,
        "--disk",
        &disk,
    ];
    let mut vm = ApiProcess::spawn(directory, Command::new(program()).args(arguments));
    vm.expect("round 1\n");
    vm.expect_no_content("PATCH", "/vm", PAUSED);
    let kept = Directory::new();
    let snapshot = kept.text("s");
    create_snapshot(&vm, &snapshot, &[]);
    let content = fs::read(&disk).unwrap();
    let mut shell = Shell::start(&["--for", &snapshot]);
    // The source still uses its disk.
    let stderr = run_err(&shell.arguments(&snapshot));
    assert!(stderr.contains("cannot lock disk"), "{stderr}");
    shell.running.expect_exit(1);
    vm.terminate();

    let drive = format!("drive0={}", kept.text("copy"));
    // The lock of the disk ends with the VM.
    for trust in [&[][..], &["--untrusted"]] {
        kept.write("copy", &content);
        let mut shell = Shell::start(&["--for", &snapshot]);
        let options = [trust, &["--disk", &drive]].concat();
        let mut client = shell.restore(&snapshot, &options);
        client.expect("round ");
        client.expect("round ");
        drop(client);
        shell.running.expect_exit(1);
    }
}

#[test]
fn inherited_tap_passes_to_shell() {
    in_own_network(|| {
        create_host_tap();
        let directory = Directory::new();
        let socket = directory.text("api.sock");
        let mut command = Command::new(program());
        command.args(["run", &file("net.elf"), "--memory", "8M", "--api-sock", &socket]);
        command.args(["--net", "tap:tap0", "--", "ip=10.0.0.2"]);
        let mut vm = ApiProcess::spawn(directory, &mut command);
        vm.expect(" at 10.0.0.2\n");
        let kept = Directory::new();
        let snapshot = kept.text("s");
        create_snapshot(&vm, &snapshot, &[]);
        vm.terminate();
        let tap = attach_tap();
        let mut shell = Shell::start(&["--for", &snapshot]);
        let client = shell.restore(&snapshot, &["--net", &format!("net0=fd:{}", tap.as_raw_fd())]);
        ping("10.0.0.2", 3);
        drop(client);
        shell.running.expect_exit(1);
    });
}
