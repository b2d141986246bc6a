//! Fuzz targets, driven by a seeded mutator. Requires no nightly compiler.
//!
//! Each test checks the corpus of one target, then mutated inputs for `FUZZ_SECONDS` (default 1). The same `FUZZ_SEED` yields
//! the same inputs. `FUZZ_INPUT` names one file to check instead. `make fuzz` drives the same targets by coverage.

#![allow(clippy::unwrap_used, reason = "a test reports failure by panicking")]

mod allocation;
mod driver;
mod mutator;
mod targets;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                driver::drive(stringify!($name));
            }
        )*

        /// Names of all tests.
        const TESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

tests! { block http image json load net race registers state }

#[test]
fn every_target_has_a_test() {
    let mut names = targets::TARGETS.map(|target| target.name);
    names.sort_unstable();
    assert_eq!(names, TESTS);
}
