//! Scenarios of the emulated aarch64 hosts, one with a GICv3 and one with a GICv2.

mod kvm;
