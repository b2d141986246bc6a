//! Builds the guest of `mayfly demo`, compiles the seccomp filters, passes resources/order.ld to the linker, and requests a map of
//! the program.

#[path = "src/filters/source.rs"]
mod source;
#[path = "src/filters/tree.rs"]
mod tree;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(clippy::disallowed_methods, reason = "make is the only work of this script")]
fn main() {
    println!("cargo::rerun-if-changed=resources/order.ld");
    // The other programs, mayfly-standby and mayfly-tools, have other functions at their start.
    println!("cargo::rustc-link-arg-bin=mayfly=-Wl,-T,resources/order.ld");
    println!("cargo::rerun-if-changed=resources/guests");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("OUT_DIR is unset; build with cargo"));
    // Beside the program, where `make order` and tests/order.rs find it: OUT_DIR is PROFILE/build/mayfly-HASH/out.
    let profile = out.ancestors().nth(3).expect("OUT_DIR has no profile directory");
    println!(
        "cargo::rustc-link-arg-bin=mayfly=-Wl,-Map={}",
        profile.join("mayfly.map").display()
    );
    let architecture =
        env::var("CARGO_CFG_TARGET_ARCH").expect("CARGO_CFG_TARGET_ARCH is unset; build with cargo");
    compile_filters(&architecture, &out);
    println!("cargo::rerun-if-changed=resources/discard.ld");
    // The start code of GCC for aarch64 refers to the tables.
    if architecture == "x86_64" && env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,resources/discard.ld");
    }
    // On aarch64 there is one for each memory map.
    let guest = out.join(match architecture.as_str() {
        "aarch64" => "fc/demo.elf",
        _ => "demo.elf",
    });
    println!("cargo::rustc-env=MAYFLY_DEMO_GUEST={}", guest.display());
    // Without the flags of an outer make, such as --dry-run.
    let status = Command::new("make")
        .args(["--silent", "--directory", "resources/guests"])
        .arg(format!("OUT={}", out.display()))
        .arg(format!("ARCH={architecture}"))
        .arg(&guest)
        .env_remove("MAKEFLAGS")
        .status()
        .expect("cannot run make; install it");
    assert!(
        status.success(),
        "cannot build the guest of mayfly demo; install a C compiler"
    );
}

/// Writes the filters of `architecture` as statics to `filters.rs` in `out`.
fn compile_filters(architecture: &str, out: &Path) {
    let path = format!("resources/seccomp/{architecture}.json");
    println!("cargo::rerun-if-changed={path}");
    println!("cargo::rerun-if-changed=src/filters");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    let mut code = format!(
        "static PROGRAMS: [&[libc::sock_filter]; {}] = [\n",
        source::ROLES.len()
    );
    for role in source::ROLES {
        code.push_str("&[\n");
        for tree::Instruction {
            code: operation,
            jt,
            jf,
            k,
        } in source::tree(&text, role, architecture)
        {
            writeln!(
                code,
                "libc::sock_filter {{ code: {operation}, jt: {jt}, jf: {jf}, k: {k} }},"
            )
            .expect("a string takes all text");
        }
        code.push_str("],\n");
    }
    code.push_str("];\n");
    fs::write(out.join("filters.rs"), code).expect("cannot write filters.rs to OUT_DIR");
}
