//! Single-stepping of a program.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// Addresses of executed instructions.
pub type Executed = BTreeSet<u64>;

/// Traced program. A thread of its own steps it, because the kernel accepts ptrace requests only from the
/// tracing thread.
pub struct Traced {
    thread: JoinHandle<Executed>,
    /// The process, with its pipes.
    pub child: Child,
}

impl Traced {
    /// Starts `command` and steps it in a new thread.
    ///
    /// # Errors
    /// Fails if the process cannot be started or traced.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let traced = || {
            // SAFETY: this thread, the only one of a new process, requests to be traced by its parent; the
            // call accesses no memory.
            match unsafe { libc::ptrace(libc::PTRACE_TRACEME) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec, the closure makes one system call only.
        unsafe { command.pre_exec(traced) };
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            let child = command.spawn();
            let pid = child
                .as_ref()
                .ok()
                .and_then(|child| libc::pid_t::try_from(child.id()).ok());
            let sent = sender.send(child);
            match (pid, sent) {
                (Some(pid), Ok(())) => step_until_exit(pid),
                _ => Executed::new(),
            }
        });
        let child = scratch::receive(&receiver)?;
        Ok(Self { thread, child })
    }

    /// Waits for the exit of the program and returns the executed addresses.
    ///
    /// # Errors
    /// Fails if no instruction was traced.
    #[allow(
        clippy::disallowed_methods,
        reason = "single steps take minutes on a slow host"
    )]
    pub fn executed(self) -> io::Result<Executed> {
        match self.thread.join() {
            Ok(executed) if !executed.is_empty() => Ok(executed),
            _ => Err(io::Error::other(
                "cannot trace the program: no instruction was executed",
            )),
        }
    }
}

/// Steps all threads of the process until it exits. With `__WNOTHREAD`, each tracing thread waits only for
/// its own children.
fn step_until_exit(pid: libc::pid_t) -> Executed {
    let mut executed = Executed::new();
    let mut options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for writes.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        let has_exited = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        if thread < 0 || (has_exited && thread == pid) {
            return executed;
        }
        if has_exited {
            continue;
        }
        if options != 0 {
            // SAFETY: the thread has stopped at its exec, and the options are a number.
            unsafe {
                libc::ptrace(
                    libc::PTRACE_SETOPTIONS,
                    thread,
                    0_usize,
                    mem::take(&mut options) as usize,
                )
            };
        }
        let signal = match libc::WSTOPSIG(status) {
            libc::SIGTRAP => {
                executed.insert(instruction_pointer(thread));
                0
            }
            // A new thread starts with SIGSTOP.
            libc::SIGSTOP => 0,
            signal => signal,
        };
        // SAFETY: the thread has stopped, and the signal is a number.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, thread, 0_usize, signal as usize) };
    }
}

/// Returns the address of the next instruction of a stopped thread.
fn instruction_pointer(thread: libc::pid_t) -> u64 {
    // SAFETY: all-zero bytes are valid registers.
    let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
    // SAFETY: `registers` is valid for writes, and outlives the call.
    unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGS,
            thread,
            ptr::null_mut::<libc::c_void>(),
            &raw mut registers,
        )
    };
    registers.rip
}
