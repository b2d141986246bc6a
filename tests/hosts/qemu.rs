//! One boot of the emulated host under QEMU.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;
use std::{fs, mem};

use crate::report::Report;

const QEMU: &str = "qemu-system-x86_64";
/// In MiB: more than any guest gets, since mayfly refuses what its host could never give. Little of it is ever touched.
const MEMORY: &str = "6144";
/// From QEMU's start until the host runs scenarios; some 5 s when nothing else keeps the machine busy.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long the host may go without a sign of life on its console, which host-init.sh gives every few seconds.
const PULSE_LIMIT: Duration = Duration::from_secs(60);
/// How many times as long a scenario may go without a word: longer than a guest may, so that one that hangs fails by itself.
const SILENCE_LIMIT: u32 = 10;

/// Why the machine did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU does not start.
    #[error("cannot start {QEMU}; `make setup` installs it")]
    Start(#[source] io::Error),
    /// It came up too slowly, or never.
    #[error("the host was not up after {BOOT_LIMIT:?}")]
    Boot,
    /// The emulation stands still.
    #[error("the host gave no sign of life for {PULSE_LIMIT:?}")]
    Frozen,
    /// The scenario under way does not end.
    #[error("the host said nothing for {SILENCE_LIMIT} times {PULSE_LIMIT:?}")]
    Silent,
    /// It ended before its scenarios did.
    #[error("the host ended early")]
    Ended,
}

/// A running emulated host; dropped, it is gone.
pub struct Qemu {
    qemu: Child,
    lines: Receiver<Vec<u8>>,
    console: PathBuf,
}

impl Qemu {
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
        Ok(Self {
            qemu,
            lines,
            console: console.to_owned(),
        })
    }

    /// Gives all that the host says to `report`, until it ends of itself.
    pub fn follow(&mut self, report: &mut Report) -> Result<(), Error> {
        let (mut silence, mut pulse) = (0, 0);
        loop {
            let limit = if report.up { PULSE_LIMIT } else { BOOT_LIMIT };
            match self.lines.recv_timeout(limit) {
                Ok(line) => {
                    silence = 0;
                    report.line(&line);
                }
                Err(RecvTimeoutError::Timeout) if !report.up => return Err(Error::Boot),
                Err(RecvTimeoutError::Timeout) => {
                    let before = mem::replace(&mut pulse, self.pulse());
                    silence += 1;
                    if pulse == before {
                        return Err(Error::Frozen);
                    }
                    if silence == SILENCE_LIMIT {
                        return Err(Error::Silent);
                    }
                }
                Err(RecvTimeoutError::Disconnected) if report.done => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Ended),
            }
        }
    }

    /// What grows for as long as the emulation runs.
    fn pulse(&self) -> u64 {
        fs::metadata(&self.console).map_or(0, |console| console.len())
    }
}

impl Drop for Qemu {
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
