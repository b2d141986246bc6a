//! State of a machine other than its memory: save and restore.
//!
//! | section | content |
//! |---|---|
//! | `vcpu/N` | vCPU |
//! | `serial` | serial port |
//! | `virtio/N`, `virtio/N/device` | transport and device: first the drives, then the network interfaces |
//! | `identity` | loads in the history of the VM, if the guest has an [identity record](crate::identity) |
//! | `irqchip`, `clock` and others | state of the [`Platform`] |
//!
//! # Order
//! Save: requests in flight complete first, because their interrupts are in the local APICs. Then each vCPU thread flushes KVM's
//! pending work, such as the end of a level-triggered interrupt, which changes the interrupt controllers. It then reads its vCPU, at
//! the same time as the other threads. Meanwhile this thread reads the devices, so that the clocks of vCPUs and devices are saved at
//! one time. From then on guest memory is final: it can be dumped while vCPUs are still being read.
//!
//! Restore: each vCPU thread restores its vCPU while this thread restores the devices. An interrupt that a device raises meanwhile
//! goes to interrupt controllers at reset, whose state is replaced afterwards. Components that access a local APIC follow the vCPUs.
//! The devices process their available buffers only when the guest is resumed. Then the first vCPU thread that enters the guest writes
//! the new identity record: until then, no thread touches guest memory, whose file or fault handler may not answer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::lock;
use devices::virtio::net::passt;
pub use snapshot::persist::Error as StateError;
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::attachments::AttachedDevice;
use super::io_thread::{IoThread, ThreadWait, WAIT_INTERVAL};
use super::{Machine, MachineParts};
use crate::arch::{CpuRestore, Native, Platform};
use crate::channel::{ReceiveError, Receiver, channel, poll};
use crate::identity::{self, IdentityState, PendingRecord};
use crate::timeline::Lane;
use crate::vcpu::{NativeVcpuState, PauseGate, SavedVcpu, StateReply, ThreadSet, VcpuThread};

const SERIAL: &str = "serial";

/// Reason why the state of a machine cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest runs.
    #[error("cannot save the state of the VM: it is not paused; pause it first")]
    Running,
    /// The guest has stopped, or the process ends.
    #[error("cannot save the state of the VM: it has stopped")]
    Stopped,
    /// A vCPU has stopped.
    #[error("cannot access the state of vCPU {0}: the vCPU has stopped")]
    Ended(u8),
    /// The state of a vCPU cannot be saved or restored.
    #[error("cannot save or restore vCPU {id}")]
    Vcpu {
        /// Number of the vCPU.
        id: u8,
        /// Cause.
        #[source]
        source: StateError,
    },
    /// The state of a device or of the platform cannot be saved or restored.
    #[error("cannot save or restore the devices")]
    Devices(#[source] StateError),
    /// The sections do not match the machine.
    #[error("cannot access the sections of the state: they do not match the machine")]
    Sections(#[source] SectionError),
    /// The identity cannot be created.
    #[error(transparent)]
    Identity(identity::Error),
    /// The passt process of an interface has ended.
    #[error("cannot connect the network interface")]
    Passt(#[source] passt::Error),
    /// A thread does not answer.
    #[error("cannot save or restore the state of the VM")]
    Thread(#[source] ThreadWait),
    /// The I/O thread cannot be started.
    #[error("cannot start the I/O thread")]
    IoThread(#[source] io::Error),
}

/// Receives the reply of the thread of vCPU `id`, within `timeout` and before the stop of `gate`. Polls first: sleeping and waking take as
/// long as most replies. Returns `None` if the reply is late.
fn receive_spinning<T>(
    id: u8,
    reply: &Receiver<T>,
    gate: &PauseGate,
    timeout: Duration,
) -> Result<Option<T>, Error> {
    let polled = poll(|| match reply.try_receive() {
        Err(ReceiveError::Empty) => None,
        received => Some(received),
    });
    if let Some(received) = polled {
        return received.map(Some).map_err(|_| Error::Ended(id));
    }
    let deadline = Instant::now() + timeout;
    loop {
        match reply.receive_within(WAIT_INTERVAL) {
            Ok(reply) => return Ok(Some(reply)),
            Err(ReceiveError::Disconnected) => return Err(Error::Ended(id)),
            Err(ReceiveError::Empty) if Instant::now() < deadline && !gate.is_stopped() => {}
            Err(ReceiveError::Empty) => return Ok(None),
        }
    }
}

/// Restore of the vCPUs of a machine, on their threads.
pub struct VcpuRestore(Vec<Receiver<Result<(), StateError>>>);

impl MachineParts {
    /// Begins to restore the vCPUs from `archive`, while the rest of the machine is built.
    ///
    /// # Errors
    /// [`Error::Sections`]
    pub fn begin_restore(
        &self,
        archive: &mut ArchiveReader<'_>,
        params: CpuRestore,
    ) -> Result<VcpuRestore, Error> {
        // No vCPU is in the guest yet, so that the gate closes at once; the threads wait at it after their restore.
        self.vm.shared.gate.close_at_start();
        let begin = |(id, vcpu): (u8, &VcpuThread)| {
            let (restored, reply) = channel();
            let state = read_vcpu(id, archive)?;
            vcpu.restore(SavedVcpu {
                state,
                params,
                restored,
            });
            Ok(reply)
        };
        let replies: Result<_, Error> = (0..).zip(&self.vm.vcpus).map(begin).collect();
        replies.map(VcpuRestore)
    }
}

/// Save in progress. When it is dropped, nothing is saved, and the machine can be resumed.
pub struct StateSave<'a> {
    machine: &'a Machine,
    vcpus: Vec<StateReply>,
}

impl StateSave<'_> {
    /// Waits until KVM's pending work is flushed, and adds the devices to `archive`. Memory can be dumped afterwards, unless
    /// [`finish`](Self::finish) reports a change.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Vcpu`], [`Error::Thread`] and [`Error::Devices`].
    pub fn save_devices(&self, archive: &mut ArchiveWriter) -> Result<(), Error> {
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            match self.machine.receive(id, &vcpu.flushed) {
                Err(Error::Ended(_)) => drop(self.machine.receive_state(id, vcpu)?),
                result => result?,
            }
        }
        self.machine.save_devices(archive).map_err(Error::Devices)
    }

    /// Adds the vCPUs to `archive`. Returns true if devices and memory may have changed since [`save_devices`](Self::save_devices):
    /// rarely, when a timer of the guest expired meanwhile.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Vcpu`], [`Error::Thread`] and [`Error::Sections`].
    pub fn finish(self, archive: &mut ArchiveWriter) -> Result<bool, Error> {
        let mut is_changed = false;
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            let state = self.machine.receive_state(id, vcpu)?;
            is_changed |= vcpu.flushed.try_receive().is_ok();
            archive.write(&vcpu_key(id), &state).map_err(Error::Sections)?;
        }
        Ok(is_changed)
    }
}

impl Machine {
    /// Adds the settings to `archive` that the build of this machine requires besides its configuration.
    ///
    /// # Errors
    /// As [`ArchiveWriter::write`].
    pub(crate) fn save_settings(&self, archive: &mut ArchiveWriter) -> Result<(), SectionError> {
        self.platform.save_settings(archive)
    }

    /// Adds the state of the paused machine to `archive`.
    ///
    /// Memory must be dumped after this call: it completes requests in flight, and KVM may write guest memory.
    ///
    /// # Errors
    /// [`Error::Running`], [`Error::Stopped`], [`Error::Ended`], [`Error::Vcpu`], [`Error::Thread`], [`Error::Devices`], and [`Error::Sections`] when `archive` has
    /// sections with the same keys.
    pub fn save(&self, archive: &mut ArchiveWriter) -> Result<(), Error> {
        self.begin_save()?.finish(archive)?;
        self.save_devices(archive).map_err(Error::Devices)
    }

    /// Begins to save the machine: the vCPU threads read their vCPUs, while this thread is free for other work.
    /// [`StateSave::save_devices`] and [`StateSave::finish`] follow.
    ///
    /// # Errors
    /// [`Error::Running`], [`Error::Stopped`] and [`Error::Thread`].
    pub fn begin_save(&self) -> Result<StateSave<'_>, Error> {
        if self.shared.gate.is_stopped() {
            return Err(Error::Stopped);
        }
        if !self.shared.gate.is_closed() {
            return Err(Error::Running);
        }
        self.drain_devices()?;
        let vcpus = self.vcpus.iter().map(|vcpu| vcpu.request_state()).collect();
        self.shared.gate.notify_waiters();
        Ok(StateSave { machine: self, vcpus })
    }

    /// Requests each vCPU thread to flush KVM's pending work, and returns without waiting. This saves time at the resume: the first
    /// guest entry of a vCPU takes longer than the wakeup of its thread.
    pub fn prepare_resume(&self) {
        self.vcpus.iter().for_each(VcpuThread::request_flush);
        self.shared.gate.notify_waiters();
    }

    /// Receives the reply of the thread of vCPU `id`.
    fn receive<T>(&self, id: u8, reply: &Receiver<T>) -> Result<T, Error> {
        let reply = receive_spinning(id, reply, &self.shared.gate, self.thread_timeout())?;
        reply.ok_or_else(|| Error::Thread(self.thread_wait(ThreadSet::vcpu(id))))
    }

    /// Receives the state of vCPU `id`.
    fn receive_state(&self, id: u8, vcpu: &StateReply) -> Result<NativeVcpuState, Error> {
        let state = self.receive(id, &vcpu.state)?;
        state.map_err(|source| Error::Vcpu { id, source })
    }

    /// Waits until no request of the paused machine is in flight.
    ///
    /// # Errors
    /// [`Error::Thread`]
    pub(crate) fn drain_devices(&self) -> Result<(), Error> {
        let Some(io_thread) = &self.io_thread else {
            self.devices.iter().for_each(AttachedDevice::drain);
            return Ok(());
        };
        let transports: Vec<_> = self.devices.iter().map(AttachedDevice::transport).collect();
        let drained = io_thread.run(move |_| {
            transports.iter().for_each(|transport| lock(transport).drain());
            Some(())
        });
        drained.map_err(Error::Thread)
    }

    fn save_devices(&self, archive: &mut ArchiveWriter) -> Result<(), StateError> {
        lock(&self.serial.port).save_section(SERIAL, archive)?;
        for (index, device) in self.devices.iter().enumerate() {
            device.save(&virtio_key(index), archive)?;
        }
        if let Some(identity) = &self.identity {
            archive
                .write(identity::SECTION, identity)
                .map_err(|source| StateError::Section {
                    key: identity::SECTION.to_owned(),
                    source,
                })?;
        }
        self.platform.save_state(archive)
    }

    /// Restores the machine, whose vCPUs are in restore, from the rest of `archive`, which must be consumed. With `realtime` the guest's
    /// clock advances by the time since the save. The machine is paused then; [`resume`](Self::resume) runs the guest.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Vcpu`], [`Error::Thread`], [`Error::Devices`], [`Error::Sections`], [`Error::Identity`],
    /// [`Error::Passt`] and [`Error::IoThread`]. No vCPU has entered the guest then.
    pub fn restore(
        mut self,
        vcpus: VcpuRestore,
        mut archive: ArchiveReader<'_>,
        realtime: bool,
    ) -> Result<Self, Error> {
        let identity = self.restore_identity(&mut archive)?;
        for vcpu in &self.vcpus {
            vcpu.start(self.start_context(None, identity.clone()));
        }
        self.restore_devices(&mut archive).map_err(Error::Devices)?;
        for device in &mut self.devices {
            device.check_process().map_err(Error::Passt)?;
        }
        for (id, reply) in (0..).zip(vcpus.0) {
            let result = self.receive(id, &reply)?;
            result.map_err(|source| Error::Vcpu { id, source })?;
        }
        self.platform
            .restore_after_vcpus(&mut archive, realtime)
            .map_err(Error::Devices)?;
        archive.finish().map_err(Error::Sections)?;
        self.needs_locks.store(true, Ordering::Relaxed);
        // The machine is paused: a snapshot before its resume has no breakpoint.
        self.breakpoints.lift(&self.memory);
        if self.fault_handler.is_some() {
            self.start_io_thread().map_err(Error::IoThread)?;
        } else {
            self.needs_notify.store(true, Ordering::Relaxed);
        }
        self.timeline.mark(Lane::Main, "state restored");
        Ok(self)
    }

    /// Creates the identity that follows that of the state.
    fn restore_identity(
        &mut self,
        archive: &mut ArchiveReader<'_>,
    ) -> Result<Option<Arc<PendingRecord>>, Error> {
        let config = self.spec.config();
        if Native::identity_address(config.layout, config.memory).is_none() {
            return Ok(None);
        }
        let saved: IdentityState = archive.read(identity::SECTION).map_err(Error::Sections)?;
        let record = self.create_identity(saved.loaded()).map_err(Error::Identity)?;
        self.needs_identity_notice.store(true, Ordering::Relaxed);
        Ok(record.map(|record| Arc::new(PendingRecord::new(record))))
    }

    fn restore_devices(&self, archive: &mut ArchiveReader<'_>) -> Result<(), StateError> {
        lock(&self.serial.port).restore_section(SERIAL, archive)?;
        for (index, device) in self.devices.iter().enumerate() {
            device.restore(&virtio_key(index), archive)?;
        }
        self.platform.restore_before_vcpus(archive)
    }

    /// Passes the devices to the I/O thread, which processes their available buffers once the machine is resumed.
    fn start_io_thread(&mut self) -> io::Result<()> {
        let sources = self.event_sources.split_off(self.platform_sources);
        let transports: Vec<_> = self.devices.iter().map(AttachedDevice::transport).collect();
        let start = move || {
            transports
                .iter()
                .for_each(|transport| lock(transport).notify_restored());
        };
        self.io_thread = Some(IoThread::spawn(sources, start, self.shared.clone())?);
        Ok(())
    }

    /// Processes the available buffers of the devices once after a restore.
    pub(super) fn notify_devices(&self) {
        if self.needs_notify.swap(false, Ordering::Relaxed) {
            self.devices.iter().for_each(AttachedDevice::notify_restored);
        }
    }
}

/// Reads the state of vCPU `id` from `archive`.
///
/// # Errors
/// [`Error::Sections`]
// Not inlined: decoding needs several times the size of the state; the caller must not keep that stack space.
#[inline(never)]
pub fn read_vcpu(id: u8, archive: &mut ArchiveReader<'_>) -> Result<Box<NativeVcpuState>, Error> {
    let state: NativeVcpuState = archive.read(&vcpu_key(id)).map_err(Error::Sections)?;
    Ok(Box::new(state))
}

fn vcpu_key(id: u8) -> String {
    format!("vcpu/{id}")
}

fn virtio_key(index: usize) -> String {
    format!("virtio/{index}")
}
