//! Builds the guest of `mayfly demo`, passes resources/order.ld to the linker, and requests a map of the program.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

#[allow(clippy::disallowed_methods, reason = "make is the only work of this script")]
fn main() {
    println!("cargo::rerun-if-changed=resources/order.ld");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,resources/order.ld");
    println!("cargo::rerun-if-changed=resources/guests");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("OUT_DIR is unset; build with cargo"));
    // Beside the program, where `make order` and tests/order.rs find it: OUT_DIR is PROFILE/build/mayfly-HASH/out.
    let profile = out.ancestors().nth(3).expect("OUT_DIR has no profile directory");
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-Map={}",
        profile.join("mayfly.map").display()
    );
    let guest = out.join("demo.elf");
    println!("cargo::rustc-env=MAYFLY_DEMO_GUEST={}", guest.display());
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        // The guests are x86_64 programs. An empty file compiles; the demo then fails with an error about its image.
        fs::write(&guest, []).expect("cannot write to OUT_DIR");
        return;
    }
    // Without the flags of an outer make, such as --dry-run.
    let status = Command::new("make")
        .args(["--silent", "--directory", "resources/guests"])
        .arg(format!("OUT={}", out.display()))
        .arg(&guest)
        .env_remove("MAKEFLAGS")
        .status()
        .expect("cannot run make; install it");
    assert!(
        status.success(),
        "cannot build the guest of mayfly demo; install a C compiler"
    );
}
