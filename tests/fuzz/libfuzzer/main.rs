//! Drives the target named by `FUZZ_TARGET` with libFuzzer.

#![no_main]

use std::env;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../targets/mod.rs"]
#[allow(dead_code, reason = "libFuzzer has its own dictionary and limits")]
mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").expect("FUZZ_TARGET is not set");
    let target = targets::TARGETS.into_iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("FUZZ_TARGET={name} is no target"))
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
