//! `mayfly inspect`: what booting an image would do, and why.

use std::path::Path;
use std::process::ExitCode;

use vmm::arch::{Native, Platform};
use vmm::boot::Image;
use vmm::boot::image::Error;

/// Prints what is known of the image at `path`.
///
/// # Errors
/// [`Error`] when it is no image.
pub fn inspect(path: &Path) -> Result<ExitCode, Error> {
    let image = Image::open(path, Native::MACHINE)?;
    println!("{:?}", image.facts());
    Ok(ExitCode::SUCCESS)
}
