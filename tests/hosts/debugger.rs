//! Debian's gdb attached to a guest of mayfly. On this host only single steps work: QEMU's SVM neither loads the debug registers of a guest
//! nor intercepts `int3`. The tests of tests/local run on the host of aarch64, where all means work.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use scratch::Directory;

use crate::guest::Guest;

/// Limit of a run of gdb, which takes seconds to read symbols here.
const LIMIT: Duration = Duration::from_secs(200);

scenarios! {
    function_is_broken_in_stepped_and_printed => step_through_a_function();
    variable_is_watched_by_steps => watch_a_variable();
    breakpoint_is_in_no_snapshot => snapshot_at_a_breakpoint();
    guest_handles_its_own_breakpoint_instructions => pass_breakpoints();
    running_guest_is_debugged_over_its_api_socket => attach_over_api();
}

/// Starts a guest that waits for gdb at `gdb` in `directory`.
fn run(arguments: &str, directory: &Directory) -> Guest {
    let guest = Guest::launch(&format!("{arguments} --gdb {}", directory.text("gdb")));
    wait_for(&directory.path("gdb"));
    guest
}

fn wait_for(socket: &Path) {
    scratch::wait_until("the socket", || socket.exists());
}

/// Returns the output of gdb that attaches at `target` and executes `commands` on the test guest `name`.
fn debug(name: &str, target: &str, commands: &[&str]) -> String {
    // The output of commands of `monitor` is on stderr.
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec gdb \"$@\" 2>&1",
        "gdb",
        "-nx",
        "-batch",
        "-ex",
        "set confirm off",
        "-ex",
        "set width 0",
        "-ex",
    ]);
    command.arg(format!("target remote {target}"));
    for line in commands {
        command.args(["-ex", line]);
    }
    command.arg(crate::file(&format!("/guests/{name}")));
    let output = scratch::run_within(LIMIT, &mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}");
    text
}

/// Expects `texts` in `output`, in their order.
fn expect_in_order(output: &str, texts: &[&str]) {
    let mut rest = output;
    for text in texts {
        let place = rest.find(text);
        rest = &rest[place.unwrap_or_else(|| panic!("no {text:?} in {rest}"))..];
    }
}

fn step_through_a_function() {
    let directory = Directory::new();
    let mut guest = run("run /guests/debug.elf", &directory);
    let commands = [
        "break inner",
        "continue",
        "backtrace",
        "next",
        "stepi",
        "print tripled",
        "finish",
        "print watched",
        "info registers cr0 rip",
        "info threads",
        "delete",
        "continue",
    ];
    let output = debug("debug.elf", &directory.text("gdb"), &commands);
    expect_in_order(
        &output,
        &[
            "Breakpoint 1, inner (value=",
            "#1  ",
            "in middle (value=",
            "in outer (value=",
            "in second (value=",
            "in guest ()",
            "$1 = 3",
            "Value returned is $2 = 4",
            "$3 = 3",
            "cr0 ",
            "vCPU 0, running",
            "exited normally",
        ],
    );
    guest.expect("ok debug");
    guest.expect_exit(0);
}

fn watch_a_variable() {
    let directory = Directory::new();
    let guest = run("run /guests/debug.elf", &directory);
    let commands = [
        "break outer",
        "continue",
        "delete",
        "set can-use-hw-watchpoints 0",
        "watch watched",
        "continue",
        "backtrace 1",
        "delete",
        "continue",
    ];
    let output = debug("debug.elf", &directory.text("gdb"), &commands);
    expect_in_order(
        &output,
        &[
            "Watchpoint 2: watched",
            "Old value = 0",
            "New value = 3",
            "#0  inner (value=",
            "exited normally",
        ],
    );
    guest.expect_exit(0);
}

fn snapshot_at_a_breakpoint() {
    let directory = Directory::new();
    let snapshot = directory.text("snapshot");
    let allow = directory.root().display().to_string();
    let guest = run(&format!("run /guests/debug.elf --allow {allow}"), &directory);
    let create = format!("monitor snapshot {snapshot}");
    let commands = [
        "hbreak *0x1",
        "break inner",
        "continue",
        create.as_str(),
        "continue",
        "print value",
        "delete",
        "continue",
    ];
    let output = debug("debug.elf", &directory.text("gdb"), &commands);
    expect_in_order(
        &output,
        &[
            "Breakpoint 2, inner (value=",
            "snapshot created in ",
            "Breakpoint 2, inner (value=",
            "$1 = 2",
            "exited normally",
        ],
    );
    guest.expect_exit(0);
    // The guest has no handler: an instruction of the debugger would end it by a triple fault.
    let mut clone = Guest::launch(&format!("restore {snapshot}"));
    clone.expect("round 3: ");
    clone.expect("ok debug");
    clone.expect_exit(0);
    // The clone has the same breakpoint, where gdb sets it again.
    let clone = run(&format!("restore {snapshot}"), &directory);
    let commands = ["break inner", "continue", "print value", "delete", "continue"];
    let output = debug("debug.elf", &directory.text("gdb"), &commands);
    expect_in_order(
        &output,
        &["Breakpoint 1, inner (value=", "$1 = 2", "exited normally"],
    );
    clone.expect_exit(0);
}

fn pass_breakpoints() {
    let directory = Directory::new();
    let guest = run("run /guests/breakpoint.elf", &directory);
    let commands = [
        "break guest",
        "continue",
        "break print",
        "continue",
        "delete",
        "continue",
    ];
    let output = debug("breakpoint.elf", &directory.text("gdb"), &commands);
    expect_in_order(&output, &[" in guest ()", " in print ()", "exited normally"]);
    assert!(!output.contains("SIGTRAP"), "{output}");
    let printed = guest.expect_exit(0);
    assert!(printed.contains("ok breakpoint 3 handled"), "{printed}");
    // Without a debugger nothing differs.
    let printed = Guest::start("/guests/breakpoint.elf").expect_exit(0);
    assert!(printed.contains("ok breakpoint 3 handled"), "{printed}");
}

fn attach_over_api() {
    let directory = Directory::new();
    let socket = directory.text("api");
    let mut guest = Guest::start(&format!("/guests/loop.elf --api-sock {socket}"));
    guest.expect("looping");
    let target = format!("| mayfly ctl gdb --api-sock {socket}");
    let commands = ["info threads", "monitor devices", "monitor exits", "detach"];
    let output = debug("loop.elf", &target, &commands);
    expect_in_order(&output, &["in guest ()", "vCPU 0", "vCPU 0: ", "detached"]);
    let output = debug("loop.elf", &target, &["stepi", "kill"]);
    assert!(output.contains("killed"), "{output}");
    guest.expect_exit(0);
}
