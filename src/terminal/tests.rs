use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use scratch::Limited;

use super::{InputKind, Terminal, modes};

/// Serializes the tests: a process has one changed terminal.
static SERIAL: Mutex<()> = Mutex::new(());

fn serialize() -> MutexGuard<'static, ()> {
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a pseudoterminal: (master, slave).
fn pty() -> (File, File) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both descriptors are valid to write to, and the optional pointers are null.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            null_mut(),
            null_mut(),
            null_mut(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: openpty returned this descriptor, which has no other owner.
    let master = unsafe { File::from_raw_fd(master) };
    // SAFETY: as above.
    let slave = unsafe { File::from_raw_fd(slave) };
    (master, slave)
}

fn flags(terminal: &File) -> [u32; 4] {
    let modes = modes(terminal.as_raw_fd()).unwrap();
    [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag]
}

#[test]
fn raw_mode_passes_keys_and_processes_output() {
    let _guard = serialize();
    let (mut master, mut slave) = pty();
    let terminal = Terminal::enter(slave.as_fd()).unwrap();
    master.write_all(b"\x03\x1a\x11\x13\r\x7f\x04").unwrap();
    let mut keys = [0; 7];
    Limited(&slave).read_exact(&mut keys).unwrap();
    assert_eq!(&keys, b"\x03\x1a\x11\x13\r\x7f\x04");
    slave.write_all(b"a\n").unwrap();
    let mut seen = [0; 3];
    Limited(&master).read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"a\r\n", "keys are not echoed");
    drop(terminal);
}

#[test]
fn drop_restores_modes() {
    let _guard = serialize();
    let (_master, slave) = pty();
    let before = flags(&slave);
    for _ in 0..2 {
        let terminal = Terminal::enter(slave.as_fd()).unwrap();
        assert_ne!(flags(&slave), before);
        drop(terminal);
        assert_eq!(flags(&slave), before);
    }
}

#[test]
fn file_that_is_no_terminal_is_rejected() {
    let _guard = serialize();
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(Terminal::enter(reader.as_fd()).is_err());
    assert_eq!(InputKind::of(reader.as_fd()), InputKind::File);
    let (_master, slave) = pty();
    assert_eq!(InputKind::of(slave.as_fd()), InputKind::Terminal);
}

#[test]
fn continue_signal_sets_raw_mode_again() {
    let _guard = serialize();
    let (_master, slave) = pty();
    let before = modes(slave.as_raw_fd()).unwrap();
    let terminal = Terminal::enter(slave.as_fd()).unwrap();
    let raw = flags(&slave);
    super::set_modes(slave.as_raw_fd(), &before).unwrap();
    // SAFETY: the call takes no pointer, and the handler is installed.
    unsafe { libc::raise(libc::SIGCONT) };
    assert_eq!(flags(&slave), raw);
    drop(terminal);
    let cooked = flags(&slave);
    // SAFETY: as above.
    unsafe { libc::raise(libc::SIGCONT) };
    assert_eq!(flags(&slave), cooked, "the modes are restored for good");
}

/// Runs [`victim`] in a process of its own, with a pseudoterminal as standard input. Returns its exit status, and the modes of
/// the terminal before and after.
fn crash(end: &str) -> (ExitStatus, [u32; 4], [u32; 4]) {
    let (_master, slave) = pty();
    let before = flags(&slave);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "terminal::tests::fatal_signal_restores_modes",
            "--nocapture",
        ])
        .env("MAYFLY_TEST_END", end)
        .stdin(slave.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = scratch::wait_exit(&mut child);
    (status, before, flags(&slave))
}

/// Enters raw mode and ends as `end` specifies.
fn victim(end: &str) {
    let stdin = std::io::stdin();
    let before = modes(0).unwrap();
    // Forgotten: unwinding would drop it, and the release build aborts on panic instead.
    std::mem::forget(Terminal::enter(stdin.as_fd()).unwrap());
    assert_ne!(modes(0).unwrap().c_lflag, before.c_lflag);
    match end.parse() {
        // SAFETY: the call takes no pointer.
        Ok(signal) => _ = unsafe { libc::raise(signal) },
        Err(_) if end == "panic" => panic!("requested by the test"),
        Err(_) if end == "fault" => {
            // SAFETY: none. The write faults and ends the process, as the test requires.
            unsafe { null_mut::<u8>().wrapping_add(8).write_volatile(1) };
        }
        Err(_) => unreachable!("{end}"),
    }
}

#[test]
fn fatal_signal_restores_modes() {
    if let Ok(end) = std::env::var("MAYFLY_TEST_END") {
        return victim(&end);
    }
    for signal in super::FATAL.into_iter().chain([libc::SIGBUS]) {
        let (status, before, after) = crash(&signal.to_string());
        assert_eq!(
            status.signal(),
            Some(signal),
            "the default action ends the process"
        );
        assert_eq!(before, after);
    }
}

#[test]
fn panic_restores_modes() {
    let (status, before, after) = crash("panic");
    assert!(!status.success());
    assert_eq!(before, after);
}

#[test]
fn fault_restores_modes() {
    let (status, before, after) = crash("fault");
    assert_eq!(status.signal(), Some(libc::SIGSEGV));
    assert_eq!(before, after);
}

#[test]
fn sigkill_leaves_raw_mode() {
    let (status, before, after) = crash(&libc::SIGKILL.to_string());
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert_ne!(before, after, "the victim did not change the modes");
}
