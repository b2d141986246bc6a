//! Future sandbox of the process: seccomp, namespaces, chroot. Holds no code yet.
//!
//! Not implemented yet. The crate depends on no other crate of mayfly.
