//! Machine, image and command line.

use vmm::config::{self, DriveConfig};
use vmm::control::{self, MachineConfig};

use super::context::{RequestContext, no_content};
use super::error::Error;
use crate::http::{Method, Response};
use crate::schema::{
    BootSource, DEFAULT_BOOT_ARGS, MAX_BOOT_ARGS, MachineConfiguration, MachineConfigurationUpdate,
};

const MACHINE: &str = "Machine config";
const BOOT: &str = "Boot source";
/// Firecracker's sentence for SMT on aarch64.
const NO_SMT: &str = "Enabling simultaneous multithreading is not supported on aarch64.";
/// Firecracker's sentence for an invalid number of vCPUs.
const INVALID_VCPUS: &str = "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.";

pub(crate) fn put_machine(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let machine: MachineConfiguration = context.read()?;
    let has_template = machine.cpu_template.is_some();
    set_machine(context, machine.into_config()).map_err(Error::mark(has_template))?;
    // Firecracker deprecates CPU templates.
    Ok(no_content(has_template))
}

pub(super) fn patch_machine(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let update: MachineConfigurationUpdate = context.read()?;
    if update.is_empty() {
        return Err(Error::Empty(Method::Patch));
    }
    let has_template = update.cpu_template.is_some();
    let machine = update.apply(context.control.config());
    set_machine(context, machine).map_err(Error::mark(has_template))?;
    // Firecracker deprecates CPU templates.
    Ok(no_content(has_template))
}

/// Sets the machine. An error in `machine` is the reason to reject the request.
fn set_machine(
    context: &mut RequestContext<'_>,
    machine: Result<MachineConfig, String>,
) -> Result<(), Error> {
    let machine = machine.map_err(|reason| Error::rejected(MACHINE, reason))?;
    context
        .control
        .set_machine(machine)
        .map_err(|error| match error {
            control::Error::NoSmt => Error::rejected(MACHINE, NO_SMT),
            control::Error::Config(config::Error::OddVcpus(_)) => Error::rejected(MACHINE, INVALID_VCPUS),
            other => Error::of(MACHINE)(other),
        })?;
    if machine.smt && machine.vcpus > 1 {
        log::warn!(
            "api: the guest reads each two vCPUs as threads of one core (smt), but the kernel runs each vCPU on any processor; set the \
             affinity of the threads fc_vcpu to bind them"
        );
    }
    Ok(())
}

pub(crate) fn put_boot_source(context: &mut RequestContext<'_>) -> Result<Response, Error> {
    let BootSource {
        kernel_image_path,
        initrd_path,
        boot_args,
        kernel_protocol,
    } = context.read()?;
    context.before_start()?;
    let args = boot_args.unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned());
    let root = context
        .control
        .config()
        .drives()
        .find_map(DriveConfig::root_argument);
    check_args(&args, root)?;
    let protocol = kernel_protocol.map(Into::into);
    let result = context
        .control
        .set_boot(kernel_image_path, initrd_path, args, protocol);
    result.map_err(Error::of(BOOT))?;
    Ok(Response::no_content())
}

/// Checks the length of `args` together with `root`, the argument for the root drive. Returns the reason if they are
/// too long.
pub(super) fn too_long(args: &str, root: Option<String>) -> Option<String> {
    let length = args.len();
    let Some(root) = root else {
        let reason = format!("boot_args has {length} bytes, which is more than {MAX_BOOT_ARGS}; shorten it");
        return (length > MAX_BOOT_ARGS).then_some(reason);
    };
    // A space separates the two.
    let total = length + 1 + root.len();
    (total > MAX_BOOT_ARGS).then(|| {
        format!(
            "boot_args has {length} bytes, and {total} with {root:?} for the root drive, which is more than {MAX_BOOT_ARGS}; \
             shorten it"
        )
    })
}

/// Checks `args` early: otherwise the start would fail, or the guest would get a truncated command line.
fn check_args(args: &str, root: Option<String>) -> Result<(), Error> {
    let reason = if let Some(reason) = too_long(args, root) {
        reason
    } else if let Some(letter) = args.chars().find(|letter| !matches!(letter, ' '..='~')) {
        format!("boot_args has the character {letter:?}; use printable ASCII only")
    } else {
        return Ok(());
    };
    Err(Error::rejected(BOOT, reason))
}
