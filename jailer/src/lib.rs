//! Jail for a VMM process: chroot, namespaces, cgroups and resource limits.
//!
//! This crate depends on no other crate of mayfly.
