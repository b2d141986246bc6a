//! System calls that fail, by a seccomp filter that the jailer inherits.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Condition on an argument of a system call: its index and the lower half of its value.
pub type Argument = Option<(u32, u32)>;

/// Offsets in `seccomp_data`.
const NUMBER: u32 = 0;
const ARGUMENTS: u32 = 16;

fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    }
}

/// Makes the system call `number` fail with `error` in `command`, if the condition `argument` holds.
pub fn inject(command: &mut Command, number: libc::c_long, argument: Argument, error: i32) {
    let load = |offset| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let equals = |value, skip| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip);
    let answer = |value| statement(libc::BPF_RET | libc::BPF_K, value);
    let error = u32::try_from(error).unwrap();
    let mut filter = vec![load(NUMBER), equals(u32::try_from(number).unwrap(), 1)];
    if let Some((index, value)) = argument {
        filter[1].jf = 3;
        // The lower half comes first on a little-endian machine.
        filter.push(load(ARGUMENTS + index * 8));
        filter.push(equals(value, 1));
    }
    filter.push(answer(libc::SECCOMP_RET_ERRNO | error));
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    let install = move || {
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).map_err(io::Error::other)?,
            filter: filter.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_MODE_FILTER;
        // SAFETY: `program` and its filter are valid for reads. The process is root, so that it needs no further flag.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and makes one system call.
    unsafe { command.pre_exec(install) };
}
