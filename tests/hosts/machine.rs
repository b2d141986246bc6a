//! One boot of the emulated host under QEMU.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use crate::guest;
use crate::report::Report;

const QEMU: &str = "qemu-system-x86_64";
/// In MiB: more than any guest gets, since mayfly refuses what its host could never give. Little of it is ever touched.
const MEMORY: &str = "6144";
/// From QEMU's start until the host runs scenarios; some 5 s when nothing else keeps the machine busy.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long the host may go without a word: twice what a guest may take, so that one that hangs fails by itself.
const SILENCE_LIMIT: Duration = guest::LIMIT.saturating_mul(2);

/// Why the machine did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU does not start.
    #[error("cannot start {QEMU}; `make setup` installs it")]
    Start(#[source] io::Error),
    /// It came up too slowly, or never.
    #[error("the host was not up after {BOOT_LIMIT:?}")]
    Boot,
    /// It went silent.
    #[error("the host said nothing for {SILENCE_LIMIT:?}")]
    Frozen,
    /// It ended before its scenarios did.
    #[error("the host ended early")]
    Ended,
}

/// A running emulated host; dropped, it is gone.
pub struct Machine {
    qemu: Child,
    lines: Receiver<Vec<u8>>,
}

impl Machine {
    /// Starts QEMU with the kernel and the first file system of the host; the kernel's log goes to `console`.
    pub fn boot(kernel: &Path, initramfs: &Path, console: &Path) -> Result<Self, Error> {
        let mut command = Command::new(QEMU);
        command
            .args(["-M", "q35", "-cpu", "max,+svm,+npt"])
            .args(["-accel", "tcg", "-smp", "1", "-m", MEMORY])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: what runs between fork and exec makes one system call and touches no memory.
        unsafe { command.pre_exec(end_with_parent) };
        let mut qemu = command.spawn().map_err(Error::Start)?;
        let (sender, lines) = mpsc::sync_channel(64);
        if let Some(output) = qemu.stdout.take() {
            thread::spawn(move || read_lines(output, &sender));
        }
        Ok(Self { qemu, lines })
    }

    /// Gives all that the host says to `report`, until it ends of itself.
    pub fn follow(&mut self, report: &mut Report) -> Result<(), Error> {
        loop {
            let limit = if report.up { SILENCE_LIMIT } else { BOOT_LIMIT };
            match self.lines.recv_timeout(limit) {
                Ok(line) => report.line(&line),
                Err(RecvTimeoutError::Timeout) if report.up => return Err(Error::Frozen),
                Err(RecvTimeoutError::Timeout) => return Err(Error::Boot),
                Err(RecvTimeoutError::Disconnected) if report.done => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Ended),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A test run that is killed must not leave QEMU behind. The signal comes at the end of the thread that started it, which
/// is the one that follows it.
fn end_with_parent() -> io::Result<()> {
    // SAFETY: this operation takes a signal number and no pointers.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read_lines(output: ChildStdout, lines: &SyncSender<Vec<u8>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = output.read_until(b'\n', &mut line);
        if !read.is_ok_and(|length| length > 0) || lines.send(line).is_err() {
            return;
        }
    }
}
