//! Check that `resources/order.ld` still names functions of the release program.
//!
//! The linker ignores a name that matches no function, so that a stale list would slow the start without an error.

#![allow(clippy::unwrap_used, reason = "an unreadable file fails the test")]

#[path = "../benches/order/map.rs"]
mod map;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use map::Map;

/// Minimum share of the names that must match, in tenths.
const MIN_TENTHS: usize = 9;

/// Returns the number of patterns in the linker script `script`, and how many of them match a section of `map`.
fn count_matches(script: &str, map: &str) -> (usize, usize) {
    let map = Map::parse(map);
    let sections: BTreeSet<&str> = map.patterns().collect();
    let patterns = script.lines().map(str::trim).filter(|line| line.starts_with('*'));
    let is_match: Vec<bool> = patterns.map(|pattern| sections.contains(pattern)).collect();
    (
        is_match.len(),
        is_match.iter().filter(|is_match| **is_match).count(),
    )
}

#[test]
fn linker_order_names_functions_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("MAYFLY").is_none() {
        scratch::skip(
            "the release program, to which resources/order.ld belongs",
            "run `make unit`, which builds the program and names it in MAYFLY",
        );
        return;
    }
    let script = fs::read_to_string(root.join("resources/order.ld")).unwrap();
    let map = fs::read_to_string(root.join("dist/mayfly.map"))
        .expect("dist/mayfly.map is missing; run `make build`");
    let (count, matches) = count_matches(&script, &map);
    assert!(count > 100, "resources/order.ld has only {count} names");
    assert!(
        matches * 10 >= count * MIN_TENTHS,
        "only {matches} of {count} names in resources/order.ld match a function of the program; run `make order`"
    );
}

#[test]
fn renamed_functions_do_not_match() {
    let map = "  401000   401000  20  16         /o/a.o:(.text._RNvCs4fqI2P2rA04_3vmm5start)\n\
                 401020   401020  20  16         /o/a.o:(.text._RNvCs4fqI2P2rA04_3vmm4stop)\n";
    let script = "*(.text._RNvCs*_3vmm5start)\n*(.text._RNvCs*_3vmm5begin)\n";
    assert_eq!(count_matches(script, map), (2, 1));
}
