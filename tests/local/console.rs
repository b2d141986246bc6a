//! Serial output to slow, stalled and closed readers, signals, and terminals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{io, mem, ptr};

use scratch::Limited;
use vmm::arch::{Architecture, Native, Platform};

use crate::api::http::{NO_CONTENT, go_request};
use crate::api::served::{Directory, RESUMED, connect, load_body};
use crate::api::snapshot::devices::create_disk_snapshot;
use crate::guests::{file, program};
use crate::memory_limit::{limit_address_space, limits, run_limited, smallest_limit};

fn mayfly(guest: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg("run")
        .arg(file(guest))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Connects the command's stdout to a pipe of `capacity` bytes and returns the read end.
fn pipe(command: &mut Command, capacity: libc::c_int) -> Limited<File> {
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: the call takes no pointer, and the descriptor is open.
    let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, capacity) };
    assert_eq!(set, capacity, "{}", io::Error::last_os_error());
    command.stdout(writer);
    Limited(File::from(OwnedFd::from(reader)))
}

fn spawn(mut command: Command) -> Child {
    // Drop of the command closes this process's copy of the write end.
    command.spawn().unwrap()
}

fn signal(child: &Child, signal: libc::c_int) {
    let process = i32::try_from(child.id()).unwrap();
    // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
    let sent = unsafe { libc::kill(process, signal) };
    assert_eq!(sent, 0);
}

/// Returns the number of bytes that a read of `file` returns without blocking.
fn readable_bytes(file: &impl AsRawFd) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(result, 0);
    usize::try_from(bytes).unwrap()
}

#[test]
fn stalled_reader_does_not_stall_guest() {
    let mut command = mayfly("flood.elf", &["--", "kib=192"]);
    let mut reader = pipe(&mut command, 65536);
    let output = scratch::finish(spawn(command));
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let dropped = stderr
        .strip_prefix("mayfly: warning: dropped ")
        .and_then(|rest| rest.split(' ').next())
        .unwrap();
    let dropped: usize = dropped.parse().unwrap_or_else(|_| panic!("{stderr}"));
    let mut printed = Vec::new();
    reader.read_to_end(&mut printed).unwrap();
    // Each byte is in the pipe or in the count of the warning.
    assert_eq!(printed.len() + dropped, 192 << 10, "{stderr}");
    assert!(printed.starts_with(b"00000000:abc") && printed.len() >= 60000);
}

#[test]
fn slow_reader_receives_all_output() {
    let mut command = mayfly("flood.elf", &["--", "kib=64"]);
    let mut reader = pipe(&mut command, 4096);
    let child = spawn(command);
    let mut printed = Vec::new();
    let mut buffer = [0; 100];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        printed.extend_from_slice(&buffer[..length]);
    }
    let output = scratch::finish(child);
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(printed.len(), 64 << 10);
    assert!(printed.ends_with(b"\n") && printed[65536 - 64..].starts_with(b"00001023:"));
}

#[test]
fn closed_reader_does_not_end_guest() {
    let mut command = mayfly("flood.elf", &["--", "kib=16"]);
    drop(pipe(&mut command, 4096));
    let output = scratch::finish(spawn(command));
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("cannot write the serial output"), "{stderr}");
}

#[test]
fn signal_ends_mayfly_with_stalled_reader() {
    let mut command = mayfly("flood.elf", &["--", "kib=4096"]);
    let reader = pipe(&mut command, 4096);
    let child = spawn(command);
    scratch::wait_until("a full pipe", || readable_bytes(&reader) == 4096);
    signal(&child, libc::SIGINT);
    assert_eq!(scratch::finish(child).status.signal(), Some(libc::SIGINT));
}

fn has_vcpu_thread(child: &Child) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.into_iter().any(|name| name.starts_with("fc_vcpu"))
}

#[test]
fn signal_ends_output_drain() {
    let mut command = mayfly("flood.elf", &["--", "kib=16"]);
    let mut reader = pipe(&mut command, 4096);
    let mut child = spawn(command);
    // The guest exits once its output is in the pipe or in mayfly's buffer. mayfly then waits for the reader.
    let mut buffer = [0; 64];
    reader.read_exact(&mut buffer).unwrap();
    scratch::wait_until("the end of the guest", || {
        let status = child.try_wait().unwrap();
        assert!(status.is_none(), "mayfly did not wait for the reader");
        !has_vcpu_thread(&child)
    });
    signal(&child, libc::SIGTERM);
    assert_eq!(scratch::finish(child).status.signal(), Some(libc::SIGTERM));
}

#[test]
fn file_size_limit_does_not_end_guest() {
    // In memory: the end waits only a limited time for a disk.
    let directory = Directory::new_in(Path::new("/dev/shm"));
    let path = directory.path("limited");
    let mut command = mayfly("flood.elf", &["--", "kib=8"]);
    command.stdout(File::create(&path).unwrap());
    let limit = libc::rlimit {
        rlim_cur: 4096,
        rlim_max: 4096,
    };
    let limit = move || {
        // SAFETY: `limit` is valid for reads.
        match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe { command.pre_exec(limit) };
    let output = scratch::finish(spawn(command));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fs::read(&path).unwrap().len(), 4096);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("cannot write the serial output"), "{stderr}");
}

/// Starts `command` with `ignored` ignored and with SIGRTMIN blocked, which mayfly uses to kick vCPUs. Children inherit
/// both.
fn inherit_signal_state(command: &mut Command, ignored: libc::c_int) {
    let prepare = move || {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is valid for writes.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised `set`.
        unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGRTMIN()) };
        // SAFETY: `set` is a valid signal set.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
        // SAFETY: SIG_IGN takes no handler.
        unsafe { libc::signal(ignored, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

/// A guest with interrupts of a timer, and its last line.
const TIMER: (&str, &str) = match Native::ARCHITECTURE {
    Architecture::X86_64 => ("pit-pic.elf", "ok pit-pic"),
    Architecture::Aarch64 => ("timer.elf", "ok timer"),
};

#[test]
fn blocked_signal_does_not_stop_interrupts() {
    let mut command = mayfly(TIMER.0, &[]);
    command.stdout(Stdio::piped());
    inherit_signal_state(&mut command, libc::SIGHUP);
    let output = scratch::finish(spawn(command));
    assert!(String::from_utf8(output.stdout).unwrap().contains(TIMER.1));
}

#[test]
fn inherited_ignored_signal_stays_ignored() {
    let mut command = mayfly("loop.elf", &[]);
    inherit_signal_state(&mut command, libc::SIGHUP);
    let mut reader = pipe(&mut command, 4096);
    let child = spawn(command);
    reader.read_exact(&mut [0; 7]).unwrap();
    signal(&child, libc::SIGHUP);
    signal(&child, libc::SIGTERM);
    // Both signals may be pending at once, and the kernel delivers the lower number, SIGHUP, first.
    assert_eq!(scratch::finish(child).status.signal(), Some(libc::SIGTERM));
}

/// A pseudoterminal with mayfly as its foreground process.
pub struct Terminal {
    master: Limited<File>,
    mayfly: Child,
    seen: String,
    before: libc::termios,
}

impl Terminal {
    fn start(guest: &str) -> Self {
        Self::start_with(guest, &[])
    }

    fn start_with(guest: &str, arguments: &[&str]) -> Self {
        Self::attach(mayfly(guest, arguments))
    }

    /// Starts `command` in the foreground of a new pseudoterminal.
    pub fn attach(mut command: Command) -> Self {
        let (mut master_fd, mut slave_fd) = (0, 0);
        // SAFETY: both pointers are valid for writes; openpty accepts null for name, modes and size.
        let made = unsafe {
            libc::openpty(
                &raw mut master_fd,
                &raw mut slave_fd,
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(made, 0);
        // SAFETY: openpty has just made the descriptor.
        let master = Limited(unsafe { File::from_raw_fd(master_fd) });
        // SAFETY: openpty has just made the descriptor.
        let slave = unsafe { OwnedFd::from_raw_fd(slave_fd) };
        let before = modes(&master);
        command.stdin(slave.try_clone().unwrap()).stdout(slave);
        // SAFETY: the closure runs between fork and exec and makes system calls only.
        unsafe { command.pre_exec(take_terminal) };
        let mayfly = spawn(command);
        Self {
            master,
            mayfly,
            seen: String::new(),
            before,
        }
    }

    pub fn expect(&mut self, text: &str) {
        let mut buffer = [0; 256];
        while !self.seen.contains(text) {
            let length = self
                .master
                .read(&mut buffer)
                .unwrap_or_else(|error| panic!("{error} after {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        self.seen.clear();
    }

    fn expect_alive(&mut self) {
        let status = self.mayfly.try_wait().unwrap();
        assert!(status.is_none(), "mayfly has ended: {status:?}");
    }

    pub fn signal(&self, number: libc::c_int) {
        signal(&self.mayfly, number);
    }

    pub fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Waits for the end of mayfly, which must restore the terminal modes.
    pub fn wait(self) -> (std::process::ExitStatus, String) {
        let output = scratch::finish(self.mayfly);
        let after = modes(&self.master);
        let same = (
            after.c_iflag,
            after.c_oflag,
            after.c_cflag,
            after.c_lflag,
            after.c_cc,
        ) == (
            self.before.c_iflag,
            self.before.c_oflag,
            self.before.c_cflag,
            self.before.c_lflag,
            self.before.c_cc,
        );
        assert!(same, "mayfly did not restore the terminal modes");
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    pub fn is_raw(&self) -> bool {
        modes(&self.master).c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

/// A shell leaves its controlling terminal for the terminal of its client.
#[test]
fn shell_adopts_terminal_of_client() {
    let directory = Directory::new();
    crate::kvm_call_order::create_snapshot(&directory, 32);
    // sh is the leader of the session, and mayfly shell its child.
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\" shell \"$1\" --for \"$2\"; true"]);
    let socket = directory.text("shell");
    command.arg(program()).args([&socket, &directory.text("")]);
    let mut shell = Terminal::attach(command);
    scratch::wait_until("the socket of the shell", || {
        shell.expect_alive();
        directory.path("shell").exists()
    });
    let mut command = Command::new(program());
    command.args(["restore", "--shell", &socket, &directory.text("")]);
    command.stderr(Stdio::piped());
    let mut client = Terminal::attach(command);
    scratch::wait_until("raw mode", || {
        client.expect_alive();
        client.is_raw()
    });
    client.press(b"hello terminal");
    client.expect("hello terminal");
    client.press(b"q");
    assert!(client.wait().0.success());
    assert!(shell.wait().0.success());
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: setsid takes no pointer, and TIOCSCTTY takes a number.
    if unsafe { libc::setsid() } < 0 || unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn modes(terminal: &impl AsRawFd) -> libc::termios {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut modes: libc::termios = unsafe { mem::zeroed() };
    // SAFETY: `modes` is valid for writes.
    let read = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) };
    assert_eq!(read, 0);
    modes
}

#[test]
fn lack_of_memory_restores_terminal() {
    let hello = file("hello.elf");
    let start = smallest_limit(|limit| run_limited(&["--version"], limit).status.success());
    let run = ["run", &hello, "--memory", "2M"];
    let enough = smallest_limit(|limit| run_limited(&run, limit).status.success());
    for limit in limits(start, enough) {
        let mut command = mayfly("hello.elf", &["--memory", "2M"]);
        limit_address_space(&mut command, limit);
        let (status, stderr) = Terminal::attach(command).wait();
        let has_message = stderr.contains("mayfly: cannot ");
        assert!(
            matches!(status.code(), Some(0)) || (has_message && status.code().is_some()),
            "{limit}: {status}: {stderr}"
        );
    }
}

#[test]
fn keys_reach_guest_raw() {
    let mut terminal = Terminal::start("echo.elf");
    terminal.expect("ready");
    assert!(terminal.is_raw());
    // In raw mode Ctrl-C is an ordinary byte. A doubled Ctrl-A is one literal Ctrl-A.
    terminal.press(b"<\x03\x01\x01>");
    terminal.expect("<\x03\x01>");
    terminal.press(b"q");
    terminal.expect("bye");
    assert_eq!(terminal.wait().0.code(), Some(0));
}

#[test]
fn escape_keys_print_help_and_exit() {
    let mut terminal = Terminal::start("loop.elf");
    terminal.expect("looping");
    // The guest reads no input; escape keys work nevertheless.
    terminal.press(&[b'z'; 200]);
    terminal.press(b"\x01h\x01x");
    let (status, stderr) = terminal.wait();
    assert_eq!(status.code(), Some(0));
    assert!(stderr.contains("Ctrl-A x"), "{stderr}");
}

#[test]
fn escape_key_ends_paused_guest() {
    let directory = Directory::new();
    let socket = &directory.text("api.sock");
    let mut terminal = Terminal::start_with("echo.elf", &["--api-sock", socket]);
    terminal.expect("ready");
    let pause = scratch::run(Command::new(program()).args(["ctl", "--api-sock", socket, "pause"]));
    assert!(pause.status.success(), "{pause:?}");
    // A running guest would exit on `q` and print `bye` before the escape.
    terminal.press(b"q\x01x");
    assert_eq!(terminal.wait().0.code(), Some(0));
}

#[test]
fn every_exit_restores_terminal() {
    for signal_number in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGABRT,
        libc::SIGUSR1,
        libc::SIGALRM,
    ] {
        let mut terminal = Terminal::start("end-hlt.elf");
        terminal.expect("halting");
        assert!(terminal.is_raw());
        signal(&terminal.mayfly, signal_number);
        assert_eq!(terminal.wait().0.signal(), Some(signal_number));
    }
    for (guest, status) in [
        ("end-reset.elf", 0),
        #[cfg(target_arch = "x86_64")]
        ("end-triple.elf", 120),
        #[cfg(target_arch = "x86_64")]
        ("end-code.elf", 42),
    ] {
        assert_eq!(Terminal::start(guest).wait().0.code(), Some(status));
    }
}

#[test]
fn truncated_memory_file_restores_terminal() {
    let directory = Directory::new();
    create_disk_snapshot(&directory);
    let mut command = Command::new(program());
    let socket = directory.text("api.sock");
    command.args(["--api-sock", &socket]).stderr(Stdio::piped());
    let terminal = Terminal::attach(command);
    let mut client = connect(Path::new(&socket));
    let load = load_body(&directory, "state", "memory", "");
    assert_eq!(client.request("PUT", "/snapshot/load", &load).text, NO_CONTENT);
    assert!(terminal.is_raw());
    let memory = File::options().write(true).open(directory.path("memory"));
    memory.unwrap().set_len(0).unwrap();
    // The drive accesses its virtqueue before the guest runs. mayfly ends without a response.
    client.send(go_request("PATCH", "/vm", RESUMED));
    let (status, stderr) = terminal.wait();
    assert_eq!(status.code(), Some(149), "{stderr}");
    assert!(stderr.contains("memory\" was truncated"), "{stderr}");
}

/// kvmclock is of x86_64.
#[cfg(target_arch = "x86_64")]
#[test]
fn signal_during_stuck_load_restores_terminal() {
    use crate::api::uffd::{self, create_drive_snapshot, listen, uffd_body};

    // KVM may access the pages of the clock when the vCPU is restored, after mayfly has opened the console.
    let directory = create_drive_snapshot("kvmclock.elf", "Sync", "ready\n");
    let _listener = listen(&directory);
    let mut command = Command::new(program());
    let socket = directory.text("api.sock");
    command.args(["--api-sock", &socket]).stderr(Stdio::piped());
    let terminal = Terminal::attach(command);
    let mut client = connect(Path::new(&socket));
    let load = uffd_body(&directory, "state", uffd::SOCKET, "");
    client.send(go_request("PUT", "/snapshot/load", &load));
    scratch::wait_until("raw mode", || terminal.is_raw());
    signal(&terminal.mayfly, libc::SIGTERM);
    assert_eq!(terminal.wait().0.signal(), Some(libc::SIGTERM));
}
