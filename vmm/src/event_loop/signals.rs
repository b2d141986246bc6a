//! Signals that end the VM, read from a signalfd.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::{mem, ptr};

use vmm_sys_util::signal::create_sigset;

/// Blocks `signals` in this thread and in the threads that it starts, so that the event loop receives them.
///
/// # Errors
/// Fails if `pthread_sigmask` fails.
pub fn block(signals: &[libc::c_int]) -> io::Result<()> {
    change_mask(libc::SIG_BLOCK, signals)
}

/// Returns the `signals` that the parent has not set to be ignored, as nohup does. A signalfd would receive ignored ones too.
pub fn not_ignored(signals: &[libc::c_int]) -> Vec<libc::c_int> {
    signals
        .iter()
        .copied()
        .filter(|signal| !is_ignored(*signal))
        .collect()
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: `action` is valid for writes, and nothing is changed.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Ignores SIGPIPE and SIGXFSZ, which would end this process when the output has no reader or its file reaches a size limit. The write
/// fails instead.
pub fn ignore_output_signals() {
    for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
        // SAFETY: SIG_IGN is no handler that could run.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Unblocks `signal` in this thread.
pub fn unblock(signal: libc::c_int) {
    // Fails only for an invalid signal number.
    let _ = change_mask(libc::SIG_UNBLOCK, &[signal]);
}

fn change_mask(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<()> {
    let set = set_of(signals)?;
    // SAFETY: `set` is a valid signal set; a null pointer for the old one is allowed.
    match unsafe { libc::pthread_sigmask(how, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn set_of(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    create_sigset(signals).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// A signalfd.
pub struct SignalFd(File);

impl SignalFd {
    /// Returns a descriptor for `signals`, which must be blocked.
    ///
    /// # Errors
    /// Fails if `signalfd` fails.
    pub fn new(signals: &[libc::c_int]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: `set` is a valid signal set, and -1 requests a new descriptor.
        let descriptor =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned the descriptor; nothing else owns it.
        Ok(Self(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// Returns the next pending signal.
    pub fn read(&mut self) -> Option<libc::c_int> {
        let mut info = [0; mem::size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // `ssi_signo` is the first field of the structure.
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        libc::c_int::try_from(number).ok()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::{SignalFd, block};

    #[test]
    fn blocked_signal_is_read() {
        block(&[libc::SIGUSR2]).unwrap();
        let mut signals = SignalFd::new(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.read(), None);
        // SAFETY: pthread_self has no preconditions.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: the calling thread exists and blocks the signal.
        unsafe { libc::pthread_kill(this, libc::SIGUSR2) };
        assert_eq!(signals.read(), Some(libc::SIGUSR2));
        assert_eq!(signals.read(), None);
    }
}
