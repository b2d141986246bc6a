//! mayfly-standby with real instances on `/dev/kvm` of this machine. Without `/dev/kvm` or network namespaces these tests do not run.
//!
//! | module | subject |
//! |---|---|
//! | `random` | pseudo-random numbers |
//! | `host` | a network namespace with snapshots and a supervisor |
//! | `cycles` | a connection that stays open over many suspends |
//! | `killed` | VMs and supervisors that are killed at any moment |
//! | `wake` | wakes by frames and requests, suspends |
//! | `network` | instances of a shared network |
//! | `shells` | wakes in shells |
//! | `storm` | requests to random instances, as in `make storm` |
//! | `jailed` | an instance in a jail |
//! | `ends` | instances that end by themselves, or cannot wake |

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod cycles;
mod ends;
#[allow(dead_code, reason = "tests/local uses all of it")]
#[path = "../local/guests.rs"]
mod guests;
mod host;
mod jailed;
mod killed;
#[allow(dead_code, reason = "make storm uses all of it")]
#[path = "../../benches/storm/load.rs"]
mod load;
mod network;
mod random;
mod shells;
mod storm;
#[allow(dead_code, reason = "tests/standby uses all of it")]
#[path = "../standby/supervisor.rs"]
mod supervisor;
mod wake;
