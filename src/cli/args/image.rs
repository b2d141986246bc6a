//! Images in OCI layouts as KERNEL of `mayfly run` and `mayfly inspect`, which mayfly-tools reads.

use std::ffi::{OsStr, OsString};

use vmm::config::DeviceConfig;

use super::run;

/// Beginnings of the names of such images.
const SCHEMES: [&str; 2] = ["oci:", "oci-archive:"];

/// Returns true if an argument of `mayfly run` or `mayfly inspect` may be the name of an image.
pub(super) fn is_named(arguments: &[OsString]) -> bool {
    let [command, rest @ ..] = arguments else {
        return false;
    };
    (command == "run" || command == "inspect") && rest.iter().any(|argument| is_image(argument))
}

fn is_image(argument: &OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    SCHEMES.iter().any(|scheme| bytes.starts_with(scheme.as_bytes()))
}

/// Returns the arguments of mayfly-tools, if KERNEL is the name of an image and the arguments are valid.
#[inline(never)]
pub(super) fn parse(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let (command, rest) = arguments.split_first()?;
    if command == "inspect" {
        return match rest {
            [name] if is_image(name) => Some(arguments.to_vec()),
            [dashes, name] if dashes == "--" && is_image(name) => Some(vec![command.clone(), name.clone()]),
            _ => None,
        };
    }
    let args = parse_run(rest.to_vec())?;
    let kernel = args.config.kernel.as_os_str();
    if !is_image(kernel) {
        return None;
    }
    // The value of an option may equal the name. Another KERNEL at its position is the KERNEL of the command.
    let position = (0..rest.len()).find(|&position| {
        let mut other = rest.to_vec();
        other[position] = "kernel".into();
        rest[position] == kernel
            && parse_run(other).is_some_and(|args| args.config.kernel.as_os_str() == "kernel")
    })?;
    let has_disk = args
        .config
        .devices
        .iter()
        .any(|device| matches!(device, DeviceConfig::Drive(_)));
    let replaced = [
        (args.config.initrd.is_some(), "initrd"),
        (has_disk, "disk"),
        (args.has_guest_arguments, "arguments"),
    ];
    let replaced: Vec<_> = replaced
        .into_iter()
        .filter_map(|(is_given, name)| is_given.then_some(name))
        .collect();
    let mut arguments: Vec<OsString> = vec![
        "run".into(),
        position.to_string().into(),
        replaced.join(",").into(),
    ];
    arguments.extend_from_slice(rest);
    Some(arguments)
}

fn parse_run(arguments: Vec<OsString>) -> Option<Box<run::RunArgs>> {
    run::parse(&mut lexopt::Parser::from_args(arguments)).ok()?
}

#[cfg(test)]
mod tests {
    use super::super::{Command, parse};

    /// Returns the arguments of mayfly-tools.
    fn tools(line: &str) -> Option<String> {
        match parse("mayfly".as_ref(), line.split(' ').map(Into::into)) {
            Ok(Command::Sibling("mayfly-tools", arguments)) => {
                let texts: Vec<_> = arguments
                    .iter()
                    .map(|argument| argument.to_str().unwrap())
                    .collect();
                Some(texts.join(" "))
            }
            _ => None,
        }
    }

    #[test]
    fn image_is_passed_with_its_position() {
        for (line, expected) in [
            ("run oci:a", "run 0  oci:a"),
            (
                "run -m 64M oci-archive:a:v1 --cpus 2",
                "run 2  -m 64M oci-archive:a:v1 --cpus 2",
            ),
            (
                "run --initrd oci:a oci:a --",
                "run 2 initrd,arguments --initrd oci:a oci:a --",
            ),
            (
                "run oci:a --disk d -- oci:a",
                "run 0 disk,arguments oci:a --disk d -- oci:a",
            ),
            ("inspect oci:a", "inspect oci:a"),
            ("inspect -- oci:a", "inspect oci:a"),
        ] {
            assert_eq!(tools(line).as_deref(), Some(expected), "{line}");
        }
    }

    #[test]
    fn other_kernels_stay_with_mayfly() {
        for line in [
            "run ./oci:a",
            "run k --initrd oci:a",
            "run k -- oci:a",
            "run oci:a --help",
            "run oci:a b",
            "run oci:a --bogus",
            "inspect oci:a b",
            "inspect --help oci:a",
        ] {
            assert_eq!(tools(line), None, "{line}");
        }
    }
}
