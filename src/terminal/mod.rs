//! The terminal that mayfly runs at.
//!
//! A guest wants every key as it is pressed, Ctrl-C included, so the terminal is put into raw mode. Output keeps being
//! processed, as with QEMU: many unikernels end their lines with a bare line feed, and so does mayfly itself, while one
//! carriage return too many does not show.
//!
//! However mayfly ends, the user gets the terminal back as it was: when [`Terminal`] is dropped, by a panic hook, and
//! by a handler of the signals that end a process which has gone wrong. Only SIGKILL cannot be helped.

pub mod console;
mod escape;

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{c_int, termios};

/// Signals that end a process unless it does something about them, but for those that mayfly waits for, ignores, or uses.
const FATAL: [c_int; 16] = [
    libc::SIGSEGV,
    libc::SIGBUS,
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

/// What the signal handlers have to know. Never freed once it was in [`CHANGED`], because a handler on another thread
/// may be reading it; there is one a process, or a few.
struct Change {
    terminal: RawFd,
    before: termios,
    raw: termios,
}

/// The change to take back; null when there is none.
static CHANGED: AtomicPtr<Change> = AtomicPtr::new(null_mut());

/// Why the terminal could not be put into raw mode.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its modes could not be read.
    #[error("cannot read the modes of the terminal")]
    Read {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its modes could not be changed.
    #[error("cannot put the terminal into raw mode")]
    Change {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A signal handler could not be installed.
    #[error("cannot install a handler for signal {signal}, which has to put the terminal back")]
    Handler {
        /// Number of the signal.
        signal: c_int,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What a file is to mayfly as a source of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// No terminal: a pipe, a file, or the like, to be read as it is.
    File,
    /// A terminal that belongs to us.
    Terminal,
    /// A terminal in whose background we run, as after `mayfly ... &` in a shell. To read from it or to change its
    /// modes would stop us.
    Background,
}

impl InputKind {
    /// What `file` is now.
    pub fn of(file: BorrowedFd<'_>) -> Self {
        // SAFETY: the call takes no pointer.
        if unsafe { libc::isatty(file.as_raw_fd()) } != 1 {
            Self::File
        } else if is_ours(file.as_raw_fd()) {
            Self::Terminal
        } else {
            Self::Background
        }
    }
}

/// A terminal in raw mode. There is one at a time; it goes back to what it was when this is dropped.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// Puts `terminal` into raw mode, and makes sure that it is put back if mayfly crashes. `terminal` must stay open
    /// until this is dropped, which standard input does anyway.
    ///
    /// When the process was stopped from outside and goes on, the terminal goes back to raw mode.
    ///
    /// # Errors
    /// Any [`Error`]; the terminal is as it was then.
    pub fn enter(terminal: BorrowedFd<'_>) -> Result<Self, Error> {
        let terminal = terminal.as_raw_fd();
        let before = modes(terminal).map_err(|source| Error::Read { source })?;
        let change = Box::new(Change {
            terminal,
            before,
            raw: raw(before),
        });
        install_handlers()?;
        let change = Box::into_raw(change);
        // Before the modes change, so that there is no moment at which a crash leaves them changed.
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

/// Puts the terminal back to what it was before [`Terminal::enter`], once. Calls nothing that a signal handler may not.
/// For ways out of the process that do not drop the [`Terminal`], such as `std::process::exit`.
pub fn restore() {
    let change = CHANGED.swap(null_mut(), Ordering::AcqRel);
    // SAFETY: what is in CHANGED is null or comes from a box that is never freed.
    let Some(change) = (unsafe { change.as_ref() }) else {
        return;
    };
    if is_ours(change.terminal) {
        // There is nobody left to tell.
        let _ = set_modes(change.terminal, &change.before);
    }
}

/// Whether job control lets us use `terminal`. A terminal that does not control our session has no say in that.
fn is_ours(terminal: RawFd) -> bool {
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
    // SAFETY: tcgetattr has succeeded and has filled it in.
    Ok(unsafe { modes.assume_init() })
}

/// At once: waiting for output first could take for ever at a terminal that is stopped.
fn set_modes(terminal: RawFd, modes: &termios) -> io::Result<()> {
    // SAFETY: `modes` is valid to read from.
    if unsafe { libc::tcsetattr(terminal, libc::TCSANOW, modes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What cfmakeraw(3) makes of `modes`, except for output.
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
    // Read returns as soon as there is one byte.
    modes.c_cc[libc::VMIN] = 1;
    modes.c_cc[libc::VTIME] = 0;
    modes
}

/// Installs the panic hook and the signal handlers, the former once a process.
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
        // RESETHAND: the signal's default action is back in place before the handler runs. ONSTACK: the stack may be
        // what is broken, and Rust gives every thread another one for signals.
        install(signal, crashed, libc::SA_RESETHAND | libc::SA_ONSTACK)?;
    }
    install(libc::SIGCONT, continued, libc::SA_RESTART | libc::SA_ONSTACK)
}

fn install(signal: c_int, handler: extern "C" fn(c_int), flags: c_int) -> Result<(), Error> {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: `action` is valid, and both handlers restrict themselves to what is safe in one.
    if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } < 0 {
        return Err(Error::Handler {
            signal,
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

extern "C" fn crashed(signal: c_int) {
    restore();
    // The default action is in place by now; the signal comes when this returns, unless the instruction that faulted
    // does so first when it is tried again.
    // SAFETY: the call takes no pointer and is safe in a signal handler.
    unsafe { libc::raise(signal) };
}

/// The shell that stopped us has used the terminal in its own modes since then.
extern "C" fn continued(_signal: c_int) {
    // SAFETY: errno is the thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is valid as long as the thread lives.
    let interrupted = unsafe { *errno };
    // SAFETY: what is in CHANGED is null or comes from a box that is never freed.
    if let Some(change) = unsafe { CHANGED.load(Ordering::Acquire).as_ref() }
        && is_ours(change.terminal)
    {
        let _ = set_modes(change.terminal, &change.raw);
    }
    // SAFETY: as above. The code that was interrupted may be about to look at it.
    unsafe { *errno = interrupted };
}

#[cfg(test)]
mod tests;
