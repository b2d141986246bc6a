//! Debian's gdb.

use std::process::Command;

use super::{Debugged, address};
use crate::guests::file;

/// Returns the output of gdb that executes `commands` on the guest `debug.elf`. Missing: gdb is not installed.
fn debug(vm: &Debugged, commands: &[&str]) -> Option<String> {
    let target = format!("target remote {}", vm.directory.text("gdb"));
    scratch::wait_until("the socket", || vm.directory.path("gdb").exists());
    let mut command = Command::new("gdb");
    command
        .args([
            "-batch",
            "-nx",
            "-ex",
            "set confirm off",
            "-ex",
            "set width 0",
            "-ex",
            "set remotetimeout 100",
            "-ex",
        ])
        .arg(&target);
    for line in commands {
        command.args(["-ex", line]);
    }
    command.arg(file("debug.elf"));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&paths).any(|path| path.join("gdb").exists()) {
        scratch::skip("needs gdb", "run make setup");
        return None;
    }
    let output = scratch::run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Some(text.into_owned())
}

#[test]
fn gdb_breaks_steps_prints_and_shows_the_calls() {
    let mut vm = Debugged::run("debug.elf", &[]);
    let commands = [
        "break inner",
        "continue",
        "backtrace",
        "next",
        "print tripled",
        "finish",
        "print watched",
        "info threads",
        "delete",
        "continue",
    ];
    let Some(text) = debug(&vm, &commands) else { return };
    for expected in [
        "Breakpoint 1, inner (value=",
        "#1  ",
        "in middle (value=",
        "in outer (value=",
        "in second (value=",
        "in guest ()",
        "$1 = 3",
        "Value returned is $2 = 4",
        "$3 = 3",
        "vCPU 0, running",
        "exited normally",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    vm.running.expect("ok debug\n");
    vm.running.expect_exit(0);
}

#[test]
fn gdb_watches_a_variable_by_steps() {
    let mut vm = Debugged::run("debug.elf", &[]);
    let commands = [
        "break outer",
        "continue",
        "delete",
        // Where mayfly offers no watchpoints, gdb compares the value after each step.
        "set can-use-hw-watchpoints 0",
        "watch watched",
        "continue",
        "print watched",
        "kill",
    ];
    let Some(text) = debug(&vm, &commands) else { return };
    assert!(
        text.contains("atchpoint 2: watched") && text.contains("New value = 3") && text.contains("$1 = 3"),
        "{text}"
    );
    assert!(text.contains("Inferior 1 (process 1) killed"), "{text}");
    vm.running.expect_exit(0);
}

#[test]
fn gdb_watches_a_variable_in_registers_where_they_work() {
    let vm = Debugged::run("debug.elf", &[]);
    let has_watchpoints = vm.connect().request(&format!("Z2,{:x},8", address("watched"))) == "OK";
    let mut vm = Debugged::run("debug.elf", &[]);
    let commands = [
        "watch watched",
        "continue",
        "continue",
        "delete",
        "rwatch rounds",
        "continue",
        "delete",
        "continue",
    ];
    let Some(text) = debug(&vm, &commands) else { return };
    let expected: &[&str] = match has_watchpoints {
        true => &[
            "Hardware watchpoint 1: watched",
            "New value = 3",
            "New value = 6",
            "Value = 4",
        ],
        false => &["Could not insert hardware watchpoint 1"],
    };
    for expected in expected {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(text.contains("exited normally"), "{text}");
    vm.running.expect("ok debug\n");
    vm.running.expect_exit(0);
}
