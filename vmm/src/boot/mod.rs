//! Image formats and boot protocols.
//!
//! | module | holds |
//! |---|---|
//! | [`image`] | [`Image`]: a file, what it is, the protocols that it offers, and its way into guest memory |
//! | [`initrd`] | [`Initrd`]: a file that the guest finds in memory |
//! | [`protocol`] | [`Protocol`] and [`LoadedImage`], what an architecture needs to enter an image |
//! | [`elf`], [`notes`] | ELF, 32 and 64 bits wide, and its notes |
//! | [`offer`] | whether a protocol leads into an image, and why |
//! | [`bzimage`] | Linux's compressed x86 kernel |
//! | [`multiboot`] | multiboot 1 headers |
//! | [`foreign`] | what a file is that is no image |
//! | [`segment`], [`fit`], [`place`] | parts of an image: where they belong, whether they can be there, and how they get there |
//! | [`mod@file`] | files that are opened without hanging and read without trust |
//! | [`cmdline`] | the command line |
//!
//! Threat model: images and initrds are untrusted. No offset, length or count in them is believed before it has been
//! compared with what is there, and nothing is allocated by their say-so.

pub mod bzimage;
pub mod cmdline;
pub mod elf;
pub mod file;
pub mod fit;
pub mod foreign;
pub mod image;
pub mod initrd;
pub mod multiboot;
pub mod notes;
pub mod offer;
pub mod place;
pub mod protocol;
pub mod segment;

mod fields;

pub use image::Image;
pub use initrd::Initrd;
pub use protocol::{LoadedImage, Protocol};

#[cfg(test)]
pub(crate) mod testing;
