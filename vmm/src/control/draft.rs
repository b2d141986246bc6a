//! A VM that is being configured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::virtio::block::Block;

use super::Error;
use super::serial::SerialFile;
use crate::arch::{Native, Platform};
use crate::boot::{Image, Initrd};
use crate::config::{self, DriveConfig, HostMemory, NetConfig, VmConfig, VmSpec};
use crate::machine::{DeviceError, Devices, Machine, OpenInterface, open_drive, open_interface};
use crate::timeline::{Lane, Timeline};
use crate::vm::{Console, Input, Vm};

/// Whoever connects the guest's serial port to the process, when the VM starts.
pub type OpenConsole = Box<dyn FnMut() -> Result<Console, Box<dyn std::error::Error + Send + Sync>>>;

/// What has been said of a VM so far. What was named is open, so that it stays what it was when it was named.
pub struct VmBuilder {
    pub config: VmConfig,
    configured: bool,
    boot: Option<(Image, Option<Initrd>)>,
    drives: BTreeMap<String, Block>,
    interfaces: BTreeMap<String, OpenInterface>,
    serial: Option<SerialFile>,
}

impl VmBuilder {
    pub fn new() -> Self {
        Self {
            config: VmConfig::new(PathBuf::new()),
            configured: false,
            boot: None,
            drives: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            serial: None,
        }
    }

    /// Everything at once, with the image already open.
    pub fn of(config: VmConfig, image: Image, initrd: Option<Initrd>) -> Self {
        Self {
            config,
            configured: true,
            boot: Some((image, initrd)),
            ..Self::new()
        }
    }

    /// Whether anything has been said that a snapshot says too, even if both say the same.
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    /// Sets what the machine is but for its devices.
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
    ) -> Result<(), Error> {
        let image = Image::open(&kernel, Native::MACHINE).map_err(Error::Image)?;
        let opened = initrd.as_deref().map(Initrd::open);
        self.boot = Some((image, opened.transpose().map_err(Error::Initrd)?));
        self.configured = true;
        self.config.kernel = kernel;
        self.config.initrd = initrd;
        self.config.cmdline = cmdline;
        Ok(())
    }

    pub fn set_serial(&mut self, path: Option<&Path>) -> Result<(), Error> {
        self.serial = path.map(SerialFile::open).transpose()?;
        Ok(())
    }

    /// Adds a drive, or replaces the one of the same name. One with the root file system is the first.
    pub fn put_drive(&mut self, config: DriveConfig) -> Result<(), Error> {
        let id = config.disk.id.clone();
        let others = self.config.drives.iter().filter(|other| other.disk.id != id);
        if config.root.is_some() && others.clone().any(|other| other.root.is_some()) {
            return Err(Error::Config(config::Error::Root));
        }
        if others.count() + self.config.nets.len() >= config::MAX_DEVICES {
            return Err(Error::Config(config::Error::Devices(config::MAX_DEVICES + 1)));
        }
        let place = self.config.drives.iter().position(|other| other.disk.id == id);
        if place.is_some_and(|place| self.config.drives[place].disk.path == config.disk.path) {
            // Two holders of one file would be in each other's way. Should it fail now, it is tried again at the start.
            self.drives.remove(&id);
        }
        let block = open_drive(&config).map_err(Error::Device)?;
        self.drives.insert(id, block);
        self.configured = true;
        match place {
            Some(place) => self.config.drives[place] = config,
            None => self.config.drives.push(config),
        }
        self.config.drives.sort_by_key(|drive| drive.root.is_none());
        Ok(())
    }

    /// Adds a network interface, or replaces the one of the same name.
    pub fn put_interface(&mut self, mut config: NetConfig) -> Result<(), Error> {
        let others = self.config.nets.iter().filter(|other| other.id != config.id);
        if let Some(mac) = config.mac
            && others.clone().any(|other| other.mac == config.mac)
        {
            return Err(Error::Config(config::Error::Mac(mac)));
        }
        if others.count() + self.config.drives.len() >= config::MAX_DEVICES {
            return Err(Error::Config(config::Error::Devices(config::MAX_DEVICES + 1)));
        }
        config.mac.get_or_insert_with(config::MacAddress::random);
        let place = self.config.nets.iter().position(|other| other.id == config.id);
        if place.is_some_and(|place| self.config.nets[place].backend == config.backend) {
            self.interfaces.remove(&config.id);
        }
        let interface = open_interface(&config).map_err(Error::Device)?;
        self.interfaces.insert(config.id.clone(), interface);
        self.configured = true;
        match place {
            Some(place) => self.config.nets[place] = config,
            None => self.config.nets.push(config),
        }
        Ok(())
    }

    /// Builds the machine and lets its guest run. After a failure it can be tried again.
    pub fn start(
        &mut self,
        host: &HostMemory,
        open_console: &mut OpenConsole,
        timeline: &Arc<Timeline>,
    ) -> Result<Vm, Error> {
        if self.boot.is_none() {
            return Err(Error::NoKernel);
        }
        let spec = self.config.clone().check(host).map_err(Error::Config)?;
        let devices = timeline.measure(Lane::Main, "open devices", || self.take_devices(&spec));
        let devices = devices.map_err(Error::Device)?;
        let Console {
            output,
            input,
            filter,
            guard,
        } = self.console(open_console)?;
        let machine = Machine::build(spec, devices, output, timeline.clone()).map_err(Error::Machine)?;
        let Some((image, initrd)) = &self.boot else {
            return Err(Error::NoKernel);
        };
        let machine = machine.boot(image, initrd.as_ref()).map_err(Error::Machine)?;
        let input = input.map(|file| Input::new(file, filter));
        Ok(Vm::new(machine, input, guard))
    }

    /// Where the guest's serial port leads.
    pub fn console(&self, open_console: &mut OpenConsole) -> Result<Console, Error> {
        match &self.serial {
            Some(file) => file.console(),
            None => open_console().map_err(Error::Console),
        }
    }

    /// What is open already, and what is not yet.
    fn take_devices(&mut self, spec: &VmSpec) -> Result<Devices, DeviceError> {
        let mut devices = Devices::default();
        for config in &spec.config().drives {
            let id = &config.disk.id;
            let block = self.drives.remove(id).map_or_else(|| open_drive(config), Ok)?;
            devices.drives.push((id.clone(), block));
        }
        for config in &spec.config().nets {
            let opened = self.interfaces.remove(&config.id);
            let interface = opened.map_or_else(|| open_interface(config), Ok)?;
            devices.interfaces.push((config.id.clone(), interface));
        }
        Ok(devices)
    }
}
