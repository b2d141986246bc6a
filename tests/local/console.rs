//! Readers that stall, readers that go, and terminals.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{io, mem, ptr};

use crate::guests::{file, program, reset_sighup};

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

/// The other end of a command's stdout, with room for `capacity` bytes.
fn pipe(command: &mut Command, capacity: libc::c_int) -> File {
    let (reader, writer) = io::pipe().unwrap();
    // SAFETY: the call takes no pointer, and the descriptor is open.
    let set = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, capacity) };
    assert_eq!(set, capacity, "{}", io::Error::last_os_error());
    command.stdout(writer);
    File::from(OwnedFd::from(reader))
}

fn started(mut command: Command) -> Child {
    // The command goes, and with it this process's copy of what is the child's stdout.
    command.spawn().unwrap()
}

fn signal(child: &Child, signal: libc::c_int) {
    let process = i32::try_from(child.id()).unwrap();
    // SAFETY: kill takes no pointers, and the process is a child that has not been waited for.
    let sent = unsafe { libc::kill(process, signal) };
    assert_eq!(sent, 0);
}

/// Bytes that can be read from `file` now.
fn waiting(file: &File) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(asked, 0);
    usize::try_from(bytes).unwrap()
}

#[test]
fn a_reader_that_stalls_stalls_nothing() {
    let mut command = mayfly("flood.elf", &["--", "kib=192"]);
    let mut reader = pipe(&mut command, 65536);
    let output = started(command).wait_with_output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let dropped = said
        .strip_prefix("mayfly: warning: ")
        .and_then(|rest| rest.split(' ').next())
        .unwrap();
    let dropped: usize = dropped.parse().unwrap_or_else(|_| panic!("{said}"));
    let mut printed = Vec::new();
    reader.read_to_end(&mut printed).unwrap();
    // What is not in the pipe and not reported would be lost in silence.
    assert_eq!(printed.len() + dropped, 192 << 10, "{said}");
    assert!(printed.starts_with(b"00000000:abc") && printed.len() >= 60000);
}

#[test]
fn a_slow_reader_loses_nothing() {
    let mut command = mayfly("flood.elf", &["--", "kib=64"]);
    let mut reader = pipe(&mut command, 4096);
    let child = started(command);
    let mut printed = Vec::new();
    let mut piece = [0; 100];
    while let Ok(length @ 1..) = reader.read(&mut piece) {
        printed.extend_from_slice(&piece[..length]);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(printed.len(), 64 << 10);
    assert!(printed.ends_with(b"\n") && printed[65536 - 64..].starts_with(b"00001023:"));
}

#[test]
fn a_reader_that_goes_does_not_end_the_guest() {
    let mut command = mayfly("flood.elf", &["--", "kib=16"]);
    drop(pipe(&mut command, 4096));
    let output = started(command).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot write the serial output"), "{said}");
}

#[test]
fn a_signal_does_not_wait_for_a_stalled_reader() {
    let mut command = mayfly("flood.elf", &["--", "kib=4096"]);
    let reader = pipe(&mut command, 4096);
    let child = started(command);
    while waiting(&reader) < 4096 {
        std::thread::yield_now();
    }
    signal(&child, libc::SIGINT);
    assert_eq!(
        child.wait_with_output().unwrap().status.signal(),
        Some(libc::SIGINT)
    );
}

fn runs_a_vcpu(child: &Child) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.into_iter().any(|name| name.starts_with("fc_vcpu"))
}

#[test]
fn a_signal_ends_the_wait_for_a_slow_reader() {
    let mut command = mayfly("flood.elf", &["--", "kib=16"]);
    let mut reader = pipe(&mut command, 4096);
    let mut child = started(command);
    // The guest ends when all it printed is in the pipe or waits for room there; then mayfly waits for the reader.
    let mut piece = [0; 64];
    reader.read_exact(&mut piece).unwrap();
    while runs_a_vcpu(&child) {
        assert!(child.try_wait().unwrap().is_none(), "mayfly did not wait");
        std::thread::yield_now();
    }
    signal(&child, libc::SIGTERM);
    assert_eq!(
        child.wait_with_output().unwrap().status.signal(),
        Some(libc::SIGTERM)
    );
}

#[test]
fn a_file_at_its_limit_does_not_end_the_guest() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("limited");
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
    // SAFETY: what runs between fork and exec makes one system call.
    unsafe { command.pre_exec(limit) };
    let output = started(command).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fs::read(&path).unwrap().len(), 4096);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot write the serial output"), "{said}");
}

/// Runs `command` with `signal` ignored and the signal by which mayfly interrupts vCPUs blocked, as a careless parent may.
fn with_careless_parent(command: &mut Command, ignored: libc::c_int) {
    let prepare = move || {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is valid for writes.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised `set`.
        unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGRTMIN()) };
        // SAFETY: `set` is a valid signal set.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
        // SAFETY: to ignore a signal takes no handler.
        unsafe { libc::signal(ignored, libc::SIG_IGN) };
        Ok(())
    };
    // SAFETY: what runs between fork and exec makes system calls only.
    unsafe { command.pre_exec(prepare) };
}

#[test]
fn a_careless_parent_does_not_stop_interrupts() {
    let mut command = mayfly("pit-pic.elf", &[]);
    command.stdout(Stdio::piped());
    with_careless_parent(&mut command, libc::SIGHUP);
    let output = started(command).wait_with_output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("ok pit-pic"));
}

#[test]
fn a_signal_that_the_parent_ignores_stays_ignored() {
    let mut command = mayfly("loop.elf", &[]);
    with_careless_parent(&mut command, libc::SIGHUP);
    let mut reader = pipe(&mut command, 4096);
    let child = started(command);
    reader.read_exact(&mut [0; 7]).unwrap();
    signal(&child, libc::SIGHUP);
    signal(&child, libc::SIGTERM);
    // Both are pending at once then, and of two the one with the lower number would come first.
    assert_eq!(
        child.wait_with_output().unwrap().status.signal(),
        Some(libc::SIGTERM)
    );
}

/// A terminal with a mayfly in its foreground.
struct Terminal {
    keyboard: File,
    mayfly: Child,
    seen: String,
    before: libc::termios,
}

impl Terminal {
    fn start(guest: &str) -> Self {
        Self::with(guest, &[])
    }

    fn with(guest: &str, arguments: &[&str]) -> Self {
        let (mut master, mut slave) = (0, 0);
        // SAFETY: both pointers are valid for writes; name, modes and size are left to the system.
        let made = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                ptr::null_mut(),
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(made, 0);
        // SAFETY: openpty has just made the descriptor.
        let keyboard = unsafe { File::from_raw_fd(master) };
        // SAFETY: openpty has just made the descriptor.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        let before = modes(&keyboard);
        let mut command = mayfly(guest, arguments);
        command.stdin(slave.try_clone().unwrap()).stdout(slave);
        // SAFETY: what runs between fork and exec makes system calls only.
        unsafe { command.pre_exec(take_terminal) };
        reset_sighup(&mut command);
        let mayfly = started(command);
        Self {
            keyboard,
            mayfly,
            seen: String::new(),
            before,
        }
    }

    fn expect(&mut self, text: &str) {
        let mut piece = [0; 256];
        while !self.seen.contains(text) {
            let length = self
                .keyboard
                .read(&mut piece)
                .unwrap_or_else(|error| panic!("{error} after {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
        self.seen.clear();
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Waits for the end, after which the terminal must be as it was.
    fn end(self) -> (std::process::ExitStatus, String) {
        let output = self.mayfly.wait_with_output().unwrap();
        let after = modes(&self.keyboard);
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
        assert!(same, "the terminal was left in another mode");
        (output.status, String::from_utf8(output.stderr).unwrap())
    }

    fn is_raw(&self) -> bool {
        modes(&self.keyboard).c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: the calls take no pointers that are used.
    if unsafe { libc::setsid() } < 0 || unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn modes(terminal: &File) -> libc::termios {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut modes: libc::termios = unsafe { mem::zeroed() };
    // SAFETY: `modes` is valid for writes.
    let read = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) };
    assert_eq!(read, 0);
    modes
}

#[test]
fn keys_reach_the_guest_raw() {
    let mut terminal = Terminal::start("echo.elf");
    terminal.expect("ready");
    assert!(terminal.is_raw());
    // Ctrl-C is a byte like any other, and so is a doubled Ctrl-A.
    terminal.press(b"<\x03\x01\x01>");
    terminal.expect("<\x03\x01>");
    terminal.press(b"q");
    terminal.expect("bye");
    assert_eq!(terminal.end().0.code(), Some(0));
}

#[test]
fn escape_keys_help_and_end() {
    let mut terminal = Terminal::start("loop.elf");
    terminal.expect("looping");
    // The guest never takes a byte, and still the keys work.
    terminal.press(&[b'z'; 200]);
    terminal.press(b"\x01h\x01x");
    let (status, said) = terminal.end();
    assert_eq!(status.code(), Some(0));
    assert!(said.contains("Ctrl-A x"), "{said}");
}

#[test]
fn escape_keys_end_a_paused_guest() {
    let socket = std::env::temp_dir().join(format!("mayfly-keys-{}.sock", std::process::id()));
    let socket = socket.to_str().unwrap();
    let mut terminal = Terminal::with("echo.elf", &["--api-sock", socket]);
    terminal.expect("ready");
    let pause = Command::new(program())
        .args(["ctl", "--api-sock", socket, "pause"])
        .output()
        .unwrap();
    assert!(pause.status.success(), "{pause:?}");
    // Were it not paused, the guest would end first, and say so.
    terminal.press(b"q\x01x");
    assert_eq!(terminal.end().0.code(), Some(0));
}

#[test]
fn every_way_out_restores_the_terminal() {
    for way in [
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
        signal(&terminal.mayfly, way);
        assert_eq!(terminal.end().0.signal(), Some(way));
    }
    for (guest, status) in [
        ("end-reset.elf", 0),
        ("end-triple.elf", 120),
        ("end-code.elf", 42),
    ] {
        assert_eq!(Terminal::start(guest).end().0.code(), Some(status));
    }
}
