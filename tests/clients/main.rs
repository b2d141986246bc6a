//! mayfly in the place of Firecracker, without a running guest: no `/dev/kvm` is needed. tests/hosts compares running guests.
//!
//! | module | subject |
//! |---|---|
//! | [`oracle`] | comparison with a released Firecracker |
//! | [`before_start`] | requests before the start of the guest |
//! | [`document`] | tables in the documentation |
//! | [`command_line`] | options, messages and exit statuses |
//! | [`results`] | results of other clients, which tests/local runs |

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

mod before_start;
mod command_line;
mod document;
mod oracle;
#[allow(dead_code, reason = "tests/local compares the results")]
mod results;
