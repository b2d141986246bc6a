//! Timer of the samples of a vCPU thread.
//!
//! It counts the processor time of the thread, so that a halted vCPU is not woken. The kernel checks such a timer at its scheduler tick,
//! and reports the periods that have ended since the signal before (timer_getoverrun(2)).

use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::time::Duration;

use super::kick::signal;
use crate::system_call::check;

/// Starts a timer for the calling thread, which sends the kick signal to it after each `period` of its processor time. The signal has no
/// effect while no kick is bound. The timer ends with the process: that of an ended thread never expires.
///
/// # Errors
/// Fails if the limit of pending signals (RLIMIT_SIGPENDING) is reached.
pub fn start(period: Duration) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigevent.
    let mut event: libc::sigevent = unsafe { zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal();
    // Not libc::gettid: see `Kick::bind`.
    // SAFETY: the call has no preconditions.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    event.sigev_notify_thread_id = i32::try_from(thread).map_err(io::Error::other)?;
    let mut timer: libc::c_int = 0;
    // Not libc::timer_create, which brings the thread of SIGEV_THREAD into a static binary.
    // SAFETY: the kernel reads `event` and writes `timer`, the number of the timer in its own type; both outlive the call.
    let created = unsafe {
        libc::syscall(
            libc::SYS_timer_create,
            libc::CLOCK_THREAD_CPUTIME_ID,
            &raw const event,
            &raw mut timer,
        )
    };
    check(created)?;
    let length = libc::timespec {
        tv_sec: libc::time_t::try_from(period.as_secs()).map_err(io::Error::other)?,
        tv_nsec: period.subsec_nanos().into(),
    };
    let setting = libc::itimerspec {
        it_interval: length,
        it_value: length,
    };
    // SAFETY: the kernel reads `setting`, which outlives the call, and writes nothing through a null pointer.
    let set = unsafe {
        libc::syscall(
            libc::SYS_timer_settime,
            timer,
            0,
            &raw const setting,
            null_mut::<libc::itimerspec>(),
        )
    };
    check(set).map(drop)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use kvm_bindings::kvm_run;

    use super::start;
    use crate::kvm::kick::{Kick, install, take_periods};

    #[test]
    fn timer_counts_processor_time_of_its_thread() {
        install().unwrap();
        let busy = thread::spawn(|| {
            let (kick, mut page) = (Kick::default(), kvm_run::default());
            start(Duration::from_millis(2)).unwrap();
            let bound = kick.bind(&raw mut page);
            let mut periods = 0;
            while periods < 10 {
                periods += take_periods();
            }
            let time = kick.cpu_time().unwrap();
            drop(bound);
            (page.immediate_exit, time)
        });
        let (immediate_exit, time) = scratch::join(busy);
        assert_eq!(immediate_exit, 1);
        assert!(time >= Duration::from_millis(20), "{time:?}");
    }
}
