//! Signal state that the starter of a test program leaves to it.

use std::mem::MaybeUninit;
use std::ptr;

/// Runs before `main` in each program that links this crate. Their tests start processes, which would inherit the state.
#[used]
#[unsafe(link_section = ".init_array")]
static RESET: extern "C" fn() = reset;

/// Gives all signals their default action and unblocks them: nohup, background jobs of a shell and CI runners start programs with
/// ignored signals, and a test that ends a process by such a signal would wait for it in vain.
extern "C" fn reset() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default action is no handler that could run. The call fails for SIGKILL, SIGSTOP and those of libc.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: `none` is valid for writes.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialised `none`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// Ignores SIGXFSZ in this process, as mayfly does: a write beyond the limit of the file size fails. Only a process of its own calls it.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is no handler that could run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    use crate::run;

    /// Name of the test below that another one runs in a process of its own.
    const KILLED: &str = "signals::tests::test_that_raises_signals";

    #[test]
    #[ignore = "run by ignored_and_blocked_signals_are_reset"]
    fn test_that_raises_signals() {
        // SAFETY: the call takes no pointer.
        unsafe { libc::raise(libc::SIGQUIT) };
    }

    #[test]
    fn ignored_and_blocked_signals_are_reset() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", KILLED, "--ignored"]);
        let prepare = || {
            // SAFETY: SIG_IGN is no handler that could run.
            unsafe { libc::signal(libc::SIGQUIT, libc::SIG_IGN) };
            let mut all = std::mem::MaybeUninit::uninit();
            // SAFETY: `all` is valid for writes.
            unsafe { libc::sigfillset(all.as_mut_ptr()) };
            // SAFETY: sigfillset has initialised `all`.
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec and makes system calls only.
        unsafe { command.pre_exec(prepare) };
        assert_eq!(run(&mut command).status.signal(), Some(libc::SIGQUIT));
    }
}
