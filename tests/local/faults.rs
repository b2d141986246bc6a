//! A start in which one system call fails, for each call of a start: it ends with a message and leaves nothing behind, or the guest runs.
//!
//! The test is the debugger of the process: the kernel executes a call without effect instead, and the process gets an error.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::ptr;
use std::time::Duration;

use scratch::Directory;

use crate::calls;
use crate::guests::{file, program};
use crate::kvm_call_order::create_snapshot;

/// Maximum number of failures of one system call: later ones of the same kind have the same handling.
const MAX_FAILURES: usize = 6;

/// Calls that Linux never fails for lack of a resource or a right, or whose failure has no effect.
const INFALLIBLE: [libc::c_long; 25] = [
    libc::SYS_arch_prctl,
    libc::SYS_brk,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getpgrp,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_poll,
];

/// End of a process and its output.
struct End {
    status: libc::c_int,
    stderr: String,
    /// The guest ran after the failure, and was killed.
    has_run: bool,
    /// The call was made and failed.
    has_failed: bool,
}

const KVM_RUN: u64 = 0xae80;

/// Time for the end of the process once the guest runs after the failure. It is killed then: the guest may run for ever.
const RUN_LIMIT: Duration = Duration::from_secs(3);

/// A call by its number, and for an ioctl its request.
type Kind = (libc::c_long, u64);

/// Returns stdin with a character that ends the guest `echo.elf`.
fn input() -> Stdio {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"q").unwrap();
    reader.into()
}

fn request(operation: libc::c_uint, thread: libc::pid_t, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: `data` is a number, null, or a structure of the size that the operation accesses.
    match unsafe { libc::ptrace(operation, thread, ptr::null_mut::<libc::c_void>(), data) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn registers(thread: libc::pid_t) -> Option<libc::user_regs_struct> {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
    request(libc::PTRACE_GETREGS, thread, (&raw mut registers).cast()).ok()?;
    Some(registers)
}

fn number(value: impl Into<i64>) -> *mut libc::c_void {
    ptr::without_provenance_mut(usize::try_from(value.into()).unwrap())
}

/// Runs `command`. Its `count`th call of `kind` fails with `error`.
#[allow(
    clippy::zombie_processes,
    reason = "the loop waits for all threads, the process included"
)]
fn run_with_failure(command: &mut Command, kind: Kind, count: usize, error: i32) -> End {
    let output = Directory::new();
    let stderr = fs::File::create(output.path("stderr")).unwrap();
    // SAFETY: the closure runs between fork and exec, makes one system call and does not allocate.
    unsafe { command.pre_exec(|| request(libc::PTRACE_TRACEME, 0, ptr::null_mut())) };
    let child = command.stdin(input()).stdout(Stdio::null()).stderr(stderr);
    let leader = libc::pid_t::try_from(child.spawn().unwrap().id()).unwrap();
    let _end = calls::KillTimer::start_within(scratch::TIMEOUT, leader);
    calls::wait(leader);
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, leader, number(options)).unwrap();
    request(libc::PTRACE_SYSCALL, leader, ptr::null_mut()).unwrap();
    let (mut seen, mut inside) = (0, HashMap::new());
    let mut failing = None;
    let (mut started, mut has_run, mut run_end) = (HashMap::new(), false, None);
    let status = loop {
        let (thread, status) = calls::wait(-1);
        if !libc::WIFSTOPPED(status) {
            if thread == leader {
                break status;
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let mut delivered = 0;
        if signal == libc::SIGTRAP | 0x80 {
            let is_inside = inside.entry(thread).or_insert(false);
            *is_inside = !*is_inside;
            let is_entry = *is_inside;
            if let Some(mut registers) = registers(thread) {
                let call = libc::c_long::try_from(registers.orig_rax).unwrap_or(-1);
                let request_number = if call == libc::SYS_ioctl { registers.rsi } else { 0 };
                has_run |= is_entry && request_number == KVM_RUN;
                if is_entry && (call, request_number) == kind {
                    seen += 1;
                    if seen == count {
                        // Each role has this call, which has no effect.
                        registers.orig_rax = libc::SYS_getpid.cast_unsigned();
                        failing = Some(thread);
                        let _ = request(libc::PTRACE_SETREGS, thread, (&raw mut registers).cast());
                    }
                } else if !is_entry && failing == Some(thread) {
                    failing = None;
                    registers.rax = i64::from(-error).cast_unsigned();
                    let _ = request(libc::PTRACE_SETREGS, thread, (&raw mut registers).cast());
                }
                if has_run && seen >= count {
                    run_end.get_or_insert_with(|| calls::KillTimer::start_within(RUN_LIMIT, leader));
                }
            }
        } else if signal != libc::SIGTRAP && (started.insert(thread, ()).is_some() || thread == leader) {
            delivered = signal;
        }
        let _ = request(libc::PTRACE_SYSCALL, thread, number(delivered));
    };
    let is_killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
    // A guest that runs may run for ever.
    let has_run = has_run && is_killed;
    End {
        status: if has_run { 0 } else { status },
        has_run,
        stderr: fs::read_to_string(output.path("stderr")).unwrap(),
        has_failed: seen >= count,
    }
}

/// Returns the calls of `command` and their numbers, up to the first guest entry.
fn record(command: &mut Command) -> BTreeMap<Kind, usize> {
    let mut kinds = BTreeMap::new();
    let calls = calls::trace(command, input());
    let is_entry = |call: &calls::Call| call.request() == Some(KVM_RUN) && call.result == Some(0);
    let count = calls.iter().position(is_entry).unwrap();
    for call in &calls[..count] {
        if !INFALLIBLE.contains(&call.number) {
            *kinds
                .entry((call.number, call.request().unwrap_or(0)))
                .or_default() += 1;
        }
    }
    kinds
}

/// Checks that the process has ended by itself, with a message unless the guest ran, and has left no socket.
fn check(end: &End, (call, _): Kind, directory: &Directory) -> Result<(), String> {
    if !libc::WIFEXITED(end.status) {
        return Err(format!("wait status {:#x}", end.status));
    }
    let status = libc::WEXITSTATUS(end.status);
    if ![0, 1, 121, 122].contains(&status) {
        return Err(format!("exit status {status}"));
    }
    if status != 0 && !end.stderr.contains("mayfly: ") {
        return Err("no message".to_owned());
    }
    // A removal that fails, or its check that the file is still this socket, is the one cause of a file that stays.
    let is_removal = [libc::SYS_statx, libc::SYS_unlink, libc::SYS_unlinkat].contains(&call);
    if !is_removal && !end.has_run && directory.path("api.sock").exists() {
        return Err("the socket exists".to_owned());
    }
    Ok(())
}

#[test]
fn start_survives_or_reports_each_failing_call() {
    expect_handled(|directory| {
        let mut command = Command::new(program());
        command.args(["run", &file("hello.elf"), "--memory", "16M"]);
        command.args(["--disk", &directory.write("disk", [7; 4096])]);
        command.args(["--api-sock", &directory.text("api.sock")]);
        command
    });
}

#[test]
fn restore_survives_or_reports_each_failing_call() {
    let snapshot = Directory::new();
    create_snapshot(&snapshot, 16);
    expect_handled(|directory| {
        let mut command = Command::new(program());
        command.arg("restore").arg(snapshot.path(""));
        command.args(["--api-sock", &directory.text("api.sock")]);
        command
    });
}

/// Fails each call of the command that `command` returns for an empty directory.
fn expect_handled(command: impl Fn(&Directory) -> Command) {
    let kinds = record(&mut command(&Directory::new()));
    assert!(kinds.len() > 20, "{kinds:?}");
    let (mut failures, mut problems) = (0, Vec::new());
    for (&kind, &count) in &kinds {
        for error in [libc::ENOMEM, libc::EMFILE, libc::ENOSPC, libc::EPERM] {
            for nth in 1..=count.min(MAX_FAILURES) {
                let directory = Directory::new();
                let end = run_with_failure(&mut command(&directory), kind, nth, error);
                failures += usize::from(end.has_failed);
                if let Err(problem) = check(&end, kind, &directory) {
                    problems.push(format!(
                        "{kind:x?} {nth} with error {error}: {problem}: {}",
                        end.stderr
                    ));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    println!("{failures} failing calls of {} kinds", kinds.len());
}
