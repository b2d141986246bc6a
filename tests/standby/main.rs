//! mayfly-standby with a fake program in the place of mayfly: no test needs /dev/kvm.
//!
//! | module | subject |
//! |---|---|
//! | `fake` | the program of the instances |
//! | `fixture` | a supervisor of fake programs |
//! | `supervisor` | the process of a supervisor, and requests |
//! | `states` | states and their reasons |
//! | `frames` | wakes by frames |
//! | `activation` | API socket of systemd |
//! | `limits` | limits of time, processes and memory; shells that fail |
//! | `killed` | supervisors that are killed at any time |
//! | `many` | many registered instances |

#![allow(clippy::unwrap_used, reason = "a failed test panics")]

mod activation;
mod fake;
mod fixture;
mod frames;
mod killed;
mod limits;
mod many;
mod states;
mod supervisor;
