//! Error messages with the options that govern them.
//!
//! The libraries state values and requirements; they have no options. [`describe`] follows the causes of an error, and adds the
//! option behind each cause that an option governs: `cannot create 33 vCPUs: a VM has 1 to 32 (--cpus N)`.

use std::error::Error;
use std::fmt::Write as _;

use devices::virtio::block::disk;
use devices::virtio::net::{passt, stream, tap};
use vmm::boot::segment::LayoutError;
use vmm::boot::{cmdline, image, initrd};
use vmm::config::{Conflict, DeviceKind};
use vmm::control::{
    CrashDirectoryError, FirstFramesError, GenerationError, LoadSnapshotError, NameError, ScaleToZeroError,
    UnnamedDevice,
};
use vmm::debugger::ListenError;
use vmm::machine::{self, state::StateError};
use vmm::vcpu::VcpuError;
use vmm::{config, control, kvm, memory};

use crate::cli::args::{CORE_ON_CRASH, GDB_PUBLIC};
use crate::printable::printable;

/// The options that a user can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionSet {
    /// Those of `mayfly run`.
    Run,
    /// Those of `mayfly restore`.
    Restore,
    /// None: the configuration comes from an API request or a file, or is fixed.
    None,
}

/// Returns `error` and its causes in one line, each with the option of `options` that governs it.
pub fn describe(error: &(dyn Error + 'static), options: OptionSet) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{error}");
        let cause = skip_transparent(error);
        let hint = match options {
            OptionSet::Run => run_option(cause).or_else(|| session_option(cause)),
            OptionSet::Restore => restore_option(cause).or_else(|| session_option(cause)),
            OptionSet::None => None,
        };
        if let Some(hint) = hint {
            let _ = write!(text, " ({hint})");
        }
        next = error.source();
    }
    printable(&text)
}

/// Returns the error inside of transparent variants: those have its text and its cause, but are of another type.
fn skip_transparent<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let inner: &'a (dyn Error + 'static) = if let Some(error) = error.downcast_ref() {
        match error {
            control::Error::Image(error) => error,
            control::Error::Initrd(error) => error,
            control::Error::Device(error) => error,
            control::Error::Machine(error) => error,
            _ => return error,
        }
    } else if let Some(error) = error.downcast_ref() {
        match error {
            LoadSnapshotError::Device(error) => error,
            LoadSnapshotError::Machine(error) | LoadSnapshotError::Resume(error) => error,
            LoadSnapshotError::Name(error) => error,
            LoadSnapshotError::FirstFrames(error) => error,
            _ => return error,
        }
    } else if let Some(error) = error.downcast_ref() {
        match error {
            machine::Error::Image(error) => error,
            machine::Error::Initrd(error) => error,
            machine::Error::Parts(error) => error,
            _ => return error,
        }
    } else if let Some(ScaleToZeroError::Directory(error)) = error.downcast_ref() {
        error
    } else {
        return error;
    };
    skip_transparent(inner)
}

/// Returns the option of `mayfly run` that governs `error`.
fn run_option(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<config::Error>() {
        return config_option(error).map(str::to_owned);
    }
    if let Some(kvm::Error::Vcpus { limit, .. }) = error.downcast_ref() {
        return Some(format!("--cpus {limit}"));
    }
    if let Some(LayoutError::MemoryTooSmall { sufficient_mib, .. }) = error.downcast_ref() {
        return Some(format!("--memory {sufficient_mib}M"));
    }
    if let Some(initrd::Error::MemoryTooSmall { sufficient_mib, .. }) = error.downcast_ref() {
        return Some(format!("--memory {sufficient_mib}M"));
    }
    let option = if let Some(initrd::Error::TooLarge { .. }) = error.downcast_ref() {
        "--initrd FILE"
    } else if let Some(image::Error::UnsupportedProtocol { .. } | image::Error::OnlyMultiboot2 { .. }) =
        error.downcast_ref()
    {
        "--protocol NAME"
    } else if let Some(error) = error.downcast_ref() {
        match error {
            VcpuError::Entry { .. } => "--protocol NAME",
            VcpuError::Internal { suberror, .. } if *suberror != EMULATION => "--protocol NAME",
            _ => return None,
        }
    } else if let Some(memory::Error::Reserve { .. }) = error.downcast_ref() {
        "--memory SIZE"
    } else if let Some(error) = error.downcast_ref() {
        match error {
            cmdline::Error::Byte { .. } => "arguments after --",
            cmdline::Error::TooLong { added: 0, .. } => "arguments after --",
            cmdline::Error::TooLong { .. } => "arguments after --, --no-device-arguments",
        }
    } else if let Some(disk::Error::NotWritable(_) | disk::Error::ReadOnly(_)) = error.downcast_ref() {
        "--disk PATH,ro"
    } else if error.is::<disk::Error>() {
        "--disk PATH"
    } else if is_backend_error(error) {
        "--net BACKEND"
    } else {
        return None;
    };
    Some(option.to_owned())
}

/// `KVM_INTERNAL_ERROR_EMULATION`: KVM cannot emulate an instruction, which no protocol changes.
const EMULATION: u32 = 1;

/// Returns the option of `mayfly run` that sets the invalid part of the configuration.
fn config_option(error: &config::Error) -> Option<&'static str> {
    Some(match error {
        config::Error::Vcpus(_) | config::Error::OddVcpus(_) => "--cpus N",
        config::Error::MemoryTooSmall(_) | config::Error::MemoryBeyondHost { .. } => "--memory SIZE",
        config::Error::Devices(_) => "--disk, --net",
        config::Error::DuplicateId { kind, .. } => match kind {
            DeviceKind::Drive => "--disk PATH,id=NAME",
            DeviceKind::Interface => "--net BACKEND,id=NAME",
        },
        config::Error::Conflict(Conflict::Mac(_)) => "--net BACKEND,mac=ADDRESS",
        config::Error::Conflict(Conflict::Ip(_)) => "--net BACKEND,ip=ADDRESS",
        config::Error::Conflict(Conflict::Descriptor(_)) => "--net fd:NUMBER",
        config::Error::Conflict(Conflict::Forwards(..)) => "--net user,tcp=PORT,udp=PORT",
        config::Error::Conflict(Conflict::Root) => return None,
    })
}

/// Returns the option of `mayfly restore`, or the other command, that governs `error`.
fn restore_option(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(NameError::Unnamed(devices)) = error.downcast_ref() {
        let options: Vec<_> = devices.iter().map(backend_option).collect();
        return Some(options.join(" "));
    }
    let option = if let Some(StateError::Unsupported { .. }) = error.downcast_ref() {
        "--mask-cpu"
    } else if let Some(error) = error.downcast_ref() {
        match error {
            LoadSnapshotError::Diff(_) => "mayfly snapshot-merge",
            LoadSnapshotError::Changed(_) => "--disk ID=PATH, --ignore-drive-changes",
            LoadSnapshotError::Unknown { kind, .. } => match kind {
                DeviceKind::Drive => "--disk ID=PATH",
                DeviceKind::Interface => "--net ID=BACKEND",
            },
            _ => return None,
        }
    } else if let Some(NameError::Writable(_)) = error.downcast_ref() {
        "--disk ID=PATH without ,ro"
    } else if error.is::<FirstFramesError>() {
        "--first-frames ID=FD"
    } else if error.is::<disk::Error>() {
        "--disk ID=PATH"
    } else if is_backend_error(error) {
        "--net ID=BACKEND"
    } else {
        return None;
    };
    Some(option.to_owned())
}

/// Returns the option of `mayfly run` and `mayfly restore` alike that governs `error`.
fn session_option(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(CrashDirectoryError { .. }) = error.downcast_ref() {
        return Some(format!("{CORE_ON_CRASH} DIR"));
    }
    if let Some(ListenError::Public(_)) = error.downcast_ref() {
        return Some(GDB_PUBLIC.to_owned());
    }
    match error.downcast_ref()? {
        GenerationError::Directory { .. } | GenerationError::InUse(_) => Some("--suspend-to DIR".to_owned()),
        _ => None,
    }
}

/// Returns the option of `mayfly restore` that names the host side of `device`.
fn backend_option(device: &UnnamedDevice) -> String {
    match device.kind {
        DeviceKind::Drive => format!("--disk {}=PATH", device.id),
        DeviceKind::Interface => format!("--net {}=BACKEND", device.id),
    }
}

fn is_backend_error(error: &(dyn Error + 'static)) -> bool {
    error.is::<tap::Error>() || error.is::<stream::Error>() || error.is::<passt::Error>()
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use devices::virtio::block::{Error as DriveError, disk};
    use devices::virtio::net::tap;
    use vmm::boot::segment::LayoutError;
    use vmm::boot::{Protocol, cmdline, image, initrd};
    use vmm::config::{self, Conflict, DeviceKind, MemorySize};
    use vmm::control::{self, LoadSnapshotError, NameError, UnnamedDevice};
    use vmm::memory::Bytes;
    use vmm::vcpu::VcpuError;
    use vmm::{kvm, machine};

    use super::{OptionSet, StateError, describe};

    /// Expects `option` in the message of `error`, and no other difference to the message without options.
    fn expect_option(error: &(dyn Error + 'static), options: OptionSet, option: &str) {
        let text = describe(error, options);
        assert!(text.contains(&format!(" ({option})")), "{text} has no {option}");
        let plain = text.replacen(&format!(" ({option})"), "", 1);
        assert_eq!(plain, describe(error, OptionSet::None));
    }

    fn layout() -> image::Error {
        image::Error::Layout {
            path: "k".into(),
            source: LayoutError::MemoryTooSmall {
                number: 1,
                range: 0..1,
                memory: Bytes(0),
                sufficient_mib: 64,
            },
        }
    }

    #[test]
    fn configuration_error_names_its_option() {
        let duplicate = |kind| config::Error::DuplicateId { kind, id: "a".into() };
        for (error, option) in [
            (config::Error::Vcpus(33), "--cpus N"),
            (config::Error::Devices(19), "--disk, --net"),
            (duplicate(DeviceKind::Drive), "--disk PATH,id=NAME"),
            (duplicate(DeviceKind::Interface), "--net BACKEND,id=NAME"),
            (
                config::Error::Conflict(Conflict::Mac("02:00:00:00:00:01".parse().unwrap())),
                "--net BACKEND,mac=ADDRESS",
            ),
            (
                config::Error::Conflict(Conflict::Descriptor(5)),
                "--net fd:NUMBER",
            ),
            (
                config::Error::MemoryTooSmall(MemorySize::from_bytes(0)),
                "--memory SIZE",
            ),
        ] {
            expect_option(&control::Error::Config(error), OptionSet::Run, option);
        }
    }

    #[test]
    fn transparent_variant_stands_for_its_cause() {
        let path = || "k".into();
        let unsupported = image::Error::UnsupportedProtocol {
            path: path(),
            protocol: Protocol::Pvh,
            reason: "r".into(),
            supported: "s".into(),
        };
        let small = initrd::Error::MemoryTooSmall {
            path: path(),
            size: Bytes(1),
            image_end: 1,
            memory_end: 2,
            sufficient_mib: 96,
        };
        let vcpus = kvm::Error::Vcpus {
            requested: 9,
            limit: 4,
        };
        let arguments = cmdline::Error::TooLong {
            length: 9,
            added: 3,
            limit: 8,
        };
        for (error, option) in [
            (control::Error::Image(unsupported), "--protocol NAME"),
            (control::Error::Image(layout()), "--memory 64M"),
            (
                control::Error::Machine(machine::Error::Image(layout())),
                "--memory 64M",
            ),
            (
                control::Error::Machine(machine::Error::Initrd(small)),
                "--memory 96M",
            ),
            (
                control::Error::Machine(machine::Error::Parts(machine::PartsError::Kvm(vcpus))),
                "--cpus 4",
            ),
            (
                control::Error::Machine(machine::Error::CommandLine(arguments)),
                "arguments after --, --no-device-arguments",
            ),
        ] {
            expect_option(&error, OptionSet::Run, option);
        }
    }

    #[test]
    fn device_error_names_option_of_its_command() {
        let drive = || DriveError::Disk {
            id: "root".into(),
            source: disk::Error::Missing("d".into()),
        };
        let interface = || machine::DeviceError::Tap("eth0".into(), tap::Error::Name("a b".into()));
        let run = [
            (machine::DeviceError::Drive(drive()), "--disk PATH"),
            (interface(), "--net BACKEND"),
        ];
        for (error, option) in run {
            expect_option(&control::Error::Device(error), OptionSet::Run, option);
        }
        let restore = [
            (machine::DeviceError::Drive(drive()), "--disk ID=PATH"),
            (interface(), "--net ID=BACKEND"),
        ];
        for (error, option) in restore {
            expect_option(&LoadSnapshotError::Device(error), OptionSet::Restore, option);
        }
        for (kind, option) in [
            (DeviceKind::Drive, "--disk ID=PATH"),
            (DeviceKind::Interface, "--net ID=BACKEND"),
        ] {
            let unknown = LoadSnapshotError::Unknown {
                kind,
                id: "a".into(),
                known: "none".into(),
            };
            expect_option(&unknown, OptionSet::Restore, option);
        }
        let unnamed = |kind, id: &str| UnnamedDevice {
            kind,
            id: id.into(),
            backend: "/victim, read-write".into(),
        };
        let unnamed = NameError::Unnamed(vec![
            unnamed(DeviceKind::Drive, "root"),
            unnamed(DeviceKind::Interface, "eth0"),
        ]);
        expect_option(
            &LoadSnapshotError::Name(unnamed),
            OptionSet::Restore,
            "--disk root=PATH --net eth0=BACKEND",
        );
        let writable = LoadSnapshotError::Name(NameError::Writable("root".into()));
        expect_option(&writable, OptionSet::Restore, "--disk ID=PATH without ,ro");
        let unsupported = LoadSnapshotError::Restore(machine::state::Error::Vcpu {
            id: 0,
            source: StateError::Unsupported {
                component: "vcpu",
                reason: "r".into(),
            },
        });
        assert!(unsupported.can_mask_cpu());
        expect_option(&unsupported, OptionSet::Restore, "--mask-cpu");
        let diff = LoadSnapshotError::Diff("memory".into());
        expect_option(&diff, OptionSet::Restore, "mayfly snapshot-merge");
    }

    #[test]
    fn error_without_option_is_unchanged() {
        let open = kvm::Error::Open(io::ErrorKind::Other.into());
        let error = control::Error::Machine(machine::Error::Parts(machine::PartsError::Kvm(open)));
        for options in [OptionSet::Run, OptionSet::Restore] {
            assert_eq!(describe(&error, options), vmm::ErrorChain(&error).to_string());
        }
        let text = describe(
            &control::Error::Config(config::Error::Vcpus(0)),
            OptionSet::Restore,
        );
        assert!(!text.contains("--"), "{text}");
    }

    #[test]
    fn vcpu_error_names_protocol_unless_emulation_failed() {
        let internal = |suberror| VcpuError::Internal {
            suberror,
            at: Box::default(),
            hint: "",
        };
        expect_option(&internal(2), OptionSet::Run, "--protocol NAME");
        let emulation = internal(super::EMULATION);
        assert_eq!(
            describe(&emulation, OptionSet::Run),
            describe(&emulation, OptionSet::None)
        );
    }
}
