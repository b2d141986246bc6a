//! `mayfly run`: boots an image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmm::arch::{Native, Platform};
use vmm::boot::{self, Image, Initrd};
use vmm::timeline::Lane;

use crate::cli::args::RunArgs;
use crate::cli::hints::OptionSet;
use crate::measurement;
use crate::session::{Error, SessionSetup};

/// Boots an image and runs the VM to its end. Returns the exit status. `exec` is the processor time of the process before
/// `started_at`.
///
/// # Errors
/// [`Error`] if the VM cannot start, the event loop fails, or the trace would be written to another file of it.
pub fn run(mut run: RunArgs, started_at: Instant, exec: Duration) -> Result<u8, Error> {
    let inputs = || measurement::boot_files(&run.config);
    let setup = SessionSetup::prepare(run.session, None, &inputs, started_at)?;
    let image = setup
        .timeline()
        .measure(Lane::Main, "open image", || open_image(&mut run.config.kernel))
        .map_err(Error::Image)?;
    let initrd = run.config.initrd.as_mut().map(open_initrd);
    let initrd = initrd.transpose().map_err(Error::Initrd)?;
    let config = run.config;
    setup.run(exec, OptionSet::Run, |control| {
        control.configure(config, image, initrd)?;
        control.start()?;
        Ok(())
    })
}

/// Opens the image at `path`. Sets the path to the name of the image if mayfly-tools passes it.
fn open_image(path: &mut PathBuf) -> Result<Image, boot::image::Error> {
    match open_passed(path) {
        Some((name, file)) => {
            *path = name;
            Image::from_file(path, file, Native::ARCHITECTURE)
        }
        None => Image::open(path, Native::ARCHITECTURE),
    }
}

/// Opens the initrd at `path`, as [`open_image`] does.
fn open_initrd(path: &mut PathBuf) -> Result<Initrd, boot::initrd::Error> {
    match open_passed(path) {
        Some((name, file)) => {
            *path = name;
            Initrd::from_file(path, file)
        }
        None => Initrd::open(path),
    }
}

/// Opens a file of an OCI image, which mayfly-tools passes as a memfd. Returns also the name of the memfd: image and path. The number of
/// the descriptor has no meaning for the user, nor for a process that loads a snapshot of the VM.
fn open_passed(path: &Path) -> Option<(PathBuf, File)> {
    path.as_os_str()
        .as_encoded_bytes()
        .starts_with(b"/proc/self/fd/")
        .then(|| open_named(path))
        .flatten()
}

/// Not inlined: a start by a file maps all pages of its callers.
#[inline(never)]
fn open_named(path: &Path) -> Option<(PathBuf, File)> {
    let link = fs::read_link(path).ok()?;
    let name = link
        .to_str()?
        .strip_prefix("/memfd:")?
        .strip_suffix(" (deleted)")?;
    let is_image = name.starts_with("oci:") || name.starts_with("oci-archive:");
    let file = is_image.then(|| File::open(path).ok()).flatten()?;
    Some((name.into(), file))
}
