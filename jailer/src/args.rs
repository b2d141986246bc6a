//! Command line of Firecracker's jailer, with `--force`, `--pass-fd` and `--plain-arguments`.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use lexopt::Arg;

/// Default directory of all jails.
const BASE: &str = "/srv/jailer";
/// Default maximum of open files.
const OPEN_FILES: u64 = 2048;
/// Maximum length of an ID.
const MAX_ID: usize = 64;

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Start a VMM in a jail.
    Jail(Box<Args>),
    /// Print the help text.
    Help,
    /// Print the version.
    Version,
}

/// Arguments of a jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// Name of the jail.
    pub id: String,
    /// Program of the VMM.
    pub exec_file: PathBuf,
    /// User of the VMM.
    pub uid: u32,
    /// Group of the VMM.
    pub gid: u32,
    /// Directory of all jails.
    pub base: PathBuf,
    /// Network namespace to join.
    pub netns: Option<PathBuf>,
    /// The VMM gets a session of its own.
    pub daemonize: bool,
    /// The VMM gets a PID namespace.
    pub new_pid_ns: bool,
    /// Files and values of the cgroup.
    pub cgroups: Vec<Setting>,
    /// Version of the cgroup hierarchy.
    pub cgroup_version: u8,
    /// Components of the path of the parent cgroup.
    pub parent_cgroup: Option<Vec<String>>,
    /// Maximum size of a written file in bytes.
    pub file_size: Option<u64>,
    /// Maximum number of open files.
    pub open_files: u64,
    /// Remove the files of an earlier VMM that has ended.
    pub force: bool,
    /// Inherited descriptors of the VMM.
    pub passed: Vec<i32>,
    /// The VMM gets no argument of the jailer.
    pub plain_arguments: bool,
    /// Arguments of the VMM.
    pub rest: Vec<OsString>,
}

/// A file of a cgroup and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name of the file.
    pub file: String,
    /// Value to write.
    pub value: String,
}

impl Setting {
    /// Returns the controller, which is the first part of the file's name.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// Usage error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The argument is unknown.
    #[error("{0:?} is not an option; run mayfly-jailer --help, and put arguments of the VMM behind --")]
    Unknown(String),
    /// An option is given twice.
    #[error("--{0} is given twice; remove one")]
    Twice(&'static str),
    /// An option has no value.
    #[error("missing value: --{0} VALUE")]
    NoValue(&'static str),
    /// A required option is missing.
    #[error("--{0} is missing; run mayfly-jailer --help")]
    Missing(&'static str),
    /// A flag has a value.
    #[error("--{0} takes no value; remove it")]
    UnexpectedValue(&'static str),
    /// The value is invalid for its option.
    #[error("--{option} {value:?}: {reason}")]
    Value {
        /// The option.
        option: &'static str,
        /// The given value.
        value: String,
        /// Description of valid values.
        reason: &'static str,
    },
}

/// Options with a value.
const VALUED: [&str; 11] = [
    "id",
    "exec-file",
    "uid",
    "gid",
    "chroot-base-dir",
    "netns",
    "cgroup",
    "cgroup-version",
    "parent-cgroup",
    "resource-limit",
    PASS_FD,
];
/// Option with a descriptor of the VMM.
const PASS_FD: &str = "pass-fd";
/// Options that may be repeated.
const REPEATED: [&str; 3] = ["cgroup", "resource-limit", PASS_FD];
/// Options without a value.
const PLAIN: [&str; 4] = ["daemonize", "new-pid-ns", "force", "plain-arguments"];

/// Values of the options, before the required ones are checked.
#[derive(Default)]
struct Given {
    id: Option<String>,
    exec_file: Option<PathBuf>,
    uid: Option<u32>,
    gid: Option<u32>,
    base: Option<PathBuf>,
    netns: Option<PathBuf>,
    cgroups: Vec<Setting>,
    cgroup_version: Option<u8>,
    parent_cgroup: Option<Vec<String>>,
    file_size: Option<u64>,
    open_files: Option<u64>,
    passed: Vec<i32>,
    names: Vec<&'static str>,
}

/// Returns the descriptors of `--pass-fd` in the arguments before the VMM's, as far as they are valid: they must stay open until
/// [`parse`], which rejects the others.
pub fn passed(arguments: &[OsString]) -> Vec<i32> {
    let own = arguments.iter().take_while(|argument| *argument != "--");
    let texts: Vec<&str> = own.filter_map(|argument| argument.to_str()).collect();
    let separate = texts
        .windows(2)
        .filter(|pair| pair[0] == "--pass-fd")
        .map(|pair| pair[1]);
    let joined = texts.iter().filter_map(|text| text.strip_prefix("--pass-fd="));
    separate
        .chain(joined)
        .filter_map(|text| parse_descriptor(text).ok())
        .collect()
}

fn parse_descriptor(text: &str) -> Result<i32, &'static str> {
    let number = text.parse().ok().filter(|number| *number > 2);
    number.ok_or("expected the number of an open descriptor above 2")
}

/// Parses the arguments, without the name of the program.
///
/// # Errors
/// [`Error`] on a usage error.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Command, Error> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let separator = arguments.iter().position(|argument| argument == "--");
    let rest = separator
        .map(|start| arguments.split_off(start))
        .unwrap_or_default();
    // As in Firecracker, both flags take effect even if other arguments are invalid.
    if arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h")
    {
        return Ok(Command::Help);
    }
    if arguments.iter().any(|argument| argument == "--version") {
        return Ok(Command::Version);
    }
    let mut given = Given::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|error| Error::Unknown(error.to_string()))? {
        let (name, shown) = match argument {
            Arg::Long(name) => (name.to_owned(), format!("--{name}")),
            Arg::Short(name) => (String::new(), format!("-{name}")),
            Arg::Value(value) => (String::new(), value.to_string_lossy().into_owned()),
        };
        let known = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
        if let Some(option) = known(&PLAIN) {
            if parser.optional_value().is_some() {
                return Err(Error::UnexpectedValue(option));
            }
            given.add(option)?;
        } else if let Some(option) = known(&VALUED) {
            let value = parser.value().map_err(|_| Error::NoValue(option))?;
            if value.as_encoded_bytes().starts_with(b"--") {
                return Err(Error::NoValue(option));
            }
            given.add(option)?;
            given.set(option, &value)?;
        } else {
            return Err(Error::Unknown(shown));
        }
    }
    given.complete(rest.into_iter().skip(1).collect())
}

impl Given {
    /// Notes that `option` is given.
    fn add(&mut self, option: &'static str) -> Result<(), Error> {
        if self.names.contains(&option) && !REPEATED.contains(&option) {
            return Err(Error::Twice(option));
        }
        self.names.push(option);
        Ok(())
    }

    fn set(&mut self, option: &'static str, value: &OsStr) -> Result<(), Error> {
        let invalid = |reason| Error::Value {
            option,
            value: value.to_string_lossy().into_owned(),
            reason,
        };
        let text = || value.to_str().ok_or_else(|| invalid("expected UTF-8"));
        match option {
            "exec-file" => self.exec_file = Some(value.into()),
            "chroot-base-dir" => self.base = Some(value.into()),
            "netns" => self.netns = Some(value.into()),
            "id" => self.id = Some(parse_id(text()?).map_err(invalid)?),
            "uid" => self.uid = Some(parse_user(text()?).map_err(invalid)?),
            "gid" => self.gid = Some(parse_user(text()?).map_err(invalid)?),
            "cgroup" => self.cgroups.push(parse_setting(text()?).map_err(invalid)?),
            "cgroup-version" => {
                self.cgroup_version = Some(match text()? {
                    "1" => 1,
                    "2" => 2,
                    _ => return Err(invalid("expected 1 or 2")),
                });
            }
            PASS_FD => self.passed.push(parse_descriptor(text()?).map_err(invalid)?),
            "parent-cgroup" => self.parent_cgroup = Some(parse_parent(text()?).map_err(invalid)?),
            _ => self.set_limit(text()?).map_err(invalid)?,
        }
        Ok(())
    }

    fn set_limit(&mut self, text: &str) -> Result<(), &'static str> {
        let (name, value) = text.split_once('=').ok_or("expected no-file=N or fsize=N")?;
        let limit = match name {
            "no-file" => &mut self.open_files,
            "fsize" => &mut self.file_size,
            _ => return Err("expected no-file=N or fsize=N"),
        };
        *limit = Some(value.parse().map_err(|_| "expected a number behind =")?);
        Ok(())
    }

    fn complete(self, rest: Vec<OsString>) -> Result<Command, Error> {
        let has = |name| self.names.contains(&name);
        let (daemonize, new_pid_ns, force) = (has("daemonize"), has("new-pid-ns"), has("force"));
        let plain_arguments = has("plain-arguments");
        Ok(Command::Jail(Box::new(Args {
            id: self.id.ok_or(Error::Missing("id"))?,
            exec_file: self.exec_file.ok_or(Error::Missing("exec-file"))?,
            uid: self.uid.ok_or(Error::Missing("uid"))?,
            gid: self.gid.ok_or(Error::Missing("gid"))?,
            base: self.base.unwrap_or_else(|| BASE.into()),
            netns: self.netns,
            daemonize,
            new_pid_ns,
            cgroups: self.cgroups,
            cgroup_version: self.cgroup_version.unwrap_or(1),
            parent_cgroup: self.parent_cgroup,
            file_size: self.file_size,
            open_files: self.open_files.unwrap_or(OPEN_FILES),
            force,
            passed: self.passed,
            plain_arguments,
            rest,
        })))
    }
}

fn parse_id(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=MAX_ID).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 64 letters, digits and hyphens")
    }
}

/// Parses a user or group ID. The kernel takes the largest number for "unchanged".
fn parse_user(text: &str) -> Result<u32, &'static str> {
    let number = text.parse().ok().filter(|number| *number != u32::MAX);
    number.ok_or("expected a number from 0 to 4294967294")
}

fn parse_setting(text: &str) -> Result<Setting, &'static str> {
    const EXPECTED: &str = "expected FILE=VALUE, for example memory.max=256M";
    let (file, value) = text.split_once('=').ok_or(EXPECTED)?;
    let (controller, property) = file.split_once('.').ok_or(EXPECTED)?;
    if file.contains('/') {
        return Err("expected the name of a file without /");
    }
    if controller.is_empty() || property.is_empty() || value.is_empty() {
        return Err(EXPECTED);
    }
    Ok(Setting {
        file: file.to_owned(),
        value: value.to_owned(),
    })
}

fn parse_parent(text: &str) -> Result<Vec<String>, &'static str> {
    let parts = Path::new(text).components();
    let parts = parts.map(|part| match part {
        Component::Normal(name) => name.to_str().map(str::to_owned),
        _ => None,
    });
    let parts: Option<Vec<String>> = parts.collect();
    parts.ok_or("expected a relative path without . and ..")
}

#[cfg(test)]
mod tests {
    use super::{Args, Command, Setting, parse};

    const REQUIRED: &str = "--id vm1 --exec-file /bin/mayfly --uid 1 --gid 2";

    fn parse_line(line: &str) -> Result<Command, String> {
        let parsed = parse(line.split_whitespace().map(Into::into));
        parsed.map_err(|error| error.to_string())
    }

    fn args(line: &str) -> Args {
        match parse_line(line).unwrap() {
            Command::Jail(args) => *args,
            other => panic!("{line} is {other:?}"),
        }
    }

    #[test]
    fn omitted_options_have_firecrackers_defaults() {
        assert_eq!(
            args(REQUIRED),
            Args {
                id: "vm1".into(),
                exec_file: "/bin/mayfly".into(),
                uid: 1,
                gid: 2,
                base: "/srv/jailer".into(),
                netns: None,
                daemonize: false,
                new_pid_ns: false,
                cgroups: Vec::new(),
                cgroup_version: 1,
                parent_cgroup: None,
                passed: Vec::new(),
                plain_arguments: false,
                file_size: None,
                open_files: 2048,
                force: false,
                rest: Vec::new(),
            }
        );
    }

    #[test]
    fn command_lines_of_clients_are_accepted() {
        // firecracker-go-sdk, with all of its options.
        let sdk = args(
            "--id I --uid 123 --gid 100 --exec-file F --cgroup cpuset.mems=0 --cgroup cpuset.cpus=0-3 --cgroup-version 2 \
             --parent-cgroup a/b --chroot-base-dir D --netns N --daemonize -- --no-seccomp --api-sock /run/firecracker.socket",
        );
        let setting = |file: &str, value: &str| Setting {
            file: file.into(),
            value: value.into(),
        };
        assert_eq!(
            sdk.cgroups,
            [setting("cpuset.mems", "0"), setting("cpuset.cpus", "0-3")]
        );
        assert_eq!(sdk.parent_cgroup, Some(vec!["a".into(), "b".into()]));
        assert_eq!(
            sdk.rest,
            ["--no-seccomp", "--api-sock", "/run/firecracker.socket"]
        );
        assert!(sdk.daemonize && sdk.cgroup_version == 2);
        // kata, jailed.
        let kata = args(
            "--id I --exec-file F --uid 0 --gid 0 --chroot-base-dir B --daemonize -- --config-file /fcConfig.json",
        );
        assert_eq!(kata.rest, ["--config-file", "/fcConfig.json"]);
        let limited = args(&format!(
            "{REQUIRED} --resource-limit fsize=5 --resource-limit no-file=6 --new-pid-ns --force -- -- --help"
        ));
        assert_eq!((limited.file_size, limited.open_files), (Some(5), 6));
        assert!(limited.new_pid_ns && limited.force);
        assert_eq!(limited.rest, ["--", "--help"]);
        let setting_with_equals = args(&format!("{REQUIRED} --cgroup io.max=8:0=x"));
        assert_eq!(setting_with_equals.cgroups, [setting("io.max", "8:0=x")]);
        assert_eq!(
            args(&format!("{REQUIRED} --parent-cgroup a//b/")).parent_cgroup,
            Some(vec!["a".into(), "b".into()])
        );
    }

    #[test]
    fn help_and_version_precede_errors() {
        for line in ["--help", "-h", "--bogus --help", "--id --help"] {
            assert_eq!(parse_line(line), Ok(Command::Help), "{line}");
        }
        assert_eq!(parse_line("--uid x --version"), Ok(Command::Version));
    }

    #[test]
    fn usage_errors_name_option_and_value() {
        for (line, text) in [
            ("", "--id is missing"),
            ("--id a", "--exec-file is missing"),
            ("--id a --exec-file f", "--uid is missing"),
            ("--id a --exec-file f --uid 1", "--gid is missing"),
            ("--bogus", "\"--bogus\" is not an option"),
            ("-x", "\"-x\" is not an option"),
            ("vm1", "\"vm1\" is not an option"),
            ("--id a --id b", "--id is given twice"),
            ("--daemonize --daemonize", "--daemonize is given twice"),
            ("--daemonize=1", "--daemonize takes no value"),
            ("--id", "missing value: --id VALUE"),
            ("--netns --daemonize", "missing value: --netns VALUE"),
            ("--id a_b", "--id \"a_b\": expected 1 to 64 letters"),
            ("--uid -1", "--uid \"-1\": expected a number"),
            ("--gid 4294967295", "--gid \"4294967295\": expected a number"),
            ("--cgroup memory.max", "expected FILE=VALUE"),
            ("--cgroup memory.max=", "expected FILE=VALUE"),
            ("--cgroup memory=1", "expected FILE=VALUE"),
            ("--cgroup .max=1", "expected FILE=VALUE"),
            ("--cgroup ../memory.max=1", "without /"),
            ("--cgroup-version 3", "expected 1 or 2"),
            ("--parent-cgroup /a", "expected a relative path"),
            ("--parent-cgroup a/../b", "expected a relative path"),
            ("--parent-cgroup ./a", "expected a relative path"),
            ("--resource-limit 5", "expected no-file=N or fsize=N"),
            ("--resource-limit cpu=5", "expected no-file=N or fsize=N"),
            ("--resource-limit fsize=x", "expected a number behind ="),
        ] {
            let message = parse_line(line).unwrap_err();
            assert!(message.contains(text), "{line}: {message}");
        }
        let long = "a".repeat(65);
        assert!(
            parse_line(&format!("--id {long}"))
                .unwrap_err()
                .contains("1 to 64 letters")
        );
    }

    #[test]
    fn passed_descriptors_are_those_before_the_arguments_of_the_vmm() {
        let passed = |line: &str| {
            let arguments: Vec<_> = line.split(' ').map(Into::into).collect();
            super::passed(&arguments)
        };
        assert_eq!(passed("--pass-fd 7 --id a --pass-fd=9 -- --pass-fd 11"), [7, 9]);
        assert_eq!(passed("--pass-fd 2 --pass-fd x --pass-fd"), [0; 0]);
        let error = parse_line("--id a --exec-file f --uid 1 --gid 1 --pass-fd 2").unwrap_err();
        assert!(error.contains("descriptor above 2"), "{error}");
    }
}
