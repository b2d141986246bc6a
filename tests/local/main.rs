//! Tests of mayfly on `/dev/kvm` of this machine, with the guests of resources/guests. Without `/dev/kvm` these tests
//! fail; `make test` then skips them and prints a notice.
//!
//! | module | subject |
//! |---|---|
//! | [`programs`] | scenarios, shared with the emulated host |
//! | [`command`] | output and exit status of mayfly |
//! | [`core_dump`] | ELF cores |
//! | [`profile`] | samples of the guest by function |
//! | [`crash`] | reports and snapshots of crashes |
//! | [`console`] | stalled readers, signals, terminals |
//! | [`attached`] | clients of a serial console |
//! | [`kvm_call_order`] | order of the KVM calls at boot and at restore |
//! | [`calls`] | system calls of a process, by ptrace |
//! | [`state`] | state of a machine, restored in another machine |
//! | [`loader`] | damaged state files |
//! | [`memory_limit`] | falling limits of the address space |
//! | [`forged`] | state files of an attacker |
//! | [`debugger`] | gdb attached to a VM |
//! | [`docs`] | commands in the documentation |
//! | [`faults`] | a start in which one system call fails |
//! | [`filters`] | seccomp filters against the calls of mayfly |
//! | [`images`] | images of OCI layouts |
//! | [`layout`] | OCI layouts that tests write |
//! | [`isolation`] | system calls that a hostile thread of a VM is refused |
//! | [`access`] | a missing or inaccessible `/dev/kvm` |
//! | [`virtio`] | drives and hostile guests |
//! | [`network`] | network interfaces |
//! | [`attach`] | rejected drives and interfaces |
//! | [`api`] | the API socket and its clients |

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

/// Defines a test for each scenario: a name and the expression that runs it.
macro_rules! scenarios {
    ($($name:ident => $scenario:expr;)*) => {
        $(
            #[test]
            fn $name() {
                $scenario;
            }
        )*
    };
}

mod access;
mod api;
mod attach;
mod attached;
mod calls;
mod command;
mod console;
mod core_dump;
mod crash;
mod debugger;
mod docs;
// Registers of the processor.
#[cfg(target_arch = "x86_64")]
mod faults;
/// The list of scenarios is that of x86_64.
#[cfg(target_arch = "x86_64")]
mod filters;
mod forged;
#[allow(dead_code, reason = "only the emulated host kills and restores guests")]
#[path = "../hosts/guest.rs"]
mod guest;
mod guests;
mod images;
mod isolation;
mod kvm_call_order;
mod layout;
mod loader;
mod memory_limit;
mod network;
#[allow(dead_code, reason = "tests/docs.rs splits the commands")]
#[path = "../docs/pages.rs"]
mod pages;
mod profile;
/// The list is that of x86_64; module `aarch64` of tests/hosts has the other.
#[cfg(target_arch = "x86_64")]
#[path = "../hosts/programs.rs"]
mod programs;
/// Modes of the irqchip, and records and interrupts of x86_64. Module `aarch64` of tests/hosts restores guests of aarch64.
#[cfg(target_arch = "x86_64")]
mod state;
mod virtio;

use guests::file;
