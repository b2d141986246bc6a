//! A VM before its start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::Error;
use super::preparation::Preparation;
use crate::arch::{Native, Platform};
use crate::boot::{Image, Initrd};
use crate::config::{Bucket, DeviceConfig, DeviceKind, HostMemory, Protocol, SerialTarget, VmConfig, VmSpec};
use crate::console::SerialEnd;
use crate::debugger::DebugSettings;
use crate::machine::{self, DeviceError, Machine, OpenDevice, PreparedVm, open_device};
use crate::timeline::{Lane, Timeline};
use crate::vm::{BootFiles, Console, ConsoleError, ConsoleInput, GuestImage, Vm};

/// Opens the console that the guest's serial port is connected to, when the VM starts.
pub type OpenConsole = Box<dyn FnMut() -> Result<Console, ConsoleError> + Send>;

/// Configuration of a VM before its start. Files, disks and taps are opened as soon as they are configured: a later change of a path
/// has no effect.
pub struct VmBuilder {
    pub config: VmConfig,
    configured: bool,
    boot: Option<(Image, Option<Initrd>)>,
    devices: BTreeMap<(DeviceKind, String), OpenDevice>,
    serial: SerialSettings,
}

impl VmBuilder {
    pub fn new() -> Self {
        Self {
            config: VmConfig::new(PathBuf::new()),
            configured: false,
            boot: None,
            devices: BTreeMap::new(),
            serial: SerialSettings::default(),
        }
    }

    /// Returns a builder with a complete configuration and its open image.
    pub fn with_image(
        config: VmConfig,
        image: Image,
        initrd: Option<Initrd>,
        serial: SerialSettings,
    ) -> Self {
        Self {
            config,
            configured: true,
            boot: Some((image, initrd)),
            serial,
            ..Self::new()
        }
    }

    /// Returns true if a value was set that a snapshot would replace. A value that equals the default counts too.
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    /// Sets the values of the machine other than its devices.
    pub fn set_machine(&mut self, change: impl FnOnce(&mut VmConfig)) {
        self.configured = true;
        change(&mut self.config);
    }

    pub fn has_kernel(&self) -> bool {
        self.boot.is_some()
    }

    pub fn set_boot(
        &mut self,
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: String,
        protocol: Option<Protocol>,
    ) -> Result<(), Error> {
        let image = Image::open(&kernel, Native::ARCHITECTURE).map_err(Error::Image)?;
        if protocol.is_some() {
            image.select_protocol(protocol).map_err(Error::Image)?;
        }
        let opened = initrd.as_deref().map(Initrd::open);
        self.boot = Some((image, opened.transpose().map_err(Error::Initrd)?));
        self.configured = true;
        self.config.kernel = kernel;
        self.config.initrd = initrd;
        self.config.cmdline = cmdline;
        self.config.protocol = protocol;
        Ok(())
    }

    pub fn set_serial(&mut self, target: SerialTarget, limit: Option<Bucket>) -> Result<(), Error> {
        let has_clients = matches!(target, SerialTarget::Unix(_) | SerialTarget::Pty);
        // The same target stays open: its socket is in use. A file may be another one now.
        let end = match target == self.serial.target && has_clients {
            true => self.serial.end.take(),
            false => SerialEnd::open(&target).map_err(Error::Serial)?,
        };
        self.serial = SerialSettings { target, end, limit };
        Ok(())
    }

    /// Returns the name of the other end of the serial port, by which a user finds it.
    pub fn serial_name(&self) -> Option<String> {
        self.serial.end.as_ref().map(SerialEnd::name)
    }

    /// Adds a device, or replaces the device of the same kind and ID.
    pub fn put_device(&mut self, device: DeviceConfig) -> Result<(), Error> {
        let (kind, id) = (device.kind(), device.id().to_owned());
        let mut config = self.config.clone();
        config.put_device(device).map_err(Error::Config)?;
        let find = |config: &VmConfig| Some(config.devices[config.position(kind, &id)?].clone());
        let Some(device) = find(&config) else {
            return Ok(());
        };
        let key = (kind, id.clone());
        if find(&self.config).is_some_and(|old| old.has_backend_of(&device)) {
            // The old device must release its lock on the same file first. If the new one cannot be opened, the start opens the
            // old one again.
            self.devices.remove(&key);
        }
        let opened = open_device(&device).map_err(Error::Device)?;
        self.devices.insert(key, opened);
        self.configured = true;
        self.config = config;
        Ok(())
    }

    /// Builds the machine and runs its guest, with the VM of `preparation` if it fits. With settings of a `debugger`, the VM waits
    /// for it: at a crash, and before the first instruction unless the guest is to run. After an error it can be called again.
    pub fn start(
        &mut self,
        host: &HostMemory,
        preparation: &mut Option<Preparation>,
        open_console: &mut OpenConsole,
        timeline: &Arc<Timeline>,
        debugger: Option<&DebugSettings>,
    ) -> Result<Vm, Error> {
        let Some((image, _)) = &self.boot else {
            return Err(Error::NoKernel);
        };
        let selected = Native::select_layout(image, &self.config).map_err(machine::Error::Platform);
        (self.config.layout, _) = selected.map_err(Error::Machine)?;
        let spec = self.config.clone().check(host).map_err(Error::Config)?;
        let prepared = preparation.take().and_then(Preparation::wait);
        prepared.iter().for_each(PreparedVm::expect_order);
        let devices = timeline.measure(Lane::Main, "open devices", || self.take_devices(&spec));
        let devices = devices.map_err(Error::Device)?;
        let Console {
            output,
            input,
            filter,
            guard,
        } = self.serial.open_console(open_console)?;
        let machine = Machine::build(spec, prepared, devices, output, timeline.clone());
        let machine = machine.map_err(Error::Machine)?;
        if let Some(settings) = debugger {
            machine.await_debugger(settings.is_running);
        }
        let Some((image, initrd)) = &self.boot else {
            return Err(Error::NoKernel);
        };
        let machine = machine.boot(image, initrd.as_ref()).map_err(Error::Machine)?;
        log_virtualization();
        let input = input.map(|file| ConsoleInput { file, filter });
        let boot_files = BootFiles {
            image: image.identity(),
            initrd: initrd.as_ref().and_then(Initrd::identity),
        };
        // For the symbols in the report of a crash, when the file may not be opened any more.
        let image = self
            .boot
            .take()
            .map(|(image, _)| GuestImage::Open(image.into_file()));
        Ok(Vm::booted(
            machine,
            boot_files,
            image.unwrap_or(GuestImage::Named),
            input,
            guard,
        ))
    }

    /// Takes the settings of [`set_serial`](Self::set_serial).
    pub fn take_serial(&mut self) -> SerialSettings {
        std::mem::take(&mut self.serial)
    }

    /// Takes the open devices of `spec`, and opens those that are not open yet.
    fn take_devices(&mut self, spec: &VmSpec) -> Result<Vec<OpenDevice>, DeviceError> {
        let configs = spec.config().devices.iter();
        configs
            .map(|config| {
                let key = (config.kind(), config.id().to_owned());
                self.devices.remove(&key).map_or_else(|| open_device(config), Ok)
            })
            .collect()
    }
}

/// Other end of the guest's serial port, and rate limit of the output.
#[derive(Default)]
pub struct SerialSettings {
    target: SerialTarget,
    /// The usual console without one.
    end: Option<SerialEnd>,
    limit: Option<Bucket>,
}

impl SerialSettings {
    /// Opens the console of the guest: at its end if there is one, else by `open_console`.
    pub fn open_console(&self, open_console: &mut OpenConsole) -> Result<Console, Error> {
        let mut console = match &self.end {
            Some(end) => end.console().map_err(Error::Serial)?,
            None => open_console().map_err(Error::Console)?,
        };
        if let Some(bucket) = self.limit {
            console.output.set_limit(bucket);
        }
        Ok(console)
    }
}

/// Logs once that this host has no hardware virtualization. The guest runs already: the query is slow in a virtual machine.
fn log_virtualization() {
    if log::log_enabled!(log::Level::Info) && !Native::has_hardware_virtualization() {
        log::info!(
            "this host has no hardware virtualization: KVM interprets the guest's kernel, and an image that uses SSE there fails; \
             use a host with VMX or SVM, or an image built for general registers only"
        );
    }
}
