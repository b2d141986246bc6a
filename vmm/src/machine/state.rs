//! What a machine has beyond its memory, in and out of a snapshot.
//!
//! | section | holds |
//! |---|---|
//! | `vcpu/N` | a vCPU |
//! | `serial` | the serial port |
//! | `virtio/N`, `virtio/N/device` | a device: first the drives, then the interfaces |
//! | `irqchip`, `clock` and others | what the [`Platform`] has |
//!
//! # Order
//! Saved: requests in flight are waited for first, since their ends are interrupts in the local APICs. Then each vCPU's thread
//! has KVM do what it has put off, such as the end of a level-triggered interrupt, which reaches the interrupt controllers; and
//! reads its vCPU, all at the same time. Meanwhile the devices are read, so that all clocks stand where they stood at one time.
//! From then on guest memory is what it will be, and can be saved while vCPUs are still being read.
//!
//! Restored: each vCPU's thread gives its vCPU its state, while this one does the same with the devices. What a device raises
//! in doing so goes to interrupt controllers at reset, and is replaced by what was pending when they are restored in their turn.
//! What would reach into a local APIC comes after the vCPUs; and only when the guest is about to go on do the devices look
//! for what there is to do.

use std::sync::mpsc::{self, Receiver, RecvError, TryRecvError};
use std::thread;

use devices::lock;
use devices::virtio::net::passt;
use snapshot::persist::Error as PartError;
use snapshot::section::Error as SectionError;
use snapshot::{ArchiveReader, ArchiveWriter, Component};

use super::Machine;
use super::attachments::AttachedDevice;
use crate::arch::Platform;
use crate::timeline::Lane;
use crate::vcpu::{NativeVcpuState, StateReply, VcpuInit, VcpuThread};

const SERIAL: &str = "serial";

/// Why a machine could not give or take its state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest runs, or has ended.
    #[error("the VM must be paused for its state to be saved")]
    Running,
    /// The vCPU has left the guest for good.
    #[error("vCPU {0} has ended, and there is no state of it any more")]
    Ended(u8),
    /// The state of a vCPU.
    #[error("cannot move the state of vCPU {id}")]
    Vcpu {
        /// Which one.
        id: u8,
        /// What is wrong.
        #[source]
        source: PartError,
    },
    /// The state of one of its parts.
    #[error("cannot move the state of the machine's devices")]
    Part(#[source] PartError),
    /// The sections do not fit the machine.
    #[error("the saved state is not that of this machine")]
    Sections(#[source] SectionError),
    /// The program that was to serve the network has ended.
    #[error("cannot give the guest a network")]
    Passt(#[source] passt::Error),
}

/// Times that a vCPU's thread is looked for before this one sleeps: somewhat longer than it takes a vCPU to be read or written.
const LOOKS: usize = 1000;

/// The answer of a vCPU's thread. To fall asleep and be woken takes a good part of the time that the answer does.
fn receive_spinning<T>(answer: &Receiver<T>) -> Result<T, RecvError> {
    for _ in 0..LOOKS {
        match answer.try_recv() {
            Err(TryRecvError::Empty) => thread::yield_now(),
            Ok(answer) => return Ok(answer),
            Err(TryRecvError::Disconnected) => return Err(RecvError),
        }
    }
    answer.recv()
}

/// Waits for the state of vCPU `id`.
fn state_of(id: u8, vcpu: &StateReply) -> Result<NativeVcpuState, Error> {
    let state = receive_spinning(&vcpu.state).map_err(|_| Error::Ended(id))?;
    state.map_err(|source| Error::Vcpu { id, source })
}

/// A machine whose state is being read. Dropped, nothing is saved, and the machine can go on.
pub struct StateSave<'a> {
    machine: &'a Machine,
    vcpus: Vec<StateReply>,
}

impl StateSave<'_> {
    /// Waits until KVM has done what it had put off, and adds the devices to `archive`. Memory can be saved then, unless
    /// [`finish`](Self::finish) says later that there was more.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Vcpu`] and [`Error::Part`].
    pub fn save_devices(&self, archive: &mut ArchiveWriter) -> Result<(), Error> {
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            if receive_spinning(&vcpu.flushed).is_err() {
                state_of(id, vcpu)?;
            }
        }
        self.machine.put_devices(archive).map_err(Error::Part)
    }

    /// Adds the vCPUs to `archive`. True when devices and memory may have changed since [`save_devices`](Self::save_devices) returned: rarely,
    /// when a timer of the guest has expired meanwhile.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Vcpu`] and [`Error::Sections`].
    pub fn finish(self, archive: &mut ArchiveWriter) -> Result<bool, Error> {
        let mut is_changed = false;
        for (id, vcpu) in (0..).zip(&self.vcpus) {
            let state = state_of(id, vcpu)?;
            is_changed |= vcpu.flushed.try_recv().is_ok();
            archive.write(&vcpu_key(id), &state).map_err(Error::Sections)?;
        }
        Ok(is_changed)
    }
}

impl Machine {
    /// Adds the state of the machine, which is paused, to `archive`. It can go on, or be saved again.
    ///
    /// Memory is to be saved after this: requests in flight are completed, and KVM may write what it had put off.
    ///
    /// # Errors
    /// [`Error::Running`], [`Error::Ended`], [`Error::Vcpu`], [`Error::Part`], and [`Error::Sections`] when `archive` has
    /// sections of the same names.
    pub fn save(&self, archive: &mut ArchiveWriter) -> Result<(), Error> {
        self.begin_save()?.finish(archive)?;
        self.put_devices(archive).map_err(Error::Part)
    }

    /// Begins to save the machine: the vCPUs' threads read their vCPUs, while this one may do something else. [`StateSave::save_devices`]
    /// and [`StateSave::finish`] do the rest.
    ///
    /// # Errors
    /// [`Error::Running`]
    pub fn begin_save(&self) -> Result<StateSave<'_>, Error> {
        if !self.shared.gate.is_closed() {
            return Err(Error::Running);
        }
        self.devices.iter().for_each(AttachedDevice::drain);
        let vcpus = self.vcpus.iter().map(|vcpu| vcpu.request_state()).collect();
        self.shared.gate.notify_waiters();
        Ok(StateSave { machine: self, vcpus })
    }

    /// Has each vCPU's thread take its vCPU as far as the door of the guest and back, and does not wait for it. What KVM does on a
    /// vCPU's first way there is done then when the machine goes on; it takes longer than to wake the thread.
    pub fn prepare_resume(&self) {
        self.vcpus.iter().for_each(VcpuThread::request_flush);
        self.shared.gate.notify_waiters();
    }

    fn put_devices(&self, archive: &mut ArchiveWriter) -> Result<(), PartError> {
        lock(&self.serial).save_section(SERIAL, archive)?;
        for (index, device) in self.devices.iter().enumerate() {
            device.save(&virtio_key(index), archive)?;
        }
        self.platform.save_state(archive)
    }

    /// Gives the machine, which was [built around](Self::build_around) the memory that belongs to it, the state in `archive`,
    /// all of which it takes. It is paused then: [`unpause`](Self::unpause) lets the guest go on. With `realtime` the guest's
    /// clock jumps to where it would stand had it never stopped.
    ///
    /// # Errors
    /// [`Error::Vcpu`], [`Error::Part`], [`Error::Sections`] and [`Error::Passt`]. No vCPU has entered the guest then.
    pub fn restore(mut self, mut archive: ArchiveReader<'_>, realtime: bool) -> Result<Self, Error> {
        // Nobody is in the guest yet, so that there is nobody to wait for; who comes later waits.
        self.shared.gate.close(0, || ());
        let (restored, answers) = (0..self.vcpus.len())
            .map(|_| mpsc::sync_channel(1))
            .collect::<(Vec<_>, Vec<_>)>();
        for ((id, vcpu), restored) in (0..).zip(&self.vcpus).zip(restored) {
            let state = read_vcpu(id, &mut archive)?;
            vcpu.start(self.start(VcpuInit::State { state, restored }));
        }
        self.restore_devices(&mut archive).map_err(Error::Part)?;
        for device in &mut self.devices {
            device.check_process().map_err(Error::Passt)?;
        }
        for (id, answer) in (0..).zip(answers) {
            let done = receive_spinning(&answer).map_err(|_| Error::Ended(id))?;
            done.map_err(|source| Error::Vcpu { id, source })?;
        }
        self.platform
            .restore_after_vcpus(&mut archive, realtime)
            .map_err(Error::Part)?;
        archive.finish().map_err(Error::Sections)?;
        self.needs_notify.set(true);
        self.timeline.mark(Lane::Main, "state restored");
        Ok(self)
    }

    fn restore_devices(&self, archive: &mut ArchiveReader<'_>) -> Result<(), PartError> {
        lock(&self.serial).restore_section(SERIAL, archive)?;
        for (index, device) in self.devices.iter().enumerate() {
            device.restore(&virtio_key(index), archive)?;
        }
        self.platform.restore_before_vcpus(archive)
    }

    /// Has the devices look for what there is to do, once after a restore.
    pub(super) fn notify_devices(&self) {
        if self.needs_notify.take() {
            self.devices.iter().for_each(AttachedDevice::notify_restored);
        }
    }
}

/// What is in the making takes several times its size, which the stack of who goes on does not need any more.
#[inline(never)]
fn read_vcpu(id: u8, archive: &mut ArchiveReader<'_>) -> Result<Box<NativeVcpuState>, Error> {
    let state: NativeVcpuState = archive.read(&vcpu_key(id)).map_err(Error::Sections)?;
    Ok(Box::new(state))
}

fn vcpu_key(id: u8) -> String {
    format!("vcpu/{id}")
}

fn virtio_key(index: usize) -> String {
    format!("virtio/{index}")
}
