//! mayfly-tools: the commands of mayfly that start no VM, executed by `mayfly core`, `mayfly ctl` and `mayfly doctor`, and the images of
//! `mayfly run oci:…` and `mayfly inspect oci:…`.
//!
//! | module | contents |
//! |---|---|
//! | `core_dump` | ELF cores of VMs |
//! | `ctl` | requests to the API of a running mayfly |
//! | `doctor` | needs of mayfly that this host meets or lacks |
//! | `help` | help texts |
//! | `image` | images of OCI layouts |
//! | `sys` | system calls that query the host |

#[cfg(not(test))]
#[path = "../allocator.rs"]
mod allocator;
mod core_dump;
mod ctl;
mod doctor;
mod help;
mod image;
#[path = "../inspect.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod inspect;
#[path = "../logging/mod.rs"]
#[allow(dead_code, unused_imports, reason = "mayfly uses the rest")]
mod logging;
#[path = "../output.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod output;
#[path = "../printable.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod printable;
#[path = "../process.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod process;
#[path = "../sibling.rs"]
#[allow(dead_code, reason = "mayfly uses the rest")]
mod sibling;
mod sys;
#[path = "../terminal/mod.rs"]
#[allow(dead_code, unused_imports, reason = "mayfly uses the rest")]
mod terminal;
#[path = "../vm_client.rs"]
mod vm_client;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

/// Exit status of a usage error.
const USAGE: u8 = 2;

/// Failure of a command.
#[derive(Debug)]
struct Failure {
    message: String,
    status: u8,
}

fn main() -> ExitCode {
    #[cfg(not(test))]
    process::initialize();
    logging::start();
    match command(std::env::args_os().skip(1)) {
        Ok(status) => ExitCode::from(status),
        Err(Failure { message, status }) => {
            logging::print_message(&message);
            ExitCode::from(status)
        }
    }
}

/// Executes a command and returns its exit status.
fn command(arguments: impl IntoIterator<Item = OsString>) -> Result<u8, Failure> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(result) = image_command(&arguments) {
        return result;
    }
    let mut parser = lexopt::Parser::from_args(arguments);
    let word = match parser.next() {
        Ok(Some(lexopt::Arg::Value(word))) => word.to_string_lossy().into_owned(),
        Ok(Some(lexopt::Arg::Short('h') | lexopt::Arg::Long("help"))) => return print(help::TOOLS),
        Ok(None) => return Err(usage("missing command; run mayfly --help".into())),
        Ok(Some(other)) => return Err(usage(format!("{}; run mayfly --help", other.unexpected()))),
        Err(error) => return Err(usage(format!("{error}; run mayfly --help"))),
    };
    match word.as_str() {
        "core" => match core_dump::parse(&mut parser).map_err(|error| usage(error.to_string()))? {
            None => print(help::CORE),
            Some(args) => core_dump::create(&args)
                .map(|()| process::SUCCESS)
                .map_err(|error| Failure {
                    message: output::chain(&error),
                    status: process::FAILURE,
                }),
        },
        "ctl" => match ctl::args::parse(&mut parser).map_err(|error| usage(error.to_string()))? {
            None => print(help::CTL),
            Some(ctl) => output::print_result(ctl::run(&ctl, &mut io::stdin())).map_err(|message| Failure {
                message,
                status: process::FAILURE,
            }),
        },
        "doctor" => match doctor::parse(&mut parser).map_err(|error| usage(error.to_string()))? {
            None => print(help::DOCTOR),
            Some(format) => {
                let report = doctor::examine();
                print(&report.text(format)).map(|_| report.status())
            }
        },
        _ => Err(usage(format!("{word:?} is not a command; run mayfly --help"))),
    }
}

/// Executes a command with an image, if `arguments` are one.
fn image_command(arguments: &[OsString]) -> Option<Result<u8, Failure>> {
    let failure = |error: &image::CommandError| Failure {
        message: output::chain(error),
        status: if error.is_usage() { USAGE } else { process::FAILURE },
    };
    match (arguments.first()?.to_str()?, &arguments[1..]) {
        ("run", rest) => Some(match image::args::RunArgs::parse(rest.to_vec()) {
            Ok(args) => Err(failure(&image::run(&args))),
            Err(error) => Err(usage(error.to_string())),
        }),
        ("inspect", [name]) => Some(match image::inspect(name) {
            Ok(text) => print(&text),
            Err(error) => Err(failure(&error)),
        }),
        _ => None,
    }
}

fn usage(message: String) -> Failure {
    Failure {
        message: printable::printable(&message),
        status: USAGE,
    }
}

fn print(text: &str) -> Result<u8, Failure> {
    output::print(text).map_err(|message| Failure {
        message,
        status: process::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::{USAGE, command};
    use crate::process::FAILURE;

    #[test]
    fn help_is_accepted_anywhere() {
        for line in [
            "ctl --help",
            "ctl drive --help",
            "ctl status -h",
            "doctor --help",
            "doctor --json -h",
            "--help",
        ] {
            let status = command(line.split_whitespace().map(Into::into)).unwrap();
            assert_eq!(status, 0, "{line}");
        }
    }

    #[test]
    fn usage_errors_name_the_argument() {
        for (line, text) in [
            ("", "missing command; run mayfly --help"),
            ("fix", "\"fix\" is not a command; run mayfly --help"),
            (
                "core --api-sock /s x y",
                "both DIR and --api-sock are given: usage: mayfly core DIR|--api-sock SOCKET FILE; run mayfly core --help",
            ),
            (
                "core --api-sock /s --api-sock /t x",
                "--api-sock is given twice: usage: mayfly core DIR|--api-sock SOCKET FILE; run mayfly core --help",
            ),
            ("--fast", "invalid option '--fast'; run mayfly --help"),
            (
                "doctor --fast",
                "invalid option '--fast'; run mayfly doctor --help",
            ),
            ("doctor x", "unexpected argument \"x\"; run mayfly doctor --help"),
            ("ctl", "missing command, such as status; run mayfly ctl --help"),
            (
                "ctl no-such",
                "\"no-such\" is not a command of mayfly ctl; run mayfly ctl --help",
            ),
        ] {
            let failure = command(line.split_whitespace().map(Into::into)).unwrap_err();
            assert_eq!((failure.message.as_str(), failure.status), (text, 2), "{line}");
        }
    }

    #[test]
    fn malformed_name_of_image_is_usage_error() {
        for (line, status) in [
            (&["inspect", "oci:"][..], USAGE),
            (&["inspect", "oci:no@sha256:1"], USAGE),
            (&["run", "0", "", "oci:/:"], USAGE),
            (&["inspect", "oci:/no:v1"], FAILURE),
            (&["inspect", "oci:/:v1"], FAILURE),
        ] {
            let failure = command(line.iter().map(Into::into)).unwrap_err();
            assert_eq!(failure.status, status, "{line:?}: {}", failure.message);
        }
    }
}
