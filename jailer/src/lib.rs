//! The jail that a VMM process is started in: chroot, namespaces, cgroups, limits. It depends on no other crate of mayfly.
