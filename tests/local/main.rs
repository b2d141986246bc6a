//! mayfly on this machine's own `/dev/kvm`, with the guests of resources/guests. Where there is no `/dev/kvm` these tests
//! fail; `make test` then leaves them out and says so.
//!
//! | module | holds |
//! |---|---|
//! | [`programs`] | the scenarios that the emulated host runs too |
//! | [`command`] | what mayfly prints, and its exit status |
//! | [`console`] | readers that stall, writers that do not, terminals |
//! | [`kvm_call_order`] | the order of the calls on KVM, of a start and of a restore |
//! | [`calls`] | the system calls of a process |
//! | [`state`] | the state of machines, from one into another |
//! | [`loader`] | state files that are not what was written |
//! | [`docs`] | commands in the documentation |
//! | [`access`] | a `/dev/kvm` that is missing or forbidden |
//! | [`virtio`] | drives, and hostile guests |
//! | [`network`] | network interfaces |
//! | [`attach`] | drives and interfaces that cannot be |
//! | [`api`] | the control socket and those who drive it |

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

/// Makes a test of each scenario: a name and the expression that runs it.
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
mod calls;
mod command;
mod console;
mod docs;
#[allow(
    dead_code,
    reason = "guests are killed and restored on the emulated host only"
)]
#[path = "../hosts/guest.rs"]
mod guest;
mod guests;
mod kvm_call_order;
mod loader;
mod network;
#[allow(dead_code, reason = "tests/docs.rs splits the commands")]
#[path = "../docs/pages.rs"]
mod pages;
#[path = "../hosts/programs.rs"]
mod programs;
mod state;
mod virtio;

use guests::file;
