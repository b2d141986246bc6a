//! Real images under mayfly on a faithful x86_64 machine: Debian's kernel with kvm-amd, under QEMU's emulated SVM.
//!
//! The machine is booted once, and each scenario in it is a test here. It runs this very program, with one scenario at a
//! time, against the mayfly under test. `make setup` gets what that takes; where it is missing the tests fail and say so.
//!
//! | module | holds |
//! |---|---|
//! | [`host`] | the verdicts of the scenarios, from a machine that is booted once for all of them |
//! | [`qemu`] | one boot of it under QEMU, with its time limits |
//! | [`report`] | what the machine says about the scenarios, read line by line |
//! | [`contents`] | the files in the machine, and in Linux when it is the guest |
//! | [`archive`] | the format they are packed in |
//! | [`guest`] | one guest of mayfly: what it prints, what is typed, how it ends |
//! | [`linux`], [`virtio`], [`snapshots`], [`images`], [`programs`], [`processor`], [`docs`] | the scenarios |

#![allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

/// Makes a test of each scenario: a name and the expression that runs in the emulated host.
macro_rules! scenarios {
    ($($name:ident => $scenario:expr;)*) => {
        $(
            #[test]
            fn $name() {
                $crate::host::run(concat!(module_path!(), "::", stringify!($name)), || $scenario);
            }
        )*
    };
}

mod archive;
mod contents;
mod docs;
#[allow(dead_code, reason = "the tests of the control socket ask for more")]
mod guest;
mod host;
mod images;
mod linux;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../docs/pages.rs"]
mod pages;
mod processor;
mod programs;
mod qemu;
mod report;
mod snapshots;
mod virtio;

/// Where `path` of the emulated host is: there.
fn file(path: &str) -> String {
    path.to_owned()
}
