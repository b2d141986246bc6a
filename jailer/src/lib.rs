//! Future sandbox of the process: seccomp, namespaces, chroot. Holds no code yet.
//!
//! This crate depends on no other crate of mayfly.
