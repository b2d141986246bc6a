//! The controlling terminal in raw mode.
//!
//! Raw mode passes each key to the guest when it is pressed, Ctrl-C included. Output processing stays on, as with QEMU: many
//! unikernels and mayfly itself end lines with a bare line feed, and an extra carriage return has no effect.
//!
//! The modes are restored at every end of the process except by SIGKILL: when [`Terminal`] is dropped, by a panic hook, and by
//! handlers of fatal signals.
//!
//! | module | contents |
//! |---|---|
//! | `console` | stdin and stdout as the guest's serial console |
//! | `escape` | the keys that control mayfly |

pub mod console;
pub mod escape;

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, termios};
use vmm::event_loop::not_ignored;
use vmm::memory::bus_error;

/// Signals that end a process by default, except those that mayfly waits for, ignores, or uses. SIGBUS has a handler of its own,
/// which calls [`restore`] too.
const FATAL: [c_int; 15] = [
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// The modes of a terminal, for the signal handlers. Never freed after it was in [`CHANGED`]: a handler on another thread may
/// read it. A process has one, or a few.
struct ModeChange {
    terminal: RawFd,
    before: termios,
    raw: termios,
}

/// The change to revert, or null.
static CHANGED: AtomicPtr<ModeChange> = AtomicPtr::new(null_mut());

/// Failure to enter raw mode.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The modes cannot be read.
    #[error("cannot read the modes of the terminal")]
    Read {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// The modes cannot be changed.
    #[error("cannot set the terminal to raw mode")]
    Change {
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
    /// A signal handler cannot be installed.
    #[error("cannot install a handler for signal {signal} to restore the terminal")]
    Handler {
        /// Number of the signal.
        signal: c_int,
        /// Error of the system call.
        #[source]
        source: io::Error,
    },
}

/// Kind of a file as input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// Not a terminal, such as a pipe or a file; read unchanged.
    File,
    /// A terminal, with this process in its foreground.
    Terminal,
    /// A terminal, with this process in its background, as after `mayfly ... &` in a shell. Reads or mode changes would stop the
    /// process (SIGTTIN, SIGTTOU).
    Background,
}

impl InputKind {
    /// Returns the kind of `file` at present.
    pub fn of(file: BorrowedFd<'_>) -> Self {
        // SAFETY: the call takes no pointer.
        if unsafe { libc::isatty(file.as_raw_fd()) } != 1 {
            Self::File
        } else if is_foreground(file.as_raw_fd()) {
            Self::Terminal
        } else {
            Self::Background
        }
    }
}

/// Modes of a terminal that another process may change.
pub struct SavedModes<'a> {
    terminal: BorrowedFd<'a>,
    modes: termios,
}

impl<'a> SavedModes<'a> {
    /// Returns the modes of `file`, or nothing if it is no terminal.
    pub fn of(file: BorrowedFd<'a>) -> Option<Self> {
        let modes = modes(file.as_raw_fd()).ok()?;
        Some(Self {
            terminal: file,
            modes,
        })
    }

    /// Sets the modes again.
    pub fn restore(&self) {
        // The process ends: an error cannot be reported any more.
        let _ = set_modes(self.terminal.as_raw_fd(), &self.modes);
    }
}

/// A terminal in raw mode, at most one at a time. Restores the modes when dropped.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// Sets `terminal` to raw mode, and installs the panic hook and the signal handlers that restore it. `terminal` must stay open
    /// until this is dropped, as standard input does.
    ///
    /// When the process continues after a stop (SIGCONT), the terminal is set to raw mode again.
    ///
    /// # Errors
    /// [`Error`] if a system call fails; the modes are unchanged.
    pub fn enter(terminal: BorrowedFd<'_>) -> Result<Self, Error> {
        let terminal = terminal.as_raw_fd();
        let before = modes(terminal).map_err(|source| Error::Read { source })?;
        let change = Box::new(ModeChange {
            terminal,
            before,
            raw: raw(before),
        });
        install_handlers()?;
        let change = Box::into_raw(change);
        // Before the modes change: a crash at any time must restore them.
        CHANGED.store(change, Ordering::Release);
        // SAFETY: `change` comes from the box above and is never freed.
        let raw = unsafe { &(*change).raw };
        set_modes(terminal, raw).map_err(|source| {
            restore();
            Error::Change { source }
        })?;
        Ok(Self(()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the modes before a signal of the user ends the process. mayfly itself waits for these signals, and restores them later.
///
/// # Errors
/// [`Error::Handler`]
#[allow(dead_code, reason = "mayfly-tools uses it")]
pub fn restore_at_signals() -> Result<(), Error> {
    let signals = not_ignored(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT]);
    signals
        .into_iter()
        .try_for_each(|signal| install(signal, handle_fatal, libc::SA_RESETHAND | libc::SA_ONSTACK))
}

/// Restores the modes from before [`Terminal::enter`], once. Async-signal-safe.
fn restore() {
    let change = CHANGED.swap(null_mut(), Ordering::AcqRel);
    // SAFETY: CHANGED is null or comes from a box that is never freed.
    let Some(change) = (unsafe { change.as_ref() }) else {
        return;
    };
    if is_foreground(change.terminal) {
        // The process ends: an error cannot be reported any more.
        let _ = set_modes(change.terminal, &change.before);
    }
}

/// Returns true if job control permits this process to use `terminal`. It restricts only the controlling terminal of the session;
/// for others `tcgetpgrp` fails.
fn is_foreground(terminal: RawFd) -> bool {
    // SAFETY: the call takes no pointer.
    let foreground = unsafe { libc::tcgetpgrp(terminal) };
    // SAFETY: the call takes no argument and cannot fail.
    let own = unsafe { libc::getpgrp() };
    foreground == own || foreground < 0
}

fn modes(terminal: RawFd) -> io::Result<termios> {
    let mut modes = MaybeUninit::uninit();
    // SAFETY: `modes` is valid to write to.
    if unsafe { libc::tcgetattr(terminal, modes.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: tcgetattr has succeeded and has initialized it.
    Ok(unsafe { modes.assume_init() })
}

/// Sets the modes without waiting for pending output, which a stopped terminal never transmits.
fn set_modes(terminal: RawFd, modes: &termios) -> io::Result<()> {
    // SAFETY: `modes` is valid to read from.
    if unsafe { libc::tcsetattr(terminal, libc::TCSANOW, modes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Returns `modes` as changed by cfmakeraw(3), except for those of output.
fn raw(mut modes: termios) -> termios {
    modes.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    modes.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    modes.c_cflag &= !(libc::CSIZE | libc::PARENB);
    modes.c_cflag |= libc::CS8;
    // read(2) returns after one byte.
    modes.c_cc[libc::VMIN] = 1;
    modes.c_cc[libc::VTIME] = 0;
    modes
}

/// Installs the panic hook, once per process, and the signal handlers.
fn install_handlers() -> Result<(), Error> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            next(panic);
        }));
    });
    for signal in FATAL {
        // RESETHAND: the handler raises the signal again, for its default action. ONSTACK: the fault may be a stack overflow.
        install(signal, handle_fatal, libc::SA_RESETHAND | libc::SA_ONSTACK)?;
    }
    bus_error::install_with(restore);
    install(
        libc::SIGCONT,
        handle_continue,
        libc::SA_RESTART | libc::SA_ONSTACK,
    )
}

fn install(signal: c_int, handler: extern "C" fn(c_int), flags: c_int) -> Result<(), Error> {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: `action` is valid, and both handlers are async-signal-safe.
    if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } < 0 {
        return Err(Error::Handler {
            signal,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

extern "C" fn handle_fatal(signal: c_int) {
    restore();
    // SA_RESETHAND has restored the default action. The signal is delivered on return, unless the faulting instruction, which
    // runs again, raises it first.
    // SAFETY: the call takes no pointer and is safe in a signal handler.
    unsafe { libc::raise(signal) };
}

/// Sets raw mode again: the shell changed the modes while the process was stopped.
extern "C" fn handle_continue(_signal: c_int) {
    // SAFETY: errno is the thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is valid as long as the thread lives.
    let interrupted = unsafe { *errno };
    // SAFETY: CHANGED is null or comes from a box that is never freed.
    if let Some(change) = unsafe { CHANGED.load(Ordering::Acquire).as_ref() }
        && is_foreground(change.terminal)
    {
        let _ = set_modes(change.terminal, &change.raw);
    }
    // SAFETY: as above. The interrupted code may read errno next.
    unsafe { *errno = interrupted };
}

#[cfg(test)]
mod tests;
