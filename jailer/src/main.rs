//! mayfly-jailer: confines a VMM before it starts. The library has the steps.

#![cfg_attr(not(test), no_main)]

/// Entry point of the program, called by the C library.
///
/// The entry point of the standard library reads and parses `/proc/self/maps`, and prepares a handler for stack overflows, which
/// costs a start as much as several steps of the jailer.
#[cfg(not(test))]
// SAFETY: no other symbol has this name, and the unused arguments are an integer and a pointer, as C passes them.
#[unsafe(no_mangle)]
extern "C" fn main(_count: libc::c_int, _arguments: *const *const libc::c_char) -> libc::c_int {
    libc::c_int::from(jailer::run(std::env::args_os().skip(1)))
}
