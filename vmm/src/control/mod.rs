//! What the owner of a VM can have done with it: configured, started, paused, changed, looked at.
//!
//! ```text
//! Not started ── start ──> Running <── pause, resume ──> Paused
//! ```
//! The guest's image, its disks and taps are opened when they are named, and a wish that cannot be fulfilled changes nothing.

mod draft;
mod error;
pub mod first_touch;
pub mod freeze;
mod metrics;
mod serial;
mod service;
#[cfg(test)]
mod tests;
pub mod thaw;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::limiter::Bucket;

use crate::boot::{Image, Initrd};
use crate::config::{DriveConfig, HostMemory, MemorySize, NetConfig, RateLimits, VmConfig};
use crate::memory::ResidencyCounter;
use crate::vm::Vm;

pub use crate::memory::dump::DumpStats;
pub use draft::OpenConsole;
use draft::VmBuilder;
pub use error::Error;
pub use first_touch::{RecordOptions, WorkingSetOptions};
pub use freeze::{CreateSnapshotParams, SnapshotKind};
pub use metrics::{DriveMetrics, InterfaceMetrics, StartPhase, VcpuMetrics, VmMetrics};
pub use service::Service;
pub use thaw::{LoadSnapshotParams, MemorySource};

pub use crate::ErrorChain;
pub use crate::timeline::Timeline;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It is being configured.
    NotStarted,
    /// Its guest runs.
    Running,
    /// Its guest is kept from running.
    Paused,
}

/// The size and kind of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: MemorySize,
    /// Whether it is to be known which pages change. It always is, at no cost, so that this changes nothing.
    pub track_dirty_pages: bool,
    /// Whether the kernel is asked for huge pages.
    pub huge_pages: bool,
}

/// A VM in the hands of its owner.
pub struct Control {
    host: HostMemory,
    timeline: Arc<Timeline>,
    open_console: OpenConsole,
    life: Life,
    failed: bool,
    touched: ResidencyCounter,
}

enum Life {
    Draft(Box<VmBuilder>),
    Started(Box<Vm>),
}

impl Control {
    /// A VM of which nothing is known yet.
    pub fn new(open_console: OpenConsole, timeline: Arc<Timeline>) -> Self {
        Self {
            host: HostMemory::this(),
            timeline,
            open_console,
            life: Life::Draft(Box::new(VmBuilder::new())),
            failed: false,
            touched: ResidencyCounter::default(),
        }
    }

    /// Replaces all that is known of the VM. `image` and `initrd` are those of `config`.
    ///
    /// # Errors
    /// [`Error::AfterStart`]
    pub fn configure(&mut self, config: VmConfig, image: Image, initrd: Option<Initrd>) -> Result<(), Error> {
        *self.draft()? = VmBuilder::of(config, image, initrd);
        Ok(())
    }

    /// Where the VM is in its life.
    pub fn state(&self) -> InstanceState {
        match &self.life {
            Life::Draft(_) => InstanceState::NotStarted,
            Life::Started(vm) if vm.is_paused() => InstanceState::Paused,
            Life::Started(_) => InstanceState::Running,
        }
    }

    /// What is known of the VM.
    pub fn config(&self) -> &VmConfig {
        match &self.life {
            Life::Draft(draft) => &draft.config,
            Life::Started(vm) => vm.machine().spec().config(),
        }
    }

    /// Whether an image has been named.
    pub fn has_kernel(&self) -> bool {
        match &self.life {
            Life::Draft(draft) => draft.has_kernel(),
            Life::Started(_) => true,
        }
    }

    /// Sets the size and kind of the machine.
    ///
    /// # Errors
    /// [`Error::AfterStart`], and [`Error::Config`] when there can be no such machine.
    pub fn set_machine(&mut self, machine: MachineConfig) -> Result<(), Error> {
        let host = self.host;
        let draft = self.draft()?;
        // Alone, so that what is wrong with the devices is not said here.
        let mut alone = VmConfig::new(PathBuf::new());
        machine.apply(&mut alone);
        alone.check(&host).map_err(Error::Config)?;
        draft.set_machine(|config| machine.apply(config));
        Ok(())
    }

    /// Names the image, what it is to get in the place of an initial RAM disk, and its command line.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Image`] and [`Error::Initrd`].
    pub fn set_boot(
        &mut self,
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: String,
    ) -> Result<(), Error> {
        self.draft()?.set_boot(kernel, initrd, cmdline)
    }

    /// Adds a drive, or replaces the one of the same name, which must not be empty.
    ///
    /// # Errors
    /// [`Error::AfterStart`], [`Error::Config`] and [`Error::Device`].
    pub fn put_drive(&mut self, config: DriveConfig) -> Result<(), Error> {
        self.draft()?.put_drive(config)
    }

    /// Adds a network interface, or replaces the one of the same name, which must not be empty.
    ///
    /// # Errors
    /// As [`Control::put_drive`].
    pub fn put_interface(&mut self, config: NetConfig) -> Result<(), Error> {
        self.draft()?.put_interface(config)
    }

    /// Has the guest's output appended to the file at `path`, which may be a FIFO; the guest then gets no input. Without a
    /// path, the guest has its usual console again.
    ///
    /// # Errors
    /// [`Error::AfterStart`] and [`Error::Serial`].
    pub fn set_serial(&mut self, path: Option<&Path>) -> Result<(), Error> {
        self.draft()?.set_serial(path)
    }

    /// Builds the machine and lets the guest run. After an error it can be tried again.
    ///
    /// # Errors
    /// [`Error`]
    pub fn start(&mut self) -> Result<(), Error> {
        let Life::Draft(draft) = &mut self.life else {
            return Err(Error::AfterStart);
        };
        let started = draft.start(&self.host, &mut self.open_console, &self.timeline);
        // A client that tries again and again must not fill the memory with what it tried.
        let vm = started.inspect_err(|_| self.timeline.clear())?;
        self.life = Life::Started(Box::new(vm));
        Ok(())
    }

    /// Makes the VM of a snapshot, which goes on at once or stays paused, as `thaw` has it. After an error that came of the
    /// snapshot, the event loop ends the process: it may have touched what the devices are connected to.
    ///
    /// # Errors
    /// [`thaw::Error`]; [`thaw::Error::Configured`] when something is known of the VM already, or it was started.
    pub fn load_snapshot(&mut self, thaw: &LoadSnapshotParams) -> Result<(), thaw::Error> {
        let draft = match &self.life {
            Life::Draft(draft) if !draft.is_configured() => draft,
            _ => return Err(thaw::Error::Configured),
        };
        let console = || draft.console(&mut self.open_console);
        let vm = thaw.load(&self.host, console, &self.timeline);
        self.failed = vm.is_err();
        let mut vm = vm?;
        if thaw.resume {
            vm.resume();
        } else {
            vm.prepare_resume();
        }
        self.life = Life::Started(Box::new(vm));
        Ok(())
    }

    /// Whether there is no going on after a [`load_snapshot`](Self::load_snapshot).
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Writes a snapshot of the VM, which must be paused and stays so. Returns how much memory was written.
    ///
    /// # Errors
    /// [`freeze::Error`]
    pub fn create_snapshot(&mut self, freeze: &CreateSnapshotParams) -> Result<DumpStats, freeze::Error> {
        let vm = self.vm_mut().ok_or(freeze::Error::Running)?;
        if vm.is_paused() {
            // What is frozen and goes on later is another beginning.
            vm.stop_recording();
        }
        freeze.create(vm)
    }

    /// Keeps the guest from running. Nothing happens if it is paused already.
    ///
    /// # Errors
    /// [`Error::BeforeStart`]. [`Error::Machine`] when a page fault handler does not let it.
    pub fn pause(&mut self) -> Result<(), Error> {
        let vm = self.vm_mut().ok_or(Error::BeforeStart)?;
        vm.pause().map_err(Error::Machine)
    }

    /// Lets a paused guest run again. Nothing happens if it runs.
    ///
    /// # Errors
    /// [`Error::BeforeStart`]
    pub fn resume(&mut self) -> Result<(), Error> {
        self.vm_mut().map(Vm::resume).ok_or(Error::BeforeStart)
    }

    /// Presses Ctrl-Alt-Del on the guest's keyboard. What the guest makes of it is its own affair; one that has its keyboard
    /// off, or has not read what was pressed before, does not even notice.
    ///
    /// # Errors
    /// [`Error::BeforeStart`] and [`Error::NoKeyboard`].
    pub fn send_ctrl_alt_del(&mut self) -> Result<(), Error> {
        let vm = self.vm().ok_or(Error::BeforeStart)?;
        if vm.machine().press_ctrl_alt_del() {
            return Ok(());
        }
        Err(Error::NoKeyboard)
    }

    /// Has the drive `id` go on with the file at `path`, if one is given, and replaces the buckets that are given of its
    /// limiter. When nothing is given, its file is asked for its size again.
    ///
    /// # Errors
    /// [`Error::BeforeStart`], [`Error::Unknown`] and [`Error::Drive`].
    pub fn update_drive(&mut self, id: &str, path: Option<&Path>, limits: RateLimits) -> Result<(), Error> {
        let machine = self.vm_mut().ok_or(Error::BeforeStart)?.machine_mut();
        let drives = machine.drives();
        let Some(index) = drives.iter().position(|drive| drive.id == id) else {
            return Err(unknown("drive", id, drives.iter().map(|drive| drive.id.as_str())));
        };
        let changed = drives[index].with(|block| {
            if path.is_some() || limits == RateLimits::default() {
                block.update(path)?;
            }
            block.update_limiter(limits.bandwidth, limits.operations);
            Ok(())
        });
        changed.map_err(|source| Error::Drive {
            id: id.to_owned(),
            source,
        })?;
        machine.change_config(|config| {
            let disk = &mut config.drives[index].disk;
            if let Some(path) = path {
                path.clone_into(&mut disk.path);
            }
            merge(&mut disk.bandwidth, limits.bandwidth);
            merge(&mut disk.operations, limits.operations);
        });
        Ok(())
    }

    /// Replaces the buckets that are given of what the guest may receive and send by the interface `id`.
    ///
    /// # Errors
    /// [`Error::BeforeStart`] and [`Error::Unknown`].
    pub fn update_interface(
        &mut self,
        id: &str,
        receive: RateLimits,
        transmit: RateLimits,
    ) -> Result<(), Error> {
        let machine = self.vm_mut().ok_or(Error::BeforeStart)?.machine_mut();
        let interfaces = machine.interfaces();
        let Some(index) = interfaces.iter().position(|interface| interface.id == id) else {
            let known = interfaces.iter().map(|interface| interface.id.as_str());
            return Err(unknown("network interface", id, known));
        };
        interfaces[index].with(|net| {
            net.receive_limiter_mut()
                .update(receive.bandwidth, receive.operations);
            net.transmit_limiter_mut()
                .update(transmit.bandwidth, transmit.operations);
        });
        machine.change_config(|config| {
            let net = &mut config.nets[index];
            for (limits, new) in [(&mut net.receive, receive), (&mut net.transmit, transmit)] {
                merge(&mut limits.bandwidth, new.bandwidth);
                merge(&mut limits.operations, new.operations);
            }
        });
        Ok(())
    }

    /// What the VM has done so far.
    pub fn metrics(&self) -> VmMetrics {
        VmMetrics::of(self.vm(), &self.timeline, &self.touched)
    }

    /// The VM, once it has been started.
    pub fn vm(&self) -> Option<&Vm> {
        match &self.life {
            Life::Draft(_) => None,
            Life::Started(vm) => Some(vm),
        }
    }

    /// As [`Control::load`].
    pub fn vm_mut(&mut self) -> Option<&mut Vm> {
        match &mut self.life {
            Life::Draft(_) => None,
            Life::Started(vm) => Some(vm),
        }
    }

    fn draft(&mut self) -> Result<&mut VmBuilder, Error> {
        match &mut self.life {
            Life::Draft(draft) => Ok(draft),
            Life::Started(_) => Err(Error::AfterStart),
        }
    }
}

impl MachineConfig {
    fn apply(self, config: &mut VmConfig) {
        config.vcpus = self.vcpus;
        config.memory = self.memory;
        config.track_dirty_pages = self.track_dirty_pages;
        config.huge_pages = self.huge_pages;
    }
}

fn merge(bucket: &mut Option<Bucket>, new: Option<Bucket>) {
    if new.is_some() {
        *bucket = new;
    }
}

fn unknown<'a>(kind: &'static str, id: &str, known: impl Iterator<Item = &'a str>) -> Error {
    Error::Unknown {
        kind,
        id: id.to_owned(),
        known: error::list(known),
    }
}
