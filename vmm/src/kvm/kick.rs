//! Kick of a vCPU: a signal to its thread that forces an exit.
//!
//! The signal handler sets `immediate_exit` in the `kvm_run` page of the vCPU (KVM API §5), so that a signal just
//! before `KVM_RUN` is not lost: the call returns at once. The vCPU thread clears the flag before it checks for work,
//! so that a kick after the check ends the next `KVM_RUN`. What the kicking thread stored before the signal is visible to the check: the
//! kernel holds a lock of the thread when it sends and when it delivers a signal.
//!
//! The timer of a profile sends the same signal: the flush of pending work blocks that alone, see `vcpu::pre_entry`.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kvm_bindings::kvm_run;
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

use super::kick_target::KickTarget;

thread_local! {
    // Constants without a destructor: the signal handler must not run a lazy initialisation.
    /// Run page of the vCPU of this thread, or null if no kick is bound to it.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
    /// Thread ID of this thread, or 0 if no kick is bound to it.
    static THREAD: Cell<i32> = const { Cell::new(0) };
    /// Periods of the sample timer that have ended since the last sample. Atomic for the signal handler alone.
    static PERIODS: AtomicU32 = const { AtomicU32::new(0) };
}

/// Returns the number of the kick signal.
pub(crate) fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Begin of `siginfo_t` for a signal of a timer, asm-generic/siginfo.h.
#[repr(C)]
struct TimerSignal {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    /// The union that follows holds pointers.
    padding: libc::c_int,
    timer: libc::c_int,
    overrun: libc::c_int,
}

extern "C" fn on_kick(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let page = RUN_PAGE.get();
    if !page.is_null() {
        // SAFETY: the kernel passes a valid structure to a handler with SA_SIGINFO, which begins with the fields of `TimerSignal`.
        let info = unsafe { &*info.cast::<TimerSignal>() };
        if info.code == libc::SI_TIMER {
            let ended = 1_u32.saturating_add(u32::try_from(info.overrun).unwrap_or(0));
            PERIODS.with(|periods| periods.fetch_add(ended, Ordering::Relaxed));
        }
        // SAFETY: the page is mapped while RUN_PAGE is set, and the handler runs on the thread that set it.
        let flag = unsafe { &raw mut (*page).immediate_exit };
        // SAFETY: the pointer is valid as above; the write is volatile because the kernel reads the byte.
        unsafe { flag.write_volatile(1) };
    }
}

/// Takes the number of periods of the sample timer of this thread that have ended since the last call.
pub(crate) fn take_periods() -> u32 {
    PERIODS.with(|periods| periods.swap(0, Ordering::Relaxed))
}

/// Installs the signal handler. Must be called once per process.
///
/// # Errors
/// Fails if `sigaction` fails.
pub fn install() -> io::Result<()> {
    register_signal_handler(signal(), on_kick).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Handle to kick one vCPU thread.
#[derive(Clone, Debug, Default)]
pub struct Kick {
    target: Arc<KickTarget>,
}

impl Kick {
    /// Binds the kick to the calling thread until the guard is dropped. `page` belongs to the vCPU of this thread.
    pub(crate) fn bind(&self, page: *mut kvm_run) -> Bound<'_> {
        RUN_PAGE.set(page);
        // The parent process may have blocked the signal; the mask survives execve(2), and no kick would arrive.
        // The call fails only for an invalid signal number.
        let _ = unblock_signal(signal());
        // Not libc::gettid: std refers to that symbol weakly. With LTO in a static binary only the weak reference remains, and
        // the symbol is not linked.
        // SAFETY: the call has no preconditions.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        let thread = i32::try_from(thread).unwrap_or(0);
        THREAD.set(thread);
        self.target.bind(thread);
        Bound(self)
    }

    /// Returns the ID of the bound thread, or `None` while the kick is not bound.
    pub(crate) fn thread(&self) -> Option<i32> {
        self.target.thread()
    }

    /// Returns the time for which a processor has executed the bound thread, in user mode, kernel mode and guest. Does not interrupt the
    /// thread. `None` while the kick is not bound.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        // Clock of a thread by its ID, include/linux/posix-timers_types.h in Linux: CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED.
        let clock = !self.thread()? << 3 | 4 | 2;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes `time`, which outlives the call, and checks the clock. A thread that reuses the ID of an ended one
        // has a clock too.
        if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
            return None;
        }
        let nanoseconds = u32::try_from(time.tv_nsec).ok()?;
        Some(Duration::new(u64::try_from(time.tv_sec).ok()?, nanoseconds))
    }

    /// Forces an exit if the vCPU is in the guest or about to enter it. Has no effect on the vCPU thread itself, which
    /// is not in the guest, nor while the kick is not bound.
    pub fn kick(&self) {
        let target = self.target.to_kick();
        if let Some(thread) = target.filter(|thread| *thread != THREAD.get()) {
            send(thread);
        }
    }
}

/// Makes the signal pending for the calling thread, which must have a bound kick and block the signal.
pub(crate) fn kick_this_thread() {
    send(THREAD.get());
}

fn send(thread: i32) {
    // The call fails if the thread has exited meanwhile, and no kick is needed then. A thread that reuses the ID belongs to this
    // process too, and the handler ignores the signal there.
    // SAFETY: getpid has no preconditions.
    let process = unsafe { libc::getpid() };
    // SAFETY: the signal has a handler, so that it terminates no thread of this process.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
}

/// Guard that unbinds a [`Kick`].
pub(crate) struct Bound<'a>(&'a Kick);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.0.target.unbind();
        RUN_PAGE.set(ptr::null_mut());
        THREAD.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use kvm_bindings::kvm_run;

    use super::{Kick, install};

    #[test]
    fn kick_sets_flag_of_bound_thread_only() {
        install().unwrap();
        let kick = Kick::default();
        kick.kick();
        assert_eq!((kick.thread(), kick.cpu_time()), (None, None));
        let (bound, wait_bound) = mpsc::channel();
        let (kicked, wait_kicked) = mpsc::channel();
        let kicker = kick.clone();
        let vcpu = thread::spawn(move || {
            let mut page = kvm_run::default();
            let guard = kick.bind(&raw mut page);
            kick.kick();
            let own = page.immediate_exit;
            bound.send(()).unwrap();
            scratch::receive(&wait_kicked);
            drop(guard);
            (own, page.immediate_exit)
        });
        scratch::receive(&wait_bound);
        assert!(kicker.cpu_time().is_some_and(|time| !time.is_zero()));
        kicker.kick();
        kicked.send(()).unwrap();
        assert_eq!(scratch::join(vcpu), (0, 1));
        kicker.kick();
    }
}
