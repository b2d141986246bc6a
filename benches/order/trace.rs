//! A program, instruction by instruction.

use std::collections::BTreeSet;
use std::io;
use std::mem;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// Addresses of instructions that were executed.
pub type Executed = BTreeSet<u64>;

/// A program that is stepped through by a thread of its own, which alone the kernel lets do that.
pub struct Traced {
    thread: JoinHandle<Executed>,
    /// The process, with its pipes.
    pub child: Child,
}

impl Traced {
    /// # Errors
    /// The kernel's.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let traced = || {
            // SAFETY: this thread, the only one of a new process, asks to be traced by its parent; no memory is touched.
            match unsafe { libc::ptrace(libc::PTRACE_TRACEME) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec, it makes but that one system call.
        unsafe { command.pre_exec(traced) };
        let (sender, receiver) = mpsc::channel();
        let thread = thread::spawn(move || {
            let child = command.spawn();
            let pid = child
                .as_ref()
                .ok()
                .and_then(|child| libc::pid_t::try_from(child.id()).ok());
            let told = sender.send(child);
            match (pid, told) {
                (Some(pid), Ok(())) => follow(pid),
                _ => Executed::new(),
            }
        });
        let child = receiver.recv().map_err(io::Error::other)??;
        Ok(Self { thread, child })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When nothing was seen of it.
    pub fn executed(self) -> io::Result<Executed> {
        match self.thread.join() {
            Ok(executed) if !executed.is_empty() => Ok(executed),
            _ => Err(io::Error::other("nothing was seen of the program")),
        }
    }
}

/// Steps through the process and all of its threads, until it ends. Children of other threads are waited for by them.
fn follow(pid: libc::pid_t) -> Executed {
    let mut executed = Executed::new();
    let mut options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for writes.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        let ended = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        if thread < 0 || (ended && thread == pid) {
            return executed;
        }
        if ended {
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
                executed.insert(instruction(thread));
                0
            }
            // New threads begin with it.
            libc::SIGSTOP => 0,
            signal => signal,
        };
        // SAFETY: the thread has stopped, and the signal is a number.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, thread, 0_usize, signal as usize) };
    }
}

/// Where a thread that has stopped goes on.
fn instruction(thread: libc::pid_t) -> u64 {
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
