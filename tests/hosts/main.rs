//! Real images under mayfly on an emulated x86_64 host: Debian's kernel with kvm-amd, under QEMU's emulated SVM.
//!
//! Two hosts boot once for all tests, and divide them. Each scenario is a test here. A host runs this test program with one scenario
//! at a time. `make setup` fetches the required files; without them the tests fail.
//!
//! | module | subject |
//! |---|---|
//! | [`host`] | verdicts of the scenarios, from the emulated hosts |
//! | [`qemu`] | one boot of the host under QEMU, with timeouts |
//! | [`report`] | parser of the host's report |
//! | [`contents`] | files in the host and in its Linux guest |
//! | [`archive`] | cpio format |
//! | [`guest`] | mayfly processes: output, input, exit |
//! | [`firecracker`], [`oracle`] | comparison with Firecracker |
//! | [`linux`], [`virtio`], [`snapshots`], [`images`], [`programs`], [`processor`], [`docs`] | scenarios |

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

/// Defines a test for each scenario: a name and the expression that runs on the emulated host.
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
mod firecracker;
#[allow(dead_code, reason = "the tests of the API socket use more of it")]
mod guest;
mod host;
mod images;
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
