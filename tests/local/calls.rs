//! The system calls of a process, as ptrace sees them.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{fs, mem, ptr};

/// One system call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whether it is the first thread's.
    pub first: bool,
    /// Which one, as `SYS_` of libc.
    pub number: libc::c_long,
    /// What it was given.
    pub arguments: [u64; 6],
    /// The file that it reads or maps.
    pub file: Option<PathBuf>,
    /// What it gave; none while it has not returned.
    pub result: Option<i64>,
}

impl Call {
    /// The request number of an ioctl.
    pub fn request(&self) -> Option<u64> {
        (self.number == libc::SYS_ioctl).then_some(self.arguments[1])
    }
}

/// The calls of `command`, which gets `input` as its standard input, over all its threads, in the order in which they began.
#[allow(
    clippy::zombie_processes,
    reason = "follow waits for every thread, the process included"
)]
pub fn trace(command: &mut Command, input: Stdio) -> Vec<Call> {
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe { command.pre_exec(|| request(libc::PTRACE_TRACEME, 0, 0)) };
    let child = command.stdout(Stdio::null()).stdin(input).spawn().unwrap();
    let child = libc::pid_t::try_from(child.id()).unwrap();
    assert!(
        libc::WIFSTOPPED(wait(child).1),
        "the command did not stop at its start"
    );
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, child, options.into()).unwrap();
    request(libc::PTRACE_SYSCALL, child, 0).unwrap();
    follow(child)
}

fn follow(leader: libc::pid_t) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut started = HashMap::new();
    let mut open: HashMap<libc::pid_t, usize> = HashMap::new();
    loop {
        let (thread, status) = wait(-1);
        if !libc::WIFSTOPPED(status) {
            if thread == leader {
                assert_eq!(status, 0, "the command failed");
                return calls;
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let is_system_call = signal == libc::SIGTRAP | 0x80;
        match is_system_call.then(|| stop(thread)).flatten() {
            Some(Stop::Entry(mut call)) => {
                call.first = thread == leader;
                open.insert(thread, calls.len());
                calls.push(call);
            }
            Some(Stop::Exit(result)) => {
                if let Some(call) = open.remove(&thread) {
                    calls[call].result = Some(result);
                }
            }
            None => {}
        }
        // Events of ptrace, and the stop that a new thread begins with, are not the thread's own signals.
        let own = !is_system_call && signal != libc::SIGTRAP && started.insert(thread, ()).is_some();
        let deliver = if own || (thread == leader && signal != libc::SIGTRAP && !is_system_call) {
            signal
        } else {
            0
        };
        // The thread may be gone already when the process ends.
        let _ = request(libc::PTRACE_SYSCALL, thread, deliver.into());
    }
}

/// A running process whose first thread stops before and after each system call. The others run.
pub struct Stepped(libc::pid_t);

impl Stepped {
    /// Stops the first thread of `process`.
    pub fn seize(process: u32) -> Self {
        let process = libc::pid_t::try_from(process).unwrap();
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
        request(libc::PTRACE_SEIZE, process, options.into()).unwrap();
        request(libc::PTRACE_INTERRUPT, process, 0).unwrap();
        assert!(libc::WIFSTOPPED(wait(process).1), "it did not stop");
        Self(process)
    }

    /// Lets it go on to where it enters or leaves a system call. How often a thread yields while it waits for another is not
    /// twice the same, and counts for nothing.
    pub fn step(&self) {
        let mut yields = false;
        loop {
            request(libc::PTRACE_SYSCALL, self.0, 0).unwrap();
            let (_, status) = wait(self.0);
            assert!(libc::WIFSTOPPED(status), "it has ended: {status:#x}");
            if libc::WSTOPSIG(status) != libc::SIGTRAP | 0x80 {
                continue;
            }
            let left = mem::take(&mut yields);
            yields = matches!(stop(self.0), Some(Stop::Entry(call)) if call.number == libc::SYS_sched_yield);
            if !left && !yields {
                return;
            }
        }
    }

    /// Lets it go on, and stops it no more.
    pub fn release(self) {
        request(libc::PTRACE_DETACH, self.0, 0).unwrap();
    }
}

enum Stop {
    Entry(Call),
    Exit(i64),
}

fn stop(thread: libc::pid_t) -> Option<Stop> {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut info: libc::ptrace_syscall_info = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&info);
    // SAFETY: `info` is valid for writes of `size` bytes.
    let read = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, &raw mut info) };
    if read <= 0 {
        return None;
    }
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says which member of the union is valid.
            let entry = unsafe { info.u.entry };
            let number = libc::c_long::try_from(entry.nr).unwrap();
            Some(Stop::Entry(Call {
                first: false,
                number,
                arguments: entry.args,
                file: file(thread, number, entry.args),
                result: None,
            }))
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` says which member of the union is valid.
            let exit = unsafe { info.u.exit };
            Some(Stop::Exit(exit.sval))
        }
        _ => None,
    }
}

/// The file that a stopped thread is about to read or map.
fn file(thread: libc::pid_t, number: libc::c_long, arguments: [u64; 6]) -> Option<PathBuf> {
    let descriptor = match number {
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv | libc::SYS_preadv | libc::SYS_preadv2 => 0,
        libc::SYS_splice | libc::SYS_copy_file_range => 0,
        libc::SYS_sendfile => 1,
        libc::SYS_mmap => 4,
        _ => return None,
    };
    fs::read_link(format!("/proc/{thread}/fd/{}", arguments[descriptor])).ok()
}

fn request(what: libc::c_uint, thread: libc::pid_t, data: libc::c_long) -> io::Result<()> {
    // SAFETY: the requests used here take a number as data and no address.
    let result = unsafe { libc::ptrace(what, thread, ptr::null_mut::<libc::c_void>(), data) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits for `thread`, or for any that this one traces: what other tests have started is theirs.
fn wait(thread: libc::pid_t) -> (libc::pid_t, libc::c_int) {
    let mut status = 0;
    // SAFETY: `status` is valid for writes.
    let thread = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    assert!(thread > 0, "waitpid: {}", io::Error::last_os_error());
    (thread, status)
}
