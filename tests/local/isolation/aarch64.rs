//! Registers of aarch64.

use std::mem;

use super::request;

/// Note of the registers of `struct user_pt_regs`, `NT_PRSTATUS` of linux/elf.h.
const REGISTERS: usize = 1;
/// Note of the number of the system call of a stopped thread, `NT_ARM_SYSTEM_CALL` of linux/elf.h.
const SYSTEM_CALL: usize = 0x404;
/// Length of an instruction.
const INSTRUCTION: u64 = 4;

/// Transfers `note` of the stopped `thread` from or to `value`.
fn transfer<T>(operation: libc::c_uint, thread: libc::pid_t, note: usize, value: &mut T) {
    let mut vector = libc::iovec {
        iov_base: (&raw mut *value).cast(),
        iov_len: mem::size_of::<T>(),
    };
    request(operation, thread, note, (&raw mut vector).cast());
    assert_eq!(vector.iov_len, mem::size_of::<T>());
}

/// Sets the registers of the stopped `thread`, which waits in a system call, to those of the call `number`.
pub fn set_call(thread: libc::pid_t, number: libc::c_long, arguments: [u64; 4]) {
    // SAFETY: all-zero bytes are a valid value of the structure.
    let mut registers: libc::user_regs_struct = unsafe { mem::zeroed() };
    transfer(libc::PTRACE_GETREGSET, thread, REGISTERS, &mut registers);
    // The interrupted call has returned EINTR, and its instruction is just before.
    assert_eq!(registers.regs[0].cast_signed(), -i64::from(libc::EINTR));
    registers.pc -= INSTRUCTION;
    registers.regs[8] = number.cast_unsigned();
    registers.regs[..4].copy_from_slice(&arguments);
    (registers.regs[4], registers.regs[5]) = (u64::MAX, 0);
    transfer(libc::PTRACE_SETREGSET, thread, REGISTERS, &mut registers);
    // No restart of the interrupted call.
    transfer(libc::PTRACE_SETREGSET, thread, SYSTEM_CALL, &mut -1_i32);
}
