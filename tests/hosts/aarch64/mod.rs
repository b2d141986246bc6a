//! Scenarios of the emulated aarch64 hosts. Each runs on two hosts, of which one has a GICv3 and one a GICv2, and on both memory maps.
//! Those of [`backports`] run on a host with a newer kernel and processor.

/// Memory map of a guest.
#[derive(Debug, Clone, Copy)]
pub struct Map {
    /// Directory of its test guests, and value of `--machine`.
    pub name: &'static str,
    /// Console of Linux.
    pub console: &'static str,
}

/// Map of Firecracker, with a 16550.
pub const FC: Map = Map {
    name: "fc",
    console: "ttyS0",
};
/// Map of QEMU's virt, with a PL011.
pub const VIRT: Map = Map {
    name: "virt",
    console: "ttyAMA0",
};

/// Defines a test for each scenario, host and memory map: a name and a function of the [`Map`].
macro_rules! scenarios_on_each_map {
    ($($scenarios:tt)*) => {
        mod gic2 {
            mod fc {
                scenarios_of_map! { FC $($scenarios)* }
            }
            mod virt {
                scenarios_of_map! { VIRT $($scenarios)* }
            }
        }
        mod gic3 {
            mod fc {
                scenarios_of_map! { FC $($scenarios)* }
            }
            mod virt {
                scenarios_of_map! { VIRT $($scenarios)* }
            }
        }
    };
}

/// Part of [`scenarios_on_each_map`], for two modules of the file.
macro_rules! scenarios_of_map {
    ($map:ident $($name:ident => $scenario:expr;)*) => {
        #[allow(unused_imports, reason = "a list may use none of them")]
        use super::super::*;

        $(
            #[test]
            fn $name() {
                let scenario: fn(crate::aarch64::Map) = $scenario;
                $crate::host::run(concat!(module_path!(), "::", stringify!($name)), || {
                    scenario(crate::aarch64::$map);
                });
            }
        )*
    };
}

mod backports;
mod bad_input;
mod kvm;
mod linux;
pub mod local;
mod programs;
mod snapshots;
mod start;
mod virtqueue;
