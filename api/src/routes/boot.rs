//! The machine and its guest's image.

use super::{Call, Error};
use crate::http::{Method, Response};
use crate::schema::{BootSource, DEFAULT_BOOT_ARGS, Machine, MachineUpdate};

const MACHINE: &str = "Machine config";
const BOOT: &str = "Boot source";

/// Longest command line, in bytes: with its terminating NUL it has the 2048 of Linux.
const LONGEST: usize = 2047;

pub(crate) fn put_machine(call: &mut Call<'_>) -> Result<Response, Error> {
    let machine: Machine = call.read()?;
    let done = call.control.set_machine(machine.config());
    done.map_err(Error::of(MACHINE))?;
    Ok(templated(machine.cpu_template.is_some()))
}

pub(super) fn patch_machine(call: &mut Call<'_>) -> Result<Response, Error> {
    let update: MachineUpdate = call.read()?;
    if update.is_empty() {
        return Err(Error::Empty(Method::Patch));
    }
    let machine = update.apply(call.control.config());
    let done = call.control.set_machine(machine);
    done.map_err(Error::of(MACHINE))?;
    Ok(templated(update.cpu_template.is_some()))
}

/// Done; and Firecracker says that CPU templates will go.
fn templated(has_template: bool) -> Response {
    let response = Response::no_content();
    if has_template {
        response.deprecated()
    } else {
        response
    }
}

pub(crate) fn put_boot_source(call: &mut Call<'_>) -> Result<Response, Error> {
    let source: BootSource = call.read()?;
    call.before_start()?;
    let args = source.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned());
    check_args(&args)?;
    let done = call
        .control
        .set_boot(source.kernel_image_path, source.initrd_path, args);
    done.map_err(Error::of(BOOT))?;
    Ok(Response::no_content())
}

/// The start would fail by it, but then nobody remembers where it came from.
fn check_args(args: &str) -> Result<(), Error> {
    let wrong = if args.len() > LONGEST {
        format!(
            "boot_args has {} bytes, which is more than {LONGEST}: shorten it",
            args.len()
        )
    } else if let Some(letter) = args.chars().find(|letter| !matches!(letter, ' '..='~')) {
        format!("boot_args has {letter:?}: it can only have printable ASCII characters")
    } else {
        return Ok(());
    };
    Err(Error::refused(BOOT, wrong))
}
