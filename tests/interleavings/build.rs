//! Selects the types of loom in `devices/src/sync.rs`, for this crate alone: no other crate needs a second build.

fn main() {
    println!("cargo:rustc-cfg=loom");
    println!("cargo:rerun-if-changed=build.rs");
}
