//! The jailer as root, with mayfly as the VMM. Each test has a mount namespace and a network namespace of its own.
//!
//! | module | subject |
//! |---|---|
//! | [`fixture`] | namespaces, processes, state of a directory tree |
//! | [`fault`] | system calls that fail |
//! | [`confined`] | contents of a jail, and its process |
//! | [`cgroups`] | cgroups of this host |
//! | [`undone`] | failing steps and their undo |
//! | [`oracle`] | jails of Firecracker's jailer |
//! | [`reused`] | a second start with the same ID |
//! | [`rejected`] | command lines and programs that cannot work |

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

mod cgroups;
mod confined;
mod fault;
mod fixture;
mod oracle;
mod rejected;
mod reused;
mod undone;
