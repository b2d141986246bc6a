//! What mayfly prints when the guest runs, and its exit status.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::guests::{file, program};

fn mayfly(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(guest: &str, options: &[&str]) -> Output {
    mayfly(&["run", &file(guest)]).args(options).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_guest_that_ends_well_is_all_that_is_seen() {
    let output = run("hello.elf", &[]);
    assert_eq!(
        (output.status.code(), printed(&output).as_str()),
        (Some(0), "hello from mayfly\n")
    );
    assert_eq!(said(&output), "");
}

#[test]
fn a_code_of_the_guest_is_the_exit_status() {
    for (code, status) in [("0", 0), ("1", 1), ("255", 255)] {
        let output = run("end-code.elf", &["--", &format!("code={code}")]);
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
    }
}

#[test]
fn a_triple_fault_is_told() {
    let output = run("end-triple.elf", &[]);
    assert_eq!(output.status.code(), Some(120));
    assert!(said(&output).contains("triple fault"), "{}", said(&output));
}

/// Only where level 0 is interpreted does the guest fail; what is said of it is the same in every such place.
#[test]
fn an_instruction_that_kvm_does_not_know_is_told() {
    let output = run("sse.elf", &[]);
    if output.status.success() {
        assert!(printed(&output).contains("ok sse"));
        return;
    }
    assert_eq!(output.status.code(), Some(121));
    let said = said(&output);
    for text in [
        "cannot run the guest at address 0x10",
        "instruction bytes 66 0f ef c0: KVM reports internal error 1;",
        "use a host with VMX",
    ] {
        assert!(said.contains(text), "{said}");
    }
}

#[test]
fn timings_are_told_beside_the_output() {
    let output = run("hello.elf", &["--timings"]);
    assert_eq!(printed(&output), "hello from mayfly\n");
    let said = said(&output);
    for phase in [
        "exec",
        "open image",
        "create VM",
        "set memory slots",
        "enter guest",
        "first exit",
        "first output",
    ] {
        assert!(said.contains(phase), "{phase} is not in {said}");
    }
}

#[test]
fn a_trace_is_what_perfetto_opens() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot.trace.json");
    let output = run("hello.elf", &["--trace", path.to_str().unwrap()]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        said(&output)
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
fn a_trace_that_cannot_be_written_is_refused() {
    let output = run("hello.elf", &["--trace", "/nowhere/trace"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("cannot write the trace to /nowhere/trace"),
        "{}",
        said(&output)
    );
}

#[test]
fn the_demo_explains_itself() {
    let output = mayfly(&["demo"]).output().unwrap();
    assert!(output.status.success());
    assert!(
        printed(&output).contains("hello from the command line"),
        "{}",
        printed(&output)
    );
    assert!(
        said(&output).contains("printed its first byte at"),
        "{}",
        said(&output)
    );
}

#[test]
fn an_image_that_does_not_fit_says_how_much_would_do() {
    let output = run("segments.elf", &["--memory", "2M"]);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(
        said.contains("segments.elf") && said.contains("MiB suffice"),
        "{said}"
    );
}

#[test]
fn an_initrd_that_does_not_fit_says_how_much_would_do() {
    let initrd = Path::new(env!("CARGO_TARGET_TMPDIR")).join("large-initrd");
    File::create(&initrd).unwrap().set_len(64 << 20).unwrap();
    let output = run(
        "initrd.elf",
        &["--memory", "16M", "--initrd", initrd.to_str().unwrap()],
    );
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(
        said.contains("large-initrd") && said.contains("MiB suffice"),
        "{said}"
    );
    let output = run(
        "initrd.elf",
        &["--memory", "96M", "--initrd", initrd.to_str().unwrap()],
    );
    assert!(
        printed(&output).contains("ok initrd 67108864 bytes sum 0"),
        "{}",
        printed(&output)
    );
}

#[test]
fn a_protocol_that_the_image_does_not_offer_is_refused() {
    let output = run("hello.elf", &["--protocol", "multiboot"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("supported: linux"), "{}", said(&output));
}

#[test]
fn a_command_line_is_checked() {
    for (arguments, text) in [
        ("x".repeat(5000), "5000"),
        ("caf\u{e9}".into(), "0xc3"),
        ("a\tb".into(), "0x09"),
    ] {
        let output = run("cmdline.elf", &["--", &arguments]);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(text), "{}", said(&output));
    }
    let exact = "y".repeat(4095);
    let output = run("cmdline.elf", &["--", &exact]);
    assert!(
        printed(&output).contains(&format!("[{exact}]")),
        "{}",
        said(&output)
    );
}

#[test]
fn input_comes_from_a_file_as_well() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("typed");
    fs::write(
        &path,
        "a line longer than the 64 bytes that the serial port's buffer holds, so that it waits\nq",
    )
    .unwrap();
    let output = mayfly(&["run", &file("echo.elf")])
        .stdin(File::open(&path).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let printed = printed(&output);
    assert!(
        printed.contains("so that it waits") && printed.contains("bye"),
        "{printed}"
    );
}

/// Both have a socket under another name first, and wait a little for whoever else has the folder locked.
#[test]
fn a_signal_leaves_no_socket_behind_however_early_it_comes() {
    let folder = std::env::temp_dir().join(format!("mayfly-early-{}", std::process::id()));
    let socket = folder.join("api.sock");
    let names = || fs::read_dir(&folder).unwrap().count();
    for command in [vec![], vec!["run".to_owned(), file("loop.elf")]] {
        fs::create_dir(&folder).unwrap();
        let held = File::open(&folder).unwrap();
        held.lock().unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        let mut mayfly = Command::new(program());
        mayfly.args(&command).arg("--api-sock").arg(&socket);
        let mayfly = mayfly.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        while names() < 2 {
            std::thread::yield_now();
        }
        let process = i32::try_from(mayfly.id()).unwrap();
        // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(process, libc::SIGTERM) }, 0);
        drop(held);
        let status = mayfly.wait_with_output().unwrap().status;
        assert_eq!(status.signal(), Some(libc::SIGTERM), "{command:?}: {status}");
        assert_eq!(names(), 0, "{command:?}");
        fs::remove_dir(&folder).unwrap();
    }
}
