//! Registration of instances.

use serde_json::Value;
use vmm::config::{DeviceConfig, DeviceKind, VmConfig};

use super::cgroup;
use super::config::{Config, OnCrash};
use super::core::{Core, RUN, finish_removals, remove_snapshots};
use super::inspection::{self, Described, Registration};
use super::journal::Subject;
use super::links::Links;

/// Maximum length of an identifier in bytes.
const MAX_ID: usize = 64;
/// Maximum length of the path of a socket in bytes (unix(7)).
const MAX_SOCKET: usize = 107;

/// Rejection of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP status.
    pub status: u16,
    /// Reason.
    pub reason: String,
}

impl Rejection {
    /// The request is invalid.
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::new(400, reason)
    }

    /// Another state is required.
    pub fn conflict(reason: impl Into<String>) -> Self {
        Self::new(409, reason)
    }

    /// A limit is reached, or the disk is full.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::new(503, reason)
    }

    /// The instance `id` is not registered.
    pub fn missing(id: &str) -> Self {
        Self::new(
            404,
            format!("cannot find the instance {id:?}: it is not registered; see GET /instances"),
        )
    }

    fn new(status: u16, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
        }
    }
}

/// Checks the identifier of an instance, which is also the name of files and of its process.
///
/// # Errors
/// A rejection that describes valid identifiers.
pub fn check_id(id: &str) -> Result<(), Rejection> {
    let is_valid = (1..=MAX_ID).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match is_valid {
        true => Ok(()),
        false => Err(Rejection::invalid(format!(
            "cannot register {id:?}: an identifier has 1 to {MAX_ID} letters, digits and hyphens"
        ))),
    }
}

impl Core {
    /// Begins the registration of the instance `id`: a thread reads its snapshot. [`finish_registration`](Self::finish_registration)
    /// ends it; no other one may begin before.
    ///
    /// # Errors
    /// A rejection with the reason; nothing has changed then.
    pub fn begin_registration(&mut self, id: &str, body: &[u8]) -> Result<(), Rejection> {
        let config = self.check_registration(id, body)?;
        let inspect = move || inspection::describe(&config.snapshot);
        let inspection = self.inspector.begin(self.timeout, inspect);
        self.registration = Some(Registration {
            id: id.to_owned(),
            body: body.to_owned(),
            inspection: inspection.map_err(Rejection::unavailable)?,
        });
        Ok(())
    }

    /// Registers the instance whose snapshot has been read, which is suspended then. Returns nothing while it is read.
    pub fn finish_registration(&mut self) -> Option<Result<(), Rejection>> {
        let described = self.inspector.result(&self.registration.as_ref()?.inspection)?;
        let described = described
            .unwrap_or_else(|cause| Err(format!("snapshot_path: cannot read the snapshot: {cause}")));
        let registration = self.registration.take()?;
        Some(self.register(&registration.id, &registration.body, described))
    }

    /// Checks all that needs no file of the instance.
    fn check_registration(&self, id: &str, body: &[u8]) -> Result<Config, Rejection> {
        check_id(id)?;
        let (config, _) = Config::parse(body).map_err(Rejection::invalid)?;
        if self.registry.len() >= self.max_instances {
            let max = self.max_instances;
            let reason = format!(
                "cannot register {id:?}: {max} instances are registered; raise --max-instances, or delete one"
            );
            return Err(Rejection::unavailable(reason));
        }
        cgroup::check(self.cgroup.as_deref(), config.limits).map_err(Rejection::invalid)?;
        let socket = self.socket(id, &config);
        if socket.as_os_str().len() > MAX_SOCKET {
            let reason = format!(
                "cannot use the socket {}: its path is longer than {MAX_SOCKET} bytes",
                socket.display()
            );
            return Err(Rejection::invalid(reason));
        }
        if config.jail.is_some() && !self.programs.jailer.exists() {
            let path = self.programs.jailer.display();
            return Err(Rejection::invalid(format!(
                "jail: cannot find {path}; install it, or name it by --jailer"
            )));
        }
        Ok(config)
    }

    fn register(&mut self, id: &str, body: &[u8], described: Described) -> Result<(), Rejection> {
        let config = self.check_registration(id, body)?;
        let saved = described.map_err(Rejection::invalid)?;
        check_named(&config, &saved).map_err(Rejection::invalid)?;
        let (config, text) = with_addresses(body, &saved).map_err(Rejection::invalid)?;
        let key = self
            .registry
            .add(id, &config, text.clone(), "registered")
            .map_err(Rejection::conflict)?;
        let joined = self.join_networks(key, &config);
        let opened = joined
            .and_then(|()| Links::open(&config, &self.passed))
            .map_err(Rejection::conflict)
            .and_then(|links| {
                if let Some(entry) = self.registry.get_mut(key) {
                    entry.links = links;
                }
                let value: Value = serde_json::from_str(&text).unwrap_or_default();
                self.write(Subject::Instance, id, Some(value))
                    .map_err(Rejection::unavailable)
            });
        if let Err(rejection) = opened {
            self.leave_networks(&config);
            self.registry.remove(key);
            return Err(rejection);
        }
        self.shells.add(&config);
        self.fall_asleep(key);
        Ok(())
    }

    /// Deletes an instance. A running one is deleted only with `kill`, which ends its process.
    ///
    /// # Errors
    /// A rejection with the reason.
    pub fn delete(&mut self, id: &str, kill: bool) -> Result<(), Rejection> {
        let key = self.registry.find(id).ok_or_else(|| Rejection::missing(id))?;
        let Some(entry) = self.registry.get(key) else {
            return Err(Rejection::missing(id));
        };
        let state = entry.state;
        let has_process = entry.live.as_ref().is_some_and(|live| live.running.is_some());
        if has_process && !kill {
            let state = state.name();
            let reason = format!(
                "cannot delete {id:?}: it is {state}; suspend it first, or add ?kill=true to end its process"
            );
            return Err(Rejection::conflict(reason));
        }
        self.write(Subject::Instance, id, None)
            .map_err(Rejection::unavailable)?;
        if entry_has_failure(self, id) {
            // Without an instance it has no meaning: a failure to remove it is harmless.
            let _ = self.write(Subject::Failure, id, None);
        }
        self.queue.remove(key);
        self.queue.end(key);
        self.running.remove(&key);
        self.preparing.remove(&key);
        let Some(mut entry) = self.registry.remove(key) else {
            return Ok(());
        };
        if let Some(running) = entry.live.take().and_then(|live| live.running) {
            self.end_process(running);
        }
        for suffix in ["pid", "sock", "log"] {
            let _ = std::fs::remove_file(Self::run_path(id, suffix));
        }
        if let Ok(config) = entry.parse() {
            self.leave_networks(&config);
            for shell in self.shells.remove(&config) {
                self.end_shell(shell);
            }
            if config.suspend_to.is_some() {
                self.start_waiting();
                return Ok(());
            }
            remove_snapshots(&self.suspend_directory(id, &config));
        }
        self.start_waiting();
        Ok(())
    }

    /// Removes the files of instances that do not exist any more from the run directory, at the start.
    pub fn remove_leftover(&self) {
        finish_removals();
        for file in std::fs::read_dir(RUN).into_iter().flatten().flatten() {
            let path = file.path();
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default();
            let is_used = self
                .registry
                .find(id)
                .and_then(|key| self.registry.get(key))
                .is_some_and(|entry| entry.live.is_some());
            let is_process = path.extension().is_some_and(|extension| extension == "pid");
            if !is_used && !is_process {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn entry_has_failure(core: &Core, id: &str) -> bool {
    let entry = core.registry.find(id).and_then(|key| core.registry.get(key));
    entry.is_some_and(|entry| entry.has_failure)
}

/// Checks that the snapshot has the named devices.
fn check_named(config: &Config, saved: &VmConfig) -> Result<(), String> {
    let interfaces: Vec<_> = config.interfaces.iter().map(|interface| &*interface.id).collect();
    let drives: Vec<_> = config.drives.iter().map(|drive| &*drive.id).collect();
    check_devices(saved, DeviceKind::Interface, "network_interfaces", &interfaces)?;
    check_devices(saved, DeviceKind::Drive, "drives", &drives)?;
    if config.on_crash == OnCrash::Boot
        && config
            .boot
            .iter()
            .any(|argument| argument.starts_with("--api-sock"))
    {
        return Err("boot: the supervisor sets --api-sock; remove it".into());
    }
    Ok(())
}

/// Adds the MAC addresses of the snapshot to interfaces without one: the supervisor answers with them.
fn with_addresses(body: &[u8], saved: &VmConfig) -> Result<(Config, String), String> {
    let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
    for interface in value["network_interfaces"].as_array_mut().into_iter().flatten() {
        let id = interface["iface_id"].as_str();
        let mac = saved.devices.iter().find_map(|device| match device {
            DeviceConfig::Interface(saved) if Some(saved.id.as_str()) == id => saved.mac,
            _ => None,
        });
        if interface["mac"].is_null() {
            let mac = mac.ok_or_else(|| {
                format!("network_interfaces: add the mac of {id:?}, which the snapshot lacks")
            })?;
            interface["mac"] = mac.to_string().into();
        }
    }
    Config::from_value(value)
}

/// Fails unless the devices of `kind` in the snapshot are `named`.
fn check_devices(saved: &VmConfig, kind: DeviceKind, key: &str, named: &[&str]) -> Result<(), String> {
    let present: Vec<_> = saved
        .devices
        .iter()
        .filter(|device| device.kind() == kind)
        .map(|device| device.id())
        .collect();
    if let Some(id) = named.iter().find(|id| !present.contains(*id)) {
        let known = if present.is_empty() {
            "none".to_owned()
        } else {
            present.join(", ")
        };
        return Err(format!("{key}: the snapshot has no {id:?}; it has {known}"));
    }
    match present.iter().find(|id| !named.contains(*id)) {
        Some(id) => Err(format!("{key}: {id:?} of the snapshot is missing; add it")),
        None => Ok(()),
    }
}
