//! Registers of x86_64.

use std::mem;

use super::request;

/// Sets the registers of the stopped `thread`, which waits in a system call, to those of the call `number`.
pub fn set_call(thread: libc::pid_t, number: libc::c_long, arguments: [u64; 4]) {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
    request(libc::PTRACE_GETREGS, thread, 0, (&raw mut registers).cast());
    // The instruction of the call is just before.
    registers.rip -= 2;
    registers.rax = number.cast_unsigned();
    // No restart of the interrupted call.
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
    (registers.r8, registers.r9) = (u64::MAX, 0);
    request(libc::PTRACE_SETREGS, thread, 0, (&raw mut registers).cast());
}
