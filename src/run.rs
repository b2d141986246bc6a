//! `mayfly run`: boots an image.

use std::time::{Duration, Instant};

use vmm::arch::{Native, Platform};
use vmm::boot::{Image, Initrd};
use vmm::timeline::Lane;

use crate::cli::args::RunArgs;
use crate::cli::hints::OptionSet;
use crate::session::{Error, SessionSetup};

/// Boots an image and runs the VM to its end. Returns the exit status. `exec` is the processor time of the process before
/// `started_at`.
///
/// # Errors
/// [`Error`] if the VM cannot start, the event loop fails, or the trace cannot be written.
pub fn run(run: RunArgs, started_at: Instant, exec: Duration) -> Result<u8, Error> {
    let setup = SessionSetup::prepare(run.session, None, started_at)?;
    let image = setup
        .timeline()
        .measure(Lane::Main, "open image", || {
            Image::open(&run.config.kernel, Native::ARCHITECTURE)
        })
        .map_err(Error::Image)?;
    let initrd = run
        .config
        .initrd
        .as_deref()
        .map(Initrd::open)
        .transpose()
        .map_err(Error::Initrd)?;
    let config = run.config;
    setup.run(exec, OptionSet::Run, |control| {
        control.configure(config, image, initrd)?;
        control.start()?;
        Ok(())
    })
}
