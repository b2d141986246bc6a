//! Comparison of mayfly with a released Firecracker, of running guests.
//!
//! The scenario prints the differences, and this machine compares them with the reviewed list, which it may rewrite.

use crate::host;
use crate::oracle::guest::observe_guest;
use crate::oracle::{Difference, list};

/// Start of a line with a difference.
const MARK: &str = "difference: ";

#[test]
fn guests_are_controlled_alike() {
    let name = concat!(module_path!(), "::guests_are_controlled_alike");
    let printed = host::observe(name, || {
        for difference in observe_guest() {
            println!("{MARK}{}", difference.to_line());
        }
    });
    // None on the emulated host.
    if let Some(printed) = printed {
        let lines = printed.lines().filter_map(|line| line.strip_prefix(MARK));
        let found: Vec<_> = lines.map(Difference::from_line).collect();
        list::check("guest", &found);
    }
}
