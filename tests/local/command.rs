//! Output and exit status of mayfly.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};

use scratch::Directory;
use vmm::arch::{Architecture, Native, Platform};

use crate::api::served::create_stale_socket;
use crate::guests::{file, program};

fn mayfly(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(guest: &str, options: &[&str]) -> Output {
    scratch::run(mayfly(&["run", &file(guest)]).args(options))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Limits the descriptors of `command` to those below `count`.
fn limit_descriptors(command: &mut Command, count: u64) {
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    };
    let limit = move || {
        // SAFETY: `limit` is valid for reads.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe { command.pre_exec(limit) };
}

/// At each step of the start, the next descriptor may be one too many.
#[test]
fn missing_descriptors_end_mayfly_with_error() {
    let disk = scratch::process_path("descriptors.disk");
    fs::write(&disk, [0; 4096]).unwrap();
    // 0 to 2 are the standard descriptors.
    for (failures, count) in (3..100).enumerate() {
        let mut command = mayfly(&["run", &file("hello.elf"), "--disk", disk.to_str().unwrap()]);
        limit_descriptors(&mut command, count);
        let output = scratch::run(&mut command);
        if output.status.success() {
            assert_eq!(stdout(&output), "hello from mayfly\n");
            assert!(failures > 5, "{failures} failures");
            return;
        }
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{count} descriptors: {text}");
        assert!(
            text.contains(": ") && text.lines().count() == 1,
            "{count} descriptors: {text}"
        );
    }
    panic!("mayfly needs 100 descriptors");
}

#[test]
fn successful_guest_prints_only_its_output() {
    let output = run("hello.elf", &[]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(0), "hello from mayfly\n")
    );
    assert_eq!(stderr(&output), "");
}

/// aarch64 has no port for the exit status.
#[cfg(target_arch = "x86_64")]
#[test]
fn guest_code_is_exit_status() {
    for (code, status) in [("0", 0), ("1", 1), ("255", 255)] {
        let output = run("end-code.elf", &["--", &format!("code={code}")]);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
    }
}

/// aarch64 has no triple faults.
#[cfg(target_arch = "x86_64")]
#[test]
fn triple_fault_is_reported() {
    let output = run("end-triple.elf", &[]);
    assert_eq!(output.status.code(), Some(120));
    assert!(stderr(&output).contains("triple fault"), "{}", stderr(&output));
}

/// Expects an error for the instruction `bytes` in the guest.
#[cfg(target_arch = "x86_64")]
fn expect_unsupported(output: &Output, bytes: &str) {
    assert_eq!(output.status.code(), Some(121), "{}", stdout(output));
    let stderr = stderr(output);
    for text in [
        "cannot run the guest at address 0x10",
        &format!("instruction bytes {bytes}"),
        "KVM reports internal error 1;",
    ] {
        assert!(stderr.contains(text), "{stderr}");
    }
    // The hint depends on the host.
    let is_interpreted = stderr.contains("use a host with VMX");
    assert!(
        is_interpreted != stderr.contains("check the image and the memory size"),
        "{stderr}"
    );
}

/// No host emulates an x87 load from an address of no device.
#[cfg(target_arch = "x86_64")]
#[test]
fn unsupported_instruction_is_reported() {
    expect_unsupported(&run("sse.elf", &["--", "mmio=1"]), "dd 00");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn sse_instruction_runs_or_is_reported() {
    let output = run("sse.elf", &[]);
    if output.status.success() {
        assert!(stdout(&output).ends_with("ok sse\n"), "{}", stdout(&output));
    } else {
        expect_unsupported(&output, "66 0f ef c0");
    }
}

/// The message appears at level info only: most guests that start on such a host are built for it.
/// VMX and SVM are of x86_64.
#[cfg(target_arch = "x86_64")]
#[test]
fn host_without_hardware_virtualization_is_logged_once() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap();
    let has_it = cpu.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    let text = stderr(&run("hello.elf", &["--log-level", "info"]));
    let count = text.matches("no hardware virtualization").count();
    assert_eq!(count, usize::from(!has_it), "{text}");
}

#[test]
fn timings_go_to_stderr() {
    let output = run("hello.elf", &["--timings"]);
    assert_eq!(stdout(&output), "hello from mayfly\n");
    let stderr = stderr(&output);
    for phase in [
        "exec",
        "open image",
        "create VM",
        "set memory slots",
        "enter guest",
        "first exit",
        "first output",
    ] {
        assert!(stderr.contains(phase), "{phase} is not in {stderr}");
    }
}

#[test]
fn trace_has_perfetto_format() {
    let path = scratch::process_path("boot.trace.json");
    let output = run("hello.elf", &["--trace", path.to_str().unwrap()]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        stderr(&output)
    );
    let trace: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let time = |name: &str| {
        events.iter().find(|event| event["name"] == name).unwrap()["ts"]
            .as_f64()
            .unwrap()
    };
    assert!(time("exec") <= time("open image"));
    assert!(time("create VM") < time("enter guest") && time("enter guest") < time("first exit"));
    assert!(time("first exit") <= time("first output"));
}

#[test]
fn unwritable_trace_is_rejected() {
    let output = run("hello.elf", &["--trace", "/nowhere/trace"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot write the trace to /nowhere/trace"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn demo_explains_its_output() {
    let output = scratch::run(&mut mayfly(&["demo"]));
    assert!(output.status.success());
    assert!(
        stdout(&output).contains("hello from the command line"),
        "{}",
        stdout(&output)
    );
    assert!(
        stderr(&output).contains("printed its first byte at"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn large_image_error_states_required_memory() {
    // On aarch64 the place of the device tree depends on that of the image.
    let subject = match Native::ARCHITECTURE {
        Architecture::X86_64 => "segments.elf",
        Architecture::Aarch64 => "cannot place the image in guest memory",
    };
    let output = run("segments.elf", &["--memory", "2M"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(
        stderr.contains(subject) && stderr.contains("MiB suffice"),
        "{stderr}"
    );
}

#[test]
fn large_initrd_error_states_required_memory() {
    let initrd = scratch::process_path("large-initrd");
    File::create(&initrd).unwrap().set_len(64 << 20).unwrap();
    let output = run(
        "initrd.elf",
        &["--memory", "16M", "--initrd", initrd.to_str().unwrap()],
    );
    assert_eq!(output.status.code(), Some(1));
    let stderr = stderr(&output);
    assert!(
        stderr.contains("large-initrd") && stderr.contains("MiB suffice"),
        "{stderr}"
    );
    let output = run(
        "initrd.elf",
        &["--memory", "96M", "--initrd", initrd.to_str().unwrap()],
    );
    assert!(
        stdout(&output).contains("ok initrd 67108864 bytes sum 0"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn unsupported_protocol_is_rejected() {
    let output = run("hello.elf", &["--protocol", "multiboot"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("supported: linux"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn invalid_command_line_is_rejected() {
    for (arguments, text) in [
        ("x".repeat(5000), "5000"),
        ("caf\u{e9}".into(), "0xc3"),
        ("a\tb".into(), "0x09"),
    ] {
        let output = run("cmdline.elf", &["--", &arguments]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(text), "{}", stderr(&output));
    }
    let exact = "y".repeat(4095);
    let output = run("cmdline.elf", &["--", &exact]);
    assert!(
        stdout(&output).contains(&format!("[{exact}]")),
        "{}",
        stderr(&output)
    );
}

#[test]
fn input_is_read_from_file() {
    let path = scratch::process_path("typed");
    fs::write(
        &path,
        "a line longer than the 64 bytes that the serial port's buffer holds, so that it waits\nq",
    )
    .unwrap();
    let output = scratch::run_with_input(
        &mut mayfly(&["run", &file("echo.elf")]),
        File::open(&path).unwrap(),
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    assert!(
        printed.contains("so that it waits") && printed.contains("bye"),
        "{printed}"
    );
}

/// mayfly binds the socket under a temporary name and waits for the lock of the directory, which the test holds.
#[test]
fn early_signal_removes_socket() {
    for command in [vec![], vec!["run".to_owned(), file("loop.elf")]] {
        let directory = Directory::new();
        let socket = directory.path("api.sock");
        let lock = File::open(directory.root()).unwrap();
        lock.lock().unwrap();
        create_stale_socket(&socket);
        let mut mayfly = Command::new(program());
        mayfly.args(&command).arg("--api-sock").arg(&socket);
        let mayfly = mayfly.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        scratch::wait_until("the temporary name", || directory.names().len() == 2);
        let process = i32::try_from(mayfly.id()).unwrap();
        // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(process, libc::SIGTERM) }, 0);
        drop(lock);
        let status = scratch::finish(mayfly).status;
        assert_eq!(status.signal(), Some(libc::SIGTERM), "{command:?}: {status}");
        assert!(directory.names().is_empty(), "{command:?}");
    }
}
