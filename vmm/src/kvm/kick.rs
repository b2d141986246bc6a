//! Gets a vCPU out of the guest.
//!
//! A kick is a signal to the vCPU's thread. Its handler sets `immediate_exit` in the shared page of the vCPU, so that
//! a signal that comes just before `KVM_RUN` is not lost: the call returns at once. The thread clears the flag before it
//! looks for work, so that a kick after the look ends the next `KVM_RUN`.

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use kvm_bindings::kvm_run;
use vmm_sys_util::signal::{register_signal_handler, unblock_signal};

thread_local! {
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
    /// Number of this thread, if a kick is bound to it.
    static THREAD: Cell<i32> = const { Cell::new(0) };
}

pub(crate) fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let page = RUN_PAGE.get();
    if !page.is_null() {
        // SAFETY: the page is mapped as long as RUN_PAGE is set, and the handler runs on the thread that set it.
        let flag = unsafe { &raw mut (*page).immediate_exit };
        // SAFETY: as above; the kernel reads the byte, so that the write is volatile.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the handler, once a process.
///
/// # Errors
/// The kernel's answer to `sigaction`.
pub fn install() -> io::Result<()> {
    register_signal_handler(signal(), on_kick).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Kicks the thread of one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Kick {
    thread: Arc<AtomicI32>,
}

impl Kick {
    /// Binds the kick to the calling thread until the guard is dropped. `page` is that of the vCPU it is about to run.
    pub(crate) fn bind(&self, page: *mut kvm_run) -> Bound<'_> {
        RUN_PAGE.set(page);
        // Whoever started this process may have left the signal blocked; that survives exec, and no kick would arrive.
        // It fails only for a number that is no signal's.
        let _ = unblock_signal(signal());
        // Not libc::gettid: std refers to that one weakly, and with link-time optimisation the weak reference wins, which
        // pulls nothing out of a static C library.
        // SAFETY: the call has no preconditions.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        let thread = i32::try_from(thread).unwrap_or(0);
        THREAD.set(thread);
        self.thread.store(thread, Ordering::SeqCst);
        Bound(self)
    }

    /// Makes the vCPU leave the guest, if it is in it or about to enter it. Does nothing on the vCPU's own thread,
    /// which is not in the guest, nor before or after its time.
    pub fn kick(&self) {
        let thread = self.thread.load(Ordering::SeqCst);
        if thread == 0 || thread == THREAD.get() {
            return;
        }
        send(thread);
    }
}

/// Makes the signal pending for the calling thread, to which a kick is bound and which blocks it.
pub(crate) fn kick_this_thread() {
    send(THREAD.get());
}

fn send(thread: i32) {
    // The thread may have ended meanwhile, which makes the call fail; there is nobody left to kick then.
    // SAFETY: getpid has no preconditions.
    let process = unsafe { libc::getpid() };
    // SAFETY: the signal has a handler, so that whichever thread of this process gets it goes on.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
}

/// Unbinds a [`Kick`] when dropped.
pub(crate) struct Bound<'a>(&'a Kick);

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.0.thread.store(0, Ordering::SeqCst);
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
    fn a_kick_sets_the_flag_of_its_own_thread_only() {
        install().unwrap();
        let kick = Kick::default();
        kick.kick();
        let (bound, wait_bound) = mpsc::channel();
        let (kicked, wait_kicked) = mpsc::channel();
        let kicker = kick.clone();
        let vcpu = thread::spawn(move || {
            let mut page = kvm_run::default();
            let guard = kick.bind(&raw mut page);
            kick.kick();
            let own = page.immediate_exit;
            bound.send(()).unwrap();
            wait_kicked.recv().unwrap();
            drop(guard);
            (own, page.immediate_exit)
        });
        wait_bound.recv().unwrap();
        kicker.kick();
        kicked.send(()).unwrap();
        assert_eq!(vcpu.join().unwrap(), (0, 1));
        kicker.kick();
    }
}
