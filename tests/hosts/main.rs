//! Real images under mayfly on emulated hosts, see [`kind`].
//!
//! Each host boots once for its tests; two hosts run at the same time, and two divide the scenarios of x86_64. Each scenario is a test
//! here. A host runs this test program with one scenario at a time, built for its architecture. `make setup` fetches the required
//! files, `make aarch64` builds those for aarch64; without them the tests fail. An aarch64 machine runs the scenarios of aarch64 alone.
//!
//! | module | subject |
//! |---|---|
//! | [`host`] | verdicts of the scenarios, from the emulated hosts |
//! | [`kind`] | kinds of hosts |
//! | [`qemu`] | one boot of the host under QEMU, with timeouts |
//! | [`report`] | parser of the host's report |
//! | [`contents`] | files in the host and in its Linux guest |
//! | [`archive`] | cpio format |
//! | [`layout`] | OCI layouts that tests write |
//! | [`guest`] | mayfly processes: output, input, exit |
//! | [`firecracker`], [`oracle`] | comparison with Firecracker |
//! | [`calls`] | system calls of a process |
//! | [`aarch64`] | scenarios of aarch64, which share functions with those of x86_64 |
//! | [`linux`], [`virtio`], [`snapshots`], [`images`], [`programs`], [`processor`], [`debugger`], [`docs`] | scenarios |

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "other machines run no scenario of x86_64")
)]

/// Defines a test for each scenario: a name and the expression that runs on the emulated host.
macro_rules! scenarios {
    ($($name:ident => $scenario:expr;)*) => {
        $(
            #[cfg(target_arch = "x86_64")]
            #[test]
            fn $name() {
                $crate::host::run(concat!(module_path!(), "::", stringify!($name)), || $scenario);
            }
        )*
    };
}

mod aarch64;
mod archive;
#[allow(dead_code, reason = "tests/local uses the rest")]
#[path = "../local/calls.rs"]
mod calls;
mod contents;
mod debugger;
mod docs;
#[cfg(target_arch = "x86_64")]
mod firecracker;
#[allow(dead_code, reason = "the tests of the API socket use more of it")]
mod guest;
mod host;
mod images;
mod kind;
#[allow(dead_code, reason = "tests/local uses the rest")]
#[path = "../local/layout.rs"]
mod layout;
mod linux;
#[allow(dead_code, reason = "tests/clients uses the rest")]
#[path = "../clients/oracle/mod.rs"]
mod oracle;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../docs/pages.rs"]
mod pages;
mod processor;
mod programs;
mod qemu;
mod report;
mod snapshots;
mod virtio;

/// Returns `path`, which is the same on the emulated host.
fn file(path: &str) -> String {
    path.to_owned()
}
