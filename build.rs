//! Builds the guest of `mayfly demo`, and passes resources/order.ld to the linker.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=resources/order.ld");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,resources/order.ld");
    println!("cargo:rerun-if-changed=resources/guests");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("OUT_DIR is unset; run by cargo"));
    let guest = out.join("demo.elf");
    println!("cargo:rustc-env=MAYFLY_DEMO_GUEST={}", guest.display());
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        // The guests are x86_64 programs. An empty file compiles; the demo then fails with an error about its image.
        fs::write(&guest, []).expect("cannot write to OUT_DIR");
        return;
    }
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
