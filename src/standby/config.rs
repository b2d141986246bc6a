//! Configuration of an instance: body of `PUT /instances/{id}`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde_json::{Map, Value};
use vmm::config::MacAddress;

use super::schema::{Kind, Schema, optional, required};

/// Maximum number of devices of one kind.
const MAX_DEVICES: usize = 16;
/// Maximum length of the identifier of a device in bytes.
const MAX_ID: usize = 64;
/// Maximum length of the name of an interface of the host in bytes, `IFNAMSIZ` without the end.
const MAX_INTERFACE: usize = 15;

const SCALE_TO_ZERO: Schema = Schema {
    name: "ScaleToZero",
    about: "Conditions under which the instance is suspended.",
    fields: &[
        optional(
            "policy",
            Kind::Words(&["idle", "off"]),
            "idle: suspend an idle instance. off: only at a request. Default: idle.",
        ),
        optional(
            "cooldown_time_ms",
            Kind::Integer(1, 86_400_000),
            "Time for which the instance must be idle. Default: 1000.",
        ),
        optional(
            "idle_cpu_percent",
            Kind::Integer(1, 100),
            "Processor time up to which a vCPU is idle. Default: that of mayfly run.",
        ),
        optional(
            "stateful",
            Kind::Boolean,
            "False: each wake starts from snapshot_path again. Default: true.",
        ),
    ],
};

const WAKE: Schema = Schema {
    name: "WakeRule",
    about: "Frames that wake the instance.",
    fields: &[
        required(
            "rule",
            Kind::Words(&["unicast", "new-connections", "ports", "none"]),
            "unicast: each frame to the instance. new-connections: TCP SYN, each UDP and ICMP packet. ports: those to the listed ports. none: only requests.",
        ),
        optional(
            "ports",
            Kind::Integers(1, 65535, 64),
            "Ports of TCP and UDP, for the rule ports.",
        ),
    ],
};

const INTERFACE: Schema = Schema {
    name: "InstanceInterface",
    about: "Interface of the snapshot with its connection to the host.",
    fields: &[
        required("iface_id", Kind::Text(MAX_ID), "Identifier in the snapshot."),
        optional(
            "host_dev_name",
            Kind::Text(MAX_INTERFACE),
            "Tap of this instance alone. The supervisor opens it while the instance is suspended.",
        ),
        optional(
            "network_id",
            Kind::Text(MAX_ID),
            "Shared network, in place of a tap.",
        ),
        optional(
            "ip",
            Kind::Text(15),
            "IPv4 address at which the network sees the instance.",
        ),
        optional(
            "ip6",
            Kind::Text(39),
            "IPv6 address at which the network sees the instance.",
        ),
        optional(
            "mac",
            Kind::Text(17),
            "MAC address at which the network sees the instance.",
        ),
        optional(
            "guest_ip",
            Kind::Text(15),
            "Address that the guest uses, if it is another one.",
        ),
        optional(
            "guest_mac",
            Kind::Text(17),
            "MAC address that the guest uses. Default: as saved.",
        ),
    ],
};

const DRIVE: Schema = Schema {
    name: "InstanceDrive",
    about: "Drive of the snapshot with its file.",
    fields: &[
        required("drive_id", Kind::Text(MAX_ID), "Identifier in the snapshot."),
        required("path_on_host", Kind::Path, "File or block device."),
        optional(
            "is_read_only",
            Kind::Boolean,
            "Fail if the drive is read-write. Default: false.",
        ),
    ],
};

const LIMITS: Schema = Schema {
    name: "InstanceLimits",
    about: "Limits of the process, by a cgroup of version 2.",
    fields: &[
        optional(
            "memory_max_mib",
            Kind::Integer(1, 1 << 24),
            "Maximum memory of the process (memory.max).",
        ),
        optional(
            "cpu_weight",
            Kind::Integer(1, 10_000),
            "Share of the processors (cpu.weight).",
        ),
    ],
};

const JAIL: Schema = Schema {
    name: "InstanceJail",
    about: "Jail of the process, by mayfly-jailer. All paths of the instance must be inside of the root directory of the jail.",
    fields: &[
        required(
            "uid",
            Kind::Integer(1, u32::MAX as u64 - 1),
            "User of the process.",
        ),
        required(
            "gid",
            Kind::Integer(1, u32::MAX as u64 - 1),
            "Group of the process.",
        ),
        optional(
            "chroot_base_dir",
            Kind::Path,
            "Directory of all jails. Default: /srv/jailer.",
        ),
    ],
};

/// Body of `PUT /instances/{id}`.
pub const INSTANCE: Schema = Schema {
    name: "Instance",
    about: "Instance: a snapshot with overrides.",
    fields: &[
        required(
            "snapshot_path",
            Kind::Path,
            "Directory of the snapshot, with the files state and memory.",
        ),
        optional(
            "suspend_path",
            Kind::Path,
            "Directory of the snapshots of the suspended instance. Default: suspended/ID in the state directory.",
        ),
        optional(
            "network_interfaces",
            Kind::Objects(&INTERFACE, MAX_DEVICES),
            "Interfaces. The snapshot must have no others.",
        ),
        optional(
            "drives",
            Kind::Objects(&DRIVE, MAX_DEVICES),
            "Drives. The snapshot must have no others.",
        ),
        optional(
            "scale_to_zero",
            Kind::Object(&SCALE_TO_ZERO),
            "Conditions of a suspend.",
        ),
        optional(
            "wake_on",
            Kind::Object(&WAKE),
            "Frames that wake the instance. Default: unicast.",
        ),
        optional("limits", Kind::Object(&LIMITS), "Limits of the process."),
        optional("jail", Kind::Object(&JAIL), "Jail of the process. Default: none."),
        optional(
            "on_crash",
            Kind::Words(&["fail", "boot", "discard"]),
            "After an end without a suspend. fail: the state is failed. boot: boot anew by the options in boot. discard: start from snapshot_path again. Default: fail.",
        ),
        optional(
            "boot",
            Kind::Texts(64),
            "Arguments of mayfly run, for on_crash boot: image, options, guest arguments.",
        ),
        optional(
            "realtime",
            Kind::Boolean,
            "Advance the guest's clock by the time of the sleep. Default: true.",
        ),
        optional(
            "shell",
            Kind::Boolean,
            "Wake in a shell if one is ready. Default: true.",
        ),
    ],
};

/// All schemas of this file.
#[cfg(test)]
pub const SCHEMAS: [&Schema; 7] = [
    &INSTANCE,
    &SCALE_TO_ZERO,
    &WAKE,
    &INTERFACE,
    &DRIVE,
    &LIMITS,
    &JAIL,
];

/// Reaction to an end without a suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// The state is failed until a request wakes the instance.
    Fail,
    /// The next wake boots an image.
    Boot,
    /// The next wake starts from the registered snapshot.
    Discard,
}

/// Frames that wake an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WakeOn {
    /// Each frame to its addresses.
    Unicast,
    /// Packets that open a connection.
    NewConnections,
    /// Packets to these ports.
    Ports(Vec<u16>),
    /// None.
    None,
}

/// Connection of an interface to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Tap with this name.
    Tap(String),
    /// Shared network with this identifier.
    Network(String),
}

/// Interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Identifier in the snapshot.
    pub id: String,
    /// Connection to the host.
    pub link: Link,
    /// Address that the network sees.
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address that the network sees.
    pub ip6: Option<Ipv6Addr>,
    /// MAC address that the network sees.
    pub mac: Option<MacAddress>,
    /// Address that the guest uses, if it is another one.
    pub guest_ip: Option<Ipv4Addr>,
    /// MAC address that the guest uses.
    pub guest_mac: Option<MacAddress>,
}

/// Drive of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Identifier in the snapshot.
    pub id: String,
    /// File or block device.
    pub path: PathBuf,
    /// The drive must be read-only.
    pub read_only: bool,
}

/// Jail of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jail {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Directory of all jails.
    pub base: PathBuf,
}

/// Limits of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Maximum memory in bytes.
    pub memory_max: Option<u64>,
    /// Share of the processors.
    pub cpu_weight: Option<u32>,
}

/// Configuration of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of the registered snapshot.
    pub snapshot: PathBuf,
    /// Directory of its snapshots while suspended.
    pub suspend_to: Option<PathBuf>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Drives.
    pub drives: Vec<Drive>,
    /// Time in milliseconds for which it must be idle; none to suspend only at a request.
    pub idle_after_ms: Option<u64>,
    /// Processor time up to which a vCPU is idle.
    pub idle_cpu: Option<u64>,
    /// A suspend writes a snapshot.
    pub stateful: bool,
    /// Frames that wake it.
    pub wake_on: WakeOn,
    /// Limits of its process.
    pub limits: Limits,
    /// Jail of its process.
    pub jail: Option<Jail>,
    /// Reaction to an end without a suspend.
    pub on_crash: OnCrash,
    /// Arguments of `mayfly run`.
    pub boot: Vec<String>,
    /// Advance the guest's clock.
    pub realtime: bool,
    /// Wake in a shell.
    pub shell: bool,
}

impl Config {
    /// Parses a body, and returns it in the compact form of the journal too.
    ///
    /// # Errors
    /// A text that names the invalid key.
    pub fn parse(body: &[u8]) -> Result<(Self, String), String> {
        Self::with_text(INSTANCE.parse(body)?)
    }

    /// Parses the compact form, which has been checked against the schema.
    ///
    /// # Errors
    /// A text that names the invalid key.
    pub fn parse_compact(text: &str) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| format!("cannot parse the configuration as JSON: {error}"))?;
        Self::from_object(&object)
    }

    /// Converts from a value of the journal, and returns its compact form too.
    ///
    /// # Errors
    /// A text that names the invalid key.
    pub fn from_value(value: Value) -> Result<(Self, String), String> {
        Self::with_text(INSTANCE.accept(value)?)
    }

    fn with_text(object: Map<String, Value>) -> Result<(Self, String), String> {
        let config = Self::from_object(&object)?;
        Ok((config, compact(&object)))
    }

    fn from_object(object: &Map<String, Value>) -> Result<Self, String> {
        let empty = Map::new();
        let part = |name: &str| object.get(name).and_then(Value::as_object).unwrap_or(&empty);
        let (scale, limits) = (part("scale_to_zero"), part("limits"));
        let is_off = text(scale, "policy") == Some("off");
        let cooldown = number(scale, "cooldown_time_ms").unwrap_or(1000);
        let on_crash = match text(object, "on_crash") {
            Some("boot") => OnCrash::Boot,
            Some("discard") => OnCrash::Discard,
            _ => OnCrash::Fail,
        };
        let boot: Vec<_> = list(object, "boot")
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if (on_crash == OnCrash::Boot) == boot.is_empty() {
            return Err(
                "boot: on_crash \"boot\" requires arguments of mayfly run, and no other value permits them"
                    .into(),
            );
        }
        let config = Self {
            snapshot: path(object, "snapshot_path").unwrap_or_default(),
            suspend_to: path(object, "suspend_path"),
            interfaces: objects(object, "network_interfaces")
                .enumerate()
                .map(interface)
                .collect::<Result<_, _>>()?,
            drives: objects(object, "drives").map(drive).collect(),
            idle_after_ms: (!is_off).then_some(cooldown),
            idle_cpu: number(scale, "idle_cpu_percent"),
            stateful: flag(scale, "stateful").unwrap_or(true),
            wake_on: wake_on(part("wake_on"))?,
            limits: Limits {
                memory_max: number(limits, "memory_max_mib").map(|size| size << 20),
                cpu_weight: small(limits, "cpu_weight"),
            },
            jail: object.get("jail").and_then(Value::as_object).map(jail),
            on_crash,
            boot,
            realtime: flag(object, "realtime").unwrap_or(true),
            shell: flag(object, "shell").unwrap_or(true),
        };
        config.check()?;
        Ok(config)
    }

    /// Checks the parts against each other.
    fn check(&self) -> Result<(), String> {
        let ids = self.interfaces.iter().map(|interface| &interface.id);
        if let Some(id) = duplicate(ids) {
            return Err(format!("network_interfaces: {id:?} is given twice; remove one"));
        }
        if let Some(id) = duplicate(self.drives.iter().map(|drive| &drive.id)) {
            return Err(format!("drives: {id:?} is given twice; remove one"));
        }
        Ok(())
    }

    /// Returns true if a frame may wake the instance.
    pub fn is_woken_by_frames(&self) -> bool {
        self.wake_on != WakeOn::None && !self.interfaces.is_empty()
    }
}

/// Returns the compact form.
fn compact(object: &Map<String, Value>) -> String {
    // Keys are texts, so that this cannot fail. `Value::to_string` takes three times as long.
    serde_json::to_string(object).unwrap_or_default()
}

fn duplicate<'a>(ids: impl Iterator<Item = &'a String> + Clone) -> Option<&'a String> {
    let mut seen = std::collections::BTreeSet::new();
    ids.into_iter().find(|id| !seen.insert(*id))
}

fn interface((index, object): (usize, &Map<String, Value>)) -> Result<Interface, String> {
    let path = format!("network_interfaces[{index}]");
    let link = match (text(object, "host_dev_name"), text(object, "network_id")) {
        (Some(name), None) => Link::Tap(name.to_owned()),
        (None, Some(id)) => Link::Network(id.to_owned()),
        _ => return Err(format!("{path}: give either host_dev_name or network_id")),
    };
    let interface = Interface {
        id: text(object, "iface_id").unwrap_or_default().to_owned(),
        link,
        ip: address(object, "ip", &path)?,
        ip6: address(object, "ip6", &path)?,
        mac: address(object, "mac", &path)?,
        guest_ip: address(object, "guest_ip", &path)?,
        guest_mac: address(object, "guest_mac", &path)?,
    };
    if interface.ip.is_none() && interface.ip6.is_none() {
        return Err(format!("{path}: give ip or ip6, to which the supervisor answers"));
    }
    if matches!(interface.link, Link::Network(_)) && interface.ip.is_some() && interface.ip6.is_some() {
        return Err(format!(
            "{path}: an interface in a shared network has one address; remove ip or ip6"
        ));
    }
    if interface.guest_ip.is_some() && interface.ip.is_none() {
        return Err(format!("{path}: guest_ip requires ip; add it"));
    }
    Ok(interface)
}

/// Parses the value of `key` as an address.
fn address<T: std::str::FromStr>(
    object: &Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<Option<T>, String> {
    let Some(text) = text(object, key) else {
        return Ok(None);
    };
    let parsed = text
        .parse()
        .map_err(|_| format!("{path}.{key}: {text:?} is no valid address"));
    parsed.map(Some)
}

fn drive(object: &Map<String, Value>) -> Drive {
    Drive {
        id: text(object, "drive_id").unwrap_or_default().to_owned(),
        path: path(object, "path_on_host").unwrap_or_default(),
        read_only: flag(object, "is_read_only").unwrap_or(false),
    }
}

fn jail(object: &Map<String, Value>) -> Jail {
    Jail {
        uid: small(object, "uid").unwrap_or(libc::uid_t::MAX),
        gid: small(object, "gid").unwrap_or(libc::gid_t::MAX),
        base: path(object, "chroot_base_dir").unwrap_or_else(|| "/srv/jailer".into()),
    }
}

fn wake_on(object: &Map<String, Value>) -> Result<WakeOn, String> {
    let ports = list(object, "ports").filter_map(|port| u16::try_from(port.as_u64()?).ok());
    let ports: Vec<u16> = ports.collect();
    match text(object, "rule") {
        Some("ports") if ports.is_empty() => {
            Err("wake_on.ports: the rule ports requires a port; add one".into())
        }
        Some("ports") => Ok(WakeOn::Ports(ports)),
        _ if !ports.is_empty() => Err("wake_on.ports: only the rule ports has ports; remove them".into()),
        Some("new-connections") => Ok(WakeOn::NewConnections),
        Some("none") => Ok(WakeOn::None),
        _ => Ok(WakeOn::Unicast),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

fn path(object: &Map<String, Value>, key: &str) -> Option<PathBuf> {
    text(object, key).map(PathBuf::from)
}

fn number(object: &Map<String, Value>, key: &str) -> Option<u64> {
    object.get(key)?.as_u64()
}

fn small(object: &Map<String, Value>, key: &str) -> Option<u32> {
    u32::try_from(number(object, key)?).ok()
}

fn flag(object: &Map<String, Value>, key: &str) -> Option<bool> {
    object.get(key)?.as_bool()
}

fn list<'a>(object: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> {
    object.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn objects<'a>(object: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    list(object, key).filter_map(Value::as_object)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Config, Link, OnCrash, WakeOn};

    fn parse(body: &Value) -> Result<Config, String> {
        let (config, text) = Config::parse(body.to_string().as_bytes())?;
        let again = Config::parse(text.as_bytes()).unwrap();
        assert_eq!((&again.0, &again.1), (&config, &text));
        Ok(config)
    }

    #[test]
    fn only_the_snapshot_is_required() {
        let config = parse(&json!({"snapshot_path": "/s"})).unwrap();
        assert_eq!(config.idle_after_ms, Some(1000));
        assert!(config.stateful && config.realtime && config.shell && !config.is_woken_by_frames());
        assert_eq!(
            (config.on_crash, config.wake_on),
            (OnCrash::Fail, WakeOn::Unicast)
        );
    }

    #[test]
    fn all_keys_are_parsed() {
        let config = parse(&json!({
            "snapshot_path": "/s",
            "suspend_path": "/t",
            "network_interfaces": [
                {"iface_id": "eth0", "host_dev_name": "tap0", "ip": "10.0.0.7", "mac": "02:00:00:00:00:07", "guest_ip": "10.0.0.2"},
                {"iface_id": "eth1", "network_id": "blue", "ip6": "fd00::7"},
            ],
            "drives": [{"drive_id": "root", "path_on_host": "/d", "is_read_only": true}],
            "scale_to_zero": {"policy": "off", "stateful": false, "idle_cpu_percent": 3},
            "wake_on": {"rule": "ports", "ports": [80, 443]},
            "limits": {"memory_max_mib": 64, "cpu_weight": 50},
            "jail": {"uid": 1000, "gid": 1001},
            "on_crash": "boot",
            "boot": ["/kernel", "--memory", "64M"],
            "realtime": false,
            "shell": false,
        }))
        .unwrap();
        assert_eq!(config.interfaces[0].link, Link::Tap("tap0".into()));
        assert_eq!(config.interfaces[1].link, Link::Network("blue".into()));
        assert_eq!(config.wake_on, WakeOn::Ports(vec![80, 443]));
        assert_eq!(
            (config.idle_after_ms, config.idle_cpu, config.stateful),
            (None, Some(3), false)
        );
        assert_eq!(config.limits.memory_max, Some(64 << 20));
        assert!(config.is_woken_by_frames() && config.drives[0].read_only);
        assert_eq!(config.jail.unwrap().base.to_str(), Some("/srv/jailer"));
    }

    #[test]
    fn conflict_is_named() {
        let with = |key: &str, value: Value| {
            let mut body = json!({"snapshot_path": "/s"});
            body[key] = value;
            parse(&body).unwrap_err()
        };
        let interface = |more: Value| {
            let mut interface = json!({"iface_id": "eth0"});
            interface
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            with("network_interfaces", json!([interface]))
        };
        assert!(interface(json!({"ip": "10.0.0.1"})).contains("either host_dev_name or network_id"));
        assert!(interface(json!({"host_dev_name": "t"})).contains("give ip or ip6"));
        assert!(
            interface(json!({"host_dev_name": "t", "ip": "10.0.0.256"})).contains("[0].ip: \"10.0.0.256\"")
        );
        assert!(
            interface(json!({"host_dev_name": "t", "ip6": "::1", "guest_ip": "1.2.3.4"}))
                .contains("requires ip")
        );
        let drive = json!({"drive_id": "d", "path_on_host": "/d"});
        assert!(with("drives", json!([drive, drive])).contains("\"d\" is given twice"));
        assert!(with("boot", json!(["k"])).contains("on_crash \"boot\""));
        assert!(with("on_crash", json!("boot")).contains("requires arguments"));
        assert!(with("wake_on", json!({"rule": "ports"})).contains("requires a port"));
        assert!(with("wake_on", json!({"rule": "none", "ports": [1]})).contains("only the rule ports"));
    }
}
