//! The thread of one vCPU.
//!
//! ```text
//! spawn ── profile (first thread asks KVM, the others wait for it)
//!   │
//! prepare(VcpuFd) ── KVM_SET_CPUID2, registers at reset
//!   │
//! start(origin) ── KVM_RUN until the guest ends or the thread is told to stop
//! ```
//! A thread that is given a saved state has no use for the profile and waits for none; see [`VcpuShared::restores`].

mod park;

pub use park::StateReply;

use std::io;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};

use devices::{Bus, Power};
use kvm_ioctls::{Kvm, VcpuFd};
use snapshot::GuestMemory;
use snapshot::persist::Error as StateError;
use vmm_sys_util::eventfd::EventFd;

use self::park::ParkRequest;
use super::exit::{ExitAction, Targets, handle};
use super::{ExitCounters, Location, PauseGate, StopReason, VcpuError};
use crate::arch::{Cpu, Native, Platform};
use crate::kvm::{self, Kick, RunPage};
use crate::timeline::{Lane, Timeline};

type NativeCpu = <Native as Platform>::Cpu;
type Profile = <NativeCpu as Cpu>::Profile;
type Entry = <NativeCpu as Cpu>::Entry;
/// The saved state of a vCPU.
pub type NativeVcpuState = <NativeCpu as Cpu>::State;

/// A vCPU's thread needs little more than the frames of one exit.
const STACK_SIZE: usize = 128 << 10;

/// What all vCPU threads of a machine share from the beginning.
pub struct VcpuShared {
    /// The system file descriptor.
    pub kvm: Arc<Kvm>,
    /// Number of vCPUs.
    pub count: u8,
    /// Where phases are recorded.
    pub timeline: Arc<Timeline>,
    /// Where the threads report that they have ended.
    pub reports: Sender<StopReason>,
    /// Signalled with every report.
    pub reported: EventFd,
    /// Where the threads wait while the VM is paused.
    pub gate: PauseGate,
    /// The vCPUs will be given a saved state, so that nobody asks KVM what their processor can be.
    pub restores: bool,
    /// The processor that the guest sees; filled by the first thread that needs it.
    pub profile: OnceLock<Result<Profile, (String, i32)>>,
}

impl VcpuShared {
    fn profile(&self, id: u8) -> Result<&Profile, kvm::Error> {
        let profile = self.profile.get_or_init(|| {
            self.timeline
                .measure(Lane::Vcpu(id), "ask for CPUID", || NativeCpu::profile(&self.kvm))
                .map_err(|error| match error {
                    kvm::Error::Call { call, source, .. } => (call, source.raw_os_error().unwrap_or(0)),
                    other => (other.to_string(), 0),
                })
        });
        profile.as_ref().map_err(|(call, errno)| kvm::Error::Call {
            call: call.clone(),
            hint: "",
            source: io::Error::from_raw_os_error(*errno),
        })
    }

    fn report(&self, ending: StopReason) {
        // Both fail only when the owner of the VM is gone, and with it everybody who could be told.
        let _ = self.reports.send(ending);
        let _ = self.reported.write(1);
    }
}

/// What a vCPU needs to enter the guest.
pub struct Start {
    /// The machine around it.
    pub platform: Arc<Native>,
    /// Ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped registers.
    pub memory_bus: Arc<Bus>,
    /// Where the guest says that it has ended.
    pub power: Arc<Power>,
    /// The guest's memory, for reports.
    pub memory: GuestMemory,
    /// What the vCPU is like when it enters.
    pub origin: VcpuInit,
}

/// What a vCPU starts from.
pub enum VcpuInit {
    /// Its state at reset: it waits for another vCPU to start it.
    Reset,
    /// The registers of the vCPU that boots.
    Entry(Entry),
    /// A saved state.
    State {
        /// The state.
        state: Box<NativeVcpuState>,
        /// Told whether the vCPU has taken it; one that has not never enters the guest.
        restored: SyncSender<Result<(), StateError>>,
    },
}

/// The owner's end of a vCPU's thread.
pub struct VcpuThread {
    prepare: SyncSender<VcpuFd>,
    start: SyncSender<Start>,
    asked: Sender<ParkRequest>,
    kick: Kick,
    exits: Arc<ExitCounters>,
    shared: Arc<VcpuShared>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    /// Starts the thread of vCPU `id`, which waits for its vCPU.
    ///
    /// # Errors
    /// [`VcpuError::Thread`]
    pub fn spawn(id: u8, kick: Kick, shared: Arc<VcpuShared>) -> Result<Self, VcpuError> {
        // Each is used once. A channel without a bound has room for some thirty from the first.
        let (prepare, wait_prepare) = mpsc::sync_channel(1);
        let (start, wait_start) = mpsc::sync_channel(1);
        let (asked, wait_asked) = mpsc::channel();
        let exits = Arc::new(ExitCounters::default());
        let body = VcpuRunner {
            id,
            kick: kick.clone(),
            exits: exits.clone(),
            shared: shared.clone(),
            asked: wait_asked,
        };
        let thread = Builder::new()
            // The name by which orchestrators find the threads of vCPUs, to put them into control groups.
            .name(format!("fc_vcpu {id}"))
            .stack_size(STACK_SIZE)
            .spawn(move || body.run(&wait_prepare, &wait_start))
            .map_err(|source| VcpuError::Thread { id, source })?;
        Ok(Self {
            prepare,
            start,
            asked,
            kick,
            exits,
            shared,
            thread: Some(thread),
        })
    }

    /// Hands the thread its vCPU, which it prepares at once.
    pub fn prepare(&self, vcpu: VcpuFd) {
        // A thread that is gone has reported why.
        let _ = self.prepare.send(vcpu);
    }

    /// Makes the vCPUs of its machine leave the guest for good, this one at once, without waiting for them.
    pub fn stop(&self) {
        self.shared.gate.stop();
        self.kick.kick();
    }

    /// Interrupts the vCPU, so that its thread looks at the gate.
    pub fn kick(&self) {
        self.kick.kick();
    }

    /// How often the vCPU has left the guest.
    pub fn exits(&self) -> &ExitCounters {
        &self.exits
    }

    /// Asks the thread, which waits at the gate or is about to, for its vCPU's state. It answers once the gate
    /// [calls](PauseGate::call).
    pub fn request_state(&self) -> StateReply {
        let (asked, answer) = StateReply::channels();
        let _ = self.asked.send(asked);
        answer
    }

    /// Asks the thread to have KVM do all that it puts off until the vCPU enters the guest; otherwise as
    /// [`request_state`](Self::request_state).
    pub fn request_flush(&self) {
        let _ = self.asked.send(ParkRequest::Settling);
    }

    /// Lets the vCPU enter the guest, as far as the gate does.
    pub fn start(&self, start: Start) {
        let _ = self.start.send(start);
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.stop();
        // Without its senders a thread that still waits for its vCPU ends.
        (self.prepare, self.start) = (mpsc::sync_channel(0).0, mpsc::sync_channel(0).0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct VcpuRunner {
    id: u8,
    kick: Kick,
    exits: Arc<ExitCounters>,
    shared: Arc<VcpuShared>,
    asked: Receiver<ParkRequest>,
}

/// What is not needed each time that the guest is entered is not inlined: all of a thread's stack is touched by the frame that the
/// guest runs from, and there are as many stacks as vCPUs.
impl VcpuRunner {
    fn run(self, wait_prepare: &Receiver<VcpuFd>, wait_start: &Receiver<Start>) {
        self.work(wait_prepare, wait_start);
        self.shared.gate.leave();
    }

    fn work(&self, wait_prepare: &Receiver<VcpuFd>, wait_start: &Receiver<Start>) {
        let lane = Lane::Vcpu(self.id);
        self.shared.timeline.mark(lane, "thread runs");
        let profile = (!self.shared.restores).then(|| self.shared.profile(self.id));
        let Ok(mut vcpu) = wait_prepare.recv() else { return };
        let prepared = profile.map_or(Ok(()), |profile| {
            self.shared.timeline.measure(lane, "prepare vCPU", || {
                NativeCpu::configure(&vcpu, self.id, self.shared.count, profile?)
            })
        });
        let Ok(mut start) = wait_start.recv() else { return };
        let origin = std::mem::replace(&mut start.origin, VcpuInit::Reset);
        let is_restored = matches!(origin, VcpuInit::State { .. });
        let ending = match prepared.and_then(|()| self.init_vcpu(&vcpu, origin)) {
            Ok(true) => self.guest(&mut vcpu, &start, is_restored),
            Ok(false) => None,
            Err(source) => Some(StopReason::Fault(VcpuError::Prepare { id: self.id, source })),
        };
        if let Some(ending) = ending {
            self.shared.report(ending);
        }
    }

    /// Makes the vCPU what it is to be; false when that has failed and whoever asked for it knows.
    #[inline(never)]
    fn init_vcpu(&self, vcpu: &VcpuFd, origin: VcpuInit) -> Result<bool, kvm::Error> {
        let lane = Lane::Vcpu(self.id);
        let timeline = &self.shared.timeline;
        match origin {
            VcpuInit::Reset => Ok(true),
            VcpuInit::Entry(entry) => timeline
                .measure(lane, "set registers", || {
                    NativeCpu::set_boot_registers(vcpu, &entry)
                })
                .map(|()| true),
            VcpuInit::State { state, restored } => {
                let done = timeline.measure(lane, "restore vCPU", || {
                    NativeCpu::restore(vcpu, &self.shared.kvm, &state)
                });
                let is_done = done.is_ok();
                // Before anybody asks the heap for what is not in use.
                drop(state);
                // Nobody waits for it when another vCPU has failed.
                let _ = restored.send(done);
                Ok(is_done)
            }
        }
    }

    /// Runs the guest. Nothing is returned when the thread was told to stop.
    fn guest(&self, vcpu: &mut VcpuFd, start: &Start, is_restored: bool) -> Option<StopReason> {
        let bound = self.kick.bind(vcpu.get_kvm_run());
        self.shared.timeline.mark(Lane::Vcpu(self.id), "enter guest");
        let mut first = true;
        // Nobody has told the shared page yet whether a restored vCPU takes interrupts; one that is halted would sleep through
        // what is pending already.
        if is_restored && let Err(ending) = self.complete(vcpu, start, &mut first) {
            return Some(ending);
        }
        let ending = loop {
            let gate = &self.shared.gate;
            let passed = match gate.is_open() {
                true => self
                    .inject(vcpu, start)
                    .and_then(|()| self.enter_once(vcpu, start, &mut first)),
                false if gate.is_stopped() => break None,
                false => self.park(vcpu, start, &mut first),
            };
            if let Err(ending) = passed {
                break Some(ending);
            }
        };
        drop(bound);
        ending
    }

    /// Hands KVM what it does not inject by itself; only before a run that lets the guest take it, since nobody could tell
    /// whether it has.
    fn inject(&self, vcpu: &mut VcpuFd, start: &Start) -> Result<(), StopReason> {
        let injected = start.platform.inject_interrupts(self.id, vcpu);
        injected.map_err(|source| StopReason::Fault(VcpuError::Prepare { id: self.id, source }))
    }

    fn enter_once(&self, vcpu: &mut VcpuFd, start: &Start, first: &mut bool) -> Result<(), StopReason> {
        let at = |vcpu: &VcpuFd| self.location(vcpu, start);
        let width = RunPage::of(vcpu).port_width();
        let exit = vcpu.run();
        self.exits.count(&exit);
        if std::mem::take(first) {
            self.shared.timeline.mark(Lane::Vcpu(self.id), "first exit");
        }
        let targets = Targets {
            ports: &start.ports,
            memory: &start.memory_bus,
            power: &start.power,
        };
        let outcome = match exit {
            Ok(exit) => handle(exit, &width, &targets),
            Err(error) => return self.interrupted(vcpu, error.errno(), start),
        };
        Err(match outcome {
            ExitAction::Handled => return Ok(()),
            ExitAction::EndOfInterrupt(vector) => {
                start.platform.end_of_interrupt(vector);
                return Ok(());
            }
            ExitAction::Power(event) => StopReason::Power(event),
            ExitAction::TripleFault => StopReason::TripleFault { ip: at(vcpu).ip },
            ExitAction::InternalError => StopReason::Fault(self.internal_error(vcpu, start)),
            ExitAction::EntryRefused(reason) => StopReason::Fault(VcpuError::Entry { at: at(vcpu), reason }),
            ExitAction::MemoryFault => StopReason::Fault(VcpuError::Memory { at: at(vcpu) }),
            ExitAction::Unknown(exit) => StopReason::Fault(VcpuError::Exit { at: at(vcpu), exit }),
        })
    }

    fn interrupted(&self, vcpu: &mut VcpuFd, errno: i32, start: &Start) -> Result<(), StopReason> {
        match errno {
            libc::EINTR | libc::EAGAIN => {
                RunPage::of(vcpu).clear_immediate_exit();
                Ok(())
            }
            libc::EFAULT => Err(StopReason::Fault(VcpuError::Memory {
                at: self.location(vcpu, start),
            })),
            _ => Err(StopReason::Fault(VcpuError::Run {
                at: self.location(vcpu, start),
                source: io::Error::from_raw_os_error(errno),
            })),
        }
    }

    #[inline(never)]
    fn location(&self, vcpu: &VcpuFd, start: &Start) -> Location {
        let (ip, bytes) = NativeCpu::instruction(vcpu, &start.memory);
        Location {
            vcpu: self.id,
            ip,
            bytes,
        }
    }

    #[inline(never)]
    fn internal_error(&self, vcpu: &mut VcpuFd, start: &Start) -> VcpuError {
        let error = RunPage::of(vcpu).internal_error();
        let mut at = self.location(vcpu, start);
        if let Some((bytes, length)) = error.instruction {
            at.bytes = bytes[..length].to_vec();
        }
        let hint = match error.suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
                ": this host's KVM could not emulate the instruction; hosts without hardware virtualisation interpret the \
                 guest's kernel and know no SSE, so try a host with VMX, SVM or EL2, or an image built for general \
                 registers only"
            }
            _ => ": the image may need another --protocol or a host with hardware virtualisation",
        };
        VcpuError::Internal {
            suberror: error.suberror,
            at,
            hint,
        }
    }
}
