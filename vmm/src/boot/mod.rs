//! Image formats and boot protocols.
//!
//! | module | contents |
//! |---|---|
//! | [`arm64`] | flat `Image` of arm64 |
//! | [`bzimage`] | Linux's compressed x86 kernel |
//! | [`cmdline`] | command line |
//! | [`elf`] | ELF, 32 and 64 bits wide, and its notes |
//! | [`mod@file`] | regular files and fields of their headers |
//! | [`image`] | [`Image`]: format, supported protocols, load into guest memory |
//! | [`initrd`] | [`Initrd`]: file that the guest finds in memory |
//! | [`multiboot`] | multiboot 1 headers |
//! | [`protocol`] | [`Protocol`], its support by an image, and [`LoadedImage`], the input of an architecture |
//! | [`segment`] | segments of an image: addresses, checks, load into guest memory |
//!
//! Threat model: images and initrds are untrusted. Each offset, length and count in them is compared with the size of the file
//! before its use, and allocations have fixed limits.

pub mod arm64;
pub mod bzimage;
pub mod cmdline;
pub mod elf;
pub mod file;
pub mod image;
pub mod initrd;
pub mod multiboot;
pub mod protocol;
pub mod segment;

pub use image::Image;
pub use initrd::Initrd;
pub use protocol::{LoadedImage, Protocol};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
