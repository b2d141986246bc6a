//! Tests of images in files.

mod arm64;
mod bzimage;
mod elf;
mod image;
mod robustness;
