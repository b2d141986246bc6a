//! Command line of an instance's process.

use std::ffi::{CString, OsString};
use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::config::{Config, Interface, Jail};
use super::registry::Origin;

/// Name of the API socket in a jail.
pub const JAIL_SOCKET: &str = "run/standby.sock";

/// Programs of the instances.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Program of an instance.
    pub mayfly: PathBuf,
    /// Program of a jailed instance, which executes the other one.
    pub jailer: PathBuf,
}

/// Values of one start, beside the configuration.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// Identifier of the instance.
    pub id: &'a str,
    /// Origin of the wake.
    pub origin: Origin,
    /// Directory of the snapshot.
    pub source: PathBuf,
    /// Directory of the next snapshot.
    pub suspend_to: PathBuf,
    /// Path of the API socket.
    pub socket: PathBuf,
    /// Descriptors of the interfaces by their identifiers, as the child has them.
    pub taps: Vec<(&'a str, RawFd)>,
    /// Descriptors of first frames by the identifiers of their interfaces. A boot has none.
    pub frames: Vec<(&'a str, RawFd)>,
}

/// Returns the directory of the jail of an instance.
pub fn jail_root(jail: &Jail, programs: &Programs, id: &str) -> PathBuf {
    let name = programs.mayfly.file_name().unwrap_or_default();
    jail.base.join(name).join(id).join("root")
}

/// Returns program and arguments of an instance's process, with the name of the program.
///
/// # Errors
/// Fails for a path outside of the jail.
pub fn command(
    programs: &Programs,
    config: &Config,
    start: &Start<'_>,
) -> Result<(CString, Vec<CString>), String> {
    let mut arguments: Vec<OsString> = Vec::new();
    let root = config
        .jail
        .as_ref()
        .map(|jail| jail_root(jail, programs, start.id));
    let inner = |path: &Path| -> Result<OsString, String> {
        let Some(root) = &root else { return Ok(path.into()) };
        let relative = path.strip_prefix(root).map_err(|_| {
            let (path, root) = (path.display(), root.display());
            format!("cannot use {path} in a jail: it is not in {root}; move it there")
        })?;
        Ok(Path::new("/").join(relative).into())
    };
    match start.origin {
        Origin::Boot => {
            arguments.push("run".into());
            arguments.extend(boot_arguments(config, start));
        }
        Origin::Latest | Origin::Registered => {
            arguments.extend(["restore".into(), inner(&start.source)?, "--untrusted".into()]);
            for drive in &config.drives {
                let mut value = OsString::from(format!("{}=", drive.id));
                value.push(inner(&drive.path)?);
                value.push(if drive.read_only { ",ro" } else { "" });
                arguments.extend(["--disk".into(), value]);
            }
            for (id, number) in &start.taps {
                let interface = config.interfaces.iter().find(|interface| interface.id == *id);
                let value = interface.map_or_else(String::new, |interface| net(interface, *number));
                arguments.extend(["--net".into(), value.into()]);
            }
            for (id, number) in &start.frames {
                arguments.extend(["--first-frames".into(), format!("{id}={number}").into()]);
            }
            if config.realtime {
                arguments.push("--realtime".into());
            }
        }
    }
    // Before the guest's arguments after a lone --, which only a boot has.
    let end = arguments.iter().position(|argument| argument == "--");
    let options = options(config, start, inner(&start.suspend_to)?, inner(&start.socket)?);
    let end = end.unwrap_or(arguments.len());
    arguments.splice(end..end, options);
    match &config.jail {
        None => to_c(&programs.mayfly, arguments),
        Some(jail) => {
            let mut all = jailer_arguments(programs, config, jail, start);
            all.extend(arguments);
            to_c(&programs.jailer, all)
        }
    }
}

/// Returns the options of a start and a boot alike.
fn options(config: &Config, start: &Start<'_>, suspend_to: OsString, socket: OsString) -> Vec<OsString> {
    let mut options: Vec<OsString> = vec!["--api-sock".into(), socket, "--id".into(), start.id.into()];
    if config.stateful {
        options.extend(["--suspend-to".into(), suspend_to]);
    } else {
        options.push("--stateless".into());
    }
    if let Some(time) = config.idle_after_ms {
        options.extend(["--idle-after".into(), time.to_string().into()]);
        if let Some(percent) = config.idle_cpu {
            options.extend(["--idle-cpu".into(), percent.to_string().into()]);
        }
    }
    options
}

/// Returns the value of `--net` for an interface whose tap has the descriptor `number`.
fn net(interface: &Interface, number: RawFd) -> String {
    let mut value = format!("{}=fd:{number}", interface.id);
    // Without an address of its own, the network sees the guest's.
    if let (Some(guest), Some(ip)) = (interface.guest_ip, interface.ip) {
        let _ = write!(value, ",guest-ip={guest},ip={ip}");
        for (name, mac) in [("guest-mac", interface.guest_mac), ("mac", interface.mac)] {
            if let Some(mac) = mac {
                let _ = write!(value, ",{name}={mac}");
            }
        }
    }
    value
}

/// Returns the registered arguments of a boot, in which `fd:ID` stands for the descriptor of an interface.
fn boot_arguments(config: &Config, start: &Start<'_>) -> Vec<OsString> {
    let fill = |argument: &String| {
        start
            .taps
            .iter()
            .fold(argument.clone(), |argument, (id, number)| {
                match argument.strip_prefix(&format!("fd:{id}")) {
                    Some(rest) if rest.is_empty() || rest.starts_with(',') => format!("fd:{number}{rest}"),
                    _ => argument,
                }
            })
    };
    config.boot.iter().map(|argument| fill(argument).into()).collect()
}

fn jailer_arguments(programs: &Programs, config: &Config, jail: &Jail, start: &Start<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "--id".into(),
        start.id.into(),
        "--force".into(),
        "--plain-arguments".into(),
    ];
    arguments.extend(["--exec-file".into(), programs.mayfly.clone().into()]);
    for (option, number) in [("--uid", jail.uid), ("--gid", jail.gid)] {
        arguments.extend([option.into(), number.to_string().into()]);
    }
    arguments.extend(["--chroot-base-dir".into(), jail.base.clone().into()]);
    let limits = [
        config
            .limits
            .memory_max
            .map(|bytes| format!("memory.max={bytes}")),
        config
            .limits
            .cpu_weight
            .map(|weight| format!("cpu.weight={weight}")),
    ];
    let mut has_limits = false;
    for limit in limits.into_iter().flatten() {
        has_limits = true;
        arguments.extend(["--cgroup".into(), limit.into()]);
    }
    if has_limits {
        arguments.extend(["--cgroup-version".into(), "2".into()]);
    }
    for (_, number) in start.taps.iter().chain(&start.frames) {
        arguments.extend(["--pass-fd".into(), number.to_string().into()]);
    }
    arguments.push("--".into());
    arguments
}

fn to_c(program: &Path, arguments: Vec<OsString>) -> Result<(CString, Vec<CString>), String> {
    let convert = |text: OsString| {
        CString::new(text.into_vec())
            .map_err(|_| "cannot pass an argument with a NUL byte; rename the file".to_owned())
    };
    let program = convert(program.into())?;
    let arguments = arguments.into_iter().map(convert);
    let arguments = std::iter::once(Ok(program.clone()))
        .chain(arguments)
        .collect::<Result<_, _>>()?;
    Ok((program, arguments))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Config, Origin, Programs, Start, command};

    fn line(more: Value, change: impl FnOnce(&mut Start<'_>)) -> Result<String, String> {
        let mut body = json!({"snapshot_path": "/s", "network_interfaces": [
            {"iface_id": "eth0", "host_dev_name": "tap0", "ip": "10.0.0.7", "guest_ip": "10.0.0.2", "mac": "02:00:00:00:00:07"},
            {"iface_id": "eth1", "network_id": "n", "ip6": "fd00::1"},
        ]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let (config, _) = Config::parse(body.to_string().as_bytes()).unwrap();
        let programs = Programs {
            mayfly: "/bin/mayfly".into(),
            jailer: "/bin/mayfly-jailer".into(),
        };
        let mut start = Start {
            id: "web",
            origin: Origin::Latest,
            source: "/s".into(),
            suspend_to: "/state/suspended/web".into(),
            socket: "run/web.sock".into(),
            taps: vec![("eth0", 5), ("eth1", 6)],
            frames: vec![("eth0", 7), ("eth1", 8)],
        };
        change(&mut start);
        let (_, arguments) = command(&programs, &config, &start)?;
        let words: Vec<_> = arguments
            .iter()
            .map(|argument| argument.to_str().unwrap())
            .collect();
        Ok(words.join(" "))
    }

    #[test]
    fn wake_names_all_that_it_opens() {
        let drive = json!({"drives": [{"drive_id": "d", "path_on_host": "/d", "is_read_only": true}]});
        assert_eq!(
            line(drive, |_| ()).unwrap(),
            "/bin/mayfly restore /s --untrusted --disk d=/d,ro \
             --net eth0=fd:5,guest-ip=10.0.0.2,ip=10.0.0.7,mac=02:00:00:00:00:07 --net eth1=fd:6 \
             --first-frames eth0=7 --first-frames eth1=8 --realtime --api-sock run/web.sock --id web --suspend-to /state/suspended/web \
             --idle-after 1000"
        );
    }

    #[test]
    fn conditions_of_a_suspend_are_passed() {
        for (scale, text) in [
            (json!({"policy": "off"}), "--suspend-to /state/suspended/web"),
            (
                json!({"policy": "off", "stateful": false, "idle_cpu_percent": 2}),
                "--id web --stateless",
            ),
            (
                json!({"cooldown_time_ms": 7, "stateful": false, "idle_cpu_percent": 2}),
                "--id web --stateless --idle-after 7 --idle-cpu 2",
            ),
        ] {
            let line = line(json!({"scale_to_zero": scale, "realtime": false}), |_| ()).unwrap();
            assert!(line.ends_with(text) && !line.contains("--realtime"), "{line}");
        }
    }

    #[test]
    fn boot_gets_options_before_the_guest_arguments() {
        let boot = json!({"on_crash": "boot", "boot": ["/k", "--net", "fd:eth0,mtu=1400", "--", "hello", "fd:eth1"]});
        let line = line(boot, |start| {
            (start.origin, start.frames) = (Origin::Boot, Vec::new())
        })
        .unwrap();
        assert_eq!(
            line,
            "/bin/mayfly run /k --net fd:5,mtu=1400 --api-sock run/web.sock --id web \
             --suspend-to /state/suspended/web --idle-after 1000 -- hello fd:6"
        );
    }

    #[test]
    fn paths_of_a_jail_are_inside() {
        let jail =
            json!({"jail": {"uid": 7, "gid": 8, "chroot_base_dir": "/j"}, "limits": {"memory_max_mib": 1}});
        let inside = |start: &mut Start<'_>| {
            start.source = "/j/mayfly/web/root/s".into();
            start.suspend_to = "/j/mayfly/web/root/suspended".into();
            start.socket = "/j/mayfly/web/root/run/standby.sock".into();
        };
        assert_eq!(
            line(jail.clone(), inside)
                .unwrap()
                .split(" --untrusted")
                .next()
                .unwrap(),
            "/bin/mayfly-jailer --id web --force --plain-arguments --exec-file /bin/mayfly --uid 7 --gid 8 \
             --chroot-base-dir /j --cgroup memory.max=1048576 --cgroup-version 2 --pass-fd 5 --pass-fd 6 \
             --pass-fd 7 --pass-fd 8 \
             -- restore /s"
        );
        let error = line(jail, |_| ()).unwrap_err();
        assert!(
            error.contains("cannot use /s in a jail: it is not in /j/mayfly/web/root"),
            "{error}"
        );
    }
}
