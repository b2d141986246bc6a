//! The order of a process's calls on KVM, as ptrace sees it.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::{mem, ptr};

/// The request numbers of all ioctls of `command`, over all its threads, in the order in which they began.
#[allow(
    clippy::zombie_processes,
    reason = "follow waits for every thread, the process included"
)]
pub fn trace(command: &mut Command) -> Vec<u64> {
    // SAFETY: between fork and exec only one system call is made, which allocates nothing.
    unsafe { command.pre_exec(|| request(libc::PTRACE_TRACEME, 0, 0)) };
    let child = command
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let child = libc::pid_t::try_from(child.id()).unwrap();
    assert!(
        libc::WIFSTOPPED(wait().1),
        "the command did not stop at its start"
    );
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, child, options.into()).unwrap();
    request(libc::PTRACE_SYSCALL, child, 0).unwrap();
    follow(child)
}

fn follow(leader: libc::pid_t) -> Vec<u64> {
    let mut requests = Vec::new();
    let mut started = HashMap::new();
    loop {
        let (thread, status) = wait();
        if !libc::WIFSTOPPED(status) {
            if thread == leader {
                assert_eq!(status, 0, "the command failed");
                return requests;
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let is_system_call = signal == libc::SIGTRAP | 0x80;
        if is_system_call {
            requests.extend(ioctl_entered(thread));
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

fn ioctl_entered(thread: libc::pid_t) -> Option<u64> {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut info: libc::ptrace_syscall_info = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&info);
    // SAFETY: `info` is valid for writes of `size` bytes.
    let read = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, &raw mut info) };
    if read <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says which member of the union is valid.
    let entry = unsafe { info.u.entry };
    (entry.nr == u64::try_from(libc::SYS_ioctl).unwrap()).then_some(entry.args[1])
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

fn wait() -> (libc::pid_t, libc::c_int) {
    let mut status = 0;
    // SAFETY: `status` is valid for writes.
    let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
    assert!(thread > 0, "waitpid: {}", io::Error::last_os_error());
    (thread, status)
}
