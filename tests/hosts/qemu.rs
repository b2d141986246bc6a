//! One boot of the emulated host under QEMU.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;
use std::{fs, mem};

use crate::kind::HostKind;
use crate::report::Report;

/// Memory in MiB, more than that of each guest: mayfly rejects guests larger than its host. QEMU allocates it on demand.
const MEMORY: &str = "6144";
/// Timeout of the boot, which takes about 5 s on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// Timeout of the heartbeat on the console, which host-init.sh writes every few seconds.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum silence of a scenario, in heartbeat timeouts. Longer than the timeout of a guest, which then fails by itself.
const MAX_SILENCE: u32 = 10;

/// Cause of an early end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Cannot start QEMU.
    #[error("cannot start {program:?}; run `make setup` to install it")]
    Start {
        /// Program of QEMU.
        program: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// Boot timeout.
    #[error("the host did not boot within {BOOT_TIMEOUT:?}")]
    Boot,
    /// No heartbeat: the emulation has frozen.
    #[error("the host sent no heartbeat for {HEARTBEAT_TIMEOUT:?}")]
    Frozen,
    /// The current scenario does not end.
    #[error("the host printed nothing for {MAX_SILENCE} times {HEARTBEAT_TIMEOUT:?}")]
    Silent,
    /// The host ended before its scenarios.
    #[error("the host ended early")]
    Ended,
}

/// A running emulated host. Drop kills it.
pub struct Qemu {
    process: Child,
    lines: Receiver<Vec<u8>>,
    console: PathBuf,
}

impl Qemu {
    /// Starts QEMU with the kernel of a host of `kind` and its `initramfs`. The console goes to the file `console`.
    pub fn boot(kind: &HostKind, initramfs: &Path, console: &Path) -> Result<Self, Error> {
        let mut command = Command::new(kind.qemu());
        command
            .args(["-accel", "tcg", "-smp", "1", "-m", MEMORY])
            // A kind may have more processors.
            .args(kind.machine)
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(kind.fetched("vmlinuz"))
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!("{} quiet panic=-1", kind.parameters))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(kind.report_port)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: the function runs between fork and exec, makes one system call and accesses no memory.
        unsafe { command.pre_exec(end_with_parent) };
        let mut process = command.spawn().map_err(|source| Error::Start {
            program: kind.qemu(),
            source,
        })?;
        let (sender, lines) = mpsc::sync_channel(64);
        if let Some(output) = process.stdout.take() {
            thread::spawn(move || read_lines(output, &sender));
        }
        Ok(Self {
            process,
            lines,
            console: console.to_owned(),
        })
    }

    /// Passes the output of the host to `report` until the host powers off.
    pub fn collect(&mut self, report: &mut Report) -> Result<(), Error> {
        let (mut silence, mut heartbeat) = (0, 0);
        loop {
            let timeout = if report.is_up {
                HEARTBEAT_TIMEOUT
            } else {
                BOOT_TIMEOUT
            };
            match self.lines.recv_timeout(timeout) {
                Ok(line) => {
                    silence = 0;
                    report.add_line(&line);
                }
                Err(RecvTimeoutError::Timeout) if !report.is_up => return Err(Error::Boot),
                Err(RecvTimeoutError::Timeout) => {
                    let before = mem::replace(&mut heartbeat, self.console_length());
                    silence += 1;
                    if heartbeat == before {
                        return Err(Error::Frozen);
                    }
                    if silence == MAX_SILENCE {
                        return Err(Error::Silent);
                    }
                }
                Err(RecvTimeoutError::Disconnected) if report.is_done => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Ended),
            }
        }
    }

    /// Returns the length of the console output, which grows while the emulation runs.
    fn console_length(&self) -> u64 {
        fs::metadata(&self.console).map_or(0, |console| console.len())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        scratch::kill(&mut self.process);
    }
}

/// Ends QEMU with the test run. The kernel sends the signal at the end of the thread that started QEMU, the same that reads
/// its output.
fn end_with_parent() -> io::Result<()> {
    // SAFETY: this operation takes a signal number and no pointers.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read_lines(output: ChildStdout, sender: &SyncSender<Vec<u8>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = output.read_until(b'\n', &mut line);
        if !read.is_ok_and(|length| length > 0) || sender.send(line).is_err() {
            return;
        }
    }
}
