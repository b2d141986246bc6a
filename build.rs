//! Builds the guest that `mayfly demo` boots, and has the linker follow resources/order.ld.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=resources/order.ld");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,resources/order.ld");
    println!("cargo:rerun-if-changed=resources/guests");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let guest = out.join("demo.elf");
    println!("cargo:rustc-env=MAYFLY_DEMO_GUEST={}", guest.display());
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        // The guests are x86_64 programs; elsewhere the demonstration says that it has none.
        fs::write(&guest, []).expect("OUT_DIR can be written");
        return;
    }
    let made = Command::new("make")
        .args(["--silent", "--directory", "resources/guests"])
        .arg(format!("OUT={}", out.display()))
        .arg(&guest)
        .env_remove("MAKEFLAGS")
        .status()
        .expect("make can be run: install the package make");
    assert!(
        made.success(),
        "the guest of mayfly demo cannot be built: is there a C compiler?"
    );
}
