//! The machine and its guest's image.

use vmm::config::DriveConfig;

use super::{Error, RequestContext};
use crate::http::{Method, Response};
use crate::schema::{BootSource, DEFAULT_BOOT_ARGS, MachineConfiguration, MachineConfigurationUpdate};

const MACHINE: &str = "Machine config";
const BOOT: &str = "Boot source";

/// Longest command line, in bytes: with its terminating NUL it has the 2048 of Linux.
const MAX_BOOT_ARGS: usize = 2047;

pub(crate) fn put_machine(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let machine: MachineConfiguration = call.read()?;
    let done = call.control.set_machine(machine.config());
    done.map_err(Error::of(MACHINE))?;
    Ok(templated(machine.cpu_template.is_some()))
}

pub(super) fn patch_machine(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let update: MachineConfigurationUpdate = call.read()?;
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

pub(crate) fn put_boot_source(call: &mut RequestContext<'_>) -> Result<Response, Error> {
    let source: BootSource = call.read()?;
    call.before_start()?;
    let args = source.boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned());
    let root = call
        .control
        .config()
        .drives()
        .find_map(DriveConfig::root_argument);
    check_args(&args, root)?;
    let done = call
        .control
        .set_boot(source.kernel_image_path, source.initrd_path, args);
    done.map_err(Error::of(BOOT))?;
    Ok(Response::no_content())
}

/// Why `args` and `root`, what the guest is told of its root drive, are together too long.
pub(super) fn too_long(args: &str, root: Option<String>) -> Option<String> {
    let length = args.len();
    let Some(root) = root else {
        let reason = format!("boot_args has {length} bytes, which is more than {MAX_BOOT_ARGS}: shorten it");
        return (length > MAX_BOOT_ARGS).then_some(reason);
    };
    // A blank is between the two.
    let whole = length + 1 + root.len();
    (whole > MAX_BOOT_ARGS).then(|| {
        format!(
            "boot_args has {length} bytes, and {whole} with {root:?} for the root drive, which is more than {MAX_BOOT_ARGS}: \
             shorten it"
        )
    })
}

/// The start would fail by it, or the guest not see all of it, but then nobody remembers where it came from.
fn check_args(args: &str, root: Option<String>) -> Result<(), Error> {
    let wrong = if let Some(reason) = too_long(args, root) {
        reason
    } else if let Some(letter) = args.chars().find(|letter| !matches!(letter, ' '..='~')) {
        format!("boot_args has {letter:?}: it can only have printable ASCII characters")
    } else {
        return Ok(());
    };
    Err(Error::refused(BOOT, wrong))
}
