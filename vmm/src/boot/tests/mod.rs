//! Tests of images in files.

mod bzimage;
mod elf;
mod image;
mod robustness;
