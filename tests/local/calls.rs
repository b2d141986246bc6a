//! System calls of a process, by ptrace.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;
use std::{fs, mem, ptr, thread};

/// A system call.
#[derive(Clone, Debug)]
pub struct Call {
    /// True for a call of the main thread.
    pub is_main_thread: bool,
    /// Number, one of libc's `SYS_` constants.
    pub number: libc::c_long,
    /// Arguments, in registers.
    pub arguments: [u64; 6],
    /// File that the call reads or maps.
    pub file: Option<PathBuf>,
    /// Return value, if the call has returned.
    pub result: Option<i64>,
}

impl Call {
    /// Returns the request number of an ioctl.
    pub fn request(&self) -> Option<u64> {
        (self.number == libc::SYS_ioctl).then_some(self.arguments[1])
    }
}

/// Runs `command` with `input` as its standard input. Returns the calls of all threads, ordered by entry.
#[allow(
    clippy::zombie_processes,
    reason = "follow waits for every thread, the process included"
)]
pub fn trace(command: &mut Command, input: Stdio) -> Vec<Call> {
    // SAFETY: the closure runs between fork and exec, makes one system call and does not allocate.
    unsafe { command.pre_exec(|| request(libc::PTRACE_TRACEME, 0, 0)) };
    let child = command.stdout(Stdio::null()).stdin(input).spawn().unwrap();
    let child = libc::pid_t::try_from(child.id()).unwrap();
    let _limit = KillTimer::start(child);
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
        match is_system_call.then(|| read_stop(thread)).flatten() {
            Some(Stop::Entry(mut call)) => {
                call.is_main_thread = thread == leader;
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
        // ptrace events and the initial SIGSTOP of a new thread are not signals of the thread (ptrace(2)).
        let own = !is_system_call && signal != libc::SIGTRAP && started.insert(thread, ()).is_some();
        let deliver = if own || (thread == leader && signal != libc::SIGTRAP && !is_system_call) {
            signal
        } else {
            0
        };
        // At the end of the process the thread may be gone already.
        let _ = request(libc::PTRACE_SYSCALL, thread, deliver.into());
    }
}

/// Kills a process after [`scratch::TIMEOUT`], which ends a wait for its next stop. Drop stops the timer.
pub struct KillTimer {
    _running: Sender<()>,
}

impl KillTimer {
    fn start(process: libc::pid_t) -> Self {
        Self::start_within(scratch::TIMEOUT, process)
    }

    /// Kills the process after `limit`.
    pub fn start_within(limit: Duration, process: libc::pid_t) -> Self {
        let (running, stop) = mpsc::channel();
        thread::spawn(move || {
            if stop.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                // SAFETY: the call takes no pointer. The test has not waited for the process.
                unsafe { libc::kill(process, libc::SIGKILL) };
            }
        });
        Self { _running: running }
    }
}

/// A running process whose main thread, and the threads that it starts, stop at the entry and the exit of each system call. Other
/// threads run.
pub struct SyscallStepper {
    leader: libc::pid_t,
    /// Traced threads, which may wait in a system call.
    threads: Vec<libc::pid_t>,
    /// Thread of the last stop.
    stopped: libc::pid_t,
    _limit: KillTimer,
}

impl SyscallStepper {
    /// Stops the main thread of `process`.
    pub fn seize(process: u32) -> Self {
        let leader = libc::pid_t::try_from(process).unwrap();
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
        let limit = KillTimer::start(leader);
        request(libc::PTRACE_SEIZE, leader, options.into()).unwrap();
        request(libc::PTRACE_INTERRUPT, leader, 0).unwrap();
        assert!(libc::WIFSTOPPED(wait(leader).1), "the process did not stop");
        Self {
            leader,
            threads: vec![leader],
            stopped: leader,
            _limit: limit,
        }
    }

    /// Continues the stopped thread, and waits for the next entry or exit of a system call of any traced thread. Skips sched_yield:
    /// the number of yields of a waiting thread varies from run to run.
    pub fn step(&mut self) {
        let mut yielding = None;
        loop {
            // A thread that has ended cannot be continued.
            let _ = request(libc::PTRACE_SYSCALL, self.stopped, 0);
            let (thread, status) = wait(-1);
            self.stopped = thread;
            if !libc::WIFSTOPPED(status) {
                assert_ne!(thread, self.leader, "the process has ended: {status:#x}");
                self.threads.retain(|other| *other != thread);
                continue;
            }
            if !self.threads.contains(&thread) {
                self.threads.push(thread);
            }
            if libc::WSTOPSIG(status) != libc::SIGTRAP | 0x80 {
                continue;
            }
            let was_yield = yielding.take() == Some(thread);
            if matches!(read_stop(thread), Some(Stop::Entry(call)) if call.number == libc::SYS_sched_yield) {
                yielding = Some(thread);
            } else if !was_yield {
                return;
            }
        }
    }

    /// Detaches from the process, which then runs freely.
    pub fn release(self) {
        for &thread in &self.threads {
            if thread != self.stopped {
                // Fails if the thread has ended.
                let _ = request(libc::PTRACE_INTERRUPT, thread, 0);
                wait(thread);
            }
            let _ = request(libc::PTRACE_DETACH, thread, 0);
        }
        // A new thread is traced before its first stop, which no wait has returned yet.
        while let Some(thread) = self.traced_thread() {
            wait(thread);
            let _ = request(libc::PTRACE_DETACH, thread, 0);
        }
    }

    /// Kills the process at its stop. Its parent must wait for it.
    pub fn kill(self) {
        // SAFETY: the call takes no pointer. The test has not waited for the process.
        unsafe { libc::kill(self.leader, libc::SIGKILL) };
        // The end of the process follows that of its traced threads. A list of threads lacks some while others end.
        let is_alone = || {
            while let Some(thread) = self.traced_thread() {
                wait(thread);
            }
            let status = fs::read_to_string(format!("/proc/{}/status", self.leader)).unwrap();
            status.contains("\nState:\tZ") && status.contains("\nThreads:\t1\n")
        };
        scratch::wait_until("the end of all threads", is_alone);
    }

    /// Returns a traced thread other than the main thread, which may have ended.
    fn traced_thread(&self) -> Option<libc::pid_t> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.leader)).ok()?;
        let is_traced = |thread: &libc::pid_t| {
            let status = fs::read_to_string(format!("/proc/{}/task/{thread}/status", self.leader));
            status.is_ok_and(|status| !status.contains("\nTracerPid:\t0\n"))
        };
        let ids = threads.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok());
        let mut others = ids.filter(|id| *id != self.leader);
        others.find(is_traced)
    }
}

enum Stop {
    Entry(Call),
    Exit(i64),
}

fn read_stop(thread: libc::pid_t) -> Option<Stop> {
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
            // SAFETY: `op` selects the valid member of the union.
            let entry = unsafe { info.u.entry };
            let number = libc::c_long::try_from(entry.nr).unwrap();
            Some(Stop::Entry(Call {
                is_main_thread: false,
                number,
                arguments: entry.args,
                file: file(thread, number, entry.args),
                result: None,
            }))
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` selects the valid member of the union.
            let exit = unsafe { info.u.exit };
            Some(Stop::Exit(exit.sval))
        }
        _ => None,
    }
}

/// Returns the file that the call of a stopped thread reads or maps.
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

fn request(operation: libc::c_uint, thread: libc::pid_t, data: libc::c_long) -> io::Result<()> {
    // SAFETY: the operations of this file take a number as data and no address.
    let result = unsafe { libc::ptrace(operation, thread, ptr::null_mut::<libc::c_void>(), data) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits for `thread`, or with -1 for any tracee of this thread, without children of other tests.
pub fn wait(thread: libc::pid_t) -> (libc::pid_t, libc::c_int) {
    let mut status = 0;
    // SAFETY: `status` is valid for writes.
    let thread = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    assert!(thread > 0, "waitpid: {}", io::Error::last_os_error());
    (thread, status)
}
