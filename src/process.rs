//! The process: its initialization, processor time, and death by a signal.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::emergency;
#[cfg(not(test))]
use vmm::event_loop::ignore_output_signals;
use vmm::event_loop::{SignalFd, block_signals, not_ignored, unblock_signal};

/// Exit status of success.
pub const SUCCESS: u8 = 0;
/// Exit status of failure.
pub const FAILURE: u8 = 1;

/// Prepares the process: standard descriptors, allocator, and signals of failed writes. Call it once, before any other thread
/// starts.
#[cfg(not(test))]
pub fn initialize() {
    open_standard_descriptors();
    limit_malloc_arenas();
    ignore_output_signals();
}

/// Opens `/dev/null` for each closed standard descriptor. Otherwise a file opened later becomes the guest's console.
#[cfg(not(test))]
fn open_standard_descriptors() {
    let mut standard = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the three structures are valid for reads and writes.
    unsafe { libc::poll(standard.as_mut_ptr(), 3, 0) };
    for descriptor in &standard {
        if descriptor.revents & libc::POLLNVAL != 0 {
            // open(2) returns the lowest free descriptor, which is this one. It fails only without a /dev, which leaves no remedy.
            // SAFETY: the path is a C string.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// Limits the C library to one heap. By default each thread maps a heap of its own, which takes longer than a vCPU thread gains.
#[cfg(not(test))]
fn limit_malloc_arenas() {
    // SAFETY: the call changes a parameter of the allocator, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Maps the machine code of the program, whose pages the kernel otherwise maps at the first execution of each. They stay in the page
/// cache, and belong to no process.
pub fn map_code() {
    unsafe extern "C" {
        // Symbols of the linker, see end(3): only their addresses have a meaning.
        static __executable_start: u8;
        static etext: u8;
    }
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let length = end.addr().saturating_sub(start.addr());
    // Has no effect before Linux 5.14.
    // SAFETY: the call changes no content of the mapping, which starts at a page.
    unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_POPULATE_READ) };
}

/// Calls `create` with a umask that keeps files for this user alone. No other thread may create files meanwhile.
pub fn create_private<T>(create: impl FnOnce() -> T) -> T {
    // SAFETY: the call takes no pointer and cannot fail.
    let before = unsafe { libc::umask(0o177) };
    let created = create();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    created
}

/// Duplicates the descriptor `number` of this process, which the user has named.
///
/// # Errors
/// Fails if it is closed.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointer and closes no descriptor; the kernel checks the number.
    let duplicate = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if duplicate < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(duplicate) })
}

/// Opens the working directory, which need not be readable.
///
/// # Errors
/// Fails if too many files are open.
pub fn working_directory() -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH).open(".")
}

/// Makes `directory` the working directory of this process.
///
/// # Errors
/// Fails if it is no directory.
pub fn enter_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    match unsafe { libc::fchdir(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `standard` stdin, stdout and stderr of this process. If stdin is the terminal of another process then, leaves the controlling
/// terminal.
///
/// # Errors
/// Fails if a descriptor cannot be duplicated.
pub fn adopt(standard: &[OwnedFd; 3]) -> io::Result<()> {
    for (number, descriptor) in (0..).zip(standard) {
        // SAFETY: the call takes no pointer. It closes only a standard descriptor, which no object owns.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if io::stdin().is_terminal() {
        leave_terminal();
    }
    Ok(())
}

/// Leaves the controlling terminal: job control would stop reads and mode changes. The leader of a session keeps it, because the
/// session would end.
fn leave_terminal() {
    // SAFETY: the call takes no pointer and cannot fail.
    let session = unsafe { libc::getsid(0) };
    if u32::try_from(session).is_ok_and(|leader| leader == std::process::id()) {
        return;
    }
    if let Ok(terminal) = File::open("/dev/tty") {
        // SAFETY: the call takes no pointer.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
    }
}

/// Returns the paths of the program of this process: as it was executed, and as the kernel resolves it. The second needs /proc.
pub fn executed_paths() -> impl Iterator<Item = PathBuf> {
    // SAFETY: the call takes no pointer.
    let address = unsafe { libc::getauxval(libc::AT_EXECFN) };
    let pointer = std::ptr::with_exposed_provenance::<libc::c_char>(usize::try_from(address).unwrap_or(0));
    let executed = (!pointer.is_null()).then(|| {
        // SAFETY: the kernel has placed a C string at this address, which stays for the life of the process.
        let name = unsafe { CStr::from_ptr(pointer) };
        PathBuf::from(OsStr::from_bytes(name.to_bytes()))
    });
    let executed = executed.filter(|path| path.parent().is_some_and(|parent| parent != Path::new("")));
    executed.into_iter().chain(std::env::current_exe())
}

/// Returns the processor time of this process.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Signals of the user, which wait until the process has undone its effects on others. Dropping it ends the process by the first one.
///
/// SIGQUIT does not wait: it ends a process whose VM does not respond.
pub struct HeldSignals {
    signals: Vec<libc::c_int>,
    /// Without it, a signal ends the process all the same: it stays pending.
    descriptor: Option<SignalFd>,
    received: Option<libc::c_int>,
}

impl HeldSignals {
    /// Blocks the signals that are not ignored. There must be no other thread.
    pub fn hold() -> Self {
        let signals = not_ignored(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
        // Fails only for an invalid signal number.
        let _ = block_signals(&signals);
        Self {
            descriptor: SignalFd::new(&signals).ok(),
            signals,
            received: None,
        }
    }

    /// Returns true if a signal has arrived.
    pub fn has_any(&mut self) -> bool {
        let descriptor = self.descriptor.as_mut();
        self.received = self.received.or_else(|| descriptor.and_then(SignalFd::read));
        self.received.is_some()
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        self.has_any();
        if let Some(signal) = self.received {
            exit_by_signal(signal);
        }
        self.signals.iter().for_each(|signal| unblock_signal(*signal));
    }
}

/// Ends this process by `signal`, so that its parent sees the cause. Returns an exit status if the signal does not end it.
pub fn exit_by_signal(signal: libc::c_int) -> u8 {
    // A thread that the end of the process does not wait for may own the terminal.
    emergency::restore();
    // SAFETY: SIG_DFL is a valid action, and no handler of this signal is replaced: a signalfd received it.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    unblock_signal(signal);
    // SAFETY: raise has no preconditions.
    unsafe { libc::raise(signal) };
    // Reached only if the default action does not end the process.
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
