//! Jail for a VMM process: chroot, namespaces, cgroups and resource limits.
//!
//! Not implemented yet. The crate depends on no other crate of mayfly.
