//! The command line of mayfly.

#[expect(dead_code, reason = "what runs a virtual machine is not there yet")]
mod escape;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "what runs a virtual machine is not there yet")
)]
mod terminal;

fn main() {}
